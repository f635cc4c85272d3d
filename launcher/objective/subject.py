"""What is measured, and the samples that it is measured on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from launcher.objective.reading import Hints, Where, candidates
from launcher.objective.verdict import Trial

LOOKED_AT = 64  # samples that those of a measurement are chosen from
_SIZES = ((9, (2, 3, 4)), (6, (1, 2, 3)), (3, (1, 1, 1)))  # of the pieces, by how many samples there are


@dataclass(frozen=True)
class Samples:
    """Where pieces come from.

    Attributes:
        number: How many samples there are.
        batch: The batch of some of them, by their numbers, collated by itself.
        collates: Whether a collate of the user's own makes it, which may pad.
        may_drop: Whether a batch may have fewer samples than were asked for.
    """

    number: int
    batch: Callable[[Sequence[int]], Any]
    collates: bool = False
    may_drop: bool = False

    def groups(self, parts: Callable[[Any], Any], hints: Hints) -> list[list[list[int]]]:
        """Two disjoint groups of three pieces, of samples whose counts differ; fewer where there are few samples.

        Args:
            parts: What is counted in a batch.
            hints: Of the loss.
        """
        sizes = next((sizes for least, sizes in _SIZES if self.number >= least), None)
        if sizes is None:
            return []
        order = self._by_counts(parts, hints)
        wanted = sum(sizes)
        if len(order) < 2 * wanted:
            return [_cut(_spread(order, wanted), sizes)]
        return [_cut(_spread(order[first::2], wanted), sizes) for first in (0, 1)]

    def _by_counts(self, parts: Callable[[Any], Any], hints: Hints) -> list[int]:
        """The first samples, those of small counts first."""
        numbers = list(range(min(self.number, LOOKED_AT)))
        try:
            counts = [candidates(parts(self.batch([number])), 1, hints) for number in numbers]
        except Exception:  # a collate that cannot make a batch of one: as they come, then
            return numbers
        common = sorted(set.intersection(*(set(sample_counts) for sample_counts in counts)), key=repr)
        weights = np.random.default_rng(0).uniform(0.5, 1.5, len(common))
        table = np.array([[sample_counts[reading] for reading in common] for sample_counts in counts])
        table = (table - table.mean(0)) / (np.abs(table).max(0) + 1e-12)
        return [numbers[place] for place in np.argsort(table @ weights, kind="stable")]


def _spread(order: Sequence[int], wanted: int) -> list[int]:
    """So many of them, from the least to the most."""
    return [order[round(place)] for place in np.linspace(0, len(order) - 1, wanted)]


def _cut(numbers: Sequence[int], sizes: Sequence[int]) -> list[list[int]]:
    """Pieces of so many, each with one of the largest counts: a piece in which nothing counts has no mean."""
    rest, largest = numbers[: -len(sizes)], numbers[-len(sizes) :]
    ends = list(itertools.accumulate(size - 1 for size in sizes))
    return [[first, *rest[end - size + 1 : end]] for first, end, size in zip(largest, ends, sizes, strict=True)]


@dataclass(frozen=True)
class Subject:
    """A loss, as the run will call it.

    Attributes:
        parts: What may be counted in a batch: the targets, or the batch itself.
        outputs: The outputs for a batch, where the loss is a function of outputs and targets.
        function: That function, called with them by position or, where they are mappings, by name.
        value: Else the loss of a batch, with the model that it is given.
        targets: What the function gets of a batch, where that is not what may be counted.
    """

    parts: Callable[[Any], Any]
    outputs: Callable[[nn.Module, Any], Any] | None = None
    function: Any = None
    value: Callable[[nn.Module, Any], Any] | None = None
    targets: Callable[[Any], Any] | None = None


@dataclass
class Found:
    """Trials so far, how exact they are, and the tensors into which class numbers that do not count were put.

    Those are None where a whole batch is counted and nothing could be put into it. Besides, whether the loss draws.
    """

    trials: list[Trial]
    injected: list[Trial]
    tolerance: float
    tried: frozenset[Where] | None = frozenset()
    draws: bool = False
