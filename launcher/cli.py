"""Commands and flags. Each command imports what it needs when it runs, so that `--help` answers at once."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from launcher.errors import EXIT_DONE, EXIT_FAILED, EXIT_PREEMPTED, EXIT_USAGE, LauncherError, UsageError
from launcher.launch.world import is_spokesman
from launcher.version import __version__


class _Parser(argparse.ArgumentParser):
    """One line for a bad flag: what is wrong and where to look."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}; see {self.prog} --help", file=sys.stderr)
        sys.exit(EXIT_USAGE)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code (0 done, 1 failed, 2 wrong recipe or flags, 75 preempted)."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = _parsed(arguments)
    try:
        return int(options.command(options, arguments))
    except LauncherError as error:
        if error.exit_code != EXIT_USAGE or is_spokesman():  # every rank finds the same mistakes
            print(str(error), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return EXIT_FAILED


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The options; overrides may stand behind flags too, where argparse does not look for them."""
    top = parser()
    options, rest = top.parse_known_args(arguments)
    strange = [one for one in rest if one.startswith("-") or not hasattr(options, "overrides")]
    if strange:
        top.error(f"unrecognized arguments: {' '.join(strange)}")
    if rest:
        options.overrides = [*options.overrides, *rest]
    return options


def parser() -> argparse.ArgumentParser:
    """All commands with their flags."""
    top = _Parser(
        prog="launcher",
        description="Train a PyTorch model from a YAML recipe, on a CPU, a GPU, or many.",
        epilog="Start with: launcher copy digits_cnn && launcher train digits_cnn.yaml",
    )
    top.add_argument("--version", action="version", version=f"launcher {__version__}")
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    _add_train(commands)
    _add_recipes(commands)
    return top


def _add_train(commands: argparse._SubParsersAction[_Parser]) -> None:
    train = commands.add_parser(
        "train",
        help="train what a recipe says",
        description="Train what a recipe says: on every GPU of this machine, or on the CPU.",
    )
    train.add_argument("recipe", metavar="RECIPE", help="a YAML file; `launcher recipes` lists some to start from")
    train.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="changes to the recipe, as in optimizer.lr=3e-4"
    )
    train.add_argument("--cpu", action="store_true", help="stay on the CPU though there may be a GPU")
    train.add_argument(
        "--processes", type=_positive, metavar="N", help="how many processes (default: launch.processes)"
    )
    train.add_argument(
        "--run-dir",
        metavar="DIR",
        help="the run's folder (default: runs/NAME/DATE); resumed if it holds a checkpoint",
    )
    train.add_argument("--remove", action="append", default=[], metavar="KEY", help="take a key out of the recipe")
    train.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="a further package that the recipe may name",
    )
    output = train.add_mutually_exclusive_group()
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
    train.set_defaults(command=_train)


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least 1")
    return int(text)


def _train(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    from launcher.launch.world import World
    from launcher.recipe.load import load_recipe

    world = World.from_environ()
    if world.is_launched and options.processes not in (None, world.size):
        raise UsageError(
            f"--processes {options.processes}: {world.started_by} has started {world.size}; leave --processes away, "
            "or start with `launcher train` alone"
        )
    recipe = load_recipe(options.recipe, options.overrides, options.remove)
    if not world.is_launched:
        from launcher.launch.local import choose_processes, start

        asked = options.processes or recipe.launch.processes
        processes = choose_processes(asked, options.cpu or world.wants_cpu)
        if processes > 1:
            return start(arguments, processes, cpu=options.cpu, threads=recipe.launch.threads, run_dir=options.run_dir)
    from launcher.run import run
    from launcher.session import Options

    asked_for = Options(
        cpu=options.cpu,
        run_dir=options.run_dir,
        allow=tuple(options.allow),
        output=options.output,
        command=("launcher", *arguments),
    )
    result = run(recipe, world, asked_for)
    return EXIT_PREEMPTED if result.state == "preempted" and not world.is_launched else EXIT_DONE


def _add_recipes(commands: argparse._SubParsersAction[_Parser]) -> None:
    listing = commands.add_parser("recipes", help="list the recipes that come with the package")
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

    for path in copy(options.name):
        print(path)
    return EXIT_DONE
