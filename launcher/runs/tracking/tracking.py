"""Where a run's numbers go: `metrics.jsonl` always, the terminal, and the trackers that the recipe names.

Only rank 0 tracks; the other ranks hold a `NoTracking`. Nothing here ever stops the training: a console that
nobody reads, a full disk or a tracker that hangs is reported once, and training continues.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import psutil

from launcher.runs.metrics import METRICS_FILE, Line, MetricsFile, Redone, read_metrics, read_until

if TYPE_CHECKING:
    from launcher.runs.tracking.console import Console
    from launcher.runs.tracking.trackers import Trackers

__all__ = ["Line", "NoTracking", "Tracking", "check_trackers", "open_tracking", "read_metrics"]


class Tracking:
    """What rank 0 has; see `open_tracking`.

    Attributes:
        redone: What earlier starts did and this one does again.
    """

    def __init__(self, metrics: MetricsFile, console: Console, trackers: Trackers, redone: Redone):
        self.redone = redone
        self._metrics = metrics
        self._console = console
        self._trackers = trackers
        self._process = psutil.Process()
        self._memory = (-math.inf, 0)  # when it was measured, and the bytes
        self._evaluated: dict[tuple[str, str], Line] = {}  # the last line of each set
        self._disk_failed = False
        self._display_failed = False
        self._closed = False

    def start(self, plan: Sequence[tuple[str, str]]) -> None:
        """Prints the plan, as pairs of label and text, and opens the bar."""
        self._show(self._console.start, plan)

    def await_spoken_to(self, is_over: Callable[[], bool]) -> None:
        """Waits for those trackers that the user's own code speaks to, which it would do before they are open.

        Args:
            is_over: Whether there is nothing to wait for any more: the run was asked to stop.
        """
        self._trackers.await_spoken_to(self.message, is_over)

    def log(self, line: Line) -> None:
        """Takes a finished line: to `metrics.jsonl` first, then to the trackers and the screen."""
        now = time.time()
        memory = {"host_memory": self._host_memory(now)} if line["split"] == "train" else {}
        line = {**line, **memory, "time": round(now, 3)}
        self._remember(line)
        self._record(line)
        self._trackers.send(line)
        self._show(self._console.line, line)

    def progress(self, step: int) -> None:
        """Advances the bar: so many optimizer steps are completed."""
        self._show(self._console.progress, step)

    def message(self, text: str) -> None:
        """Says one line to the person."""
        self._show(self._console.message, text)

    def warn(self, text: str) -> None:
        """Says one line that nobody should miss, also where little is shown."""
        self._show(self._console.warn, text)

    def evaluating(self, done: int, total: int, split: str) -> None:
        """Shows how far an evaluation is, in batches."""
        self._show(self._console.evaluating, done, total, split)

    def close(self, outcome: str, summary: Sequence[Line], saved: int | None = None) -> None:
        """Finishes the trackers, within bounds, and prints the summary. Never raises; a second call does nothing.

        Args:
            outcome: `finished`, `failed` or `stopped`.
            summary: The last evaluations, where they may be an earlier start's; later ones take their place.
            saved: The step of the last checkpoint on disk, if there is one.
        """
        if self._closed:
            return
        self._closed = True
        with suppress(Exception):
            self._trackers.close(outcome, self.message)
        try:
            self._metrics.close()
        except OSError as error:
            self._show(self._console.warn, f"{self._metrics.path}: the last lines are missing: {error}")
        logged = self._evaluated
        self._evaluated = {}
        for line in (*summary, *logged.values()):
            self._remember(line)
        self._show(self._console.close, outcome, list(self._evaluated.values()), saved)

    def _host_memory(self, now: float) -> int:
        """Bytes of this process in memory, measured once a second: asking costs as much as a line."""
        if now - self._memory[0] >= 1.0:
            self._memory = now, self._process.memory_info().rss
        return self._memory[1]

    def _remember(self, line: Line) -> None:
        if line["split"] != "train":
            self._evaluated[line["split"], line.get("name", "")] = line

    def _record(self, line: Line) -> None:
        try:
            self._metrics.write(line)
        except OSError as error:
            if not self._disk_failed:
                why = f"{self._metrics.path}: {error.strerror or error}; training continues"
                self._show(self._console.warn, f"{why}, and these lines are written when there is room again")
            self._disk_failed = True

    def _show(self, act: Callable[..., None], *args: Any) -> None:
        """Does what only shows something. Whatever goes wrong there ends no training; it is reported once."""
        try:
            for note in self._trackers.notes():
                (self._console.warn if note.is_warning else self._console.message)(note.text)
            act(*args)
            if (broken := getattr(sys.stdout, "broken", None)) is not None:
                self._say_failed(broken)
        except Exception as error:
            self._say_failed(error)

    def _say_failed(self, error: Exception) -> None:
        if not self._display_failed:
            with suppress(OSError, ValueError, AttributeError):
                is_closed = isinstance(error, BrokenPipeError)
                what = "nobody reads the display any more" if is_closed else f"the display failed ({error!r})"
                print(f"{what}; training continues: {self._metrics.path}", file=sys.stderr)
        self._display_failed = True


class NoTracking(Tracking):
    """What the other ranks have: the same signature, and nothing happens."""

    def __init__(self) -> None:
        """Holds nothing."""
        self.redone = Redone()

    def start(self, plan: Sequence[tuple[str, str]]) -> None:
        """Does nothing."""

    def await_spoken_to(self, is_over: Callable[[], bool]) -> None:
        """Does nothing: what is called here has no effect, see `stand_in`."""

    def log(self, line: Line) -> None:
        """Does nothing."""

    def progress(self, step: int) -> None:
        """Does nothing."""

    def message(self, text: str) -> None:
        """Does nothing."""

    def warn(self, text: str) -> None:
        """Does nothing."""

    def evaluating(self, done: int, total: int, split: str) -> None:
        """Does nothing."""

    def close(self, outcome: str, summary: Sequence[Line], saved: int | None = None) -> None:
        """Does nothing."""


def open_tracking(
    *,
    run_dir: Path,
    total_steps: int | None,
    start_step: int,
    trackers: Mapping[str, Mapping[str, Any]],
    run_name: str,
    config: Mapping[str, Any],
    best: tuple[str, str] | None,
    decides: str = "",
    output: Literal["auto", "quiet", "json"] = "auto",
    deadline: float | None = None,
    evaluated: int | None = None,
    own_code: Sequence[Path] = (),
    from_python: bool = False,
) -> Tracking:
    """Opens everything that rank 0 tracks with, and continues what earlier starts of the run wrote.

    Args:
        run_dir: The run's folder, which exists.
        total_steps: Optimizer steps of the whole run; None where a time ends it.
        start_step: Steps completed before this start; lines after it are dropped, for they will come again.
        trackers: Each tracker's settings, by its name in Accelerate.
        run_name: The recipe's name.
        config: The resolved recipe as nested plain values, without secrets.
        best: The metric that decides and its mode, `("accuracy", "max")`.
        decides: The name of the validation set in which it does, empty where the only one has none.
        output: `auto` is a bar on a terminal and plain lines elsewhere; `quiet` only errors and the last line;
            `json` one object a line.
        deadline: When the job ends by its limit, in unix time.
        from_python: Whether a call from Python started the run.
        own_code: The folders of the user's own code, which may speak to a tracker as well.
        evaluated: The step of the last evaluation that is not made again, see `MetricsFile.continue_from`.

    Raises:
        OSError: `metrics.jsonl` of an earlier start cannot be read or cut.
    """
    from launcher.runs.tracking.notebook import open_screen
    from launcher.runs.tracking.scores import ShownRun
    from launcher.runs.tracking.tracker import TrackedRun
    from launcher.runs.tracking.trackers import Trackers

    metrics = MetricsFile(run_dir / METRICS_FILE)
    past = metrics.continue_from(start_step, evaluated)
    shown = ShownRun(run_dir, total_steps, start_step, best, decides, deadline, from_python)
    tracked = TrackedRun(
        run_dir, run_name, start_step, config, lambda: read_until(metrics.path, past.size_bytes), own_code
    )
    console = open_screen(output, shown, past.evaluations)
    return Tracking(metrics, console, Trackers(trackers, tracked), past.redone)


def check_trackers(trackers: Mapping[str, Mapping[str, Any]], allow: Collection[str] = ()) -> None:
    """Checks that each tracker is one of Accelerate's, that its package is installed, and what the recipe says to it.

    Args:
        trackers: The settings of each, by its name.
        allow: Packages to which a recipe may say anything.

    Raises:
        LauncherError: One is not; the message has all of them, and what to do.
    """
    if trackers:
        from launcher.runs.tracking.trackers import check

        check(trackers, allow)
