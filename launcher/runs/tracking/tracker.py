"""A tracker, TensorBoard and MLflow."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from launcher.errors import EXIT_DONE, EXIT_PREEMPTED
from launcher.runs.folder import read_json, write_json
from launcher.runs.metrics import Line
from launcher.text import flat, words_of
from launcher.world.files import write_text

SETTLED_SECONDS = 30.0  # after so long wandb's helper has written what it was given: it does every few seconds
_PROJECT_KEYS = {  # the setting that each tracker's first argument is
    "wandb": "project",
    "trackio": "project",
    "swanlab": "project",
    "comet_ml": "project_name",
    "mlflow": "experiment_name",
}
EXIT_CODES = {"finished": EXIT_DONE, "stopped": EXIT_PREEMPTED}


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
        own_code: The folders of the user's own code, which may speak to a tracker as well.
    """

    run_dir: Path
    run_name: str
    start_step: int
    config: Mapping[str, Any]
    history: Callable[[], Iterable[Line]]
    own_code: Sequence[Path] = ()

    @property
    def label(self) -> str:
        """The recipe's name and when: what tells this run from its neighbours."""
        return f"{self.run_name} {self.run_dir.name}"


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
        self.inner.store_init_configuration(_scalars(self.run.config))

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
        """Opens the event file; TensorBoard forgets what a crashed start logged after the step resumed from."""
        self.open(**{"purge_step": self.run.start_step + 1, **self.settings})
        if self.run.start_step == 0:
            # Accelerate's own way puts these under a second run, named by the clock
            self.inner.writer.add_hparams(_scalars(self.run.config), {}, run_name=".")


class MLflow(Tracker):
    """One MLflow run across resumes: its id lies in the run's folder. Steps done again are in it twice."""

    def start(self) -> None:
        """Opens the run; the recipe is told once, for MLflow takes no other values later."""
        path = self.run.run_dir / "mlflow_id"
        known = {"run_id": path.read_text(encoding="utf-8").strip()} if path.exists() else {"run_name": self.run.label}
        self.open(**{**known, **self.settings})
        if not path.exists():
            write_text(path, self.inner.active_run.info.run_id + "\n")
            self.inner.store_init_configuration(_scalars(self.run.config))

    def finish(self, outcome: str) -> None:
        """Ends the MLflow run with the state that the launcher's has."""
        import mlflow

        mlflow.end_run({"finished": "FINISHED", "stopped": "KILLED"}.get(outcome, "FAILED"))


class Sent:
    """The newest step of each number that a tracker surely has, kept in a file for the starts to come.

    A helper process writes what it is given some time later, and is lost with its machine. So a number counts when the
    run was ended in order, or a while after it was passed on.

    Args:
        path: The file.
    """

    def __init__(self, path: Path):
        self.path = path
        self.settled: dict[str, int] = {key: int(step) for key, step in read_json(path).items()}
        self._handed_over = dict(self.settled)
        self._earlier = dict(self.settled)  # passed on when the file was written last
        self._written = time.monotonic()

    def add(self, step: int, names: Iterable[str]) -> None:
        """Numbers of a step were passed on."""
        self._handed_over.update({name: max(step, self._handed_over.get(name, -1)) for name in names})
        now = time.monotonic()
        if now - self._written >= SETTLED_SECONDS:
            self._write(self._earlier)
            self._earlier, self._written = dict(self._handed_over), now

    def settle(self) -> None:
        """All that was passed on is there."""
        self._write(self._handed_over)

    def _write(self, steps: Mapping[str, int]) -> None:
        self.settled = dict(steps)
        with suppress(OSError):  # without it they are sent once more
            write_json(self.path, steps)


def numbers(line: Line) -> dict[str, Any]:
    """The numbers of a line as trackers name them: `train/loss`, `validation/accuracy`, `validation/clean/loss`."""
    scope = "/".join(str(line[key]) for key in ("split", "name") if key in line)
    kept = {key: value for key, value in line.items() if key not in ("step", "split", "name", "time", "seconds")}
    return {f"{scope}/{key}": value for key, value in _scalars(kept, "/").items() if isinstance(value, int | float)}


def _scalars(values: Any, separator: str = ".") -> dict[str, Any]:
    """Nested mappings and lists as one mapping of scalars; null becomes a word, which not all trackers have."""
    return {
        key: value if isinstance(value, bool | int | float | str) else str(value)
        for key, value in flat(values, separator)
        if value not in ({}, [], ())
    }


def plain_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping as JSON would give it back."""
    plain: dict[str, Any] = json.loads(json.dumps(values, default=str))
    return plain


def failure_of(error: BaseException) -> str:
    """That a tracker failed, and of what."""
    return f"failed ({in_short(error)})"


def in_short(error: BaseException) -> str:
    """The first line of an error."""
    first = next((line.strip() for line in words_of(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first[:200]}" if first else type(error).__name__
