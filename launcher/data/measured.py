"""A number for each sample, as batch samplers want them: given, known to the data set, or measured once and kept."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from launcher.data.fingerprint import content_parts
from launcher.data.getitems import gives_batches, seeded_sample
from launcher.data.permutation import Indices
from launcher.data.preparation import once_per_node
from launcher.data.seeds import randomness_restored
from launcher.data.subsets import name_of
from launcher.datasets.arrays import mapped_array
from launcher.datasets.files import atomic_write, cache_path, checked_file
from launcher.recipe.directory import directory

_TARGETS = ("targets", "labels", "label")
_TEXTS = ("input_ids", "tokens", "text")
_INSTEAD = "give the batch sampler an array, a .npy file or a function"
_LOOKED_AT = 64  # samples that tell one data set from another


def lengths_of(dataset: Any, given: Any) -> Indices:
    """How long each sample is: its first part, or `input_ids`, `tokens` or `text` of a mapping.

    Raises:
        ValueError: What is given, or a sample, has none.
    """
    return _given(dataset, given) if given is not None else _measured(dataset, "length", _length)


def targets_of(dataset: Any, given: Any) -> Indices:
    """The class of each sample: what the data set says, or its second part, or `labels` or `label` of a mapping.

    Raises:
        ValueError: What is given, or a sample, has none.
    """
    known = next((known for name in _TARGETS if (known := getattr(dataset, name, None)) is not None), None)
    if given is None and known is not None and not callable(known):
        given = known
    return _given(dataset, given) if given is not None else _measured(dataset, "class", _target)


def _given(dataset: Any, given: Any) -> Indices:
    numbers = given(dataset) if callable(given) else given
    if isinstance(numbers, str | Path):
        numbers = mapped_array(checked_file(directory() / Path(numbers).expanduser(), "a .npy file"))
    values = np.asarray(numbers)
    if values.shape != (len(dataset),) or values.dtype.kind not in "iub":
        message = f"{len(dataset)} whole numbers are wanted, one for each sample"
        raise ValueError(f"{message}; got {values.dtype} of shape {list(values.shape)}")
    return values.astype(np.int64)


def _measured(dataset: Any, what: str, of: Callable[[Any], int]) -> Indices:
    """Read off every sample, by one process of this machine, and kept in a file."""
    if gives_batches(dataset):
        kind = type(dataset).__name__
        raise ValueError(f"{kind}.__getitems__ gives batches, no {what} of a sample; {_INSTEAD}")
    file = cache_path(f"{what}s", name_of(dataset), len(dataset), _print_of(dataset)).with_suffix(".npy")

    def measure() -> None:
        if file.exists():
            return
        numbers = np.fromiter(_numbers(dataset, what, of), dtype=np.int64, count=len(dataset))
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as part, part.open("wb") as opened:
            np.save(opened, numbers)

    once_per_node(f"measured {file}", measure, f"data.batch_sampler: the {what} of each sample of {name_of(dataset)}")
    numbers: Indices = np.load(file, allow_pickle=False)
    return numbers


def _numbers(dataset: Any, what: str, of: Callable[[Any], int]) -> Any:
    with randomness_restored(needed=True):
        for index in range(len(dataset)):
            try:
                number = of(seeded_sample(dataset, index))
            except (TypeError, KeyError, IndexError, ValueError) as error:
                message = f"sample {index} has no {what} ({type(error).__name__}: {error})"
                raise ValueError(f"{message}; {_INSTEAD}") from error
            yield number


def _print_of(dataset: Any) -> str:
    """A few samples' content: another data set under the same name is measured again."""
    digest = hashlib.sha256()
    with randomness_restored(needed=True):
        for index in np.unique(np.linspace(0, len(dataset) - 1, _LOOKED_AT).astype(np.int64)).tolist():
            for part in itertools.islice(content_parts(seeded_sample(dataset, index)), 10_000):
                digest.update(part if isinstance(part, bytes) else part.double().numpy().tobytes())
    return digest.hexdigest()[:24]


def _length(sample: Any) -> int:
    if isinstance(sample, Mapping):
        sample = next((sample[name] for name in _TEXTS if name in sample), next(iter(sample.values())))
    elif isinstance(sample, tuple):
        sample = sample[0]
    return len(sample)


def _target(sample: Any) -> int:
    if isinstance(sample, Mapping):
        return int(next(sample[name] for name in _TARGETS if name in sample))
    return int(sample[1])
