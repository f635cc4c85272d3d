"""4: objective. The learning rate by step."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from launcher.errors import LauncherError
from launcher.objective.run_length import RunLength
from launcher.objective.several import Optimizers, Several
from launcher.recipe import schema
from launcher.recipe.build import Builder
from launcher.recipe.component import Component
from launcher.recipe.consistency import NEEDS_BEST, WARMS_UP_ITSELF
from launcher.recipe.duration import Duration
from launcher.text import counted, hint


class Schedule:
    """The learning rate, a function of the step counter alone.

    Args:
        optimizer: Whose rates are set.
        scheduler: torch's scheduler, or None for a constant rate.
        warmup_steps: A linear ramp before the scheduler's first step: step t has (t + 1) / (warmup_steps + 1)
            of the scheduler's first rate.
        every_steps: The scheduler steps once in so many optimizer steps.
        monitor: ReduceLROnPlateau: it steps after each evaluation instead, with this metric.
        last_step: Where the run ends, and the schedule may with it.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        scheduler: Any = None,
        warmup_steps: int = 0,
        every_steps: int = 1,
        monitor: schema.Best | None = None,
        last_step: int | None = None,
    ):
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.warmup_steps = warmup_steps
        self.every_steps = every_steps
        self.monitor = monitor
        self.last_step = last_step
        self._full = [float(group["lr"]) for group in optimizer.param_groups]  # a tensor would change with the rate
        if warmup_steps:
            self._ramp(0)

    @property
    def on_evaluation(self) -> bool:
        """Whether it steps after each evaluation."""
        return self.monitor is not None

    def advance(self, step: int) -> None:
        """Sets the rates for the step after `step` completed ones; called once after each."""
        if self.last_step is not None and step > self.last_step:
            return  # some raise an error beyond their end
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

    def evaluated(self, value_of: Callable[[schema.Best], float]) -> None:
        """Tells ReduceLROnPlateau what was measured; the same value on every rank."""
        if self.monitor is not None:
            self.scheduler.step(value_of(self.monitor))

    def describe(self) -> str:
        """In words, for the plan; empty where the rate is constant."""
        ramp = f"a warm-up of {counted(self.warmup_steps, 'step')}" if self.warmup_steps else ""
        if self.scheduler is None:
            return f"{ramp}, then constant" if ramp else ""
        after = f", after {ramp}" if ramp else ""
        name = type(self.scheduler).__name__
        if self.monitor is not None:
            of = f" of validation {self.monitor.of}" if self.monitor.of else ""
            return f"{name}, follows {self.monitor.metric} ({self.monitor.mode}){of} at each evaluation{after}"
        every = f", moves on every {counted(self.every_steps, 'step')}" if self.every_steps > 1 else ""
        if self.last_step is None:
            return f"{name}, until the run ends{every}{after}"
        return f"{name}, over {counted(max(0, self.last_step - self.warmup_steps), 'step')}{every}{after}"

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

    @property
    def rates(self) -> dict[str, float]:
        """The same, by what a line calls it."""
        return {"lr": self.rate}


class Schedules:
    """A schedule for each of several optimizers, advanced together; as a part of a checkpoint, their schedulers.

    Args:
        named: By the names of the optimizers.
    """

    def __init__(self, named: Mapping[str, Schedule]):
        self.named = dict(named)
        self.on_evaluation = any(schedule.on_evaluation for schedule in named.values())

    @property
    def scheduler(self) -> Schedules | None:
        """Itself, where something is to be saved."""
        return self if any(schedule.scheduler is not None for schedule in self.named.values()) else None

    def advance(self, step: int) -> None:
        """Sets the rates for the step after `step` completed ones."""
        for schedule in self.named.values():
            schedule.advance(step)

    def replay(self, steps: int) -> None:
        """Goes through a number of steps again, from the beginning."""
        for schedule in self.named.values():
            schedule.replay(steps)

    def evaluated(self, value_of: Callable[[schema.Best], float]) -> None:
        """Tells each ReduceLROnPlateau what was measured."""
        for schedule in self.named.values():
            schedule.evaluated(value_of)

    def describe(self) -> str:
        """In words, for the plan; empty where all rates are constant."""
        described = {name: schedule.describe() for name, schedule in self.named.items()}
        return "; ".join(f"{name}: {words}" for name, words in described.items() if words)

    @property
    def rates(self) -> dict[str, float]:
        """The first one's rate, and each one's by its name."""
        own = {f"lr/{name}": schedule.rate for name, schedule in self.named.items()}
        return {"lr": next(iter(own.values())), **own}

    def state_dict(self) -> dict[str, Any]:
        """The schedulers' states."""
        return {
            name: schedule.scheduler.state_dict()
            for name, schedule in self.named.items()
            if schedule.scheduler is not None
        }

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Takes the schedulers' states up."""
        for name, own in state.items():
            self.named[name].scheduler.load_state_dict(own)


def build_schedules(
    builder: Builder,
    section: Component | Mapping[str, Component] | None,
    optimizer: Optimizers,
    length: RunLength,
    best: schema.Best | None = None,
) -> Schedule | Schedules:
    """The recipe's schedule, or those of its optimizers by the same names; one that has none is constant.

    Raises:
        RecipeError: There is no such optimizer, or what `build_schedule` refuses.
    """
    if not isinstance(optimizer, Several):
        if isinstance(section, Mapping):
            raise builder.wrong("scheduler", "is for several optimizers by name, and there is one; state it alone")
        return build_schedule(builder, section, optimizer, length, best)
    if isinstance(section, Component):
        names = ", ".join(f"{name}: {{…}}" for name in optimizer.named)
        raise builder.wrong("scheduler", f"there are several optimizers; say it by their names: {{{names}}}")
    named = section or {}
    for strange in (name for name in named if name not in optimizer.named):
        message = (
            f"there is no optimizer '{strange}'{hint(strange, optimizer.named, f'there are: {_joined(optimizer)}')}"
        )
        raise builder.wrong(("scheduler", strange), message, at_key=True)
    return Schedules(
        {name: build_schedule(builder, named.get(name), one, length, best) for name, one in optimizer.named.items()}
    )


def _joined(optimizer: Several) -> str:
    return ", ".join(optimizer.named)


def build_schedule(
    builder: Builder,
    section: Component | None,
    optimizer: torch.optim.Optimizer,
    length: RunLength,
    best: schema.Best | None = None,
) -> Schedule:
    """An optimizer's schedule, with every duration in steps.

    Args:
        builder: Builds the component; learns `scheduler.steps`.
        section: The recipe's `scheduler`.
        optimizer: Passed in at any depth.
        length: The run's.
        best: The recipe's `evaluate.best`, which ReduceLROnPlateau follows unless it says `_monitor_`.

    Raises:
        RecipeError: A ramp beside a scheduler that has its own, or a number of steps that this run has not.
    """
    if section is None:
        return Schedule(optimizer)
    try:
        warmup = _steps(section.options.get("_warmup_"), length, 0)
        every = _steps(section.options.get("_every_"), length, 1)
        if length.total_steps is not None:
            builder.computed["scheduler.steps"] = max(1, length.total_steps - warmup)
        scheduler = _scheduler(builder, section, optimizer, best)
    except ValueError as error:
        raise builder.wrong(section.path, f"{error}; write it in steps") from error
    name = type(scheduler).__name__
    if warmup and name in WARMS_UP_ITSELF:
        message = f"{name} warms up by itself; remove _warmup_"
        raise builder.wrong((*section.path, "_warmup_"), message)
    monitor = _monitor(builder, section, scheduler, best) if _is_plateau(type(scheduler)) else None
    return Schedule(optimizer, scheduler, warmup, every, monitor=monitor, last_step=length.total_steps)


def _monitor(builder: Builder, section: Component, scheduler: Any, best: schema.Best | None) -> schema.Best:
    """What ReduceLROnPlateau follows."""
    if (metric := section.options.get("_monitor_")) is not None:
        return schema.Best(metric=metric, mode=scheduler.mode)
    if best is None:
        raise builder.wrong(section.path, NEEDS_BEST)
    if scheduler.mode != best.mode:
        message = f"'{scheduler.mode}' contradicts evaluate.best, whose mode is {best.mode}; they must be the same"
        raise builder.wrong((*section.path, "mode"), message)
    return best


def _scheduler(builder: Builder, section: Component, optimizer: torch.optim.Optimizer, best: schema.Best | None) -> Any:
    """The recipe's scheduler, or the one passed in: of this optimizer, or a class or function of it."""
    follows_best = section.given is None and "_monitor_" not in section.options
    takes_mode = follows_best and "mode" not in section.kwargs and _is_plateau(builder.resolve(section))
    handed = {"mode": best.mode} if takes_mode and best is not None else {}
    scheduler = builder.build(section, optimizer=optimizer, **handed)
    if section.given is not None and (isinstance(scheduler, type) or not hasattr(scheduler, "step")):
        scheduler = scheduler(optimizer)
    if getattr(scheduler, "optimizer", optimizer) is not optimizer:
        message = "steps another optimizer than the run's; pass its class, or a function of the optimizer"
        raise builder.wrong(section.path, message)
    return scheduler


def _is_plateau(target: Any) -> bool:
    return isinstance(target, type) and issubclass(target, torch.optim.lr_scheduler.ReduceLROnPlateau)


def _steps(setting: Any, length: RunLength, default: int) -> int:
    if setting is None:
        return default
    if isinstance(setting, bool) or not isinstance(setting, int | str):
        raise LauncherError(f"'{setting}' is not a duration; write '500 steps', '1 epoch' or '5%'")
    duration = Duration(setting, "steps", f"{setting} steps") if isinstance(setting, int) else Duration.parse(setting)
    if duration is None:
        raise LauncherError(f"'{setting}' is not a duration; write '500 steps', '1 epoch' or '5%'")
    return length.steps_of(duration)
