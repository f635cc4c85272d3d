"""Runs as their folders tell them. Whatever is missing or damaged there is left out: looking never fails a run.

Nothing is written, and nothing is held: a run may continue while it is looked at.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from launcher.errors import EXIT_DONE, EXIT_PREEMPTED
from launcher.runs import lock
from launcher.runs.direction import MODES, direction
from launcher.runs.folder import ENVIRONMENT_FILE, QUEUE_FILE, STATUS_FILE, read_file, read_json
from launcher.runs.metrics import METRICS_FILE, Line, read_evaluations, read_last
from launcher.text import flat, words_of
from launcher.world.slurm import Queued

EVENTS_FILE = "events.jsonl"
_FORMER_STATES = {"preempted": "stopped"}  # what version 0.1 called a state
_DEEPEST = 100  # levels of a resolved recipe
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
        """The value with a sign that makes smaller better."""
        return self.value if self.mode == "min" else -self.value


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        folder: Its folder.
        queued: Its job in the queue, if the queue was asked and has one.
        has_left_queue: Whether the queue was asked, and the run's job is not in it.
        damage: Why its files cannot be read; empty if they can.
        metric: The metric that chooses its best evaluation, as `accuracy` or `mape:min`; empty: the recipe's choice.
    """

    folder: Path
    queued: Queued | None = None
    has_left_queue: bool = False
    damage: str = ""
    metric: str = ""

    def __repr__(self) -> str:
        of = f" of {self.total_steps}" if self.total_steps else ""
        return f"Run({str(self.folder)!r}, {self.state}, step {self.step}{of})"

    @cached_property
    def status(self) -> Mapping[str, Any]:
        """`status.json`, as far as its values are of their kinds."""
        return {} if self.damage else _of_their_kinds(read_json(self.folder / STATUS_FILE), _STATUS)

    @cached_property
    def environment(self) -> Mapping[str, Any]:
        """`environment.json`, as far as its values are of their kinds."""
        return {} if self.damage else _of_their_kinds(read_json(self.folder / ENVIRONMENT_FILE), _ENVIRONMENT)

    @cached_property
    def resolved(self) -> str:
        """`resolved.yaml`: the recipe, each value with where it was set."""
        try:
            return "" if self.damage else read_file(self.folder / "resolved.yaml").decode(errors="replace")
        except OSError:
            return ""

    @cached_property
    def recipe(self) -> Mapping[str, str]:
        """The resolved recipe's values by dotted key, as they are written."""
        loader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)  # scalars stay the words that stand there
        try:
            if not _is_tame(self.resolved):
                return {}
            tree = yaml.load(self.resolved, Loader=loader)
            return {key: value if isinstance(value, str) else json.dumps(value) for key, value in flat(tree) if key}
        except (yaml.YAMLError, RecursionError):
            return {}

    @cached_property
    def events(self) -> Sequence[Mapping[str, Any]]:
        """`events.jsonl`, oldest first."""
        try:
            rows = () if self.damage else read_file(self.folder / EVENTS_FILE).splitlines()
        except OSError:
            return ()
        return [event for row in rows if (event := _event(row)) is not None]

    @cached_property
    def state(self) -> str:
        """`running`, `finished`, `stopped`, `failed`; `dead` if it says that it is running and no process is.

        For a submitted script only its job is known.
        """
        if self.damage:
            return "unknown"
        if self.queued is not None and self.queued.state == "PENDING":
            return "queued"  # whatever became of an earlier start
        if not self.status:
            return "running" if self.queued is not None else self._submitted_state()
        recorded_state = str(self.status.get("state", "unknown"))
        recorded_state = _FORMER_STATES.get(recorded_state, recorded_state)
        holder = lock.holder(self.folder)
        if recorded_state == "queued" and self.has_left_queue and not holder:
            return "dead"  # somebody cancelled its job while it waited
        if recorded_state == "running":
            return "running" if holder else "dead"
        is_starting = holder and finite(holder.get("since")) > finite(self.status.get("ended"))
        return "running" if is_starting else recorded_state

    def _submitted_state(self) -> str:
        starts = read_json(self.folder / QUEUE_FILE).get("starts")
        last = starts[-1] if isinstance(starts, list) and starts else {}
        code = last.get("code") if isinstance(last, dict) else None
        if not isinstance(code, int):
            return "unknown"
        return {EXIT_DONE: "finished", EXIT_PREEMPTED: "stopped"}.get(code, "failed")

    @cached_property
    def last(self) -> Line:
        """The newest line of `metrics.jsonl`; empty where there is none."""
        return {} if self.damage else read_last(self.folder / METRICS_FILE)

    @property
    def name(self) -> str:
        """The recipe's."""
        return self.recipe.get("name", self.folder.name)

    @property
    def step(self) -> int:
        """Optimizer steps completed, as far as is known."""
        return int(max(finite(self.status.get("step")), finite(self.last.get("step")), 0))

    @property
    def total_steps(self) -> int | None:
        """The run length in steps; None if a time ends it."""
        return self.status.get("total_steps")

    @property
    def started(self) -> float | None:
        """When it was first started, in unix time."""
        times = (event["time"] for event in self.events)
        return next(times, self.status.get("started"))

    @property
    def seen(self) -> float | None:
        """The last that is known of it, in unix time."""
        last_event = self.events[-1]["time"] if self.events else None
        times = [self.status.get("ended"), self.status.get("updated"), _moment(self.last.get("time")), last_event]
        return max((finite(moment) for moment in times if moment is not None), default=None)

    @property
    def place(self) -> str:
        """The host where it runs or ran, and its SLURM job."""
        host, job = self.status.get("host", ""), self.status.get("job")
        return f"job {job} on {host}" if job else str(host)

    @property
    def measure(self) -> tuple[str, str | None]:
        """The metric that chooses its best evaluation, and `min` or `max`; None where nothing tells which."""
        by_recipe = self.recipe.get("evaluate.best.metric", "loss"), self.recipe.get("evaluate.best.mode", "min")
        metric, _, mode = self.metric.partition(":")
        if not metric:
            return by_recipe
        return metric, mode or direction(metric, by_recipe, self._better)

    @property
    def _better(self) -> Mapping[str, str]:
        """What its metrics' classes say of more or less, as its last start wrote it down."""
        told = [_texts(event["better"]) for event in self.events if event["event"] == "train" and "better" in event]
        return {key: mode for key, mode in ((told and told[-1]) or {}).items() if mode in MODES}

    @cached_property
    def best(self) -> Score | None:
        """The best evaluation by `metric`, or `evaluate.best`, else the lowest validation loss.

        None without any, or where nothing tells whether more or less of the metric is better.
        """
        metric, mode = self.measure
        if mode is None:
            return None
        best_score: Score | None = None
        decides = self.recipe.get("evaluate.best.of")
        for line in () if self.damage else read_evaluations(self.folder / METRICS_FILE, "validation"):
            name, value = str(line.get("name", "")), line.get(metric)
            decides = name if decides is None else decides  # the first set decides where none is named
            if name != decides or value is None or not math.isfinite(finite(value)):
                continue
            score = Score(metric, mode, value, line.get("step", 0), f"validation {name}".strip())
            if best_score is None or score.rank < best_score.rank:
                best_score = score
        return best_score


SWEEP_FILE = "sweep.json"  # of a sweep's folder, see `launcher.sweep.record`


def find_runs(root: Path) -> Iterator[Run]:
    """The runs in a folder, itself included, at any of a few levels; a sweep's trials only from its own folder on."""
    return (Run(place) for place, files in _walked(root) if _is_run(files))


def find_sweeps(root: Path) -> Iterator[Path]:
    """The folders of sweeps below a folder, at any of a few levels."""
    return (place for place, files in _walked(root) if SWEEP_FILE in files and place != root)


def _walked(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """The folders below one, itself included, with the files in each; what lies in a run or a sweep is its own."""
    for where, folders, files in os.walk(root):
        place = Path(where)
        yield place, files
        depth = len(place.relative_to(root).parts)
        if _is_run(files) or (SWEEP_FILE in files and depth) or depth >= _DEPTH:
            folders.clear()
        folders[:] = sorted((name for name in folders if not name.startswith(".")), key=natural)


def _is_run(files: Collection[str]) -> bool:
    return STATUS_FILE in files or QUEUE_FILE in files


def natural(name: str) -> list[tuple[int, str]]:
    """Sorts the tasks of an array as they count: 2 before 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def seconds_since(moment: float | None) -> float | None:
    """Time since a moment in unix time."""
    return None if moment is None else time.time() - moment


def damaged(run: Run, error: BaseException) -> Run:
    """The run as one of which nothing can be told: what stands in its folder is not what we wrote."""
    return replace(run, damage=f"cannot be read: {type(error).__name__}: {words_of(error)[:200]}")


def _event(row: bytes) -> Mapping[str, Any] | None:
    try:
        event = json.loads(row)
    except (ValueError, RecursionError):
        return None
    is_event = isinstance(event, dict) and isinstance(event.get("event"), str)
    return event if is_event and _moment(event.get("time")) is not None else None


def _is_tame(text: str) -> bool:
    """Whether a YAML text may be read whole: we nest a few levels deep and never mean another place.

    A few `*` stand for more than memory holds, and at a hundred thousand brackets the parser itself crashes. Parsing
    piece by piece does neither; it takes as long as reading, and is left out where a look at the text tells enough.
    """
    if "*" not in text and sum(map(text.count, "[{?")) + text.count("- ") < _DEEPEST and " " * _DEEPEST not in text:
        return True
    depth = 0
    for event in yaml.parse(text, Loader=getattr(yaml, "CBaseLoader", yaml.BaseLoader)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST or isinstance(event, yaml.AliasEvent):
            return False
    return True


def _moment(value: Any) -> float | None:
    """A time that a run may have been at."""
    number = finite(value)
    return number if 0 <= number < _END_OF_TIME else None


def finite(value: Any) -> float:
    """A finite number; minus infinity in place of anything else."""
    try:
        number = float(value) if isinstance(value, int | float) else -math.inf
    except OverflowError:
        return -math.inf
    return number if math.isfinite(number) else -math.inf


def count(value: Any) -> int | None:
    """A whole number from 0 on; None in place of anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63 else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _texts(value: Any) -> dict[str, str] | None:
    return {str(key): str(text) for key, text in value.items()} if isinstance(value, dict) else None


def _list(value: Any) -> list[Any] | None:
    return value if isinstance(value, list) else None


_END_OF_TIME = 253_402_300_800.0  # the year 10000, of which no calendar of Python's knows
_STATUS: Mapping[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("step", "total_steps", "world", "pid"), count),
    **dict.fromkeys(("started", "updated", "ended"), _moment),
    **dict.fromkeys(("state", "host", "job", "error"), _text),
    "epoch": lambda value: number if math.isfinite(number := finite(value)) else None,
}
_ENVIRONMENT: Mapping[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("directory", "host", "system", "python", "started", "recipe"), _text),
    **dict.fromkeys(("versions", "git"), _texts),
    **dict.fromkeys(("command", "overrides", "remove", "allow"), _list),
}


def _of_their_kinds(values: Mapping[str, Any], kinds: Mapping[str, Callable[[Any], Any]]) -> dict[str, Any]:
    """The values, without those that are not what we write; what we do not know stays."""
    known = {key: kinds[key](value) if key in kinds else value for key, value in values.items()}
    return {key: value for key, value in known.items() if value is not None}
