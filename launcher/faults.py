"""Deliberate accidents at named points of a real run: what tests of resuming are made with.

A fault is said in words, `ACTION@POINT[:STEP]`, as in `kill@checkpoint.rename:8`: at the first passing of that
point (of that step, where one is said) this process is killed, asked to stop, fails, finds the disk full, a byte of
the file just written changed, or the run's folder gone. Nothing happens in a run that nobody has armed.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

from launcher.errors import UsageError

ACTIONS = ("kill", "term", "raise", "full", "flip", "vanish")
POINTS = (
    "start",  # before data is opened
    "step",  # an optimizer step is completed
    "evaluation.batch",
    "checkpoint.begin",
    "checkpoint.write",  # of each of its files, before and after it is synced
    "checkpoint.sync",
    "checkpoint.rename",
    "checkpoint.renamed",
    "checkpoint.prune",
    "weights.write",
    "weights.sync",
    "weights.rename",
    "status.write",
)


@dataclass(frozen=True)
class Fault:
    """One accident to come."""

    action: str
    point: str
    step: int | None

    @staticmethod
    def parse(text: str) -> Fault:
        """Reads `kill@checkpoint.rename:8`.

        Raises:
            UsageError: There is no such action or point.
        """
        action, _, place = text.partition("@")
        point, _, step = place.partition(":")
        if action not in ACTIONS or point not in POINTS or not (step.isdigit() or not step):
            raise UsageError(
                f"'{text}' is no fault; write ACTION@POINT[:STEP], with one of {', '.join(ACTIONS)}, "
                f"and one of {', '.join(POINTS)}"
            )
        return Fault(action, point, int(step) if step else None)


_armed: list[Fault] = []


def arm(text: str | None) -> None:
    """Prepares the faults of a text, separated by spaces, and forgets those armed before."""
    _armed[:] = [Fault.parse(one) for one in (text or "").split()]


def point(name: str, step: int | None = None, path: Path | None = None) -> None:
    """A named point of the program; does nothing unless a fault is armed for it.

    Raises:
        OSError: The disk is full (`full`).
        RuntimeError: The program failed here (`raise`).
    """
    if not _armed:
        return
    due = [fault for fault in _armed if fault.point == name and fault.step in (None, step)]
    # asked to stop twice at one point, but a disk that is full once lets the next try pass
    for fault in due if due and due[0].action == "term" else due[:1]:
        _armed.remove(fault)
        _happen(fault, path)


def _happen(fault: Fault, path: Path | None) -> None:
    if fault.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault.action == "term":
        os.kill(os.getpid(), signal.SIGTERM)
        return
    if fault.action == "vanish" and path is not None:
        gone = path.with_name(f".gone-{path.name}")
        path.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
        return
    if fault.action == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if fault.action == "flip" and path is not None:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        return
    raise RuntimeError(f"a fault at {fault.point}")
