"""`launcher train`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from launcher.commands.arguments import add_output, add_recipe, positive, read_recipe
from launcher.errors import EXIT_DONE, EXIT_PREEMPTED, UsageError

if TYPE_CHECKING:
    from launcher.commands.arguments import Commands


def add(commands: Commands) -> None:
    """Says the command's flags."""
    train = commands.add_parser(
        "train",
        help="train what a recipe says",
        description="Train what a recipe says: on every GPU of this machine, or on the CPU.",
    )
    add_recipe(train)
    train.add_argument("--cpu", action="store_true", help="stay on the CPU though there may be a GPU")
    train.add_argument("--processes", type=positive, metavar="N", help="how many processes (default: launch.processes)")
    train.add_argument(
        "--run-dir",
        metavar="DIR",
        help="the run's folder (default: runs/NAME/DATE); resumed if it holds a checkpoint",
    )
    add_output(train)
    train.set_defaults(command=_train)


def _train(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    from launcher.launch.world import World

    world = World.from_environ()
    if world.is_launched and options.processes not in (None, world.size):
        raise UsageError(
            f"--processes {options.processes}: {world.started_by} has started {world.size}; leave --processes away, "
            "or start with `launcher train` alone"
        )
    recipe = read_recipe(options)
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
