"""Whether a data set's `get_batch(indices)` can replace its samples: known from where it is defined, and measured.

A name means nothing: nanoGPT's `get_batch(batch_size)` draws at random, and a class that overrides `__getitem__` alone
inherits a `get_batch` that does not know of it. So it must be defined no higher than `__getitem__`, by the class itself
and not by a `__getattr__`, and give what collating a few single samples gives.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import default_collate

from launcher.data.epochs import Announcer, listeners
from launcher.data.getitems import seeded_sample
from launcher.data.seeds import randomness_restored, seed_generators
from launcher.text import words_of

GetBatch = Callable[[torch.Tensor], Any]
UNUSED = "is not used, and samples are read one by one"
_ROUNDING = 64.0  # times the type's precision: many rows at once may round otherwise than one


class Verdict(NamedTuple):
    """What is known of a data set's `get_batch`.

    Attributes:
        get_batch: It, where it may be used.
        why: What the plan says where it is not used, or used without having been compared.
    """

    get_batch: GetBatch | None = None
    why: str = ""


_verdicts: dict[int, tuple[weakref.ref[Any], Verdict]] = {}  # by the data set's id: looked at once a process


def verdict_on(dataset: Any) -> Verdict:
    """Whether `get_batch` may be used, and why not."""
    known = _verdicts.get(id(dataset))
    if known is not None and known[0]() is dataset:
        return known[1]
    verdict = _verdict(dataset)
    with suppress(TypeError):  # some things cannot be referred to weakly: they are looked at again
        _verdicts[id(dataset)] = weakref.ref(dataset), verdict
    return verdict


def _verdict(dataset: Any) -> Verdict:
    kind = type(dataset)
    name, level, single = f"{kind.__name__}.get_batch", _level(kind, "get_batch"), _level(kind, "__getitem__")
    try:
        get_batch = getattr(dataset, "get_batch", None)
    except Exception:  # a __getattr__ of somebody's
        return Verdict()
    if not callable(get_batch):
        return Verdict()
    if level is None:
        return _unused(name, f"it is not a method of the class {kind.__name__}")
    if single is not None and level > single:
        by, of = kind.__mro__[single].__name__, kind.__mro__[level].__name__
        return _unused(name, f"{by} overrides __getitem__, which {of}.get_batch does not know about")
    try:
        why = _difference(dataset, get_batch)
    except _OnTrustError as reason:
        return Verdict(get_batch, f"{name} is trusted: {reason}")
    return _unused(name, why) if why else Verdict(get_batch)


class _OnTrustError(Exception):
    """There is nothing to compare batches with."""


def _unused(name: str, why: str) -> Verdict:
    return Verdict(None, f"{name} {UNUSED}: {why}")


def _level(kind: type, name: str) -> int | None:
    """How far up a class's bases a name is defined; None where it is not."""
    return next((number for number, base in enumerate(kind.__mro__) if name in vars(base)), None)


def _difference(dataset: Any, get_batch: GetBatch) -> str:
    """In what `get_batch` differs from single samples; empty where it does not on a few, in an order of no meaning."""
    size = len(dataset)
    if not size:
        return ""
    few = [list(dict.fromkeys((size - 1, 0, size // 2, size // 3))), [size // 2]]
    with randomness_restored(needed=True):
        if why := _first(_difference_at(dataset, get_batch, asked) or None for asked in few):
            return why
        return _difference_later(dataset, get_batch, few[0])


def _difference_later(dataset: Any, get_batch: GetBatch, asked: list[int]) -> str:
    """The same in another epoch, of which `get_batch` may not know; a set that has one alone is not asked."""
    if not listeners(dataset):
        return ""
    told = Announcer(dataset)
    try:
        told.tell(1)
    except Exception:
        why = ""
    else:
        why = _difference_at(dataset, get_batch, asked)
    told.tell(0)
    return f"in another epoch {why}" if why else ""


def _difference_at(dataset: Any, get_batch: GetBatch, indices: list[int]) -> str:
    try:
        samples = [seeded_sample(dataset, index) for index in indices]
    except NotImplementedError:  # as torch's own Dataset says where a class has none
        raise _OnTrustError("there are no single samples to compare with") from None
    except Exception as error:
        return f"a single sample cannot be read ({_told(error)}), so that nothing can be compared"
    seed_generators(0)
    try:
        batch = get_batch(torch.tensor(indices))
    except Exception as error:
        return f"get_batch(indices) fails ({_told(error)})"
    try:
        collated = default_collate(samples)
    except (RuntimeError, TypeError, KeyError, ValueError):
        raise _OnTrustError("single samples make no batch without a data.collate") from None
    place = difference(collated, batch)
    return f"for samples {', '.join(map(str, indices))} it gives other values{place}" if place is not None else ""


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(words_of(error).split())[:120]}"


# ---------------------------------------------------------------------- comparing


def difference(batch: Any, other: Any, place: str = "") -> str | None:
    """Where two batches differ by more than rounding, as ` at [1]`; None where they are alike.

    A list is as good as a tuple: a default collate gives lists, and people write tuples.
    """
    if isinstance(batch, torch.Tensor) and isinstance(other, torch.Tensor):
        return None if _same_numbers(batch, other) else _at(place)
    if isinstance(batch, Mapping) and isinstance(other, Mapping):
        if batch.keys() != other.keys():
            return _at(place)
        return _first(difference(batch[key], other[key], f"{place}[{key!r}]") for key in batch)
    if _is_sequence(batch) and _is_sequence(other):
        if len(batch) != len(other):
            return _at(place)
        pairs = enumerate(zip(batch, other, strict=True))
        return _first(difference(mine, its, f"{place}[{number}]") for number, (mine, its) in pairs)
    if isinstance(batch, np.ndarray) and isinstance(other, np.ndarray) and batch.dtype == other.dtype != object:
        return None if np.array_equal(batch, other, equal_nan=batch.dtype.kind in "fc") else _at(place)
    try:
        is_alike = bool(batch == other)
    except Exception:  # things that cannot be compared are not known to be alike
        is_alike = False
    if not is_alike and type(batch) is type(other) and getattr(batch, "__dict__", None):
        return difference(vars(batch), vars(other), place)
    return None if is_alike else _at(place)


def _at(place: str) -> str:
    return f" at {place}" if place else ""


def _is_sequence(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _first(places: Any) -> str | None:
    return next((place for place in places if place is not None), None)


def _same_numbers(values: torch.Tensor, other: torch.Tensor) -> bool:
    if values.dtype != other.dtype or values.layout != other.layout or values.is_nested != other.is_nested:
        return False
    if values.is_nested:
        parts = values.unbind(), other.unbind()
        return len(parts[0]) == len(parts[1]) and all(map(_same_numbers, *parts))
    if values.shape != other.shape:
        return False
    values, other = (_dense(tensor) for tensor in (values, other))
    if not (values.is_floating_point() or values.is_complex()):
        return bool(torch.equal(values, other))
    precision = _ROUNDING * torch.finfo(values.dtype).eps
    wide = torch.complex128 if values.is_complex() else torch.float64
    values, other = values.to(wide), other.to(wide)
    finite = values[values.isfinite()].abs()
    scale = float(finite.max()) if finite.numel() else 0.0
    return torch.allclose(values, other, rtol=precision, atol=precision * scale, equal_nan=True)


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach().cpu()
    if tensor.is_quantized:
        return tensor.dequantize()
    return tensor.resolve_conj().resolve_neg() if tensor.layout is torch.strided else tensor.to_dense()
