"""Flags that several commands share."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from launcher.errors import EXIT_DONE, EXIT_USAGE, UsageError
from launcher.recipe.directory import take
from launcher.recipe.inputs import unreadable
from launcher.text import suggestion

if TYPE_CHECKING:
    from launcher.recipe.duration import Duration
    from launcher.recipe.schema import Recipe
    from launcher.world.world import World


RUN_NAMES = "its folder, one that holds runs, a recipe's name, the beginning of one, `latest`, or NAME@2, the second"


class Parser(argparse.ArgumentParser):
    """One line for a bad flag: what is wrong and where to look."""

    def error(self, message: str) -> NoReturn:
        apart = " See" if message.endswith("?") else "; see"
        print(f"{self.prog}: {message}{apart} {self.prog} --help", file=sys.stderr)
        sys.exit(EXIT_USAGE)

    def flags(self) -> list[str]:
        """Every flag of this command."""
        return [flag for action in self.arguments() for flag in action.option_strings]

    def arguments(self) -> list[argparse.Action]:
        """All that this command takes."""
        return self._actions


class Commands:
    """Where a command is added.

    Args:
        subparsers: What `add_subparsers` gives, whose class argparse does not name.
        parsers: Gets each command's parser by its name.
        summaries: Gets what each does, in a few words.

    Attributes:
        summaries: Of those that were added so far.
    """

    def __init__(self, subparsers: Any, parsers: dict[str, Parser], summaries: dict[str, str]):
        self._subparsers = subparsers
        self._parsers = parsers
        self.summaries = summaries

    def add_parser(self, name: str, *, help: str, **options: Any) -> Parser:  # argparse's own word
        """Adds a command."""
        options.setdefault("description", f"{help[0].upper()}{help[1:]}.")
        parser: Parser = self._subparsers.add_parser(name, help=help, **options)
        self._parsers[name], self.summaries[name] = parser, help
        return parser


class TopParser(Parser):
    """The program's own: its help shows the commands in groups.

    Attributes:
        groups: Names of commands by the title of their group.
        parsers: The parser of each command.
        summaries: What each does.
    """

    groups: Mapping[str, Sequence[str]]

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.parsers: dict[str, Parser] = {}
        self.summaries: dict[str, str] = {}

    def commands(self) -> Commands:
        """Where commands are added."""
        subparsers = self.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
        return Commands(subparsers, self.parsers, self.summaries)

    def check_command(self, arguments: Sequence[str]) -> None:
        """Shows the help where nothing else is asked for, and refuses a command that there is not."""
        name, *rest = arguments or ("help",)
        if name == "help" and (not rest or rest[0] in self.parsers):
            (self.parsers[rest[0]] if rest else self).print_help()
            sys.exit(EXIT_DONE)
        wanted = rest[0] if name == "help" else name
        if not wanted.startswith("-") and wanted not in self.parsers:
            names = [command for group in self.groups.values() for command in group]
            self.error(
                f"there is no command '{wanted}'{suggestion(wanted, names) or '; there are: ' + ', '.join(names)}"
            )

    def format_help(self) -> str:
        """Usage, the commands in groups, and how to start."""
        width = max(map(len, self.summaries)) + 2
        lines = ["usage: launcher COMMAND …", "", self.description or ""]
        for title, names in self.groups.items():
            lines += ["", f"{title}:", *(f"  {name:<{width}}{self.summaries[name]}" for name in names)]
        lines += [
            "",
            "launcher help COMMAND tells a command's flags, launcher --version the version.",
            "",
            self.epilog or "",
        ]
        return "\n".join(lines) + "\n"


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


def duration(text: str) -> Duration:
    """`500 steps`, `2 epochs`, `25%`."""
    from launcher.recipe.duration import Duration

    if (read := Duration.parse(text)) is None or read.unit in ("seconds", "batches"):
        raise argparse.ArgumentTypeError(f"'{text}' is not a length of training; write it as in '500 steps' or 25%")
    if read.unit == "percent" and read.amount > 100:
        raise argparse.ArgumentTypeError(f"'{text}' is more than the whole run; write at most 100%")
    return read


def span(text: str) -> tuple[int, int]:
    """`10:20`: from the first number to before the second."""
    first, _, stop = text.partition(":")
    if not (first.isascii() and first.isdigit() and stop.isascii() and stop.isdigit() and int(first) < int(stop)):
        raise argparse.ArgumentTypeError(f"'{text}' is not a span of steps; write A:B, as in 10:20")
    return int(first), int(stop)


STARTED_HERE = ("processes", "nodes", "node_rank", "master", "max_restarts")  # flags for who starts the processes


def add_processes(
    command: argparse.ArgumentParser,
    *,
    processes: str = "default: every GPU",
    nodes: str = "default: 1",
    cpu: str = "use the CPU even if there is a GPU",
) -> None:
    """`--cpu`, `--processes` and the machines that they are on.

    Args:
        command: Takes them.
        processes: How many there are where none are asked for.
        nodes: The same of machines.
        cpu: What `--cpu` does.
    """
    command.add_argument("--cpu", action="store_true", help=cpu)
    command.add_argument(
        "--processes", type=positive, metavar="N", help=f"how many processes, over all nodes ({processes})"
    )
    command.add_argument("--nodes", type=positive, metavar="N", help=f"how many machines ({nodes})")
    command.add_argument("--node-rank", type=int, metavar="K", help="this machine's number, from 0")
    command.add_argument(
        "--master", metavar="HOST:PORT", help="where the machines meet: an address of node 0 and a free port"
    )


def check_started(options: argparse.Namespace, world: World) -> None:
    """Refuses flags that start processes where torchrun, accelerate or srun has started them already.

    Raises:
        UsageError: There is one that says otherwise.
    """
    unwanted = [name for name in STARTED_HERE if getattr(options, name, None) is not None]
    if not world.is_launched or world.supervisor is not None or not unwanted:
        return
    if unwanted != ["processes"] or options.processes != world.size:
        flag = unwanted[0].replace("_", "-")
        raise UsageError(
            f"--{flag} {getattr(options, unwanted[0])}: {world.started_by} has started {world.size}; omit --{flag}, or "
            "start with `launcher` alone"
        )


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
        help="another recipe, put over this one and its bases before the changes; may be repeated",
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


def say_own_code(*recipes: Recipe, output: str = "auto", width: int = 12) -> None:
    """Names what a recipe calls of the user's own code, and asks about slips, before anything is imported.

    Args:
        *recipes: As they were read; of several, what each says once.
        output: `quiet` says nothing; `json` keeps standard output for JSON.
        width: Of the labels, as in the lines that follow.
    """
    from launcher.recipe.own_code import own_calls, questions

    lines = [("own code", line) for recipe in recipes for line in own_calls(recipe)]
    lines += [("question", line) for recipe in recipes for line in questions(recipe)]
    for label, text in dict.fromkeys(lines) if output != "quiet" else ():
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
        help="one JSON object a line: the plan, each line of metrics.jsonl, messages, the end",
    )


def _array_text(path: str) -> str:
    if fault := unreadable(path):
        raise ValueError(f"it {fault}")
    return Path(path).read_text(encoding="utf-8")


def tasks_of(path: str | None, overrides: Sequence[str] = ()) -> tuple[tuple[str, ...], ...]:
    """The changes of each task of an array, a line of the file each.

    Args:
        path: The file; None is no array.
        overrides: Changes that all of them have.

    Raises:
        UsageError: The file cannot be read, or holds none; or a task has two lengths.
    """
    from launcher.recipe.slips import two_lengths

    if path is None:
        return ()
    try:
        lines = _array_text(path).splitlines()
        tasks = tuple(tuple(shlex.split(line, comments=True)) for line in lines)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"--array-file {path}: cannot be read: {error}; write a line of KEY=VALUE for each task"
        ) from error
    nonempty_tasks = tuple(words for words in tasks if words)
    if not nonempty_tasks:
        raise UsageError(f"--array-file {path}: holds no changes; write a line of KEY=VALUE for each task")
    for words in nonempty_tasks:
        if fault := two_lengths([*overrides, *words]):
            raise UsageError(f"--array-file {path}: {shlex.join(words)}: {fault}")
    return nonempty_tasks
