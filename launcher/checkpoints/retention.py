"""A run's checkpoints: listed, the newest sound one found, damaged ones set aside, old ones removed."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from launcher.checkpoints.format import NAME_PATTERN, Checkpoint, DamagedError, Snapshot, name_of, verify
from launcher.checkpoints.plain import restored
from launcher.errors import UsageError
from launcher.world import faults


def listed(folder: Path) -> list[Path]:
    """The checkpoints below a folder by name, newest first; verified or not."""
    if not folder.is_dir():
        return []
    checkpoints = [(int(match[1]), path) for path in folder.iterdir() if (match := NAME_PATTERN.fullmatch(path.name))]
    return [path for _, path in sorted(checkpoints, reverse=True)]


def newest(folder: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint that verifies; damaged ones are set aside and said so.

    Args:
        folder: `checkpoints/` of a run.
        say: Gets a line for each damaged one.

    Returns:
        None where there never was one.

    Raises:
        DamagedError: There are some, and all are damaged: starting again would lose the run silently.
    """
    candidates = listed(folder)
    for path in candidates:
        try:
            return verify(path)
        except DamagedError as error:
            say(f"{error}; {_set_aside(path)}, taking the one before")
    if candidates or any(folder.glob(".corrupt-*")):
        raise DamagedError(
            f"all checkpoints in {folder} are damaged; look at its .corrupt-… folders, or start a new run elsewhere"
        )
    return None


def load(folder: Path, say: Callable[[str], None] = print) -> Snapshot | None:
    """What the newest checkpoint that verifies is made of, for a script of your own; `save` is the other half.

    Args:
        folder: Where `save` has put them.
        say: Gets a line for each damaged one, which is skipped.

    Returns:
        None where there never was one.

    Raises:
        DamagedError: There are some, and all are damaged.
    """
    checkpoint = newest(folder, say)
    if checkpoint is None:
        return None
    return Snapshot(checkpoint.weights(), restored(checkpoint.training()), checkpoint.manifest)


def set_aside(path: Path, why: str) -> str:
    """Puts a checkpoint out of sight whose rows turned out to be damaged; says so in a line."""
    return f"{why}; {_set_aside(path)}, taking the one before"


def _set_aside(path: Path) -> str:
    aside = path.with_name(f".corrupt-{path.name}-{time.time_ns()}")
    try:
        path.rename(aside)
    except OSError as error:
        return f"it cannot be set aside ({error.strerror}) and is skipped"
    return f"set aside as {aside.name}"


def at(folder: Path, which: str, best_step: int | None) -> Checkpoint:
    """The checkpoint that a user names.

    Args:
        folder: `checkpoints/` of a run.
        which: `best`, or a step.
        best_step: Which one is the best.

    Raises:
        UsageError: There is none like that.
        DamagedError: It is damaged.
    """
    steps = [int(path.name.removeprefix("step-")) for path in listed(folder)]
    step = best_step if which == "best" else int(which) if which.isdigit() else None
    if step is None or step not in steps:
        known = ", ".join(map(str, steps)) or "none"
        problem = "no evaluation was the best yet" if which == "best" and step is None else f"there is no '{which}'"
        raise UsageError(
            f"--from: {problem} in {folder}; there are the steps {known}, and 'best' where evaluate.best is set"
        )
    return verify(folder / name_of(step))


def supersede(folder: Path, step: int) -> None:
    """Takes the checkpoints after a step out of sight: the run resumes from there; the next save removes them."""
    for path in listed(folder):
        if int(path.name.removeprefix("step-")) > step:
            path.rename(path.with_name(f".old-{path.name}-{time.time_ns()}"))


def discard(path: Path) -> None:
    """Removes a file or folder; what cannot be removed is at least out of sight."""
    hidden = path.with_name(f".old-{path.name}-{time.time_ns()}")  # out of sight at once, however long removing takes
    with contextlib.suppress(OSError):
        path.rename(hidden)
        faults.point("checkpoint.prune")
        shutil.rmtree(hidden, ignore_errors=True)


def prune(folder: Path, keep: int, best_step: int | None) -> None:
    """Removes all but the newest `keep` checkpoints and the best."""
    old = [path for path in listed(folder)[keep:] if best_step is None or path.name != name_of(best_step)]
    for path in old:
        discard(path)
    for left in (*folder.glob(".old-*"), *folder.glob(".step-*")):  # of a start that was killed meanwhile
        shutil.rmtree(left, ignore_errors=True)
