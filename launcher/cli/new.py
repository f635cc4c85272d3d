"""`launcher new`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from launcher.errors import EXIT_DONE

if TYPE_CHECKING:
    from launcher.cli.arguments import Commands


def add(commands: Commands) -> None:
    """Says the command's flags."""
    new = commands.add_parser(
        "new",
        help="start a project of your own",
        description="Make a folder with a recipe, a model, a data set and a test: small ones that train as they are, "
        "to be replaced with your own.",
    )
    new.add_argument(
        "name", metavar="NAME", help="name of the folder and of the recipe: letters, digits, '.', '_' and '-'"
    )
    new.set_defaults(command=_new)


def _new(options: argparse.Namespace, _: Sequence[str]) -> int:
    from launcher.recipe.project import create

    for path in create(options.name):
        print(path)
    print(f"\nnext: cd {options.name} && launcher check recipe.yaml && launcher train recipe.yaml")
    return EXIT_DONE
