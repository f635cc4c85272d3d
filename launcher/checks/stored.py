"""What a run puts on the disk, before it is begun: its model and one update of it, with tensors that have no memory."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from launcher import internals
from launcher.checkpoints.format import size_in
from launcher.checks.memory import averaged, without_memory
from launcher.data.seeds import randomness_restored
from launcher.errors import LauncherError
from launcher.evaluation.modes import has_modes
from launcher.model.adapt import built
from launcher.model.bfloat16 import hold_in_bfloat16
from launcher.objective.build import build_objective
from launcher.objective.optimizer import build_optimizer, calls_the_loss, named_parameters
from launcher.objective.several import each
from launcher.recipe.build import Builder
from launcher.recipe.schema import Recipe
from launcher.training.fast_step import FastStep
from launcher.training.freezing import freeze_for_good
from launcher.training.optimizer_state import named_optimizer, parameter_names

_SMALL_BYTES = 64 * 2**20  # of a model that is built to be counted


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

    A small model is built and stepped: tensors without memory load torch's compiler for that, a second of work. For a
    large one, an optimizer that cannot make a step without values (LBFGS, Adafactor) is counted as one that keeps
    nothing.

    Args:
        recipe: The recipe.
        builder: Its components, checked.

    Raises:
        LauncherError: It cannot be told without values; the message says why.
    """
    with suppress(Exception):  # anybody's code: what is wrong with it is said below
        if size_in(without_memory(recipe, builder, torch.device("meta"), may_hold=False).state_dict()) <= _SMALL_BYTES:
            with randomness_restored(needed=True):
                return _counted(recipe, builder, _with_values(recipe, builder), nullcontext())
    mode, _ = internals.fake_tensors()
    fake = mode(allow_non_fake_inputs=True)
    try:
        return _counted(recipe, builder, without_memory(recipe, builder, fake, may_hold=False), fake)
    except LauncherError:
        raise
    except Exception as error:  # anybody's code, called with tensors that have no values
        raise LauncherError(f"{type(error).__name__}: {' '.join(str(error).split())[:160]}") from error


def _with_values(recipe: Recipe, builder: Builder) -> nn.Module:
    model = built(builder.keeping("data"), recipe.model).module
    if recipe.device.precision == "bf16-true":
        hold_in_bfloat16(builder, model)
    return model


def _counted(recipe: Recipe, builder: Builder, model: nn.Module, fake: AbstractContextManager[Any]) -> Stored:
    """The same of a model, in the mode in which its tensors were made."""
    with fake:
        modules = build_objective(builder, recipe.loss, recipe.batch, recipe.train).modules
    parameters = named_parameters(model, modules)
    freeze_for_good(recipe.train.freeze, parameters)
    optimizers = build_optimizer(builder, recipe.optimizer, model, modules)
    trained = [parameter for parameter in parameters.values() if parameter.requires_grad]
    with fake:
        for parameter in trained:
            parameter.grad = torch.ones_like(parameter)
        for optimizer in each(optimizers).values():
            with suppress(Exception):  # one that reads a value, or asks for the loss
                _update(optimizer, calls_the_loss(optimizers, recipe.optimizer), trained)
    weights, average = size_in(model.state_dict()), averaged(recipe, trained)
    kept = named_optimizer(optimizers, parameter_names(model, modules)).state_dict()
    state = [*(module.state_dict() for module in modules.values()), kept]
    evaluated = weights if any(map(has_modes, each(optimizers).values())) else 0
    copies = 1 + (average > 0) + (recipe.save.average_last is not None)
    return Stored(weights + average + evaluated + size_in(state), weights * copies)


def _update(optimizer: Any, calls_loss: bool, trained: Sequence[torch.Tensor]) -> None:
    if calls_loss:
        optimizer.step(lambda: trained[0].sum())
    else:
        FastStep(optimizer).step()
