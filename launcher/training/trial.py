"""One size of micro-batch, tried in a process of its own: two steps, of which it may die."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from launcher.device.device import open_device
from launcher.evaluation.modes import start_training
from launcher.objective.settle import split_by_name
from launcher.recipe.build import Builder
from launcher.recipe.load import load_recipe
from launcher.training.build import build_run_model, build_run_state, open_run_data
from launcher.training.state import TrainState
from launcher.training.steps import counted_steps
from launcher.world import faults
from launcher.world.signals import die_with_parent
from launcher.world.world import World

DOES_NOT_FIT = 77
_PIECES = 2  # of a step: the second finds the gradients of the first
_FIRST_TO_DIE = "1000"  # of all processes of a machine without memory


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is no memory, on a device or the host."""
    words = ("can't allocate memory", "not enough memory", "out of memory", "STATUS_ALLOC_FAILED")
    is_said = isinstance(error, RuntimeError) and any(text in str(error) for text in words)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or is_said


def tried(asked: Mapping[str, Any]) -> int:
    """Makes two steps of a recipe with micro-batches of a size.

    Args:
        asked: The recipe, its overrides, what to take out, what it may name; whether to stay on the CPU; how many
            processes share a batch; the samples of a micro-batch; the process that asks, with which this one ends.

    Returns:
        The exit code: `DOES_NOT_FIT` where memory runs out.
    """
    die_with_parent(asked["parent"])
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_FIRST_TO_DIE, encoding="ascii")
    samples = int(asked["samples"])
    changes = [*asked["overrides"], f"data.micro_batch_size={samples}", "data.workers=0"]
    recipe = load_recipe(asked["recipe"], changes, asked["remove"])
    faults.arm(World.from_environ().faults)
    builder = Builder(recipe, asked["allow"])
    builder.check()
    world = World(size=asked["processes"], local_size=asked["processes"])
    data = open_run_data(recipe, builder, world)
    try:
        with open_device(recipe.device, World(), cpu=asked["cpu"], launch=recipe.launch) as device:
            state = build_run_state(recipe, builder, build_run_model(recipe, builder, device), device, data)
            split_by_name(builder, state.objective, state.model.bare, data.train, device.coordinator, most=samples)
            _make_two_steps(state, samples, world)
    except Exception as error:
        if out_of_memory(error):
            return DOES_NOT_FIT
        raise
    return 0


def _make_two_steps(state: TrainState, samples: int, world: World) -> None:
    trained = [parameter for parameter in state.model.bare.parameters() if parameter.requires_grad]
    # DDP's buckets, in which gradients are beside those that autograd makes
    held = [torch.empty_like(parameter) for parameter in trained] if world.size > 1 else []
    state.objective.settle()
    state.objective.mark_audited()
    start_training(state.model.wrapped, state.optimizer)
    for number, step in enumerate(counted_steps(state, 0, 2)):
        faults.point("trial", samples)
        few = replace(step, batches=step.batches[:_PIECES], scales=step.scales[:_PIECES])
        state.take_step(state, few, state.length.at(number))
    del held
