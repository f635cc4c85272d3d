"""The audit: whether a real batch still is put together from its halves as its loss was found to be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from launcher.data.parts import changed
from launcher.objective.calls import HOST, LARGE, Caller, in_host, undisturbed
from launcher.objective.drawn import HALVES, of_halves
from launcher.objective.pieces import NotJoinedError, Tree, cast, narrowed_parts
from launcher.objective.reading import TOLERANCE, Reading, tensors_in


def still_holds(
    function: Any, reading: Reading, outputs: Tree, targets: Tree, samples: int, counted: Any = None
) -> float | None:
    """Whether a real batch is put together from its halves by the reading; how far off it is where it is not.

    Args:
        function: The loss.
        reading: What it is taken for.
        outputs: The model's, for the batch.
        targets: The batch's.
        samples: How many there are.
        counted: What is counted, where that is not the targets.
    """
    tree = (outputs, targets) if counted is None else (outputs, targets, counted)
    rows = rows_of(tree, reading, samples)
    try:
        whole = _cut(tree, rows, 0, rows)
    except NotJoinedError:
        return None
    if rows < 2:
        return None
    numbers = sum(tensor.numel() for _, tensor in tensors_in(whole))
    is_large = numbers > LARGE
    kept = max(2, rows * LARGE // numbers) if is_large else rows
    with undisturbed():
        ends = ((0, kept), (0, kept // 2), (kept // 2, kept))
        parts = [_cut(changed(whole, torch.detach), rows, *limits) for limits in ends]
        parts = parts if is_large else [changed(part, in_host) for part in parts]
        caller = Caller(function, None if is_large else torch.float64, _device_in(parts[0]))
        values = _values(caller, parts, draws=reading.draws)
        counts = [
            reading.weight(reading.count(part[-1], stop - start)) if reading.is_mean else 1.0
            for part, (start, stop) in zip(parts, ends, strict=True)
        ]
        return off_by(values, counts, reading.is_mean, TOLERANCE[caller.dtype or torch.float32])


def _cut(sides: Sequence[Tree], samples: int, start: int, stop: int) -> tuple[Tree, ...]:
    """Some of the samples of outputs, of targets, and of what is counted."""
    return tuple(narrowed_parts(side, samples, start, stop) for side in sides)


def _values(caller: Caller, parts: Sequence[Tree], *, draws: bool) -> Sequence[float | None]:
    """The loss of a whole and of its halves, with what it draws held."""

    def value(union: int, seed: int = 0) -> float | None:
        outputs, targets = cast(parts[HALVES.index(union)][:2], caller.dtype)
        return caller.value(outputs, targets, seed)

    return of_halves(value) if draws else [value(union) for union in HALVES]


def rows_of(tree: Tree, reading: Reading, samples: int) -> int:
    """By what a batch is cut in two: its samples, or its rows where these are others, as of graphs."""
    tensors = [tensor for _, tensor in tensors_in(tree) if tensor.dim()]
    firsts = {tensor.shape[0] for tensor in tensors}
    is_of_rows = len(firsts) == 1 and not any(samples in tensor.shape[:2] for tensor in tensors)
    return firsts.pop() if is_of_rows and not reading.by_samples else samples


def _device_in(tree: Tree) -> torch.device:
    return next((tensor.device for _, tensor in tensors_in(tree)), HOST)


def off_by(values: Sequence[float | None], counts: Sequence[float], is_mean: bool, tolerance: float) -> float | None:
    """How far two halves are from their whole; None where that is rounding, or cannot be determined.

    Args:
        values: Of the whole and of its halves.
        counts: What each weighs.
        is_mean: Whether the halves are put together by their counts; else they are added.
        tolerance: Of the largest value; what is above 20 times that is not rounding.
    """
    numbers = [value for value in values if value is not None and math.isfinite(value)]
    if len(numbers) < len(counts) or not all(counts):
        return None
    whole, *halves = numbers
    if is_mean:
        together = sum(count * half for count, half in zip(counts[1:], halves, strict=True)) / counts[0]
    else:
        together = sum(halves)
    off = abs(whole - together) / (max(map(abs, numbers)) or 1.0)
    return off if off > 20 * tolerance else None
