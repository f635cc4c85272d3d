"""1: data. Data sets, batches, shuffling, worker processes, sharding over ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, Subset

from launcher.data.loaders import EvaluationLoader, MicroBatch, Reading, TrainLoader
from launcher.data.permutation import split
from launcher.data.sampler import StepSampler
from launcher.errors import Problem, RecipeError
from launcher.launch.world import World, usable_cpus
from launcher.recipe import schema
from launcher.recipe.component import Component
from launcher.recipe.components import Workshop
from launcher.recipe.document import Document
from launcher.recipe.duration import Duration

__all__ = ["Data", "EvaluationLoader", "MicroBatch", "Reading", "TrainLoader", "load_data"]


@dataclass(frozen=True)
class Data:
    """What phase 1 hands to the others.

    Attributes:
        train: This rank's training batches.
        validation: Evaluation sets by name; the name is empty where there is only one.
        test: Likewise, evaluated once at the end.
        notes: What was chosen by the program, for the plan.
    """

    train: TrainLoader
    validation: dict[str, EvaluationLoader]
    test: dict[str, EvaluationLoader]
    notes: tuple[str, ...] = field(default=())

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one pass over the training data."""
        return self.train.sampler.steps_per_epoch

    def samples_before(self, step: int) -> int:
        """Samples consumed, over all ranks, when `step` steps are completed."""
        sampler = self.train.sampler
        epochs, rest = divmod(step, sampler.steps_per_epoch)
        batch = sampler.global_batch_size
        whole = sampler.steps_per_epoch * batch if sampler.drop_last else sampler.dataset_size
        return epochs * whole + rest * batch


def load_data(workshop: Workshop, world: World, *, on_gpu: bool = False) -> Data:
    """Opens the data sets and cuts them into batches for this rank.

    Args:
        workshop: Builds the data sets of its recipe.
        world: Which share of each batch is this rank's.
        on_gpu: Whether batches are made ready for a transfer.

    Raises:
        RecipeError: An epoch would have no step, or a global batch fewer samples than there are ranks.
    """
    section, seed, evaluation = workshop.recipe.data, workshop.recipe.seed, workshop.recipe.evaluate
    document = workshop.recipe.document
    dataset = workshop.build(section.train)
    _check_training_set(dataset, section, document)
    train, validation = _validation_sets(section, workshop, dataset, seed)
    sampler = StepSampler(
        train,
        global_batch_size=section.global_batch_size,
        rank=world.rank,
        world_size=world.size,
        micro_batch_size=section.micro_batch_size,
        seed=seed,
        shuffle=section.shuffle,
        drop_last=section.drop_last,
        weights=_weights(section.weights, workshop, train, document),
    )
    _check_steps(sampler, section, world, document)
    collate = workshop.build(section.collate) if section.collate else None
    workers = _workers(section.workers, world, on_gpu)
    reading = Reading(collate, workers, section.timeout.amount, seed, section.sample_seeds, on_gpu)
    loader = TrainLoader(train, sampler, reading)
    tests = {name: workshop.build(component) for name, component in _by_name(section.test).items()}
    sizes = _EvaluationBatches(section, evaluation, world)
    notes = (
        [] if loader.reads_whole_batches else [f"{workers} worker process{'es' * (workers != 1)} a rank read samples"]
    )
    if section.weights is not None:
        notes.append("samples are drawn by weight, with replacement")
    return Data(
        loader,
        {name: sizes.loader(one, reading) for name, one in validation.items()},
        {name: sizes.loader(one, reading) for name, one in tests.items()},
        tuple(notes),
    )


class _EvaluationBatches:
    """The batch size of evaluation: stated, or the training's micro-batch."""

    def __init__(self, section: schema.Data, evaluation: schema.Evaluate, world: World):
        share = -(-section.global_batch_size // world.size)
        self.size = evaluation.batch_size or section.micro_batch_size or share
        self.limit = int(evaluation.limit.amount) if evaluation.limit else None

    def loader(self, dataset: Any, reading: Reading) -> EvaluationLoader:
        return EvaluationLoader(dataset, self.size, reading, self.limit)


def _by_name(section: Component | Mapping[str, Component] | str | None) -> dict[str, Component]:
    if isinstance(section, Component):
        return {"": section}
    return dict(section) if isinstance(section, Mapping) else {}


def _validation_sets(section: schema.Data, workshop: Workshop, dataset: Any, seed: int) -> tuple[Any, dict[str, Any]]:
    """The training set (what is left of it) and the validation sets."""
    if not isinstance(section.validation, str):
        return dataset, {name: workshop.build(one) for name, one in _by_name(section.validation).items()}
    share = Duration.parse(section.validation.partition(" of ")[0])
    assert share is not None
    train, validation = split(len(dataset), share.amount / 100, seed)
    return _subset(dataset, train), {"": _subset(dataset, validation)}


def _subset(dataset: Any, indices: np.ndarray) -> Any:
    if hasattr(dataset, "get_batch") or type(dataset) is torch.utils.data.TensorDataset:
        return Part(dataset, indices)
    return Subset(dataset, indices.tolist())


class Part:
    """Some samples of a data set that reads whole batches, which this does too."""

    def __init__(self, dataset: Any, indices: np.ndarray):
        self.dataset = dataset
        self.indices = torch.from_numpy(indices)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[int(self.indices[index])]

    def get_batch(self, indices: torch.Tensor) -> Any:
        """Whole batches of the underlying data set."""
        chosen = self.indices[indices]
        if hasattr(self.dataset, "get_batch"):
            return self.dataset.get_batch(chosen)
        return tuple(tensor[chosen] for tensor in self.dataset.tensors)


def _workers(asked: int | str, world: World, on_gpu: bool) -> int:
    """Worker processes of one rank: its fair share of the CPUs, less what a CPU run computes with."""
    if isinstance(asked, int):
        return asked
    share = usable_cpus() // world.local_size
    return max(0, min(8, share - 1)) if on_gpu else (min(4, share // 2) if share > 2 else 0)


def _weights(
    section: Component | str | None, workshop: Workshop, dataset: Any, document: Document
) -> np.ndarray | None:
    if section is None:
        return None
    if isinstance(section, Component):
        function = workshop.build(section)
        found = function(dataset) if callable(function) else function
    else:
        found = np.load(document.folder / Path(section), allow_pickle=False)
    weights = np.asarray(found, dtype=np.float64)
    if weights.shape != (len(dataset),) or not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
        raise _wrong(
            document,
            "data.weights",
            f"must be {len(dataset)} finite numbers, none negative, not all zero; got shape {weights.shape}",
        )
    return weights


def _check_training_set(dataset: Any, section: schema.Data, document: Document) -> None:
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        name = type(dataset).__name__
        raise _wrong(document, "data.train", f"{name} has no length; a training set needs __getitem__ and __len__")
    if isinstance(section.validation, str) and len(dataset) < 2:
        raise _wrong(document, "data.validation", f"{len(dataset)} samples cannot be split")


def _check_steps(sampler: StepSampler, section: schema.Data, world: World, document: Document) -> None:
    size, batch = sampler.dataset_size, section.global_batch_size
    if sampler.steps_per_epoch == 0:
        why = "is empty" if size == 0 else f"has {size} samples, fewer than one global batch of {batch}"
        remedy = "check its path and split" if size == 0 else f"use drop_last: false, or a batch of at most {size}"
        raise _wrong(document, "data.train", f"an epoch has no step: the training set {why}; {remedy}")
    if world.size > min(batch, size):
        raise _wrong(
            document,
            "data.global_batch_size",
            f"{min(batch, size)} samples cannot be shared by {world.size} processes; "
            f"use at least {world.size}, or fewer processes",
        )


def _wrong(document: Document, key: str, message: str) -> RecipeError:
    path = tuple(key.split("."))
    return RecipeError([Problem(str(document.origin(path)), key, message)])
