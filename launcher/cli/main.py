"""The command line: reads flags, runs one command, turns errors into one line and an exit code."""

from __future__ import annotations

import argparse
import difflib
import json
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import NoReturn

from launcher.cli import (
    cancel,
    check,
    completion,
    data,
    doctor,
    evaluate,
    explain,
    export,
    job,
    logs,
    new,
    recipes,
    report,
    run,
    runs,
    schema,
    show,
    submit,
    sweep,
    train,
    verify_resume,
)
from launcher.cli.arguments import Parser, TopParser
from launcher.errors import EXIT_FAILED, EXIT_USAGE, LauncherError, RecipeError, UsageError
from launcher.recipe.directory import taken
from launcher.recipe.masking import masked
from launcher.text import printable, printable_lines
from launcher.version import __version__
from launcher.world.exit import exits_told
from launcher.world.screen import quieten_packages, speaking_json, steady
from launcher.world.signals import noting_ctrl_c, release
from launcher.world.world import is_spokesman, name_of_rank

_SPOKESMAN_SECONDS = 2.0  # how much earlier rank 0 may say what other ranks find as well
_OTHERS_WORDS = {"--output": "--to", "--out": "--to", "-o": "--to", "--set": "--split"}  # of other programs
COMMANDS = (
    *(train, run, sweep, submit, check, doctor, data, show, explain, new, runs, logs, cancel, report),
    *(verify_resume, evaluate, export, recipes, schema, completion, job),
)
GROUPS = {  # of `launcher --help`; what is in none is for batch scripts alone
    "start": ("new", "recipes", "copy", "check", "explain", "data"),
    "run": ("train", "resume", "sweep", "run", "verify-resume"),
    "look": ("runs", "logs", "report", "show"),
    "clusters": ("doctor", "submit", "cancel"),
    "after": ("evaluate", "predict", "export"),
    "editors and shells": ("schema", "completion"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code (0 done, 1 failed, 2 wrong recipe or flags, 75 stopped)."""
    if completion.is_asked():
        completion.answer(parser())
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = _parsed(arguments)
    if not getattr(options, "listens", False):
        release()
    try:
        # what only shows something for ever ends with the screen; whatever works does its work without one
        with taken(), nullcontext() if getattr(options, "ends_with_screen", False) else steady():
            return _done(options, arguments)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return EXIT_FAILED


def _done(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Runs the command; what is wrong is told, to programs as well where they listen."""
    try:
        with speaking_json(getattr(options, "output", "") == "json"):
            if not hasattr(options, "overrides"):  # `launcher run`: a script of the user's ends as it likes
                return int(options.command(options, arguments))
            quieten_packages(is_first=is_spokesman())
            with exits_told():
                return _of_recipe(options, arguments)
    except LauncherError as error:
        _say(error, for_programs=getattr(options, "output", "") == "json")
        return error.exit_code


def _of_recipe(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Runs a command of a recipe's, whose code may raise what ends a program: the command has not done its work then.

    Raises:
        LauncherError: It did so where nobody else has told of it.
    """
    try:
        with noting_ctrl_c() as pressed:
            return int(options.command(options, arguments))
    except Exception:
        raise
    except BaseException as error:
        from launcher.recipe.targets import place_of, told

        if pressed or not place_of(error):  # somebody's at the keyboard; ours, and told
            raise
        what = "ends the process, where the command should have continued"
        raise UsageError(f"code of the recipe's {what}: {told(error)}; raise an exception of your own") from error


def _say(error: LauncherError, for_programs: bool) -> None:
    """Prints what is wrong, once: every rank finds the same mistakes, or that there is nothing to do."""
    text = masked(_printed(error))
    if error.exit_code == EXIT_FAILED or is_spokesman():
        print(text, file=sys.stderr)
        if for_programs and error.exit_code:
            print(json.dumps({"kind": "failure", "error": text, "exit_code": error.exit_code}))
    elif error.exit_code == EXIT_USAGE:
        time.sleep(_SPOKESMAN_SECONDS)  # where rank 0 finds it too, srun or the agent ends this process meanwhile
        print(f"{name_of_rank()}: {text}", file=getattr(sys.stderr, "unprefixed", sys.stderr))


def _printed(error: LauncherError) -> str:
    """An error as it may be printed: each problem of a recipe in a line of its own."""
    if isinstance(error, RecipeError):
        return "\n".join(printable(str(problem)) for problem in error.problems)
    return printable_lines(str(error))


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The options; overrides may follow flags too, where argparse does not look for them."""
    top = parser()
    top.check_command(arguments)
    is_submit = arguments[:1] == ["submit"]
    sbatch = arguments.index("--") if is_submit and "--" in arguments else None
    ours = arguments[:sbatch]  # what stands behind -- is sbatch's
    script = submit.start_of_script(ours) if is_submit else None
    options, rest = top.parse_known_args(ours[:script])
    strange = [
        argument for argument in rest if (argument[1:] and argument[0] == "-") or not hasattr(options, "overrides")
    ]
    if strange:
        _refuse(strange, top.parsers[ours[0]])
    if rest:
        options.overrides = [*options.overrides, *rest]
    if "=" in getattr(options, "overrides", ()):
        top.parsers[ours[0]].error("'=' is alone; write an override as one word, as in optimizer.lr=3e-4")
    _refuse_two_lengths(getattr(options, "overrides", ()), top.parsers[ours[0]])
    if script is not None:
        options.overrides = ours[script:]
    elif getattr(options, "base", None):
        options.overrides = [*(f"base={path}" for path in options.base), *options.overrides]
    return options


def _refuse_two_lengths(overrides: Sequence[str], command: Parser) -> None:
    if sum(text.startswith("train.") for text in overrides) > 1:
        from launcher.recipe.slips import two_lengths

        if fault := two_lengths(overrides):
            command.error(fault)


def _refuse(strange: Sequence[str], command: Parser) -> NoReturn:
    """Refuses words that a command does not take: a flag may be misspelt, or be a key of the recipe."""
    flag, _, value = strange[0].partition("=")
    if flag.startswith("--") and (key := _key_called(flag[2:])):
        command.error(f"there is no {flag}; a key of the recipe is written {key}={value or 'VALUE'}")
    if near := _flag_like(flag, command.flags()):
        command.error(f"there is no {flag}; did you mean {near}?")
    command.error(f"there is no {flag}" if flag.startswith("-") else f"there is no place for '{strange[0]}'")


def _flag_like(flag: str, flags: Sequence[str]) -> str:
    """The flag that is meant, if one is: its dashes make no two words alike."""
    names = {other.lstrip("-"): other for other in flags}
    near = difflib.get_close_matches(flag.lstrip("-"), names, n=1)
    usual = _OTHERS_WORDS.get(flag, "")
    return names[near[0]] if near else usual if usual in flags else ""


def _key_called(name: str) -> str:
    from launcher.recipe.elsewhere import belongs_at, elsewhere_called

    path = tuple(name.replace("-", "_").split("."))
    return elsewhere_called(path) or belongs_at(path, {})


def parser() -> TopParser:
    """All commands with their flags."""
    top = TopParser(
        prog="launcher",
        description="Train a PyTorch model from a YAML recipe, on a CPU, a GPU, or many.",
        epilog="Start with: launcher copy digits_cnn && launcher train digits_cnn.yaml",
    )
    top.add_argument("-v", "-V", "--version", action="version", version=f"launcher {__version__}")
    top.groups = GROUPS
    commands = top.commands()
    for command in COMMANDS:
        command.add(commands)
    return top
