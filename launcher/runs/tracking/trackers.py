"""wandb, TensorBoard and every other tracker that Accelerate has, each on a thread of its own.

A tracker is a guest: whatever it does (start, log, finish) happens on its own daemon thread behind a bounded queue,
so that one that is slow, fails or hangs stops neither the training nor the other trackers.
"""

from __future__ import annotations

import difflib
import importlib
import json
import shlex
import ssl
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from launcher.errors import EXIT_DONE, EXIT_FAILED, EXIT_PREEMPTED, UsageError
from launcher.runs.folder import read_json, write_json
from launcher.runs.metrics import Line

QUEUE_LINES = 2048
FINISH_SECONDS = 30.0
SETTLED_SECONDS = 30.0  # after so long wandb's helper has written what it was given: it does every few seconds
LEAVE_SECONDS = 10.0  # where the run was stopped or failed, somebody waits for the process to end
_INSTALL = {"wandb": '"launcher[wandb]"', "tensorboard": '"launcher[tensorboard]"', "comet_ml": "comet-ml"}
_MODULES = {"tensorboard": "torch.utils.tensorboard"}
_PROJECT_KEYS = {  # the setting that each tracker's first argument is
    "wandb": "project",
    "trackio": "project",
    "swanlab": "project",
    "comet_ml": "project_name",
    "mlflow": "experiment_name",
}
# What a recipe may say to each, as it may come from a stranger: nothing that chooses a server, to which the user's key
# would go, or where files are written. What runs and files are called is here; who gets them is not.
SETTINGS: Mapping[str, tuple[str, ...]] = {
    "aim": ("experiment", "system_tracking_interval", "log_system_params", "capture_terminal_logs"),
    "clearml": ("project_name", "task_name", "task_type", "tags", "reuse_last_task_id", "continue_last_task"),
    "comet_ml": ("project_name", "workspace", "experiment_key", "mode", "online"),
    "dvclive": ("resume", "report", "exp_name", "exp_message", "monitor_system"),
    "mlflow": ("experiment_name", "run_id", "run_name", "tags", "nested_run", "description"),
    "swanlab": ("project", "workspace", "experiment_name", "description", "group", "tags", "mode", "id", "resume"),
    "tensorboard": ("max_queue", "flush_secs", "purge_step"),
    "trackio": ("project", "name", "group", "resume"),
    "wandb": ("project", "entity", "name", "group", "job_type", "notes", "tags", "mode", "resume", "settings"),
}
_WANDB_SETTINGS = ("init_timeout", "finish_timeout", "console", "silent", "disable_git", "disable_code")
_EXIT_CODES = {"finished": EXIT_DONE, "preempted": EXIT_PREEMPTED}


@dataclass(frozen=True)
class Note:
    """What a tracker has to say to the person."""

    text: str
    is_warning: bool = False


@dataclass(frozen=True)
class TrackedRun:
    """What trackers are told about a run.

    Attributes:
        run_dir: The run's folder.
        run_name: The recipe's name.
        start_step: Steps completed before this start.
        config: The resolved recipe as nested plain values.
        history: The lines of earlier starts, up to `start_step`.
    """

    run_dir: Path
    run_name: str
    start_step: int
    config: Mapping[str, Any]
    history: Callable[[], Iterable[Line]]

    @property
    def label(self) -> str:
        """The recipe's name and when: what tells this run from its neighbours."""
        return f"{self.run_name} {self.run_dir.name}"


def check(trackers: Mapping[str, Mapping[str, Any]], allow: Collection[str] = ()) -> None:
    """Checks that Accelerate has each tracker, that its package is installed, and that a recipe may say its settings.

    Args:
        trackers: The settings of each, by its name.
        allow: Those to which a recipe may say anything.

    Raises:
        UsageError: One is not; the message has all of them, and what to do.
    """
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
    from accelerate.utils import LoggerType

    installed = {str(kind) for kind in get_available_trackers()}
    needs_package = {str(kind) for kind in LoggerType} & set(LOGGER_TYPE_TO_CLASS)
    problems: list[str] = []
    for name, settings in trackers.items():
        if name not in allow:
            problems += _refused(name, settings)
        if name not in LOGGER_TYPE_TO_CLASS:
            problems.append(_unknown(name, sorted(LOGGER_TYPE_TO_CLASS)))
        elif name in needs_package - installed:
            package = _INSTALL.get(name, name)
            problems.append(f"track.{name}: it is not installed; pip install {package}, or --remove track.{name}")
    if problems:
        raise UsageError("\n".join(problems))


def _refused(name: str, settings: Mapping[str, Any]) -> Iterator[str]:
    """The settings that are not a recipe's to say."""
    listed = SETTINGS.get(name, ())
    strange = [(key, listed) for key in settings if key not in listed] if listed else []
    inner = settings.get("settings", {}) if name == "wandb" else {}
    if not isinstance(inner, Mapping):
        yield "track.wandb.settings: must be a mapping; write {init_timeout: 30}"
    else:
        strange += [(f"settings.{key}", _WANDB_SETTINGS) for key in inner if key not in _WANDB_SETTINGS]
    for key, known in strange:
        yield (
            f"track.{name}.{key}: a recipe may not say this, as it may choose where keys, numbers or files go; it may "
            f"say: {', '.join(known)}; set the rest in the environment, or say --allow {name} if the recipe is yours"
        )


def _unknown(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else "."
    return f"track.{name}: there is no such tracker{hint} There are: {', '.join(known)}"


# ---------------------------------------------------------------------- what a tracker does, on its thread


class Tracker:
    """Any of Accelerate's trackers, by its name. Only its worker's thread calls it."""

    hint = ""  # what to do about lines that did not arrive

    def __init__(self, name: str, settings: Mapping[str, Any], run: TrackedRun, notes: SimpleQueue[Note]):
        self.name = name
        self.settings = dict(settings)
        self.run = run
        self.inner: Any = None
        self._notes = notes

    @property
    def project(self) -> str:
        """The first argument of Accelerate's tracker, where the recipe does not say it."""
        return self.run.run_name

    def say(self, text: str) -> None:
        """Leaves a word for the person."""
        self._notes.put(Note(text))

    def warn(self, text: str) -> None:
        """Leaves word that something went wrong."""
        self._notes.put(Note(text, is_warning=True))

    def start(self) -> None:
        """Opens the tracker and tells it the recipe."""
        self.open(**self.settings)
        self.inner.store_init_configuration(_flat(self.run.config))

    def open(self, **settings: Any) -> None:
        """Builds and starts Accelerate's tracker."""
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        kind = LOGGER_TYPE_TO_CLASS[self.name]
        project = settings.pop(_PROJECT_KEYS.get(self.name, ""), self.project)
        where = [str(self.run.run_dir)] if kind.requires_logging_directory else []
        self.inner = kind(project, *where, **settings)
        self.inner.main_process_only = False  # there is no other: only rank 0 tracks
        self.inner.start()

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Sends the numbers of one line."""
        self.inner.log(values, step=step)

    def finish(self, outcome: str) -> None:
        """Ends the tracker's run."""
        self.inner.finish()

    def abandon(self) -> None:
        """Ends what a tracker that failed or hangs has started, which might keep the process from ending."""


class TensorBoard(Tracker):
    """Event files in the run's folder `tensorboard`, one run across resumes."""

    project = "tensorboard"  # the folder's name

    def start(self) -> None:
        """Opens the event file; TensorBoard forgets what a crashed start logged after the step gone on from."""
        self.open(**{"purge_step": self.run.start_step + 1, **self.settings})
        if self.run.start_step == 0:
            # Accelerate's own way puts these under a second run, named by the clock
            self.inner.writer.add_hparams(_flat(self.run.config), {}, run_name=".")


class MLflow(Tracker):
    """One MLflow run across resumes: its id lies in the run's folder. Steps done again are in it twice."""

    def start(self) -> None:
        """Opens the run; the recipe is told once, for MLflow takes no other values later."""
        path = self.run.run_dir / "mlflow_id"
        known = {"run_id": path.read_text().strip()} if path.exists() else {"run_name": self.run.label}
        self.open(**{**known, **self.settings})
        if not path.exists():
            path.write_text(self.inner.active_run.info.run_id + "\n")
            self.inner.store_init_configuration(_flat(self.run.config))

    def finish(self, outcome: str) -> None:
        """Ends the MLflow run with the state that the launcher's has."""
        import mlflow

        mlflow.end_run({"finished": "FINISHED", "preempted": "KILLED"}.get(outcome, "FAILED"))


class WandB(Tracker):
    """One wandb run across resumes: its id lies in the run's folder, its step is ours.

    Without a key or a network it is kept offline. On a resume wandb is given what it lacks: a killed start loses its
    last seconds, which offline are given again, as nobody can tell which of them arrived.
    """

    _step: int  # wandb's own count
    _resumed_at: int  # the newest step that the server has
    _newest: Mapping[str, int]  # the newest step that it surely has, of each number
    _sent: Sent

    def start(self) -> None:
        """Opens the run, online where that is asked for and possible, and brings it up to date."""
        defaults = _settings()
        mode = self.settings.pop("mode", None) or defaults.mode
        why = ""
        if mode != "online":
            self._open_run(mode)
        elif why := self._obstacle(defaults) or self._try_online():
            self._open_run("offline")
        self._announce(why)
        self._catch_up()

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Sends those numbers that wandb does not have yet."""
        news = {key: value for key, value in values.items() if step > self._newest.get(key, self._resumed_at)}
        if news:
            self._step = max(self._step, step)  # wandb's own count cannot go back
            self.inner.log({"step": step, **news}, step=self._step)
            self._sent.add(step, news)

    def finish(self, outcome: str) -> None:
        """Ends the wandb run with the state that the launcher's has."""
        if outcome == "preempted":
            self.inner.run.mark_preempting()
        self.inner.run.finish(exit_code=_EXIT_CODES.get(outcome, EXIT_FAILED))
        self._sent.settle()

    def abandon(self) -> None:
        """Ends wandb's helper process, for which wandb would wait when Python ends: asks first, then kills."""
        import psutil

        helpers = [child for child in psutil.Process().children() if child.name() == "wandb-core"]
        ending = threading.Thread(target=_end_wandb, daemon=True)
        ending.start()
        ending.join(2.0)
        for helper in helpers:
            with suppress(psutil.NoSuchProcess):
                helper.kill()
        ending.join(5.0)

    def _open_run(self, mode: str) -> None:
        _settings()
        options = dict(self.settings)
        asked = options.pop("settings", {})
        ours = {
            "silent": True,
            "console": "off",
            "init_timeout": 15,
            "finish_timeout": 15,
            "finish_timeout_raises": True,
        }
        resume = {"resume": "allow"} if mode == "online" else {}
        named = {"dir": str(self.run.run_dir), "id": self._run_id(), "name": self.run.label, "mode": mode}
        self.open(**{**named, **resume, **options, "settings": {**ours, **asked}})
        self.inner.store_init_configuration(_plain(self.run.config))
        self.inner.run.define_metric("step")
        self.inner.run.define_metric("*", step_metric="step")

    def _run_id(self) -> str:
        path = self.run.run_dir / "wandb_id"
        found = path.read_text().strip() if path.exists() else ""
        if not found:
            found = uuid.uuid4().hex[:8]
            path.write_text(found + "\n")
        return found

    def _obstacle(self, defaults: Any) -> str:
        """Why the run cannot be online; empty if nothing is known to be in the way."""
        if not _has_key(defaults):
            return "no API key; wandb login"
        parts = self.run.run_dir.glob("wandb/offline-run-*")
        if any(not list(part.glob("*.synced")) for part in parts):
            return "an earlier part of it is not synced yet"
        return _unreachable(defaults.base_url)

    def _try_online(self) -> str:
        """Why the run could not be opened online; empty if it is."""
        try:
            self._open_run("online")
        except Exception as error:  # what a server answers is not ours to foresee
            self.abandon()  # or its helper would hold the run's id
            return _in_short(error)
        return ""

    def _announce(self, why: str) -> None:
        run = self.inner.run
        if run.offline:
            folder = shlex.quote(str(self.run.run_dir / "wandb"))
            self.hint = f"; to sync it later: wandb sync {folder}/offline-run-*"
            if why:
                self.warn(f"wandb: offline ({why}){self.hint}")
            else:
                self.say(f"wandb: offline{self.hint}")
        elif run.url:
            self.hint = f"; to send what is missing: wandb sync {shlex.quote(str(run.settings.sync_dir))}"
            self.say(f"wandb: {run.url}")

    def _catch_up(self) -> None:
        run = self.inner.run
        self._step = -1
        self._resumed_at = run.starting_step - 1 if run.resumed else -1
        self._sent = Sent(self.run.run_dir / "wandb_sent.json")
        self._newest = dict(self._sent.settled) if run.offline else {}
        if self.run.start_step > 0:
            for line in self.run.history():
                self.log(line["step"], numbers(line))
                time.sleep(0)  # the training's thread goes first


def _settings() -> Any:
    """What wandb knows by itself: WANDB_MODE, WANDB_BASE_URL, the key. From here on it prints nothing."""
    import wandb

    return wandb.setup(wandb.Settings(silent=True)).settings


def _end_wandb() -> None:
    import wandb

    with suppress(Exception, SystemExit):
        wandb.teardown()


def _has_key(defaults: Any) -> bool:
    from requests.utils import get_netrc_auth  # wandb's own way

    return bool(defaults.api_key or defaults.identity_token_file or get_netrc_auth(defaults.base_url))


def _unreachable(url: str, timeout_seconds: float = 5.0) -> str:
    """Why nobody answers there; empty if anybody does, whatever the answer."""
    try:
        urllib.request.urlopen(url, timeout=timeout_seconds).close()
    except (urllib.error.HTTPError, HTTPException):
        return ""
    except OSError as error:
        if isinstance(getattr(error, "reason", None), ssl.SSLError):
            return ""
        return f"{url} does not answer"
    return ""


class Sent:
    """The newest step of each number that a tracker surely has, kept in a file for the starts to come.

    A helper process writes what it is given some time later, and is lost with its machine. So a number counts when the
    run was ended in order, or a while after it was handed over.

    Args:
        path: The file.
    """

    def __init__(self, path: Path):
        self.path = path
        self.settled: dict[str, int] = {key: int(step) for key, step in read_json(path).items()}
        self._handed_over = dict(self.settled)
        self._earlier = dict(self.settled)  # handed over when the file was written last
        self._written = time.monotonic()

    def add(self, step: int, names: Iterable[str]) -> None:
        """Numbers of a step were handed over."""
        self._handed_over.update({name: max(step, self._handed_over.get(name, -1)) for name in names})
        now = time.monotonic()
        if now - self._written >= SETTLED_SECONDS:
            self._write(self._earlier)
            self._earlier, self._written = dict(self._handed_over), now

    def settle(self) -> None:
        """All that was handed over is there."""
        self._write(self._handed_over)

    def _write(self, steps: Mapping[str, int]) -> None:
        self.settled = dict(steps)
        with suppress(OSError):  # without it they are sent once more
            write_json(self.path, steps)


# ---------------------------------------------------------------------- threads and queues

_KINDS: Mapping[str, type[Tracker]] = {"wandb": WandB, "tensorboard": TensorBoard, "mlflow": MLflow}


class Worker:
    """A tracker, its thread and its queue."""

    def __init__(self, tracker: Tracker):
        self.tracker = tracker
        self._lines: deque[Line] = deque()
        self._changed = threading.Condition()
        self._outcome: str | None = None  # set when the run ends
        self._dead = False
        self._missing = 0
        # An import that runs while a DataLoader forks leaves its lock taken in the child, so it is done before.
        # What is wrong with it is said when the tracker starts.
        with suppress(Exception):
            importlib.import_module(_MODULES.get(tracker.name, tracker.name))
        self._thread = threading.Thread(target=self._work, name=f"track-{tracker.name}", daemon=True)
        self._thread.start()

    def send(self, line: Line) -> None:
        """Queues a line; a full queue loses its oldest train line."""
        if self._dead:
            return
        with self._changed:
            self._lines.append(line)
            if len(self._lines) > QUEUE_LINES:
                oldest = (n for n, queued in enumerate(self._lines) if queued["split"] == "train")
                del self._lines[next(oldest, 0)]
                self._missing += 1
            self._changed.notify()

    def end(self, outcome: str) -> None:
        """Asks the tracker to finish when its queue is empty."""
        with self._changed:
            self._outcome = outcome
            self._changed.notify()

    def wait(self, seconds: float) -> bool:
        """Whether the tracker has finished, after at most so many seconds."""
        self._thread.join(max(0.0, seconds))
        return not self._thread.is_alive()

    def report(self) -> None:
        """Says what did not arrive."""
        tracker = self.tracker
        if self._thread.is_alive():
            self._dead = True
            tracker.abandon()
            tracker.warn(f"{tracker.name} did not finish in time and is left behind{tracker.hint}")
        elif self._missing and not self._dead:
            tracker.warn(f"{tracker.name}: {self._missing} lines did not reach it; metrics.jsonl has them")

    def _work(self) -> None:
        try:
            self.tracker.start()
            while (line := self._next()) is not None:
                self._log(line)
            self.tracker.finish(self._outcome or "failed")
        except BaseException as error:  # some trackers call sys.exit
            if self._dead:  # left behind already: nobody waits for what it has to say
                return
            self._dead = True
            self._lines.clear()
            with suppress(Exception):
                self.tracker.abandon()
            self.tracker.warn(f"{self.tracker.name} {_failure(error)}; training goes on without it{self.tracker.hint}")

    def _next(self) -> Line | None:
        with self._changed:
            self._changed.wait_for(lambda: self._lines or self._outcome)
            return self._lines.popleft() if self._lines else None

    def _log(self, line: Line) -> None:
        try:
            self.tracker.log(line["step"], numbers(line))
        except Exception as error:  # a server that is away for a minute may come back
            if not self._missing:
                self.tracker.warn(f"{self.tracker.name} {_failure(error)}; training goes on")
            self._missing += 1


class Trackers:
    """The trackers of a run."""

    def __init__(self, chosen: Mapping[str, Mapping[str, Any]], run: TrackedRun):
        self._notes: SimpleQueue[Note] = SimpleQueue()
        self._workers = [
            Worker(_KINDS.get(name, Tracker)(name, settings, run, self._notes)) for name, settings in chosen.items()
        ]

    def send(self, line: Line) -> None:
        """Queues a line for each tracker; never waits."""
        for worker in self._workers:
            worker.send(line)

    def notes(self) -> Iterator[Note]:
        """What trackers have to say since the last call. Threads do not print: a terminal has one writer."""
        while not self._notes.empty():
            yield self._notes.get()

    def close(self, outcome: str, say: Callable[[str], None]) -> None:
        """Lets the trackers finish, and leaves behind those that do not within bounds."""
        limit = FINISH_SECONDS if outcome == "finished" else LEAVE_SECONDS
        started = time.monotonic()
        for worker in self._workers:
            worker.end(outcome)
        if late := [worker for worker in self._workers if not worker.wait(2.0 + started - time.monotonic())]:
            say(f"waiting up to {limit:.0f} s for {' and '.join(worker.tracker.name for worker in late)}")
        for worker in late:
            worker.wait(limit + started - time.monotonic())
        for worker in self._workers:
            worker.report()


def numbers(line: Line) -> dict[str, Any]:
    """The numbers of a line as trackers name them: `train/loss`, `validation/accuracy`, `validation/clean/loss`."""
    scope = "/".join(str(line[key]) for key in ("split", "name") if key in line)
    kept = {key: value for key, value in line.items() if key not in ("step", "split", "name", "time", "seconds")}
    flat = _flat(kept, "/")
    return {f"{scope}/{key}": value for key, value in flat.items() if isinstance(value, int | float)}


def _flat(values: Any, separator: str = ".", prefix: str = "") -> dict[str, Any]:
    """Nested mappings and lists as one mapping of scalars; null becomes a word, which not all trackers have."""
    if isinstance(values, Mapping):
        parts: Iterable[tuple[Any, Any]] = values.items()
    elif isinstance(values, list | tuple):
        parts = enumerate(values)
    else:
        return {prefix: values if isinstance(values, bool | int | float | str) else str(values)}
    flat: dict[str, Any] = {}
    for key, value in parts:
        flat.update(_flat(value, separator, f"{prefix}{separator}{key}" if prefix else str(key)))
    return flat


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping as JSON would give it back."""
    plain: dict[str, Any] = json.loads(json.dumps(values, default=str))
    return plain


def _failure(error: BaseException) -> str:
    return f"failed ({_in_short(error)})"


def _in_short(error: BaseException) -> str:
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first[:200]}" if first else type(error).__name__
