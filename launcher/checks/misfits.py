"""Remedies for what a model and a loss say of batches that do not fit them."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn

from launcher.objective.reading import tensors_in

_OF_TYPES = re.compile(
    r"same dtype|target dtype|expected .*dtype|[Ff]ound dtype|expected scalar type|not implemented for '"
    r"|Input type .* and (weight|bias) type|result type .* can't be cast|Long or Byte"
)
_OF_BOUNDS = re.compile(r"Target (-?\d+) is out of bounds")


def remedy_of_model(error: Exception, model: nn.Module, batch: Any) -> str:
    """What to say behind an error of `forward`: the layer, and what to do about numbers of another type."""
    layer = _layer_of(error, model)
    wanted = next((parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()), None)
    given = next((tensor.dtype for _, tensor in tensors_in(batch)), None)
    if wanted is None or given is None or given == wanted or not _OF_TYPES.search(str(error)):
        return layer
    return f"{layer}; the model computes in {_name(wanted)}: have the data set give that"


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


def _layer_of(error: Exception, model: nn.Module) -> str:
    """The innermost module of a model in which an error was raised."""
    names = {id(module): name for name, module in model.named_modules() if name}
    layer, traceback = "", error.__traceback__
    while traceback is not None:
        module = traceback.tb_frame.f_locals.get("self")
        if isinstance(module, nn.Module) and id(module) in names:
            kind = type(module).__name__ if any(True for _ in module.children()) else str(module)
            layer = f"; in {names[id(module)]}, {' '.join(kind.split())[:120]}"
        traceback = traceback.tb_next
    return layer


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
