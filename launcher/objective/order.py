"""The order of a loss's arguments: told from their names alone, before anything lands where it is not meant."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import nn


def order_fault(function: Any, outputs: Sequence[Any], targets: Sequence[Any]) -> str | None:
    """Why outputs and targets, one after the other, cannot be this loss's arguments in order, and what to write.

    Names alone tell: a target that would land on `var`, or an output on `target`, is refused, never trained on.

    Args:
        function: The loss.
        outputs: Which parts of the model's result it gets.
        targets: Which parts of a batch it gets after them.

    Returns:
        The words; None where they can.
    """
    if len(outputs) < 2 or not targets:
        return None
    called = type(function).forward if isinstance(function, nn.Module) else function
    try:
        parameters = list(inspect.signature(called).parameters.values())
    except (TypeError, ValueError):
        return None
    names = [
        parameter.name
        for parameter in parameters
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    names = names[1:] if isinstance(function, nn.Module) else names
    wrong = [name for name in names[:1] if name.lower() in _TARGETS - _ANY]
    wrong += [name for name in names[1 : len(outputs)] if name.lower() in _TARGETS]
    wrong += [name for name in names[len(outputs) : len(outputs) + len(targets)] if name.lower() in _OUTPUTS]
    if not wrong:
        return None
    remedy = _remedy(names, outputs, targets)
    return f"takes ({', '.join(names)}), and '{wrong[0]}' would not get what is meant; say which is which: {remedy}"


def _remedy(names: Sequence[str], outputs: Sequence[Any], targets: Sequence[Any]) -> str:
    """The likeliest reading of the names, to be written out and looked at."""
    for_targets = [name for name in names[1:] if name.lower() in _TARGETS][: len(targets)]
    for_outputs = [name for name in names if name not in for_targets]
    given, meant = (
        ", ".join(f"{name}: {part}" for name, part in zip(taken, parts, strict=False))
        for taken, parts in ((for_outputs, outputs), (for_targets, targets))
    )
    return f"_outputs_: {{{given}}}, _targets_: {{{meant}}}"


_TARGETS = {"target", "targets", "label", "labels", "y_true", "truth", "ground_truth", "gt", "tgt", "y", "x", "t"}
_ANY = {"x", "y", "t"}  # which an output is called as well, where it comes first
_OUTPUTS = {"var", "variance", "logvar", "log_var", "mu", "mean", "sigma", "std", "logits", "input", "pred", "output"}
