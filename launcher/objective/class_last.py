"""Cross entropy of outputs whose classes stand second, without torch's spatial kernels.

On a GPU those add up in any order: the loss that is printed differs from run to run, and deterministic algorithms have
none. Where putting the classes last costs no copy (a language model has only exchanged them), or where determinism was
asked for, each entry is a row of its own: the same numbers, but for rounding.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CrossEntropyLoss(nn.CrossEntropyLoss):
    """As torch's."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:  # torch's names
        """The loss of outputs of shape [N, classes, …]."""
        if isinstance(input, Tensor) and input.dim() > 2:
            input, target = _as_rows(input, target)
        return F.cross_entropy(  # as torch's own method calls it, without going through that
            input,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )


class NLLLoss(nn.NLLLoss):
    """As torch's."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of log-probabilities of shape [N, classes, …]."""
        return super().forward(*_as_rows(input, target))


def cross_entropy(input: Tensor, target: Tensor, *args: Any, **settings: Any) -> Tensor:
    """As `torch.nn.functional.cross_entropy`."""
    return F.cross_entropy(*_as_rows(input, target), *args, **settings)


def nll_loss(input: Tensor, target: Tensor, *args: Any, **settings: Any) -> Tensor:
    """As `torch.nn.functional.nll_loss`."""
    return F.nll_loss(*_as_rows(input, target), *args, **settings)


_OURS: dict[Any, Any] = {
    nn.CrossEntropyLoss: CrossEntropyLoss,
    nn.NLLLoss: NLLLoss,
    F.cross_entropy: cross_entropy,
    F.nll_loss: nll_loss,
}


def class_last(function: Any) -> Any:
    """The same loss, if it is torch's own of these two; any other as it is."""
    if isinstance(function, partial) and function.func in _OURS:
        return partial(_OURS[function.func], *function.args, **function.keywords)
    if type(function) in _OURS:
        ours = copy.copy(function)  # the one that was passed in stays torch's
        ours.__class__ = _OURS[type(function)]
        return ours
    return _OURS.get(function, function) if callable(function) and not isinstance(function, nn.Module) else function


def _as_rows(outputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs and targets with a row for each entry, where there are several of a sample and that is worth while."""
    if not isinstance(outputs, Tensor) or outputs.dim() < 3 or target.is_floating_point():
        return outputs, target
    last = outputs.movedim(1, -1)
    if last.shape[:-1] != target.shape:  # a mistake: torch says it in its own words
        return outputs, target
    if not (last.is_contiguous() or torch.are_deterministic_algorithms_enabled()):
        return outputs, target
    return last.reshape(-1, last.shape[-1]), target.reshape(-1)
