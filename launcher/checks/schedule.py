"""What is allowed and looks like a slip: learning-rate schedules that end long before or after the run."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from launcher.internals import inner_schedulers, milestones
from launcher.objective.run_length import RunLength
from launcher.objective.schedule import Schedule
from launcher.recipe.component import Component
from launcher.recipe.places import dotted
from launcher.recipe.schema import Recipe
from launcher.training.state import TrainState

_STEPS_TRIED = 20_000  # a fifth of a second
_SPENT = 0.01  # of the highest rate: nothing is learned any more
_LENGTHS = ("T_max", "total_iters", "total_steps", "step_size", "milestones")
_ENDS = {"CosineAnnealingLR": "T_max", "PolynomialLR": "total_iters", "OneCycleLR": "total_steps"}
_FIRST_CHANGES: dict[str, Callable[[Any], int]] = {  # the scheduler's own step at which they do anything at all
    "StepLR": lambda scheduler: int(scheduler.step_size),
    "MultiStepLR": lambda scheduler: min(scheduler.milestones, default=0),
    "SequentialLR": lambda scheduler: min(milestones(scheduler), default=0),
}
_RESTARTS = ("CosineAnnealingWarmRestarts",)


def doubts_of(recipe: Recipe, state: TrainState) -> list[str]:
    """Questions about the schedule; the schedule of this state is gone through and of no use afterwards."""
    if recipe.scheduler is None:
        return []
    sections = {"": recipe.scheduler} if isinstance(recipe.scheduler, Component) else recipe.scheduler
    schedules = {"": state.schedule} if isinstance(state.schedule, Schedule) else state.schedule.named
    return [doubt for name, section in sections.items() for doubt in _doubts(section, schedules[name], state.length)]


def _doubts(section: Component, schedule: Schedule, run_length: RunLength) -> list[str]:
    total = run_length.total_steps
    if schedule.scheduler is None or schedule.on_evaluation or total is None:
        return []
    where = f"{section.origin}: {dotted(section.path)}"
    questions = _length(schedule, run_length, total) or _spent(section, schedule, total)
    return [f"{where}: {question}" for question in questions]


def _length(schedule: Schedule, run_length: RunLength, total: int) -> list[str]:
    """Whether schedulers that know their length have the run's."""
    steps = total - schedule.warmup_steps
    if steps <= 0:
        return [f"the ramp of {schedule.warmup_steps:,} steps is as long as the run of {total:,}; shorten _warmup_"]
    parts = _parts(schedule.scheduler, 0, steps, schedule.every_steps)
    return [question for part in parts if (question := _question(part, run_length, steps))]


@dataclass(frozen=True)
class _Part:
    """A scheduler, and the steps of the run, after the ramp, that are its own."""

    scheduler: Any
    start: int
    stop: int
    every: int

    @property
    def name(self) -> str:
        return type(self.scheduler).__name__

    @property
    def steps(self) -> int:
        return self.stop - self.start


def _parts(scheduler: Any, start: int, stop: int, every: int) -> Iterator[_Part]:
    """A scheduler and those inside it."""
    yield _Part(scheduler, start, stop, every)
    inner, name = inner_schedulers(scheduler), type(scheduler).__name__
    turns = [start + milestone * every for milestone in milestones(scheduler)] if name == "SequentialLR" else None
    if turns is not None and len(turns) + 1 < len(inner):
        return  # this torch does not say when whose turn is
    for number, inner_scheduler in enumerate(inner):
        first, last = (start, stop) if turns is None else ([start, *turns][number], [*turns, stop][number])
        if first < min(last, stop):
            yield from _parts(inner_scheduler, first, min(last, stop), every)


def _question(part: _Part, run_length: RunLength, end: int) -> str | None:
    name, scheduler, steps = part.name, part.scheduler, part.steps
    whose = "the run" if part.stop == end else "its part of the run"
    if name in _FIRST_CHANGES and (first := _FIRST_CHANGES[name](scheduler) * part.every) >= steps:
        return f"{name} changes the rate after {first:,} steps, and {whose} ends after {steps:,}; state an earlier step"
    if name in _RESTARTS and scheduler.T_0 * part.every < run_length.steps_per_epoch:
        return f"{name} restarts within an epoch; did you mean epochs? Write T_0: {scheduler.T_0} epochs"
    if name not in _ENDS:
        return None
    key, stated = _ENDS[name], int(getattr(scheduler, _ENDS[name]))
    length = stated * part.every
    if length < steps * 0.1:
        return f"{name} ends after {length:,} of {steps:,} steps; did you mean epochs? Write {key}: {stated} epochs"
    exact = f"{key}: {_exact(part, part.stop == end)} ends with {whose}"
    if length < steps * 0.95:
        return f"{name} ends after {length:,} of {steps:,} steps; {exact}"
    if length > steps * 1.05:
        return f"{name} would end after {length:,} steps, and {whose} ends after {steps:,}; {exact}"
    return None


def _exact(part: _Part, last: bool) -> str:
    """How the recipe says the length of a part."""
    if not last:
        return f"{part.steps // part.every}"
    return f"${{scheduler.steps - {part.start}}}" if part.start else "${scheduler.steps}"


def _spent(component: Component, schedule: Schedule, total: int) -> list[str]:
    """Whether the rate is all but gone before a tenth of the run."""
    if type(schedule.scheduler).__name__ in (*_RESTARTS, "CyclicLR"):
        return []  # it comes back
    first, highest = min(total // 10, _STEPS_TRIED), 0.0
    for step, rate in _rates(schedule, first):
        highest = max(highest, rate)
        if step > schedule.warmup_steps and rate < highest * _SPENT:
            fallen = f"the rate falls from {highest:.3g} to {rate:.3g} by step {step:,} of {total:,}"
            return [f"{fallen}; did you mean epochs? A scheduler counts steps here: {_remedy(component)}"]
    return []


def _rates(schedule: Schedule, until: int) -> Iterator[tuple[int, float]]:
    """The rate after each step; one was made already."""
    yield 1, schedule.rate
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step in range(2, until + 1):
            schedule.advance(step)
            yield step, schedule.rate


def _remedy(component: Component) -> str:
    for inner in component.walk():
        for key in _LENGTHS:
            if isinstance(inner.kwargs.get(key), int | list):
                return f"write {key}: {_in_epochs(inner.kwargs[key])}"
    return "write _every_: 1 epoch"


def _in_epochs(value: Any) -> str:
    return f"[{', '.join(f'{length} epochs' for length in value)}]" if isinstance(value, list) else f"{value} epochs"
