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

from collections.abc import Callable
from typing import Any, TypeVar

from launcher.data.generators import GENERATORS, Generator
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
        self._is_tried = always

    def seed(self, value: int) -> None:
        """Seeds those for what is read next."""
        for generator in self.drawn:
            generator.seed(value)

    def read(self, batch: Callable[[], T], restored: bool) -> T:
        """A batch, read again where it turns out that it draws.

        Args:
            batch: Reads it, calling `seed` before each sample.
            restored: Whether the generators are put back, being needed for other things than reading.
        """
        with _Entered(self, restored) as looks:
            while len(self.drawn) < len(GENERATORS):
                seeded, failure = self.drawn, None
                with _Watch(self, looks):
                    try:
                        result = batch()
                    except Exception as error:  # it may depend on what was drawn
                        failure = error
                if self.drawn is seeded:
                    if failure is not None:
                        raise failure
                    return result
                looks = [generator.look() for generator in GENERATORS]
            return batch()

    def try_once(self, batch: Callable[[], Any], restored: bool) -> bool:
        """Reads a few samples from two different states: where they differ without a draw, all is seeded.

        Args:
            batch: Reads them.
            restored: As of `read`.

        Returns:
            Whether they are alike, as far as they were not seeded; yes also where they were tried before.
        """
        if self._is_tried:
            return True
        self._is_tried = True
        outcomes: list[Any] = []
        with _Entered(self, restored, seeds=True):
            try:
                while len(outcomes) < len(_TWO_STATES) and len(self.drawn) < len(GENERATORS):
                    seeded = self.drawn
                    for generator in GENERATORS:
                        generator.seed(_TWO_STATES[len(outcomes)])
                    with _Watch(self):
                        outcomes.append(batch())
                    if self.drawn is not seeded:
                        outcomes.clear()
                if not outcomes or difference(*outcomes) is None:
                    return True
            except Exception:  # reading all of the batch says so, unless these few make none
                pass
        self.drawn = GENERATORS
        return False

    def watching(self, read: Callable[[], T]) -> T:
        """What it reads, noting what it draws from."""
        with _Watch(self):
            return read()

    def note(self, generator: Generator) -> None:
        """It is drawn from."""
        self.drawn = tuple(one for one in GENERATORS if one in self.drawn or one is generator)


class _Entered:
    """Puts back at the end what was drawn from, where that is wanted.

    Args:
        draws: Know from which.
        restored: Whether it is wanted.
        seeds: Whether all are seeded in between.
    """

    def __init__(self, draws: Draws, restored: bool, seeds: bool = False):
        self.draws, self.restored, self.seeds = draws, restored, seeds

    def __enter__(self) -> list[Any]:
        self.looks = [generator.look() for generator in GENERATORS]
        return self.looks

    def __exit__(self, *_: object) -> None:
        if self.restored:
            for generator, look in zip(GENERATORS, self.looks, strict=True):
                if self.seeds or generator in self.draws.drawn:
                    generator.put_back(look)


class _Watch:
    """Notes which generators move, or have their state asked for.

    Args:
        draws: Are told.
        looks: Of all of them, from just now.
    """

    def __init__(self, draws: Draws, looks: list[Any] | None = None):
        self.draws = draws
        self.looks = [generator.look() for generator in GENERATORS] if looks is None else looks

    def __enter__(self) -> None:
        self.asked: set[Generator] = set()
        if not _ASKED:
            for reader in _READERS:
                setattr(reader.module, reader.name, reader.noting)
        _ASKED.append(self.asked)

    def __exit__(self, *_: object) -> None:
        _ASKED.pop()
        if not _ASKED:
            for reader in _READERS:
                setattr(reader.module, reader.name, reader.original)
        drawn = self.draws.drawn
        for generator, look in zip(GENERATORS, self.looks, strict=True):
            if generator not in drawn and (generator in self.asked or generator.look() != look):
                self.draws.note(generator)


_ASKED: list[set[Generator]] = []  # of each watch; a data set may read another


class _Reader:
    """A function by which others read or set a generator's state, and the one that stands in its place meanwhile."""

    def __init__(self, generator: Generator, module: Any, name: str):
        self.module, self.name = module, name
        original = self.original = getattr(module, name)

        def noting(*args: Any, **kwargs: Any) -> Any:
            for asked in _ASKED:
                asked.add(generator)
            return original(*args, **kwargs)

        self.noting = noting


_READERS = [_Reader(generator, *place) for generator in GENERATORS for place in generator.readers]
