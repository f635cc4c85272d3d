"""Whether two states are the same, and where they are not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def same(one: Any, other: Any) -> bool:
    """Whether two states are equal to the bit, tensors and containers alike."""
    return difference(one, other) is None


def difference(one: Any, other: Any, place: str = "") -> str | None:
    """Where two states differ first, and how, in words; None where they are equal to the bit.

    Args:
        one: What there was.
        other: What came of it.
        place: Where in the whole they stand.
    """
    if isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor):
        return _of_tensors(one, other, place)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        strange = next((key for key in (*one, *other) if key not in one or key not in other), None)
        if strange is not None:
            return f"{_below(place, strange)} is only in one of them"
        return next((found for key in one if (found := difference(one[key], other[key], _below(place, key)))), None)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        if len(one) != len(other):
            return f"{place} has {len(one)} entries and then {len(other)}"
        pairs = enumerate(zip(one, other, strict=True))
        return next((found for key, pair in pairs if (found := difference(*pair, _below(place, key)))), None)
    is_same = bool(one == other) or (one != one and other != other)
    return None if is_same else f"{place} is {one!r:.40} and then {other!r:.40}"


def _below(place: str, key: Any) -> str:
    return f"{place}.{key}" if place else str(key)


def _of_tensors(one: Any, other: Any, place: str) -> str | None:
    if not isinstance(one, torch.Tensor) or not isinstance(other, torch.Tensor):
        return f"{place} is a {type(one).__name__} and then a {type(other).__name__}"
    for what in ("dtype", "shape"):
        if getattr(one, what) != getattr(other, what):
            return f"{place} has {what} {getattr(one, what)} and then {getattr(other, what)}"
    return None if torch.equal(_bits(one.to(other.device)), _bits(other)) else f"{place} has other numbers"


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor in which NaN equals NaN."""
    return tensor.nan_to_num(nan=1.5e33) if tensor.is_floating_point() else tensor
