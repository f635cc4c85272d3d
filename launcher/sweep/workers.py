"""Who works on a sweep: each participant shows that it lives, and what the dead were at is set free.

A participant is a process with slots. It holds `DIR/workers/NAME.json` as a run holds its folder: on this machine a
holder is alive when its process is, on another when it has touched the file lately.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from launcher.errors import UsageError
from launcher.recipe.caller import setting
from launcher.runs.lock import holder, locked
from launcher.runs.reading import Run
from launcher.sweep.record import Record, released

WORKERS_FOLDER = "workers"


@contextmanager
def taking_part(record: Record, job: str | None, join: bool) -> Iterator[str]:
    """Works on a sweep for a while; what the dead were at is free afterwards, this process's namesake's included.

    Args:
        record: The sweep's.
        job: The SLURM job that this process belongs to.
        join: Whether it may work beside others.

    Yields:
        The participant's name.

    Raises:
        UsageError: Somebody else works on it already.
    """
    folder = record.folder / WORKERS_FOLDER
    folder.mkdir(exist_ok=True)
    name = f"{platform.node()}-{os.getpid()}"
    with ExitStack() as stack:
        with record.locked():  # two that start at once see each other
            alive = [path.stem for path in sorted(folder.glob("*.json")) if holder(folder, path.name)]
            if alive and not join:
                raise UsageError(
                    f"{record.folder}: {', '.join(alive)} works on this sweep already; add {setting('join', True)} to "
                    "take part in it, or stop it first (it saves before it ends)"
                )
            stack.enter_context(locked(folder, job, f"{name}.json"))
            set_free(record, [number for number, trial in record.trials.items() if trial.worker == name])
        yield name


def free_the_lost(record: Record, me: str) -> None:
    """Sets free what participants have left that are gone; inside of `record.locked()`.

    A run that is still held by somebody is left alone: its process may outlive who started it for a moment.
    """
    folder = record.folder / WORKERS_FOLDER
    names = {trial.worker for trial in record.trials.values() if trial.taken is not None} - {me}
    gone = {name for name in names if holder(folder, f"{name}.json") is None}
    set_free(record, [number for number, trial in record.trials.items() if trial.worker in gone])


def set_free(record: Record, trials: list[int]) -> None:
    """Reports that nobody works at these trials, where that is so; inside of `record.locked()`.

    What they had come to since they were taken is lost in part, and its time was spent, as far as the run tells.
    """
    for number in trials:
        since, folder = record.trials[number].since, record.folder_of(number)
        if record.trials[number].taken is not None and holder(folder) is None:
            seen = Run(folder).seen
            seconds = 0.0 if since is None or seen is None else max(0.0, seen - since)
            record.append(released(number, "whoever worked at it is gone", round(seconds, 3)))
