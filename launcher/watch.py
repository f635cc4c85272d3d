"""Notices that nothing moves any more, says where it stands, and ends the process."""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from launcher.errors import EXIT_FAILED

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


@contextmanager
def watched(progress: Progress, seconds: float | None, setting: str) -> Iterator[None]:
    """Ends this process with exit code 1 where `progress` stands still for so long; None watches nothing.

    What hangs (a data set, a metric, a kernel) cannot be interrupted from within; the other ranks notice the end of
    this one and leave too.

    Args:
        progress: Advanced by what is watched.
        seconds: Without an advance.
        setting: The recipe's key that says how long.
    """
    if seconds is None:
        yield
        return
    over, own = threading.Event(), threading.get_ident()
    thread = threading.Thread(target=_watch, args=(progress, seconds, setting, over, own), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _watch(progress: Progress, seconds: float, setting: str, over: threading.Event, watched_thread: int) -> None:
    while not over.wait(seconds / _LOOKS):
        if time.monotonic() - progress.moved > seconds:
            _end(progress, seconds, setting, watched_thread)


def _end(progress: Progress, seconds: float, setting: str, thread: int) -> None:
    stack = "".join(traceback.format_stack(sys._current_frames().get(thread)))
    where = f"{progress.what}, {progress.done} of {progress.total} batches done"
    said = f"{setting}: no progress for {seconds:g} seconds in {where}; it stands here:\n{stack}"
    print(said, file=sys.stderr, flush=True)
    os._exit(EXIT_FAILED)
