"""A saved model at work without training: opened, and measured on a set."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import nn

from launcher.checkpoints.rebuilt import base_of
from launcher.checkpoints.saved_run import Saved, builder_of, evaluated_on, fill
from launcher.data.load import TRAIN, EvaluationLoader, Part, evaluation_parts, load_evaluation
from launcher.data.same_data import agree_on
from launcher.data.seeds import seed_everything
from launcher.device.device import Device, check_device, open_device, use_cpu
from launcher.errors import UsageError
from launcher.evaluation.best import BestTracker
from launcher.evaluation.evaluation import Evaluation, Look, metrics_of, unlooked
from launcher.evaluation.output_files import check_form
from launcher.evaluation.predictions import Predictions, write_predictions
from launcher.model.build import Model, build_model, shard_loss
from launcher.model.ema import Average, Ema, Swa
from launcher.model.rows import read_whole
from launcher.model.sharding import Shards, sharded_parts
from launcher.objective.build import build_objective
from launcher.objective.loss import Objective, loss_key
from launcher.objective.run_length import At
from launcher.objective.settle import settle_evaluation, take_up
from launcher.recipe.build import Builder
from launcher.recipe.schema import Recipe
from launcher.runs.tracking.own_code import stand_in
from launcher.runs.tracking.tracking import Line, NoTracking
from launcher.text import suggestion
from launcher.world.world import World


@dataclass
class Opened:
    """A saved model on its device, with the sets that were asked for.

    Attributes:
        recipe: What it was built from.
        model: The saved weights in it.
        objective: The loss.
        device: Where to compute.
        average: The average of the weights, where it was saved.
        sets: This rank's loaders.
        builder: Builds what else the recipe names.
        shards: What this process holds of model and losses, where they are sharded.
        optimizer: None: nothing is trained.
    """

    recipe: Recipe
    model: Model
    objective: Objective
    device: Device
    average: Average | None
    sets: Mapping[Part, EvaluationLoader]
    builder: Builder
    shards: Shards | None = None
    optimizer: None = None


@contextmanager
def opened(
    saved: Saved, world: World, parts: Sequence[Part], cpu: bool, builder: Builder | None = None
) -> Iterator[Opened]:
    """Builds the model of a recipe around saved weights. The training set, which may be gone, is not opened.

    Args:
        saved: The weights and their recipe.
        world: The processes.
        parts: The sets to open.
        cpu: Whether to stay on the CPU.
        builder: Of that recipe, where something of it is built already.

    Raises:
        LauncherError: The weights do not fit, or what training would end with.
    """
    recipe = saved.recipe
    builder = builder or builder_of(saved)
    builder.check()
    on_cpu = use_cpu(world, cpu)
    where = evaluated_on(recipe.device, world, on_cpu)
    check_device(where, world, on_cpu)
    seed_everything(recipe.seed)
    sets = load_evaluation(
        builder, recipe.data, world, parts, evaluate=recipe.evaluate, seed=recipe.seed, on_gpu=not on_cpu
    )
    _check_sizes(sets, world)
    with open_device(where, world, cpu=cpu, launch=recipe.launch) as device:
        if world.size > 1:
            agree_on(builder, recipe.data, {loader.name: loader for loader in sets.values()}, device.coordinator)
        stand_in(recipe.track.trackers, builder.own_folders())
        start = base_of(builder, recipe)
        model = build_model(builder, recipe.model, where, device, seed=recipe.seed, start=start, shares=False)
        objective = build_objective(builder, recipe.loss, recipe.batch, recipe.train)
        objective.under(device.autocast)
        if any(reading is None or reading.found == "stated" for reading in objective.readings.values()):
            take_up(objective, saved.readings())
        objective.to(device.torch_device)
        losses = {loss_key(name): loss for name, loss in objective.modules.items()}
        if model.sharding is not None:
            for key, loss in losses.items():
                shard_loss(builder, model.sharding, key, loss)
        shards = model.shards(losses)
        fill(model, saved, shards)
        average = _average(model.bare, saved, shards)
        yield Opened(recipe, model, objective, device, average, sets, builder, shards)


def _check_sizes(sets: Mapping[Part, EvaluationLoader], world: World) -> None:
    """Refuses more processes than there are samples to deal out.

    Raises:
        UsageError: There are more.
    """
    for loader in sets.values():
        if (samples := loader.num_samples()) < world.size:
            name = loader.name.removeprefix("data.")
            raise UsageError(f"{name} has {samples} samples for {world.size} processes; start {samples} at most")


def _average(model: nn.Module, saved: Saved, shards: Shards | None) -> Average | None:
    train = saved.recipe.train
    rule = Ema(1.0) if train.ema is not None else Swa(1, 1) if train.swa is not None else None
    averaged = saved.averaged() if rule is not None else None
    if rule is None or averaged is None:
        return None
    average = Average(model, rule, shards)  # which is never updated
    average.load_state_dict({"parameters": averaged if shards else read_whole(averaged), "updates": 1})
    return average


def _fill_losses(objective: Objective, saved: Saved, shards: Shards | None) -> None:
    """Losses and step functions that have a state count as they did in training.

    Raises:
        UsageError: They were not saved beside the weights.
    """
    states = saved.losses() if objective.stateful else {}
    trained = {loss_key(name) for name in objective.modules}
    sharded = sharded_parts(objective.stateful, shards) if shards is not None else {}
    for key, loss in objective.stateful.items():
        if key in states:
            if key in sharded:
                sharded[key].load_state_dict(states[key])
            else:
                loss.load_state_dict(read_whole(states[key]))
        elif key in trained:
            what = "the loss" if key == "loss" else key
            raise UsageError(
                f"{saved.label}: {what} has parameters of its own, which a file of weights does not hold; name the "
                "run's folder or a checkpoint"
            )


def evaluate_saved(
    saved: Saved, world: World, split: str | None, predictions: Path | None = None, *, cpu: bool = False
) -> list[Line]:
    """Measures saved weights as training did.

    Args:
        saved: The weights and their recipe.
        world: The processes; with several, the recipe's `evaluate.ranks` says who evaluates.
        split: `validation` or `test`; None for each that there is.
        predictions: Where to write what the model makes of each sample: `.parquet`, `.csv` or `.jsonl`.
        cpu: Whether to stay on the CPU.

    Returns:
        A line for each set, as in `metrics.jsonl`.

    Raises:
        UsageError: There is no such set, or predictions are wanted of several.
    """
    parts = sets_of(saved.recipe, split)
    if predictions is not None:
        check_form(predictions, "--predictions")
    if predictions is not None and len(parts) > 1:
        raise UsageError(f"--predictions is for one set; choose with --split: {', '.join(map(_named, parts))}")
    with opened(saved, world, parts, cpu) as model:
        _fill_losses(model.objective, saved, model.shards)
        at = partial(_at, model.recipe, saved.at[1])
        _settle(model, at(saved.at[0]))
        metrics = metrics_of(model.builder, model.recipe.evaluate, model.recipe.batch)
        lines: list[Line] = []
        for (part, name), loader in model.sets.items():
            collected = Predictions(model.objective)
            look: Look = collected.look if predictions is not None else unlooked
            evaluation = Evaluation(
                section=model.recipe.evaluate,
                sets={},
                evaluable=model,
                metrics=metrics,
                tracking=NoTracking(),
                best=BestTracker(None),
                look=look,
                at=at,
                seed=model.recipe.seed,
            )
            lines += evaluation.measured({name: loader}, part, *saved.at) or []
            if predictions is not None:
                columns = collected.columns(model.device.coordinator)
                if world.is_first and columns is not None:
                    write_predictions(predictions, columns, loader)
        return lines


def _settle(model: Opened, at: At) -> None:
    """What the losses are a mean over, where no checkpoint beside the weights says it; tells what nobody can know."""
    loader = next(iter(model.sets.values()))
    unknown = settle_evaluation(model.builder, model.objective, model.model.bare, loader, model.device.coordinator, at)
    if model.device.world.is_first:
        for message in unknown:
            print(message, file=sys.stderr)


def _named(part: Part) -> str:
    return " ".join(part).strip()


def _at(recipe: Recipe, epoch: float, step: int) -> At:
    """Where the weights' training stood, as its own evaluations told a step function."""
    train = recipe.train
    done = epoch / train.epochs if train.epochs is not None else step / train.steps if train.steps is not None else 0.0
    return At(step, math.floor(epoch + 1e-6), done)


def sets_of(recipe: Recipe, split: str | None) -> list[Part]:
    """The sets of a split, or one of them by its name or `SPLIT NAME`."""
    known = evaluation_parts(recipe.data)
    if split == _named(TRAIN):
        return [TRAIN]
    matches = [part for part in known if split in (None, *part, _named(part))]
    if not matches:
        if split is None:
            raise UsageError("the recipe has neither data.validation nor data.test; measure data.train: --split train")
        near = suggestion(split, map(_named, [*known, TRAIN]))
        there = ", ".join(map(_named, [*known, TRAIN]))
        raise UsageError(f"no set is called {split}{near}{' There' if near else '; there'} are: {there}")
    return matches
