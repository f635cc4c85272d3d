"""`launcher cancel`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from launcher.cli.arguments import RUN_NAMES
from launcher.errors import EXIT_DONE, UsageError

if TYPE_CHECKING:
    from launcher.cli.arguments import Commands
    from launcher.runs.reading import Run


def add(commands: Commands) -> None:
    """Says the command's flags."""
    cancel = commands.add_parser(
        "cancel",
        help="end a queued or running job",
        description="End the SLURM job of a run: it saves first, and `launcher resume RUN` resumes it.",
    )
    cancel.add_argument("runs", nargs="+", metavar="RUN", help=f"{RUN_NAMES}; all that are meant")
    cancel.add_argument("--now", action="store_true", help="do not save first")
    cancel.set_defaults(command=_cancel)


def _cancel(options: argparse.Namespace, _: Sequence[str]) -> int:
    from launcher.launch.slurm.requeue import cancel
    from launcher.runs.job import Submission
    from launcher.runs.naming import named_runs
    from launcher.world import slurm

    named = named_runs(options.runs)
    runs = [run for run in named if Submission.read(run.folder).job]
    if not runs:
        raise UsageError(f"{options.runs[0]}: no job was submitted for it; {_without_job(named)}")
    queue = slurm.queue()  # one question for all of them
    for folder, text in cancel((run.folder for run in runs), options.now, queue):
        print(f"{folder}: {text}")
    return EXIT_DONE


def _without_job(runs: Sequence[Run]) -> str:
    """How a run that was started by hand is stopped, where one of them is running."""
    from launcher.runs.lock import holder

    owners = [owner for run in runs if (owner := holder(run.folder)) is not None]
    if not owners:
        return "it is not running"
    pid, host = owners[0].get("pid"), owners[0].get("host")
    return f"it runs on {host} as process {pid}: stop it with Ctrl-C there, or `kill {pid}`; it saves before it ends"
