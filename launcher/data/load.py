"""1: data. Data sets, batches, shuffling, worker processes, sharding over ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from launcher.data.batch_samplers import ArithmeticBatches
from launcher.data.batch_steps import Batches, BatchSteps, ByArithmetic, ByCounting, steps_of
from launcher.data.dataloaders import Opened
from launcher.data.getitems import reads_many
from launcher.data.loaders import EvaluationLoader, MicroBatch, Reading, TrainLoader
from launcher.data.open import Opener, by_name, collate_for, transform_for
from launcher.data.own_parts import OwnPartSampler
from launcher.data.permutation import Indices, mix, split
from launcher.data.reading import reading_notes
from launcher.data.sampler import StepSampler, piece
from launcher.data.streams import StreamEvaluationLoader, StreamLoader, has_shards, length_of
from launcher.data.subsets import is_stream, subset
from launcher.data.whole import Collate, whole_batches
from launcher.datasets.arrays import mapped_array
from launcher.device.kind import pins
from launcher.recipe import schema
from launcher.recipe.build import Builder
from launcher.recipe.component import Component
from launcher.recipe.duration import share_of_train
from launcher.text import counted
from launcher.world.world import World

__all__ = [
    "Data",
    "EvaluationLoader",
    "MicroBatch",
    "Part",
    "Reading",
    "TrainLoader",
    "evaluation_parts",
    "load_data",
    "load_evaluation",
]

_EVALUATED = 64  # samples of an evaluation's batch where the recipe names none
Part = tuple[str, str]  # an evaluation set: `validation` or `test`, and its name, empty where there is only one
TRAIN: Part = ("train", "")  # the training set, read as an evaluation reads


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

    @property
    def readers(self) -> int:
        """Over how many readers a stream's shards are spread; 0 where what a step reads does not depend on it."""
        return self.train.readers if isinstance(self.train, StreamLoader) and self.train.is_sharded else 0

    def read_by(self, readers: int) -> None:
        """Spreads a stream's shards over so many readers, as the resumed run did."""
        workers = readers // self.train.sampler.num_replicas
        if workers != max(1, self.train.reading.workers):
            self.train.use_workers(workers)

    def read_parts(self, sizes: Sequence[int]) -> None:
        """Learns how large each rank's own part is, where the training set is split by rank already."""
        if isinstance(self.train.sampler, OwnPartSampler):
            self.train.use_sampler(self.train.sampler.for_sizes(sizes))

    def samples_before(self, step: int) -> int:
        """Samples consumed, over all ranks, when `step` steps are completed."""
        return self.train.sampler.samples_before(step)

    def describe(self) -> str:
        """The sets in a few words, for the plan."""
        sets = [(f"validation {name}".strip(), loader) for name, loader in self.validation.items()]
        sets += [(f"test {name}".strip(), loader) for name, loader in self.test.items()]
        return ", ".join([self.training_set, *(f"{name} {loader.num_samples():,}" for name, loader in sets)])

    @property
    def training_set(self) -> str:
        """The training set in a few words."""
        size = self.train.sampler.dataset_size
        if not isinstance(self.train, StreamLoader):
            return f"{size:,} training samples"
        return "a stream" if length_of(self.train.dataset) is None else f"a stream of {size:,} training samples"


def load_data(
    builder: Builder,
    section: schema.Data,
    world: World,
    *,
    evaluate: schema.Evaluate,
    train: schema.Train,
    seed: int,
    on_gpu: bool = False,
    trains: bool = True,
) -> Data:
    """Opens the data sets and cuts them into batches for this rank.

    Args:
        builder: Builds the data sets.
        section: The recipe's `data`.
        world: Which share of each batch is this rank's.
        evaluate: How much of a set an evaluation reads at once, and in all.
        train: How long a run is over a stream that does not know its length.
        seed: The run's.
        on_gpu: Whether batches are made ready for a transfer.
        trains: Whether it is trained on; a look at a batch does not mind what a DataLoader says of its size.

    Raises:
        RecipeError: An epoch would have no step, a global batch fewer samples than there are ranks, or a stream is
            asked for what it cannot do.
    """
    fit_to_what_is_trained_on(builder, section, seed)
    opener = Opener(builder, section, world.size, trains)
    loaders = _Loaders(builder, section, evaluate, _reading(builder, section, world, seed, on_gpu), world, on_gpu)
    opened = opener.open(section.train, "data.train")
    dataset, held_back = opened.dataset, None
    _check_kind(builder, dataset, section)
    weights = _weights(builder, section.weights, dataset)
    if share := schema.held_back(section):
        kept, rest = _split(builder, dataset, share, seed)
        held_back = _held_back(opener, section, opened, rest)
        dataset, weights = subset(dataset, kept), None if weights is None else weights[kept]
    loader = loaders.train(dataset, weights, train, opened.collate)
    validation, test = (
        {
            name: loaders.evaluation(opener.open(component, key), key)
            for name, key, component in by_name(sets, f"data.{part}")
        }
        for part, sets in _own_sets(section)
    )
    if held_back is not None:
        validation = {"": loaders.evaluation(held_back, "data.validation")}
    for evaluated in (*validation.values(), *test.values()):
        _check_classes(builder, evaluated, dataset)
    return Data(loader, validation, test, (*loaders.notes, *opener.notes))


def evaluation_parts(section: schema.Data) -> list[Part]:
    """The evaluation sets that a recipe names; nothing is opened."""
    share = [("validation", "")] if schema.held_back(section) else []
    return share + [(part, name) for part, name, _, _ in _evaluation_sets(section)]


def _evaluation_sets(section: schema.Data) -> Iterator[tuple[str, str, str, Component]]:
    """`validation` or `test`, the set's name, its key and its component."""
    for part, sets in _own_sets(section):
        for name, key, component in by_name(sets, f"data.{part}"):
            yield part, name, key, component


def _own_sets(section: schema.Data) -> list[tuple[str, Any]]:
    """`validation`, unless it is a share of the training set, and `test`, with what the recipe says of each."""
    validation = None if schema.held_back(section) else section.validation
    return [("validation", validation), ("test", section.test)]


def load_evaluation(
    builder: Builder,
    section: schema.Data,
    world: World,
    parts: Sequence[Part],
    *,
    evaluate: schema.Evaluate,
    seed: int,
    on_gpu: bool = False,
) -> dict[Part, EvaluationLoader]:
    """Opens some of the evaluation sets and nothing else, unless one is a share of the training set.

    Args:
        builder: Builds the data sets.
        section: The recipe's `data`.
        world: Who shares in an evaluation.
        parts: Which sets, of `evaluation_parts`; or `TRAIN`, the samples that are trained on.
        evaluate: How much of a set an evaluation reads at once, and in all.
        seed: The run's.
        on_gpu: Whether batches are made ready for a transfer.

    Raises:
        RecipeError: A stream is asked for what it cannot do.
    """
    fit_to_what_is_trained_on(builder, section, seed)
    opener = Opener(builder, section, world.size, trains=False)
    loaders = _Loaders(builder, section, evaluate, _reading(builder, section, world, seed, on_gpu), world, on_gpu)
    evaluation_sets: dict[Part, EvaluationLoader] = {}
    if TRAIN in parts:
        opened = opener.open(section.train, "data.train")
        if share := schema.held_back(section):
            opened = replace(opened, dataset=subset(opened.dataset, _split(builder, opened.dataset, share, seed)[0]))
        evaluation_sets[TRAIN] = loaders.evaluation(opened, "data.train")
    if (share := schema.held_back(section)) and ("validation", "") in parts:
        opened = opener.open(section.train, "data.train")
        _check_kind(builder, opened.dataset, section)
        _, rest = _split(builder, opened.dataset, share, seed)
        held_back = _held_back(opener, section, opened, rest)
        evaluation_sets["validation", ""] = loaders.evaluation(held_back, "data.validation")
    for part, name, key, component in _evaluation_sets(section):
        if (part, name) in parts:
            evaluation_sets[part, name] = loaders.evaluation(opener.open(component, key), key)
    return evaluation_sets


def _reading(builder: Builder, section: schema.Data, world: World, seed: int, on_gpu: bool) -> Reading:
    return Reading(
        collate=collate_for(builder, section, "train"),
        timeout_seconds=section.timeout.amount,
        seed=seed,
        sample_seeds=section.sample_seeds,
        pin_memory=on_gpu and pins(),
        rank=world.rank,
        on_device=transform_for(builder, section, "train"),
    )


class _Loaders:
    """Makes the loaders of one rank, and notes what the plan should say of them."""

    def __init__(
        self,
        builder: Builder,
        section: schema.Data,
        evaluate: schema.Evaluate,
        reading: Reading,
        world: World,
        on_gpu: bool,
    ):
        self.builder, self.section, self.evaluate, self.seed = builder, section, evaluate, reading.seed
        self.world, self.reading, self.on_gpu = world, reading, on_gpu
        collate, change = collate_for(builder, section, "evaluate"), transform_for(builder, section, "evaluate")
        self.evaluating = replace(reading, collate=collate, on_device=change)
        self.notes: list[str] = []

    def train(
        self, dataset: Any, weights: np.ndarray | None, train: schema.Train, collate: Collate | None = None
    ) -> TrainLoader:
        """The training set, read by number or as a stream, with the collate that came with it, if one did."""
        self.reading = replace(self.reading, collate=collate or self.reading.collate)
        if self.section.split_by_rank:  # samples of one number are others on each rank, and draw other numbers
            self.reading = replace(self.reading, seed=mix(self.seed, self.world.rank))
            self.notes.append("data.split_by_rank: each process reads its own part of the training set")
        if is_stream(dataset):
            return self._stream(dataset, train)
        if weights is not None:
            self.notes.append("samples are drawn by weight, with replacement")
        if self.section.batch_sampler is not None:
            sampler: StepSampler = self._batch_steps(dataset, self.section.batch_sampler, train)
        else:
            sampler = self._sampler(dataset, shuffle=self.section.shuffle, weights=weights)
            self._check_steps(sampler)
        workers = self._workers(dataset, self.reading.collate)
        whole = whole_batches(dataset, self.reading.collate) is not None
        self.notes += reading_notes(dataset, self.reading.collate)
        is_measured = self.section.workers == "auto" and workers > 0
        if is_measured:
            self.notes.append(f"data.workers: auto: the first steps show whether up to {workers} workers should read")
        elif workers:
            what = "whole batches" if whole else "samples"
            self.notes.append(f"{workers} worker process{'es a rank read' if workers > 1 else ' a rank reads'} {what}")
        elif not whole:
            how = "as its __getitems__ gives them," if reads_many(dataset) else "one by one"
            self.notes.append(f"samples are read {how} in the training process itself")
        loader = TrainLoader(dataset, sampler, replace(self.reading, workers=0 if is_measured else workers))
        loader.measure_workers(workers if is_measured else 0)
        return loader

    def _batch_steps(self, dataset: Any, component: Component, train: schema.Train) -> BatchSteps:
        """Steps of the batches that the recipe's batch sampler chooses."""
        chosen, wrong = self.builder.build(component, data_source=dataset), self.builder.wrong
        if isinstance(chosen, ArithmeticBatches):
            batches: Batches = ByArithmetic(chosen, self.seed)
        else:
            if steps_of(chosen) is None and train.steps is None:
                key = "train.epochs" if train.epochs is not None else "train.time"
                name = type(chosen).__name__
                raise wrong(key, f"{name} does not know how many batches an epoch has; set train.steps")
            batches = ByCounting(chosen, dataset, self.seed, train.steps)
        if not batches.steps_per_epoch:
            raise wrong("data.batch_sampler", "an epoch has no batch; use a smaller one, or drop_last: false")
        sampler = BatchSteps(
            dataset,
            batches,
            rank=self.world.rank,
            world_size=self.world.size,
            micro_batch_size=schema.micro_batch(self.section),
            seed=self.seed,
        )
        self.notes.append(f"{type(chosen).__name__} chooses the samples of each step")
        if (size := sampler.batch_size(0)) < self.world.size:
            message = f"its first batch has {size} samples, which {self.world.size} processes cannot share; use fewer"
            raise wrong("data.batch_sampler", f"{message} processes, or larger batches")
        return sampler

    def _stream(self, dataset: Any, train: schema.Train) -> StreamLoader:
        sampler = self._sampler(range(self._stream_length(dataset, train)), shuffle=False)
        self._check_steps(sampler)
        loader = StreamLoader(dataset, sampler, replace(self.reading, workers=self._stream_workers(dataset)))
        self.notes.append(loader.describe())
        return loader

    def evaluation(self, opened: Opened, key: str) -> EvaluationLoader:
        """A validation or test set."""
        section, evaluate, dataset = self.section, self.evaluate, opened.dataset
        reading = replace(self.evaluating, collate=opened.collate or self.evaluating.collate)
        share = -(-(section.global_batch_size or _EVALUATED) // self.world.size)
        size = evaluate.batch_size or schema.micro_batch(section) or share
        limit = int(evaluate.limit.amount) if evaluate.limit else None
        if length_of(dataset) == 0:
            raise self.builder.wrong(key, "the set is empty; check its path and split, or remove it")
        if not is_stream(dataset):
            self.notes += [note for note in reading_notes(dataset, reading.collate) if note not in self.notes]
            reading = replace(reading, workers=self._workers(dataset, reading.collate))
            return EvaluationLoader(dataset, size, reading, limit, key)
        if limit is None and length_of(dataset) is None:
            message = f"{type(dataset).__name__} is a stream without a length; set evaluate.limit, as in '50 batches'"
            raise self.builder.wrong(key, message)
        return StreamEvaluationLoader(dataset, size, reading, limit, key)

    def _sampler(self, dataset: Any, shuffle: bool, weights: np.ndarray | None = None) -> StepSampler:
        settings: dict[str, Any] = {
            "global_batch_size": self._batch_size,
            "rank": self.world.rank,
            "world_size": self.world.size,
            "micro_batch_size": schema.micro_batch(self.section),
            "seed": self.seed,
            "shuffle": shuffle,
            "drop_last": self.section.drop_last,
            "weights": weights,
        }
        if self.section.split_by_rank:  # the others' parts are as large as this one until they have said
            return OwnPartSampler([len(dataset)] * self.world.size, **settings)
        return StepSampler(dataset, **settings)

    @property
    def _batch_size(self) -> int:
        assert self.section.global_batch_size is not None, "checked where the recipe is read"
        return self.section.global_batch_size

    def _workers(self, dataset: Any, collate: Collate | None) -> int:
        """As many as the recipe says; of itself none where a whole batch is read at once."""
        asked = self.section.workers
        if isinstance(asked, int):
            return asked
        return 0 if whole_batches(dataset, collate) else fair_workers(self.world, self.on_gpu)

    def _stream_workers(self, dataset: Any) -> int:
        asked = self.section.workers
        wanted = fair_workers(self.world, self.on_gpu) if asked == "auto" else asked
        ranks = 1 if self.section.split_by_rank else self.world.size
        while wanted > 1 and not has_shards(dataset, ranks * wanted):
            if asked != "auto":
                message = f"{type(dataset).__name__} has no shards for so many, and each would read all of it"
                remedy = "use 0 or 1, or give it a method shard(num_shards, index)"
                raise self.builder.wrong("data.workers", f"{message}; {remedy}")
            wanted -= 1
        return wanted

    def _stream_length(self, dataset: Any, train: schema.Train) -> int:
        """Samples of an epoch: the stream's if it knows, else those of the whole run."""
        length = length_of(dataset)
        if length is not None:
            return length
        if train.steps is None:
            key = "train.epochs" if train.epochs is not None else "train.time"
            message = f"{type(dataset).__name__} is a stream without a length; set train.steps"
            raise self.builder.wrong(key, message)
        batch, ranks = self._batch_size, self.world.size
        start, stop = piece(batch, ranks, self.world.rank) if self.section.split_by_rank else (0, batch)
        return train.steps * (stop - start)

    def _check_steps(self, sampler: StepSampler) -> None:
        size, batch, ranks = sampler.dataset_size, self._batch_size, self.world.size
        if isinstance(sampler, OwnPartSampler) and not all(sampler.sizes):
            raise self.builder.wrong("data.split_by_rank", "this process's part of the training set is empty")
        if sampler.steps_per_epoch == 0:
            why = "is empty" if size == 0 else f"has {size} samples, fewer than one global batch of {batch}"
            remedy = "check its path and split" if size == 0 else f"use drop_last: false, or a batch of at most {size}"
            message = f"an epoch has no step: the training set {why}; {remedy}"
            raise self.builder.wrong("data.train", message)
        if ranks > min(batch, size):
            message = (
                f"{min(batch, size)} samples cannot be shared by {ranks} processes; use at least {ranks}, or fewer "
            )
            raise self.builder.wrong("data.global_batch_size", f"{message}processes")


def fair_workers(world: World, on_gpu: bool) -> int:
    """Worker processes of one rank: its fair share of the CPUs, less what a CPU run computes with."""
    share = world.cpus
    return max(0, min(8, share - 1)) if on_gpu else (min(4, share // 2) if share > 2 else 0)


def fit_to_what_is_trained_on(builder: Builder, section: schema.Data, seed: int) -> None:
    """Has the training set compute what it computes of rows without those that are held back of it, and their set too.

    It does so as soon as it is built, whoever asks for it first: another set may take its scale from it.

    Args:
        builder: Builds the data sets, but has built none yet.
        section: The recipe's `data`.
        seed: The run's.
    """
    share = schema.held_back(section)

    def fit(dataset: Any) -> None:
        if share is not None and hasattr(dataset, "fit_rows"):
            dataset.fit_rows(torch.from_numpy(_split(builder, dataset, share, seed)[0]))

    builder.finish[section.train.path] = fit
    if share is not None and isinstance(section.validation, Component):  # the same rows, built once more
        builder.finish[section.validation.path] = fit


def _split(builder: Builder, dataset: Any, holdout: str, seed: int) -> tuple[Indices, Indices]:
    """What is left to train on, and what `10% of train` holds back."""
    if len(dataset) < 2:
        raise builder.wrong(
            "data.validation", f"the training set has {counted(len(dataset), 'sample')}, of which none can be held back"
        )
    share = share_of_train(holdout)
    assert share is not None, "checked where the recipe is read"
    return split(len(dataset), share.amount / 100, seed)


def _held_back(opener: Opener, section: schema.Data, train: Opened, numbers: Indices) -> Opened:
    """These samples of the training set, or of the same data set as the recipe builds it for the share."""
    if not isinstance(section.validation, Component):
        return Opened(subset(train.dataset, numbers), train.collate)
    own = opener.open(section.validation, "data.validation")
    length = None if is_stream(own.dataset) else length_of(own.dataset)
    if length != (size := len(train.dataset)):
        message = f"has {'no' if length is None else f'{length:,}'} samples by number, and data.train has {size:,}: "
        raise opener.builder.wrong("data.validation", f"{message}a share needs the same ones, in the same order")
    return Opened(subset(own.dataset, numbers), own.collate)


def _check_kind(builder: Builder, dataset: Any, section: schema.Data) -> None:
    name = type(dataset).__name__
    asked = {
        "weights": section.weights is not None,
        "validation": schema.held_back(section) is not None,
        "shuffle": section.shuffle and "shuffle" in section.model_fields_set,
        "batch_sampler": section.batch_sampler is not None,
    }
    if not is_stream(dataset):
        if length_of(dataset) is None:
            raise builder.wrong("data.train", f"{name} has no length; a data set with __getitem__ needs a __len__")
    elif refused := [key for key, is_asked in asked.items() if is_asked]:
        message = f"{name} is a stream, of which no samples can be picked by number; remove it"
        raise builder.wrong(f"data.{refused[0]}", message)


def _check_classes(builder: Builder, loader: EvaluationLoader, train: Any) -> None:
    """Data sets that name their classes must number them alike, or scores are silently nonsense."""
    ours, theirs = (getattr(dataset, "classes", None) for dataset in (loader.dataset, train))
    if not isinstance(ours, list | tuple) or not isinstance(theirs, list | tuple):
        return
    for number, name in enumerate(ours):
        there = f"'{theirs[number]}'" if number < len(theirs) else "missing"
        if number >= len(theirs) or theirs[number] != name:
            message = f"its class {number} is '{name}', which in the training set is {there}: targets would be others; "
            raise builder.wrong(loader.name, f'{message}give it classes: "${{data.train.classes}}"')


def _weights(builder: Builder, section: Component | str | None, dataset: Any) -> np.ndarray | None:
    """A weight for each sample of the whole training set, of which a part may be held back later."""
    if section is None:
        return None
    if isinstance(section, Component):
        function: Callable[..., Any] | Any = builder.build(section)
        try:
            numbers = function(dataset) if callable(function) else function
        except Exception as error:
            raise builder.wrong("data.weights", f"{type(error).__name__}: {error}") from error
    else:
        numbers = _array_in(builder, builder.folder / Path(section).expanduser())
    try:
        weights = np.asarray(numbers, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise builder.wrong("data.weights", f"they are no numbers: {error}; give one for each sample") from error
    if weights.shape != (len(dataset),) or not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
        message = f"must be {len(dataset)} finite numbers, none negative, not all zero; got shape {weights.shape}"
        raise builder.wrong("data.weights", message)
    return weights


def _array_in(builder: Builder, path: Path) -> Any:
    try:
        return mapped_array(path)
    except ValueError as error:
        raise builder.wrong("data.weights", f"{error}; a number for each sample is wanted") from error
