"""`launcher export`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.cli.arguments import RUN_NAMES, say_own_code, work_in
from launcher.errors import EXIT_DONE

if TYPE_CHECKING:
    from launcher.cli.arguments import Commands


def add(commands: Commands) -> None:
    """Says the command's flags."""
    export = commands.add_parser(
        "export",
        help="weights as safetensors, .pth, or a torch.export program",
        description="Write a run's weights in another form, and check it against them on a real batch.",
    )
    export.add_argument("path", metavar="RUN|CHECKPOINT", help=f"a checkpoint, or a run: {RUN_NAMES}")
    export.add_argument(
        "--to", required=True, metavar="FILE", help="what to write: .safetensors, .pth, or .pt2 for a program"
    )
    export.set_defaults(command=_export)


def _export(options: argparse.Namespace, _: Sequence[str]) -> int:
    from launcher.checkpoints.export import export
    from launcher.checkpoints.saved_run import find_saved
    from launcher.runs.naming import saved_place

    target, saved = Path(options.to).absolute(), find_saved(saved_place(options.path))
    work_in(saved.directory)
    say_own_code(saved.recipe)
    print(export(saved, target))
    return EXIT_DONE
