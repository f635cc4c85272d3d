"""A process that makes no progress: its stacks are written down, and it says where it stands before it is ended."""

from __future__ import annotations

import faulthandler
import math
import os
import shlex
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NoReturn

import psutil

from launcher.errors import EXIT_FAILED
from launcher.world import progress
from launcher.world.failure import Failure, of_stack
from launcher.world.failure_report import Report
from launcher.world.notes import SAVED, SAVING, Notes
from launcher.world.peers import judged, tell
from launcher.world.signals import first_received
from launcher.world.world import World

_LOOKS = 10  # in the time that is allowed
_SAVES = 10  # times that it, which a save may take
_STEPS = 2  # times the longest step, before one that was asked to stop is believed to hang
NOTICE_SECONDS = 10.0


@dataclass(frozen=True)
class Watch:
    """A thread that looks at this process's progress now and then; the loop pays nothing for it.

    Attributes:
        seconds: How long it may make none; infinite: as long as it likes.
        stops: Whether the run is ended then.
        folder: The run's.
        world: This process among the others.
        patience: How long it may make none when it was asked to stop: what hangs never comes to where it would save.
    """

    seconds: float
    stops: bool
    folder: Path
    world: World
    patience: float = math.inf

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watches for a while."""
        with beside(self._watch):
            yield

    @property
    def _alarm(self) -> Path:
        """Raised by the first rank that stalls, for all to write their stacks down."""
        return Notes(self.folder).folder / "stalled"

    def _watch(self, over: threading.Event) -> None:
        began, shown = time.time(), None  # not even in the first step
        beat, longest, is_told = math.inf, 0.0, False
        while not over.wait(self._pause):
            now = progress.mine()
            if now.state != progress.RUNNING:
                continue
            stalled = self._silence(now, self.seconds) > self.seconds
            if now.step != shown and (stalled or _raised_since(self._alarm, began)):
                shown, began = now.step, time.time()
                self._show(self._examined(now, self._stalled), stalled)
            if stalled and self.stops:
                self._end(self._examined(now, self._stalled))
            beat, longest = now.beat, max(longest, now.beat - beat)
            if first_received() not in (None, signal.SIGINT):  # who presses Ctrl-C sees it hang, and presses again
                is_told = self._hurry(now, _STEPS * longest, is_told)

    @property
    def _pause(self) -> float:
        return min(1.0, self.seconds / 4, self.patience / 4)

    @property
    def _stalled(self) -> str:
        return f"no progress for {self.seconds:g} s (launch.stall)"

    def _hurry(self, now: progress.Progress, usual: float, is_told: bool) -> bool:
        """Ends this process where it was asked to stop and hangs, and says so before; whether that has been said.

        Args:
            now: What it has said of itself.
            usual: Seconds which it may need for a step, by what it needed before.
            is_told: Whether it has been said before.
        """
        limit = max(self.patience, usual)
        if self._silence(now, limit) > limit:
            failure = self._examined(now, f"asked to stop, and no progress for {limit:.0f} s (launch.meeting_timeout)")
            self._show(failure, stalled=False)
            tell(failure)
            self._end(failure)
        soon = min(max(NOTICE_SECONDS, usual), limit / 2)
        if is_told or self._silence(now, soon) <= soon:
            return is_told
        failure = self._examined(now, "")
        if not failure.is_aftermath:
            place = f" in {failure.culprit.place}" if failure.culprit else ""
            with suppress(OSError, ValueError, AttributeError):  # a screen that is gone
                print(
                    f"launcher: asked to stop, and no progress for {soon:.0f} s{place}: ends without a save when that "
                    f"is {limit:.0f} s (launch.meeting_timeout)",
                    file=sys.stderr,
                )
        return True

    def _end(self, failure: Failure) -> NoReturn:
        time.sleep(2 * self._pause)  # the others write their stacks down meanwhile
        end_with(failure, self.folder, self.world)

    def _silence(self, now: progress.Progress, seconds: float) -> float:
        """Seconds without a sign of this process; a save, which all ranks wait for, may take ten times as many."""
        silence = time.monotonic() - now.beat
        if silence <= seconds:
            return silence
        notes = Notes(self.folder).folder
        return 0.0 if _age(notes / SAVING) < _SAVES * seconds else min(silence, _age(notes / SAVED))

    def _show(self, failure: Failure, stalled: bool) -> None:
        write_stacks(self.folder, self.world.rank)
        if self.stops:
            tell(failure)  # rank 0 says which of them it is that the others wait for
        if not stalled:
            return
        with suppress(OSError):
            self._alarm.parent.mkdir(exist_ok=True)
            self._alarm.touch()
        if not self.stops:
            print(f"launcher: {failure.line}; the stacks of every rank are in {self.folder / 'logs'}", file=sys.stderr)

    def _examined(self, now: progress.Progress, what: str) -> Failure:
        frame = sys._current_frames().get(threading.main_thread().ident or 0)
        since = time.time() - time.monotonic() + now.beat
        stack = traceback.extract_stack(frame) if frame is not None else ()
        failure = of_stack(what, stack, rank=self.world.rank, world=self.world.size, time=since)
        return Notes(self.folder).completed(failure, now.step)


@dataclass
class BatchProgress:
    """How far something is that goes batch by batch.

    Attributes:
        what: Its name.
        total: Batches.
        done: Batches done.
        moved: When the last was done, by the monotonic clock.
    """

    what: str
    total: int
    done: int = 0
    moved: float = field(default_factory=time.monotonic)

    def advance(self, done: int) -> None:
        """So many batches are done."""
        self.done, self.moved = done, time.monotonic()


@dataclass(frozen=True)
class Patience:
    """How long something may make no progress, and what is reported when that is over.

    Attributes:
        seconds: How long; None is for ever.
        setting: The recipe's key that says so.
        world: This process among the others.
        folder: Where the failure is told, if there is a run.
        step: Optimizer steps completed.
    """

    seconds: float | None
    setting: str
    world: World
    folder: Path | None
    step: int

    @contextmanager
    def watching(self, batches: BatchProgress) -> Iterator[None]:
        """Ends this process with exit code 1 where `batches` makes no progress for so long.

        What hangs (a data set, a metric, a kernel) cannot be interrupted from within; the other ranks notice the end
        of this one and leave too.
        """
        if self.seconds is None:
            yield
            return
        with beside(partial(self._watch, batches, self.seconds, threading.get_ident())):
            yield

    def _watch(self, batches: BatchProgress, seconds: float, watched: int, over: threading.Event) -> None:
        while not over.wait(seconds / _LOOKS):
            if time.monotonic() - batches.moved > seconds:
                folder = Path(self.world.run_dir) if self.world.run_dir is not None else self.folder
                if folder is not None:
                    write_stacks(folder, self.world.rank)
                end_with(self._failure(batches, seconds, watched), folder, self.world)

    def _failure(self, batches: BatchProgress, seconds: float, watched: int) -> Failure:
        where = f"{batches.what}, {batches.done} of {batches.total} batches done"
        what = f"{self.setting}: no progress for {seconds:g} seconds in {where}"
        frame = sys._current_frames().get(watched)
        stack = traceback.extract_stack(frame) if frame is not None else ()
        failure = of_stack(what, stack, rank=self.world.rank, world=self.world.size, step=self.step)
        return replace(failure, is_aftermath=False)  # wherever it stands: nobody else is waited for here


@contextmanager
def beside(look: Callable[[threading.Event], None]) -> Iterator[None]:
    """Runs `look` in a thread of its own for a while; it ends when the event that it gets is set."""
    over = threading.Event()
    thread = threading.Thread(target=look, args=(over,), daemon=True, name="watch")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def write_stacks(folder: Path, rank: int) -> None:
    """Appends the stacks of all threads to this rank's log."""
    with suppress(OSError), (folder / "logs" / f"rank-{rank}.log").open("a", encoding="utf-8") as file:
        file.write(f"launcher: stacks of rank {rank} at {time.strftime('%H:%M:%S')}\n")
        file.flush()
        faulthandler.dump_traceback(file)


def end_with(failure: Failure, folder: Path | None, world: World) -> NoReturn:
    """Ends this process from a side thread, since the main one does not listen; the failure is left for the report.

    Args:
        failure: Why.
        folder: The run's, if there is one.
        world: This process among the others.
    """
    if folder is None or world.supervisor is None or not Notes(folder).write(failure):
        report(failure, folder, world, "")
    sys.stderr.flush()
    os._exit(EXIT_FAILED)


def report(failure: Failure, folder: Path | None, world: World, again: str) -> None:
    """Says why all ranks end, unless that is for another rank to say: where no supervisor waits for their notes.

    Args:
        failure: This rank's own.
        folder: The run's, if there is one.
        world: This process among the others.
        again: The command that started it.
    """
    verdict = judged(failure, world)
    if verdict is None:
        return
    first, others = verdict
    resume = shlex.join(["launcher", "resume", str(folder)]) if folder is not None else again
    if first is not failure and first.step is None:
        first = replace(first, step=failure.step, epoch=failure.epoch)
    since = psutil.Process().create_time() if world.size > 1 else None
    Report(first, folder, again or resume, resume, others, since).show()


def _age(path: Path) -> float:
    """Seconds since a file was last written; of none, for ever."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return math.inf


def _raised_since(path: Path, when: float) -> bool:
    try:
        return path.stat().st_mtime > when
    except OSError:
        return False
