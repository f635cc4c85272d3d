"""Which point of a sweep is the best, by how much, and whether that is more than chance."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from launcher.runs.reading import Run
from launcher.sweep.halving import Cohort, counted
from launcher.sweep.known import Known
from launcher.sweep.record import Parameters, Record, Trial
from launcher.sweep.space import Space
from launcher.text import number

_SURE = 2.0  # standard errors of a difference: about 19 of 20


@dataclass(frozen=True)
class Entry:
    """A point of a sweep, with all of its runs.

    Attributes:
        point: Its number; 0 is the baseline.
        trials: Its runs, one a seed.
        place: From 1, the best; None where it has no value that could be compared.
        value: The metric at the highest rung that counts, the mean over its seeds; None before the first.
        error: The standard error of that mean; None of a single run.
        rung: That rung; -1 before the first.
        is_whole: Whether all of its runs have been seen there.
    """

    point: int
    trials: tuple[Trial, ...]
    place: int | None = None
    value: float | None = None
    error: float | None = None
    rung: int = -1
    is_whole: bool = False

    @property
    def parameters(self) -> Parameters | None:
        """What it is; None for a baseline beside the space."""
        return self.trials[0].parameters

    @property
    def state(self) -> str:
        """Of its runs the one that says most: `running`, `waiting`, `paused`, `failed`, `finished`."""
        states = {trial.state for trial in self.trials}
        order = ("running", "failed", "waiting", "paused", "finished")
        return next(state for state in order if state in states)

    @property
    def step(self) -> int:
        """Optimizer steps after which its newest value was measured."""
        return max(trial.step for trial in self.trials)

    @property
    def is_early(self) -> bool:
        """Whether it has gone further than it counts."""
        return any(trial.rung > self.rung for trial in self.trials)


def ranked(record: Record) -> list[Entry]:
    """The points that were proposed: the best first, and last those without a value.

    What has come further counts more, as it was chosen from those behind; at one rung the better value does. A run
    that went on early counts where it belongs by now.
    """
    counting = [counted(record, rung) for rung in range(record.settings.num_rungs)]
    entries = [_entry(record, point, counting) for point in _points(record)]
    metric = record.settings.metric
    entries.sort(key=lambda each: (-each.rung, not each.is_whole, metric.rank(each.value), each.point))
    comparable = [entry for entry in entries if entry.value is not None and math.isfinite(entry.value)]
    places = {entry.point: place for place, entry in enumerate(comparable, 1)}
    return [replace(entry, place=places.get(entry.point)) for entry in entries]


def _points(record: Record) -> list[int]:
    return sorted({record.settings.point_of(number) for number in record.trials})


def _entry(record: Record, point: int, counting: Sequence[set[int]]) -> Entry:
    cohort = Cohort(record, record.budgets[-1])
    trials = tuple(record.trials[number] for number in cohort.runs_of(point) if number in record.trials)
    for rung in range(len(counting) - 1, -1, -1):
        values = [trial.values[rung] for trial in trials if rung in trial.values]
        if point in counting[rung] and values:
            is_whole = len(values) == record.settings.repeats
            return Entry(point, trials, None, sum(values) / len(values), standard_error(values), rung, is_whole)
    return Entry(point, trials)


def standard_error(values: Sequence[float]) -> float | None:
    """Of the mean of several values; None of a single one."""
    if len(values) < 2:
        return None
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))


def leader(entries: Sequence[Entry]) -> Entry | None:
    """The best, of what there is."""
    return next((entry for entry in entries if entry.place == 1), None)


def called(entry: Entry) -> str:
    """A point in a word: its trials, and whether it is the baseline."""
    names = [f"{trial.number:04}" for trial in entry.trials]
    shown = names[0] if len(names) == 1 else f"{names[0]}–{names[-1]}"
    return f"{shown} (baseline)" if entry.point == 0 else shown


def baseline_values(record: Record, space: Space) -> dict[str, str]:
    """What the recipe as it is has in place of a point's values, as its run's folder tells."""
    recipe = Run(record.folder_of(0)).recipe
    return {key: _stated(recipe, key) for key in space.keys}


def _stated(recipe: Mapping[str, str], key: str) -> str:
    """What a resolved recipe's values say at a key, in few words: of a component its name; empty where nothing is."""
    target = recipe.get(f"{key}._target_", recipe.get(f"{key}._ref_"))
    if key in recipe or target is not None:
        return recipe[key] if target is None else re.split("[.:]", target)[-1]
    names = list(dict.fromkeys(name[len(key) + 1 :].partition(".")[0] for name in recipe if name.startswith(f"{key}.")))
    values = {name: _stated(recipe, f"{key}.{name}") for name in names}
    if all(name.isdecimal() for name in names):
        return f"[{', '.join(values.values())}]" if names else ""
    return f"{{{', '.join(f'{name}: {value}' for name, value in values.items())}}}"


def shown_values(record: Record, space: Space, entry: Entry) -> dict[str, str]:
    """A point's values by key, in few words."""
    if entry.parameters is None:
        return baseline_values(record, space)
    return space.shown(entry.parameters)


def verdict(entries: Sequence[Entry]) -> str | None:
    """A sentence where the leader's lead is within noise; None where it is not, or where points are run once."""
    whole = [entry for entry in entries if entry.place is not None and entry.is_whole]
    first = next(iter(whole), None)
    if first is None or first.error is None or first.value is None:
        return None
    rivals = [entry for entry in whole[1:] if _is_near(first, entry)]
    if not rivals:
        return None
    nearest = rivals[0]
    assert nearest.value is not None
    assert nearest.error is not None
    noise = math.hypot(first.error, nearest.error)
    more = f" and, by little more, of {len(rivals) - 1} others" * (len(rivals) > 1)
    return (
        f"The lead is within noise: {called(first)} is {number(abs(first.value - nearest.value))} ahead of "
        f"{called(nearest)}{more}, with a standard error of the difference of {number(noise)}; more seeds would tell."
    )


def _is_near(first: Entry, other: Entry) -> bool:
    if other.rung != first.rung or other.value is None or other.error is None:
        return False
    assert first.value is not None
    assert first.error is not None
    return abs(first.value - other.value) <= _SURE * math.hypot(first.error, other.error)


def known(record: Record) -> list[Known]:
    """All points that all of their runs have brought to the first rung: of one length, and so comparable."""
    cohort, metric = Cohort(record, record.budgets[-1]), record.settings.metric
    points = []
    for point in _points(record):
        parameters, value = record.trials[point * record.settings.repeats].parameters, cohort.value(point, 0)
        if parameters is not None and value is not None:
            points.append(Known(parameters, metric.rank(value)))
    return points
