"""What a training set is, in a few bytes: its class, its length, its weights, and a few of its samples.

A run that is resumed must find the data that it began with. Three samples are read, each twice: where the second
reading differs, the data set has randomness that no seed of ours reaches, and its content says nothing.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from launcher.data.getitems import sample_of
from launcher.data.loaders import EvaluationLoader, TrainLoader
from launcher.data.reading import Reader
from launcher.data.seeds import randomness_restored
from launcher.data.streams import StreamLoader
from launcher.data.subsets import name_of
from launcher.data.whole import whole_batches

_MOST_PARTS = 100_000  # of a sample: an object may hold whatever it likes


def fingerprint(loader: TrainLoader) -> tuple[str, bool]:
    """A text that is the same for the same data, and whether the data set reads the same twice.

    Args:
        loader: Of the training set; it is not disturbed, and neither is the state of any generator.
    """
    dataset, size = loader.dataset, loader.sampler.dataset_size
    if isinstance(loader, StreamLoader):  # reading some of it would be reading from its beginning
        return f"{type(dataset).__name__}, a stream", True
    label = f"{name_of(dataset)}, {size:,} samples"
    if (shares := loader.sampler.cumulative) is not None:
        label += f", weights {hashlib.sha256(shares.tobytes()).hexdigest()[:16]}"
    with randomness_restored(needed=True):
        first, second = (_content(loader) for _ in range(2))
    return (f"{label}, {first}", True) if first == second else (label, False)


def _content(loader: TrainLoader) -> str:
    digest = hashlib.sha256()
    for sample in samples_of(loader):
        for part in itertools.islice(_parts(sample), _MOST_PARTS):
            digest.update(part if isinstance(part, bytes) else _bytes_of(part))
    return digest.hexdigest()[:16]


def samples_of(loader: TrainLoader | EvaluationLoader) -> Iterator[Any]:
    """The first, the middle and the last sample of a set that has them by number, each seeded."""
    dataset, reading = loader.dataset, replace(loader.reading, sample_seeds=True)
    read, size = whole_batches(dataset, reading.collate), len(dataset)
    reader = Reader(dataset, reading, loader.name if isinstance(loader, EvaluationLoader) else "data.train")
    reader.epochs.tell(0)
    for index in sorted({0, size // 2, size - 1}):
        batch = None if read is None else read(np.array([index], dtype=np.int64))
        if batch is not None:
            yield batch
        else:
            reader.seed(0, index)
            with reader.located_at(index):
                sample = sample_of(dataset, index)
            yield sample


def content_parts(value: Any) -> Iterator[bytes | torch.Tensor]:
    """What a sample is made of, in whatever it stands: tensors of real floats by themselves, all else as bytes."""
    return _parts(value)


def _parts(value: Any, depth: int = 8) -> Iterator[bytes | torch.Tensor]:
    """Things that have no bytes count as their class."""
    if isinstance(value, torch.Tensor):
        yield from _tensor_parts(value.detach())
    elif isinstance(value, str | bytes | int | float | complex | bool | None):
        yield repr(value).encode()
    elif isinstance(value, np.ndarray | np.generic):
        yield f"{value.dtype}{value.shape}".encode()
        yield from [value.tobytes()] if value.dtype != object else _parts(value.tolist(), depth)
    elif depth == 0:
        yield type(value).__name__.encode()
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield str(key).encode()
            yield from _parts(inner, depth - 1)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _parts(inner, depth - 1)
    else:
        yield from _object_parts(value, depth)


def _tensor_parts(value: torch.Tensor) -> Iterator[bytes | torch.Tensor]:
    """Of a tensor of any layout, its numbers and what says where they stand."""
    if value.is_nested:
        for row in value.unbind():
            yield from _tensor_parts(row)
        return
    yield f"{value.dtype}{tuple(value.shape)}".encode()
    if value.is_quantized:
        yield repr(value.dequantize().tolist()).encode()
    elif value.layout is torch.strided:
        plain = value.cpu().resolve_conj().resolve_neg()
        yield plain if plain.is_floating_point() else _bytes_of(plain)
    else:
        yield str(value.layout).encode()
        for part in _of_sparse(value):
            yield from _tensor_parts(part)


def _bytes_of(value: torch.Tensor) -> bytes:
    plain = value.contiguous().flatten()
    return plain.view(torch.uint8).numpy().tobytes() if plain.numel() else b""


def _of_sparse(value: torch.Tensor) -> tuple[torch.Tensor, ...]:
    if value.layout is torch.sparse_coo:
        value = value.coalesce()
        return value.indices(), value.values()
    if value.layout in (torch.sparse_csr, torch.sparse_bsr):
        return value.crow_indices(), value.col_indices(), value.values()
    if value.layout in (torch.sparse_csc, torch.sparse_bsc):
        return value.ccol_indices(), value.row_indices(), value.values()
    return (value.to_dense(),)


def _object_parts(value: Any, depth: int) -> Iterator[bytes | torch.Tensor]:
    """Of an object, its attributes; of a picture, its pixels."""
    yield type(value).__name__.encode()
    to_bytes = getattr(value, "tobytes", None)
    if callable(to_bytes):
        yield from [repr(getattr(value, "size", "")).encode(), to_bytes()]
    elif isinstance(value, set | frozenset):
        yield repr(sorted(map(repr, value))).encode()
    else:
        yield from _parts(dict(getattr(value, "__dict__", {})), depth - 1)
