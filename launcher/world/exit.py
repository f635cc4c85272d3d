"""How a process ends that has trained: at once, when all is done, said and cleaned up."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn


def ended_by(program: Callable[[], int]) -> NoReturn:
    """Runs a program and ends this process with the exit code that it returns.

    Where torch was loaded, the interpreter is not taken apart after the last of its exit handlers: gloo's threads may
    still let go of a tensor then, for which they want an interpreter that is no more, and abort a process whose work
    was done (one in fifteen on a busy machine).

    Args:
        program: Imports what it needs, so that handlers of libraries run before the last one, which is the first here.
    """
    code: int | None = None

    def end() -> None:
        if code is None or "torch" not in sys.modules:
            return
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # closed, or a pipe that nobody reads
                stream.flush()
        os._exit(code)

    atexit.register(end)  # the first to be registered is the last to run
    try:
        code = program()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else None if ended.code else 0
        raise
    sys.exit(code)
