"""What a free slot does next: begin a trial, take a paused one up, or leave.

Successive halving without waiting: of the points at a rung, those go on that are *certain* to be among the best
`quota` of it, whatever the others do that have not arrived yet. Who reaches which rung is so a function of the
results alone, not of timing, the slots' number or kills; a slot that would stand idle takes the likeliest point
*early*, which costs only time, and counts only when it becomes certain.

A point is arrived at a rung when each of its runs (one a seed) is; its value there is their mean. Points are ordered
by (value, number); what failed or is not a number is the worst, so that it never holds a rung up.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from launcher.sweep.record import Record, Trial


@dataclass(frozen=True)
class Action:
    """What a slot does.

    Attributes:
        trial: Its number.
        rung: To which it is brought.
        is_new: Whether it has yet to be proposed.
    """

    trial: int
    rung: int
    is_new: bool = False


def next_action(record: Record, running: Mapping[int, int] | None = None, beyond: bool = False) -> Action | None:
    """What a free slot does next; None where there is nothing, or not before something that runs is over.

    Budgets that were asked for one after the other are worked off one after the other, each a cohort of its own with
    the earlier ones in it: the first one's winner stays what it was.

    Args:
        record: As far as it is known.
        running: The trials that are worked at, each with its rung; what the record says where nothing is.
        beyond: Whether to take the best paused ones further where all else is done.
    """
    busy = record.running if running is None else running
    cohorts = [Cohort(record, trials) for trials in record.budgets]
    steps = [_certain(cohort, busy) or _new(cohort, busy) for cohort in cohorts]
    early = [_early(cohort, busy) for cohort in cohorts]
    paused = _early(cohorts[-1], busy, beyond) if beyond else None
    return next((action for action in (*steps, *early, paused) if action), None)


def goes_on(record: Record, trial: int) -> int | None:
    """The rung to which a trial that has just reached one goes on without leaving its slot, as it is certain already.

    None where it pauses, or is finished.
    """
    at = record.trials[trial].rung
    point = record.settings.point_of(trial)
    certain = any(point in Cohort(record, trials).members(at + 1) for trials in record.budgets)
    return at + 1 if certain and not record.trials[trial].is_over else None


def is_complete(record: Record) -> bool:
    """Whether all that was asked for is done."""
    return all(Cohort(record, trials).is_complete for trials in record.budgets)


def counted(record: Record, rung: int) -> set[int]:
    """The points that belong to a rung, and did not only reach it early."""
    return {point for trials in record.budgets for point in Cohort(record, trials).members(rung)}


class Cohort:
    """The points of one budget, and who of them belongs to which rung.

    Args:
        record: What is known.
        trials: The budget.
    """

    def __init__(self, record: Record, trials: int):
        self.record, self.settings = record, record.settings
        self.trials = trials
        self.size = -(-trials // self.settings.repeats)

    @cached_property
    def quotas(self) -> list[int]:
        """How many points belong to each rung, in the end."""
        quotas = [self.size]
        for _ in range(1, self.settings.num_rungs):
            quotas.append(max(1, quotas[-1] // self.settings.eta))
        return quotas

    def runs_of(self, point: int) -> range:
        """The numbers of a point's trials."""
        first = point * self.settings.repeats
        return range(first, min(first + self.settings.repeats, self.trials))

    def members(self, rung: int) -> Sequence[int]:
        """The points that are certain to belong to a rung, best first; at the lowest, all."""
        return self._members[rung] if rung < len(self._members) else ()

    @cached_property
    def _members(self) -> list[Sequence[int]]:
        members: list[Sequence[int]] = [range(self.size)]
        for rung, (here, above) in enumerate(zip(self.quotas, self.quotas[1:], strict=False)):
            ranked = self.ranked(rung, members[-1])
            unknown = here - len(ranked)
            members.append(ranked[: max(0, above - unknown)])
        return members

    def ranked(self, rung: int, points: Sequence[int]) -> list[int]:
        """Those of some points that have arrived at a rung, best first."""
        values = {point: value for point in points if (value := self.value(point, rung)) is not None}
        return sorted(values, key=lambda point: (self.settings.metric.rank(values[point]), point))

    def value(self, point: int, rung: int) -> float | None:
        """The mean of a point's runs at a rung; None where one of them is still to come."""
        values = [_value(self.record.trials.get(number), rung) for number in self.runs_of(point)]
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if len(known) == len(values) else None

    def to_do(self, point: int, rung: int, busy: Mapping[int, int]) -> Iterator[int]:
        """The runs of a point that have yet to be brought to a rung and that nobody works at."""
        for number in self.runs_of(point):
            trial = self.record.trials.get(number)
            if number not in busy and (trial is None or _value(trial, rung) is None):
                yield number

    @property
    def is_complete(self) -> bool:
        """Whether the last rung has all that belong there."""
        last = self.settings.last_rung
        members = self.members(last)
        return len(members) == self.quotas[last] and len(self.ranked(last, members)) == len(members)


def _value(trial: Trial | None, rung: int) -> float | None:
    """What a trial's metric was at a rung; NaN where it failed before, None where it is not there yet."""
    if trial is None:
        return None
    return trial.values.get(rung, math.nan if trial.is_failed else None)


def _certain(cohort: Cohort, busy: Mapping[int, int]) -> Action | None:
    """The best of those that are certain to go on, from the highest rung."""
    for rung in range(cohort.settings.last_rung, 0, -1):
        for point in cohort.members(rung):
            for number in cohort.to_do(point, rung, busy):
                return Action(number, rung)
    return None


def _new(cohort: Cohort, busy: Mapping[int, int]) -> Action | None:
    """The first trial that has reached no rung, if what its proposal depends on is known."""
    for number in range(cohort.trials):
        trial = cohort.record.trials.get(number)
        if number in busy or (trial is not None and _value(trial, 0) is not None):
            continue
        if trial is None and not knows_enough(cohort.record, number):
            return None
        return Action(number, 0, is_new=trial is None)
    return None


def knows_enough(record: Record, trial: int) -> bool:
    """Whether the results are known that a trial's proposal is made from."""
    settings = record.settings
    if settings.draws in ("grid", "random") or settings.lag == 0:
        return True
    first = settings.point_of(trial) * settings.repeats
    needed = (record.trials.get(number) for number in range(max(0, first - settings.lag + 1)))
    return all(_value(other, 0) is not None for other in needed)


def _early(cohort: Cohort, busy: Mapping[int, int], beyond: bool = False) -> Action | None:
    """The likeliest to go on, from the highest rung: those that would, were nobody else to come.

    Beyond that, the best of those that were left behind.
    """
    for rung in range(cohort.settings.last_rung - 1, -1, -1):
        for point in cohort.ranked(rung, range(cohort.size))[: None if beyond else cohort.quotas[rung + 1]]:
            for number in cohort.to_do(point, rung + 1, busy):
                return Action(number, rung + 1)
    return None
