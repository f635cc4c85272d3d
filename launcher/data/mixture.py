"""Several data sets in proportions that may change with the step, each read as a stream of its own.

How many samples of each a few steps have is rounded at random, without bias, so that a rare one is drawn as often as
its share says, and never twice before all of it was drawn once. All of it is a function of (seed, step).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import ConcatDataset

from launcher.data.batch_samplers import ArithmeticBatches
from launcher.data.permutation import Indices, Permutation, keyed_uniform

BLOCK = 64  # steps whose samples are shared out together
_OFFSETS, _PLACES, _STREAMS = range(111, 114)  # whose numbers must not be one another's

Shares = Sequence[float] | Mapping[int, Sequence[float]]


class Mixture(ArithmeticBatches):
    """Batches of the parts of a `ConcatDataset`, in proportions.

    Args:
        data_source: The training set, passed in by the run: a `torch.utils.data.ConcatDataset`.
        batch_size: Samples of a batch over all processes.
        shares: A number for each part, in any unit; or by step, as in `{0: [9, 1], 20000: [1, 1]}`: linear in between.
        steps: Batches of an epoch; None is as many as the parts have samples for.
        seed: None is the run's.

    Raises:
        ValueError: There are other parts than shares, a share is negative, or all of them are 0.
    """

    def __init__(
        self, data_source: Any, batch_size: int, shares: Shares, steps: int | None = None, seed: int | None = None
    ):
        super().__init__(seed)
        if not isinstance(data_source, ConcatDataset):
            raise ValueError(f"data.train is a {type(data_source).__name__}; give a torch.utils.data.ConcatDataset")
        if batch_size < 1:
            raise ValueError("batch_size is at least 1")
        self.batch_size = batch_size
        self._ends = np.asarray(data_source.cumulative_sizes, dtype=np.int64)
        self._sizes = np.diff(self._ends, prepend=0)
        self._steps, self._shares = _checked(shares, self._sizes)
        self.steps_per_epoch = steps or max(1, int(self._ends[-1]) // batch_size)
        self._kept: tuple[int, Indices] | None = None  # a block's samples
        self._counts = np.zeros((1, len(self._sizes)), dtype=np.int64)  # before each block, of each part

    def batch(self, epoch: int, number: int) -> Indices:
        """Samples of all parts, mixed."""
        block, place = divmod(epoch * self.steps_per_epoch + number, BLOCK)
        if self._kept is None or self._kept[0] != block:
            self._kept = block, self._drawn(block)
        return self._kept[1][place * self.batch_size : (place + 1) * self.batch_size]

    def samples_in(self, epoch: int, number: int) -> int:
        """All batches are of one size."""
        return number * self.batch_size

    def _drawn(self, block: int) -> Indices:
        """The samples of all steps of a block."""
        before, counts = self._counted(block)
        draws = BLOCK * self.batch_size
        slots = Permutation(draws, self._mix(_PLACES), block).slice(0, draws)
        ends = np.cumsum(counts)
        parts = np.searchsorted(ends, slots, side="right")
        numbers = before[parts] + slots - (ends - counts)[parts]
        indices = np.empty_like(slots)
        for part in np.unique(parts).tolist():
            own = np.flatnonzero(parts == part)
            indices[own] = self._stream(part, numbers[own])
        return indices

    def _counted(self, block: int) -> tuple[Indices, Indices]:
        """How many samples of each part come before a block, and in it."""
        known = len(self._counts) - 1
        if block >= known:
            more = max(block + 1, 2 * known)
            bounds = np.arange(known, more + 1) * BLOCK
            expected = np.diff(self._integrals(bounds), axis=0) * self.batch_size
            offsets = keyed_uniform(self._mix(_OFFSETS), np.arange(known, more))[:, None]
            cumulated = np.cumsum(expected, axis=1)
            cumulated[:, -1] = BLOCK * self.batch_size
            rounded = np.floor(cumulated + offsets).astype(np.int64)
            rounded[:, -1] = BLOCK * self.batch_size  # which an offset does not change
            counts = np.diff(rounded, axis=1, prepend=0)
            self._counts = np.concatenate([self._counts, self._counts[-1] + np.cumsum(counts, axis=0)])
        return self._counts[block], self._counts[block + 1] - self._counts[block]

    def _integrals(self, steps: Indices) -> npt.NDArray[np.float64]:
        """The sum of each part's shares up to some steps."""
        points = np.union1d(self._steps, np.append(steps, 0)).astype(np.float64)
        heights = np.stack([np.interp(points, self._steps, column) for column in self._shares.T], axis=1)
        areas = (heights[1:] + heights[:-1]) / 2 * np.diff(points)[:, None]
        sums = np.concatenate([np.zeros((1, len(self._sizes))), np.cumsum(areas, axis=0)])
        return sums[np.searchsorted(points, steps)]

    def _stream(self, part: int, numbers: Indices) -> Indices:
        """The samples at these places of a part's endless order."""
        size = int(self._sizes[part])
        turns, places = np.divmod(numbers, size)
        indices = np.empty_like(places)
        for turn in np.unique(turns).tolist():
            own = np.flatnonzero(turns == turn)
            indices[own] = Permutation(size, self._mix(_STREAMS, part), turn).at(places[own])
        indices += self._ends[part] - size
        return indices


def _checked(shares: Shares, sizes: Indices) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The steps at which shares are set, and the shares at each, with sum 1."""
    stated = dict(shares) if isinstance(shares, Mapping) else {0: shares}
    steps = sorted(stated, key=float)
    values = [np.asarray(stated[step], dtype=np.float64) for step in steps]
    for step, row in zip(steps, values, strict=True):
        if row.shape != sizes.shape:
            raise ValueError(f"shares at step {step}: {row.size} for {len(sizes)} parts; give each part one")
        if not np.isfinite(row).all() or (row < 0).any() or not row.any():
            raise ValueError(
                f"shares at step {step}: {row.tolist()}; allowed are finite numbers, none below 0, not all 0"
            )
        if (row[sizes == 0] > 0).any():
            raise ValueError(f"shares at step {step}: a part without samples has a share; remove it")
    if not steps:
        raise ValueError("shares: there are none; give each part one, as in [3, 1]")
    table = np.stack(values)
    return np.array(steps, dtype=np.float64), table / table.sum(axis=1, keepdims=True)
