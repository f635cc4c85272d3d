"""What stays of a sweep's trials: all of a run that may be resumed, the best one's weights, figures of the rest."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from launcher.runs.folder import AVERAGES, weights_files
from launcher.sweep.halving import Cohort, counted
from launcher.sweep.record import Record


def tidy(record: Record) -> None:
    """Removes checkpoints and weights of trials that are over and not among the best, unless all are to be kept.

    A trial that is over and not the best never becomes it again: others only come to be better.
    """
    if record.settings.keep == "all":
        return
    spared = best_trials(record)
    for number, trial in record.trials.items():
        if trial.is_over and number not in spared:
            _forget(record.folder_of(number))


def best_trials(record: Record) -> set[int]:
    """The runs of the best point, and of those that are not over.

    The best of all, and the best of those that halving counts: one that was taken early may be better.
    """
    last = record.settings.last_rung
    cohort = Cohort(record, max(record.budgets))
    over: list[int] = []
    spared: set[int] = set()
    for point in {record.settings.point_of(number) for number in record.trials}:
        numbers = cohort.runs_of(point)
        if all(number in record.trials and record.trials[number].is_over for number in numbers):
            over.append(point)
        else:
            spared.update(numbers)
    for points in (over, [point for point in over if point in counted(record, last)]):
        for best in cohort.ranked(last, points)[:1]:
            spared.update(cohort.runs_of(best))
    return spared


def room_needed(record: Record, trial: int) -> tuple[int, int]:
    """What the sweep's checkpoints and weights will take, by those of one trial; and what is free, in bytes.

    Of halving, every trial may lie paused; of other methods, those that run and the best hold something.
    """
    settings = record.settings
    folder = record.folder_of(trial)
    each = sum(_size(path) for path in (folder / "checkpoints", *_weights(folder)))
    keeping = settings.keep == "all" or settings.num_rungs > 1
    others = record.budgets[-1] - len(record.trials) if keeping else settings.slots * settings.repeats
    return each * max(0, others), shutil.disk_usage(record.folder).free


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _forget(folder: Path) -> None:
    """Takes away all that weighs something, of which the figures are no part."""
    for path in (*_weights(folder), *_inside(folder / "checkpoints")):
        with suppress(OSError):  # another participant does the same
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _weights(folder: Path) -> list[Path]:
    return [path for average in ("", *AVERAGES) for path in weights_files(folder, average)]


def _inside(folder: Path) -> Iterable[Path]:
    return folder.iterdir() if folder.is_dir() else ()
