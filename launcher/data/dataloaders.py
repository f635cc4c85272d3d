"""A DataLoader passed as a data set: taken apart, so that its batches are never taken for samples.

The recipe decides what a batch is, in which order samples come and who reads them; of a DataLoader its data set and
its collate are used. What it says otherwise must be what the recipe says, or is refused with the words to write.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    default_collate,
)

from launcher.data.epochs import held_by
from launcher.internals import iterates_itself
from launcher.recipe import schema

_INSTEAD = "or pass its data set itself"


@dataclass(frozen=True)
class Opened:
    """A data set, and the collate that came with it.

    Attributes:
        dataset: What samples are read from.
        collate: Of a DataLoader that had one of its own.
        notes: What the plan should say.
    """

    dataset: Any
    collate: Any = None
    notes: tuple[str, ...] = ()


def taken_apart(loader: DataLoader[Any], key: str) -> Opened:
    """What is used of a DataLoader."""
    collate = None if loader.collate_fn is default_collate else loader.collate_fn
    used = "its data set" if collate is None else "its data set and its collate_fn"
    note = f"{key}: of the {type(loader).__name__} {used} are used; batches, order and workers are the recipe's"
    return Opened(loader.dataset, collate, (note.replace("set are", "set is"),))


def contradictions(loader: DataLoader[Any], section: schema.Data, world_size: int, is_training: bool) -> Iterator[str]:
    """What a DataLoader says that the recipe does not, each with the words to write.

    Args:
        loader: For training or evaluation.
        section: The recipe's `data`.
        world_size: How many processes there are: a script's batch size is that of one.
        is_training: Whether order and batches matter: an evaluation reads every sample once, in any batches.
    """
    if iterates_itself(loader):
        name = type(loader).__name__
        yield f"{name} makes its batches itself; pass its data set, with data.collate for its batches"
        return
    if loader.worker_init_fn is not None:
        yield (
            "its worker_init_fn would not be called; samples are seeded here, and the data set can do what else it "
            f"does at its first sample; remove it, {_INSTEAD}"
        )
    workers = section.workers
    if loader.num_workers and isinstance(workers, int) and workers != loader.num_workers:
        given = loader.num_workers
        yield f"its num_workers={given}, and data.workers is {workers}; write data.workers: {given}, {_INSTEAD}"
    size, drop_last, sampler = _batching(loader)
    if size is None:
        what = "its batch_sampler decides on batches" if loader.batch_sampler is not None else "it has batch_size=None"
        yield f"{what}, which are the recipe's to make; pass a data set of single samples"
        return
    if is_training:
        yield from _batch_contradictions(size, drop_last, section, world_size)
    elif drop_last:
        yield "its drop_last=True, and an evaluation reads every sample once; remove drop_last"
    if not isinstance(loader.dataset, IterableDataset):
        yield from _order_contradictions(sampler, loader.dataset, section, is_training)


def _batching(loader: DataLoader[Any]) -> tuple[int | None, bool, Any]:
    """Batch size, drop_last and sampler, however they were set."""
    batches = loader.batch_sampler
    if loader.batch_size is None and type(batches) is BatchSampler:
        return batches.batch_size, batches.drop_last, batches.sampler
    return loader.batch_size, loader.drop_last, loader.sampler


def _batch_contradictions(size: int, drop_last: bool, section: schema.Data, world_size: int) -> Iterator[str]:
    whole, micro = section.global_batch_size, section.micro_batch_size
    if whole is None:
        yield f"its batch_size={size}, and data.batch_sampler chooses the batches; remove one of the two, {_INSTEAD}"
    elif size * world_size != whole and size not in (whole, micro):
        of_all = f", or {size * world_size} if it is that of each process" if world_size > 1 else ""
        yield (
            f"its batch_size={size}, and data.global_batch_size is {whole}; write data.global_batch_size: "
            f"{size}{of_all}, {_INSTEAD}"
        )
    if drop_last != section.drop_last:
        given = str(drop_last).lower()
        yield f"its drop_last={drop_last}, and data.drop_last is not; write data.drop_last: {given}, {_INSTEAD}"


def _order_contradictions(sampler: Any, dataset: Any, section: schema.Data, is_training: bool) -> Iterator[str]:
    shuffles = _shuffles(sampler, dataset)
    if shuffles is None:
        yield f"its {type(sampler).__name__} chooses samples: {_in_place_of(sampler)}"
    elif is_training and section.weights is not None:
        yield f"its {type(sampler).__name__} contradicts data.weights; remove one of the two, {_INSTEAD}"
    elif is_training and shuffles != section.shuffle:
        setting, given = str(section.shuffle).lower(), str(shuffles).lower()
        yield f"its shuffle={shuffles}, and data.shuffle is {setting}; write data.shuffle: {given}, {_INSTEAD}"


def _shuffles(sampler: Any, dataset: Any) -> bool | None:
    """Whether all samples come once in random order, or in the data set's; None for any other choice."""
    if type(sampler) is SequentialSampler:
        return False
    if type(sampler) is RandomSampler:
        return None if sampler.replacement or sampler.num_samples != len(dataset) else True
    return bool(sampler.shuffle) if type(sampler) is DistributedSampler else None


def _in_place_of(sampler: Sampler[Any]) -> str:
    if isinstance(sampler, WeightedRandomSampler):
        return "remove it, and give data.weights a number for each sample"
    if isinstance(sampler, SubsetRandomSampler):
        return "remove it, and pass torch.utils.data.Subset(data_set, indices)"
    if isinstance(sampler, RandomSampler):
        return "remove it; data.shuffle: true reads each sample once an epoch, data.weights draws with replacement"
    return "remove it; data.shuffle and data.weights say the order, a Subset which samples there are"


def loader_inside(stream: Any) -> DataLoader[Any] | None:
    """The DataLoader whose batches a stream hands on (webdataset's WebLoader does), if there is one near."""
    near = [*held_by(stream)]
    near += [inner for part in near if isinstance(part, list | tuple) for inner in held_by(part)]
    return next((part for part in near if isinstance(part, DataLoader)), None)
