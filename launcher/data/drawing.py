"""Seeding only what draws: the generators are looked at around each batch, and seeded once one of them has moved.

A seed for each sample costs 7 µs, as much as many samples. Where nothing is drawn it changes nothing. So a batch is
read as it is; the first one in which a generator has moved is read again, that generator seeded for each sample, and
from then on it always is. The numbers are those of seeds from the beginning.

What reads or sets a generator's state and leaves it where it was has not moved it, and would find another state: a
`fork_rng` without a seed, an `initial_seed`. Calls of the public functions are noticed, and a few samples are read
from two different states first, which finds whatever does so by other ways always. What does it by other ways and
seldom is not found: `data.sample_seeds: true` seeds always.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from launcher.data.generators import GENERATORS, Generator, Looks, looked, moved
from launcher.data.many import difference

T = TypeVar("T")

_TWO_STATES = (0x9E3779B97F4A7C15, 0xD1B54A32D192ED03)


class Draws:
    """Which generators reading draws from, as far as is known in this process.

    Args:
        always: All of them, whatever is read.
    """

    def __init__(self, always: bool):
        self.drawn: tuple[Generator, ...] = GENERATORS if always else ()
        self.is_tried = always  # by `try_once`
        self.keeps = False  # samples that were found to draw, and draw nothing when they are read again
        self._since: Looks | None = None  # while it is watched whether samples draw: as the last seed left it
        self._draws_again = False

    def seed(self, value: int) -> None:
        """Seeds those for what is read next."""
        if self._since is not None:
            self._draws_again |= bool(moved(self._since))
        for generator in self.drawn:
            generator.seed(value)
        if self._since is not None:
            self._since = looked()

    @property
    def seeding(self) -> Callable[[int], object]:
        """What does so, for many samples."""
        return self.drawn[0].seed if len(self.drawn) == 1 and self._since is None else self.seed

    def read(self, batch: Callable[[], T], restored: bool) -> T:
        """A batch, read again where it turns out that it draws.

        Args:
            batch: Reads it, calling `seed` before each sample.
            restored: Whether the generators are put back, being needed for other things than reading.
        """
        looks = before = looked()
        try:
            while len(self.drawn) < len(GENERATORS):
                failure = None
                with noted() as asked:
                    try:
                        result = batch()
                    except Exception as error:  # it may depend on what was drawn
                        failure = error
                if not self._is_news(before, asked):
                    if failure is not None:
                        raise failure
                    return result
                self._watch(batch)
                before = looked()
            return batch()
        finally:
            if restored and self.drawn:
                _put_back(self.drawn, looks)

    def try_once(self, batch: Callable[[], Any], restored: bool) -> bool:
        """Reads a few samples from two different states: where they differ without a draw, all is seeded.

        Args:
            batch: Reads them.
            restored: As of `read`.

        Returns:
            Whether they are alike, as far as they were not seeded; yes also where they were tried before.
        """
        if self.is_tried:
            return True
        self.is_tried = True
        outcomes: list[Any] = []
        looks = looked()
        try:
            while len(outcomes) < len(_TWO_STATES) and len(self.drawn) < len(GENERATORS):
                for generator in GENERATORS:
                    generator.seed(_TWO_STATES[len(outcomes)])
                before = looked()
                with noted() as asked:
                    outcomes.append(batch())
                if self._is_news(before, asked):
                    self._watch(batch)
                    outcomes.clear()
            if not outcomes or difference(*outcomes) is None:
                return True
        except Exception:  # reading all of the batch says so, unless these few make none
            pass
        finally:
            if restored:
                _put_back(GENERATORS, looks)
        self.drawn = GENERATORS
        return False

    def _watch(self, batch: Callable[[], Any]) -> None:
        """Reads samples that have just drawn once more: where none draws again, they keep what they drew."""
        self._since, self._draws_again = looked(), False
        with noted() as asked:
            try:
                batch()
            except Exception:  # it is told where it is read in earnest
                self._draws_again = True
        self._draws_again |= bool(asked or moved(self._since))
        self._since = None
        self.keeps = not self._draws_again

    def _is_news(self, before: Looks, asked: set[Generator]) -> bool:
        """Whether something was drawn from, since that look, of which this was not known; now it is."""
        drawn = moved(before) | asked
        if drawn <= {*self.drawn}:
            return False
        self.drawn = tuple(one for one in GENERATORS if one in drawn or one in self.drawn)
        return True


def draws_in(read: Callable[[], T]) -> tuple[T, bool]:
    """What it reads, and whether it draws from a generator."""
    before = looked()
    with noted() as asked:
        result = read()
    return result, bool(asked or moved(before))


def _put_back(generators: Iterable[Generator], looks: Looks) -> None:
    for generator, look in zip(GENERATORS, looks, strict=True):
        if generator in generators:
            generator.put_back(look)


# ---------------------------------------------------------------------- calls of public functions


class noted:  # noqa: N801  # a context manager named as what it says
    """Notes which generators have their state asked for, or set, by one of the public functions."""

    def __enter__(self) -> set[Generator]:
        asked: set[Generator] = set()
        if not _ASKED:
            for names, watching, _ in _READERS:
                names.update(watching)
        _ASKED.append(asked)
        return asked

    def __exit__(self, *_: object) -> None:
        _ASKED.pop()
        if not _ASKED:
            for names, _watching, originals in _READERS:
                names.update(originals)


_ASKED: list[set[Generator]] = []  # of each of them; a data set may read another


def _noting(generator: Generator, original: Callable[..., Any]) -> Callable[..., Any]:
    """A function that stands in the place of one by which others read or set a generator's state."""

    def noting(*args: Any, **kwargs: Any) -> Any:
        for asked in _ASKED:
            asked.add(generator)
        return original(*args, **kwargs)

    return noting


def _readers() -> Iterator[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]]:
    """The names of each module, and those functions among them: ours, and its own."""
    for generator in GENERATORS:
        for module, names in generator.readers:
            originals = {name: getattr(module, name) for name in names}
            yield module.__dict__, {name: _noting(generator, one) for name, one in originals.items()}, originals


_READERS = list(_readers())
