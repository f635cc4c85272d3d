"""`launcher data`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from launcher.commands.arguments import add_recipe, positive, read_recipe, say_own_code
from launcher.errors import EXIT_DONE

if TYPE_CHECKING:
    from launcher.commands.arguments import Commands


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
        "--seconds", type=float, default=2.0, metavar="S", help="how long to read with each number of workers; 0: not"
    )
    data.set_defaults(command=_data)


def _data(options: argparse.Namespace, _: Sequence[str]) -> int:
    from pathlib import Path

    recipe = read_recipe(options)
    say_own_code(recipe)
    from launcher.data.showing import Wishes, show
    from launcher.device import seed_everything
    from launcher.launch.world import World
    from launcher.recipe.components import Workshop

    workshop = Workshop(recipe, options.allow)
    workshop.check()
    seed_everything(recipe.seed)
    wishes = Wishes(options.samples, Path(options.sheet or f"{recipe.name}-data.png"), options.seconds)
    print(f"{recipe.name}, {options.recipe}")
    for line in show(workshop, World(size=options.processes, local_size=options.processes), wishes):
        print(line, flush=True)
    return EXIT_DONE
