"""Who goes on to which rung, and which points are proposed: functions of results, whatever the timing and the kills."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from pathlib import Path

import pytest
from simulated import Timing, outcome, settings, simulate
from tiers import rounds

from launcher.sweep import record as lines
from launcher.sweep.halving import Cohort, counted, is_complete, next_action
from launcher.sweep.record import Record, Settings, create
from launcher.sweep.space import Space, read_space

SPACE = read_space({}, ["a=0.0..1.0", "b=1e-4..1e-1:log", "c=1..8", "d={_target_: X},{_target_: Y, e: 0.1..0.9}"])
RUNGS = (25, 50, 100)
METHODS: Mapping[str, Settings] = {
    "random": settings(),
    "tpe": settings(method="tpe", draws="tpe", trials=16),
    "cmaes": settings(method="cmaes", draws="cmaes", trials=16),
    "halving": settings(method="halving", trials=16, rungs=RUNGS),
    "halving by three": settings(method="halving", trials=13, rungs=(9, 27, 81), eta=3),
    "halving with tpe": settings(method="halving", draws="tpe", trials=14, rungs=RUNGS),
    "seeds": settings(trials=18, seeds=(0, 1, 2)),
    "tpe with seeds": settings(method="tpe", draws="tpe", trials=15, seeds=(0, 1, 2)),
    "halving with seeds": settings(method="halving", trials=16, seeds=(3, 4), rungs=RUNGS),
}


def curve(trial: int, parameters: Mapping[str, int | float] | None, rung: int) -> float:
    """Curves that cross: each with a floor, a height and a speed of its own."""
    own = random.Random(f"{sorted((parameters or {}).items())}/{trial}")
    floor, height, speed = own.uniform(0.02, 0.5), own.uniform(0.5, 2.0), own.uniform(0.4, 1.2)
    return floor + height / math.pow(1 + RUNGS[rung], speed)


@rounds("seed", plain=[0], long=range(1, 10))
@pytest.mark.parametrize("method", METHODS)
def test_the_same_sweep_whatever_the_timing_the_slots_and_the_kills(tmp_path: Path, method: str, seed: int) -> None:
    asked = METHODS[method]
    failing = {5: 1, 7: 0} if asked.rungs else {5: 0, 7: 0}
    still = outcome(simulate(tmp_path / "still", asked, SPACE, curve, Timing(seed, 1, failing=failing)))
    for slots in (2, 3):
        chance = random.Random(10 * seed + slots)
        killed = frozenset(chance.sample(range(1, 20), 4))
        timing = Timing(100 + chance.randrange(99), slots, killed, failing)
        record = simulate(tmp_path / f"{slots}", asked, SPACE, curve, timing)
        assert outcome(record) == still
        assert is_complete(record)
        assert next_action(record) is None


def test_halving_does_what_the_synchronous_one_does_and_half_of_the_steps(tmp_path: Path) -> None:
    record = simulate(tmp_path / "sweep", METHODS["halving"], SPACE, curve, Timing(slots=1))
    alive, steps = list(range(16)), 0
    for rung, step in enumerate(RUNGS):
        steps += len(alive) * (step - (RUNGS[rung - 1] if rung else 0))
        assert sorted(Cohort(record, 16).members(rung)) == sorted(alive)
        values = {number: curve(number, record.trials[number].parameters, rung) for number in alive}
        alive = sorted(alive, key=lambda number: (values[number], number))[: len(alive) // 2]
    assert sum(trial.step for trial in record.trials.values()) == steps == 16 * 100 / 2


def test_an_early_one_counts_only_when_it_is_certain(tmp_path: Path) -> None:
    create(tmp_path / "sweep", settings(method="halving", trials=4, rungs=(50, 100)))
    record = Record(tmp_path / "sweep")
    with record.locked():
        for number in range(3):
            record.append(lines.proposal(number, {}), lines.taken(number, 0, "here"))
        record.append(lines.rung(0, 0, 0.5, 50))
        record.append(lines.rung(1, 0, 0.6, 50))
        record.append(lines.proposal(3, {}), lines.taken(3, 0, "here"))
    action = next_action(record)
    assert action is not None
    assert (action.trial, action.rung) == (0, 1), "it is not certain yet"
    with record.locked():
        record.append(lines.taken(0, 1, "here"), lines.rung(0, 1, 0.1, 100))
        record.append(lines.rung(2, 0, 0.3, 50), lines.rung(3, 0, 0.4, 50))
    assert counted(record, 1) == {2, 3}
    assert record.trials[0].result == 0.1
    assert (action := next_action(record)) is not None
    assert (action.trial, action.rung) == (2, 1)


def test_more_trials_are_worked_off_after_those_that_were_asked_for_first(tmp_path: Path) -> None:
    asked = settings(method="halving", trials=8, rungs=RUNGS)
    record = simulate(tmp_path / "sweep", asked, SPACE, curve, Timing())
    before = counted(record, 2)
    with record.locked():
        record.append(lines.more_trials(16), lines.more_trials(4))
    assert record.budgets == [8, 16]
    assert not is_complete(record)
    action = next_action(record)
    assert action is not None
    assert (action.trial, action.is_new) == (8, True)
    assert counted(record, 2) == before


def test_nothing_is_done_beyond_what_was_asked_for_unless_there_is_time(tmp_path: Path) -> None:
    record = simulate(tmp_path / "sweep", METHODS["halving"], SPACE, curve, Timing(slots=1))
    action = next_action(record, beyond=True)
    assert action is not None
    left = [number for number, trial in record.trials.items() if trial.rung == 1]
    assert action.trial == min(left, key=lambda number: record.trials[number].values[1])


@pytest.mark.parametrize("lag", [1, 4, 0])
def test_a_proposal_waits_for_the_results_its_lag_names(tmp_path: Path, lag: int) -> None:
    asked = settings(method="tpe", draws="tpe", trials=8, lag=lag)
    record = create(tmp_path / "sweep", asked)
    with record.locked():
        for number in range(4):
            record.append(lines.proposal(number, None if number == 0 else {}), lines.taken(number, 0, "here"))
    action = next_action(record)
    assert (action is None) == (lag in (1, 4))
    with record.locked():
        record.append(lines.rung(0, 0, 0.5, 100))
    action = next_action(record)
    assert (action is None) == (lag == 1)


def test_a_space_of_a_few_points_is_drawn_without_repeating_any(tmp_path: Path) -> None:
    few: Space = read_space({}, ["a=1,2,3", "b=1..4"])
    for method in ("grid", "random", "tpe"):
        asked = settings(method=method, draws=method, trials=13)
        record = simulate(tmp_path / method, asked, few, lambda trial, point, rung: trial % 5, Timing(slots=3))
        points = [tuple(sorted((trial.parameters or {}).items())) for trial in record.trials.values()]
        assert len(set(points)) == 13


@pytest.mark.parametrize("method", ["tpe", "cmaes"])
def test_a_sampler_learns_from_results(tmp_path: Path, method: str) -> None:
    space = read_space({}, ["a=-1.0..1.0", "b=1e-5..1e-1:log", "c=1..64:log"])

    def far(trial: int, parameters: Mapping[str, int | float] | None, rung: int) -> float:
        point = parameters or {"a": 1.0, "b": 0.1, "c": 64}
        return (point["a"] - 0.3) ** 2 + (math.log10(point["b"]) + 3.2) ** 2 + (math.log2(point["c"]) - 4) ** 2

    found = simulate(tmp_path / method, settings(method=method, draws=method, trials=48), space, far, Timing())
    drawn = simulate(tmp_path / "random", settings(trials=48), space, far, Timing())
    results = [[trial.result or 0.0 for trial in record.trials.values()] for record in (found, drawn)]
    assert min(results[0]) < min(results[1])
    late = [sorted(values[24:]) for values in results]
    assert late[0][12] < late[1][12]  # the median of the later half
