"""The recipe's one road: each builder is handed its own section here, and nothing below knows the whole recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from torch.optim import Optimizer

from launcher.checkpoints.rebuilt import starts
from launcher.checkpoints.safe_files import unfit_for_safetensors
from launcher.checkpoints.weights import shapes_of
from launcher.data.load import Data, load_data
from launcher.device.device import Device
from launcher.evaluation.modes import has_modes
from launcher.model.build import Model, build_model, shard_loss, under_autocast, wrap, wrap_step
from launcher.model.compiled import WITH_GRAPHS
from launcher.model.ema import Average, Ema, Rule, Swa
from launcher.model.sharding import Shards
from launcher.objective.build import build_function, build_objective
from launcher.objective.loss import Objective, loss_key
from launcher.objective.optimizer import all_names, build_optimizer, calls_the_loss, named_parameters
from launcher.objective.run_length import RunLength
from launcher.objective.schedule import build_schedules
from launcher.objective.several import Optimizers, Several, each
from launcher.objective.turns import TurnsObjective
from launcher.recipe import schema
from launcher.recipe.build import Builder
from launcher.recipe.schema import Recipe, Train
from launcher.runs.tracking.own_code import stand_in
from launcher.training.after_step import AfterStep
from launcher.training.freezing import Freezing, build_freezing, freeze_for_good
from launcher.training.seeds import StepSeeds, draws_only_from_torch
from launcher.training.sharded_gradients import Clipping
from launcher.training.state import Retry, TrainState
from launcher.training.step import train_step
from launcher.training.step_module import StepModule
from launcher.training.update import OneUpdate, Update
from launcher.training.ways import ByClosure, Turn, Turns
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
    """Phase 3: the model, with the weights that it starts from, and what is never trained frozen.

    Raises:
        RecipeError: It is not a module, or has nothing to train.
        LauncherError: The weights do not fit.
    """
    stand_in(recipe.track.trackers, builder.own_folders())

    def freeze(bare: nn.Module) -> None:
        freeze_for_good(recipe.train.freeze, named_parameters(bare, {}))

    shares = recipe.train.step is None
    start = starts(builder, recipe)
    return build_model(
        builder, recipe.model, recipe.device, device, seed=recipe.seed, start=start, freeze=freeze, shares=shares
    )


def build_run_state(
    recipe: Recipe, builder: Builder, model: Model, device: Device, data: Data, retry: Retry | None = None
) -> TrainState:
    """Phase 4: loss, optimizer and schedule around the model, and how long the run is.

    The builder learns `train.steps` and `train.steps_per_epoch`.

    Raises:
        RecipeError: One of them does not fit.
    """
    train = recipe.train
    if recipe.save.format == "safetensors" and (fault := unfit_for_safetensors(model.state_dict())):
        raise builder.wrong("save.format", f"{fault}; say pth")
    length = RunLength.of(train, data.steps_per_epoch, data.samples_before(data.steps_per_epoch))
    builder.computed |= length.computed
    objective = build_objective(builder, recipe.loss, recipe.batch, train)
    objective.under(device.autocast)
    modules = objective.modules
    freeze_for_good(train.freeze, named_parameters(model.bare, modules))
    in_turns = isinstance(objective, TurnsObjective)
    if objective.step is not None and not in_turns:
        module = StepModule(model.wrapped, objective)
        model = replace(model, wrapped=module if model.sharding is not None else wrap_step(module, device))
    check_graphs(builder, recipe.device, data, is_open=retry is not None)
    apart = {name: module for name, module in modules.items() if not _is_of_the_model(builder, name, module, model)}
    losses = {name: _wrapped_loss(name, module, recipe, builder, model, device) for name, module in apart.items()}
    shards = model.shards({loss_key(name): loss for name, loss in losses.items()})
    objective = objective.wrapped_by(losses)
    every = all_names(model.bare, modules)
    freezing = build_freezing(builder, train.freeze, every, length, saves_work=device.world.size == 1)
    may_skip = device.is_gpu and (recipe.device.precision == "fp16" or train.non_finite == "skip")
    optimizer = build_optimizer(builder, recipe.optimizer, model.bare, modules, may_skip=may_skip, shards=shards)
    rule = _rule(builder, train, length)
    average = Average(model.bare, rule, shards) if rule is not None else None
    afterwards = {
        "train.after_step": (train.after_step, ("model", "at")),
        "evaluate.after": (recipe.evaluate.after, ("model", "at", "scores")),
    }
    for key, (function, arguments) in afterwards.items():
        if function is not None:
            objective.others[key] = build_function(builder, function, *arguments)
    objective.others.update(_changes_on_device(data))
    own = objective.others.get("train.after_step")
    after = AfterStep(own, model.bare, length.at, recipe.seed, device.kind, average) if own or average else None
    objective.to(device.torch_device)
    ways = _Ways(recipe, builder, model, device, freezing, after, shards)
    update, take_step = ways.choose(objective, optimizer)
    brought = (model.bare, *objective.brought.values(), *each(optimizer).values())
    update.clear_gradients()  # a model that was passed in may have some, of a trial by hand
    return TrainState(
        model=model,
        objective=objective,
        optimizer=optimizer,
        schedule=build_schedules(builder, recipe.scheduler, optimizer, length, recipe.evaluate.best),
        update=update,
        take_step=take_step,
        device=device,
        data=data,
        length=length,
        seeds=StepSeeds(recipe.seed, device.world.rank, device.kind, only_torch=draws_only_from_torch(brought)),
        losses=losses,
        average=average,
        shapes=shapes_of(model.bare.state_dict()),
        frozen={name: parameter for module in (model.bare, *losses.values()) for name, parameter in _frozen(module)},
        trained=[name for name, parameter in model.bare.named_parameters() if parameter.requires_grad],
        freezing=freezing,
        shards=shards,
        retry=retry,
    )


def _is_of_the_model(builder: Builder, name: str, loss: nn.Module, model: Model) -> bool:
    """Whether all that a loss trains is the model's, as a head that it was given: its gradients are shared with these.

    Raises:
        RecipeError: Some of it is: processes would share the gradients of that twice.
    """
    if model.sharding is not None:
        return False
    inside = {id(parameter) for parameter in model.bare.parameters()}
    shared = [id(parameter) in inside for parameter in loss.parameters() if parameter.requires_grad]
    if any(shared) and not all(shared) and model.wrapped is not model.bare:
        raise builder.wrong(
            loss_key(name), "it trains parameters of the model and some of its own; make all of them parts of the model"
        )
    return all(shared)


def _wrapped_loss(
    name: str, module: nn.Module, recipe: Recipe, builder: Builder, model: Model, device: Device
) -> nn.Module:
    """A loss with parameters under DDP, or sharded as the model is."""
    if model.sharding is None:
        return wrap(module, device, recipe.device)
    shard_loss(builder, model.sharding, loss_key(name), module)
    return under_autocast(module, device)


def _rule(builder: Builder, train: Train, length: RunLength) -> Rule | None:
    """How the weights are averaged."""
    if train.ema is not None:
        return Ema(train.ema, train.ema_warmup)
    if train.swa is None:
        return None
    try:
        return Swa(length.steps_of(train.swa.start), length.steps_of(train.swa.every))
    except ValueError as error:
        raise builder.wrong("train.swa", f"{error}; write it in steps or epochs") from error


def check_graphs(builder: Builder, section: schema.Device, data: Data, *, is_open: bool = False) -> None:
    """Refuses CUDA graphs over several micro-batches: the second would write its gradients over those of the first.

    Raises:
        RecipeError: They would.
    """
    number = max(len(data.train.sampler.shares(step)) for step in (0, data.train.sampler.steps_per_epoch - 1))
    if section.compile in WITH_GRAPHS and (number > 1 or is_open):
        message = (
            f"'{section.compile}' uses CUDA graphs, which overwrite the gradients of a step of several micro-batches; "
            "say true or max-autotune-no-cudagraphs, or remove data.micro_batch_size"
        )
        raise builder.wrong("device.compile", message)


def _changes_on_device(data: Data) -> Iterator[tuple[str, Callable[..., Any]]]:
    """What changes batches where the model is, in training and in evaluations: it may have a state too."""
    evaluating = next((loader.reading.on_device for loader in data.validation.values()), None)
    for key, change in (("data.on_device", data.train.reading.on_device), ("data.on_device.evaluate", evaluating)):
        if change is not None:
            yield key, change


def _frozen(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in module.named_parameters() if not parameter.requires_grad)


def _has_complex(optimizer: Optimizers) -> bool:
    return any(parameter.is_complex() for group in optimizer.param_groups for parameter in group["params"])


def _unfit_for_sharding(optimizer: Optimizers, *, closure: bool) -> str | None:
    """Why an optimizer cannot step a sharded model; None where it can, as far as is known before a step."""
    for one in each(optimizer).values():
        name = type(one).__name__
        if closure:
            return (
                f"{name} calls the loss itself, which device.sharding does not do; use AdamW, or another that does not"
            )
        if has_modes(one):
            return f"{name} has other weights for evaluating, which device.sharding does not know; use AdamW, say"
        if any(getattr(type(one), key) is not getattr(Optimizer, key) for key in ("state_dict", "load_state_dict")):
            return f"{name} keeps its state in a way of its own, which cannot be saved by rows; use torch's, say AdamW"
    return None


@dataclass(frozen=True)
class _Ways:
    """How a run makes its steps: what is chosen once, so that the loop need not ask.

    Attributes:
        recipe: The recipe.
        builder: Says where something is wrong.
        model: The module, bare and wrapped.
        device: Where to compute.
        freezing: What is frozen until a step.
        after: Called after each update.
        shards: What this process holds, where the model is sharded.
    """

    recipe: Recipe
    builder: Builder
    model: Model
    device: Device
    freezing: Freezing | None
    after: AfterStep | None
    shards: Shards | None = None

    def choose(self, objective: Objective, optimizer: Optimizers) -> tuple[Update, Callable[..., Any]]:
        """How gradients become weights, and how a step is made.

        Raises:
            RecipeError: An optimizer calls the loss itself where that cannot be.
        """
        closure = calls_the_loss(optimizer, self.recipe.optimizer)
        if self.shards is not None and (unfit := _unfit_for_sharding(optimizer, closure=closure)):
            raise self.builder.wrong("optimizer", unfit)
        if closure and (fault := self._unfit(optimizer)):
            raise self.builder.wrong(*fault)
        if self.recipe.train.clip_grad_value is not None and _has_complex(optimizer):
            message = "the model has complex numbers, and which of them is the larger is not said; use clip_grad_norm"
            raise self.builder.wrong("train.clip_grad_value", message)
        if isinstance(objective, TurnsObjective) and isinstance(optimizer, Several):
            turns = Turns(self._turns(objective, optimizer), self.device.accelerator.scaler)
            return turns, turns
        update = self._update(optimizer, self.after)
        return update, ByClosure(update) if closure else train_step

    def _unfit(self, optimizer: Optimizers) -> tuple[str, str] | None:
        """Why an optimizer that calls the loss itself cannot be the run's; None where it can."""
        name = "; ".join(type(one).__name__ for one in each(optimizer).values())
        if isinstance(optimizer, Several):
            return "optimizer", f"{name}: one that calls the loss itself must be alone"
        if self.recipe.device.precision == "fp16":
            return "device.precision", f"fp16 skips updates, and {name} calls the loss itself; use bf16 or 'no'"
        if self.recipe.train.non_finite == "skip":
            return "train.non_finite", f"{name} calls the loss itself, and none of its updates can be skipped; say stop"
        return None

    def _update(self, optimizer: Optimizers, updated: Callable[[int], None] | None) -> OneUpdate:
        train = self.recipe.train
        return OneUpdate(
            optimizer,
            self.device.torch_device,
            scaler=self.device.accelerator.scaler,
            clipping=Clipping(train.clip_grad_norm, train.clip_grad_value),
            skip_non_finite=train.non_finite == "skip",
            updated=updated,
            freezing=self.freezing,
            shards=self.shards,
            seeds=self._seeds(optimizer),
        )

    def _seeds(self, optimizer: Optimizers) -> StepSeeds | None:
        """Where somebody's optimizer may draw, as noise for its weights, all ranks draw what rank 0 does."""
        if self.device.world.size == 1 or draws_only_from_torch(each(optimizer).values()):
            return None
        return StepSeeds(self.recipe.seed, 0, self.device.kind)

    def _turns(self, objective: TurnsObjective, optimizer: Several) -> list[Turn]:
        last = list(objective.turns)[-1]
        return [
            self._turn(name, turn, optimizer.named[name], self.after if name == last else None, objective.every[name])
            for name, turn in objective.turns.items()
        ]

    def _turn(self, name: str, turn: Objective, optimizer: Optimizer, after: AfterStep | None, every: int) -> Turn:
        """A step function, under DDP for the parameters of its optimizer alone."""
        own = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        named = [(key, one) for key, one in self.model.bare.named_parameters() if one.requires_grad]
        others = [parameter for _, parameter in named if id(parameter) not in own]
        for parameter in others:  # DDP looks once, when it is made
            parameter.requires_grad_(False)
        module = wrap_step(StepModule(self.model.wrapped, turn), self.device)
        for parameter in others:
            parameter.requires_grad_(True)
        names = [key for key, one in named if id(one) in own]
        return Turn(name, module, self._update(optimizer, after), names, every)
