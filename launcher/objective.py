"""4: objective. The loss and what it is a mean over, the optimizer, the learning-rate schedule."""

from __future__ import annotations

import fnmatch
import functools
import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import nn

from launcher import uncompiled
from launcher.batch import BatchLayout, Picks, arguments, one_number, shapes
from launcher.errors import LauncherError, Problem, RecipeError
from launcher.loss_probe import still_holds
from launcher.loss_reading import Reading, known, order_fault, reduction_of, summing, sums_itself, tensors_in
from launcher.recipe.component import Component
from launcher.recipe.components import Workshop
from launcher.recipe.document import dotted
from launcher.recipe.duration import Duration
from launcher.recipe.fitting import parameters_of

Loss = Callable[..., torch.Tensor]

INDEPENDENT = "does not depend on the model: no parameter gets a gradient; look for detach(), argmax() or no_grad()"


@dataclass
class Term:
    """One loss of the step's sum, and what it is a mean over.

    Attributes:
        name: Its name in the recipe, empty where there is one loss.
        function: `function(*outputs, *targets)`.
        weight: Its factor in the sum.
        per: What the recipe says that its mean is over: `sample`, `element`, `batch`, `sum`; None leaves it open.
        reading: What it is a mean over; None until it is measured.
        sums: Whether torch's own function is called for a sum over what it counts; else it is called as it is.
        outputs: What of the model's result it gets; None for `batch.outputs`.
        targets: What of a batch it gets; None for `batch.targets`.
        wrapped: What training calls: the function, under DDP where it has parameters of its own.
    """

    name: str
    function: Loss
    weight: float
    per: str | None
    reading: Reading | None = None
    sums: bool = False
    outputs: Picks | None = None
    targets: Picks | None = None
    wrapped: Loss | None = None

    @property
    def call(self) -> Loss:
        """What training calls."""
        return self.function if self.wrapped is None else self.wrapped

    @property
    def key(self) -> str:
        """Where the recipe names it."""
        return loss_key(self.name)

    @property
    def part(self) -> str:
        """What its own value is called in a line, where there are several."""
        return f"loss/{self.name}"

    @property
    def has_no_mean_of_nothing(self) -> bool:
        """Whether it may be NaN where nothing counts, and need not be called: for one with parameters DDP waits."""
        reading = self.reading
        return self.wrapped is None and reading is not None and not (self.sums or reading.by_samples or reading.floor)

    def outputs_of(self, layout: BatchLayout, result: Any) -> Any:
        """What of a model's result it gets: by position, or by the names of its arguments."""
        return layout.outputs(result) if self.outputs is None else layout.picked_outputs(result, self.outputs)

    def targets_of(self, layout: BatchLayout, batch: Any) -> Any:
        """What of a batch it gets; that is what is counted."""
        return layout.targets(batch) if self.targets is None else layout.picked_targets(batch, self.targets)

    def value(self, function: Loss, layout: BatchLayout, result: Any, batch: Any) -> torch.Tensor:
        """The loss of a batch."""
        args, kwargs = arguments(self.outputs_of(layout, result), self.targets_of(layout, batch))
        return one_number(function(*args, **kwargs), self.key)


class At(NamedTuple):
    """Where a step stands in its run; a user's step function gets it.

    Attributes:
        step: Optimizer steps completed before this one.
        epoch: The pass over the data, from 0.
        fraction: How much of the run is done, 0 to 1; 0 where its length is a time.
    """

    step: int = 0
    epoch: int = 0
    fraction: float = 0.0


def name_of(function: Any) -> str:
    """What to call a loss: its class, or the function's name."""
    if isinstance(function, functools.partial):
        return name_of(function.func)
    return (
        type(function).__name__
        if isinstance(function, nn.Module)
        else getattr(function, "__name__", type(function).__name__)
    )


def loss_key(name: str) -> str:
    """Where the recipe names a loss: the only one has no name."""
    return f"loss.{name}" if name else "loss"


class Objective:
    """The loss of a step: a weighted sum of terms, each a mean over its own count.

    Args:
        terms: The losses; none where the model or a step function brings its own.
        layout: Which parts of batch and result they get.
        step: The user's own step function, in place of forward and loss.
        count: What a batch counts, with a step function or a model's own loss.
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
        self.count = count
        self.own: Reading | None = None  # of a loss that the model or a step function brings
        # whether every count is known by arithmetic, without reading a batch: the first one decides, in `settle`
        self.counts_samples = False
        self.is_whole = False  # a step is one forward pass on one process: no reading changes its numbers
        self.is_audited = False  # in this start, on a batch of training

    @property
    def logs_scalars(self) -> bool:
        """Whether a line has numbers besides the loss: a step function's, or the parts of a sum."""
        return self.step is not None or len(self.terms) > 1

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

    # ------------------------------------------------------------------ what is counted

    @property
    def readings(self) -> dict[str, Reading | None]:
        """What each term is a mean over, by its key in the recipe."""
        if self.terms:
            return {term.key: term.reading for term in self.terms}
        return {"loss" if self.step is None else "train.step": self.own}

    def read(self, key: str, reading: Reading) -> None:
        """Takes up what a term is a mean over."""
        for term in self.terms:
            if term.key == key:
                term.reading = reading
        if not self.terms:
            self.own = reading

    def manifest(self) -> dict[str, Any]:
        """What a checkpoint keeps, so that a resume need not measure again."""
        return {key: reading.manifest() for key, reading in self.readings.items() if reading is not None}

    def settle(self) -> None:
        """Before the first count: a loss that nobody has measured is taken for a mean over samples."""
        for key, reading in self.readings.items():
            if reading is None:
                self.read(key, Reading("samples", found="trusted", why="nobody has measured it"))
        self.counts_samples = all(one is not None and one.by_samples for one in self.readings.values())

    def counts(self, batch: Any, samples: int) -> list[float]:
        """What a micro-batch in host memory contributes to each term's count."""
        readings = [term.reading for term in self.terms] or [self.own]
        if self.counts_samples:
            return [one.count(None, samples) if one is not None else float(samples) for one in readings]
        parts = [term.targets_of(self.layout, batch) for term in self.terms] or [batch]
        return [
            one.count(part, samples) if one is not None else float(samples)
            for one, part in zip(readings, parts, strict=True)
        ]

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
            return [_scale(self.own, False, local[0], total[0], world_size, samples)]
        return [
            term.weight * _scale(term.reading, term.sums, own, all_, world_size, samples)
            for term, own, all_ in zip(self.terms, local, total, strict=True)
        ]

    def value(
        self, result: Any, batch: Any, targets: Sequence[Any], scales: Sequence[float]
    ) -> tuple[torch.Tensor, float, Mapping[str, torch.Tensor]]:
        """The terms' values put together: a scalar tensor, a factor still to be applied to it, and the parts of a sum.

        Args:
            result: The model's.
            batch: The whole batch.
            targets: Those of `batch.targets`.
            scales: A factor for each term.
        """
        if len(self.terms) == 1:
            return self._value(self.terms[0], result, batch, targets, scales[0]), scales[0], _NO_PARTS
        parts = {
            term.part: self._value(term, result, batch, targets, scale) * scale
            for term, scale in zip(self.terms, scales, strict=True)
        }
        weights = {term.part: term.weight or 1.0 for term in self.terms}
        logged = {name: part.detach() / weights[name] for name, part in parts.items()}
        return torch.stack(list(parts.values())).sum(), 1.0, logged

    def _value(self, term: Term, result: Any, batch: Any, targets: Sequence[Any], scale: float) -> torch.Tensor:
        if scale == 0 and term.has_no_mean_of_nothing:
            return self._of_nothing(term, result)
        if term.outputs is None and term.targets is None:
            return one_number(term.call(*self.layout.outputs(result), *targets), term.key)
        return term.value(term.call, self.layout, result, batch)

    def audit(self, result: Any, batch: Any, samples: int) -> None:
        """Tries on a real batch whether each term still is what it was found to be.

        Raises:
            LauncherError: One is not.
        """
        self.is_audited = True
        for term in self.terms:
            reading = term.reading
            if reading is None or term.sums or reading.found == "stated" or reading.kind == "batch":
                continue
            if self.is_whole and reading.found == "known":  # a slip that broadcasts is a question, and no other number
                continue
            outputs, targets = term.outputs_of(self.layout, result), term.targets_of(self.layout, batch)
            off = still_holds(term.function, reading, outputs, targets, samples)
            if off is not None:
                seen = f"outputs {shapes(outputs)}, targets {shapes(targets)}"
                raise LauncherError(
                    f"{term.key}: is not {reading.words} on this batch ({seen}): its halves put together are {off:.1g} "
                    "off; mend the loss, or say what it is: _per_: sample, element, sum or batch"
                )

    def _of_nothing(self, term: Term, result: Any) -> torch.Tensor:
        """Zero, by way of the outputs: a mean over nothing is NaN, and so is NaN × 0."""
        outputs = [one for _, one in tensors_in(term.outputs_of(self.layout, result)) if one.requires_grad]
        return torch.stack([one.sum() for one in outputs]).sum() * 0.0

    def weighed(self, values: Sequence[torch.Tensor], counts: Sequence[float]) -> list[torch.Tensor]:
        """Each term's value on a batch as a sum over what it counts: an evaluation adds these up."""
        readings = [(term.reading, term.sums) for term in self.terms] or [(self.own, False)]
        return [
            _weighed(value, count, reading, sums)
            for value, count, (reading, sums) in zip(values, counts, readings, strict=True)
        ]


_NO_PARTS: Mapping[str, torch.Tensor] = {}


def _weighed(value: torch.Tensor, count: float, reading: Reading | None, sums: bool) -> torch.Tensor:
    if sums or (reading is not None and reading.kind == "sum"):
        return value
    count = max(count, reading.floor if reading is not None else 0.0)
    return value * count if count else torch.zeros_like(value)  # a mean over nothing is NaN


def _scale(reading: Reading | None, sums: bool, local: float, total: float, world: int, samples: int) -> float:
    if samples == 0:
        return 0.0
    if reading is not None and reading.kind == "batch":
        return 1.0
    if reading is not None and reading.kind == "sum":
        return float(world)
    if reading is not None and total > 0:
        local = max(local, reading.floor)
    if total == 0:  # every entry of the whole step is ignored: it has no gradient
        return 0.0
    return (1.0 if sums else local) * world / total


def build_objective(workshop: Workshop) -> Objective:
    """The recipe's loss, or the step function that stands for it.

    Raises:
        RecipeError: A loss gives a number for each entry, or its arguments would not be what they are called.
    """
    recipe = workshop.recipe
    layout = BatchLayout(recipe.batch)
    count = workshop.build(recipe.train.count) if recipe.train.count else None
    if recipe.train.step is not None:
        return Objective([], layout, step=workshop.build(recipe.train.step), count=count)
    if recipe.loss == "model":
        return Objective([], layout, count=count)
    named: dict[str, Component] = {"": recipe.loss} if isinstance(recipe.loss, Component) else dict(recipe.loss or {})
    return Objective([_term(workshop, name, one) for name, one in named.items()], layout)


def _term(workshop: Workshop, name: str, component: Component) -> Term:
    function = workshop.build(component)
    if isinstance(function, type):
        function = function()
    options = component.options
    per, weight = options.get("_per_"), float(options.get("_weight_", 1.0))
    outputs, targets = options.get("_outputs_"), options.get("_targets_")
    reading = known(function) if (workshop.recipe.batch.targets if targets is None else targets) else None
    if reading is not None and isinstance(targets, Mapping):
        reading = replace(reading, where=("target",))  # torch's name for it
    if reading is not None:
        _check_reduction(workshop, component, function)
    _check_order(workshop, component, function)
    if reading is not None and per is not None and (per == "sum") != (reading.kind == "sum") and per != "batch":
        message = f"_per_: {per} is not what it is: {reading.words} ({reading.why}); remove _per_, or say its reduction"
        raise RecipeError([Problem(str(component.origin), dotted(component.path), message)])
    if per == "batch":
        reading = Reading("batch", found="stated")
    sums = reading is not None and reading.kind in ("kept", "weights") and sums_itself(function)
    return Term(name, summing(function) if sums else function, weight, per, reading, sums, outputs, targets)


def _check_reduction(workshop: Workshop, component: Component, function: Any) -> None:
    """Refuses a loss of torch's that is no number.

    Raises:
        RecipeError: It gives one for each entry.
    """
    if reduction_of(function) != "none":
        return
    where = str(workshop.recipe.document.origin((*component.path, "reduction")))
    message = "'none' is not allowed: it gives a number for each entry, and a step needs one; remove it, or say sum"
    raise RecipeError([Problem(where, f"{dotted(component.path)}.reduction", message)])


def _check_order(workshop: Workshop, component: Component, function: Any) -> None:
    """Refuses outputs and targets that would stand where the loss takes something else.

    Raises:
        RecipeError: They would.
    """
    batch, options = workshop.recipe.batch, component.options
    outputs, targets = options.get("_outputs_", batch.outputs or [0]), options.get("_targets_", batch.targets)
    if isinstance(outputs, Mapping) or isinstance(targets, Mapping):
        return
    if fault := order_fault(function, len(outputs), len(targets)):
        remedy = "say which is which: _outputs_: {input: 0, var: 1}, _targets_: {target: 1}"
        where = str(component.origin)
        raise RecipeError([Problem(where, dotted(component.path), f"{component.target} {fault}; {remedy}")])


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
        groups.append({"params": [left.pop(name) for name in names], **workshop.value(settings, {})})
    return [{"params": list(left.values())}, *groups] if left else groups


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
