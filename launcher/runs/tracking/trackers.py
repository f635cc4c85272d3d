"""wandb, TensorBoard and every other tracker that Accelerate has, each on a thread of its own.

A tracker is a guest: whatever it does (start, log, finish) happens on its own daemon thread behind a bounded queue,
so that one that is slow, fails or hangs stops neither the training nor the other trackers.
"""

from __future__ import annotations

import difflib
import importlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

from launcher.errors import UsageError
from launcher.recipe.caller import option
from launcher.recipe.directory import directory
from launcher.runs.metrics import Line
from launcher.runs.tracking.own_code import SPOKEN_TO, speaks_to
from launcher.runs.tracking.tracker import MLflow, Note, TensorBoard, TrackedRun, Tracker, failure_of, numbers
from launcher.runs.tracking.wandb import WandB
from launcher.version import install
from launcher.world.world import user_variable

QUEUE_LINES = 2048
FINISH_SECONDS = 30.0
OPEN_SECONDS = 60.0
SAY_SECONDS = 10.0
LEAVE_SECONDS = 10.0  # where the run was stopped or failed, somebody waits for the process to end
_EXTRAS = ("wandb", "tensorboard")  # of ours; what the others need is installed by its name
_WHEELS = {"comet_ml": "comet-ml"}
_MODULES = {"tensorboard": "torch.utils.tensorboard"}
# What a recipe may say to each, as it may come from a stranger: nothing that chooses a server, to which the user's key
# would go, or where files are written. What runs and files are called is here; who gets them is not, but for wandb's
# entity, a team that many recipes name: it gets numbers and the recipe, and nothing of the machine or its files.
SETTINGS: Mapping[str, tuple[str, ...]] = {
    "aim": ("experiment", "system_tracking_interval", "log_system_params", "capture_terminal_logs"),
    "clearml": ("project_name", "task_name", "task_type", "tags", "reuse_last_task_id", "continue_last_task"),
    "comet_ml": ("project_name", "experiment_key", "mode", "online"),
    "dvclive": ("resume", "report", "exp_name", "exp_message", "monitor_system"),
    "mlflow": ("experiment_name", "run_id", "run_name", "tags", "nested_run", "description"),
    "swanlab": ("project", "experiment_name", "description", "group", "tags", "mode", "id", "resume"),
    "tensorboard": ("max_queue", "flush_secs", "purge_step"),
    "trackio": ("project", "name", "group", "resume"),
    "wandb": ("project", "entity", "name", "group", "job_type", "notes", "tags", "mode", "resume", "settings"),
}
# Files in a folder that choose, for who works there, to which server the key goes: read before the environment is.
_FILES = {"comet_ml": (".comet.config",), "wandb": ("wandb/settings", ".wandb/settings")}
_WANDB_SETTINGS = ("init_timeout", "finish_timeout", "console", "silent", "disable_git", "disable_code")


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
            problems += [*_refused(name, settings), *_chosen_by_the_folder(name)]
        if name not in LOGGER_TYPE_TO_CLASS:
            problems.append(_unknown(name, sorted(LOGGER_TYPE_TO_CLASS)))
        elif name in needs_package - installed:
            command = install(name) if name in _EXTRAS else f"pip install {_WHEELS.get(name, name)}"
            problems.append(f"track.{name}: it is not installed; {command}, or --remove track.{name}")
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
            f"say: {', '.join(known)}; set the rest in the environment, or use {option('allow', name)} if the recipe "
            "is yours"
        )


def _chosen_by_the_folder(name: str) -> Iterator[str]:
    """A tracker's own settings in the working directory, which are anybody's who has made the folder; not a home's."""
    here = directory()
    for file in _FILES.get(name, ()):
        if (here / file).exists() and os.path.realpath(here) != os.path.realpath(user_variable("HOME") or os.sep):
            yield (
                f"track.{name}: {file} in the working directory chooses where the key and numbers go, and may be "
                "anybody's who has made the folder; write project and entity in the recipe and the server in the "
                f"environment, and remove it, or use {option('allow', name)} if it is yours"
            )


def _unknown(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else "."
    return f"track.{name}: there is no such tracker{hint} There are: {', '.join(known)}"


# ---------------------------------------------------------------------- what a tracker does, on its thread


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
        self.opened = threading.Event()  # also where that has failed
        # An import that runs while a DataLoader forks leaves its lock taken in the child, so it is done before.
        # What is wrong with it is reported when the tracker starts.
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
            tracker.warn(f"{tracker.name} did not finish in time and was abandoned{tracker.hint}")
        elif self._missing and not self._dead:
            tracker.warn(f"{tracker.name}: {self._missing} lines did not reach it; metrics.jsonl has them")

    def _work(self) -> None:
        try:
            self.tracker.start()
            self.opened.set()
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
            self.opened.set()
            self.tracker.warn(
                f"{self.tracker.name} {failure_of(error)}; training continues without it{self.tracker.hint}"
            )

    def _next(self) -> Line | None:
        with self._changed:
            self._changed.wait_for(lambda: self._lines or self._outcome)
            return self._lines.popleft() if self._lines else None

    def _log(self, line: Line) -> None:
        try:
            self.tracker.log(line["step"], numbers(line))
        except Exception as error:  # a server that is away for a minute may come back
            if not self._missing:
                self.tracker.warn(f"{self.tracker.name} {failure_of(error)}; training continues")
            self._missing += 1


def _await(worker: Worker, say: Callable[[str], None], is_over: Callable[[], bool]) -> None:
    began, is_said = time.monotonic(), False
    while not worker.opened.wait(0.1) and not is_over() and (waited := time.monotonic() - began) < OPEN_SECONDS:
        if waited > SAY_SECONDS and not is_said:
            is_said = True
            say(f"waiting up to {OPEN_SECONDS:.0f} s for {worker.tracker.name}, which your own code uses")


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

    def await_spoken_to(self, say: Callable[[str], None], is_over: Callable[[], bool]) -> None:
        """Waits for those to be open that the user's own code speaks to, within bounds."""
        for worker in self._workers:
            tracker = worker.tracker
            if tracker.name in SPOKEN_TO and speaks_to(tracker.name, tracker.run.own_code):
                _await(worker, say, is_over)

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
