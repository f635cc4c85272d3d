"""4: objective. The loss and what it is a mean over, the optimizer, the learning-rate schedule."""

from __future__ import annotations

import copy
import fnmatch
import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from launcher import uncompiled
from launcher.batch import BatchLayout, one_number, shapes
from launcher.errors import LauncherError, Problem, RecipeError
from launcher.recipe.component import Component
from launcher.recipe.components import Workshop
from launcher.recipe.document import dotted, hint
from launcher.recipe.duration import Duration
from launcher.recipe.fitting import parameters_of

Loss = Callable[..., torch.Tensor]

INDEPENDENT = "does not depend on the model: no parameter gets a gradient; look for detach(), argmax() or no_grad()"


@dataclass
class Term:
    """One loss of the step's sum, and its count.

    Attributes:
        name: Its name in the recipe, empty where there is one loss.
        function: `function(*outputs, *targets)`.
        weight: Its factor in the sum.
        per: What its mean is over: `sample`, `element`, `batch`; None until the first batch decides.
        sums: Whether the function gives a sum over what it counts; else it gives a mean.
        wrapped: What training calls: the function, under DDP where it has parameters of its own.
    """

    name: str
    function: Loss
    weight: float
    per: str | None
    sums: bool
    wrapped: Loss | None = None

    @property
    def call(self) -> Loss:
        """What training calls."""
        return self.function if self.wrapped is None else self.wrapped

    @property
    def key(self) -> str:
        """Where the recipe names it."""
        return loss_key(self.name)

    def settle(self, targets: Sequence[Any]) -> None:
        """Decides, from the first targets, what the mean is over where the recipe does not say."""
        if self.per is not None:
            return
        target = targets[0] if targets else None
        classes = isinstance(target, torch.Tensor) and not target.is_floating_point()
        dense = isinstance(target, torch.Tensor) and target.dim() > (1 if classes else 2)
        weighted = getattr(self.function, "weight", None) is not None
        self.per = "element" if self.sums and (weighted or dense) else "sample"

    def count(self, targets: Sequence[Any], samples: int) -> float:
        """What this micro-batch contributes to the count of the step.

        Args:
            targets: In host memory.
            samples: How many samples count; none in a stand-in.
        """
        if self.per != "element" or samples == 0 or not targets:
            return float(samples)
        return _elements(self.function, targets[0])


def _elements(function: Any, target: torch.Tensor) -> float:
    """Entries not ignored; with class weights, their weights, as CrossEntropyLoss divides by."""
    ignore, weight = getattr(function, "ignore_index", None), getattr(function, "weight", None)
    if ignore is None:
        return float(target.numel())
    if target.is_floating_point():  # class probabilities [N, C, …]: torch divides by the number of places
        return target.numel() / target.shape[1]
    kept = target[target != ignore]
    return float(kept.numel()) if weight is None else float(weight.detach().cpu()[kept].double().sum())


def loss_key(name: str) -> str:
    """Where the recipe names a loss: the only one has no name."""
    return f"loss.{name}" if name else "loss"


class Objective:
    """The loss of a step: a weighted sum of terms, each a mean over its own count.

    Args:
        terms: The losses; none where the model or a step function brings its own.
        layout: Which parts of batch and result they get.
        step: The user's own step function, in place of forward and loss.
        count: What a batch counts, with a step function.
    """

    def __init__(
        self,
        terms: Sequence[Term],
        layout: BatchLayout,
        step: Callable[..., Mapping[str, Any]] | None = None,
        count: Callable[[Any], float] | None = None,
    ):
        self.terms = list(terms)
        self.layout = layout
        self.step = step
        self._count = count
        # whether every count is known by arithmetic, without reading a batch: the first one decides, in `settle`
        self.counts_samples = False

    @property
    def modules(self) -> dict[str, nn.Module]:
        """Losses that have parameters of their own to train, by name."""
        named = {term.name: term.function for term in self.terms}
        return {
            name: one
            for name, one in named.items()
            if isinstance(one, nn.Module) and any(parameter.requires_grad for parameter in one.parameters())
        }

    def stepped(self, model: nn.Module, batch: Any, at: Any) -> dict[str, Any]:
        """What the user's step function gives.

        Raises:
            LauncherError: It is no mapping, has no loss, or one that is not one number.
        """
        assert self.step is not None
        result = self.step(model, batch, at)
        if not isinstance(result, Mapping) or "loss" not in result:
            given = ", ".join(map(repr, result)) or "nothing" if isinstance(result, Mapping) else shapes(result)
            raise LauncherError(f"train.step: gave {given}; return a mapping with the loss, {{'loss': …}}")
        return {**result, "loss": one_number(result["loss"], "train.step")}

    def to(self, device: torch.device) -> None:
        """Moves the losses: class weights are buffers."""
        for term in self.terms:
            if isinstance(term.function, nn.Module):
                term.function.to(device)

    @property
    def per_batch(self) -> bool:
        """Whether a term is a function of a whole batch, so that the result depends on the world."""
        return any(term.per == "batch" for term in self.terms)

    def settle(self, batch: Any) -> None:
        """Decides what each mean is over, from the first batch."""
        if self.terms:
            targets = self.layout.targets(batch)
            for term in self.terms:
                term.settle(targets)
        self.counts_samples = self._count is None and all(term.per != "element" for term in self.terms)

    def counts(self, batch: Any, samples: int) -> list[float]:
        """What a micro-batch in host memory contributes to each term's count."""
        if self.counts_samples:
            return [float(samples)] * (len(self.terms) or 1)
        if self._count is not None:
            return [float(self._count(batch)) if samples else 0.0]
        targets = self.layout.targets(batch)
        return [term.count(targets, samples) for term in self.terms]

    def scales(self, local: Sequence[float], total: Sequence[float], world_size: int, samples: int) -> list[float]:
        """Factors that make each term's value a part of the step's mean.

        DDP averages gradients over the ranks, hence the world size. A sum is divided by the step's count; a
        mean is first weighted by the count it was taken over.

        Args:
            local: This micro-batch's counts, a term each.
            total: The step's counts over all ranks.
            world_size: How many ranks DDP averages over.
            samples: How many samples count; a stand-in contributes nothing.
        """
        if not self.terms:
            return [local[0] * world_size / total[0] if total[0] else 0.0]
        return [
            _scale(term, own, all_, world_size, samples)
            for term, own, all_ in zip(self.terms, local, total, strict=True)
        ]

    def value(
        self, outputs: Sequence[Any], targets: Sequence[Any], scales: Sequence[float]
    ) -> tuple[torch.Tensor, float]:
        """The terms' values put together: a scalar tensor, and a factor still to be applied to it."""
        values = [one_number(term.call(*outputs, *targets), term.key) for term in self.terms]
        if len(values) == 1:
            return values[0], scales[0]
        parts = [value * scale for value, scale in zip(values, scales, strict=True)]
        return torch.stack(parts).sum(), 1.0


def _scale(term: Term, local: float, total: float, world_size: int, samples: int) -> float:
    if samples == 0:
        return 0.0
    if term.per == "batch":
        return term.weight
    numerator = 1.0 if term.sums else local
    if total == 0:  # every entry of the whole step is ignored: it has no gradient
        return 0.0
    return term.weight * numerator * world_size / total


def build_objective(workshop: Workshop) -> Objective:
    """The recipe's loss, or the step function that stands for it.

    Raises:
        RecipeError: A loss states a reduction, or `_per_: element` where nothing can be counted.
    """
    recipe = workshop.recipe
    layout = BatchLayout(recipe.batch)
    if recipe.train.step is not None:
        count = workshop.build(recipe.train.count) if recipe.train.count else None
        return Objective([], layout, step=workshop.build(recipe.train.step), count=count)
    if recipe.loss == "model":
        return Objective([], layout)
    named: dict[str, Component] = {"": recipe.loss} if isinstance(recipe.loss, Component) else dict(recipe.loss or {})
    return Objective([_term(workshop, name, one) for name, one in named.items()], layout)


def _term(workshop: Workshop, name: str, component: Component) -> Term:
    _check_reduction(workshop, component, component.kwargs.get("reduction", "mean"))
    function = workshop.build(component)
    if isinstance(function, type):
        function = function()
    _check_reduction(workshop, component, getattr(function, "reduction", "mean"))
    per = component.options.get("_per_")
    has_reduction = isinstance(function, nn.Module) and getattr(function, "reduction", None) == "mean"
    ignores = has_reduction and hasattr(function, "ignore_index")
    if per is None:
        # a stated ignore_index means that some entries do not count, as torch's own mean has it
        per = "element" if ignores and "ignore_index" in component.kwargs else None if ignores else "sample"
    # A mean over ignored targets only is NaN, and NaN × 0 stays NaN: these losses are summed and divided by our count.
    sums = ignores or (has_reduction and per == "element")
    if sums:
        function = copy.copy(function)  # the one that was handed in stays a mean
        function.reduction = "sum"
    return Term(name, function, float(component.options.get("_weight_", 1.0)), per, sums)


def _check_reduction(workshop: Workshop, component: Component, reduction: Any) -> None:
    """Refuses a loss that is no mean.

    Raises:
        RecipeError: It sums, or gives a number for each entry.
    """
    if not isinstance(reduction, str) or reduction in ("mean", "batchmean"):
        return
    where = str(workshop.recipe.document.origin((*component.path, "reduction")))
    message = f"'{reduction}' is not allowed: a step's loss is a mean over its count; remove it, and say _per_: element"
    raise RecipeError([Problem(where, f"{dotted(component.path)}.reduction", message)])


# ---------------------------------------------------------------------- optimizer


def build_optimizer(workshop: Workshop, model: nn.Module, losses: Mapping[str, nn.Module]) -> torch.optim.Optimizer:
    """The recipe's optimizer over all parameters that require a gradient.

    Args:
        workshop: Builds the component.
        model: The bare module.
        losses: Those with parameters of their own, by name: the parameter `scale` of one is `loss.NAME.scale`.

    Raises:
        RecipeError: A pattern of `_groups_` matches no parameter, or what came out is no optimizer of these.
    """
    uncompiled.optimizers()
    section = workshop.recipe.optimizer
    named = dict(_trained("", model))
    for name, loss in losses.items():
        named |= {key: one for key, one in _trained(f"{loss_key(name)}.", loss) if not _is_among(one, named.values())}
    groups = section.options.get("_groups_")
    params = _groups(workshop, section, groups, named) if groups else list(named.values())
    if section.given is None:
        chosen = {"fused": True} if _fuses(workshop, [model, *losses.values()], named.values()) else {}
        optimizer = workshop.build(section, params=params, **chosen)
    elif callable(section.given):
        optimizer = section.given(params)
    else:
        optimizer = section.given
    if groups and section.given is None:
        _check_groups(workshop, section, groups, optimizer)
    if unfit := _unfit(optimizer, section.target, named.values(), made=optimizer is not section.given):
        raise RecipeError([Problem(str(section.origin), "optimizer", unfit)])
    return optimizer  # type: ignore[no-any-return]


def _trained(prefix: str, module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((prefix + name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad)


def _is_among(parameter: nn.Parameter, others: Iterable[nn.Parameter]) -> bool:
    return any(parameter is other for other in others)


def _unfit(optimizer: Any, target: str, parameters: Iterable[nn.Parameter], made: bool) -> str | None:
    """Why something cannot be the run's optimizer; one that was not made here may be another model's."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        return f"{target} gave a {type(optimizer).__name__}, not a torch.optim.Optimizer"
    own = [one for group in optimizer.param_groups for one in group["params"]]
    if not made and not any(_is_among(parameter, own) for parameter in parameters):
        return "has none of this model's parameters; hand in its class, or a function of the parameters"
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        return (
            f"{type(optimizer).__name__} wants to call the loss itself, several times a step, which this loop does not "
            "do; take another"
        )
    return None


_HOW_TO_STEP = ("fused", "foreach", "capturable", "differentiable")  # a recipe that says one of them has chosen


def _fuses(workshop: Workshop, modules: Sequence[nn.Module], parameters: Iterable[nn.Parameter]) -> bool:
    """Whether torch's fused kernel does the update: 2 to 3 times as fast on a CPU, with equal results to rounding.

    Only one of torch's own; not with sparse gradients, for which there is no kernel, nor under fp16, where the scaler
    skips updates inside of it, which fused SGD with momentum does not survive on its first step.
    """
    recipe = workshop.recipe
    section = recipe.optimizer
    if (
        section.style != "call"
        or recipe.device.precision == "fp16"
        or any(key in section.kwargs for key in _HOW_TO_STEP)
    ):
        return False
    target = workshop.resolve(section)
    if not str(getattr(target, "__module__", "")).startswith("torch.optim.") or "fused" not in (
        parameters_of(target) or ()
    ):
        return False
    if any(getattr(one, "sparse", False) for module in modules for one in module.modules()):
        return False
    return all(one.is_floating_point() and one.device.type in ("cpu", "cuda") for one in parameters)


def describe_optimizer(optimizer: torch.optim.Optimizer) -> str:
    """Its class, and how it steps, for the plan."""
    groups = optimizer.param_groups
    several = f", {len(groups)} groups of parameters" if len(groups) > 1 else ""
    fused = ", fused (optimizer.fused=false turns that off)" if groups[0].get("fused") else ""
    return f"{type(optimizer).__name__}{several}{fused}"


def _groups(
    workshop: Workshop,
    section: Component,
    patterns: Mapping[str, Mapping[str, Any]],
    named: Mapping[str, nn.Parameter],
) -> list[dict[str, Any]]:
    """Parameter groups by name pattern; the first pattern that matches a name has it."""
    left = dict(named)
    groups: list[dict[str, Any]] = []
    for pattern, settings in patterns.items():
        names = [name for name in left if fnmatch.fnmatchcase(name, pattern)]
        if not names:
            shown = ", ".join(list(named)[:8])
            where = str(workshop.recipe.document.key_origin((*section.path, "_groups_", pattern)))
            message = f"no parameter is named like '{pattern}' (or an earlier pattern has it); there are: {shown}, …"
            raise RecipeError([Problem(where, f"optimizer._groups_.{pattern}", message)])
        said = workshop.value(settings, {})
        for name, message in workshop.unfit(section, said):
            raise _group_error(workshop, section, pattern, name, message)
        groups.append({"params": [left.pop(name) for name in names], **said})
    return [{"params": list(left.values())}, *groups] if left else groups


def _check_groups(
    workshop: Workshop, section: Component, groups: Mapping[str, Mapping[str, Any]], optimizer: Any
) -> None:
    """Settings that the optimizer that came out does not have would be kept in its groups, and used by nobody."""
    known = list(getattr(optimizer, "defaults", None) or ())
    for pattern, settings in groups.items():
        for name in settings if known else ():
            if name not in known:
                message = f"{type(optimizer).__name__} has no setting '{name}'"
                message += hint(name, known, f"a group may set: {', '.join(known)}")
                raise _group_error(workshop, section, pattern, name, message)


def _group_error(workshop: Workshop, section: Component, pattern: str, name: str, message: str) -> RecipeError:
    path = (*section.path, "_groups_", pattern, name)
    return RecipeError([Problem(str(workshop.recipe.document.key_origin(path)), dotted(path), message)])


# ---------------------------------------------------------------------- schedule


class Schedule:
    """The learning rate, a function of the step counter alone.

    Args:
        optimizer: Whose rates are set.
        scheduler: torch's scheduler, or None for a constant rate.
        warmup_steps: A linear ramp before the scheduler's first step: step t has (t + 1) / (warmup_steps + 1)
            of the scheduler's first rate.
        every_steps: The scheduler steps once in so many optimizer steps.
        on_evaluation: ReduceLROnPlateau: it steps after each evaluation instead.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        scheduler: Any = None,
        warmup_steps: int = 0,
        every_steps: int = 1,
        on_evaluation: bool = False,
    ):
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.warmup_steps = warmup_steps
        self.every_steps = every_steps
        self.on_evaluation = on_evaluation
        self._full = [float(group["lr"]) for group in optimizer.param_groups]  # a tensor would change with the rate
        if warmup_steps:
            self._ramp(0)

    def advance(self, step: int) -> None:
        """Sets the rates for the step after `step` completed ones; called once after each."""
        if step < self.warmup_steps:
            self._ramp(step)
        elif step == self.warmup_steps:
            self._set(self._full)
        elif (
            self.scheduler is not None and not self.on_evaluation and (step - self.warmup_steps) % self.every_steps == 0
        ):
            self.scheduler.step()

    def replay(self, steps: int) -> None:
        """Goes through a number of steps again, from the beginning."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch expects an optimizer step between two of these
            for step in range(1, steps + 1):
                self.advance(step)

    def evaluated(self, value: float) -> None:
        """Tells ReduceLROnPlateau what `evaluate.best` measured; the same value on every rank."""
        if self.on_evaluation:
            self.scheduler.step(value)

    def _ramp(self, step: int) -> None:
        self._set([full * (step + 1) / (self.warmup_steps + 1) for full in self._full])

    def _set(self, rates: Sequence[float]) -> None:
        for group, rate in zip(self.optimizer.param_groups, rates, strict=False):  # one that came later has its own
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    @property
    def rate(self) -> float:
        """The first group's learning rate."""
        return float(self.optimizer.param_groups[0]["lr"])


_WARMS_UP_ITSELF = ("OneCycleLR", "CyclicLR")


def build_schedule(
    workshop: Workshop, optimizer: torch.optim.Optimizer, steps_per_epoch: int, total_steps: int | None
) -> Schedule:
    """The recipe's schedule, with every duration in steps.

    Args:
        workshop: Builds the component; learns `scheduler.steps`.
        optimizer: Handed in at any depth.
        steps_per_epoch: Optimizer steps of one pass over the data.
        total_steps: The run's length; None where it is a time.

    Raises:
        RecipeError: A ramp beside a scheduler that has its own, or a number of steps that this run has not.
    """
    section, best = workshop.recipe.scheduler, workshop.recipe.evaluate.best
    if section is None:
        return Schedule(optimizer)
    try:
        warmup = _steps(section.options.get("_warmup_"), steps_per_epoch, total_steps, 0)
        every = _steps(section.options.get("_every_"), steps_per_epoch, total_steps, 1)
        if total_steps is not None:
            workshop.computed["scheduler.steps"] = max(1, total_steps - warmup)
        scheduler = _scheduler(workshop, section, optimizer)
    except ValueError as error:
        raise RecipeError([Problem(str(section.origin), "scheduler", f"{error}; say it in steps")]) from error
    name = type(scheduler).__name__
    if warmup and name in _WARMS_UP_ITSELF:
        message = f"{name} warms up by itself; remove _warmup_"
        raise RecipeError([Problem(str(section.origin), "scheduler._warmup_", message)])
    plateau = _is_plateau(type(scheduler))
    if plateau and best is None:
        message = "ReduceLROnPlateau steps with evaluate.best; state evaluate: {best: {metric: loss, mode: min}}"
        raise RecipeError([Problem(str(section.origin), "scheduler", message)])
    if plateau and best is not None and scheduler.mode != best.mode:
        message = f"'{scheduler.mode}' contradicts evaluate.best, whose mode is {best.mode}; they must be the same"
        raise RecipeError([Problem(str(section.origin), "scheduler.mode", message)])
    return Schedule(optimizer, scheduler, warmup, every, on_evaluation=plateau)


def _scheduler(workshop: Workshop, section: Component, optimizer: torch.optim.Optimizer) -> Any:
    """The recipe's scheduler, or the one handed in: of this optimizer, or a class or function of it."""
    best = workshop.recipe.evaluate.best
    takes_mode = section.given is None and "mode" not in section.kwargs and _is_plateau(workshop.resolve(section))
    handed = {"mode": best.mode} if takes_mode and best is not None else {}
    scheduler = workshop.build(section, optimizer=optimizer, **handed)
    if section.given is not None and (isinstance(scheduler, type) or not hasattr(scheduler, "step")):
        scheduler = scheduler(optimizer)
    if getattr(scheduler, "optimizer", optimizer) is not optimizer:
        message = "steps another optimizer than the run's; hand in its class, or a function of the optimizer"
        raise RecipeError([Problem(str(section.origin), "scheduler", message)])
    return scheduler


def _is_plateau(target: Any) -> bool:
    return isinstance(target, type) and issubclass(target, torch.optim.lr_scheduler.ReduceLROnPlateau)


def _steps(said: Any, steps_per_epoch: int, total_steps: int | None, default: int) -> int:
    if said is None:
        return default
    if isinstance(said, bool) or not isinstance(said, int | str):
        raise LauncherError(f"'{said}' is no duration; write '500 steps', '1 epoch' or '5%'")
    duration = Duration(said, "steps", f"{said} steps") if isinstance(said, int) else Duration.parse(said)
    if duration is None:
        raise LauncherError(f"'{said}' is no duration; write '500 steps', '1 epoch' or '5%'")
    return duration.in_steps(steps_per_epoch, total_steps)
