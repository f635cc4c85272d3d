"""The folder of a sweep: what it is, and what became of it, each line written once and never changed.

    DIR/sweep.json      what was asked for; written once, at the start
    DIR/record.jsonl    one line a proposal, a start, a rung's value, a result, a failure; only appended to
    DIR/trials/0007/    ordinary runs

Whoever works on a sweep appends to `record.jsonl` under a lock of the operating system's, which dies with its holder:
no lock whose age decides. A torn last line, of a writer that was killed, is cut off by the next one.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from launcher.errors import LauncherError, UsageError
from launcher.recipe.caller import option
from launcher.runs.folder import read_json, write_json
from launcher.runs.metrics import encode
from launcher.runs.naming import TRIALS_FOLDER
from launcher.runs.reading import SWEEP_FILE
from launcher.sweep.metric import Metric

RECORD_FILE = "record.jsonl"
Parameters = Mapping[str, int | float]  # of a point: a choice's index, a range's number, by the parameter's name


@dataclass(frozen=True)
class Settings:
    """What a sweep is, from its start to its end: `sweep.json`.

    Attributes:
        recipe: The recipe's file, absolute; as it is written, relative where it lies in the sweep's folder.
        words: `a.b=value` and `a.b=1e-4..1e-2:log`, as they were read: the space's and the fixed ones.
        remove: Keys taken out of the recipe.
        allow: Packages that it may name.
        directory: Where it was started: what relative paths in the recipe are of.
        digest: Of the recipe's values without a point's, see `launcher.runs.identity`; another recipe is another sweep.
        method: One of `launcher.sweep.states.METHODS`.
        draws: How points are proposed: the method, but for halving `grid` or `random`.
        seed: Of the proposals.
        slots: Trials at a time, from which the lag was made; more or fewer may work on it later.
        lag: Proposal k knows the results of trials 0 to k - lag and of no other; 0: whatever is known.
        trials: How many runs, all seeds counted; more may be asked for later, see `Record.budgets`.
        seeds: The recipe's seed of each repeat; empty where points are not repeated.
        metric: What is compared.
        rungs: Steps at which trials are compared, the last of them a run's length; empty: all go to their end.
        eta: Of a rung, one in so many goes on.
        processes: Of each trial.
        cpu: Whether trials use the CPU even if there is a GPU.
        how: Overrides that say how a trial is run, and not what it learns: threads of a process, checkpoints kept.
        budget: Seconds of training that all trials together may take; None is no limit. See `Record.seconds`.
        keep: `best`: only the best trial's weights stay; `all`.
        created: When, in unix time.
    """

    recipe: str
    words: tuple[str, ...]
    metric: Metric
    digest: str
    method: str
    draws: str
    trials: int
    slots: int
    lag: int
    seed: int = 0
    seeds: tuple[int, ...] = ()
    rungs: tuple[int, ...] = ()
    eta: int = 2
    remove: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    directory: str = ""
    processes: int = 1
    cpu: bool = False
    how: tuple[str, ...] = ()
    keep: str = "best"
    budget: float | None = None
    created: float = field(default_factory=time.time)

    @property
    def repeats(self) -> int:
        """Runs of each point, one a seed."""
        return max(1, len(self.seeds))

    @property
    def num_rungs(self) -> int:
        """At least one: the end of a run."""
        return max(1, len(self.rungs))

    @property
    def last_rung(self) -> int:
        """The rung at which a run is finished."""
        return self.num_rungs - 1

    def point_of(self, trial: int) -> int:
        """Which point a trial is a run of; 0 is the baseline, the recipe as it is."""
        return trial // self.repeats

    def seed_of(self, trial: int) -> int | None:
        """The recipe's seed in a trial; None: as the recipe says."""
        return self.seeds[trial % self.repeats] if self.seeds else None


@dataclass
class Trial:
    """One run of a sweep, as the record tells it.

    Attributes:
        number: From 0; the folder's name.
        parameters: Its point; None for the baseline, which lies where the recipe lies.
        values: The metric at each rung that was reached; NaN for one that failed.
        result: The metric at its end; None before it.
        step: Optimizer steps after which the newest value was measured.
        seconds: Spent on it by all that worked at it.
        seen: When its newest value was written down, in unix time.
        since: When it was taken, in unix time.
        taken: The rung that somebody is bringing it to; None where nobody works at it.
        worker: Who that is.
        failures: What it failed of, oldest first.
        is_failed: Whether it will not be tried again: it counts as the worst.
    """

    number: int
    parameters: Parameters | None = None
    values: dict[int, float] = field(default_factory=dict)
    result: float | None = None
    step: int = 0
    seconds: float = 0.0
    seen: float | None = None
    since: float | None = None
    taken: int | None = None
    worker: str = ""
    failures: list[str] = field(default_factory=list)
    is_failed: bool = False

    @property
    def rung(self) -> int:
        """The highest that it has reached; -1 before the first."""
        return max(self.values, default=-1)

    @property
    def is_over(self) -> bool:
        """Whether there is nothing left to be done for it."""
        return self.is_failed or self.result is not None

    @property
    def state(self) -> str:
        """`running`, `paused`, `finished`, `failed`, or `waiting` where it was proposed and never begun or lost."""
        if self.is_over:
            return "failed" if self.is_failed else "finished"
        return "running" if self.taken is not None else "paused" if self.values else "waiting"


class Record:
    """What became of a sweep: `record.jsonl`, read as it grows.

    Args:
        folder: The sweep's.

    Attributes:
        folder: The sweep's.
        settings: What it is.
        trials: Those proposed, by number.
        budgets: How many runs there shall be: the settings', then what was asked for since, each more than before.
        seconds: Of training that all trials together may take: the settings', or what was asked for last; None is no
            limit.
        lines: How many lines were read.

    Raises:
        UsageError: The folder is not a sweep's.
        LauncherError: A line other than the last is damaged.
    """

    def __init__(self, folder: Path):
        self.folder = folder if folder.name not in ("", "..") else folder.resolve()  # a name that says something
        self.settings = read_settings(folder)
        self.trials: dict[int, Trial] = {}
        self.budgets = [self.settings.trials]
        self.seconds = self.settings.budget
        self.lines = 0
        self._read = 0  # bytes
        self.refresh()

    # ------------------------------------------------------------------ reading

    def refresh(self) -> None:
        """Reads what was appended since.

        Raises:
            LauncherError: A line other than the last is damaged.
        """
        with contextlib.suppress(FileNotFoundError), (self.folder / RECORD_FILE).open("rb") as file:
            self._take_from(file)

    def _take_from(self, file: IO[bytes]) -> None:
        file.seek(self._read)
        whole, newline, _ = file.read().rpartition(b"\n")
        for raw in whole.split(b"\n") if newline else ():
            self._take(raw)
        self._read += len(whole) + len(newline)

    def _take(self, raw: bytes) -> None:
        self.lines += 1
        try:
            line = json.loads(raw)
            self._fold(line)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise LauncherError(
                f"{self.folder / RECORD_FILE}:{self.lines}: this line of the record is damaged; remove it, or read an "
                "earlier copy of the file"
            ) from error

    def _fold(self, line: Mapping[str, Any]) -> None:
        """Takes one line in."""
        kind = line["kind"]
        if kind == "trials":
            self.budgets += [int(line["trials"])] if line["trials"] > self.budgets[-1] else []
            return
        if kind == "budget":
            self.seconds = float(line["seconds"])
            return
        number = int(line["trial"])
        if kind == "proposal":
            self.trials.setdefault(number, Trial(number, line["parameters"]))
            return
        trial = self.trials[number]
        trial.seconds += line.get("seconds", 0.0)
        _EFFECTS.get(kind, _on_nothing)(trial, line)
        if kind == "rung" and trial.rung >= self.settings.last_rung:
            trial.result = trial.values[trial.rung]

    @property
    def folders(self) -> Path:
        """Where the trials' folders lie."""
        return self.folder / TRIALS_FOLDER

    def folder_of(self, trial: int) -> Path:
        """A trial's folder, an ordinary run's."""
        return self.folders / f"{trial:04}"

    @property
    def running(self) -> dict[int, int]:
        """The trials that somebody works at, each with the rung it is brought to."""
        return {number: trial.taken for number, trial in self.trials.items() if trial.taken is not None}

    # ------------------------------------------------------------------ writing

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the record: nobody else appends meanwhile, and all that was appended has been read.

        Decide and `append` inside: two that look at the same record never take the same trial.

        Raises:
            OSError: The file cannot be written.
        """
        with (self.folder / RECORD_FILE).open("a+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # gone with its holder; over NFS the server knows it
            self._take_from(file)
            if file.seek(0, os.SEEK_END) > self._read:
                file.truncate(self._read)  # what a killed writer left of a line
            self._file = file
            try:
                yield
            finally:
                del self._file

    def append(self, *lines: Mapping[str, Any]) -> None:
        """Appends lines and takes them in; on the disk when this returns. Only inside of `locked`.

        Raises:
            OSError: The disk is full; what was written of a line is cut off by the next writer.
        """
        now = round(time.time(), 3)
        rest = "".join(f"{encode({**line, 'time': now})}\n" for line in lines).encode()
        while rest:
            rest = rest[self._file.write(rest) or 0 :]
        os.fsync(self._file.fileno())
        self._take_from(self._file)


# ---------------------------------------------------------------------- lines


def proposal(trial: int, parameters: Parameters | None) -> dict[str, Any]:
    """A trial is to be: its point, None for the baseline."""
    return {"kind": "proposal", "trial": trial, "parameters": parameters}


def taken(trial: int, rung: int, worker: str) -> dict[str, Any]:
    """Somebody brings a trial to a rung from now on."""
    return {"kind": "taken", "trial": trial, "rung": rung, "worker": worker}


def released(trial: int, why: str, seconds: float = 0.0) -> dict[str, Any]:
    """Nobody does any more, and the rung was not reached: it was stopped, or its worker was lost."""
    return {"kind": "released", "trial": trial, "why": why, "seconds": seconds}


def rung(trial: int, rung: int, value: float, step: int, seconds: float = 0.0) -> dict[str, Any]:
    """A trial has reached a rung with this value and is saved there; the last rung's value is the trial's result.

    Args:
        trial: Its number.
        rung: From 0.
        value: The metric; NaN where it was no number.
        step: Optimizer steps completed.
        seconds: Spent since it was taken.
    """
    return {"kind": "rung", "trial": trial, "rung": rung, "value": value, "step": step, "seconds": seconds}


def failure(trial: int, message: str, is_final: bool, seconds: float = 0.0) -> dict[str, Any]:
    """A trial has failed: for good, or to be tried again where the machine was at fault."""
    return {"kind": "failure", "trial": trial, "message": message, "is_final": is_final, "seconds": seconds}


def more_trials(trials: int) -> dict[str, Any]:
    """There shall be so many runs from now on; fewer than before changes nothing."""
    return {"kind": "trials", "trials": trials}


def other_budget(seconds: float) -> dict[str, Any]:
    """All trials together may take so much training from now on, what they have had counted."""
    return {"kind": "budget", "seconds": seconds}


def _on_taken(trial: Trial, line: Mapping[str, Any]) -> None:
    trial.taken, trial.worker, trial.since = int(line["rung"]), str(line["worker"]), line.get("time")


def _on_nothing(trial: Trial, line: Mapping[str, Any]) -> None:
    """A later version's line, of which this one knows nothing."""


def _on_released(trial: Trial, line: Mapping[str, Any]) -> None:
    trial.taken = None


def _on_rung(trial: Trial, line: Mapping[str, Any]) -> None:
    trial.values[int(line["rung"])] = float(line["value"])  # `NaN` is a word in standard JSON
    trial.step, trial.seen = int(line["step"]), line.get("time")
    trial.taken = None


def _on_failure(trial: Trial, line: Mapping[str, Any]) -> None:
    trial.failures.append(str(line["message"]))
    trial.is_failed, trial.taken = bool(line["is_final"]), None


_EFFECTS = {"taken": _on_taken, "released": _on_released, "rung": _on_rung, "failure": _on_failure}


# ---------------------------------------------------------------------- settings


def create(folder: Path, settings: Settings) -> Record:
    """Makes a sweep's folder and writes what it is.

    Raises:
        UsageError: It holds something else, or cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if strange := [
            path.name for path in folder.iterdir() if path.name[0] != "." and path.absolute() != Path(settings.recipe)
        ]:
            raise UsageError(
                f"{option('run_dir')}: {folder} holds {strange[0]}; name a new folder, or a sweep's to resume it"
            )
        (folder / TRIALS_FOLDER).mkdir()
        recipe = Path(settings.recipe)
        if settings.recipe and recipe.is_relative_to(folder.absolute()):  # it moves with the folder
            recipe = recipe.relative_to(folder.absolute())
        write_json(folder / SWEEP_FILE, {**asdict(settings), "recipe": str(recipe) if settings.recipe else ""})
    except OSError as error:
        raise UsageError(f"{option('run_dir')}: {folder} cannot be written: {error.strerror or error}") from error
    return Record(folder)


def read_settings(folder: Path) -> Settings:
    """What a sweep is.

    Raises:
        UsageError: The folder is not a sweep's.
    """
    values = read_json(folder / SWEEP_FILE)
    try:
        values["metric"] = Metric(**values["metric"])
        values["recipe"] = os.path.abspath(folder / values["recipe"]) if values["recipe"] else ""
        settings = Settings(**{key: _as_tuple(value) for key, value in values.items()})
    except (KeyError, TypeError) as error:
        raise UsageError(
            f"{folder}: is not a sweep's folder: {SWEEP_FILE} is missing or damaged; begin one with launcher sweep "
            f"RECIPE KEY=VALUE,VALUE --run-dir {folder}"
        ) from error
    return settings


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
