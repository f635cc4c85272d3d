"""What a batch is made of: every tensor in it, in whatever it stands."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from typing import Any

import torch

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
        return refilled_mapping(value, held)
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


def refilled_mapping(value: Any, held: Mapping[Any, Any]) -> Any:
    """A mapping of the same class with other values."""
    if not isinstance(value, MutableMapping):
        return type(value)(held)
    other = copy.copy(value)
    for key, item in held.items():  # a ModelOutput has no update
        other[key] = item
    return other
