"""The order of a loss's arguments: told from their names alone, before anything lands where it is not meant."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn


def order_fault(function: Any, outputs: int, targets: int) -> str | None:
    """Why outputs and targets, one after the other, cannot be this loss's arguments in order; None where they can.

    Names alone tell: a target that would land on `var`, or an output on `target`, is refused, never trained on.

    Args:
        function: The loss.
        outputs: How many outputs it gets.
        targets: How many targets it gets after them.
    """
    if outputs < 2 or not targets:
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
    wrong += [name for name in names[1:outputs] if name.lower() in _TARGETS]
    wrong += [name for name in names[outputs : outputs + targets] if name.lower() in _OUTPUTS]
    if not wrong:
        return None
    return f"takes ({', '.join(names)}), and '{wrong[0]}' would not get what is meant"


_TARGETS = {"target", "targets", "label", "labels", "y_true", "truth", "ground_truth", "gt", "tgt", "y", "x", "t"}
_ANY = {"x", "y", "t"}  # which an output is called as well, where it comes first
_OUTPUTS = {"var", "variance", "logvar", "log_var", "mu", "mean", "sigma", "std", "logits", "input", "pred", "output"}
