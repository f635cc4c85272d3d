"""Data sets that can only be read in their own order: split over ranks and workers without overlap, by counting.

A stream that can be asked for a part of itself, `shard(num_shards=…, index=…)` as Hugging Face's have it, gives each
reader its own; nothing is read twice, and which samples meet in a step depends on how many readers there are. Any
other stream is read whole by every rank, which keeps its share of each global batch: the same run in every world.

A stream that ends begins again. Position is a count: resuming at step K drops what the steps before it read, with
the stream's own `skip(n)` where it has one.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Generator, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from launcher import internals
from launcher.data.epochs import listeners
from launcher.data.loaders import EvaluationLoader, MicroBatch, TrainLoader
from launcher.data.looking import Ahead, Looking, copy_of, light_copy
from launcher.data.many import difference
from launcher.data.own_parts import OwnPartSampler
from launcher.data.reading import Reader, Reading, located
from launcher.data.sampler import Share, StepSampler
from launcher.data.seeds import randomness_restored
from launcher.data.workers import Request
from launcher.errors import LauncherError

_END = object()
_FIRST = 64  # samples that may be looked at before training
_AGAIN = "its __iter__ must start from the beginning each time"


def length_of(stream: Any) -> int | None:
    """How many samples a stream has, if it knows."""
    try:
        return len(stream)
    except (TypeError, NotImplementedError):
        return None


def has_shards(dataset: Any, readers: int) -> bool:
    """Whether a stream can be cut into parts for so many readers."""
    known = getattr(dataset, "num_shards", readers)
    return isinstance(known, int) and known >= readers and not why_unused(dataset, "shard", readers)


def why_unused(dataset: Any, name: str, count: int = 1) -> str:
    """Why its `shard` or `skip` is not what Hugging Face's streams mean by that; empty where it is, as far as it shows.

    It takes those arguments, and gives something to iterate over. A copy is asked: some change themselves.
    """
    method = getattr(dataset, name, None)
    arguments: dict[str, Any] = {"num_shards": count, "index": 0} if name == "shard" else {}
    words = "shard(num_shards, index)" if name == "shard" else "skip(n)"
    if not callable(method):
        return f"it has no method {words}"
    if not _binds(method, () if arguments else (count,), arguments):
        return f"its {name} takes other arguments than {words}"
    try:
        made = getattr(light_copy(dataset), name)(*(() if arguments else (count,)), **arguments)
    except Exception as error:
        return f"its {words} fails: {type(error).__name__}: {error}"
    return "" if hasattr(type(made), "__iter__") else f"its {words} gives a {type(made).__name__}, and no stream"


def _binds(method: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    try:
        inspect.signature(method).bind(*args, **kwargs)
    except ValueError:  # written in another language
        return True
    except TypeError:
        return False
    return True


class _FirstSamples:
    """The first samples of a stream, to be looked at: nothing of it is used up."""

    dataset: Any
    reading: Reading
    _reader: Reader
    _aheads: dict[int, Ahead]  # of a stream that cannot be copied, its parts that were looked at, by number

    def num_readable(self) -> int:
        """How many samples `batch_of` may be asked for."""
        return len(self._first_samples)

    def batch_of(self, numbers: Sequence[int]) -> Any:
        """A batch of some of the first samples."""
        with randomness_restored(bool(self.reading.sample_seeds)):
            return self._reader.collated(0, np.asarray(numbers), [self._first_samples[number] for number in numbers])

    @cached_property
    def _first_samples(self) -> list[Any]:
        stream = self._to_look_at()
        if stream is None:
            return []
        with randomness_restored(bool(self.reading.sample_seeds)):
            return list(itertools.islice(_one_pass(stream, self._reader, 0), _FIRST))

    def _to_look_at(self) -> Any | None:
        """A copy; where there is none, what keeps what is read of it."""
        copied = copy_of(self.dataset)
        return Looking(self._aheads.setdefault(0, Ahead(self.dataset))) if copied is None else copied


class StreamLoader(_FirstSamples, TrainLoader):
    """A stream, step after step. An epoch is what the sampler says it is: a stream need not know its length.

    Args:
        dataset: Has `__iter__`.
        sampler: How many samples of the next ones this rank reads at which step; not shuffled.
        reading: How samples become batches.
        name: What to call the data set in messages.
    """

    def __init__(self, dataset: Any, sampler: StepSampler, reading: Reading, name: str = "data.train"):
        super().__init__(dataset, sampler, reading, name)
        self.name = name
        self._aheads = {}
        self._looks = False  # it is there to look, and what it reads is kept for another
        self.is_split = isinstance(sampler, OwnPartSampler)  # by rank, before it came here
        parts = max(1, reading.workers) * (1 if self.is_split else sampler.num_replicas)
        self.is_sharded = (self.is_split and parts == 1) or has_shards(dataset, parts)
        assert self.is_sharded or reading.workers <= 1, "each worker would read the whole stream"

    @property
    def readers(self) -> int:
        """How many read it over all ranks."""
        return self.sampler.num_replicas * max(1, self.reading.workers)

    def describe(self) -> str:
        """How it is split, and what that means, for the plan."""
        readers = self.readers
        how = "in its own order"
        if self.is_split:
            how = "of which each process reads its own part: another number of processes is another run"
        elif readers > 1 and self.is_sharded:
            how = f"in {readers} shards: another number of processes or workers is another run"
        elif readers > 1:
            why = why_unused(self.dataset, "shard", readers) or f"it has {self.dataset.num_shards} shards"
            how = f"of which every process reads all, as {why}"
        why = why_unused(self.dataset, "skip")
        reads_past = "reads past" + f", as {why}," * hasattr(self.dataset, "skip")
        return f"a stream {how}; resuming a stopped run {reads_past if why else 'skips'} what was read before"

    def apart(self) -> StreamLoader:
        """One that reads a copy; where there is none it reads here, and all that it reads is kept for this one."""
        if (copied := copy_of(self.dataset)) is not None:
            return type(self)(copied, self.sampler, self.reading, self.name)
        spare = type(self)(self.dataset, self.sampler, self.reading, self.name)
        spare._aheads, spare._looks = self._aheads, True
        return spare

    def _to_look_at(self) -> Any | None:
        """None of one that cannot be copied and is read in parts: the whole is nobody's."""
        return copy_of(self.dataset) if self.is_sharded or self.is_split else super()._to_look_at()

    def steps(self, start: int, stop: int | None) -> Generator[list[MicroBatch], None, None]:
        """This rank's micro-batches of each optimizer step from `start` on."""
        kind = _OwnPartReader if self.is_split else _ShardReader if self.is_sharded else _PickReader
        reader = kind(self.dataset, self.sampler, self.reading, self.name)  # at the stream's beginning
        reader.aheads, reader.looks = self._aheads, self._looks
        self._reader = reader
        if not self._looks:
            yield from super().steps(start, stop)
            return
        for step in itertools.count(start) if stop is None else range(start, stop):
            yield self._step(step)

    def _requests(self, start: int, stop: int | None) -> Iterator[Request]:
        for step in itertools.count(start) if stop is None else range(start, stop):
            yield from ((step, np.array([number])) for number in range(self.sampler.accumulation(step)))

    def _read(self, step: int, shares: Sequence[Share]) -> list[Any]:
        return [self._reader.batch(step, np.array([number])) for number in range(len(shares))]


class StreamEvaluationLoader(_FirstSamples, EvaluationLoader):
    """A stream's first samples, or all of them, read in the training process.

    Args:
        dataset: Has `__iter__`, and a length where there is no limit.
        batch_size: Samples of one forward pass.
        reading: How samples become batches.
        limit: At most so many batches.
        name: What to call the data set in messages.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._aheads = {}

    def batches(self, rank: int = 0, world_size: int = 1) -> Iterator[MicroBatch]:
        """Every `world_size`-th batch; each rank reads the whole stream for it."""
        reader = self._reader
        stream = self._aheads.get(0, self.dataset)
        samples = itertools.islice(_one_pass(stream, reader, 0), self.num_samples())
        for first in itertools.count(0, self.size):
            with randomness_restored(bool(reader.reading.sample_seeds)):
                batch = list(itertools.islice(samples, self.size))
                data = reader.pinned(reader.collated(0, np.arange(first, first + len(batch)), batch)) if batch else None
            if not batch:
                if not first:
                    raise LauncherError(f"{reader.name}: the stream gave no sample; {_AGAIN}")
                return
            if first // self.size % world_size == rank:
                yield MicroBatch(data, len(batch), first)

    def batches_in_rounds(self, rank: int, world_size: int) -> Iterator[MicroBatch]:
        """The same."""
        return self.batches(rank, world_size)

    def first_batch(self) -> MicroBatch:
        """The first of all; it is not used up."""
        return next(type(self)(self._to_look_at(), self.size, self.reading, self.limit, self.name).batches())

    def num_samples(self) -> int:
        """Samples that an evaluation counts at most, over all ranks."""
        known = [length_of(self.dataset), None if self.limit is None else self.limit * self.size]
        return min(size for size in known if size is not None)


class _StreamReader(Reader):
    """One reader of a stream: asked for the micro-batches of a step by their number, and only ever forward."""

    def __init__(self, dataset: Any, sampler: StepSampler, reading: Reading, name: str):
        super().__init__(dataset, reading, name)
        self.sampler = sampler
        self.aheads: dict[int, Ahead] = {}
        self.looks = False
        self._stream: Iterator[Any] | None = None

    def batch(self, epoch: int, indices: Any) -> Any:
        """The micro-batch `indices[0]` of step `epoch`."""
        with randomness_restored(self.in_training_process and bool(self.reading.sample_seeds)):
            first, samples = self._read(epoch, int(indices[0]))
            return self.pinned(self.collated(epoch, np.arange(first, first + len(samples)), samples))

    def _read(self, step: int, number: int) -> tuple[int, list[Any]]:
        """The position of the first sample among all that this reader reads, and the samples."""
        raise NotImplementedError

    def _open(self, own: int, skipped: int) -> Iterator[Any]:
        if not self.in_training_process:
            internals.forget_worker()  # a stream that splits itself among workers would leave samples out
        if self.looks and own not in self.aheads:
            self.aheads[own] = Ahead(self._part(own))
        ahead = self.aheads.get(own)
        if ahead is None:
            return _endless(self._part(own), self, skipped)
        return _endless(Looking(ahead) if self.looks else ahead if ahead.is_open else ahead.stream, self, skipped)

    def _part(self, own: int) -> Any:
        """What it reads of the stream."""
        return self.dataset


class _PickReader(_StreamReader):
    """Reads the whole stream and keeps this rank's share of each global batch."""

    _step = -1
    _kept: Mapping[int, Any] = {}  # the samples of that step, by their position in the epoch

    def _read(self, step: int, number: int) -> tuple[int, list[Any]]:
        if step != self._step:
            self._step, self._kept = step, self._samples_of(step)
        positions = self.sampler.shares(step)[number].indices.tolist()
        return positions[0], [self._kept[position] for position in positions]

    def _samples_of(self, step: int) -> Mapping[int, Any]:
        if self._stream is None:
            self._stream = self._open(0, self.sampler.samples_before(step))
        first = step % self.sampler.steps_per_epoch * self.sampler.global_batch_size
        wanted = {position for share in self.sampler.shares(step) for position in share.indices.tolist()}
        batch = enumerate(itertools.islice(self._stream, self.sampler.batch_size(step)), first)
        return {position: sample for position, sample in batch if position in wanted}


class _ShardReader(_StreamReader):
    """Reads a shard of its own. The workers of a rank take its micro-batches in turn."""

    _count = 0
    _held: Sequence[Any] = ()

    def _read(self, step: int, number: int) -> tuple[int, list[Any]]:
        if self._stream is None:
            self._stream = self._begin(step, number)
        count = self.sampler.shares(step)[number].samples
        if count == 0:  # a stand-in is the next sample, which is not used up
            self._held = self._held or [next(self._stream)]
            return self._count, list(self._held)
        samples = [*self._held, *itertools.islice(self._stream, count - len(self._held))]
        self._held = ()
        self._count += count
        return self._count - count, samples

    def _begin(self, step: int, number: int) -> Iterator[Any]:
        """The shard of whoever reads this micro-batch, behind all that it has read before."""
        sampler, readers = self.sampler, self._readers
        micro_batch = sampler.micro_batches_before(step) + number
        own = micro_batch % readers
        self._count = sampler.samples_of(own, readers, micro_batch)
        self.shard = sampler.rank * readers + own
        return self._open(own, self._count)

    @property
    def _readers(self) -> int:
        return max(1, self.reading.workers)

    def _part(self, own: int) -> Any:
        """What one of this rank's readers reads."""
        return light_copy(self.dataset).shard(num_shards=self.sampler.num_replicas * self._readers, index=self.shard)


class _OwnPartReader(_ShardReader):
    """Reads this rank's part of what is split by rank already, shared by its workers alone."""

    def _part(self, own: int) -> Any:
        readers = self._readers
        return self.dataset if readers == 1 else light_copy(self.dataset).shard(num_shards=readers, index=own)


# ---------------------------------------------------------------------- passes over a stream


def _endless(dataset: Any, reader: Reader, skipped: int) -> Iterator[Any]:
    """A stream's samples after the first `skipped`, pass after pass.

    Raises:
        LauncherError: It has none.
    """
    number = position = 0
    if skipped and _skips_samples(dataset, reader):
        position = yield from _one_pass(light_copy(dataset).skip(skipped), reader, 0, skipped)
        number = int(position > skipped)  # 0 where it is shorter than that: then it is read and counted
    position, dropped = (position, 0) if number else (0, skipped)
    while True:
        end = yield from _one_pass(dataset, reader, number, position, dropped)
        if end == position:
            what = f"{reader.name}: the stream gave no sample (shard {reader.shard})"
            raise LauncherError(f"{what} in pass {number + 1}; {_AGAIN if number else 'check its source'}")
        number, position = number + 1, end


def _skips_samples(dataset: Any, reader: Reader) -> bool:
    """Whether its `skip(1)` gives what comes after its first sample, where copies of it can be read."""
    if why_unused(dataset, "skip"):
        return False
    whole, rest = copy_of(dataset), copy_of(dataset)
    if whole is None or rest is None:
        return True
    try:
        after = list(itertools.islice(_one_pass(whole, reader, 0), 2))[1:]
        return difference(after, list(itertools.islice(_one_pass(rest.skip(1), reader, 0, 1), 1))) is None
    except Exception:  # reading past it says so
        return False


def _one_pass(
    dataset: Any, reader: Reader, number: int, position: int = 0, dropped: int = 0
) -> Generator[Any, None, int]:
    """One iteration over a stream, each sample seeded by its position; returns the position behind the last."""
    if not (isinstance(dataset, Ahead | Looking) and dataset.is_open):  # else they were told when it was opened
        for listener in listeners(dataset, reader.reading.collate):
            listener.set_epoch(number)
    reader.seed(number, position)
    iterator = iter(dataset)
    while True:
        reader.seed(number, position)
        reader.mark(number, position)
        with located(f"{reader.name}, sample {position}"):
            sample = next(iterator, _END)
        if sample is _END:
            return position
        if position >= dropped:
            yield sample
        position += 1
