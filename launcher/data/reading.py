"""From indices to a batch: many samples in one call where the data set can, seeded ones one by one otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from torch.utils.data import default_collate, get_worker_info

from launcher import internals
from launcher.data.drawing import Draws, draws_in
from launcher.data.epochs import Announcer, methods_of
from launcher.data.getitems import gives_batches, has_many, is_own_many, read_one, reads_many
from launcher.data.many import UNUSED, verdict_on
from launcher.data.permutation import Indices, mix
from launcher.data.seeds import LOWER
from launcher.data.subsets import innermost, is_stream, name_of, numbered_in_whole
from launcher.data.whole import Collate, TensorRows, pinned_rows, whole_batches
from launcher.errors import LauncherError, SampleError
from launcher.internals import pin_memory

Mark = Callable[[int, int], None]

_FEW = 2  # samples that are tried before the first batch
_OWN = 2  # the purpose of a seed for a data set's own generators


@dataclass(frozen=True)
class Reading:
    """How samples become batches.

    Attributes:
        collate: Makes a batch of a list of samples; None is torch's default.
        workers: Worker processes of one training process.
        timeout_seconds: How long a batch may take.
        seed: Seeds each sample and each collate, where `sample_seeds`.
        sample_seeds: Whether they are seeded: always, never, or where something is drawn (auto), with the same result.
        pin_memory: Whether batches are made ready for a transfer to a GPU.
        rank: Whose reading it is, for messages.
        on_device: What is made of a batch when it is where the model is; whoever computes calls it.
    """

    collate: Collate | None = None
    workers: int = 0
    timeout_seconds: float = 600.0
    seed: int = 0
    sample_seeds: bool | Literal["auto"] = "auto"
    pin_memory: bool = False
    rank: int = 0
    on_device: Callable[[Any], Any] | None = None


class Reader:
    """Makes batches of a data set's samples, in the training process or in a worker.

    Args:
        dataset: Map-style.
        reading: How.
        name: What to call the data set in messages, as in `data.train`.
    """

    def __init__(self, dataset: Any, reading: Reading, name: str):
        self.dataset = dataset
        self.reading = reading
        self.name = f"{name} ({name_of(dataset)}), rank {reading.rank}"
        self._key = name
        self.mark: Mark = _unmarked
        self.in_training_process = True  # whose generators are needed for other things than reading
        self.shard = 0  # of a stream: two of them never draw the same numbers
        self.epochs = Announcer(dataset, reading.collate)
        self._draws = Draws(always=reading.sample_seeds is True or (bool(reading.sample_seeds) and is_stream(dataset)))
        self._whole = whole_batches(dataset, reading.collate)
        self._gathers_pinned = reading.pin_memory and isinstance(self._whole, TensorRows)
        self._has_many = has_many(dataset)
        self._gives_batches: bool | None = None if self._has_many else False  # itself, not samples for a collate
        self._is_read_at_once = reads_many(dataset)

    @cached_property
    def _seeders(self) -> list[Callable[[int], object]]:
        """What a data set has for generators of its own, wherever it stands; looked for by whoever reads."""
        return [] if not self.reading.sample_seeds else methods_of("seed_sample", self.dataset)

    @property
    def reads_whole_batches(self) -> bool:
        """Whether the data set gives a batch in one call."""
        return self._whole is not None

    @property
    def may_drop(self) -> bool:
        """Whether a collate or a `__getitems__` of somebody's own may leave samples out of a batch."""
        return self.reading.collate is not None or (self._whole is None and self._has_many)

    @property
    def draws(self) -> bool:
        """Whether what was read so far was drawn at random, as far as it was looked at."""
        return self.reading.sample_seeds == "auto" and bool(self._draws.drawn or self._seeders)

    @property
    def keeps_draws(self) -> bool:
        """Whether samples keep what they drew when they were first read, as far as it was looked at."""
        return self._draws.keeps

    def batch(self, epoch: int, indices: Indices) -> Any:
        """The batch of these samples, as the data set and its collate make it.

        Raises:
            LauncherError: The data set says that a sample cannot be read, or the samples do not make a batch.
        """
        self.epochs.tell(epoch)
        if self._gives_batches is None:  # asked before anybody looks at the generators
            self._gives_batches = self._whole is None and gives_batches(self.dataset)
        if self._whole is not None:
            if self.mark is not _unmarked:
                self.mark(epoch, int(indices[0]))
            if self._gathers_pinned and self.in_training_process:
                return pinned_rows(self.dataset, indices)
            if (rows := self._whole(indices)) is not None:
                return self.pinned(rows) if self.reading.pin_memory else rows
        if not self.reading.sample_seeds:
            return self.pinned(self._made(epoch, indices))
        draws, restored = self._draws, self.in_training_process
        if not draws.is_tried and not draws.try_once(lambda: self._made(epoch, indices[:_FEW]), restored):
            self._is_read_at_once = False
        return self.pinned(draws.read(lambda: self._made(epoch, indices), restored))

    def _made(self, epoch: int, indices: Indices) -> Any:
        if self._gives_batches:
            return self.collated(epoch, indices, self._batch_itself(epoch, indices))
        is_at_once = self._is_read_at_once and not self._seeders
        samples = self._at_once(epoch, indices.tolist()) if is_at_once else None
        return self.collated(epoch, indices, self._one_by_one(epoch, indices) if samples is None else samples)

    def _batch_itself(self, epoch: int, indices: Indices) -> Any:
        """What `__getitems__` gives, seeded by its first sample."""
        self.seed(epoch, int(indices[0]))
        self.mark(epoch, int(indices[0]))
        with located(lambda: f"{self.name}, samples {self._numbers(indices)}", self._key):
            return self.dataset.__getitems__(indices.tolist())

    def _at_once(self, epoch: int, numbers: list[int]) -> Any:
        """What `__getitems__` gives for all of them; None where each must be read by itself.

        That is where reading draws at random, since each sample has seeds of its own whatever it is read with, and
        where it fails, since a message names the sample.
        """
        self.seed(epoch, numbers[0])
        self.mark(epoch, numbers[0])
        read, drew = self.dataset.__getitems__, False
        try:
            if self._draws.drawn:  # else whoever looks around the batch asks for it again, with seeds, where it draws
                samples, drew = draws_in(lambda: read(numbers))
            else:
                samples = read(numbers)
        except Exception:
            return None
        if drew:
            self._is_read_at_once = False
            return None
        return samples

    def _one_by_one(self, epoch: int, indices: Indices) -> list[Any]:
        dataset, many, index = self.dataset, self._has_many, -1
        samples: list[Any] = []
        with located(lambda: self._place_of(index), self._key, len(innermost(self.dataset))):
            if not (many or self._draws.drawn or self._seeders or self.mark is not _unmarked):
                return [dataset[index := number] for number in indices.tolist()]
            seed = self._seed if self._seeders else self._draws.seeding
            for index, value in zip(indices.tolist(), self._seeds_of(epoch, indices), strict=True):
                seed(value)
                self.mark(epoch, index)
                samples += read_one(dataset, index) if many else [dataset[index]]
        return samples

    def located_at(self, index: int) -> located:
        """Says of an error that it happened while this sample was read."""
        return located(self._place_of(index), self._key)

    def _place_of(self, index: int) -> str:
        """A sample's place: of a part, the number in the data set that it is a part of."""
        whole, number = numbered_in_whole(self.dataset, index)
        if whole is self.dataset or number == index:
            return f"{self.name}, sample {index}"
        return f"{self.name}, sample {number} of the data set ({index} of the part)"

    def collated(self, epoch: int, indices: Indices, samples: list[Any]) -> Any:
        """A batch of these samples, the collate seeded by the first of them.

        Raises:
            LauncherError: They do not make a batch.
        """
        if self.reading.collate is not None:
            self.seed(epoch, int(indices[0]), purpose=1)
            return self.reading.collate(samples)
        try:
            return _collated(samples)
        except (RuntimeError, TypeError, KeyError, ValueError) as error:
            which = self._numbers(indices)
            if self._gives_batches:
                raise LauncherError(
                    f"{self.name}: __getitems__ gives batches, of which torch's default collate makes none: "
                    f"{type(error).__name__}: {error}; name a function that takes them as data.collate"
                ) from error
            sized = self._sized(samples)
            raise LauncherError(
                f"{self.name}: samples {which} do not make a batch: {error}; {sized}make them alike in the data set, "
                "or name a function that can as data.collate"
            ) from error

    def _numbers(self, indices: Indices) -> str:
        """The first of them in words, of a part those in the data set that it is a part of."""
        numbers = [numbered_in_whole(self.dataset, index)[1] for index in indices[:8].tolist()]
        return ", ".join(map(str, numbers)) + (", …" if len(indices) > 8 else "")

    def _sized(self, samples: list[Any]) -> str:
        """What makes pictures of one size of those that a data set reads as large as they are."""
        if getattr(innermost(self.dataset), "size", 0) is not None:
            return ""
        first = [sample[0] if isinstance(sample, tuple) else sample for sample in samples]
        sides = [side for picture in first for side in getattr(picture, "shape", ())[-2:]]
        return f"set {self._key}.size={min(sides)}, or " if sides else ""

    def seed(self, epoch: int, index: int, purpose: int = 0) -> None:
        """Seeds what comes next by its place: those generators that reading draws from, and the data set's own."""
        if self._draws.drawn or self._seeders:
            self._seed(mix(self.reading.seed, epoch, index, 2 * self.shard + purpose), purpose)

    def _seeds_of(self, epoch: int, indices: Indices) -> list[int]:
        """What `seed` mixes for each of these samples, all at once; nothing where nothing is seeded."""
        if not (self._draws.drawn or self._seeders):
            return [0] * len(indices)
        mixed: list[int] = mix(self.reading.seed, epoch, indices.astype(np.uint64), 2 * self.shard).tolist()
        return mixed

    def _seed(self, value: int, purpose: int = 0) -> None:
        self._draws.seed(value)
        for seed_sample in self._seeders if purpose == 0 else ():
            seed_sample(mix(value, _OWN) & LOWER)

    def pinned(self, batch: Any) -> Any:
        """The batch in page-locked memory where that is wanted; workers leave it to a thread of the trainer."""
        if self.reading.pin_memory and self.in_training_process:
            return pinned(batch)
        return batch


def pinned(batch: Any) -> Any:
    """A batch in page-locked memory; as it is where it holds tensors that cannot be there, sparse or quantized ones."""
    try:
        return pin_memory(batch)
    except (RuntimeError, NotImplementedError):
        return batch


class located:  # noqa: N801  # a context manager named as what it says
    """Says of an error where it happened: before a clear message, as a note below a traceback.

    A class, because a generator would cost more than many a sample.

    Args:
        place: Where, or what makes the words of it, if it is asked.
        key: The recipe's key of the data set, for what to set there.
        size: How many samples the data set says that it has.
    """

    def __init__(self, place: str | Callable[[], str], key: str = "", size: int = 0):
        self.place, self.key, self.size = place, key, size

    def __enter__(self) -> None:
        """Costs nothing."""

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if not isinstance(error, Exception):
            return
        place = self.place if isinstance(self.place, str) else self.place()
        if isinstance(error, SampleError) and self.key:
            raise LauncherError(f"{place}: {error.of(self.key)}") from error
        if isinstance(error, LauncherError):
            raise LauncherError(f"{place}: {error}") from error
        error.add_note(f"in {place}{self.about(error)}")

    def about(self, error: Exception) -> str:
        """What to look at: a data set that ends before the length that it says."""
        is_beyond = self.size and isinstance(error, IndexError)
        return f" of {self.size}; does its __len__ say too much?" if is_beyond else ""


# ---------------------------------------------------------------------- many samples in one call


def reading_notes(dataset: Any, collate: Collate | None) -> Iterator[str]:
    """What the plan should say of how samples are read: a method that is not used, or one that bypasses another."""
    kind = type(dataset)
    if collate is None and (why := verdict_on(dataset).why):
        is_whole = whole_batches(dataset, None) is not None  # by torch's own code, which is above that method
        yield why.replace(UNUSED, "is not used") if is_whole else why
    elif whole_batches(dataset, collate) is None and gives_batches(dataset):
        yield (
            f"{kind.__name__}.__getitems__ gives batches, not lists of samples: they go to the collate as they are, as "
            "in torch's DataLoader; what one draws is seeded by its first sample, and another world draws otherwise"
        )
    elif has_many(dataset) and not is_own_many(kind):
        yield (
            f"{kind.__name__} is read by the __getitems__ that it inherits or passes on, not by its own __getitem__, "
            "as torch's DataLoader would; give it a __getitems__ too if that is not meant"
        )


def _collated(samples: list[Any]) -> Any:
    """Torch's default collate, in a worker the same as in the training process."""
    if get_worker_info() is None:
        return _in_columns(samples)
    with internals.as_in_no_worker():
        return _in_columns(samples)


def _in_columns(samples: list[Any]) -> Any:
    """The same for plain tuples, whose parts torch collates one by one after it has looked at each sample's length."""
    if type(samples[0]) is not tuple or len(_COLLATES) != _TYPES_COLLATED:
        return default_collate(samples)
    try:
        columns = list(zip(*samples, strict=True))
    except (TypeError, ValueError):  # torch says what is wrong with them
        return default_collate(samples)
    return [default_collate(column) for column in columns]  # type: ignore[arg-type]  # tuples, as torch has them


_COLLATES = internals.collate_functions()
_TYPES_COLLATED = len(_COLLATES)  # none of them tuples; somebody may add one


def _unmarked(epoch: int, index: int) -> None:
    """Nobody watches."""
