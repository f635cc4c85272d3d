"""The plan: what the program is about to do and what it chose by itself, printed once at the start."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from launcher.data.load import Data
from launcher.data.sampler import describe_shares
from launcher.device.device import Device
from launcher.model.sharding import names_of
from launcher.objective.loss import Objective, name_of
from launcher.objective.optimizer import describe_optimizer, named_parameters
from launcher.objective.run_length import RunLength
from launcher.objective.turns import TurnsObjective
from launcher.recipe.schema import Recipe
from launcher.text import counted, printable
from launcher.training.optimizer_state import parameter_names
from launcher.training.state import TrainState

Plan = list[tuple[str, str]]


def plan_of(
    recipe: Recipe,
    state: TrainState,
    folder: Path,
    start: int,
    notes: Sequence[str] = (),
) -> Plan:
    """Label and text of each line, in the order of the seven phases."""
    data, device, model, objective = state.data, state.device, state.model, state.objective
    world = device.world
    rows: Plan = [
        ("recipe", f"{recipe.name}, seed {recipe.seed}"),
        ("data", f"{data.describe()}"),
        ("batch", describe_shares(data.train.sampler, world.size)),
        ("device", device.describe()),
        ("world", _world(device)),
        ("model", model.describe()),
        ("loss", _loss(objective)),
        ("optimizer", describe_optimizer(state.optimizer)),
        *([("scheduler", described)] if (described := state.schedule.describe()) else []),
        ("length", _length(state.length)),
        ("evaluate", _evaluate(recipe, data, world.size)),
        ("folder", str(folder)),
    ]
    if start:
        rows.append(("resumed", f"from step {start:,}, epoch {state.length.epoch(start):.2f}"))
    notes = [*data.notes, *device.notes, *model.notes, *_left_out(state), *notes]
    if world.size > 2:
        notes.append(
            "a run repeats bit for bit with as many processes on as many machines: a network adds the gradients of "
            "three or more in another order than shared memory does"
        )
    if objective.own_gradients.are_taken:
        notes.append(
            "model, loss: take gradients when they are called, as forces do; evaluations call them with gradients too, "
            "and keep none"
        )
    if recipe.loss is not None and recipe.train.step is not None:
        notes.append("loss: is not used, since train.step gives the loss; --remove loss, or --remove train.step")
    launch_keys = recipe.launch.model_fields_set & {"processes", "nodes"}
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if recipe.launch.threads != "auto" and wanted.isdigit() and int(wanted) != device.threads:
        notes.append(f"OMP_NUM_THREADS={wanted} is overruled by launch.threads: {recipe.launch.threads}")
    if world.started_by not in ("one process", "launcher") and launch_keys:
        notes.append(f"started by {world.started_by}: the recipe's launch.processes and launch.nodes are not used")
    return [(label, printable(text)) for label, text in (*rows, *(("note", note) for note in notes))]


def _left_out(state: TrainState) -> Iterator[str]:
    """What an optimizer that was made by somebody's own function does without."""
    names = parameter_names(state.model.bare, state.objective.modules) | names_of(state.shards)
    held = {names.get(id(one)) for group in state.optimizer.param_groups for one in group["params"]}
    every = named_parameters(state.model.bare, state.objective.modules).values()
    trained = list(dict.fromkeys(names[id(one)] for one in every if one.requires_grad))
    if left := [name for name in trained if name not in held]:
        shown = ", ".join(left[:3]) + (", …" if len(left) > 3 else "")
        yield (
            f"optimizer: {len(left)} of {len(trained)} parameter tensors are in no optimizer, and stay as they are: "
            f"{shown}; if that is meant, train.freeze saves their gradients"
        )


def _world(device: Device) -> str:
    world = device.world
    if world.size == 1:
        return "1 process" if world.started_by == "one process" else f"1 process, started by {world.started_by}"
    nodes = f" on {world.nodes} nodes" if world.nodes > 1 else ""
    in_memory = ", gradients in shared memory (device.ddp.shared_memory=false turns that off)"
    gradients = in_memory if device.coordinator.memory is not None else ""
    return f"{world.size} processes{nodes}, started by {world.started_by}{gradients}"


def _loss(objective: Objective) -> str:
    if not objective.terms:
        whose = "the model's own" if objective.step is None else "the recipe's own step function"
        return f"{whose}: {objective.own}" if objective.own else whose
    every = objective.every if isinstance(objective, TurnsObjective) else {}
    return "; ".join(
        f"{term.name + ' = ' if term.name else ''}{name_of(term.function)}: {term.reading}"
        f"{f', every {every[term.name]} steps' if every.get(term.name, 1) > 1 else ''}"
        for term in objective.terms
    )


def _length(run_length: RunLength) -> str:
    per_epoch = f"{counted(run_length.steps_per_epoch, 'step')} an epoch"
    if run_length.total_steps is None:
        return f"{run_length.seconds:.0f} seconds, {per_epoch}"
    return f"{counted(run_length.total_steps, 'step')}, {per_epoch}"


def _evaluate(recipe: Recipe, data: Data, world_size: int) -> str:
    if not data.validation:
        return "never: the recipe has no data.validation"
    shared = recipe.evaluate.ranks == "all" or recipe.device.sharding != "none"
    others = "rank 1 waits" if world_size == 2 else f"the other {world_size - 1} wait"
    who = f" by all {world_size} ranks" if shared else f" by rank 0; {others}"
    has_average = recipe.train.ema is not None or recipe.train.swa is not None
    averaged = ", also with the averaged weights" if has_average else ""
    return f"every {recipe.evaluate.every}{who if world_size > 1 else ''}{averaged}"
