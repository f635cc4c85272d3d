"""Means over elements that a collate may pad: what is padded counts, so that all pieces of a step must be as wide.

Where the first samples are padded, the measurement tells it. These are of one length, and later ones may not be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from launcher.errors import LauncherError
from launcher.objective.loss import Objective, Term
from launcher.objective.reading import at


class Padding:
    """Compares how wide the rows of a step's pieces are: a loop by hand pads all of them alike.

    Args:
        objective: Of which the means over elements are looked at.
        draws: Whether batches are drawn at random, as one that chooses a size for each: a loop has others anyway.
    """

    def __init__(self, objective: Objective, draws: Callable[[], bool]):
        self._layout, self._draws = objective.layout, draws
        self._terms = [(number, term) for number, term in enumerate(objective.terms) if _counts_elements(term)]

    def __bool__(self) -> bool:
        return bool(self._terms)

    def rows(self, batch: Any, samples: int) -> list[float]:
        """How many rows each of these means is over in a piece."""
        return [_rows_of(term, term.counted_of(self._layout, batch)) if samples else 0.0 for _, term in self._terms]

    def check(self, pieces: Sequence[tuple[Sequence[float], Sequence[float]]], total: Sequence[float]) -> None:
        """Compares the pieces of this process with the whole step.

        Args:
            pieces: The counts of each, and its rows.
            total: Those of the step, over all ranks: its counts, and its rows behind them.

        Raises:
            LauncherError: Some are wider than others.
        """
        for place, (number, term) in enumerate(() if self._draws() else self._terms):
            rows = total[len(total) - len(self._terms) + place]
            for counts, own in pieces:
                if own[place] and counts[number] * rows != total[number] * own[place]:
                    here, there = counts[number] / own[place], total[number] / rows
                    raise LauncherError(
                        f"{term.key}: is a mean over elements, and a collate has padded rows to {here:g} of them here, "
                        f"to {there:.4g} on average in this step: what is padded counts, and other pieces would give "
                        "other numbers; leave it out by a mask or labels of -100, say _per_: batch, or use one process "
                        "and no data.micro_batch_size"
                    )


def _counts_elements(term: Term) -> bool:
    reading = term.reading
    return reading is not None and reading.kind == "elements" and reading.each is None


def _rows_of(term: Term, parts: Any) -> float:
    assert term.reading is not None
    tensor: Any = at(parts, term.reading.where)
    return float(len(tensor)) if isinstance(tensor, torch.Tensor) and tensor.dim() else 1.0
