"""`launcher data`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from launcher.cli.arguments import add_recipe, positive, read_recipe, say_own_code
from launcher.errors import EXIT_DONE, LauncherError, UsageError

if TYPE_CHECKING:
    from launcher.cli.arguments import Commands


def add(commands: Commands) -> None:
    """Says the command's flags."""
    data = commands.add_parser(
        "data",
        help="look at a recipe's data",
        description="Look at the data before training: sizes, shapes, types and ranges, how the classes are shared "
        "out, some samples, and how fast they are read with how many workers.",
    )
    add_recipe(data)
    data.add_argument("--processes", type=positive, default=1, metavar="N", help="see the batch of one of N processes")
    data.add_argument("--samples", type=positive, default=16, metavar="N", help="how many to show (default: 16)")
    data.add_argument("--sheet", metavar="FILE", help="where pictures go (default: NAME-data.png)")
    data.add_argument(
        "--seconds",
        type=float,
        default=2.0,
        metavar="S",
        help="how long to read with each number of workers; 0 skips it",
    )
    data.set_defaults(command=_data)


def _data(options: argparse.Namespace, _: Sequence[str]) -> int:
    from pathlib import Path

    recipe = read_recipe(options)
    say_own_code(recipe)
    from launcher.data.inspect.show import Wishes, show
    from launcher.data.seeds import seed_everything
    from launcher.device.kind import found
    from launcher.objective.batch import BatchLayout
    from launcher.recipe.build import Builder
    from launcher.recipe.targets import told
    from launcher.training.build import open_run_data
    from launcher.world.world import World

    builder = Builder(recipe, options.allow)
    builder.check()
    seed_everything(recipe.seed)
    wishes = Wishes(options.samples, Path(options.sheet or f"{recipe.name}-data.png"), options.seconds)
    print(f"{recipe.name}, {options.recipe}")
    world = World(size=options.processes, local_size=options.processes)
    data = open_run_data(recipe, builder, world, on_gpu=found() is not None)
    try:
        for line in show(data, BatchLayout(recipe.batch), world, wishes):
            print(line, flush=True)
    except LauncherError:
        raise
    except Exception as error:
        raise UsageError(f"data: it cannot be read: {told(error)}") from error
    return EXIT_DONE
