"""Being asked to stop: handlers only set a flag, and the ranks agree on one step to stop after."""

from __future__ import annotations

import os
import signal
import sys
import time
from types import FrameType

SECOND_INTERRUPT_SECONDS = 2.0

_received: list[tuple[int, float]] = []


def stop_requested() -> bool:
    """Whether this process was asked to stop, by SIGTERM, SIGINT or SIGUSR2."""
    return bool(_received)


def listen() -> None:
    """Installs the handlers; repeats are the same request, only a second Ctrl-C later leaves at once."""
    _received.clear()
    for name in ("SIGTERM", "SIGINT", "SIGUSR2"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _note)


def _note(number: int, _: FrameType | None) -> None:
    now = time.monotonic()
    interrupts = [when for one, when in _received if one == signal.SIGINT]
    if number == signal.SIGINT and interrupts and now - interrupts[0] >= SECOND_INTERRUPT_SECONDS:
        os._exit(130)
    if not _received:
        # no print(): the interrupted code may hold the stream's lock
        os.write(
            sys.__stderr__.fileno() if sys.__stderr__ else 2,
            b"\nstopping after this step; once more to leave at once\n",
        )
    _received.append((number, now))
