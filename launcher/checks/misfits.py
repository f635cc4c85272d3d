"""Remedies for what a model and a loss say of batches that do not fit them."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from launcher.objective.reading import tensors_in

_OF_TYPES = re.compile(
    r"same dtype|target dtype|expected .*dtype|[Ff]ound dtype|expected scalar type|not implemented for '"
    r"|Input type .* and (weight|bias) type|result type .* can't be cast|Long or Byte"
)
_OF_BOUNDS = re.compile(r"Target (-?\d+) is out of bounds")


@contextmanager
def layers_left() -> Iterator[list[tuple[BaseException, nn.Module]]]:
    """While it holds, each error that leaves a module's call, with the module: the innermost first."""
    left: list[tuple[BaseException, nn.Module]] = []

    def note(module: nn.Module, args: Any, result: Any) -> None:
        if (error := sys.exc_info()[1]) is not None:
            left.append((error, module))

    hook = register_module_forward_hook(note, always_call=True)
    try:
        yield left
    finally:
        hook.remove()


def remedy_of_model(error: Exception, layer: nn.Module | None, model: nn.Module, batch: Any) -> str:
    """What to say behind an error of `forward`: its layer, and what to do about numbers of another type."""
    where = _place(layer, model)
    wanted = next((parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()), None)
    given = next((tensor.dtype for _, tensor in tensors_in(batch)), None)
    if wanted is None or given is None or given == wanted or not _OF_TYPES.search(str(error)):
        return where
    return f"{where}; the model computes in {_name(wanted)}: have the data set give that"


def remedy_of_loss(error: Exception, loss: str, outputs: Any, targets: Any) -> str:
    """What to do about an error of a loss that got these outputs and targets; empty where that is not known."""
    if not isinstance(outputs, torch.Tensor) or not isinstance(targets, torch.Tensor):
        return ""
    words = str(error)
    scores = outputs.shape[1] if outputs.dim() > 1 else 0
    if out := _OF_BOUNDS.search(words):
        return f"; the model gives {scores} scores, for classes 0 to {scores - 1}, and a target is {out[1]}"
    if _OF_TYPES.search(words):
        kind = "int64" if scores > 1 and "BCE" not in loss and targets.dim() < outputs.dim() else "float32"
        is_other = kind != _name(targets.dtype)
        return f"; {loss} wants targets of {kind} here: have the data set give that" if is_other else ""
    if scores > 1 and targets.dim() == outputs.dim() and targets.shape[1] == 1 and "CrossEntropy" in loss:
        return "; its targets have a dimension too many: have the data set give each sample's class as one number"
    if targets.is_floating_point() or targets.dim() >= outputs.dim():
        return ""
    if scores > 1 and "CrossEntropy" not in loss and "NLL" not in loss:
        return f"; for one of {scores} classes write loss: {{_target_: CrossEntropyLoss}}"
    return ""


def remedy_of_evaluation(error: Exception) -> str:
    """What to do about an error of an evaluation, whose samples may be of classes that two of training are not."""
    if out := _OF_BOUNDS.search(str(error)):
        return f"; a target is {out[1]}, and the model gives no score for it: it needs one for each class, from 0 on"
    return ""


def _place(layer: nn.Module | None, model: nn.Module) -> str:
    name = next((name for name, module in model.named_modules() if name and module is layer), None)
    if layer is None or name is None:
        return ""
    kind = type(layer).__name__ if any(True for _ in layer.children()) else str(layer)
    return f"; in {name}, {' '.join(kind.split())[:120]}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
