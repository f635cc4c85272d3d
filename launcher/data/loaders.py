"""Batches for one rank, step after step: from this process, or from workers that read ahead."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import TensorDataset

from launcher.data.reading import Reader, Reading
from launcher.data.sampler import Share, StepSampler, evaluation_shares
from launcher.data.subsets import innermost
from launcher.data.workers import Key, Workers

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


class TrainLoader:
    """The training data, step after step, from any step on.

    Args:
        dataset: Map-style, or read whole batches at a time.
        sampler: Which samples this rank reads at which step.
        reading: How samples become batches.
        name: What to call the data set in messages.
    """

    def __init__(self, dataset: Any, sampler: StepSampler, reading: Reading, name: str = "data.train"):
        self.dataset = dataset
        self.sampler = sampler
        self.reading = reading
        self._reader = Reader(dataset, reading, name)

    @property
    def reads_whole_batches(self) -> bool:
        """Whether the data set gives a batch in one call."""
        return self._reader.reads_whole_batches

    def num_readable(self) -> int:
        """How many samples `batch_of` may be asked for."""
        return len(self.dataset)

    def column(self, key: int | str) -> torch.Tensor | None:
        """One part of all samples, where the data set is nothing but tensors, read as they are."""
        dataset = innermost(self.dataset)
        if type(dataset) is not TensorDataset or self.reading.collate is not None or not isinstance(key, int):
            return None
        tensors: tuple[torch.Tensor, ...] = dataset.tensors
        return tensors[key] if -len(tensors) <= key < len(tensors) else None

    def batch_of(self, numbers: Sequence[int]) -> Any:
        """A batch of some samples, outside of any step and the same on every rank."""
        return self._reader.batch(0, np.asarray(numbers, dtype=np.int64))

    def steps(self, start: int, stop: int | None) -> Generator[list[MicroBatch], None, None]:
        """This rank's micro-batches of each optimizer step from `start` on."""
        read = self._read
        with self._reading_ahead(start, stop) if self.reading.workers else nullcontext() as ahead:
            step = start
            while stop is None or step < stop:
                shares = self.sampler.shares(step)
                batches = read(step, shares) if ahead is None else [next(ahead) for _ in shares]
                yield [MicroBatch(data, share.samples) for data, share in zip(batches, shares, strict=True)]
                step += 1

    @contextmanager
    def _reading_ahead(self, start: int, stop: int | None) -> Iterator[Iterator[Any]]:
        workers = Workers(self._reader, self.reading.workers)
        try:
            yield workers.batches(self._keys(start, stop))
        finally:
            workers.close()

    def _keys(self, start: int, stop: int | None) -> Iterable[list[Key]]:
        """What workers are asked for."""
        self.sampler.start_step, self.sampler.stop_step = start, stop
        return self.sampler

    def _read(self, step: int, shares: Sequence[Share]) -> list[Any]:
        """The same, read here."""
        epoch = step // self.sampler.steps_per_epoch
        return [self._reader.batch(epoch, share.indices) for share in shares]


class EvaluationLoader:
    """An evaluation set in order, every sample once; its workers live on from one evaluation to the next.

    Args:
        dataset: Map-style, or read whole batches at a time.
        batch_size: Samples of one forward pass.
        reading: How samples become batches.
        limit: At most so many batches.
        name: What to call the data set in messages.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        reading: Reading,
        limit: int | None = None,
        name: str = "data.validation",
    ):
        self.dataset = dataset
        self.batch_size = batch_size
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

    def batches(self, rank: int = 0, world_size: int = 1) -> Iterator[MicroBatch]:
        """This rank's contiguous, unpadded shard; all of it with one rank."""
        shares = self._shares(rank, world_size)
        if self._workers is None:
            for indices in shares:
                yield MicroBatch(self._reader.batch(0, indices), len(indices), int(indices[0]))
            return
        keys = ([(0, index) for index in indices.tolist()] for indices in self._shares(rank, world_size))
        for data, indices in zip(self._workers.batches(keys), shares, strict=True):
            yield MicroBatch(data, len(indices), int(indices[0]))

    def _shares(self, rank: int, world_size: int) -> Iterator[Any]:
        return evaluation_shares(self.num_samples(), self.batch_size, rank, world_size)

    def num_samples(self) -> int:
        """Samples that an evaluation counts, over all ranks."""
        size = len(self.dataset)
        return size if self.limit is None else min(size, self.limit * self.batch_size)

    def num_batches(self) -> int:
        """Batches of one pass on one rank."""
        return -(-self.num_samples() // self.batch_size)

    def close(self) -> None:
        """Ends the workers; the next evaluation starts new ones."""
        if self._workers is not None:
            self._workers.close()
