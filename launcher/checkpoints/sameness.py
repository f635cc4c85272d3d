"""Whether two states are the same, and where they are not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from launcher.internals import parts_of


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
    return None if _equal(state, other) else f"{place} is {state!r:.40} and then {other!r:.40}"


def _equal(state: Any, other: Any) -> bool:
    """Whether two of which nothing is known are equal: NumPy's arrays entry by entry, NaN equal to NaN."""
    if isinstance(state, np.ndarray) and isinstance(other, np.ndarray):
        return state.dtype == other.dtype and state.shape == other.shape and _are_entries_equal(state, other)
    try:
        return bool(state == other) or bool(state != state and other != other)
    except Exception:  # somebody's class, which may answer with anything
        return state is other


def _are_entries_equal(array: Any, other: Any) -> bool:
    try:
        return bool(np.array_equal(array, other, equal_nan=array.dtype.kind in "fc"))
    except Exception:  # of objects, which may answer with anything
        return False


def _below(place: str, key: Any) -> str:
    return f"{place}.{key}" if place else str(key)


def _of_tensors(state: Any, other: Any, place: str) -> str | None:
    if not isinstance(state, torch.Tensor) or not isinstance(other, torch.Tensor):
        return f"{place} is a {type(state).__name__} and then a {type(other).__name__}"
    nested = state.is_nested or other.is_nested  # which have no shape that can be asked for
    for what in ("dtype", "layout", "is_nested") if nested else ("dtype", "layout", "shape"):
        if getattr(state, what) != getattr(other, what):
            return f"{place} has {what} {getattr(state, what)} and then {getattr(other, what)}"
    parts, others = parts_of(state.detach()), parts_of(other.detach())
    is_same = len(parts) == len(others) and all(map(_is_equal, parts, others))
    return None if is_same else f"{place} has other numbers"


def _is_equal(part: torch.Tensor, other: torch.Tensor) -> bool:
    return part.shape == other.shape and torch.equal(_bits(part.to(other.device)), _bits(other))


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor in which NaN equals NaN."""
    if tensor.is_quantized:
        return tensor
    if tensor.dtype.itemsize == 1:  # there is no arithmetic for some of these
        return tensor.contiguous().view(torch.uint8)
    plain = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    return plain.nan_to_num(nan=1.5e33) if plain.is_floating_point() else plain
