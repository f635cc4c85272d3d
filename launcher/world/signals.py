"""Being asked to stop: handlers only set a flag, and the ranks agree on one step to stop after."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from types import FrameType
from typing import Any

SECOND_INTERRUPT_SECONDS = 2.0
_PAUSE_SECONDS = 0.2

_NUMBERS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR2") if hasattr(signal, name)]
_code: int | None = None  # with which the process is ending
_OVER = b"\0"  # no signal has this number
_received: list[int] = []
_ear: int | None = None  # where Python writes each signal's number as it comes, whatever the main thread is doing
_is_own_process = False  # whose signals are nobody else's until it ends


def stop_requested() -> bool:
    """Whether this process was asked to stop, by SIGTERM, SIGINT or SIGUSR2."""
    return bool(_received)


def first_received() -> int | None:
    """The signal that asked first; None where nobody has asked."""
    return _received[0] if _received else None


def pause(seconds: float) -> None:
    """Sleeps so long, or until this process is asked to stop."""
    end = time.monotonic() + seconds
    while not stop_requested() and (left := end - time.monotonic()) > 0:
        time.sleep(min(left, _PAUSE_SECONDS))


def hold(*more: int) -> None:
    """Lets the signals wait from here on, in this thread and the processes that it starts, until somebody handles them.

    A rank that is asked to stop while Python still loads its modules would die of that.

    Args:
        *more: Further signals, beside SIGTERM and SIGUSR2. A Ctrl-C waits for nobody where a user sits.
    """
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {number for number in _NUMBERS if number != signal.SIGINT} | set(more))


def release() -> None:
    """Ends that waiting: what has come meanwhile comes now."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _NUMBERS)


def own_process() -> None:
    """For the beginning of a command's own process: `hold`, and whoever listens does so until it ends."""
    global _is_own_process
    _is_own_process = True
    hold()


@contextmanager
def listening() -> Iterator[None]:
    """Handles the signals for a while; repeats are the same request, only a second Ctrl-C later leaves at once.

    Outside the main thread, where Python allows no handlers, nobody can ask. Inside another `listening` this adds
    nothing. In a command's own process it lasts: one that is ending is not to die of a signal in between.
    """
    if _is_own_process:
        listen(hangups=False)
    if is_listening():
        yield
        return
    _received.clear()
    is_main = threading.current_thread() is threading.main_thread()
    try:
        with _heard_at_once() if is_main else nullcontext(), ignoring("SIGHUP"):
            before: dict[int, Any] = {number: signal.signal(number, _note) for number in _NUMBERS if is_main}
            release()
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)
    finally:
        _received.clear()


@contextmanager
def ignoring(name: str) -> Iterator[None]:
    """Ignores a signal for a while, as what is started meanwhile does; outside the main thread it changes nothing.

    Without SIGHUP a program keeps running when its terminal is closed, as under nohup.

    Args:
        name: Its name, which a system may not know.
    """
    number = getattr(signal, name, None)
    if number is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(number, before)


@contextmanager
def noting_ctrl_c() -> Iterator[list[int]]:
    """Python's own way with a Ctrl-C, and a list that has one then: user code may raise KeyboardInterrupt as well."""
    pressed: list[int] = []

    def interrupt(number: int, _: FrameType | None) -> None:
        pressed.append(number)
        raise KeyboardInterrupt

    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield pressed
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def is_listening() -> bool:
    """Whether the signals are handled here, so that a Ctrl-C raises nothing."""
    return signal.getsignal(signal.SIGTERM) is _note


def listen(hangups: bool = True) -> None:
    """Handles the signals from here on, as `listening` does for a while.

    Args:
        hangups: Whether SIGHUP still ends the process.
    """
    if threading.current_thread() is threading.main_thread() and not is_listening():
        _start_hearing()
        for number in _NUMBERS:
            signal.signal(number, _note)
        if not hangups:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        release()


def leave_with(code: int) -> None:
    """For a process that listens and has done its work: the next signal ends it, with its own exit code."""
    global _code
    if is_listening():
        _code = code


def _note(number: int, _: FrameType | None) -> None:
    _received.append(number)
    if _ear is None:
        return
    theirs = signal.set_wakeup_fd(_ear, warn_on_full_buffer=False)
    if theirs != _ear:  # an event loop of the user's has taken its place, and keeps it
        signal.set_wakeup_fd(theirs)
        os.write(_ear, bytes([number]))


@contextmanager
def _heard_at_once() -> Iterator[None]:
    """Has signals heard for a while as they come."""
    stop = _start_hearing()
    try:
        yield
    finally:
        stop()


def _start_hearing() -> Callable[[], None]:
    """Has a thread hear each signal: the main one may wait in compiled code, where no handler of Python's runs.

    Returns:
        What ends that. This is not a generator: one that lasts would be closed when no thread runs any more.
    """
    global _ear
    listener, ear = os.pipe()
    os.set_blocking(ear, False)
    thread = threading.Thread(target=_hear, args=(listener,), daemon=True, name="signals")
    thread.start()
    before, _ear = signal.set_wakeup_fd(ear, warn_on_full_buffer=False), ear

    def stop() -> None:
        global _ear
        signal.set_wakeup_fd(before)
        _ear = None
        with suppress(OSError):  # somebody's code may have closed all files
            os.write(ear, _OVER)
            thread.join()
            os.close(ear)
            os.close(listener)

    return stop


def _heard(listener: int) -> bytes:
    """The next signal, or that there will be none."""
    try:
        return os.read(listener, 1) or _OVER
    except OSError:  # somebody's code has closed all files
        return _OVER


def _hear(listener: int) -> None:
    interrupts: list[float] = []
    while (byte := _heard(listener)) != _OVER:
        if _code is not None and byte[0] in _NUMBERS:
            os._exit(_code)
        if byte[0] in _NUMBERS:  # others have handlers of somebody else's
            _received.append(byte[0])
        if byte[0] != signal.SIGINT:
            continue
        interrupts.append(time.monotonic())
        if interrupts[-1] - interrupts[0] >= SECOND_INTERRUPT_SECONDS:
            os._exit(130)
        if len(interrupts) == 1:
            with suppress(OSError):  # no print(): the interrupted code may hold the stream's lock
                os.write(2, b"\nstopping after this step; once more to leave at once\n")


def _deafen() -> None:
    """In a forked process, whose signals are not for the one that it was forked from."""
    global _ear
    if _ear is not None:
        _ear = None
        with suppress(ValueError):  # another's thread has forked
            signal.set_wakeup_fd(-1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_deafen)


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
