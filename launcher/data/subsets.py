"""Some samples of a data set: `10% of train`, and what is left to train on."""

from __future__ import annotations

import inspect
import itertools
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import IterableDataset, Subset

from launcher.data.permutation import Indices


def subset(dataset: Any, indices: Indices) -> Any:
    """These samples; read whole batches at a time where the data set is (launcher/data/whole.py)."""
    if is_hub_dataset(dataset):
        return dataset.select(indices)
    return (ManyPart if getattr(dataset, "__getitems__", None) else Part)(dataset, indices)


class Part:
    """Some samples of a data set. torch's `Subset` would hold their numbers as a list: 36 bytes each, on every rank."""

    def __init__(self, dataset: Any, indices: Indices):
        self.dataset = dataset
        self.indices = torch.from_numpy(indices)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[int(self.indices[index])]


class ManyPart(Part):
    """The same of a data set that torch reads by `__getitems__`."""

    def __getitems__(self, indices: list[int]) -> Any:
        """Those of the underlying data set."""
        return self.dataset.__getitems__(self.indices[indices].tolist())


def innermost(dataset: Any) -> Any:
    """What a part is a part of."""
    while isinstance(dataset, Part | Subset):
        dataset = dataset.dataset
    return dataset


def numbered_in_whole(dataset: Any, index: int) -> tuple[Any, int]:
    """What a part is a part of, and the number there of its sample."""
    while isinstance(dataset, Part | Subset):
        dataset, index = dataset.dataset, int(dataset.indices[index])
    return dataset, index


def class_names(dataset: Any) -> list[str]:
    """The names of the classes in the order of their numbers; none where the data set has none."""
    names = getattr(innermost(dataset), "classes", None)
    return [str(name) for name in names] if isinstance(names, list | tuple) else []


def is_stream(dataset: Any) -> bool:
    """Whether a data set has no samples by number."""
    return isinstance(dataset, IterableDataset) or not (
        hasattr(dataset, "__getitem__") or hasattr(dataset, "__getitems__")
    )


def why_none(dataset: Any) -> str | None:
    """Why what was passed as a data set cannot be one; None where it may be one.

    An iterator of Python's own looks like a stream, but ends for good with its first pass: nothing would be left for
    a second epoch, a second evaluation or a resume. A class of one's own may well start from the beginning.
    """
    name = type(dataset).__name__
    if isinstance(dataset, Iterator) and not inspect.isfunction(getattr(type(dataset), "__iter__", None)):
        remedy = "give a list of samples, or a class whose __iter__ starts from the beginning, as one with yield does"
        return f"a {name} can be read only once; {remedy}"
    if isinstance(dataset, Mapping) and not _has_first(dataset):
        keys = ", ".join(itertools.islice(map(str, dataset), 4)) + ", …" * (len(dataset) > 4)
        remedy = "give one of its values, or samples by number, as torch.utils.data.TensorDataset has them"
        return f"a {name} of {keys or 'nothing'} is not a data set; {remedy}"
    return None


def _has_first(dataset: Mapping[Any, Any]) -> bool:
    """Whether a mapping has samples by number; tensors by name may be read by number too (a TensorDict)."""
    try:
        dataset[0]
    except Exception:
        return False
    return True


def name_of(dataset: Any) -> str:
    """What to call a data set in messages."""
    inner = innermost(dataset)
    return type(inner).__name__ + (", a part" if inner is not dataset else "")


def is_hub_dataset(dataset: Any) -> bool:
    """Whether this is a Hugging Face `datasets.Dataset`; does not import the library."""
    module = sys.modules.get("datasets.arrow_dataset")
    return module is not None and isinstance(dataset, module.Dataset)
