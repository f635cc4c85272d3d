"""What `evaluate`, `predict` and `export` share: what was saved is found, and several processes may work on it."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.cli.arguments import add_processes, check_started, say_own_code, work_in
from launcher.errors import LauncherError
from launcher.world.loading import loading
from launcher.world.world import World

if TYPE_CHECKING:
    from launcher.checkpoints.saved_run import Saved

SHARDABLE = "--processes N shards it"
Work = Callable[[World], int]  # as one process of a world; gives the exit code


def add_saved_processes(command: argparse.ArgumentParser) -> None:
    """`--cpu`, `--processes` and the machines that they are on: one process where nothing is said."""
    add_processes(command, processes="default: 1; a model that was trained sharded is sharded over them")


def in_processes(
    options: argparse.Namespace,
    arguments: Sequence[str],
    work: Work,
    before: Callable[[Path], None] = lambda folder: None,
) -> int:
    """Does something in as many processes as were asked for, or as one of those that somebody has started.

    Args:
        options: Flags of `add_saved_processes`.
        arguments: The command, which each process is started with.
        work: What is done.
        before: Called before processes are started, with the folder that they know as `World.run_dir`.

    Returns:
        The exit code.
    """
    from launcher.launch.postmortem import watched

    world, again = World.from_environ(), shlex.join(["launcher", *arguments])
    check_started(options, world)
    if not world.is_launched:
        from launcher.launch.nodes import Nodes
        from launcher.launch.supervisor import Supervisor, choose_processes
        from launcher.world.temporary import temporary_folder

        nodes = Nodes.parse(options.nodes or 1, options.node_rank, options.master)
        if (asked := options.processes or nodes.count) > 1:
            processes = choose_processes(asked, options.cpu or world.wants_cpu, nodes.count)
            with temporary_folder() as folder:  # for what the ranks say of themselves
                before(folder)
                ranks = Supervisor(processes, options.cpu, "auto", folder, again, nodes=nodes, is_temporary=True)
                return ranks.run("launcher", *arguments)
    with watched(world, again):
        try:
            return work(world)
        except LauncherError as error:
            if world.is_launched:
                raise
            fault = error  # of one process it is told in a line
    raise fault


def found(
    options: argparse.Namespace,
    world: World,
    overrides: Sequence[str] = (),
    *,
    quiet: bool = False,
    whole: str = SHARDABLE,
) -> Saved:
    """What a command works on; this process is one of the run's directory from here on.

    Args:
        options: `path`, and where a command has them `recipe`, `overrides`, `remove` and `allow`.
        world: The processes.
        overrides: Further changes to the recipe.
        quiet: Whether standard output is kept for something else.
        whole: What to say where one process holds a model that was trained sharded.
    """
    from dataclasses import replace

    with loading():
        from launcher.checkpoints.saved_run import find_saved
        from launcher.sweep.naming import saved_place

    stated = argparse.Namespace(**{"recipe": None, "overrides": (), "remove": (), "allow": (), **vars(options)})
    changes = [*stated.overrides, *overrides]
    saved = find_saved(saved_place(stated.path), stated.recipe, changes, stated.remove)
    work_in(saved.directory)
    if world.is_first:
        say_own_code(saved.recipe, output="json" if quiet else "auto")
    if world.size == 1 and (sharding := saved.recipe.device.sharding) != "none":
        note = f"{'note':<12} device.sharding is {sharding}, and one process holds the model whole here; {whole}"
        print(note, file=sys.stderr if quiet else sys.stdout, flush=True)
    return replace(saved, allow=(*saved.allow, *stated.allow))
