"""Batches for one rank, step after step: from this process, or from workers that read ahead.

By type they are torch's DataLoaders: data set, batch sampler, workers and collate stand where one looks for them.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, default_collate

from launcher.data.auto_workers import Measured
from launcher.data.permutation import Indices
from launcher.data.reading import Reader, Reading
from launcher.data.sampler import Share, StepSampler, evaluation_shares, shares_in_rounds
from launcher.data.subsets import innermost
from launcher.data.whole import is_made_of_tensors
from launcher.data.workers import Request, Workers

__all__ = ["EvaluationLoader", "MicroBatch", "Reading", "TrainLoader"]


@dataclass(slots=True)
class MicroBatch:
    """What one forward pass reads.

    Attributes:
        data: The batch as the data set and its collate made it, in host memory.
        samples: How many of its samples count; 0 for a stand-in that keeps the ranks in step.
        first: Of an evaluation, the place of its first sample in the set; the others follow it.
    """

    data: Any
    samples: int
    first: int = 0


class TrainLoader(DataLoader[Any]):
    """The training data, step after step, from any step on.

    Iterated over, it gives the batches of its sampler's steps: of the epoch that it is set to.

    Args:
        dataset: Map-style, or read whole batches at a time.
        sampler: Which samples this rank reads at which step.
        reading: How samples become batches.
        name: What to call the data set in messages.
    """

    dataset: Any
    sampler: StepSampler

    def __init__(self, dataset: Any, sampler: StepSampler, reading: Reading, name: str = "data.train"):
        super().__init__(dataset, batch_size=None, **_in_torch_s_words(reading))
        object.__setattr__(self, "dataset", dataset)  # torch wraps a data pipe
        self._read_by(sampler)
        self.reading = reading
        self.most_workers = 0  # to be chosen from by measuring; 0 where the number is settled
        self._news = ""
        self._reader = Reader(dataset, reading, name)

    def measure_workers(self, most: int) -> None:
        """Chooses in the first steps how many workers read, at most so many."""
        self.most_workers = most

    def news(self) -> str:
        """What was chosen since this was last asked."""
        news, self._news = self._news, ""
        return news

    def use_sampler(self, sampler: StepSampler) -> None:
        """Reads by another sampler from now on."""
        self._read_by(sampler)

    def _read_by(self, sampler: StepSampler) -> None:
        for name in ("sampler", "batch_sampler"):  # which torch lets nobody change: its iterators hold them
            object.__setattr__(self, name, sampler)

    def use_workers(self, workers: int) -> None:
        """Reads with so many processes from now on."""
        self.num_workers, self.reading = workers, replace(self.reading, workers=workers)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # a generator in place of torch's class
        """This rank's batches from the sampler's first step to its last, or to the end of that epoch."""
        start, stop, length = self.sampler.start_step, self.sampler.stop_step, self.sampler.steps_per_epoch
        for batches in self.steps(start, start - start % length + length if stop is None else stop):
            yield from (batch.data for batch in batches)

    @property
    def reads_whole_batches(self) -> bool:
        """Whether the data set gives a batch in one call."""
        return self._reader.reads_whole_batches

    @property
    def draws(self) -> bool:
        """Whether samples were found to be drawn at random, among those that were read in this process."""
        return self._reader.draws

    @property
    def keeps_draws(self) -> bool:
        """Whether samples keep what they drew when they were first read in this process."""
        return self._reader.keeps_draws

    @property
    def may_drop(self) -> bool:
        """Whether a batch may have fewer samples than were asked for."""
        return self._reader.may_drop

    def apart(self) -> TrainLoader:
        """One from which a few steps can be read without taking anything from training: samples have numbers."""
        return self

    def num_readable(self) -> int:
        """How many samples `batch_of` may be asked for."""
        return len(self.dataset)

    def column(self, key: int | str) -> torch.Tensor | None:
        """One part of all samples, where the data set is nothing but tensors, read as they are."""
        dataset = innermost(self.dataset)
        if not is_made_of_tensors(dataset) or self.reading.collate is not None or not isinstance(key, int):
            return None
        tensors: tuple[torch.Tensor, ...] = dataset.tensors
        return tensors[key] if -len(tensors) <= key < len(tensors) else None

    def batch_of(self, numbers: Sequence[int]) -> Any:
        """A batch of some samples, outside of any step and the same on every rank."""
        return self._reader.batch(0, np.asarray(numbers, dtype=np.int64))

    def steps(self, start: int, stop: int | None) -> Generator[list[MicroBatch], None, None]:
        """This rank's micro-batches of each optimizer step from `start` on."""
        step = start
        if self.most_workers:
            step = yield from self._measured_steps(start, stop)
        with self._reading_ahead(step, stop) if self.reading.workers else nullcontext() as ahead:
            while stop is None or step < stop:
                yield self._step(step, ahead)  # nothing is kept here: the next batch may take the memory of this one
                step += 1

    def _step(self, step: int, ahead: Iterator[Any] | None = None) -> list[MicroBatch]:
        """One of them, read here, or by whoever reads ahead."""
        shares = self.sampler.shares(step)
        batches = self._read(step, shares) if ahead is None else [next(ahead) for _ in shares]
        return [MicroBatch(data, share.samples) for data, share in zip(batches, shares, strict=True)]

    def _measured_steps(self, start: int, stop: int | None) -> Generator[list[MicroBatch], None, int]:
        """The first steps, read here, and which one comes next; then it is settled how many workers read."""
        measured, step = Measured(self.most_workers), start
        while not measured.is_enough:
            if step == stop:
                return step
            with measured:
                batches = self._step(step)
            yield batches
            del batches
            step += 1
        workers, self._news = measured.choice()
        self.most_workers = 0
        self.use_workers(workers)
        return step

    @contextmanager
    def _reading_ahead(self, start: int, stop: int | None) -> Iterator[Iterator[Any]]:
        workers = Workers(self._reader, self.reading.workers)
        try:
            yield workers.batches(self._requests(start, stop))
        finally:
            workers.close()

    def _requests(self, start: int, stop: int | None) -> Iterator[Request]:
        """What workers are asked for."""
        for step in itertools.count(start) if stop is None else range(start, stop):
            epoch = step // self.sampler.steps_per_epoch
            yield from ((epoch, share.indices) for share in self.sampler.shares(step))

    def _read(self, step: int, shares: Sequence[Share]) -> list[Any]:
        """The same, read here."""
        epoch = step // self.sampler.steps_per_epoch
        return [self._reader.batch(epoch, share.indices) for share in shares]


class EvaluationLoader(DataLoader[Any]):
    """An evaluation set in order, every sample once; its workers live on from one evaluation to the next.

    Args:
        dataset: Map-style, or read whole batches at a time.
        batch_size: Samples of one forward pass.
        reading: How samples become batches.
        limit: At most so many batches.
        name: What to call the data set in messages.
    """

    dataset: Any

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        reading: Reading,
        limit: int | None = None,
        name: str = "data.validation",
    ):
        super().__init__(dataset, batch_size=batch_size, **_in_torch_s_words(reading))
        object.__setattr__(self, "dataset", dataset)
        self.size = batch_size
        self.reading = reading
        self.limit = limit
        self.name = name
        self._reader = Reader(dataset, reading, name)
        count = min(reading.workers, self.num_batches())
        self._workers = Workers(self._reader, count) if count else None

    @property
    def reads_whole_batches(self) -> bool:
        """Whether a batch is read at once, and not sample by sample."""
        return self._reader.reads_whole_batches

    @property
    def may_drop(self) -> bool:
        """Whether a batch may have fewer samples than were asked for."""
        return self._reader.may_drop

    def num_readable(self) -> int:
        """How many samples `batch_of` may be asked for."""
        return self.num_samples()

    def batch_of(self, numbers: Sequence[int]) -> Any:
        """A batch of some samples, outside of any evaluation and the same on every rank."""
        return self._reader.batch(0, np.asarray(numbers, dtype=np.int64))

    def batches(self, rank: int = 0, world_size: int = 1) -> Iterator[MicroBatch]:
        """This rank's contiguous, unpadded shard; all of it with one rank."""
        return self._read(evaluation_shares(self.num_samples(), self.size, rank, world_size))

    def batches_in_rounds(self, rank: int, world_size: int) -> Iterator[MicroBatch]:
        """This rank's batches where the first of all ranks follow one another in the set, and so do their second."""
        return self._read(shares_in_rounds(self.num_samples(), self.size, rank, world_size))

    def _read(self, shares: Iterator[Indices]) -> Iterator[MicroBatch]:
        shares, asked = itertools.tee(shares)
        requests = ((0, indices) for indices in asked)
        workers = self._workers
        for data in itertools.starmap(self._reader.batch, requests) if workers is None else workers.batches(requests):
            indices = next(shares)
            yield MicroBatch(data, len(indices), int(indices[0]))
            del data  # before the next one is read

    def first_batch(self) -> MicroBatch:
        """The first of all, read here."""
        indices = next(evaluation_shares(self.num_samples(), self.size, 0, 1))
        return MicroBatch(self._reader.batch(0, indices), len(indices), int(indices[0]))

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # a generator in place of torch's class
        """All its batches."""
        return (batch.data for batch in self.batches())

    def __len__(self) -> int:
        """How many they are."""
        return self.num_batches()

    def num_samples(self) -> int:
        """Samples that an evaluation counts, over all ranks."""
        size = len(self.dataset)
        return size if self.limit is None else min(size, self.limit * self.size)

    def num_batches(self) -> int:
        """Batches of one pass on one rank."""
        return -(-self.num_samples() // self.size)

    def close(self) -> None:
        """Ends the workers; the next evaluation starts new ones."""
        if self._workers is not None:
            self._workers.close()


def _in_torch_s_words(reading: Reading) -> dict[str, Any]:
    """How samples become batches, as a DataLoader is told."""
    return {
        "num_workers": reading.workers,
        "collate_fn": reading.collate or default_collate,
        "pin_memory": reading.pin_memory,
        "timeout": reading.timeout_seconds,
        "persistent_workers": reading.workers > 0,
    }
