"""How far this process is, where others can see it: four numbers in a file that is mapped into memory.

A rank that is killed, hangs in C or leaves without a message has still said here what it was doing. Saying it costs two
assignments, whether anybody looks or not.
"""

from __future__ import annotations

import mmap
import os
import time
from array import array
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

STARTING, RUNNING, DONE, STOPPED = 0, 1, 2, 3
_PID, _STATE, _STEP, _BEAT = range(4)
_SIZE = 4 * 8

_numbers: memoryview = memoryview(array("q", [0, STARTING, -1, 0]))


@dataclass(frozen=True)
class Progress:
    """What one process has said.

    Attributes:
        pid: Its number.
        state: STARTING, RUNNING, DONE, or STOPPED (a script that was asked to stop and did).
        step: Optimizer steps completed; -1 before the first was begun.
        beat: When it last got on, in seconds of `time.monotonic()`.
    """

    pid: int
    state: int
    step: int
    beat: float


def show_in(path: Path) -> None:
    """From here on what this process says stands in a file, for `read`."""
    global _numbers
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w+b") as file:
            file.write(bytes(_SIZE))  # not truncate(): writing to a hole on a full disk would be a SIGBUS
            file.flush()
            mapped = mmap.mmap(file.fileno(), _SIZE)
        _numbers = memoryview(mapped).cast("q")
    _numbers[_STEP] = -1
    _numbers[_STATE] = STARTING
    _numbers[_PID] = os.getpid()
    beat()


def reached(step: int) -> None:
    """So many optimizer steps are completed."""
    _numbers[_STEP] = step
    _numbers[_BEAT] = time.monotonic_ns()


def beat() -> None:
    """Something got on that is not an optimizer step: a batch of an evaluation, or waiting for another rank's word."""
    _numbers[_BEAT] = time.monotonic_ns()


def running() -> None:
    """The training begins: from here on a long silence is a stall."""
    _numbers[_STATE] = RUNNING
    beat()


def done() -> None:
    """This process has done what it was started for."""
    _numbers[_STATE] = DONE


def stopped() -> None:
    """This process was asked to stop, and has saved."""
    _numbers[_STATE] = STOPPED


def mine() -> Progress:
    """What this process has said."""
    return _progress(_numbers)


def is_over(progress: Progress) -> bool:
    """Whether it has ended as it should."""
    return progress.state in (DONE, STOPPED)


def read(path: Path) -> Progress | None:
    """What the process of that file has said; None where it has said nothing yet."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    return _progress(memoryview(content).cast("q")) if len(content) == _SIZE else None


def _progress(numbers: memoryview) -> Progress:
    return Progress(numbers[_PID], numbers[_STATE], numbers[_STEP], numbers[_BEAT] / 1e9)
