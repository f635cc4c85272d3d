"""`launcher cancel`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from launcher.errors import EXIT_DONE, UsageError

if TYPE_CHECKING:
    from launcher.commands.arguments import Commands


def add(commands: Commands) -> None:
    """Says the command's flags."""
    cancel = commands.add_parser(
        "cancel",
        help="end a queued or running job",
        description="End the SLURM job of a run: it saves first, and `launcher resume RUN` goes on with it.",
    )
    cancel.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, or one that holds several")
    cancel.add_argument("--now", action="store_true", help="do not save first")
    cancel.set_defaults(command=_cancel)


def _cancel(options: argparse.Namespace, _: Sequence[str]) -> int:
    from launcher.launch import slurm
    from launcher.runs.queued import Submission
    from launcher.runs.reading import named_runs

    submitted = [(run, Submission.read(run.folder)) for run in named_runs(options.runs)]
    submitted = [(run, submission) for run, submission in submitted if submission.job]
    if not submitted:
        raise UsageError(
            f"{options.runs[0]}: no job was submitted for it; a run of this machine is stopped with Ctrl-C"
        )
    queue = slurm.queue()
    for run, submission in submitted:
        entry = queue.get(submission.job)
        if entry is None:
            print(f"{run.folder}: job {submission.job} is not in the queue any more")
            continue
        saves = entry.state == "RUNNING" and not options.now
        replace(submission, cancelled=True).write(run.folder)
        slurm.cancel(submission.job, "TERM" if saves else None)
        how = "asked to save and end" if saves else "cancelled"
        print(f"{run.folder}: job {submission.job} is {how}; `launcher resume {run.folder}` goes on")
    return EXIT_DONE
