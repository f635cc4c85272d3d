"""`launcher recipes` and `launcher copy`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from launcher.errors import EXIT_DONE

if TYPE_CHECKING:
    from launcher.cli.arguments import Commands


def add(commands: Commands) -> None:
    """Says the commands' flags."""
    listing = commands.add_parser("recipes", help="list the recipes that are included")
    listing.set_defaults(command=_recipes)
    copy = commands.add_parser("copy", help="put a recipe, with its files, into the working directory")
    copy.add_argument("name", metavar="NAME", help="as `launcher recipes` lists it")
    copy.set_defaults(command=_copy)


def _recipes(_: argparse.Namespace, __: Sequence[str]) -> int:
    from launcher.recipe.shipped import shipped

    for name, summary in shipped().items():
        print(f"{name:<20} {summary}")
    return EXIT_DONE


def _copy(options: argparse.Namespace, _: Sequence[str]) -> int:
    from launcher.recipe.shipped import copy

    paths = copy(options.name)
    for path in paths:
        print(path)
    recipes = [path for path in paths if path.suffix == ".yaml"]  # a folder's may be beside its full-size form
    print(f"\nnext: launcher train {next((path for path in recipes if path.stem == 'recipe'), recipes[0])}")
    return EXIT_DONE
