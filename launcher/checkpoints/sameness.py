"""Whether two states are the same, and where they are not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def same(state: Any, other: Any) -> bool:
    """Whether two states are equal to the bit, tensors and containers alike."""
    return difference(state, other) is None


def difference(state: Any, other: Any, place: str = "") -> str | None:
    """Where two states differ first, and how, in words; None where they are equal to the bit.

    Args:
        state: What there was.
        other: What came of it.
        place: Where in the whole they stand.
    """
    if isinstance(state, torch.Tensor) or isinstance(other, torch.Tensor):
        return _of_tensors(state, other, place)
    if isinstance(state, Mapping) and isinstance(other, Mapping):
        strange = next((key for key in (*state, *other) if key not in state or key not in other), None)
        if strange is not None:
            return f"{_below(place, strange)} is only in one of them"
        return next(
            (mismatch for key in state if (mismatch := difference(state[key], other[key], _below(place, key)))), None
        )
    if isinstance(state, list | tuple) and isinstance(other, list | tuple):
        if len(state) != len(other):
            return f"{place} has {len(state)} entries and then {len(other)}"
        pairs = enumerate(zip(state, other, strict=True))
        return next((mismatch for key, pair in pairs if (mismatch := difference(*pair, _below(place, key)))), None)
    is_same = bool(state == other) or (state != state and other != other)
    return None if is_same else f"{place} is {state!r:.40} and then {other!r:.40}"


def _below(place: str, key: Any) -> str:
    return f"{place}.{key}" if place else str(key)


def _of_tensors(state: Any, other: Any, place: str) -> str | None:
    if not isinstance(state, torch.Tensor) or not isinstance(other, torch.Tensor):
        return f"{place} is a {type(state).__name__} and then a {type(other).__name__}"
    for what in ("dtype", "shape"):
        if getattr(state, what) != getattr(other, what):
            return f"{place} has {what} {getattr(state, what)} and then {getattr(other, what)}"
    return None if torch.equal(_bits(state.to(other.device)), _bits(other)) else f"{place} has other numbers"


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor in which NaN equals NaN."""
    return tensor.nan_to_num(nan=1.5e33) if tensor.is_floating_point() else tensor
