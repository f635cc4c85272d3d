"""Whether what was written gives what its model gives: tried on a real batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import nn

from launcher.data.parts import changed
from launcher.data.seeds import randomness_restored, seed_everything
from launcher.device.kind import in_use
from launcher.errors import LauncherError
from launcher.model.kinds import class_of
from launcher.model.own_gradients import OwnGradients
from launcher.text import shapes

_NEAR, _NEAR_IN_HALF = 1e-3, 2e-2  # of the largest output; bfloat16 has two digits


@dataclass(frozen=True)
class Batch:
    """What a model is called with.

    Attributes:
        args: By position.
        kwargs: By name.
        classes: The names of the training set's classes, in the order of their numbers.
        answers: Positions and names of what is known in training alone: labels, and what the loss gets too.
        parts: Where only parts of a model are ever called: their names, and what each is called with.
        others: The same of other numbers of samples, as far as they could be had.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    classes: Sequence[str] = ()
    answers: Sequence[int | str] = ()
    parts: Mapping[str, Batch] | None = None
    others: Sequence[Batch] = ()

    def without_answers(self) -> Batch:
        """The same for those who have none."""
        args = [value for place, value in enumerate(self.args) if place not in self.answers]
        kwargs = {name: value for name, value in self.kwargs.items() if name not in self.answers}
        others = [other.without_answers() for other in self.others]
        return replace(self, args=tuple(args), kwargs=kwargs, others=others)


def tensors(value: Any) -> list[torch.Tensor]:
    """All that a result holds, in order; caches of keys and values, which no one asked for, are left out."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Mapping):
        items = [inner for name, inner in value.items() if name != "past_key_values"]
    elif dataclasses.is_dataclass(value) or isinstance(value, SimpleNamespace):
        items = list(vars(value).values())
    else:
        items = list(value) if isinstance(value, list | tuple) else []
    return [tensor for item in items for tensor in tensors(item)]


def distance(model: Callable[..., Any], again: Callable[..., Any], batch: Batch) -> float:
    """How far the outputs of one are from those of the other.

    Raises:
        LauncherError: Too far, or there are others.
    """
    parameters = model.parameters() if isinstance(model, nn.Module) else ()
    is_half = any(parameter.dtype in (torch.bfloat16, torch.float16) for parameter in parameters)
    return apart(outputs(model, batch), outputs(again, batch), _NEAR_IN_HALF if is_half else _NEAR)


def outputs(model: Callable[..., Any], batch: Batch, seed: int = 0) -> list[torch.Tensor]:
    """What a model gives, which may draw: always the same then.

    Args:
        model: In eval mode.
        batch: Is not changed, whatever the model does with it.
        seed: Of what it draws.
    """
    if batch.parts is not None:
        module = cast(nn.Module, model)
        named = [(module.get_submodule(name), inner) for name, inner in batch.parts.items()]
        return [tensor for part, inner in named for tensor in outputs(part, inner, seed)]

    def call() -> list[torch.Tensor]:
        seed_everything(seed)
        args, kwargs = own_copy((batch.args, dict(batch.kwargs)))
        return tensors(model(*args, **kwargs))

    with randomness_restored(needed=True), in_use().generator_restored():
        return OwnGradients().call(model if isinstance(model, nn.Module) else None, call)


def own_copy(value: Any) -> Any:
    """What a model is called with, with tensors of its own."""
    return changed(value, lambda tensor: tensor.detach().clone())


def check_called(model: nn.Module, batch: Batch) -> None:
    """Refuses what a model cannot be called with, and a model of which there is nothing to compare.

    Raises:
        LauncherError: It is so.
    """
    remedy = "name in batch.inputs what its forward takes, of what a batch has"
    try:
        gave = outputs(model, batch)
    except Exception as error:  # of whatever kind: it comes from a user's forward
        words = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        given = shapes((*batch.args, *batch.kwargs.values()))
        raise LauncherError(f"{class_of(model).__name__} cannot be called with {given}: {words}; {remedy}") from error
    if not gave:
        raise LauncherError(f"{class_of(model).__name__} gives no tensor in eval mode: there is nothing to compare")


def draws(model: nn.Module, batch: Batch) -> bool:
    """Whether a model draws random numbers in eval mode too, on which its outputs depend."""
    pairs = zip(outputs(model, batch), outputs(model, batch, seed=1), strict=True)
    return not all(a.shape == b.shape and torch.equal(a, b) for a, b in pairs)


def apart(own: Sequence[torch.Tensor], other: Sequence[torch.Tensor], near: float = _NEAR) -> float:
    """How far outputs are from others, which may be a share of the largest.

    Raises:
        LauncherError: Too far, or there are others.
    """
    if len(own) != len(other) or any(a.shape != b.shape for a, b in zip(own, other, strict=True)):
        raise LauncherError("what was written gives outputs of another form; nothing was kept")
    far, largest = 0.0, 1.0
    for a, b in zip(map(_wide, own), map(_wide, other), strict=True):
        if a.numel():
            far = max(far, _apart(a, b))
            largest = max(largest, float(a[a.isfinite()].abs().max()) if a.isfinite().any() else 1.0)
    if not far < near * largest:
        raise LauncherError(f"what was written gives other outputs, by up to {far:.3g}; nothing was kept")
    return far


def agreed(found: float) -> str:
    """How two models agreed, in words."""
    return f"outputs on a real batch are {'bit-equal' if found == 0 else f'within {found:.1e}'}"


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    """In host memory and double precision; a complex number is two."""
    return (torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor).cpu().double()


def _apart(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference; what is infinite or no number in both is equal."""
    is_same = (a == b) | (a.isnan() & b.isnan())
    return float((a - b).abs().nan_to_num(torch.inf).masked_fill(is_same, 0.0).max())
