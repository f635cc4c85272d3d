"""Runs as their folders tell them. Whatever is missing or damaged there is left out: looking never fails a run.

Nothing is written, and nothing is held: a run may go on while it is looked at.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from launcher.errors import EXIT_DONE, EXIT_PREEMPTED, UsageError
from launcher.runs import lock
from launcher.runs.folder import ENVIRONMENT_FILE, QUEUE_FILE, STATUS_FILE, read_json
from launcher.runs.metrics import METRICS_FILE, Line, read_evaluations, read_last
from launcher.text import flat
from launcher.world.slurm import Queued

EVENTS_FILE = "events.jsonl"
_DEPTH = 6  # how far below a folder runs are looked for


@dataclass(frozen=True)
class Score:
    """The best evaluation of a run.

    Attributes:
        metric: By its name in the recipe, or `loss`.
        mode: `min` or `max`.
        value: A finite number.
        step: Optimizer steps completed when it was measured.
        label: What it was measured on, as in `validation` or `validation clean`.
    """

    metric: str
    mode: str
    value: float
    step: int
    label: str

    @property
    def rank(self) -> float:
        """The smaller, the better."""
        return self.value if self.mode == "min" else -self.value


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        folder: Where it lies.
        queued: Its job in the queue, where that was asked for and holds it.
    """

    folder: Path
    queued: Queued | None = None

    @cached_property
    def status(self) -> Mapping[str, Any]:
        """`status.json`."""
        return read_json(self.folder / STATUS_FILE)

    @cached_property
    def environment(self) -> Mapping[str, Any]:
        """`environment.json`."""
        return read_json(self.folder / ENVIRONMENT_FILE)

    @cached_property
    def resolved(self) -> str:
        """`resolved.yaml`: the recipe, each value with where it was said."""
        try:
            return (self.folder / "resolved.yaml").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    @cached_property
    def recipe(self) -> Mapping[str, str]:
        """The resolved recipe's values by dotted key, as they are written."""
        loader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)  # scalars stay the words that stand there
        try:
            tree = yaml.load(self.resolved, Loader=loader)
            return {key: value if isinstance(value, str) else json.dumps(value) for key, value in flat(tree) if key}
        except (yaml.YAMLError, RecursionError):
            return {}

    @cached_property
    def events(self) -> Sequence[Mapping[str, Any]]:
        """`events.jsonl`, oldest first."""
        try:
            rows = (self.folder / EVENTS_FILE).read_bytes().splitlines()
        except OSError:
            return ()
        return [event for row in rows if (event := _event(row)) is not None]

    @cached_property
    def state(self) -> str:
        """`running`, `finished`, `preempted`, `failed`; `dead` where it says that it runs and nobody does.

        Of a script that was submitted only its job says something.
        """
        if self.queued is not None and self.queued.state == "PENDING":
            return "queued"  # whatever became of an earlier start
        if not self.status:
            return "running" if self.queued is not None else self._submitted_state()
        said = str(self.status.get("state", "unknown"))
        holder = lock.holder(self.folder)
        if said == "running":
            return "running" if holder else "dead"
        is_starting = holder and _number(holder.get("since")) > _number(self.status.get("ended"))
        return "running" if is_starting else said

    def _submitted_state(self) -> str:
        starts = read_json(self.folder / QUEUE_FILE).get("starts") or [{}]
        code = starts[-1].get("code")
        return "unknown" if code is None else {EXIT_DONE: "finished", EXIT_PREEMPTED: "preempted"}.get(code, "failed")

    @cached_property
    def last(self) -> Line:
        """The newest line of `metrics.jsonl`; empty where there is none."""
        return read_last(self.folder / METRICS_FILE)

    @property
    def name(self) -> str:
        """The recipe's."""
        return self.recipe.get("name", self.folder.name)

    @property
    def step(self) -> int:
        """Optimizer steps completed, as far as is known."""
        return int(max(_number(self.status.get("step")), _number(self.last.get("step")), 0))

    @property
    def total_steps(self) -> int | None:
        """The run's length; None where a time ends it."""
        total = self.status.get("total_steps")
        return total if isinstance(total, int) else None

    @property
    def started(self) -> float | None:
        """When it was first started, in unix time."""
        times = (event["time"] for event in self.events)
        return next(times, self.status.get("started"))

    @property
    def seen(self) -> float | None:
        """The last that is known of it, in unix time."""
        last_event = self.events[-1]["time"] if self.events else None
        times = [self.status.get("ended"), self.status.get("updated"), self.last.get("time"), last_event]
        return max((_number(one) for one in times if one is not None), default=None)

    @property
    def place(self) -> str:
        """Where it runs or ran: the SLURM job, the host."""
        host, job = self.status.get("host", ""), self.status.get("job")
        return f"job {job} on {host}" if job else str(host)

    @cached_property
    def best(self) -> Score | None:
        """The best evaluation by the recipe's `evaluate.best`, else the lowest validation loss; None without any."""
        metric, mode = self.recipe.get("evaluate.best.metric", "loss"), self.recipe.get("evaluate.best.mode", "min")
        found: Score | None = None
        decides = self.recipe.get("evaluate.best.of")
        for line in read_evaluations(self.folder / METRICS_FILE, "validation"):
            value, name = line.get(metric), str(line.get("name", ""))
            decides = name if decides is None else decides  # the first set decides where none is named
            if name != decides or not isinstance(value, int | float) or not math.isfinite(value):
                continue
            score = Score(metric, mode, value, line["step"], f"validation {name}".strip())
            if found is None or score.rank < found.rank:
                found = score
        return found


def find_runs(root: Path) -> Iterator[Run]:
    """The runs in a folder, itself included, at any of a few levels."""
    for place, folders, files in os.walk(root):
        depth = len(Path(place).relative_to(root).parts)
        is_run = STATUS_FILE in files or QUEUE_FILE in files
        if is_run:
            yield Run(Path(place))
        if is_run or depth >= _DEPTH:
            folders.clear()
        folders[:] = sorted(name for name in folders if not name.startswith("."))


def named_runs(texts: Iterable[str]) -> list[Run]:
    """The runs that a command line names, each once: a run's folder, or one that holds runs.

    Raises:
        UsageError: A name is neither.
    """
    found: dict[Path, Run] = {}
    for text in texts:
        runs = list(find_runs(_place_of(text)))
        if not runs:
            raise UsageError(f"{text}: there is no run in this folder; `launcher runs` lists the runs")
        found.update({run.folder.resolve(): run for run in runs})
    return list(found.values())


def newest_run(text: str) -> Run:
    """The one run that a command line names; of several in a folder, the one started last.

    Raises:
        UsageError: There is none.
    """
    return max(named_runs([text]), key=lambda run: run.started or 0.0)


def _place_of(text: str) -> Path:
    """A folder by its path, or by its path below the folder of all runs."""
    if Path(text).is_dir():
        return Path(text)
    from launcher.world.site import read_site

    for place in (Path("runs") / text, read_site()[0].root / text):
        if place.is_dir():
            return place
    raise UsageError(f"{text}: there is no such folder; `launcher runs` lists the runs")


def seconds_since(moment: float | None) -> float | None:
    """Time since a moment in unix time."""
    return None if moment is None else time.time() - moment


def _event(row: bytes) -> Mapping[str, Any] | None:
    try:
        event = json.loads(row)
    except ValueError:
        return None
    is_event = isinstance(event, dict) and isinstance(event.get("time"), int | float) and "event" in event
    return event if is_event else None


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else -math.inf
