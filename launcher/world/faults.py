"""Deliberate accidents at named points of a real run: what tests of resuming are made with.

A fault is written `ACTION@POINT[/FILE][:STEP][#RANK]`, as in `kill@checkpoint.write/manifest.json:8#0`: at the
first passing of that point (with that file, of that step, on that rank, where they are given) this process is killed,
asked to stop, fails, finds the disk or the memory full, a byte of the file just written changed, or the run's folder
gone. Nothing happens in a run that nobody has armed.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

from launcher.errors import UsageError

ACTIONS = ("kill", "term", "raise", "full", "oom", "flip", "vanish")
POINTS = (
    "start",  # before data is opened
    "trial",  # of a size of micro-batch, which is the step
    "forward",  # of each micro-batch of a step
    "backward",
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


_FAULT = re.compile(r"(\w+)@([\w.]+)(?:/([\w.-]+))?(?::(\d+))?(?:#(\d+))?")


@dataclass(frozen=True)
class Fault:
    """One accident to come; what is None may be anything."""

    action: str
    point: str
    file: str | None
    step: int | None
    rank: int | None

    def is_due(self, point: str, step: int | None, path: Path | None) -> bool:
        """Whether this is the place, on a rank that it is meant for."""
        is_file = self.file is None or (path is not None and path.name == self.file)
        return self.point == point and self.step in (None, step) and is_file

    @staticmethod
    def parse(text: str) -> Fault:
        """Reads `kill@checkpoint.write/manifest.json:8#0`.

        Raises:
            UsageError: There is no such action or point.
        """
        match = _FAULT.fullmatch(text)
        if match is None or match[1] not in ACTIONS or match[2] not in POINTS:
            raise UsageError(
                f"'{text}' is not a fault; write ACTION@POINT[/FILE][:STEP][#RANK], with one of {', '.join(ACTIONS)}, "
                f"and one of {', '.join(POINTS)}"
            )
        step, rank = (int(number) if number else None for number in match.groups()[3:])
        return Fault(match[1], match[2], match[3], step, rank)


armed: list[Fault] = []  # asked where a call for nothing would count


def arm(text: str | None, rank: int = 0) -> None:
    """Prepares this rank's faults of a text, separated by spaces, and forgets those armed before."""
    faults = [Fault.parse(word) for word in (text or "").split()]
    armed[:] = [fault for fault in faults if fault.rank in (None, rank)]


def point(name: str, step: int | None = None, path: Path | None = None) -> None:
    """A named point of the program; does nothing unless a fault is armed for it.

    Raises:
        OSError: The disk is full (`full`).
        torch.OutOfMemoryError: There is no memory (`oom`).
        RuntimeError: The program failed here (`raise`).
    """
    if not armed:
        return
    due = [fault for fault in armed if fault.is_due(name, step, path)]
    # asked to stop twice at one point, but a disk that is full once lets the next try pass
    for fault in due if due and due[0].action == "term" else due[:1]:
        armed.remove(fault)
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
    if fault.action == "oom":
        from torch import OutOfMemoryError

        raise OutOfMemoryError("out of memory: a fault")
    if fault.action == "flip" and path is not None:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        return
    raise RuntimeError(f"a fault at {fault.point}")
