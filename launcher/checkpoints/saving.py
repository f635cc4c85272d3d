"""Saving during a run: in the background, retried, pruned."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Protocol

import psutil

from launcher.checkpoints.arena import Arena, Copy
from launcher.checkpoints.format import Checkpoint, DamagedError, SaveError, Snapshot, name_of, save, verify
from launcher.checkpoints.retention import discard, prune
from launcher.errors import EXIT_USAGE
from launcher.recipe import schema
from launcher.world.notes import saving_known

_PAUSES = (0.5, 2.0)  # seconds between tries to write a checkpoint


class UnresumableError(SaveError):
    """What was saved could not be resumed from: the recipe's parts are wrong, and trying again is no help."""

    exit_code = EXIT_USAGE


class Proving(Protocol):
    """Looks at the checkpoints of a run, above all at the first."""

    def again(self, snapshot: Snapshot) -> None:
        """Before each later one is written."""
        ...

    def before(self, snapshot: Snapshot) -> None:
        """Before it is written, while training is paused."""
        ...

    def after(self, snapshot: Snapshot, checkpoint: Checkpoint) -> None:
        """When it was written, maybe beside training."""
        ...


class Saving:
    """When a save is due, rank 0 writes it and the others continue.

    In the background the step pays for a copy of the state. At most one write is under way; what goes wrong with
    it is reported at the next step, and tried again.

    Attributes:
        on_disk: The step of the last checkpoint that was written, here or where this start resumes from.

    Args:
        section: The recipe's `save`.
        folder: `checkpoints/` of the run.
        is_first: Whether this rank writes.
        capture: Gives what a checkpoint is made of after a number of steps; `best_step` of its manifest is kept.
        warn: Gets a line for each thing that went wrong.
        gather: Called on every rank before that, for what the ranks keep differently.
        captured: Told of each step whose state was captured.
        saved: Told of each checkpoint on disk: the step, seconds of writing, seconds for which training paused.
        last_step: Of the checkpoint that this start resumes from, if any.
        proof: Looks at the first checkpoint of a run.
        arena: Host memory for copies of the state.
    """

    def __init__(
        self,
        section: schema.Save,
        folder: Path,
        is_first: bool,
        *,
        capture: Callable[[int], Snapshot],
        warn: Callable[[str], None],
        gather: Callable[[bool], None] = lambda alone: None,
        captured: Callable[[int], None] = lambda step: None,
        saved: Callable[[int, float, float], None] = lambda step, seconds, stall: None,
        last_step: int | None = None,
        proof: Proving | None = None,
        arena: Arena | None = None,
    ):
        self.section, self.folder, self.is_first = section, folder, is_first
        self.on_disk = self._last_step = last_step
        self._capture, self._captured, self._saved = capture, captured, saved
        self._gather, self._warn = gather, warn
        self._is_writer = is_first
        self._proof = proof if last_step is None else None
        self._again = proof.again if proof is not None else lambda snapshot: None
        self._writer: threading.Thread | None = None
        self._arena = Arena() if arena is None else arena
        self._news: deque[str | SaveError] = deque()
        self._stalls: list[float] = []  # seconds for which training paused, for each checkpoint on disk

    def save(self, step: int, *, alone: bool = False) -> None:
        """Writes the checkpoint of this step, then removes what is no longer kept.

        Args:
            step: Optimizer steps completed.
            alone: Other processes may be gone, and are not asked for what they have.

        Raises:
            SaveError: On rank 0, where this one or the one before failed and the recipe says stop.
        """
        if step == self._last_step:
            return
        self._last_step = step
        self._gather(alone)
        if not self._is_writer:
            return
        with saving_known(self.folder.parent) if self.is_first else nullcontext():
            self._save(step)

    def _save(self, step: int) -> None:
        began = time.perf_counter()
        self.wait()
        snapshot = self._capture(step)
        self._captured(step)
        if self._proof is not None:
            self._proof.before(snapshot)
        else:
            self._again(snapshot)
        if self._in_background(snapshot):
            copy = self._arena.copy(snapshot)
            work = partial(self._write_copy, copy, time.perf_counter() - began)
            self._writer = threading.Thread(target=work, name="saving")
            self._writer.start()
        else:
            self._write(snapshot)
            self.check()

    def check(self) -> None:
        """Reports what became of the write under way; called after each step.

        Raises:
            SaveError: It failed, and the recipe says stop.
        """
        while self._news:
            news = self._news.popleft()
            is_over = self.section.on_failure == "stop" or isinstance(news, UnresumableError)
            if isinstance(news, SaveError) and is_over:
                raise news
            self._warn(str(news))

    def wait(self) -> None:
        """Until nothing is being written.

        Raises:
            SaveError: The write failed, and the recipe says stop.
        """
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        self.check()

    def finish(self) -> None:
        """Until nothing is being written; where the last save failed and the recipe says warn, it is tried again.

        On rank 0, which writes alone, and while the state is still that of the last save.

        Raises:
            SaveError: It failed, and the recipe says stop.
        """
        self.wait()
        if self._last_step is not None and self.on_disk != self._last_step:
            self._write(self._capture(self._last_step))
            self.check()

    def close(self) -> None:
        """Lets a write that is under way end, and says what came of it: nobody is left to raise to."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        while self._news:
            self._warn(str(self._news.popleft()))

    def describe(self) -> str:
        """What this start's checkpoints have cost, in a line; empty where there were none."""
        count, total = len(self._stalls), sum(self._stalls)
        if not count:
            return ""
        longest = f", {max(self._stalls):.2g} s at the longest" if count > 1 else ""
        return f"{count} checkpoint{'s' * (count > 1)} saved, which made training wait for {total:.2g} s{longest}"

    def _in_background(self, snapshot: Snapshot) -> bool:
        """As the recipe says; else where the copy takes no more than a quarter of the memory that is free."""
        if self.section.background is not None:
            return self.section.background
        more = snapshot.num_bytes - self._arena.num_bytes
        return bool(more < psutil.virtual_memory().available / 4)

    def _write_copy(self, copy: Copy, stall: float) -> None:
        """Writes what has been copied when it has arrived; for so long the device waited, if there is one.

        What goes wrong on the device goes wrong in training as well, and is reported there.
        """
        try:
            device_stall = copy.arrived()
        except RuntimeError as error:
            self._news.append(self._failure(copy.snapshot, error))
            return
        self._write(copy.snapshot, max(stall, device_stall or 0.0))

    def _write(self, snapshot: Snapshot, stall: float | None = None) -> None:
        """Writes and prunes. Whatever goes wrong is news: in a thread of its own nobody else would hear of it."""
        began = time.perf_counter()
        for attempt, pause in enumerate((*_PAUSES, None)):
            try:
                checkpoint = self._put(snapshot, attempt)
                break
            except Exception as error:
                failure = self._failure(snapshot, error)
                if pause is None:
                    self._news.append(failure)
                    return
                self._news.append(f"{failure}; trying again in {pause:g} s")
                if self.is_first:
                    discard(self.folder / name_of(snapshot.step))
                time.sleep(pause)
        self.on_disk = snapshot.step
        try:
            if self._proof is not None:
                self._proof.after(snapshot, checkpoint)
                self._proof = None
            seconds = time.perf_counter() - began
            self._stalls.append(seconds if stall is None else stall)
            self._saved(snapshot.step, seconds, self._stalls[-1])
            if self.is_first:
                prune(self.folder, self.section.keep, snapshot.manifest.get("best_step"))
        except Exception as error:
            self._news.append(self._failure(snapshot, error))

    def _put(self, snapshot: Snapshot, attempt: int) -> Checkpoint:
        """Writes it and reads it back."""
        return verify(save(self.folder, snapshot))

    def _failure(self, snapshot: Snapshot, error: Exception) -> SaveError:
        if isinstance(error, SaveError):
            return error
        reason = str(error) if isinstance(error, DamagedError) else f"{type(error).__name__}: {error}"
        failure = SaveError(f"saving {self.folder / name_of(snapshot.step)}: {reason}")
        failure.__cause__ = error
        return failure
