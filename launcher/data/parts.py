"""What a batch is made of: every tensor in it, in whatever it stands."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from typing import Any

import torch

from launcher.internals import quantized

_DEPTH = 8  # how far to look into what holds something


def is_tensor(part: Any) -> bool:
    """Whether this is a tensor."""
    return isinstance(part, torch.Tensor)


def changed(
    value: Any, change: Callable[[Any], Any], is_meant: Callable[[Any], bool] = is_tensor, depth: int = 0
) -> Any:
    """A batch with each part that is meant changed.

    Containers keep their class; of another object a copy is made, with its attributes changed. What holds nothing that
    changes stays the thing that it is.
    """
    if is_meant(value):
        return change(value)
    if depth == _DEPTH or value is None or isinstance(value, str | bytes | int | float | type):
        return value
    if isinstance(value, tuple | list):
        items = [changed(item, change, is_meant, depth + 1) for item in value]
        return value if _are_same(items, value) else _refilled(value, items)
    own: Mapping[Any, Any] = value if isinstance(value, Mapping) else getattr(value, "__dict__", {})
    held = {name: changed(item, change, is_meant, depth + 1) for name, item in own.items()}
    if _are_same(held.values(), own.values()):
        return value
    if isinstance(value, Mapping):
        return _replaced(value, held)
    other = copy.copy(value)
    other.__dict__.update(held)  # also of a frozen dataclass
    return other


def _are_same(some: Iterable[Any], others: Iterable[Any]) -> bool:
    return all(part is other for part, other in zip(some, others, strict=True))


def _refilled(value: Any, items: list[Any]) -> Any:
    """A list or tuple of the same class with other items."""
    if hasattr(value, "_fields"):
        return type(value)(*items)
    if isinstance(value, tuple):
        return type(value)(items)
    other = copy.copy(value)
    other[:] = items
    return other


def _replaced(value: Any, held: Mapping[Any, Any]) -> Any:
    """A mapping of the same class with other values."""
    if not isinstance(value, MutableMapping):
        return type(value)(held)
    other = copy.copy(value)
    other.update(held)
    return other


# ---------------------------------------------------------------------- from a worker to its trainer


class Packed:
    """A batch with tensors in it that torch cannot hand from one process to another: these as bytes of a file."""

    def __init__(self, batch: Any):
        self.batch = batch

    def unpacked(self) -> Any:
        """The batch as it was."""
        return changed(self.batch, lambda part: part.tensor, lambda part: isinstance(part, _Quantized))


class _Quantized:
    """A quantized tensor by its parts: torch sends the numbers and forgets the scales."""

    def __init__(self, tensor: torch.Tensor):
        self.numbers, self.dtype, self.axis = tensor.int_repr(), tensor.dtype, None
        if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
            self.scales: Any = tensor.q_scale()
            self.zeros: Any = tensor.q_zero_point()
        else:
            self.scales, self.zeros = tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points()
            self.axis = tensor.q_per_channel_axis()

    @property
    def tensor(self) -> torch.Tensor:
        """It again."""
        return quantized(self.numbers, self.scales, self.zeros, self.axis)


def sendable(batch: Any) -> Any:
    """A batch as a worker can send it.

    Torch's queue forgets quantizers and hangs over a tensor with a history of gradients; its thread that makes batches
    ready for a GPU knows dense tensors alone, and leaves what is packed as it is.
    """
    is_packed = False

    def sent(part: torch.Tensor) -> Any:
        nonlocal is_packed
        is_packed = is_packed or part.is_quantized or part.is_nested or part.layout is not torch.strided
        if part.is_quantized:
            return _Quantized(part)
        return part.detach() if part.requires_grad and not part.is_leaf else part

    ready = changed(batch, sent)
    return Packed(ready) if is_packed else ready
