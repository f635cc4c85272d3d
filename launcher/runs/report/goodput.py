"""Where a run's time went, from its first start to its end: `events.jsonl` says when, `metrics.jsonl` how long.

**Goodput** is the share of it in which steps that were kept were computed: not waiting for data, not evaluating or
saving, not starting or pausing between two starts, and not steps that a resume had to do again.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from launcher.runs.reading import Run, count, finite

if TYPE_CHECKING:
    from launcher.runs.report.curves import Columns

KINDS = {
    "computing": "computing steps that were kept",
    "data": "waiting for data",
    "evaluating": "evaluating",
    "saving": "held up by saving",
    "starting": "starting",
    "redone": "steps that were done again",
    "between": "between two starts",
    "other": "other",
}
_ENDS = {"finish": "finished", "stop": "stopped", "fail": "failed"}


@dataclass
class Act:
    """Something that a start did besides training.

    Attributes:
        kind: One of `KINDS`.
        begun: In unix time.
        ended: In unix time.
        step: Optimizer steps completed.
    """

    kind: str
    begun: float
    ended: float
    step: int


@dataclass
class Attempt:
    """One start of a run, from its process's beginning to its end.

    Attributes:
        begun: In unix time.
        ended: In unix time; now where it still runs, the last that is known where it was killed.
        outcome: `running`, `finished`, `stopped`, `failed`, or `killed` where nobody could write how it ended.
        first_step: Optimizer steps completed when it began.
        last_step: And when it ended, as far as is known.
        world: How many processes.
        host: Where rank 0 ran.
        message: What is reported about its end.
        redone_steps: Steps of it that the next start did again.
        redone_seconds: What they had taken.
        acts: Starting, evaluations and saves, in order.
    """

    begun: float
    ended: float
    outcome: str = "killed"
    first_step: int = 0
    last_step: int = 0
    world: int | None = None
    host: str = ""
    message: str = ""
    redone_steps: int = 0
    redone_seconds: float = 0.0
    acts: list[Act] = field(default_factory=list)


@dataclass(frozen=True)
class Spent:
    """Seconds of a run by what they were spent on; see `KINDS`."""

    seconds: Mapping[str, float]
    redone_steps: int = 0

    @property
    def total(self) -> float:
        """From the first start to the end."""
        return sum(self.seconds.values())

    @property
    def goodput(self) -> float | None:
        """The productive share, 0 to 1; None where no time is known."""
        return self.seconds["computing"] / self.total if self.total > 0 else None


def attempts_of(run: Run) -> list[Attempt]:
    """The starts of a run, oldest first; one, as far as `status.json` knows it, where there are no events."""
    attempts: list[Attempt] = []
    for event in run.events:
        _take(event, attempts)
    if not attempts and (begun := run.started) is not None:
        attempts.append(Attempt(begun, begun, last_step=run.step, world=run.status.get("world")))
        attempts[0].outcome = run.state if run.state != "dead" else "killed"
    if attempts:
        _end(attempts[-1], run)
    return attempts


def _take(event: Mapping[str, Any], attempts: list[Attempt]) -> None:
    """Puts one event where it belongs."""
    kind, moment, step = event["event"], _amount(event, "time"), int(_amount(event, "step"))
    if kind in ("start", "resume"):
        begun = min(moment, _amount(event, "began") or moment)
        if attempts:  # two starts in one process, as in a notebook, have one beginning
            begun = max(begun, min(attempts[-1].ended, moment))
        new = Attempt(begun, moment, "killed", step, step, count(event.get("world")), str(event.get("host") or ""))
        attempts.append(new)
        return
    if not attempts:
        return
    current = attempts[-1]
    if kind == "redone" and len(attempts) > 1:
        _lost(event, attempts[-2])
    elif kind in ("train", "evaluate", "save"):
        current.acts.append(_act(event, kind, moment, step, current))
    elif kind in _ENDS:
        current.outcome, current.message = _ENDS[kind], str(event.get("error") or "")
    current.ended = max(current.ended, moment)
    current.last_step = max(current.last_step, step)


def _act(event: Mapping[str, Any], kind: str, moment: float, step: int, attempt: Attempt) -> Act:
    if kind == "train":
        return Act("starting", attempt.begun, moment, step)
    # a save in the background holds training up for a part of the time that it takes
    begun = moment - _amount(event, "stall" if "stall" in event else "seconds")
    return Act({"evaluate": "evaluating", "save": "saving"}[kind], max(begun, attempt.begun), moment, step)


def _lost(event: Mapping[str, Any], before: Attempt) -> None:
    """What the start before did and this one does again; nobody else knows how far a killed one came."""
    before.redone_steps, before.redone_seconds = int(_amount(event, "steps")), _amount(event, "seconds")
    before.last_step = max(before.last_step, int(_amount(event, "step")) + before.redone_steps)
    before.ended = max(before.ended, _amount(event, "seen"))


def _amount(event: Mapping[str, Any], key: str) -> float:
    value = finite(event.get(key))
    return 0.0 if math.isinf(value) else value


def _end(last: Attempt, run: Run) -> None:
    """The last start may still run, or have died silently."""
    last.last_step = max(last.last_step, run.step)
    if run.state == "running":
        last.outcome, last.ended = "running", time.time()
    elif last.outcome == "killed" or not run.events:
        last.ended = max(last.ended, run.seen or 0.0)


def spent_by(attempts: Sequence[Attempt], train: Columns) -> Spent:
    """Adds up where the time of a run went.

    Args:
        attempts: Its starts.
        train: The columns of its train lines.
    """
    seconds = dict.fromkeys(KINDS, 0.0)
    for act in _acts(attempts):
        seconds[act.kind] += act.ended - act.begun
    seconds["redone"] = sum(attempt.redone_seconds for attempt in attempts)
    pairs = itertools.pairwise(attempts)
    seconds["between"] = sum(max(0.0, after.begun - before.ended) for before, after in pairs)
    total = attempts[-1].ended - attempts[0].begun if attempts else 0.0
    rest = max(0.0, total - sum(seconds.values()))
    trained, waited = _trained(train, rest)
    seconds.update(computing=trained - waited, data=waited, other=rest - trained)
    return Spent(seconds, sum(attempt.redone_steps for attempt in attempts))


def _acts(attempts: Sequence[Attempt]) -> Iterator[Act]:
    for attempt in attempts:
        yield from attempt.acts


def _trained(train: Columns, most: float) -> tuple[float, float]:
    """Seconds in steps that were kept, and of these the ones waited for data; all the rest where no line says."""
    import numpy as np

    if "data_wait" not in train:
        return (most, 0.0) if train else (0.0, 0.0)
    lines = train.get("seconds")
    if lines is None:  # shares alone: every line counts the same
        return most, most * float(np.nanmean(train["data_wait"]))
    trained, waited = float(np.nansum(lines)), float(np.nansum(lines * train["data_wait"]))
    scale = min(1.0, most / trained) if trained > 0 else 0.0  # never more than there was
    return trained * scale, waited * scale
