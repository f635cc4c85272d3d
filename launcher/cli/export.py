"""`launcher export`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.cli.arguments import RUN_NAMES
from launcher.cli.saved import SHARDABLE, add_saved_processes, found, in_processes
from launcher.errors import EXIT_DONE
from launcher.world.loading import loading

if TYPE_CHECKING:
    from launcher.cli.arguments import Commands
    from launcher.world.world import World


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
    export.add_argument(
        "--part", default="", metavar="NAME", help="a part of the model alone, as a program: a GAN's generator, say"
    )
    add_saved_processes(export)
    export.set_defaults(command=_export)


def _export(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    return in_processes(options, arguments, partial(_export_here, options))


def _export_here(options: argparse.Namespace, world: World) -> int:
    with loading():
        from launcher.checkpoints.export import export, needs_whole

    target = Path(options.to).absolute()  # before this becomes a command of the run's directory
    is_whole = needs_whole(target, options.form, options.merge)
    saved = found(options, world, whole="as what is written needs" if is_whole else SHARDABLE)
    flags = {"merge": options.merge, "part": options.part, "cpu": options.cpu}
    line = export(saved, target, options.form, world=world, **flags)
    if world.is_first:
        print(line)
    return EXIT_DONE
