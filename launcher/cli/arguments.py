"""Flags that several commands share."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from launcher.errors import EXIT_USAGE, UsageError
from launcher.recipe.directory import take

if TYPE_CHECKING:
    from launcher.recipe.schema import Recipe


class Parser(argparse.ArgumentParser):
    """One line for a bad flag: what is wrong and where to look."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}; see {self.prog} --help", file=sys.stderr)
        sys.exit(EXIT_USAGE)


class Commands(Protocol):
    """Where a command is added: what `add_subparsers` gives, whose class argparse does not name."""

    def add_parser(self, name: str, **options: Any) -> Parser:
        """Adds a command."""
        ...


def work_in(directory: str | os.PathLike[str] | None) -> None:
    """Makes the command as one that was given where a run was started: a recipe's relative paths are of there.

    Only a command may: its process is its own.

    Raises:
        UsageError: There is no such directory.
    """
    try:
        os.chdir(directory or ".")
        take()
    except OSError as error:
        raise UsageError(f"the run was started in {directory}: {error.strerror}") from error


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least 1")
    return int(text)


def span(text: str) -> tuple[int, int]:
    """`10:20`: from the first number to before the second."""
    first, _, stop = text.partition(":")
    if not (first.isascii() and first.isdigit() and stop.isascii() and stop.isdigit() and int(first) < int(stop)):
        raise argparse.ArgumentTypeError(f"'{text}' is no span of steps; write A:B, as in 10:20")
    return int(first), int(stop)


def add_recipe(command: argparse.ArgumentParser, required: bool = True) -> None:
    """RECIPE, its overrides, `--base`, `--remove` and `--allow`."""
    command.add_argument(
        "recipe",
        metavar="RECIPE",
        nargs=None if required else "?",
        help="a YAML file; `launcher recipes` lists some to start from",
    )
    command.add_argument(
        "overrides",
        nargs="*",
        default=[],  # or argparse would call them required where RECIPE is missing
        metavar="KEY=VALUE",
        help="changes to the recipe, as in optimizer.lr=3e-4",
    )
    command.add_argument(
        "--base",
        action="append",
        default=[],
        metavar="RECIPE",
        help="another recipe, put over this one and its bases before the changes; may be said several times",
    )
    command.add_argument("--remove", action="append", default=[], metavar="KEY", help="take a key out of the recipe")
    command.add_argument(
        "--allow", action="append", default=[], metavar="PACKAGE", help="a further package that the recipe may name"
    )


def read_recipe(options: argparse.Namespace) -> Recipe:
    """The recipe that `add_recipe`'s flags name.

    Raises:
        RecipeError: Everything that is wrong with it.
    """
    from launcher.recipe.load import load_recipe

    return load_recipe(options.recipe, options.overrides, options.remove)


def say_own_code(recipe: Recipe, output: str = "auto", width: int = 12) -> None:
    """Names what the recipe calls of the user's own code, and asks about slips, before anything is imported.

    Args:
        recipe: As it was read.
        output: `quiet` says nothing; `json` keeps standard output for JSON.
        width: Of the labels, as in the lines that follow.
    """
    from launcher.recipe.own_code import own_calls, questions

    messages = [("own code", line) for line in own_calls(recipe)] + [("question", line) for line in questions(recipe)]
    for label, text in messages if output != "quiet" else ():
        print(f"{label:<{width}} {text}", file=sys.stderr if output == "json" else sys.stdout, flush=True)


def add_output(command: argparse.ArgumentParser) -> None:
    """`--quiet` and `--json`."""
    output = command.add_mutually_exclusive_group()
    output.add_argument(
        "--quiet",
        dest="output",
        action="store_const",
        const="quiet",
        default="auto",
        help="errors and the result only",
    )
    output.add_argument(
        "--json",
        dest="output",
        action="store_const",
        const="json",
        help="each line of metrics.jsonl on the screen",
    )


def tasks_of(path: str | None) -> tuple[tuple[str, ...], ...]:
    """The changes of each task of an array, a line of the file each.

    Raises:
        UsageError: The file cannot be read, or holds none.
    """
    if path is None:
        return ()
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
        tasks = tuple(tuple(shlex.split(line, comments=True)) for line in lines)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"--array-file {path}: cannot be read: {error}; write a line of KEY=VALUE for each task"
        ) from error
    nonempty_tasks = tuple(words for words in tasks if words)
    if not nonempty_tasks:
        raise UsageError(f"--array-file {path}: holds no changes; write a line of KEY=VALUE for each task")
    return nonempty_tasks
