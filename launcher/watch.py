"""Notices that nothing moves any more, says where it stands, and ends the process."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from launcher.world.failure import Failure, of_stack
from launcher.world.watchdog import beside, end_with, write_stacks
from launcher.world.world import World

_LOOKS = 10  # in the time that is allowed


@dataclass
class Progress:
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
    """How long something may make no progress, and what is said of it when that is over.

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
    def watching(self, progress: Progress) -> Iterator[None]:
        """Ends this process with exit code 1 where `progress` stands still for so long.

        What hangs (a data set, a metric, a kernel) cannot be interrupted from within; the other ranks notice the end
        of this one and leave too.
        """
        if self.seconds is None:
            yield
            return
        with beside(partial(self._watch, progress, self.seconds, threading.get_ident())):
            yield

    def _watch(self, progress: Progress, seconds: float, watched: int, over: threading.Event) -> None:
        while not over.wait(seconds / _LOOKS):
            if time.monotonic() - progress.moved > seconds:
                folder = Path(self.world.run_dir) if self.world.run_dir is not None else self.folder
                if folder is not None:
                    write_stacks(folder, self.world.rank)
                end_with(self._failure(progress, seconds, watched), folder, self.world)

    def _failure(self, progress: Progress, seconds: float, watched: int) -> Failure:
        where = f"{progress.what}, {progress.done} of {progress.total} batches done"
        what = f"{self.setting}: no progress for {seconds:g} seconds in {where}"
        frame = sys._current_frames().get(watched)
        stack = traceback.extract_stack(frame) if frame is not None else ()
        found = of_stack(what, stack, rank=self.world.rank, world=self.world.size, step=self.step)
        return replace(found, is_aftermath=False)  # wherever it stands: nobody else is waited for here
