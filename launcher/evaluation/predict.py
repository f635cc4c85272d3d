"""`launcher predict`: a saved model's outputs for every sample of a set, in order and batch by batch."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from launcher.checkpoints.saved_run import Saved, builder_of
from launcher.data.load import EvaluationLoader
from launcher.data.loaders import MicroBatch
from launcher.data.subsets import class_names
from launcher.data.transfer import moved
from launcher.datasets.unlabelled import JsonRows, Lines
from launcher.device.coordination import Coordinator, packed, unpacked
from launcher.errors import LauncherError
from launcher.evaluation.deciding import Deciders, of_ctc
from launcher.evaluation.heads import Heads, Rows, columns_of_rows, described, listed, on_host, one_more
from launcher.evaluation.in_step import in_step
from launcher.evaluation.modes import own_randomness
from launcher.evaluation.new_data import with_path
from launcher.evaluation.offline import Opened, opened, sets_of
from launcher.evaluation.output_files import Write, check_form, output_file
from launcher.evaluation.outputs import check_alike
from launcher.evaluation.predictions import beside
from launcher.objective.batch import Picks
from launcher.recipe.schema import Recipe
from launcher.world.world import World


def predict(
    saved: Saved,
    split: str | None,
    target: Path,
    world: World,
    *,
    data: Path | None = None,
    directory: Path = Path(),
    cpu: bool = False,
) -> tuple[int, Sequence[str]]:
    """Writes a model's outputs for every sample of a set, in order and batch by batch.

    Args:
        saved: The weights and their recipe.
        split: Which set; None for the test set, else the validation set.
        target: `.csv`, `.parquet` or `.jsonl`, whole or not at all; `-` is standard output. Rank 0 writes.
        world: The processes, each of which computes a part of every few batches.
        data: A file or folder that is read in place of that set, in its way.
        directory: From where file names in it are.
        cpu: Whether to stay on the CPU.

    Returns:
        How many there were, and a line for each picture that was left out: why.

    Raises:
        UsageError: There is no such set, no such form, or nothing to be read.
        LauncherError: Nothing of what the model gives has a row for each sample.
    """
    check_form(target)
    builder = builder_of(saved)
    if data is not None:
        recipe = with_path(saved.recipe, builder, data, split, directory)
        saved, split, builder = replace(saved, recipe=recipe), "test", builder.for_recipe(recipe)
    part = _predicted(saved.recipe, split)
    with opened(saved, world, [part], cpu, builder) as model:
        rows, loader = 0, model.sets[part]
        reading = Reading(model, loader)
        with output_file(target) if world.is_first else nullcontext(_written_by_first) as write:
            for batch in reading.batches():
                rows += _write(write, batch, rows, reading)
        skipped = getattr(loader.dataset, "skipped", None)
        return rows, tuple(skipped() if callable(skipped) else ())


def _write(write: Write, batch: Mapping[str, Any], first: int, reading: Reading) -> int:
    """Writes a batch, and gives how many rows it has."""
    numbers = range(first, first + batch["samples"])
    columns, names = reading.columns(batch)
    write({"index": list(numbers), **beside(reading.loader.dataset, numbers), **columns}, names)
    return len(numbers)


def _written_by_first(columns: Mapping[str, Sequence[Any]], names: Mapping[str, Sequence[str]] | None = None) -> None:
    """Other ranks write nothing."""


def outputs_of(saved: Saved, split: str | None, *, cpu: bool = False) -> Any:
    """A model's outputs for every sample of a set, in order, on the CPU.

    Args:
        saved: The weights and their recipe.
        split: See `predict`.
        cpu: Whether to stay on the CPU.

    Returns:
        A tensor [samples, …]; of a model with several outputs a mapping of such by their names; of one that gives a
        mapping or a text for each sample a list of these.

    Raises:
        LauncherError: Nothing of what the model gives has a row for each sample, or batches do not fit together.
    """
    part = _predicted(saved.recipe, split)
    with opened(saved, World(), [part], cpu) as model:
        batches = [batch["heads"] for batch in Reading(model, model.sets[part]).batches()]
    whole = {key: _joined(key, [heads[key] for heads in batches]) for key in batches[0]}
    return next(iter(whole.values())) if len(whole) == 1 else whole


def _joined(key: str, parts: Sequence[Rows]) -> Rows:
    tensors = [part for part in parts if isinstance(part, torch.Tensor)]
    if len(tensors) < len(parts):
        return [row for part in parts for row in part]
    try:
        check_alike(tensors)
    except ValueError as error:
        raise LauncherError(f"predict{f': {key}' if key else ''}: {error}") from error
    return torch.cat(tensors)


def _predicted(recipe: Recipe, split: str | None) -> tuple[str, str]:
    sets = sets_of(recipe, split)
    return next((part for part in sets if part[0] == "test"), sets[0])


class Reading:
    """The outputs of a saved model for a set, and what they say.

    Args:
        model: The model.
        loader: The set.

    Attributes:
        loader: The set.
        names: Of its classes in the order of their numbers, where it has them.
    """

    def __init__(self, model: Opened, loader: EvaluationLoader):
        self.loader, self.names = loader, class_names(loader.dataset)
        self._model = model
        self._heads = Heads(model.objective.layout, _named(model), partial(of_ctc, model.objective))
        self._deciders = Deciders(model.objective, loader.dataset, self.names)
        self._keys: list[str] = []  # of the outputs, as the first batch has them
        self._columns: list[str] = []  # and of the mappings among them

    def batches(self) -> Iterator[dict[str, Any]]:
        """All ranks' batches in order, on rank 0, in host memory: `samples`, `heads` by key, and `scores` of deciders.

        Raises:
            LauncherError: A model cannot take a row, or gives nothing with a row for each sample.
        """
        model, bare = self._model, self._model.model.bare.eval()
        layout, device, coordinator = model.objective.layout, model.device.torch_device, model.device.coordinator
        is_begun = False
        with torch.no_grad():
            for batch in in_step(self.loader, coordinator, in_rounds=True):
                data, change = moved(batch.data, device), self.loader.reading.on_device
                data = data if change is None else change(data)
                args, kwargs = layout.inputs(data)
                try:
                    result = model.objective.own_gradients.call(bare, partial(bare, *args, **kwargs))
                except Exception as error:
                    if isinstance(self.loader.dataset, JsonRows):
                        raise LauncherError(self.loader.dataset.refusal(batch.first, batch.samples, error)) from error
                    if isinstance(error, TypeError) and model.objective.step is not None:
                        raise LauncherError(_called_otherwise(error)) from error
                    raise
                own = self._read(result, data, batch) if batch.samples else None
                if not is_begun and self._heads.left_out and coordinator.rank == 0:
                    print(_left_out(self._heads.left_out), file=sys.stderr)
                is_begun = True
                yield from _told(coordinator, own)

    def _read(self, result: Any, data: Any, batch: MicroBatch) -> dict[str, Any]:
        """What is told of a batch: tensors, plain lists and mappings."""
        heads = self._heads.of(result, batch.samples, lambda: self._of_one_more(data, batch.samples))
        scores = self._deciders.scores(result, data, batch, heads)
        dataset = self.loader.dataset
        settled = dataset.last if isinstance(dataset, Lines) else lambda part: part
        return {
            "samples": batch.samples,
            "heads": {key: on_host(settled(part)) for key, part in heads.items()},
            "scores": [on_host(settled(part)) if isinstance(part, torch.Tensor) else part for part in scores],
        }

    def _of_one_more(self, data: Any, samples: int) -> Any:
        """The model's result of a batch with one sample more; None where there is none, or all ranks would have to."""
        model = self._model
        if model.shards is not None:
            return None
        args, kwargs = model.objective.layout.inputs(data)
        try:
            more = [one_more(part, samples) for part in args], one_more(dict(kwargs), samples)
            with own_randomness(model.recipe.seed, model.device.world.rank, model.device.torch_device):
                call = partial(model.model.bare, *more[0], **more[1])
                return model.objective.own_gradients.call(model.model.bare, call)
        except Exception:  # it takes batches of one size, or inputs that are none of the usual
            return None

    def columns(self, batch: Mapping[str, Any]) -> tuple[dict[str, list[Any]], dict[str, Sequence[str]]]:
        """The columns of a batch, and what the parts of some are called.

        Raises:
            LauncherError: There are other outputs than in the first batch, or other keys in those for each sample.
        """
        heads, outputs = batch["heads"], columns_of_rows(batch["heads"])
        self._keys, self._columns = self._keys or list(heads), self._columns or list(outputs)
        if odd := set(heads) ^ set(self._keys) or set(outputs) - set(self._columns):
            raise LauncherError(
                f"the model gives {', '.join(sorted(odd))} for some batches only; pick what each has with batch.outputs"
            )
        outputs = {name: outputs.get(name, [None] * batch["samples"]) for name in self._columns}
        tails = {key: f".{key}" if len(outputs) > 1 else "" for key in outputs}
        decided, named = self._deciders.columns(batch["scores"], outputs, tails)
        columns = decided | {f"output{tails[key]}": listed(rows) for key, rows in outputs.items()}
        if not self.names:
            return columns, {}
        meant = columns if len(outputs) == 1 else [name for name in columns if f".{name.partition('.')[2]}" in named]
        return columns, dict.fromkeys(meant, self.names)


def _named(model: Opened) -> list[int | str]:
    """What losses and metrics get of a result by `_outputs_`."""
    of_metrics = (component.options.get("_outputs_") for component in model.recipe.evaluate.metrics.values())
    picks: list[Picks | None] = [*(term.outputs for term in model.objective.terms), *of_metrics]
    return [key for some in picks if some for key in (some.values() if isinstance(some, Mapping) else some)]


def _called_otherwise(error: TypeError) -> str:
    return (
        f"{error}: train.step calls the model in its own way, and predictions with what batch.inputs names; name there "
        "all that its forward needs, or give that defaults"
    )


def _left_out(parts: Mapping[str, str]) -> str:
    return f"left out, with no row for each sample: {described(parts)}; batch.outputs names what is meant"


def _told(coordinator: Coordinator, batch: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """What all ranks have computed in a round, on rank 0, in their order; of one whose part is used up nothing."""
    if coordinator.world_size == 1 and batch is not None:
        yield batch
        return
    messages = coordinator.gather(b"" if batch is None else packed(batch))
    yield from (unpacked(message) for message in messages if message and coordinator.rank == 0)
