"""A sweep without training: slots of differing speed, kills at any moment, and the real record on the disk."""

from __future__ import annotations

import heapq
import json
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from launcher.sweep import record as lines
from launcher.sweep.halving import Cohort, goes_on, is_complete, next_action
from launcher.sweep.metric import Metric
from launcher.sweep.proposals import propose
from launcher.sweep.record import Record, Settings, create
from launcher.sweep.space import Space

Curve = Callable[[int, Mapping[str, int | float] | None, int], float]  # of trial, point and rung: its value there


@dataclass
class Timing:
    """How a sweep goes.

    Attributes:
        seed: Of all durations.
        slots: Trials at a time.
        killed_after: Numbers of events after which everything that runs is killed; the record is torn there.
        failing: Trials that fail at a rung.
    """

    seed: int = 0
    slots: int = 2
    killed_after: frozenset[int] = frozenset()
    failing: Mapping[int, int] = field(default_factory=dict)


def settings(**changes: object) -> Settings:
    """Those of a small sweep."""
    plain: dict[str, object] = {
        "recipe": "",
        "words": (),
        "metric": Metric("loss", "min"),
        "digest": "",
        "method": "random",
        "draws": "random",
        "trials": 12,
        "slots": 2,
        "lag": 4,
        "created": 0.0,
    }
    return Settings(**{**plain, **changes})  # type: ignore[arg-type]


def simulate(folder: Path, asked: Settings, space: Space, curve: Curve, timing: Timing) -> Record:
    """Works a sweep off to its end.

    Returns:
        Its record, as a new reader sees it.
    """
    create(folder, asked)
    clock = random.Random(timing.seed)
    events = 0
    while True:
        record = Record(folder)  # as one that was just started
        with record.locked():
            for number in record.running:
                record.append(lines.released(number, "lost"))
        events, is_done = _work(record, space, curve, timing, clock, events)
        if is_done:
            return Record(folder)
        _tear(folder, clock)


def _work(
    record: Record, space: Space, curve: Curve, timing: Timing, clock: random.Random, events: int
) -> tuple[int, bool]:
    """One start, to the end or until it is killed."""
    at_work: list[tuple[float, int, int]] = []
    now = 0.0
    while True:
        while len(at_work) < timing.slots and (task := _take(record, space)):
            heapq.heappush(at_work, (now + _duration(record, *task, clock), *task))
        if not at_work:
            assert is_complete(record)
            return events, True
        now, trial, rung = heapq.heappop(at_work)
        _arrive(record, curve, timing, trial, rung)
        further = goes_on(record, trial)
        if further is not None and trial not in record.running:
            with record.locked():
                record.append(lines.taken(trial, further, "here"))
            heapq.heappush(at_work, (now + _duration(record, trial, further, clock), trial, further))
        events += 1
        if events in timing.killed_after:
            return events, False


def _take(record: Record, space: Space) -> tuple[int, int] | None:
    with record.locked():
        action = next_action(record)
        if action is None:
            return None
        if action.is_new:
            parameters = None if action.trial == 0 else propose(record, space, action.trial)
            record.append(lines.proposal(action.trial, parameters))
        record.append(lines.taken(action.trial, action.rung, "here"))
        return action.trial, action.rung


def _arrive(record: Record, curve: Curve, timing: Timing, trial: int, rung: int) -> None:
    with record.locked():
        if timing.failing.get(trial, math.inf) <= rung:
            record.append(lines.failure(trial, "it failed", is_final=True))
            return
        step = record.settings.rungs[rung] if record.settings.rungs else 100
        value = curve(trial, record.trials[trial].parameters, rung)
        record.append(lines.rung(trial, rung, value, step, 1.0))


def _duration(record: Record, trial: int, rung: int, clock: random.Random) -> float:
    rungs = record.settings.rungs or (100,)
    return (rungs[rung] - (rungs[rung - 1] if rung else 0)) * clock.uniform(0.5, 2.0)


def _tear(folder: Path, clock: random.Random) -> None:
    """What a writer that was killed left of its last line."""
    with (folder / lines.RECORD_FILE).open("ab") as file:
        file.write(b'{"kind": "rung", "trial": 3, "rung": 0, "value": 0.12345'[: clock.randrange(50)])


def outcome(record: Record) -> dict[str, object]:
    """What must not depend on timing: every point, every value that counts, and who belongs to which rung."""
    cohort = Cohort(record, record.budgets[-1])
    members = [sorted(cohort.members(rung)) for rung in range(record.settings.num_rungs)]
    values = [
        {number: record.trials[number].values.get(rung) for point in points for number in cohort.runs_of(point)}
        for rung, points in enumerate(members)
    ]
    points = {number: trial.parameters for number, trial in sorted(record.trials.items())}
    failed = sorted(number for number, trial in record.trials.items() if trial.is_failed)
    return {"points": points, "members": members, "values": values, "failed": failed}


def with_runs(record: Record, space: Space, curve: Curve, evaluations: int = 20) -> None:
    """Gives each trial a folder with what a run leaves there: its recipe, its figures, how it stands."""
    settings = record.settings
    for number, trial in record.trials.items():
        folder = record.folder_of(number)
        folder.mkdir(parents=True, exist_ok=True)
        total = settings.rungs[-1] if settings.rungs else 100
        step = total if trial.is_over else max(trial.step, 1)
        marks = [max(1, total * place // evaluations) for place in range(1, evaluations + 1)]
        rows = [
            _evaluation(settings.metric.key, at, curve(number, trial.parameters, -1), total)
            for at in marks
            if at <= step
        ]
        (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
        state = "running" if trial.taken is not None else "finished" if trial.result is not None else "stopped"
        status = {"state": state, "step": step, "total_steps": total, "world": 1, "started": 0.0}
        (folder / "status.json").write_text(json.dumps(status), encoding="utf-8")
        point = None if number < settings.repeats else trial.parameters
        values = [*space.overrides(point, settings.seed_of(number)), "train.steps=100"]
        tree = "".join(
            f"{key.replace('.', '_')}: {value}\n" for key, _, value in (word.partition("=") for word in values)
        )
        (folder / "resolved.yaml").write_text(f"name: faked\n{tree}", encoding="utf-8")


def _evaluation(key: str, step: int, floor: float, total: int) -> dict[str, object]:
    """One line of `metrics.jsonl`, of a curve that comes down to its floor."""
    value = floor + (2.0 - floor) * math.exp(-4 * step / total)
    return {"step": step, "epoch": step / 10, "split": "validation", key: round(value, 5), "time": 1.0 + step}
