"""A rank's log, as it grows."""

from __future__ import annotations

import codecs
import re
import time
from collections.abc import Iterator
from pathlib import Path

from launcher.errors import UsageError
from launcher.runs.job import is_queued
from launcher.runs.logs import log_of
from launcher.runs.reading import Run
from launcher.text import printable_block

_POLL_SECONDS = 0.25
_ASK_SECONDS = 2.0  # how often a run is asked whether it continues
_RANK = re.compile(r"rank-(\d+)\.log")


def shown_log(run: Run, rank: int) -> Path:
    """The log of a rank.

    Raises:
        UsageError: The rank has none; the message says which have.
    """
    path = log_of(run.folder, rank)
    if path.is_file():
        return path
    jobs = sorted(path.parent.glob("slurm-*.out"), key=lambda other: other.stat().st_mtime)
    if rank == 0 and jobs:
        return jobs[-1]  # what its batch script has printed, while no rank has
    names = (_RANK.fullmatch(other.name) for other in path.parent.glob("rank-*.log"))
    ranks = sorted(int(name[1]) for name in names if name)
    have = f"there are logs of rank {', '.join(map(str, ranks))}" if ranks else "the run has not printed anything yet"
    raise UsageError(f"{run.folder}: rank {rank} has no log; {have}")


def awaited(run: Run, rank: int) -> None:
    """Waits for a rank's log while the run's job is in the queue."""
    while not log_of(run.folder, rank).is_file() and is_queued(run.folder):
        time.sleep(_ASK_SECONDS)


def _goes_on(folder: Path) -> bool:
    """Whether more may come: it runs, or its job is to start again."""
    state = Run(folder).state
    return state == "running" or (state != "finished" and is_queued(folder))


def followed(path: Path, follow: bool) -> Iterator[str]:
    """The text of a log in parts; with `follow` also what is added, until its run has ended and all is shown."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a letter may come in two parts
    is_over, asked_at = not follow, -_ASK_SECONDS
    with path.open("rb") as file:
        while True:
            while part := file.read(1 << 16):
                yield printable_block(decoder.decode(part))
            if is_over:
                return
            if time.monotonic() - asked_at >= _ASK_SECONDS:
                is_over, asked_at = not _goes_on(path.parent.parent), time.monotonic()
                continue  # what was printed before the answer is still to be read
            time.sleep(_POLL_SECONDS)
