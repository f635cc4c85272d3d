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
        help="weights as safetensors, ONNX, a folder for from_pretrained, …",
        description="Write a run's weights in another form, and check it against them on a real batch.",
    )
    export.add_argument("path", metavar="RUN|CHECKPOINT", help=f"a checkpoint, or a run: {RUN_NAMES}")
    export.add_argument(
        "--to",
        required=True,
        metavar="FILE|FOLDER",
        help="what to write: .safetensors, .pth, .onnx, .pt2 (a torch.export program), or a folder with --as",
    )
    export.add_argument(
        "--as",
        dest="form",
        metavar="FORM",
        help="what to write into the folder: transformers (from_pretrained loads it), safetensors, pth, onnx, pt2",
    )
    export.add_argument("--merge", action="store_true", help="make an adapter (model._adapt_) a part of the weights")
    export.set_defaults(command=_export)


def _export(options: argparse.Namespace, _: Sequence[str]) -> int:
    from launcher.checkpoints.export import export
    from launcher.checkpoints.saved_run import find_saved
    from launcher.runs.naming import saved_place

    target, saved = Path(options.to).absolute(), find_saved(saved_place(options.path))
    work_in(saved.directory)
    say_own_code(saved.recipe)
    print(export(saved, target, options.form, merge=options.merge))
    return EXIT_DONE
