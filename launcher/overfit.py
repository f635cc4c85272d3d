"""`train --one-batch`: a model that cannot learn one batch by heart has a mistake in it. Nothing is written."""

from __future__ import annotations

from collections.abc import Callable

import torch

from launcher.data import load_data
from launcher.data.transfer import on_device
from launcher.device import open_device, use_cpu
from launcher.launch.world import World
from launcher.loss_settle import settle_losses, steps_of
from launcher.model import build_model
from launcher.opening import Options
from launcher.recipe.schema import Recipe
from launcher.run import checked
from launcher.training import Stepped, Trainable, build_trainable, counted_steps, seed_step, train_step

STEPS = 200
_LEARNED = 0.5  # of the first loss: a batch that is learned by heart ends far below


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
        LauncherError: Anything a user can mend.
    """
    workshop = checked(recipe, world, options)
    data = load_data(workshop, world, on_gpu=not use_cpu(world, options.cpu))
    with open_device(recipe, world, cpu=options.cpu) as device:
        model = build_model(workshop, device)
        trainable, horizon = build_trainable(workshop, model, device, data)
        settle_losses(
            trainable.objective, model.bare, data.train, steps_of(data, world), device.coordinator, recipe.document
        )
        model.wrapped.train()
        step = next(on_device(counted_steps(data, trainable.objective, device.coordinator, 0, 1), device.torch_device))
        first = last = float("nan")
        for number in range(STEPS):
            seed_step(recipe.seed, number, world.rank, device.is_gpu)
            last = _loss(train_step(trainable, step, horizon.at(number)), trainable)
            if horizon.total_steps is None or number + 1 < horizon.total_steps:  # a schedule may end with the run
                trainable.schedule.advance(number + 1)
            first = last if number == 0 else first
            if number % 20 == 0 or number == STEPS - 1:
                say(f"step {number + 1:>3}/{STEPS}  loss {last:.4g}")
    learned = abs(last) < _LEARNED * abs(first)
    went = f"the loss on one batch went from {first:.4g} to {last:.4g}"
    remedy = "look at optimizer.lr, at the targets (launcher data), and whether the loss fits the model's output"
    say(f"learned: {went}" if learned else f"not learned: {went}; {remedy}")
    return learned


def _loss(stepped: Stepped, trainable: Trainable) -> float:
    """The step's loss over all ranks."""
    own = sum(float(loss) * factor for loss, factor in stepped.parts)
    coordinator = trainable.device.coordinator
    total = coordinator.sum(torch.tensor([own], dtype=torch.float64)).result()
    return float(total) / coordinator.world_size
