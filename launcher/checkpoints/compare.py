"""Whether what was written gives what its model gives: tried on a real batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from launcher.errors import LauncherError
from launcher.model.own_gradients import OwnGradients

_NEAR = 1e-3  # of the largest output


@dataclass(frozen=True)
class Batch:
    """What a model is called with.

    Attributes:
        args: By position.
        kwargs: By name.
        classes: The names of the training set's classes, in the order of their numbers.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    classes: Sequence[str] = ()

    def without(self, *names: str) -> Batch:
        """The same but for some that are given by name."""
        return replace(self, kwargs={name: value for name, value in self.kwargs.items() if name not in names})


def tensors(value: Any) -> list[torch.Tensor]:
    """All that a result holds, in order; caches of keys and values, which no one asked for, are left out."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Mapping):
        items = [inner for name, inner in value.items() if name != "past_key_values"]
    else:
        items = list(value) if isinstance(value, list | tuple) else []
    return [tensor for item in items for tensor in tensors(item)]


def distance(model: Callable[..., Any], again: Callable[..., Any], batch: Batch) -> float:
    """How far the outputs of one are from those of the other.

    Raises:
        LauncherError: Too far, or there are others.
    """
    return apart(outputs(model, batch), outputs(again, batch))


def outputs(model: Callable[..., Any], batch: Batch) -> list[torch.Tensor]:
    """What a model gives."""
    module = model if isinstance(model, nn.Module) else None
    return OwnGradients().call(module, lambda: tensors(model(*batch.args, **batch.kwargs)))


def apart(own: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> float:
    """How far outputs are from others.

    Raises:
        LauncherError: Too far, or there are others.
    """
    if len(own) != len(other) or any(a.shape != b.shape for a, b in zip(own, other, strict=True)):
        raise LauncherError("what was written gives outputs of another form; nothing was kept")
    far, largest = 0.0, 1.0
    for a, b in zip(own, other, strict=True):
        if a.numel():
            far = max(far, _apart(a.double().cpu(), b.double().cpu()))
            largest = max(largest, float(a[a.isfinite()].double().abs().max()) if a.isfinite().any() else 1.0)
    if not far < _NEAR * largest:
        raise LauncherError(f"what was written gives other outputs, by up to {far:.3g}; nothing was kept")
    return far


def agreed(found: float) -> str:
    """How two models agreed, in words."""
    return f"outputs on a real batch are {'bit-equal' if found == 0 else f'within {found:.1e}'}"


def _apart(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference; what is infinite or no number in both is equal."""
    is_same = (a == b) | (a.isnan() & b.isnan())
    return float((a - b).abs().nan_to_num(torch.inf).masked_fill(is_same, 0.0).max())
