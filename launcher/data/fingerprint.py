"""What a training set is, in a few bytes: its class, its length, its weights, and a few of its samples.

A run that goes on must find the data that it began with. Three samples are read, each twice: where the second
reading differs, the data set has randomness that no seed of ours reaches, and its content says nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from launcher.data.loaders import TrainLoader
from launcher.data.reading import Reading, seed_sample, whole_batches
from launcher.data.seeds import randomness_restored
from launcher.data.streams import StreamLoader
from launcher.data.subsets import name_of


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
    indices = sorted({0, size // 2, size - 1})
    with randomness_restored(needed=True):
        first, second = (_content(dataset, indices, loader.reading) for _ in range(2))
    return (f"{label}, {first}", True) if first == second else (label, False)


def _content(dataset: Any, indices: list[int], reading: Reading) -> str:
    digest = hashlib.sha256()
    read = whole_batches(dataset, reading.collate)
    for index in indices:
        if read is not None:
            sample = read(np.array([index], dtype=np.int64))
        else:
            seed_sample(reading.seed, 0, index)
            sample = dataset[index]
        for part in _parts(sample):
            digest.update(part)
    return digest.hexdigest()[:16]


def _parts(value: Any) -> Iterator[bytes]:
    """The bytes of what a sample is made of; things that have no bytes count as their class."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        yield f"{value.dtype}{tuple(value.shape)}".encode()
        yield value.contiguous().flatten().view(torch.uint8).numpy().tobytes() if value.numel() else b""
    elif isinstance(value, np.ndarray):
        yield f"{value.dtype}{value.shape}".encode()
        yield value.tobytes() if value.dtype != object else b""
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield str(key).encode()
            yield from _parts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _parts(inner)
    elif isinstance(value, str | bytes | int | float | bool | None):
        yield repr(value).encode()
    else:
        yield type(value).__name__.encode()
