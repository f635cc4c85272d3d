"""`launcher submit`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.cli.arguments import add_recipe, positive, say_own_code, tasks_of
from launcher.errors import EXIT_DONE, UsageError

if TYPE_CHECKING:
    from launcher.cli.arguments import Commands

_SECTION = {  # flags that are keys of the recipe's slurm section
    "time": ("TIME", "time limit, as in 02:00:00 or 1-12"),
    "partition": ("NAME", "the queue"),
    "account": ("NAME", "who pays"),
    "gpus_per_node": ("G", "GPUs of a node, as in 4 or h100:4"),
    "cpus_per_task": ("C", "CPUs of a process"),
    "mem": ("SIZE", "memory of a node, as in 64G"),
    "max_requeues": ("N", "how many times the job may requeue itself"),
    "signal": ("DURATION", "how long before the limit to save, as in '2 minutes'"),
}


def add(commands: Commands) -> None:
    """Says the command's flags."""
    submit = commands.add_parser(
        "submit",
        help="queue a run on a SLURM cluster",
        description="Queue a run as a SLURM job that survives its time limit, preemption and lost nodes. Words behind "
        "-- go to sbatch. `launcher submit … run SCRIPT.py` queues a script of your own, `launcher submit --nodes N … "
        "sweep RECIPE …` an array of N jobs that work on one sweep together.",
    )
    add_recipe(submit)
    submit.add_argument("--nodes", type=positive, metavar="N", help="how many machines (default: launch.nodes)")
    submit.add_argument("--cpu", action="store_true", help="train on CPUs")
    submit.add_argument(
        "--processes", type=positive, metavar="P", help="with --cpu: how many processes, over all nodes"
    )
    for name, (metavar, text) in _SECTION.items():
        submit.add_argument(f"--{name.replace('_', '-')}", metavar=metavar, help=f"{text} (slurm.{name})")
    submit.add_argument("--run-dir", metavar="DIR", help="the run's folder (default: runs/NAME/DATE)")
    submit.add_argument("--array-file", metavar="FILE", help="a task for each line, which holds its KEY=VALUE changes")
    submit.add_argument("--preflight", action="store_true", help="first a job of one step on one node; the other waits")
    submit.add_argument("--dry-run", action="store_true", help="print the script, queue nothing")
    submit.set_defaults(command=_submit)


_SWITCHES = ("--cpu", "--preflight", "--dry-run")
_WITH_VALUE = ("nodes", "processes", "run-dir", "array-file", "remove", "allow", *_SECTION)


def start_of_script(arguments: Sequence[str]) -> int | None:
    """Where the script of `submit … run SCRIPT.py …` stands, or what `sweep` is given: it and all behind are not ours.

    Args:
        arguments: What was typed, `submit` first.

    Returns:
        None where the first word that is not a flag, nor a flag's value, is a recipe.
    """
    flags, number = [f"--{name.replace('_', '-')}" for name in _WITH_VALUE], 1
    while number < len(arguments) and arguments[number].startswith("-"):
        word = arguments[number]
        has_value = word not in _SWITCHES and any(flag.startswith(word) for flag in flags)  # argparse takes beginnings
        number += 2 if has_value else 1
    return number + 1 if arguments[number : number + 1] in (["run"], ["sweep"]) else None


def _submit(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    from launcher.launch.slurm.plan import describe, plan_of
    from launcher.launch.slurm.request import Request
    from launcher.launch.slurm.submission import preflight, submit
    from launcher.world.site import read_site

    extra = list(arguments[arguments.index("--") + 1 :]) if "--" in arguments else []
    site, source = read_site()
    if options.recipe == "sweep":
        return _submit_sweep(options, arguments, extra)
    request = Request(
        recipe=options.recipe,
        overrides=tuple(options.overrides),
        remove=tuple(options.remove),
        allow=tuple(options.allow),
        section=tuple(_section(options)),
        nodes=options.nodes,
        cpu=options.cpu,
        processes=options.processes,
        run_dir=options.run_dir,
        tasks=tasks_of(options.array_file, options.overrides),
        extra=tuple(extra),
        command=("launcher", *arguments),
    )
    output = "json" if options.dry_run else "auto"  # then standard output is the script's
    say_own_code(*request.recipes(site), output=output, width=10)
    plan = plan_of(request, site, source)
    if options.dry_run:
        for label, text in describe(plan):
            print(f"{label:<10} {text}", file=sys.stderr)  # the script alone is for a file
        sys.stdout.write(plan.script(Path("RUN") if plan.folder is None else plan.folder))
        return EXIT_DONE
    for label, text in describe(plan):
        print(f"{label:<10} {text}")
    if "--test-only" in extra:
        print(f"{'start':<10} {plan.test_only()}")
        return EXIT_DONE
    first = preflight(plan) if options.preflight else None
    submit(plan, first)
    return EXIT_DONE


def _submit_sweep(options: argparse.Namespace, arguments: Sequence[str], extra: Sequence[str]) -> int:
    """Begins a sweep, or finds the one that there is, and queues an array of participants.

    Each is a job of one node, all of whose GPUs it uses.
    """
    from launcher.cli.sweep import Machines, begun
    from launcher.launch.slurm.plan import describe, plan_of
    from launcher.launch.slurm.request import SWEEP, Request
    from launcher.launch.slurm.submission import submit
    from launcher.world import slurm
    from launcher.world.site import read_site

    if options.preflight or options.array_file or options.processes or options.run_dir:
        raise UsageError(
            "launcher submit … sweep: --preflight, --array-file, --processes and --run-dir are of one run; behind "
            "`sweep` there are --parallel, --processes-per-run and --run-dir"
        )
    site, source = read_site()
    nodes = options.nodes or 1
    gpus = 0 if options.cpu else slurm.gpu_count(options.gpus_per_node or site.gpus_per_node or "1")
    cpus = int(options.cpus_per_task or site.cpus_per_task or 1)
    folder, parallel = begun(options.overrides, Machines(nodes, gpus, cpus), site.root, dry=options.dry_run)
    request = Request(
        recipe=SWEEP,
        overrides=(str(folder), *(("--parallel", str(parallel)) if parallel else ())),
        section=tuple(_section(options)),
        nodes=1,
        cpu=options.cpu,
        run_dir=str(folder / "jobs"),
        tasks=((),) * nodes,
        extra=tuple(extra),
        command=("launcher", *arguments),
    )
    plan = plan_of(request, site, source)
    for label, text in describe(plan):
        print(f"{label:<10} {text}", file=sys.stderr if options.dry_run else sys.stdout)
    if options.dry_run:
        sys.stdout.write(plan.script(folder / "jobs"))
    else:
        submit(plan)
    return EXIT_DONE


def _section(options: argparse.Namespace) -> list[str]:
    """The flags of the slurm section as changes to the recipe, where they are checked like all others."""
    given = {name: value for name in _SECTION if (value := getattr(options, name)) is not None}
    numbers = ("gpus_per_node", "cpus_per_task", "max_requeues")
    return [
        f"slurm.{name}={value if name in numbers and value.isdigit() else json.dumps(value)}"
        for name, value in given.items()
    ]
