"""`launcher run`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.cli.arguments import STARTED_HERE, add_processes
from launcher.errors import UsageError

if TYPE_CHECKING:
    from launcher.cli.arguments import Commands
    from launcher.world.world import World

_GATHER_SECONDS = 1800.0  # how long tasks of srun may be late, as device.timeout has it


def add(commands: Commands) -> None:
    """Says the command's flags."""
    run = commands.add_parser(
        "run",
        help="run a script of your own on all processes",
        description="Run a script of your own (a GAN, RL, a loop you keep) with the same processes, logs, failure "
        "report and restarts. Flags go before the script; what follows it is the script's.",
    )
    add_processes(run)
    run.add_argument("--max-restarts", type=int, default=0, metavar="N", help="restart at most N times after a crash")
    run.add_argument("--run-dir", metavar="DIR", help="the run's folder (default: runs/SCRIPT/DATE)")
    run.add_argument("script", metavar="SCRIPT.py", help="what to run")
    run.add_argument("arguments", nargs=argparse.REMAINDER, metavar="…", help="the script's own arguments")
    run.set_defaults(command=_run)


def _run(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    import shlex

    from launcher.launch.nodes import Nodes
    from launcher.launch.supervisor import Supervisor, choose_processes
    from launcher.runs.folder import Choice
    from launcher.world.world import RUN_DIR_VARIABLE, World

    if not Path(options.script).is_file():
        raise UsageError(f"{options.script}: there is no such script")
    world, command = World.from_environ(), [options.script, *options.arguments]
    if world.started_by == "srun":
        return _run_as_task(options, command, world, shlex.join(["launcher", *arguments]))
    if world.is_launched:
        raise UsageError(
            f"{world.started_by} has started this process; start the script itself, or `launcher run` alone"
        )
    nodes = Nodes.parse(options.nodes or 1, options.node_rank, options.master, options.max_restarts)
    processes = choose_processes(options.processes, options.cpu, nodes.count)
    folder = Choice(Path(options.script).stem, options.run_dir, resume=False, identity={}).folder()
    again = shlex.join(["launcher", *arguments])
    if options.run_dir is None:
        again = shlex.join(["launcher", "run", f"--run-dir={folder}", *arguments[1:]])
    if processes * nodes.count == 1 and not options.max_restarts:
        from launcher.launch.script import run_script

        os.environ[RUN_DIR_VARIABLE] = str(folder)  # where the script finds it
        return run_script(command, World.from_environ(), again)
    ranks = Supervisor(
        processes, options.cpu, "auto", folder, again, nodes=nodes, max_restarts=max(0, options.max_restarts)
    )
    return ranks.run("launcher.launch.script", *command)


def _run_as_task(options: argparse.Namespace, command: Sequence[str], world: World, again: str) -> int:
    """One of the tasks of srun: it finds the others as under torchrun, by RANK, MASTER_ADDR and the like."""
    from launcher.launch.script import run_script
    from launcher.runs.logs import copied_to, log_of
    from launcher.world.rendezvous import gathered
    from launcher.world.world import RUN_DIR_VARIABLE

    if options.run_dir is None:
        raise UsageError("--run-dir: several tasks of srun must be told one folder; `launcher submit` chooses it")
    if unwanted := [flag for flag in STARTED_HERE if getattr(options, flag)]:
        flag = unwanted[0].replace("_", "-")
        raise UsageError(f"--{flag}: srun has started {world.size} processes; omit --{flag}")
    folder = Path(options.run_dir).absolute()
    os.environ[RUN_DIR_VARIABLE] = str(folder)
    if options.cpu:
        os.environ["ACCELERATE_USE_CPU"] = "true"
    with gathered(world, _GATHER_SECONDS), copied_to(log_of(folder, world.rank)):
        return run_script(command, world, again)
