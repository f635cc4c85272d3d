"""Reading as torch's DataLoader reads: by `__getitems__` where a data set has it, with or without a `__getitem__`.

What `__getitems__` gives is a list of samples, or the batch itself for a collate that knows it. Two columns for two
numbers look like two samples; so it is asked for two different numbers of them, and gives samples if the length of what
it gives follows.
"""

from __future__ import annotations

import weakref
from contextlib import suppress
from typing import Any

from torch.utils.data import Subset

from launcher.data.seeds import randomness_restored, seed_generators
from launcher.errors import LauncherError

_given: dict[int, tuple[weakref.ref[Any], bool]] = {}  # by the data set's id: asked once a process


def has_many(dataset: Any) -> bool:
    """Whether it has a `__getitems__`, asked as torch's DataLoader asks: also of a `__getattr__`."""
    return bool(getattr(dataset, "__getitems__", None))


def is_own_many(kind: type) -> bool:
    """Whether `__getitems__` is defined no higher than `__getitem__`."""
    names = [{name for name in ("__getitem__", "__getitems__") if name in vars(base)} for base in kind.__mro__]
    return "__getitems__" in next((methods for methods in names if methods), set())


def reads_many(dataset: Any) -> bool:
    """Whether several samples are asked for in one call of its own."""
    return has_many(dataset) and not loops_over_samples(dataset)


def loops_over_samples(dataset: Any) -> bool:
    """Whether its `__getitems__` is torch's own loop: read one by one, each sample can be named."""
    if getattr(type(dataset), "__getitems__", None) is not Subset.__getitems__:
        return False
    return not callable(getattr(dataset.dataset, "__getitems__", None)) or loops_over_samples(dataset.dataset)


def gives_batches(dataset: Any) -> bool:
    """Whether `__getitems__` gives the batch itself, not a list of samples.

    Where a few samples cannot be read it is taken for a list, and asked again the next time.
    """
    if not reads_many(dataset):
        return False
    known = _given.get(id(dataset))
    if known is not None and known[0]() is dataset:
        return known[1]
    verdict = _follows_the_number(dataset)
    if verdict is None:
        return False
    with suppress(TypeError):  # some things cannot be referred to weakly
        _given[id(dataset)] = weakref.ref(dataset), not verdict
    return not verdict


def _follows_the_number(dataset: Any) -> bool | None:
    """Whether it gives two things for two numbers and three for three; None where these samples cannot be read."""
    size = len(dataset)
    for few in ([0, 1, 2], [size - 1, size // 2, size // 3]):
        asked = [number % size for number in few] if size else []
        with randomness_restored(needed=True), suppress(Exception):
            return all(_is_of(dataset.__getitems__(numbers), len(numbers)) for numbers in (asked[:2], asked))
    return None


def _is_of(given: Any, size: int) -> bool:
    return isinstance(given, list | tuple) and len(given) == size


def read_one(dataset: Any, index: int) -> list[Any]:
    """One sample as torch would read it, in a list; an empty one where `__getitems__` leaves out what is broken.

    Raises:
        LauncherError: `__getitems__` gives something else than a list of samples.
    """
    if not has_many(dataset):
        return [dataset[index]]
    given = dataset.__getitems__([index])
    if not isinstance(given, list | tuple) or len(given) > 1:
        kind = type(dataset).__name__
        raise LauncherError(
            f"{kind}.__getitems__ gives batches, not a list of samples; samples by themselves cannot be read"
        )
    return list(given)


def sample_of(dataset: Any, index: int) -> Any:
    """One sample as torch would read it; of a set that gives batches, a batch of one.

    Raises:
        IndexError: There is none.
    """
    if gives_batches(dataset):
        return dataset.__getitems__([index])
    samples = read_one(dataset, index)
    if not samples:
        raise IndexError(f"{type(dataset).__name__}.__getitems__([{index}]) gives no sample")
    return samples[0]


def seeded_sample(dataset: Any, index: int) -> Any:
    """The same, always drawn alike."""
    seed_generators(0, index)
    return sample_of(dataset, index)
