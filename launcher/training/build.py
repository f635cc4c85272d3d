"""The recipe's one road: each builder is handed its own section here, and nothing below knows the whole recipe."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import nn

from launcher.checkpoints.weights import load_weights, shapes_of
from launcher.data.load import Data, load_data
from launcher.device.device import Device
from launcher.model.build import Model, build_model, wrap, wrap_step
from launcher.model.ema import Average
from launcher.objective.loss import build_objective
from launcher.objective.optimizer import build_optimizer
from launcher.objective.run_length import RunLength
from launcher.objective.schedule import build_schedule
from launcher.recipe import schema
from launcher.recipe.build import Builder
from launcher.recipe.schema import Recipe
from launcher.runs.tracking.own_code import stand_in
from launcher.training.seeds import StepSeeds, draws_only_from_torch
from launcher.training.state import TrainState
from launcher.training.step_module import StepModule
from launcher.training.update import OneOptimizer
from launcher.world.world import World


def open_run_data(recipe: Recipe, builder: Builder, world: World, *, on_gpu: bool = False, trains: bool = True) -> Data:
    """Phase 1: the data sets, cut into batches for this rank.

    Raises:
        RecipeError: An epoch would have no step, or a set cannot do what is asked of it.
    """
    return load_data(
        builder,
        recipe.data,
        world,
        evaluate=recipe.evaluate,
        train=recipe.train,
        seed=recipe.seed,
        on_gpu=on_gpu,
        trains=trains,
    )


def build_run_model(recipe: Recipe, builder: Builder, device: Device) -> Model:
    """Phase 3: the model, with the weights that it starts from.

    Raises:
        RecipeError: It is no module, or has nothing to train.
        LauncherError: The weights do not fit.
    """
    stand_in(recipe.track.trackers, builder.own_folders())
    start_from, fill = recipe.train.start_from, None
    if start_from is not None:
        fill = partial(load_weights, path=builder.folder / Path(start_from).expanduser())
    shares = recipe.train.step is None
    return build_model(builder, recipe.model, recipe.device, device, seed=recipe.seed, fill=fill, shares=shares)


def build_run_state(recipe: Recipe, builder: Builder, model: Model, device: Device, data: Data) -> TrainState:
    """Phase 4: loss, optimizer and schedule around the model, and how long the run is.

    The builder learns `train.steps` and `train.steps_per_epoch`.

    Raises:
        RecipeError: One of them does not fit.
    """
    train = recipe.train
    length = RunLength.of(train, data.steps_per_epoch)
    builder.computed |= length.computed
    objective = build_objective(builder, recipe.loss, recipe.batch, train)
    if objective.step is not None:
        model = replace(model, wrapped=wrap_step(StepModule(model.wrapped, objective), device))
    check_graphs(builder, recipe.device, data)
    losses = {name: wrap(module, device, recipe.device) for name, module in objective.modules.items()}
    objective = objective.wrapped_by(losses)
    objective.to(device.torch_device)
    may_skip = device.is_gpu and (recipe.device.precision == "fp16" or train.non_finite == "skip")
    optimizer = build_optimizer(builder, recipe.optimizer, model.bare, objective.modules, may_skip=may_skip)
    average = Average(model.bare, train.ema) if train.ema is not None else None
    update = OneOptimizer(
        optimizer,
        device.torch_device,
        scaler=device.accelerator.scaler,
        clip_grad_norm=train.clip_grad_norm,
        skip_non_finite=train.non_finite == "skip",
        updated=average.update if average is not None else None,
    )
    brought = (model.bare, *objective.brought.values(), optimizer)
    update.clear_gradients()  # a model that was handed in may have some, of a trial by hand
    return TrainState(
        model=model,
        objective=objective,
        optimizer=optimizer,
        schedule=build_schedule(builder, recipe.scheduler, optimizer, length, recipe.evaluate.best),
        update=update,
        device=device,
        data=data,
        length=length,
        seeds=StepSeeds(recipe.seed, device.world.rank, device.kind, only_torch=draws_only_from_torch(brought)),
        losses=losses,
        average=average,
        shapes=shapes_of(model.bare.state_dict()),
        frozen={name: parameter for module in (model.bare, *losses.values()) for name, parameter in _frozen(module)},
    )


def check_graphs(builder: Builder, section: schema.Device, data: Data) -> None:
    """Refuses CUDA graphs over several micro-batches: the second would write its gradients over those of the first.

    Raises:
        RecipeError: They would.
    """
    number = max(len(data.train.sampler.shares(step)) for step in (0, data.train.sampler.steps_per_epoch - 1))
    if section.compile in ("reduce-overhead", "max-autotune") and number > 1:
        message = (
            f"'{section.compile}' uses CUDA graphs, which overwrite the gradients of a step of {number} micro-batches; "
            "say true or max-autotune-no-cudagraphs, or remove data.micro_batch_size"
        )
        raise builder.wrong("device.compile", message)


def _frozen(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in module.named_parameters() if not parameter.requires_grad)
