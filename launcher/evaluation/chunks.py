"""Batches for a metric, some thousands of rows at a time: an update of torchmetrics costs more than a small model.

Only for classes whose figures are provably the same: they add up whole numbers of rows, or keep the rows themselves,
and look at each row alone. Where they look at a batch as a whole, to take it for logits unless all of it lies between 0
and 1, only batches that do are put together: a sigmoid's last bit depends on how many numbers are computed at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torchmetrics
import torchmetrics.classification

ROWS = 4096
_NUMBERS = 1 << 22  # of a chunk: with outputs as large as pictures a batch is a chunk

_COUNTS = ("Accuracy", "F1Score", "FBetaScore", "HammingDistance", "Precision", "Recall", "Specificity", "StatScores")
_TABLES = ("CohenKappa", "ConfusionMatrix", "JaccardIndex", "MatthewsCorrCoef", "ExactMatch")
_CURVES = ("AUROC", "AveragePrecision", "PrecisionRecallCurve", "ROC")
_KINDS = ("Binary", "Multiclass", "Multilabel")
EXACT = frozenset(
    getattr(torchmetrics.classification, kind + name)
    for name in (*_COUNTS, *_TABLES, *_CURVES)
    for kind in _KINDS
    if hasattr(torchmetrics.classification, kind + name)
)

_OF_LIKELIEST = frozenset(kind for kind in EXACT if kind.__name__.startswith("Multiclass")) - frozenset(
    getattr(torchmetrics.classification, f"Multiclass{name}") for name in _CURVES
)


def is_exact(metric: Any) -> bool:
    """Whether chunks give a metric the figures that batches do."""
    if type(metric) is torchmetrics.MetricCollection:
        return all(map(is_exact, metric.values()))
    return type(metric) in EXACT and getattr(metric, "multidim_average", "global") == "global"


def takes_any_numbers(metric: Any) -> bool:
    """Whether a metric asks for the likeliest class alone, of logits and of probabilities."""
    if type(metric) is torchmetrics.MetricCollection:
        return all(map(takes_any_numbers, metric.values()))
    return type(metric) in _OF_LIKELIEST


class Chunk:
    """The batches that a metric has not been told yet.

    Args:
        takes_any_numbers: Whether outputs need not lie between 0 and 1 to be put together.
    """

    def __init__(self, takes_any_numbers: bool = False) -> None:
        self._takes_any_numbers = takes_any_numbers
        self._parts: list[list[torch.Tensor]] = []
        self._form: Any = None
        self._rows = self._numbers = 0

    def add(self, parts: Sequence[Any]) -> Iterator[list[torch.Tensor]]:
        """Takes a batch in; gives what is to be told now, before it or with it."""
        form = _form(parts, self._takes_any_numbers)
        if form != self._form or form is None:
            yield from self.rest()
        if form is None:
            yield list(parts)
            return
        self._form = form
        self._parts.append([part.clone() for part in parts])  # a compiled model writes its next result where this is
        self._rows += len(parts[0])
        self._numbers += sum(part.numel() for part in parts)
        if self._rows >= ROWS or self._numbers >= _NUMBERS:
            yield from self.rest()

    def rest(self) -> Iterator[list[torch.Tensor]]:
        """What is left, if anything is."""
        parts = self._parts
        self.forget()
        if parts:
            yield [torch.cat(column) for column in zip(*parts, strict=True)] if len(parts) > 1 else parts[0]

    def forget(self) -> None:
        """Nothing is left."""
        self._parts, self._form, self._rows, self._numbers = [], None, 0, 0


def _form(parts: Sequence[Any], takes_any_numbers: bool) -> Any:
    """What batches that are put together have in common; None for one that stands alone."""
    tensors = [part for part in parts if isinstance(part, torch.Tensor)]
    if len(tensors) != len(parts) or not tensors or any(tensor.ndim == 0 for tensor in tensors):
        return None
    if len({len(tensor) for tensor in tensors}) != 1 or not len(tensors[0]):
        return None
    if not takes_any_numbers and not all(map(_is_probability, tensors)):
        return None
    return [(tensor.dtype, tensor.shape[1:], tensor.device) for tensor in tensors]


def _is_probability(tensor: torch.Tensor) -> bool:
    if not tensor.is_floating_point():
        return True
    low, high = torch.aminmax(tensor)
    return bool(low >= 0) and bool(high <= 1)
