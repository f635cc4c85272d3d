"""Training sets that each process has its own part of: read as they are split, never split once more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from launcher.data.permutation import Indices, Order, Permutation, Sequential, WeightedDraws
from launcher.data.sampler import BLOCKS_KEPT, READ_AHEAD, Share, StepSampler, piece


class OwnPartSampler(StepSampler):
    """The steps of a run whose ranks each have a data set of their own.

    Of a step's global batch each rank reads its piece, as ever, but from its own part in its own order. An epoch is
    over when every rank has read all of its part: a rank that is through earlier has nothing to do in the last steps.

    Args:
        sizes: Samples of each rank's part; they decide together how many steps there are.
        settings: As for `StepSampler`.

    Attributes:
        sizes: The same.
    """

    def __init__(self, sizes: Sequence[int], **settings: Any):
        self.sizes = list(sizes)
        self._settings = settings
        super().__init__(range(self.sizes[settings["rank"]]), **settings)
        world, batch = self.num_replicas, self.global_batch_size
        self._pieces = [stop - start for start, stop in (piece(batch, world, rank) for rank in range(world))]
        self._parts = -(-max(self._pieces) // self.micro_batch_size) if self.micro_batch_size else 1
        self.dataset_size = sum(self.sizes)
        parts = [(size, max(1, own)) for size, own in zip(sizes, self._pieces, strict=True)]
        full, all_ = min(size // own for size, own in parts), max(-(-size // own) for size, own in parts)
        self.steps_per_epoch = full if self.drop_last else all_

    def for_sizes(self, sizes: Sequence[int]) -> OwnPartSampler:
        """The same once it is known how large the others' parts are."""
        return OwnPartSampler(sizes, **self._settings)

    def cut(self, micro_batch_size: int) -> None:
        """Lets a forward pass of a rank have so many samples at the most, from now on."""
        self._settings["micro_batch_size"] = micro_batch_size
        super().cut(micro_batch_size)
        self._parts = -(-max(self._pieces) // micro_batch_size)

    @property
    def own_size(self) -> int:
        """Samples of this rank's part."""
        return self.sizes[self.rank]

    def order(self, epoch: int) -> Order:
        """The order in which this rank reads its part."""
        if self.cumulative is not None:
            return WeightedDraws(self.cumulative, self.seed, epoch)
        return Permutation(self.own_size, self.seed, epoch) if self.shuffle else Sequential(self.own_size)

    def batch_size(self, step: int) -> int:
        """Samples in this step, over all ranks."""
        bounds = (self._bounds(rank, step) for rank in range(self.num_replicas))
        return sum(stop - start for start, stop in bounds)

    def _bounds(self, rank: int, step: int) -> tuple[int, int]:
        """Which positions of its part a rank reads at this step."""
        first = step % self.steps_per_epoch * self._pieces[rank]
        return min(first, self.sizes[rank]), min(first + self._pieces[rank], self.sizes[rank])

    def accumulation(self, step: int) -> int:
        """Micro-batches in each step: the same number on every rank."""
        return self._parts

    def samples_before(self, step: int) -> int:
        """Samples that all ranks together have read when `step` steps are completed."""
        epochs, rest = divmod(step, self.steps_per_epoch)
        read = [
            epochs * min(self.steps_per_epoch * own, size) + min(rest * own, size)
            for size, own in zip(self.sizes, self._pieces, strict=True)
        ]
        return sum(read)

    def micro_batches_before(self, step: int) -> int:
        """Micro-batches that each rank has read when `step` steps are completed."""
        return step * self._parts

    def samples_of(self, reader: int, readers: int, stop: int) -> int:
        """Samples of one of several readers in this rank's first `stop` micro-batches; gone through once a start."""
        numbers = np.arange(reader, stop, readers)
        steps, places = numbers // self._parts % self.steps_per_epoch, numbers % self._parts
        own = self._pieces[self.rank]
        counts = np.clip(self.own_size - steps * own, 0, own)
        return int((counts // self._parts + (places < counts % self._parts)).sum())

    def shares(self, step: int) -> list[Share]:
        """What this rank reads at this step, one share per micro-batch; a first sample stands in where it has none."""
        start, stop = self._bounds(self.rank, step)
        epoch = step // self.steps_per_epoch
        indices = self._indices(epoch, start, stop)
        pieces = (indices[slice(*piece(stop - start, self._parts, number))] for number in range(self._parts))
        return [Share(own, len(own)) if len(own) else Share(self._indices(epoch, 0, 1), 0) for own in pieces]

    def _indices(self, epoch: int, start: int, stop: int) -> Indices:
        """What this rank reads at these positions of its part, of one step."""
        length = max(1, READ_AHEAD // self._pieces[self.rank]) * self._pieces[self.rank]
        first = start // length * length
        if (epoch, first) not in self._blocks:
            if len(self._blocks) == BLOCKS_KEPT:
                del self._blocks[next(iter(self._blocks))]
            last = min(first + length, self.own_size)
            self._blocks[epoch, first] = self.order(epoch).slice(min(first, last), last)
        return self._blocks[epoch, first][start - first : stop - first]

    def __len__(self) -> int:
        """Micro-batches in an epoch."""
        return self.steps_per_epoch * self._parts
