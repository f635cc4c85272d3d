"""Which samples each rank reads at each step: arithmetic over (seed, epoch, step, rank), whatever the world.

Global batch t of an epoch is positions [t * B, (t + 1) * B) of the epoch's order. What each rank reads of it, and
within a rank each micro-batch, is a contiguous piece, as `torch.tensor_split` makes them: the set of samples of a step
never depends on how many processes read it, or in how many pieces.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sized
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset, DistributedSampler

from launcher.data.permutation import (
    Indices,
    Order,
    Permutation,
    Sequential,
    ShardedPermutation,
    WeightedDraws,
    cumulative_weights,
)
from launcher.datasets.shards import Shards
from launcher.errors import Problem, RecipeError

READ_AHEAD = 16_384  # positions of this rank computed at once: half a millisecond, 128 KiB
BLOCKS_KEPT = 2  # one for the loop, one for loader workers that are ahead of it


class Share(NamedTuple):
    """What one rank reads for one micro-batch of one step.

    Attributes:
        indices: Data set indices, shape (n,) with n >= 1: a view of the sampler's cache, not to be written.
            Where this rank has no sample, the global batch's first one stands in, so that every rank has a
            forward and a backward to join the all-reduce with.
        samples: How many of them count; 0 for the stand-in.
    """

    indices: Indices
    samples: int


def piece(total: int, pieces: int, number: int) -> tuple[int, int]:
    """Start and stop of one of `pieces` contiguous pieces of `total`, as `torch.tensor_split` makes them."""
    size, remainder = divmod(total, pieces)
    start = number * size + min(number, remainder)
    return start, start + size + (number < remainder)


def evaluation_shares(size: int, batch_size: int, rank: int, world_size: int) -> Iterator[Indices]:
    """One rank's contiguous shard of [0, size) in batches, the last one short: every index once, no padding.

    Yields:
        Data set indices, shape (n,) with 1 <= n <= batch_size; nothing for a rank whose shard is empty.
    """
    start, stop = piece(size, world_size, rank)
    for first in range(start, stop, batch_size):
        yield np.arange(first, min(first + batch_size, stop), dtype=np.int64)


def shares_in_rounds(size: int, batch_size: int, rank: int, world_size: int) -> Iterator[Indices]:
    """One rank's part of [0, size), dealt out in rounds: what all ranks have in one follows what they had before.

    Yields:
        Data set indices, as `evaluation_shares`; ranks lack some in the last round at most.
    """
    for first in range(0, size, batch_size * world_size):
        start, stop = piece(min(batch_size * world_size, size - first), world_size, rank)
        if start < stop:
            yield np.arange(first + start, first + stop, dtype=np.int64)


class StepSampler(DistributedSampler[list[tuple[int, int]]]):
    """The training samples of every step of a run, for one rank.

    Steps count from 0 over the whole run; step s belongs to epoch `s // steps_per_epoch`. Nothing is drawn
    in advance, so that starting at any step costs the same, in time and memory, at any data set size.

    As a DataLoader's `batch_sampler` it yields micro-batches, one after another, of (epoch, index) pairs:
    what a sample's own seed is made of travels with its index. It goes from `start_step` to `stop_step`, or
    without end where that is None.

    Args:
        dataset: Asked for its length only.
        global_batch_size: Samples of one optimizer step over all ranks and micro-batches, at least
            `world_size` of them.
        rank: This process among `world_size`.
        world_size: Number of processes.
        micro_batch_size: The most samples in one forward pass of one rank; None for its whole part at once.
        seed: Any integer; with the epoch it fixes the order.
        shuffle: Whether an epoch is a permutation or the order of the data set. Draws by weight are always
            random.
        drop_last: Leave an epoch's last global batch out where it is short.
        weights: One number a sample, for draws with replacement in proportion to them.

    Attributes:
        dataset_size: Samples in an epoch.
        steps_per_epoch: Optimizer steps in an epoch; 0 where the data set is empty, or smaller than one
            global batch under `drop_last`. Nothing can be read then.
        start_step: The step that iteration begins with.
        stop_step: The step that iteration ends before, or None.
        cumulative: Shares of all weight up to each sample, None where nothing is drawn by weight.

    Raises:
        RecipeError: The weights are not one non-negative, finite number per sample.
    """

    label = "global batch"  # in front of its size, for the plan

    def __init__(
        self,
        dataset: Sized,
        *,
        global_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        micro_batch_size: int | None = None,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        weights: npt.ArrayLike | None = None,
    ):
        super().__init__(cast("Dataset[Any]", dataset), world_size, rank, shuffle, seed, drop_last)
        self.dataset_size = len(dataset)
        self._shards = dataset if isinstance(dataset, Shards) else None  # read a few of them at a time
        self.global_batch_size = global_batch_size
        self.micro_batch_size = micro_batch_size
        self._full_steps, self._last_batch_size = divmod(self.dataset_size, global_batch_size)
        self.steps_per_epoch = self._full_steps + (self._last_batch_size > 0 and not drop_last)
        self.start_step = 0
        self.stop_step: int | None = None
        self.cumulative = None if weights is None else self._cumulate(weights)
        self._largest = min(global_batch_size, self.dataset_size)  # of any batch, whatever the recipe asks for
        self._batch_sizes = (self._largest, self._last_batch_size)
        self._micro_batches = {size: self._divide(size) for size in self._batch_sizes}
        self._row_size = len(self._row_offsets(self._largest))
        self._steps_per_block = max(1, READ_AHEAD // self._row_size)
        self._blocks: dict[tuple[int, int], Indices] = {}

    def order(self, epoch: int) -> Order:
        """The order in which all ranks together read this epoch."""
        if self.cumulative is not None:
            return WeightedDraws(self.cumulative, self.seed, epoch)
        if not self.shuffle:
            return Sequential(self.dataset_size)
        if self._shards is not None:
            return ShardedPermutation(self._shards.shard_sizes, self._shards.mixed, self.seed, epoch)
        return Permutation(self.dataset_size, self.seed, epoch)

    def batch_size(self, step: int) -> int:
        """Samples in this step's global batch."""
        is_full = step % self.steps_per_epoch < self._full_steps
        return self.global_batch_size if is_full else self._last_batch_size

    def accumulation(self, step: int) -> int:
        """Micro-batches in this step: the same number on every rank."""
        return len(self._micro_batches[self.batch_size(step)])

    def samples_before(self, step: int) -> int:
        """Samples that all ranks together have read when `step` steps are completed."""
        epochs, rest = divmod(step, self.steps_per_epoch)
        whole = self.steps_per_epoch * self.global_batch_size if self.drop_last else self.dataset_size
        return epochs * whole + rest * self.global_batch_size

    def micro_batches_before(self, step: int) -> int:
        """Micro-batches that each rank has read when `step` steps are completed."""
        epochs, rest = divmod(step, self.steps_per_epoch)
        return epochs * len(self) + rest * len(self._micro_batches[self._largest])

    def samples_of(self, reader: int, readers: int, stop: int) -> int:
        """Samples of one of several readers in this rank's first `stop` micro-batches, which they take in turn.

        Arithmetic over the few micro-batches of a step, not a sum over the steps before.
        """
        epochs, rest = divmod(stop, len(self))
        around = readers // math.gcd(len(self), readers)  # so many epochs later the turns are the same again
        turns = [(reader - epoch * len(self)) % readers for epoch in range(around)]
        whole = sum(
            len(range(epoch, epochs, around)) * self._samples_in_turn(turns[epoch], readers, len(self))
            for epoch in range(min(around, epochs))
        )
        return whole + self._samples_in_turn(turns[epochs % around], readers, rest)

    def _samples_in_turn(self, turn: int, readers: int, stop: int) -> int:
        """Samples in those of an epoch's first `stop` micro-batches whose number is `turn` modulo `readers`."""
        full, last = ([samples for _, samples in self._micro_batches[size]] for size in self._batch_sizes)
        short = self._full_steps * len(full)  # the number of the short step's first micro-batch
        total = sum(samples for number, samples in enumerate(last, short) if number < stop and number % readers == turn)
        again = math.lcm(len(full), readers)
        for place, samples in enumerate(full):
            first = next((number for number in range(place, again, len(full)) if number % readers == turn), stop)
            total += samples * len(range(first, min(stop, short), again))
        return total

    def shares(self, step: int) -> list[Share]:
        """What this rank reads at this step, one share per micro-batch."""
        row = self._row(step)
        return [Share(row[part], samples) for part, samples in self._micro_batches[self.batch_size(step)]]

    def cut(self, micro_batch_size: int) -> None:
        """Lets a forward pass of a rank have so many samples at the most, from now on."""
        self.micro_batch_size = micro_batch_size
        self._micro_batches = {size: self._divide(size) for size in self._batch_sizes}

    def set_epoch(self, epoch: int) -> None:
        """Makes iteration cover this epoch alone, as a loop over `DistributedSampler` expects."""
        super().set_epoch(epoch)
        self.start_step = epoch * self.steps_per_epoch
        self.stop_step = self.start_step + self.steps_per_epoch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Micro-batches of (epoch, index) pairs from `start_step` on."""
        assert self.steps_per_epoch, "an epoch without steps cannot be iterated over"
        steps = itertools.count(self.start_step)
        for step in steps if self.stop_step is None else range(self.start_step, self.stop_step):
            epoch = step // self.steps_per_epoch
            for share in self.shares(step):
                yield [(epoch, index) for index in share.indices.tolist()]

    def __len__(self) -> int:
        """Micro-batches in an epoch."""
        return sum(
            num_steps * len(self._micro_batches[batch_size])
            for num_steps, batch_size in (
                (self._full_steps, self._largest),
                (self.steps_per_epoch - self._full_steps, self._last_batch_size),
            )
        )

    def _cumulate(self, weights: npt.ArrayLike) -> npt.NDArray[np.float64]:
        cumulative = cumulative_weights(weights)
        if len(cumulative) != self.dataset_size:
            message = f"{len(cumulative)} weights for {self.dataset_size} samples; give each sample one"
            raise RecipeError([Problem("", "data.weights", message)])
        return cumulative

    def _divide(self, batch_size: int) -> list[tuple[slice, int]]:
        """Where this rank's micro-batches of a global batch lie in its row, and how many samples count."""
        start, stop = piece(batch_size, self.num_replicas, self.rank)
        largest = -(-batch_size // self.num_replicas)
        num_pieces = -(-largest // self.micro_batch_size) if self.micro_batch_size else 1
        bounds = (piece(stop - start, num_pieces, number) for number in range(num_pieces))
        return [(slice(1 + i, 1 + j), j - i) if i < j else (slice(0, 1), 0) for i, j in bounds]

    def _row_offsets(self, batch_size: int) -> Indices:
        """What one step's row holds: the global batch's first sample, then this rank's part of it."""
        return np.append(0, np.arange(*piece(batch_size, self.num_replicas, self.rank), dtype=np.int64))

    def _row(self, step: int) -> Indices:
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        block, row = divmod(step_of_epoch, self._steps_per_block)
        key = (epoch, block)
        if key not in self._blocks:
            if len(self._blocks) == BLOCKS_KEPT:
                del self._blocks[next(iter(self._blocks))]
            self._blocks[key] = self._read_ahead(epoch, block * self._steps_per_block)
        return self._blocks[key][row * self._row_size : (row + 1) * self._row_size]

    def _read_ahead(self, epoch: int, first: int) -> Indices:
        """The rows of a block of an epoch's steps, one after another; a short step's row is the last."""
        stop = min(first + self._steps_per_block, self.steps_per_epoch)
        starts = np.arange(first, min(stop, self._full_steps), dtype=np.int64) * self._largest
        positions = (starts[:, None] + self._row_offsets(self._largest)).ravel()
        if stop > self._full_steps:
            short = self._full_steps * self._largest + self._row_offsets(self._last_batch_size)
            positions = np.append(positions, short)
        return self.order(epoch).at(positions)


def describe_shares(sampler: StepSampler, world_size: int) -> str:
    """`global batch 64 = 2 processes × 16 × 2 accumulated`; uneven shares are listed, and where a set has no more."""
    batch = min(sampler.global_batch_size, sampler.dataset_size)
    accumulated = sampler.accumulation(0)
    processes = f"{world_size} process{'es' * (world_size > 1)}"
    share, larger = divmod(batch, world_size)
    wanted = sampler.global_batch_size
    whole = f"; all samples that there are, where the recipe says {wanted}" if batch < wanted else ""
    if larger or share % accumulated:
        pieces = [share + (rank < larger) for rank in range(min(world_size, 8))]
        more = " + …" if world_size > 8 else ""
        parts = f", each in {accumulated} parts" if accumulated > 1 else ""
        return f"{sampler.label} {batch} = {' + '.join(map(str, pieces))}{more} on {processes}{parts}{whole}"
    return f"{sampler.label} {batch} = {processes} × {share // accumulated} × {accumulated} accumulated{whole}"
