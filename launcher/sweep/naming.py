"""The run that a name means where it names a sweep: the best trial."""

from __future__ import annotations

from pathlib import Path

from launcher.errors import UsageError
from launcher.runs import naming
from launcher.runs.folder import weights_of
from launcher.runs.naming import NamedSweep
from launcher.runs.reading import Run
from launcher.sweep.ranking import leader, ranked
from launcher.sweep.record import Record


def named_run(text: str) -> Run:
    """The one run that a name means; of a sweep, its best trial.

    Raises:
        UsageError: It means none, runs of several recipes, or a sweep in which nothing was evaluated yet.
    """
    place = naming.place_of(text)
    return Run(best_trial(place.folder)) if isinstance(place, NamedSweep) else place


def saved_place(text: str) -> Path:
    """What a name means to a command that reads what was saved: a path as it is, else the folder of the run.

    Raises:
        UsageError: As of `named_run`.
    """
    return Path(text) if naming.is_saved(text) else named_run(text).folder


def best_trial(folder: Path) -> Path:
    """The run of a sweep's best point, one with weights where there is one.

    Raises:
        UsageError: Nothing was evaluated yet.
    """
    record = Record(folder)
    entry = leader(ranked(record))
    if entry is None:
        raise UsageError(nothing_evaluated(folder))
    trials = [record.folder_of(trial.number) for trial in entry.trials]
    return next((trial for trial in trials if weights_of(trial) is not None), trials[0])


def nothing_evaluated(folder: Path) -> str:
    """Why a sweep has no best trial."""
    return f"{folder}: no trial has been evaluated yet; `launcher runs {folder}` shows them"
