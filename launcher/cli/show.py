"""`launcher show`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.cli.arguments import add_recipe, read_recipe
from launcher.errors import EXIT_DONE, UsageError

if TYPE_CHECKING:
    from launcher.cli.arguments import Commands
    from launcher.recipe.places import Path as RecipePath

_RESOLVED = "resolved.yaml"  # of a run's folder
Values = Mapping["RecipePath", tuple[str, str]]  # of every value, as YAML, and where it was set


def add(commands: Commands) -> None:
    """Says the command's flags."""
    show = commands.add_parser(
        "show",
        help="show a recipe with every value and where it was set",
        description="Show the whole recipe, bases, overrides and defaults included, with the place where each value "
        "was set: as YAML that reads back to the same recipe. Of a run, the recipe that it was started with.",
    )
    add_recipe(show)
    show.add_argument("--diff", metavar="OTHER", help="only what differs from another recipe, or a run")
    show.set_defaults(command=_show)


def _show(options: argparse.Namespace, _: Sequence[str]) -> int:
    if options.diff is not None:
        return _show_differences(options)
    if (folder := _run_folder(options.recipe)) is not None:
        _refuse_changes(options)
        for line in _recorded(folder).splitlines():
            text, mark, origin = line.rpartition("  # ")
            _print(text if mark else line, origin if mark else "")
        return EXIT_DONE
    from launcher.recipe.show import column_of_origins, lines

    shown = lines(read_recipe(options))
    width = column_of_origins(shown)
    for recipe_line in shown:
        _print(f"{recipe_line.text:<{width}}" if recipe_line.origin else recipe_line.text, recipe_line.origin)
    return EXIT_DONE


# ---------------------------------------------------------------------- the screen


def _print(text: str, origin: str, style: str = "") -> None:
    """One line; on a terminal its key, value and origin are told apart by colour."""
    from rich.text import Text

    line = Text(text, style or "")
    if not style:
        key, colon, _ = text.partition(":")
        line.stylize("cyan", len(key) - len(key.lstrip(" -")), len(key) if colon else 0)
    if origin:
        line.append(f"  # {origin}", _origin_style(origin))
    _console().print(line, soft_wrap=True)


def _console() -> Any:
    from rich.console import Console

    return Console(file=sys.stdout, highlight=False)


def _origin_style(origin: str) -> str:
    if origin == "default":
        return "dim"
    return "bold yellow" if origin.startswith("override") else "green"


# ---------------------------------------------------------------------- runs' folders


def _run_folder(name: str) -> Path | None:
    """The folder of the run that a name means; None of a recipe, which comes first."""
    from launcher.runs.naming import is_named

    folder = Path(name)
    if (folder / _RESOLVED).is_file():
        return folder
    if folder.is_file() or not (is_named(name) or "@" in name):
        return None
    from launcher.sweep.naming import named_run

    return named_run(name).folder


def _recorded(folder: Path) -> str:
    from launcher.runs.folder import read_file

    try:
        return read_file(folder / _RESOLVED).decode()
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder / _RESOLVED} cannot be read: {error}") from error


def _refuse_changes(options: argparse.Namespace) -> None:
    if options.overrides or options.remove:
        raise UsageError(f"{options.recipe} is a run's folder, and a run's recipe cannot be changed; name the recipe")


# ---------------------------------------------------------------------- differences


def _show_differences(options: argparse.Namespace) -> int:
    if (folder := _run_folder(options.recipe)) is not None:
        _refuse_changes(options)
        ours = _of_run(folder)
    else:
        ours = _of_recipe(options)
    other = argparse.Namespace(recipe=options.diff, overrides=[], remove=[])
    their_folder = _run_folder(options.diff)
    theirs = _of_run(their_folder) if their_folder is not None else _of_recipe(other)
    changed = [
        path for path in dict.fromkeys([*ours, *theirs]) if ours.get(path, ("",))[0] != theirs.get(path, ("",))[0]
    ]
    for path in changed:
        _show_difference(path, ours.get(path), theirs.get(path))
    if not changed:
        print(f"{options.recipe} and {options.diff} say the same")
    return EXIT_DONE


def _show_difference(path: RecipePath, ours: tuple[str, str] | None, theirs: tuple[str, str] | None) -> None:
    from launcher.recipe.places import dotted

    _print(f"{dotted(path)}:", "")
    if ours is not None:
        _print(f"  - {ours[0]}", ours[1], "red")
    if theirs is not None:
        _print(f"  + {theirs[0]}", theirs[1], "green")


def _of_recipe(options: argparse.Namespace) -> Values:
    from launcher.recipe.show import resolved, scalar, values_of

    recipe = read_recipe(options)
    origins = recipe.document.origins
    return {path: (scalar(value), str(origins.get(path, "default"))) for path, value in values_of(resolved(recipe))}


def _of_run(folder: Path) -> Values:
    """The values of a run's recorded recipe, and where its comments say that they come from."""
    from launcher.recipe.places import Problems
    from launcher.recipe.show import nodes_of, scalar
    from launcher.recipe.yaml import parse

    text = _recorded(folder)
    origins = [line.rpartition("  # ")[2] if "  # " in line else "" for line in text.splitlines()]
    problems = Problems()
    root = parse(text, str(folder / _RESOLVED), folder, problems)
    if root is None or problems or not isinstance(root.value, dict):
        what = next((problem.message for problem in problems), "it has no keys")
        raise UsageError(f"{folder / _RESOLVED} is not a recipe: {what}")
    return {path: (scalar(node.value), origins[(node.origin.line or 1) - 1]) for path, node in nodes_of(root)}
