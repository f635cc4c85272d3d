"""Many samples in one call, where what comes out is what collating them one by one would give.

Known from whose code runs, never from a name: a class that overrides what reads one sample is read sample by sample.
What cannot be read at once for some samples (a list of numbers below zero, parts that differ in shape) gives None for
them, and is read one by one then.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import ConcatDataset, StackDataset, Subset, TensorDataset, default_collate

from launcher.data.many import verdict_on
from launcher.data.permutation import Indices
from launcher.data.subsets import ManyPart, Part, is_hub_dataset

Collate = Callable[[list[Any]], Any]
ReadWhole = Callable[[Indices], Any]

_READS = ("__getitem__", "__getitems__", "__getattr__", "__getattribute__")
_FORMATS = (None, "torch", "numpy")  # of Hugging Face data sets, whose columns are their rows


def whole_batches(dataset: Any, collate: Collate | None) -> ReadWhole | None:
    """A function from indices to a batch, or to None where these samples must be read one by one.

    For `TensorDataset` and what inherits its reading, classes whose `get_batch(indices)` stands for their samples,
    Hugging Face data sets of columns, and `Subset`, `ConcatDataset` and `StackDataset` of such.

    Args:
        dataset: Map-style.
        collate: The recipe's, which wants single samples; None is torch's default.
    """
    return _reader_of(dataset) if collate is None else None


def is_made_of_tensors(dataset: Any) -> bool:
    """Whether its samples are the rows of its `tensors`, as `TensorDataset` has them."""
    return _reads_as(dataset, TensorDataset)


def _reader_of(dataset: Any) -> ReadWhole | None:
    get_batch = verdict_on(dataset).get_batch
    if get_batch is not None:
        return partial(_by_get_batch, get_batch)
    if _reads_as(dataset, TensorDataset):
        return TensorRows(dataset) if all(map(_has_rows, dataset.tensors)) else None
    if type(dataset) in (Part, ManyPart) or _reads_as(dataset, Subset):
        inner = _reader_of(dataset.dataset)
        return None if inner is None else _Chosen(dataset, dataset.dataset, inner)
    if _reads_as(dataset, StackDataset):
        return _stack_reader(dataset)
    if _reads_as(dataset, ConcatDataset):
        readers = [_reader_of(part) for part in dataset.datasets]
        known = [reader for reader in readers if reader is not None]
        return _Joined(dataset, list(dataset.datasets), known) if len(known) == len(readers) else None
    return partial(_column_rows, dataset) if _has_columns(dataset) else None


def _reads_as(dataset: Any, base: type) -> bool:
    """Whether the code of `base` reads the samples of a data set, one or many."""
    kind = type(dataset)
    if not issubclass(kind, base) or "__getitems__" in getattr(dataset, "__dict__", ()):
        return False
    return all(getattr(kind, name, None) is getattr(base, name, None) for name in _READS)


def _by_get_batch(get_batch: Callable[[torch.Tensor], Any], indices: Indices) -> Any:
    return get_batch(torch.from_numpy(indices))


# ---------------------------------------------------------------------- tensors


def _has_rows(tensor: torch.Tensor) -> bool:
    """Whether picking rows of a tensor is stacking them."""
    plain = tensor.layout is torch.strided and not (tensor.is_nested or tensor.is_quantized)
    return plain and tensor.device.type == "cpu" and type(tensor) is torch.Tensor


class TensorRows:
    """Rows of the tensors that the data set has now."""

    def __init__(self, dataset: TensorDataset):
        self.dataset = dataset
        self.checked: Any = None

    def __call__(self, indices: Indices) -> list[torch.Tensor] | None:
        tensors = self.dataset.tensors
        if tensors is not self.checked:
            if not all(map(_has_rows, tensors)):
                return None
            self.checked = tensors if isinstance(tensors, tuple) else None
        rows = torch.from_numpy(indices)
        return [tensor.index_select(0, rows) for tensor in tensors]  # up to three times as fast as tensor[rows]


# ---------------------------------------------------------------------- parts of what reads whole


def pinned_rows(dataset: TensorDataset, indices: Indices) -> list[torch.Tensor] | None:
    """The same, gathered where a GPU copies from; where no memory can be locked, in any."""
    rows = torch.from_numpy(indices)
    try:
        places = [
            torch.empty((len(rows), *tensor.shape[1:]), dtype=tensor.dtype, pin_memory=True)
            for tensor in dataset.tensors
        ]
    except RuntimeError:
        return TensorRows(dataset)(indices)
    pairs = zip(dataset.tensors, places, strict=True)
    return [torch.index_select(tensor, 0, rows, out=place) for tensor, place in pairs]


@dataclass
class _Chosen:
    """A `Subset`, or a part of ours: its numbers are looked up in each batch, as torch does."""

    dataset: Any
    inner: Any
    read: ReadWhole

    def __call__(self, indices: Indices) -> Any:
        chosen = _picked(self.dataset.indices, indices)
        if chosen is None or self.dataset.dataset is not self.inner:
            return None
        return self.read(chosen)


def _picked(numbers: Any, places: Indices) -> Indices | None:
    """What stands at these places; None where it is not a number from 0 on."""
    if isinstance(numbers, np.ndarray | torch.Tensor):
        picked = np.asarray(numbers[torch.from_numpy(places) if isinstance(numbers, torch.Tensor) else places])
    else:
        picked = np.asarray([numbers[place] for place in places.tolist()])
    if picked.ndim != 1 or picked.dtype.kind not in "iu" or (picked.size and picked.min() < 0):
        return None
    return picked.astype(np.int64, copy=False)


def _stack_reader(dataset: Any) -> ReadWhole | None:
    parts = dataset.datasets
    named = parts.items() if isinstance(parts, dict) else enumerate(parts)
    readers = [(name, part, _reader_of(part)) for name, part in named]
    known = [(name, part, reader) for name, part, reader in readers if reader is not None]
    return _Stacked(dataset, known) if known and len(known) == len(readers) else None


@dataclass
class _Stacked:
    """A `StackDataset`: a batch of each part."""

    dataset: Any
    readers: Sequence[tuple[Any, Any, ReadWhole]]

    def __call__(self, indices: Indices) -> Any:
        parts = self.dataset.datasets
        if len(parts) != len(self.readers) or any(parts[name] is not part for name, part, _ in self.readers):
            return None
        batches = [read(indices) for _, _, read in self.readers]
        if any(batch is None for batch in batches):
            return None
        names = [name for name, _, _ in self.readers]
        return dict(zip(names, batches, strict=True)) if isinstance(parts, dict) else batches


@dataclass
class _Joined:
    """A `ConcatDataset`: rows of each part that the samples lie in, in the order that was asked for."""

    dataset: Any
    parts: Sequence[Any]
    readers: Sequence[ReadWhole]

    def __call__(self, indices: Indices) -> Any:
        ends = self.dataset.cumulative_sizes
        owners = np.searchsorted(ends, indices, side="right")
        batches, places = [], []
        for owner in np.unique(owners).tolist():
            if self.dataset.datasets[owner] is not self.parts[owner]:
                return None
            own = np.flatnonzero(owners == owner)
            places.append(own)
            batches.append(self.readers[owner](indices[own] - (ends[owner - 1] if owner else 0)))
        if any(batch is None for batch in batches):
            return None
        if len(batches) == 1:
            return batches[0]
        try:
            return _together(batches, torch.from_numpy(np.argsort(np.concatenate(places))))
        except _UnlikeError:
            return None


class _UnlikeError(Exception):
    """Rows of two parts are not made of the same things."""


def _together(batches: Sequence[Any], order: torch.Tensor) -> Any:
    """Several batches as one, its rows in this order of all of theirs.

    Raises:
        _UnlikeError: torch's collate would promote types, or refuse.
    """
    first = batches[0]
    if any(type(batch) is not type(first) for batch in batches):
        raise _UnlikeError
    if type(first) is torch.Tensor:
        if any(_form(batch) != _form(first) for batch in batches):
            raise _UnlikeError
        return torch.cat(list(batches)).index_select(0, order)
    if type(first) in (list, tuple):
        if not first or any(len(batch) != len(first) for batch in batches):
            raise _UnlikeError
        return [_together(parts, order) for parts in zip(*batches, strict=True)]
    if type(first) is dict and all(list(batch) == list(first) for batch in batches):
        return {name: _together([batch[name] for batch in batches], order) for name in first}
    raise _UnlikeError


def _form(tensor: torch.Tensor) -> Any:
    is_plain = tensor.layout is torch.strided and not (tensor.is_nested or tensor.is_quantized or tensor.is_conj())
    return (tensor.dtype, tensor.shape[1:], tensor.device) if is_plain else object()


# ---------------------------------------------------------------------- Hugging Face


def _has_columns(dataset: Any) -> bool:
    """Whether it is a Hugging Face data set whose many rows at once are the columns of what torch would collate.

    Not with a transform, which is called once for each read and may be random, nor with pictures or sound, decoded one
    by one.
    """
    if not is_hub_dataset(dataset) or not _reads_as(dataset, sys.modules["datasets.arrow_dataset"].Dataset):
        return False
    if dataset.format["type"] not in _FORMATS:
        return False
    return not any(hasattr(feature, "decode_example") for feature in dataset.features.values())


def _column_rows(dataset: Any, indices: Indices) -> dict[str, Any] | None:
    """Each column collated by itself, as the fields of a mapping are: `__getitems__` would cut them into rows."""
    columns: Mapping[str, Any] = dataset[indices.tolist()]
    try:
        return {name: _collated_column(column) for name, column in columns.items()}
    except (RuntimeError, TypeError, KeyError, ValueError):
        return None  # no batch can be made: read one by one, the samples are named


def _collated_column(column: Any) -> Any:
    if type(column) is torch.Tensor:
        return column
    if type(column) is np.ndarray and column.dtype.kind in "biufc" and (column.ndim > 1 or _stays(column.dtype)):
        return torch.from_numpy(np.array(column, order="C"))
    return default_collate(list(column))


@functools.cache
def _stays(dtype: np.dtype[Any]) -> bool:
    """Whether torch makes of a list of NumPy's scalars what it makes of an array of them."""
    values = np.ones(2, dtype)
    listed = torch.as_tensor(list(values))
    return listed.dtype is torch.from_numpy(values).dtype
