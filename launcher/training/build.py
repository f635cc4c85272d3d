"""4 and 5: loss, optimizer and schedule of the recipe around a model."""

from __future__ import annotations

from launcher.data.load import Data
from launcher.device.device import Device
from launcher.errors import Problem, RecipeError
from launcher.model.build import Model, wrap
from launcher.model.ema import Average
from launcher.objective.loss import build_objective
from launcher.objective.optimizer import build_optimizer
from launcher.objective.schedule import build_schedule
from launcher.recipe.build import Builder
from launcher.training.state import RunLength, TrainState


def build_train_state(builder: Builder, model: Model, device: Device, data: Data) -> tuple[TrainState, RunLength]:
    """Loss, optimizer and schedule of the recipe around a model, and how long the run is.

    Args:
        builder: Builds the components; learns `train.steps` and `train.steps_per_epoch`.
        model: Phase 3's.
        device: Phase 2's.
        data: Phase 1's, which knows how many steps an epoch has.

    Raises:
        RecipeError: One of them does not fit.
    """
    section, recipe = builder.recipe.train, builder.recipe
    steps_per_epoch = data.steps_per_epoch
    total = section.steps if section.epochs is None else section.epochs * steps_per_epoch
    run_length = RunLength(steps_per_epoch, total, section.time.amount if section.time else None)
    builder.computed["train.steps_per_epoch"] = steps_per_epoch
    if total is not None:
        builder.computed["train.steps"] = total
    objective = build_objective(builder)
    if objective.per_batch and data.train.sampler.accumulation(0) > 1:
        message = "_per_: batch needs a rank's whole share at once; remove data.micro_batch_size, or use more processes"
        raise RecipeError([Problem(str(recipe.document.origin(("loss",))), "loss", message)])
    losses = {name: wrap(module, device, recipe.device) for name, module in objective.modules.items()}
    objective = objective.wrapped_by(losses)
    objective.to(device.torch_device)
    optimizer = build_optimizer(builder, model.bare, objective.modules)
    schedule = build_schedule(builder, optimizer, steps_per_epoch, total)
    skips = section.non_finite == "skip"
    average = Average(model.bare, section.ema) if section.ema is not None else None
    train_state = TrainState(
        model=model,
        objective=objective,
        optimizer=optimizer,
        schedule=schedule,
        device=device,
        losses=losses,
        clip_grad_norm=section.clip_grad_norm,
        skip_non_finite=skips,
        average=average,
    )
    train_state.direct.clear_gradients()  # a model that was handed in may have some, of a trial by hand
    return train_state, run_length
