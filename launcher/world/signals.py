"""Being asked to stop: handlers only set a flag, and the ranks agree on one step to stop after."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

SECOND_INTERRUPT_SECONDS = 2.0

_received: list[tuple[int, float]] = []


def stop_requested() -> bool:
    """Whether this process was asked to stop, by SIGTERM, SIGINT or SIGUSR2."""
    return bool(_received)


@contextmanager
def listening() -> Iterator[None]:
    """Handles the signals for a while; repeats are the same request, only a second Ctrl-C later leaves at once.

    Outside the main thread, where Python allows no handlers, nobody can ask. Inside another `listening` this adds
    nothing.
    """
    if is_listening():
        yield
        return
    _received.clear()
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR2") if hasattr(signal, name)]
        before = {number: signal.signal(number, _note) for number in numbers}
    try:
        with outliving_terminal():
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _received.clear()


@contextmanager
def outliving_terminal() -> Iterator[None]:
    """Goes on for a while when the terminal is closed, as under nohup; what is started meanwhile does so too."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGHUP"):
        yield
        return
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


def is_listening() -> bool:
    """Whether the signals are handled here, so that a Ctrl-C raises nothing."""
    return signal.getsignal(signal.SIGTERM) is _note


def listen() -> None:
    """Handles the signals from here on, as `listening` does for a while."""
    if threading.current_thread() is threading.main_thread() and not is_listening():
        for name in ("SIGTERM", "SIGINT", "SIGUSR2"):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), _note)


def _note(number: int, _: FrameType | None) -> None:
    now = time.monotonic()
    interrupts = [when for one, when in _received if one == signal.SIGINT]
    if number == signal.SIGINT and interrupts and now - interrupts[0] >= SECOND_INTERRUPT_SECONDS:
        os._exit(130)
    if number == signal.SIGINT and not interrupts:
        with suppress(OSError):  # no print(): the interrupted code may hold the stream's lock
            os.write(2, b"\nstopping after this step; once more to leave at once\n")
    _received.append((number, now))


def die_with_parent(parent: int | None = None) -> None:
    """Linux: SIGKILL for this process when the thread that started it ends.

    Args:
        parent: The process that started it, which may have ended before this could be asked for; None where the caller
            looks after that.
    """
    try:
        ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))
    except (OSError, AttributeError):
        return  # not Linux: whoever started it must end it
    if parent is not None and os.getppid() != parent:  # it ended before it could be noticed
        os._exit(1)
