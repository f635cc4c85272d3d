"""The command line: reads flags, runs one command, turns errors into one line and an exit code."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext

from launcher.cli import (
    cancel,
    check,
    data,
    doctor,
    evaluate,
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
    train,
    verify_resume,
)
from launcher.cli.arguments import Parser
from launcher.errors import EXIT_FAILED, EXIT_USAGE, LauncherError
from launcher.recipe.directory import taken
from launcher.version import __version__
from launcher.world.screen import steady
from launcher.world.world import is_spokesman, name_of_rank

_SPOKESMAN_SECONDS = 2.0  # how much earlier rank 0 may say what other ranks find as well
# in the order of `launcher --help`
COMMANDS = (
    *(train, run, submit, check, doctor, data, show, new, runs, logs, cancel, report),
    *(verify_resume, evaluate, export, recipes, schema, job),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code (0 done, 1 failed, 2 wrong recipe or flags, 75 preempted)."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = _parsed(arguments)
    try:
        # what only shows something for ever ends with the screen; whatever works does its work without one
        with taken(), nullcontext() if getattr(options, "ends_with_screen", False) else steady():
            return int(options.command(options, arguments))
    except LauncherError as error:
        _say(error)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return EXIT_FAILED


def _say(error: LauncherError) -> None:
    """Prints what is wrong, once: every rank finds the same mistakes, or that there is nothing to do."""
    from launcher.recipe.secrets import masked  # loads yaml, which `launcher --help` does not need

    text = masked(str(error))
    if error.exit_code == EXIT_FAILED or is_spokesman():
        print(text, file=sys.stderr)
    elif error.exit_code == EXIT_USAGE:
        time.sleep(_SPOKESMAN_SECONDS)  # where rank 0 finds it too, srun or the agent ends this process meanwhile
        print(f"{name_of_rank()}: {text}", file=getattr(sys.stderr, "unprefixed", sys.stderr))


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The options; overrides may stand behind flags too, where argparse does not look for them."""
    top = parser()
    is_submit = arguments[:1] == ["submit"]
    sbatch = arguments.index("--") if is_submit and "--" in arguments else None
    ours = arguments[:sbatch]  # what stands behind -- is sbatch's
    script = submit.start_of_script(ours) if is_submit else None
    options, rest = top.parse_known_args(ours[:script])
    strange = [argument for argument in rest if argument.startswith("-") or not hasattr(options, "overrides")]
    if strange:
        top.error(f"unrecognized arguments: {' '.join(strange)}")
    if rest:
        options.overrides = [*options.overrides, *rest]
    if script is not None:
        options.overrides = ours[script:]
    elif getattr(options, "base", None):
        options.overrides = [*(f"base={path}" for path in options.base), *options.overrides]
    return options


def parser() -> argparse.ArgumentParser:
    """All commands with their flags."""
    top = Parser(
        prog="launcher",
        description="Train a PyTorch model from a YAML recipe, on a CPU, a GPU, or many.",
        epilog="Start with: launcher copy digits_cnn && launcher train digits_cnn.yaml",
    )
    top.add_argument("--version", action="version", version=f"launcher {__version__}")
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add(commands)
    return top
