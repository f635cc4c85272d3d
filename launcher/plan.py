"""The plan: what the program is about to do and what it chose by itself, printed once at the start."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from launcher.data import Data
from launcher.data.sampler import StepSampler
from launcher.device import Device
from launcher.objective import Objective, describe_optimizer
from launcher.recipe.schema import Recipe
from launcher.training import Horizon, Trainable

Plan = list[tuple[str, str]]


def plan_of(
    recipe: Recipe,
    data: Data,
    trainable: Trainable,
    horizon: Horizon,
    folder: Path,
    start: int,
    notes: Sequence[str] = (),
) -> Plan:
    """Label and text of each line, in the order of the seven phases."""
    device, model, objective = trainable.device, trainable.model, trainable.objective
    world = device.world
    rows: Plan = [
        ("recipe", f"{recipe.name}, seed {recipe.seed}"),
        ("data", f"{data.describe()}{_evaluation_sets(data)}"),
        ("batch", describe_shares(data.train.sampler, world.size)),
        ("device", device.describe()),
        ("world", _world(device)),
        ("model", model.describe()),
        ("loss", _loss(objective)),
        ("optimizer", describe_optimizer(trainable.optimizer)),
        ("length", _length(horizon)),
        ("evaluate", _evaluate(recipe, data, world.size)),
        ("folder", str(folder)),
    ]
    if start:
        rows.append(("resumed", f"from step {start:,}, epoch {horizon.epoch(start):.2f}"))
    notes = [*data.notes, *device.notes, *model.notes, *notes]
    said = recipe.launch.model_fields_set & {"processes", "nodes"}
    if world.started_by not in ("one process", "launcher") and said:
        notes.append(f"started by {world.started_by}: the recipe's launch.processes and launch.nodes are not used")
    return rows + [("note", note) for note in notes]


def describe_shares(sampler: StepSampler, world_size: int) -> str:
    """`global batch 64 = 2 processes × 16 × 2 accumulated`; uneven shares are said."""
    batch = min(sampler.global_batch_size, sampler.dataset_size)
    accumulated = sampler.accumulation(0)
    processes = f"{world_size} process{'es' * (world_size > 1)}"
    share, larger = divmod(batch, world_size)
    if larger or share % accumulated:
        pieces = [share + (rank < larger) for rank in range(min(world_size, 8))]
        more = " + …" if world_size > 8 else ""
        parts = f", each in {accumulated} parts" if accumulated > 1 else ""
        return f"global batch {batch} = {' + '.join(map(str, pieces))}{more} on {processes}{parts}"
    return f"global batch {batch} = {processes} × {share // accumulated} × {accumulated} accumulated"


def _evaluation_sets(data: Data) -> str:
    sets = [(f"validation {name}".strip(), one) for name, one in data.validation.items()]
    sets += [(f"test {name}".strip(), one) for name, one in data.test.items()]
    return "".join(f", {name} {one.num_samples():,}" for name, one in sets)


def _world(device: Device) -> str:
    world = device.world
    if world.size == 1:
        return "1 process" if world.started_by == "one process" else f"1 process, started by {world.started_by}"
    nodes = f" on {world.nodes} nodes" if world.nodes > 1 else ""
    in_memory = ", gradients in shared memory (device.ddp.shared_memory=false turns that off)"
    gradients = in_memory if device.coordinator.memory is not None else ""
    return f"{world.size} processes{nodes}, started by {world.started_by}{gradients}"


def _loss(objective: Objective) -> str:
    if objective.step is not None:
        return "the recipe's own step function"
    if not objective.terms:
        return "the model's own"
    counted = {
        "sample": "mean over samples",
        "element": "mean over elements",
        "batch": "per batch: the result depends on the number of processes",
        None: "mean over samples or elements, as its targets are",
    }
    return ", ".join(
        f"{term.name + ': ' if term.name else ''}{type(term.function).__name__} ({counted[term.per]})"
        for term in objective.terms
    )


def _length(horizon: Horizon) -> str:
    per_epoch = f"{horizon.steps_per_epoch:,} steps an epoch"
    if horizon.total_steps is None:
        return f"{horizon.seconds:.0f} seconds, {per_epoch}"
    return f"{horizon.total_steps:,} steps, {per_epoch}"


def _evaluate(recipe: Recipe, data: Data, world_size: int) -> str:
    if not data.validation:
        return "never: the recipe has no data.validation"
    shared = recipe.evaluate.ranks == "all"
    who = f" by all {world_size} ranks" if shared else f" by rank 0, the other {world_size - 1} waiting"
    averaged = ", also with the averaged weights" if recipe.train.ema is not None else ""
    return f"every {recipe.evaluate.every}{who if world_size > 1 else ''}{averaged}"
