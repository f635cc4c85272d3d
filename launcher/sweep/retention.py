"""What stays of a sweep's trials: all of a run that may be resumed, the best one's weights, figures of the rest."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from launcher.sweep.halving import Cohort, counted
from launcher.sweep.record import Record
from launcher.sweep.room import CHECKPOINTS, all_weights


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


def _forget(folder: Path) -> None:
    """Takes away all that weighs something, of which the figures are no part; nothing to which links lead."""
    if folder.is_symlink() or (folder / CHECKPOINTS).is_symlink():
        return
    for path in (*all_weights(folder), *_inside(folder / CHECKPOINTS)):
        with suppress(OSError):  # another participant does the same
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _inside(folder: Path) -> Iterable[Path]:
    return folder.iterdir() if folder.is_dir() else ()
