"""`launcher job`: what a batch script calls before and after the ranks."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.cli.arguments import positive
from launcher.errors import EXIT_DONE

if TYPE_CHECKING:
    from launcher.cli.arguments import Commands


def add(commands: Commands) -> None:
    """Says the command's flags."""
    job = commands.add_parser(
        "job",
        help="what a batch script calls around srun",
        description="Called by the scripts that `launcher submit` writes, and by your own: `begin` refuses a job that "
        "gets nowhere; `end` queues it again where it has saved and is to be continued. See slurm/README.md.",
    )
    job.add_argument("moment", choices=("begin", "end"))
    job.add_argument("run_dir", metavar="RUN", help="the run's folder")
    job.add_argument("--code", type=int, default=0, help="end: srun's exit code")
    job.add_argument("--max-requeues", type=int, default=20, metavar="N", help="how many times it may be queued again")
    job.add_argument("--max-restarts", type=int, default=0, metavar="N", help="how many of these after a failure")
    job.add_argument(
        "--signal", type=positive, default=120, metavar="SECONDS", help="how long before the time limit it saves"
    )
    job.add_argument("--no-requeue", action="store_true", help="submit a new job in place of requeueing this one")
    job.add_argument("--cancelled", action="store_true", help="end: the script itself was asked to end")
    job.set_defaults(command=_job)


def _job(options: argparse.Namespace, _: Sequence[str]) -> int:
    from launcher.launch.slurm.requeue import Ending, begin
    from launcher.world.world import World, job_start

    folder, number = Path(options.run_dir).absolute(), World.from_environ().job or ""
    if options.moment == "begin":
        _say(begin(folder, number, options.max_requeues, job_start()))
        return EXIT_DONE
    ending = Ending(
        folder,
        number,
        options.code,
        cancelled=options.cancelled,
        max_requeues=options.max_requeues,
        max_restarts=options.max_restarts,
        signal_seconds=options.signal,
        requeue=not options.no_requeue,
        restart=job_start(),
    )
    return ending.settle(_say)


def _say(text: str) -> None:
    print(f"launcher: {text}", file=sys.stderr, flush=True)
