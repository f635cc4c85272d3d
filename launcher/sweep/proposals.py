"""Which point a trial tries: a function of the sweep's seed, the trial's number and what its lag lets it know.

Nothing is kept between two proposals: each comes from a fresh sampler, told what the record says. A sweep that was
killed, or whose trials ended in another order, so makes the same ones.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from launcher.sweep.halving import Cohort
from launcher.sweep.known import Known
from launcher.sweep.record import Parameters, Record, Settings
from launcher.sweep.samplers import cmaes, tpe
from launcher.sweep.space import Space

_LISTED = 10_000  # points that are shuffled as a whole; of more, some are drawn
_TRIES = 20  # until a sampler has a point that is new


def propose(record: Record, space: Space, trial: int) -> Parameters | None:
    """The point of a trial; None for the baseline where that lies beside the space.

    Args:
        record: In which the trials before this one are proposed, and those are over that its lag asks for.
        space: The sweep's.
        trial: Its number. Runs of one point, which differ by their seed, have one proposal.
    """
    settings = record.settings
    point = settings.point_of(trial)
    first = record.trials.get(point * settings.repeats)
    if first is not None:
        return first.parameters
    baseline = record.trials[0].parameters
    if settings.draws == "grid":
        return space.point(_unlike(space, baseline, point - 1))
    if settings.draws == "random":
        return draw(space, settings.seed, point, baseline)
    return _sampled(record, space, point)


def _sampled(record: Record, space: Space, point: int) -> Parameters:
    """A sampler's proposal; where points can be counted, one that nobody has had."""
    settings = record.settings
    sampler = tpe if settings.draws == "tpe" else cmaes
    known = list(known_points(record, point))
    had = [dict(other.parameters) for other in known]
    for attempt in range(_TRIES if space.size is not None else 1):
        parameters = sampler(space, known, mixed(settings.seed, point, attempt))
        if space.size is None or parameters not in had:
            return parameters
    order = random.Random(mixed(settings.seed, point, _TRIES))
    unused = [other for index in range(space.size or 0) if (other := space.point(index)) not in had]
    return order.choice(unused) if unused else parameters


def known_points(record: Record, point: int) -> Iterator[Known]:
    """What a proposal is made from: earlier points in their order, and of those outside of its lag what they gave."""
    settings, cohort = record.settings, Cohort(record, record.budgets[-1])
    first = point * settings.repeats
    reach = first if settings.lag == 0 else max(0, first - settings.lag + 1)  # trials before this one are known
    for other in range(point):
        trial = record.trials.get(other * settings.repeats)
        if trial is None or trial.parameters is None:
            continue
        is_within = cohort.runs_of(other).stop <= reach
        value = cohort.value(other, 0) if is_within else None
        yield Known(trial.parameters, None if value is None else settings.metric.rank(value))


# ---------------------------------------------------------------------- without a sampler


def draw(space: Space, seed: int, point: int, baseline: Parameters | None = None) -> dict[str, int | float]:
    """A point by chance, by its number alone; where points can be counted, none comes twice.

    Args:
        space: The sweep's.
        seed: The sweep's.
        point: Its number, from 1.
        baseline: Point 0, where it is one of the space.
    """
    if space.size is not None:
        return space.point(_distinct(space, seed, point, baseline))
    order, parameters = random.Random(mixed(seed, point)), dict[str, int | float]()
    for parameter in space.parameters:
        share = order.random()
        if not parameter.exists_in(parameters):
            continue
        if parameter.range is None:
            parameters[parameter.name] = min(int(share * parameter.num_choices), parameter.num_choices - 1)
        else:
            parameters[parameter.name] = parameter.range.at(share)
    return parameters


def _distinct(space: Space, seed: int, point: int, baseline: Parameters | None) -> int:
    """The number of the point drawn so many draws after the first, without replacement."""
    size = space.size or 0
    order = random.Random(mixed(seed, -1))
    if size <= _LISTED:
        others = list(range(size))
        order.shuffle(others)
        return next(index for place, index in enumerate(_without(space, others, baseline), 1) if place == point)
    seen: dict[int, None] = {}
    while len(seen) < point:
        index = order.randrange(size)
        if index not in seen and space.point(index) != baseline:
            seen[index] = None
    return list(seen)[-1]


def _without(space: Space, indices: Sequence[int], baseline: Parameters | None) -> Iterator[int]:
    """The points but for the baseline, which has been run."""
    return (index for index in indices if baseline is None or space.point(index) != baseline)


def _unlike(space: Space, baseline: Parameters | None, place: int) -> int:
    """The number of a grid's point, where the baseline is left out."""
    if baseline is None:
        return place
    return place + any(space.point(index) == baseline for index in range(place + 1))


def mixed(*parts: int) -> int:
    """One seed of several numbers, the same on every machine."""
    return random.Random("/".join(map(str, parts))).getrandbits(31)


def is_sampled(settings: Settings) -> bool:
    """Whether proposals are made from results."""
    return settings.draws in ("tpe", "cmaes")
