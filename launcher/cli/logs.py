"""`launcher logs`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from launcher.cli.arguments import RUN_NAMES
from launcher.errors import EXIT_DONE

if TYPE_CHECKING:
    from launcher.cli.arguments import Commands


def add(commands: Commands) -> None:
    """Says the command's flags."""
    logs = commands.add_parser(
        "logs",
        help="show what a run printed",
        description="Show what a rank of a run printed, from all its starts.",
    )
    logs.add_argument("run", metavar="RUN", help=f"{RUN_NAMES}; of several, the newest")
    logs.add_argument(
        "-f",
        "--follow",
        action="store_true",
        help="keep showing what is printed, until the run has ended and its job is not waiting to start again",
    )
    logs.add_argument("--rank", type=int, default=0, metavar="N", help="whose (default: 0)")
    logs.set_defaults(command=_logs, ends_with_screen=True)


def _logs(options: argparse.Namespace, _: Sequence[str]) -> int:
    import sys

    from launcher.launch.follow_logs import awaited, followed, shown_log
    from launcher.sweep.naming import named_run

    run = named_run(options.run)
    if options.follow:
        awaited(run, options.rank)
    path = shown_log(run, options.rank)
    for text in followed(path, options.follow):
        sys.stdout.write(text)
        sys.stdout.flush()
    return EXIT_DONE
