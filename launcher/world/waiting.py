"""Whoever waits for other processes says so, ends when it is asked to, and does not wait for ever.

Most of such waiting is done inside torch's compiled code, which no signal handler of Python's interrupts: a thread
beside it looks after all three.
"""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NoReturn

from launcher.errors import EXIT_DONE, EXIT_PREEMPTED
from launcher.text import spans
from launcher.world import network, progress
from launcher.world.exit import leave_at_once
from launcher.world.failure import Failure
from launcher.world.signals import first_received, listening, stop_requested
from launcher.world.watchdog import NOTICE_SECONDS, beside, end_with
from launcher.world.world import World

AGAIN_SECONDS = 60.0
_LOOK_SECONDS = 0.2
_BUILDING_SECONDS = 10.0  # what it is granted to come to where it stops by itself
_FAREWELL_SECONDS = 1.0


@dataclass
class Wait:
    """What is waited for; whoever waits says what it has found out meanwhile.

    Attributes:
        what: In words: `rank 1 of 2`; or what says so now.
        seconds: How long.
        setting: The recipe's key that says so.
        host: Where: a name or an address; empty where that says nothing.
        port: There.
        why: What is known of it; None where the place itself is looked at.
        began: When, by the monotonic clock.
    """

    what: str | Callable[[], str]
    seconds: float
    setting: str = "launch.meeting_timeout"
    host: str = ""
    port: int = 0
    why: str | None = None
    began: float = field(default_factory=time.monotonic)

    @property
    def whom(self) -> str:
        """`rank 1 of 2`."""
        return self.what if isinstance(self.what, str) else self.what()

    @property
    def text(self) -> str:
        """`rank 1 of 2 at 10.0.0.1:29500 (nothing listens there)`; it may take as long as a look at the place."""
        place = f" at {network.place(self.host, self.port)}" if self.host else ""
        why = network.fault_of(self.host, self.port) if self.why is None and self.host else self.why
        return f"{self.whom}{place}" + (f" ({why})" if why else "")

    @property
    def is_over(self) -> bool:
        """Whether it has taken too long."""
        return time.monotonic() - self.began > self.seconds

    def turn(self, what: str, why: str, seconds: float, setting: str = "launch.meeting_timeout") -> None:
        """From here on something else is waited for."""
        self.what, self.why, self.host = what, why, ""
        self.seconds, self.setting, self.began = seconds, setting, time.monotonic()

    @contextmanager
    def told(self) -> Iterator[None]:
        """Says on the screen what is waited for: a name that is not known at once, all else after ten seconds."""
        over = threading.Event()
        # a daemon that nobody joins: a look at a place may take its time
        threading.Thread(target=self._tell, args=(over,), daemon=True, name="waiting").start()
        try:
            yield
        finally:
            over.set()

    def _tell(self, over: threading.Event) -> None:
        looked_up, due = "", 0.0
        while not over.wait(_LOOK_SECONDS):
            is_new = self.why is None and self.host not in ("", looked_up)
            looked_up = self.host
            is_due = time.monotonic() >= max(due, self.began + NOTICE_SECONDS)
            if is_due or (is_new and not network.addresses(self.host)):  # a slip of the pen is told at once
                due = time.monotonic() + AGAIN_SECONDS if is_due else due
                self._say()

    def _say(self) -> None:
        with suppress(OSError, ValueError, AttributeError):  # a screen that is gone
            print(f"launcher: waiting for {self.text}", file=sys.stderr, flush=True)


def pauses(longest: float) -> Iterator[float]:
    """Seconds between looks at what mostly comes at once: a few milliseconds, and twice as many each time."""
    pause = 0.005
    while True:
        yield min(pause, longest)
        pause = min(2 * pause, longest)


def ranks(missing: list[int], size: int) -> str:
    """`rank 1 of 2`, `ranks 4-7 of 8`."""
    return f"rank{'s' * (len(missing) > 1)} {spans(missing)} of {size}"


@contextmanager
def guarded(wait: Wait, world: World) -> Iterator[None]:
    """Waits for other ranks, in compiled code too: says so, and ends this process when it is asked to or it is time.

    Nothing is lost: no step was made since the last checkpoint.

    Args:
        wait: What is waited for.
        world: This process among the others.
    """
    if world.size == 1:
        yield
        return
    with beside(partial(_guard, wait, world)), wait.told():
        yield


@contextmanager
def stoppable() -> Iterator[None]:
    """`listening`, for a training: ends it where it is asked to stop while data and model still take their time.

    Nothing is lost then. A Ctrl-C can be pressed again instead.
    """
    with listening(), beside(_leave_if_asked):
        yield


def _leave_if_asked(over: threading.Event) -> None:
    asked = math.inf
    while not over.wait(_LOOK_SECONDS) and progress.mine().state == progress.STARTING:
        if first_received() not in (None, signal.SIGINT):
            asked = min(asked, time.monotonic())
        if time.monotonic() - asked > _BUILDING_SECONDS:
            stop("data and model to be built", World.from_environ())


def _guard(wait: Wait, world: World, over: threading.Event) -> None:
    while not over.wait(_LOOK_SECONDS):
        if stop_requested():
            stop(wait.whom, world)
        if wait.is_over:
            folder = Path(world.run_dir) if world.run_dir is not None else None
            what = f"{wait.setting}: waited {wait.seconds:g} seconds for {wait.text}"
            end_with(Failure(what, rank=world.rank, world=world.size), folder, world)


def stop(what: str, world: World) -> NoReturn:
    """Ends this process, which was asked to stop while it waited; there is nothing to save."""
    with suppress(OSError, ValueError, AttributeError):
        print(f"launcher: stopped while waiting for {what}; nothing is lost", file=sys.stderr, flush=True)
    progress.stopped()
    if world.started_by == "srun" and world.is_first:
        time.sleep(_FAREWELL_SECONDS)  # its code is to be the step's: the others, asked as well, leave before it
    code = EXIT_DONE if world.has_agent or (world.started_by == "srun" and not world.is_first) else EXIT_PREEMPTED
    sys.stdout.flush()
    leave_at_once(code)
