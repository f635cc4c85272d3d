"""How a process ends that has done its work: soon, when all is done, said and cleaned up."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from os import _exit
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from launcher import internals
from launcher.world.signals import leave_with

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

LEAVING_SECONDS = 5.0  # what threads and processes of the user's own that are left over are granted


def ended_by(program: Callable[[], int]) -> NoReturn:
    """Runs a program and ends this process with the exit code that it returns.

    Where torch was loaded, the interpreter is not taken apart after the last of its exit handlers: gloo's threads may
    still let go of a tensor then, for which they want an interpreter that is no more, and abort a process whose work
    was done (one in fifteen on a busy machine).

    Python would wait for ever for a thread or a process that is left over and no daemon: they are granted some seconds,
    and named.

    Args:
        program: Imports what it needs, so that handlers of libraries run before the last one, which is the first here.
    """
    code: int | None = None

    def end() -> None:
        if code is None or "torch" not in sys.modules:
            return
        _leave(code)

    atexit.register(end)  # the first to be registered is the last to run
    try:
        code = program()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else None if ended.code else 0
        raise
    finally:
        _start_clock(1 if code is None else code)
        _flush()
        leave_with(1 if code is None else code)
    sys.exit(code)


def _start_clock(code: int) -> None:
    """Has a thread look after what is left over: Python waits for threads, and a handler of its own for processes."""
    if _threads() or _processes():
        threading.Thread(target=_end_waiting, args=(code,), daemon=True, name="leaving").start()


def _threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if not thread.daemon and thread is not threading.main_thread()]


def _processes() -> list[BaseProcess]:
    """Those that `multiprocessing` would wait for."""
    multiprocessing = sys.modules.get("multiprocessing")
    children: list[BaseProcess] = multiprocessing.active_children() if multiprocessing is not None else []
    return [process for process in children if not process.daemon]


def _end_waiting(code: int) -> None:
    time.sleep(LEAVING_SECONDS)
    frames = sys._current_frames()
    for process in _processes():
        _say(f"the process '{process.name}'", "")
        process.kill()
    threads = _threads()
    for thread in threads:
        _say(f"the thread '{thread.name}'", _place(frames.get(thread.ident or 0)))
    if threads:  # else the exit handlers run already, and end this process
        internals.run_exit_handlers()
        _leave(code)


def _say(what: str, place: str) -> None:
    with suppress(OSError, ValueError, AttributeError):  # a screen that is closed, or none
        print(f"launcher: left without {what}, which still ran{place}; end it, or give it daemon=True", file=sys.stderr)


def _place(frame: FrameType | None) -> str:
    """Where a thread is: in the innermost line that is not a library's, if there is one."""
    for summary in reversed(traceback.extract_stack(frame) if frame is not None else []):
        if "site-packages" not in summary.filename and not summary.filename.startswith(os.path.dirname(os.__file__)):
            return f" in {summary.filename}:{summary.lineno}"
    return ""


@contextmanager
def exits_told() -> Iterator[None]:
    """Has `os._exit`, called where the work should continue, raise what `sys.exit` does: else nobody would tell of it.

    Only in this process and its main thread; elsewhere it is what it was.
    """
    owner = os.getpid()

    def told(status: int) -> NoReturn:
        if os.getpid() == owner and threading.current_thread() is threading.main_thread():
            raise SystemExit(status)
        _exit(status)

    os._exit = told
    try:
        yield
    finally:
        os._exit = _exit


def _leave(code: int) -> NoReturn:
    _flush()
    leave_at_once(code)


def leave_at_once(code: int) -> NoReturn:
    """Ends this process without anything else, whoever has put a function of theirs in place of Python's."""
    _exit(code)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # closed, none, or a pipe that nobody reads
            stream.flush()
