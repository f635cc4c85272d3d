"""What a run puts on the disk, before it is begun: its model and one update of it, with tensors that have no memory."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import torch

from launcher import internals
from launcher.checkpoints.format import size_in
from launcher.checks.memory import averaged, without_memory
from launcher.errors import LauncherError
from launcher.evaluation.modes import has_modes
from launcher.objective.build import build_objective
from launcher.objective.optimizer import build_optimizer, named_parameters
from launcher.objective.several import each
from launcher.recipe.build import Builder
from launcher.recipe.schema import Recipe
from launcher.training.freezing import freeze_for_good


@dataclass(frozen=True)
class Stored:
    """Bytes of tensors.

    Attributes:
        checkpoint: Of one checkpoint.
        weights: Of the final weights, averages and means beside them included.
    """

    checkpoint: int
    weights: int


def stored(recipe: Recipe, builder: Builder) -> Stored:
    """What a checkpoint and the final weights of a run will take.

    An optimizer that cannot make a step without values (LBFGS, Adafactor) is counted as one that keeps nothing.

    Args:
        recipe: The recipe.
        builder: Its components, checked.

    Raises:
        LauncherError: It cannot be told without values; the message says why.
    """
    mode, _ = internals.fake_tensors()
    fake = mode(allow_non_fake_inputs=True)
    try:
        model = without_memory(recipe, builder, fake, may_hold=False)
        with fake:
            modules = build_objective(builder, recipe.loss, recipe.batch, recipe.train).modules
        parameters = named_parameters(model, modules)
        freeze_for_good(recipe.train.freeze, parameters)
        optimizers = each(build_optimizer(builder, recipe.optimizer, model, modules)).values()
        trained = [parameter for parameter in parameters.values() if parameter.requires_grad]
        with fake:
            for parameter in trained:
                parameter.grad = torch.zeros_like(parameter)
            for optimizer in optimizers:
                with suppress(Exception):  # one that reads a value, or asks for the loss
                    optimizer.step()
    except LauncherError:
        raise
    except Exception as error:  # anybody's code, called with tensors that have no values
        raise LauncherError(f"{type(error).__name__}: {' '.join(str(error).split())[:160]}") from error
    weights, average = size_in(model.state_dict()), averaged(recipe, trained)
    state = [*(module.state_dict() for module in modules.values()), *(optimizer.state for optimizer in optimizers)]
    evaluated = weights if any(map(has_modes, optimizers)) else 0
    copies = 1 + (average > 0) + (recipe.save.average_last is not None)
    return Stored(weights + average + evaluated + size_in(state), weights * copies)
