"""`train --one-batch`: a model that cannot memorize one batch has a mistake in it. Nothing is written."""

from __future__ import annotations

from collections.abc import Callable

import torch

from launcher.data.same_data import compare_over_ranks
from launcher.data.transfer import on_device
from launcher.device.device import open_device, use_cpu
from launcher.evaluation.modes import start_training
from launcher.objective.settle import settle_losses
from launcher.recipe.schema import Recipe
from launcher.run import checked
from launcher.runs.options import Options
from launcher.training.build import build_run_model, build_run_state, open_run_data
from launcher.training.state import TrainState
from launcher.training.step import StepResult
from launcher.training.steps import counted_steps
from launcher.world.context import remembered
from launcher.world.world import World

STEPS = 200
_LEARNED = 0.5  # of the first loss: a batch that is memorized ends far below


def overfit(recipe: Recipe, world: World, options: Options, say: Callable[[str], None]) -> bool:
    """Trains on the first batch over and over.

    Args:
        recipe: The recipe.
        world: The processes.
        options: What the command line says.
        say: Gets a line now and then, on rank 0.

    Returns:
        Whether the loss went down to less than a half.

    Raises:
        LauncherError: Anything a user can fix.
    """
    builder = checked(recipe, world, options)
    data = open_run_data(recipe, builder, world, on_gpu=not use_cpu(world, options.cpu))
    with (
        remembered(),
        open_device(recipe.device, world, cpu=options.cpu, launch=recipe.launch) as device,
    ):
        compare_over_ranks(builder, recipe.data, data, device.coordinator)
        model = build_run_model(recipe, builder, device)
        state = build_run_state(recipe, builder, model, device, data)
        settle_losses(builder, state.objective, model.bare, data, device.coordinator, end=state.length.last)
        start_training(state.model.wrapped, state.optimizer)
        step = next(on_device(counted_steps(state, 0, 1), device.torch_device))
        first = last = float("nan")
        for number in range(STEPS):
            last = _loss(state.take_step(state, step, state.length.at(number)), state)
            first = last if number == 0 else first
            if number % 20 == 0 or number == STEPS - 1:
                say(f"step {number + 1:>3}/{STEPS}  loss {last:.4g}")
    learned = abs(last) < _LEARNED * abs(first)
    went = f"the loss on one batch went from {first:.4g} to {last:.4g}"
    remedy = "look at optimizer.lr, at the targets (launcher data), and whether the loss fits the model's output"
    say(f"learned: {went}" if learned else f"not learned: {went}; {remedy}")
    return learned


def _loss(result: StepResult, state: TrainState) -> float:
    """The step's loss over all ranks."""
    own = sum(float(loss) * factor for loss, factor in result.losses)
    coordinator = state.device.coordinator
    total = coordinator.sum(torch.tensor([own], dtype=torch.float64)).result()
    return float(total) / coordinator.world_size
