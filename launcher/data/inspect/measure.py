"""A look at the data before training: what a batch is made of, how classes are shared out, how fast it is read."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Subset, TensorDataset

from launcher.data.load import Data
from launcher.data.loaders import EvaluationLoader, MicroBatch, TrainLoader
from launcher.data.streams import StreamLoader, has_shards
from launcher.data.subsets import Part, innermost, is_hub_dataset
from launcher.data.workers import BATCHES_AHEAD
from launcher.world.world import usable_cpus

MOST_WORKERS = 8
_AS_GOOD = 0.9  # fewer workers that read nearly as fast are better
_WIDE = 20.0  # inputs that reach further should be scaled
_QUICK = 5000.0  # samples a second: there calling costs more than reading
_UNEVEN = 5.0  # classes that differ by more are spoken of


class Layout(Protocol):
    """Which parts of a batch go where: the recipe's `batch`, applied."""

    @property
    def is_whole(self) -> bool:
        """Whether the model gets the batch as it is."""
        ...

    def split(self, batch: Any) -> tuple[Sequence[Any], Mapping[str, Any], tuple[Any, ...]]:
        """Positional inputs, inputs by name, and targets."""
        ...

    def targets(self, batch: Any) -> tuple[Any, ...]:
        """What the loss gets after the outputs."""
        ...


@dataclass(frozen=True)
class Field:
    """One part of a batch.

    Attributes:
        key: Its position or key in the batch.
        role: `input`, `target`, or neither.
        value: The part itself.
    """

    key: int | str
    role: str
    value: Any

    @property
    def numbers(self) -> NDArray[np.float64] | None:
        """All its numbers, None where it has none."""
        if not isinstance(self.value, Tensor) or self.value.is_complex() or self.value.layout is not torch.strided:
            return None
        if self.value.is_nested or self.value.is_quantized:
            return None
        return self.value.detach().cpu().double().numpy()

    @property
    def is_pictures(self) -> bool:
        """Whether it is a batch of pictures, [N, C, H, W]."""
        value = self.value
        return (
            isinstance(value, Tensor) and value.ndim == 4 and value.shape[1] in (1, 3, 4) and min(value.shape[2:]) > 3
        )

    @property
    def is_classes(self) -> bool:
        """Whether it is a whole number for each sample."""
        value = self.value
        return (
            isinstance(value, Tensor) and value.ndim == 1 and not value.is_floating_point() and not value.is_complex()
        )


def fields_of(batch: Any, layout: Layout) -> list[Field]:
    """The parts of a batch, with what the recipe uses them for.

    Raises:
        LauncherError: The recipe names a part that the batch does not have.
    """
    inputs, named, targets = layout.split(batch)
    roles = {id(value): "input" for value in [*inputs, *named.values()]} | {id(value): "target" for value in targets}
    other = "input" if layout.is_whole else ""
    if isinstance(batch, Mapping):
        items: list[tuple[int | str, Any]] = [(str(key), value) for key, value in batch.items()]
    elif isinstance(batch, tuple) and hasattr(batch, "_fields"):
        items = list(zip(batch._fields, batch, strict=True))
    else:
        items = list(enumerate(batch)) if isinstance(batch, tuple | list) else [(0, batch)]
    return [Field(key, roles.get(id(value), other), value) for key, value in items]


def first_batch(loader: TrainLoader | EvaluationLoader) -> MicroBatch:
    """The first batch of a data set, read in this process."""
    if isinstance(loader, EvaluationLoader):
        return next(iter(loader.batches()))
    return next(with_workers(loader, 0).steps(0, 1))[0]


def with_workers(loader: TrainLoader, workers: int) -> TrainLoader:
    """The same data read by another number of worker processes."""
    return type(loader)(loader.dataset, loader.sampler, replace(loader.reading, workers=workers))


# ---------------------------------------------------------------------- classes


@dataclass(frozen=True)
class Balance:
    """How many samples of each class there are.

    Attributes:
        counts: By class.
        samples: How many were looked at.
        is_all: Whether that was all of them.
        names: The classes' names, if they have names.
    """

    counts: dict[int, int]
    samples: int
    is_all: bool
    names: Sequence[str] = ()

    def name(self, number: int) -> str:
        """A class as people know it."""
        return self.names[number] if 0 <= number < len(self.names) else str(number)


def balance_of(loader: TrainLoader, target: Field, layout: Layout, seconds: float) -> Balance | None:
    """Counts the classes of the training set: all, where it lists them, else those read in some seconds."""
    if not target.is_classes:
        return None
    names = getattr(innermost(loader.dataset), "classes", None) or ()
    listed = _listed_targets(loader.dataset, target.key)
    if listed is not None and not isinstance(loader, StreamLoader):
        first = listed[loader.sampler.shares(0)[0].indices]
        if np.array_equal(first, target.value.numpy()):  # and not another thing of that name
            return Balance(_counted([listed]), len(listed), True, names)
    read = list(_read_targets(loader, layout, seconds))
    samples = sum(map(len, read))
    return Balance(_counted(read), samples, samples >= loader.sampler.dataset_size, names)


def _read_targets(loader: TrainLoader, layout: Layout, seconds: float) -> Iterator[NDArray[Any]]:
    end = time.monotonic() + seconds
    for step in with_workers(loader, 0).steps(0, loader.sampler.steps_per_epoch):
        for batch in step:
            yield layout.targets(batch.data)[0].numpy()[: batch.samples]
        if time.monotonic() > end:
            return


def _counted(parts: Sequence[NDArray[Any]]) -> dict[int, int]:
    values, counts = np.unique(np.concatenate(parts), return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _listed_targets(dataset: Any, key: int | str) -> NDArray[Any] | None:
    """The targets of all samples, where a data set has them as a list; not necessarily what it gives."""
    if isinstance(dataset, Part | Subset):
        listed = _listed_targets(dataset.dataset, key)
        return None if listed is None else listed[np.asarray(dataset.indices)]
    if is_hub_dataset(dataset):
        return np.asarray(dataset[key])
    targets = getattr(dataset, "targets", None)
    if targets is None and isinstance(dataset, TensorDataset) and isinstance(key, int):
        targets = dataset.tensors[key]
    if targets is None or not hasattr(targets, "__len__") or len(targets) != len(dataset):
        return None
    array = np.asarray(targets)
    return array if array.ndim == 1 else None


# ---------------------------------------------------------------------- speed


@dataclass(frozen=True)
class Speed:
    """How fast a number of workers reads.

    Attributes:
        workers: Processes.
        batches: Micro-batches a second.
        samples: Samples a second.
        start_seconds: What the first batch took.
    """

    workers: int
    batches: float
    samples: float
    start_seconds: float


def speeds(loader: TrainLoader, seconds: float) -> Iterator[Speed]:
    """The speed with 0, 1, 2, 4, … workers, up to the CPUs that are there.

    Args:
        loader: Of the training set.
        seconds: How long to read with each number.
    """
    most = min(MOST_WORKERS, max(2, usable_cpus()))
    for workers in [0, *itertools.takewhile(lambda count: count <= most, (1, 2, 4, 8))]:
        readers = loader.sampler.num_replicas * max(1, workers)
        if workers < 2 or not isinstance(loader, StreamLoader) or has_shards(loader.dataset, readers):
            yield _speed(with_workers(loader, workers), seconds)


def _speed(loader: TrainLoader, seconds: float) -> Speed:
    began = time.perf_counter()
    steps = loader.steps(0, None)
    next(steps)
    started = time.perf_counter()
    ahead = BATCHES_AHEAD * loader.reading.workers  # those that were read meanwhile do not count
    for _ in itertools.islice(steps, ahead):
        if time.perf_counter() - started > seconds:
            break
    batches = samples = 0
    since = now = time.perf_counter()
    while now - since < seconds or not batches:
        step = next(steps)
        batches, samples = batches + len(step), samples + sum(batch.samples for batch in step)
        now = time.perf_counter()
    steps.close()
    return Speed(loader.reading.workers, batches / (now - since), samples / (now - since), started - began)


# ---------------------------------------------------------------------- advice


def advice(data: Data, fields: Sequence[Field], balance: Balance | None, measured: Sequence[Speed]) -> list[str]:
    """What to change in the recipe, if anything."""
    suggestions = [*_about_inputs(fields), *_about_balance(balance)]
    return [*suggestions, *_about_workers(data.train, measured)]


def _about_workers(loader: TrainLoader, measured: Sequence[Speed]) -> Iterator[str]:
    if not measured:
        return
    fastest = max(speed.samples for speed in measured)
    best = next(speed for speed in measured if speed.samples >= _AS_GOOD * fastest)
    now = loader.reading.workers
    at_present = next((speed for speed in measured if speed.workers == now), None)
    if at_present is None or at_present.samples < _AS_GOOD * fastest:
        than = f", {best.samples / at_present.samples:.1f} times as fast as with {now}" if at_present else ""
        yield f"data.workers: {best.workers} reads {best.samples:,.0f} samples a second{than}"
    else:
        yield f"data.workers: {now}, as it is, reads {at_present.samples:,.0f} samples a second; none is faster"
    if best.workers == 0 and best.samples > _QUICK and not loader.reads_whole_batches:
        yield "a method get_batch(indices) that reads many samples at once would spare a call for each"


def _about_inputs(fields: Sequence[Field]) -> Iterator[str]:
    for field in fields:
        numbers = field.numbers
        if numbers is None or not numbers.size or field.role != "input":
            continue
        if not np.isfinite(numbers).all():
            yield f"input {field.key!r} has values that are not finite (NaN or infinity): fix the data"
        elif field.value.is_floating_point() and np.abs(numbers).max() > _WIDE:
            low, high = numbers.min(), numbers.max()
            yield f"input {field.key!r} runs from {low:.4g} to {high:.4g}: scale it to about -1 … 1"
        if field.value.dtype == torch.float64:
            yield f"input {field.key!r} is float64, and models are float32 unless they are told otherwise: convert it"
        if field.is_pictures and field.value.dtype == torch.uint8:
            yield f"input {field.key!r} is uint8: convert it to floats of about 0 … 1 in the data set"


def _about_balance(balance: Balance | None) -> Iterator[str]:
    if balance is None or len(balance.counts) < 2:
        return
    rare, common = (
        min(balance.counts, key=balance.counts.__getitem__),
        max(balance.counts, key=balance.counts.__getitem__),
    )
    ratio = balance.counts[common] / balance.counts[rare]
    if ratio >= _UNEVEN:
        yield (
            f"class {balance.name(common)} has {ratio:.0f} times as many samples as {balance.name(rare)}: data.weights "
            "draws rare ones more often, or weigh the loss"
        )
