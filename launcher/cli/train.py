"""`launcher train` and `launcher resume`."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.cli.arguments import (
    RUN_NAMES,
    STARTED_HERE,
    add_output,
    add_processes,
    add_recipe,
    check_started,
    duration,
    read_recipe,
    say_own_code,
    span,
    work_in,
)
from launcher.errors import EXIT_DONE, EXIT_FAILED, EXIT_PREEMPTED, UsageError
from launcher.world.loading import loading

if TYPE_CHECKING:
    from launcher.cli.arguments import Commands
    from launcher.recipe.schema import Recipe
    from launcher.runs.reading import Run
    from launcher.world.world import World


def add(commands: Commands) -> None:
    """Says the commands' flags."""
    train = commands.add_parser(
        "train",
        help="train a recipe",
        description="Train a recipe: on every GPU of this machine, or on the CPU.",
    )
    add_recipe(train)
    _add_where(train)
    train.add_argument(
        "--run-dir",
        metavar="DIR",
        help="the run's folder (default: runs/NAME/DATE); resumed if it holds a checkpoint",
    )
    train.add_argument(
        "--resume",
        action="store_true",
        help="resume the newest unfinished run of this recipe, or start one: safe in every script",
    )
    _add_until(train)
    _add_changes(train)
    _add_debugging(train)
    add_output(train)
    train.set_defaults(command=_train, listens=True, start=None)
    resume = commands.add_parser(
        "resume",
        help="resume a run",
        description="Resume a run: the command that started it, from its newest checkpoint.",
    )
    resume.add_argument("run_dir", metavar="RUN", help=RUN_NAMES)
    resume.add_argument("overrides", nargs="*", default=[], metavar="KEY=VALUE", help="further changes to the recipe")
    resume.add_argument(
        "--from",
        dest="start",
        metavar="best|STEP",
        help="resume from this checkpoint; the next save discards those after it",
    )
    _add_where(resume)
    _add_until(resume)
    _add_changes(resume)
    add_output(resume)
    resume.set_defaults(
        command=_resume, listens=True, resume=False, one_batch=False, debug=False, pdb=False, profile=None
    )


def _add_where(command: argparse.ArgumentParser) -> None:
    add_processes(command, processes="default: launch.processes", nodes="default: launch.nodes")
    command.add_argument(
        "--max-restarts",
        type=int,
        metavar="N",
        help="restart all processes from the last checkpoint at most N times after a failure "
        "(default: launch.max_restarts)",
    )


def _add_until(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--until",
        type=duration,
        metavar="LENGTH",
        help="train so far only, as in '500 steps' or 25%%, evaluate, save and end; `launcher resume` continues",
    )


def _add_changes(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--allow-changes",
        action="append",
        default=[],
        metavar="KEY",
        help="a key of the recipe that may differ from the resumed run's, as in optimizer.lr",
    )


def _add_debugging(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--one-batch",
        action="store_true",
        help="train on the first batch only, say whether it was memorized, and write nothing",
    )
    command.add_argument(
        "--debug",
        action="store_true",
        help="find where a gradient is not finite, and where a GPU or DDP goes wrong: slow, with tracebacks that fit",
    )
    command.add_argument(
        "--profile", type=span, metavar="A:B", help="torch's trace of steps A to B-1, and a table of where a step goes"
    )
    command.add_argument("--pdb", action="store_true", help="Python's debugger where it fails; one process only")


def _train(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    from launcher.world.signals import listening, release
    from launcher.world.world import World

    world = World.from_environ()
    if not world.is_launched:
        release()  # nothing has begun, and nobody would hear that it is to be continued
    if options.one_batch and (options.processes or 1) > 1:
        raise UsageError(f"--processes {options.processes}: --one-batch needs one process; omit --processes")
    recipe = None
    if not (world.is_launched or options.one_batch):
        recipe = read_recipe(options)
        say_own_code(recipe, output=options.output, width=10)
        if (code := _supervised(recipe, options, arguments, world)) is not None:
            return code
    with listening():  # from here on being asked to stop means to save first
        return _train_here(recipe, options, arguments, world)


def _supervised(recipe: Recipe, options: argparse.Namespace, arguments: Sequence[str], world: World) -> int | None:
    """The exit code of several processes, started and waited for; None where one is enough."""
    from launcher.launch.nodes import Nodes
    from launcher.launch.supervisor import Supervisor, choose_processes

    restarts = recipe.launch.max_restarts if options.max_restarts is None else max(0, options.max_restarts)
    nodes = Nodes.parse(options.nodes or recipe.launch.nodes, options.node_rank, options.master, restarts)
    cpu = options.cpu or world.wants_cpu
    processes = choose_processes(options.processes or recipe.launch.processes, cpu, nodes.count)
    if processes * nodes.count == 1 and not restarts:
        return None
    from launcher.runs.folder import STATUS_FILE, Choice, discard, read_json
    from launcher.runs.identity import identity_of
    from launcher.runs.lock import check_free

    choice = Choice(recipe.name, options.run_dir, options.resume, identity_of(recipe))
    folder = choice.folder()
    if nodes.rank == 0:  # which alone can tell a process of rank 0's machine that has died from one that lives
        check_free(folder, world.job)
    again = shlex.join(["launcher", *arguments])

    def tidy(code: int) -> None:
        if code != EXIT_FAILED:
            discard(ranks.folder)
        for place in (ranks.folder, folder):  # the first machine's, and the one that this would have chosen
            choice.forget(place)  # where nothing is in it

    ranks = Supervisor(
        processes=processes,
        cpu=options.cpu,
        threads=recipe.launch.threads,
        folder=folder,
        again=again,
        resume=_flags(options),
        nodes=nodes,
        max_restarts=restarts,
        interface=recipe.launch.interface,
        meeting_seconds=recipe.launch.meeting_timeout.amount,
        tidy=tidy,
    )
    code = ranks.run("launcher", *arguments)
    is_stopped = code == EXIT_DONE and read_json(ranks.folder / STATUS_FILE).get("state") == "stopped"
    return EXIT_PREEMPTED if is_stopped else code


def _flags(options: argparse.Namespace) -> list[str]:
    """What decides where a run is started, to be repeated when it is resumed."""
    flags = ["--cpu"] * options.cpu
    for name in STARTED_HERE:
        if (value := getattr(options, name)) is not None:
            flags += [f"--{name.replace('_', '-')}", str(value)]
    return flags


def _train_here(recipe: Recipe | None, options: argparse.Namespace, arguments: Sequence[str], world: World) -> int:
    if options.debug:
        # read when CUDA and the process group begin: before torch does anything. Not DETAIL: with it DDP over gloo dies
        # of SIGSEGV (torch 2.13)
        os.environ.update(CUDA_LAUNCH_BLOCKING="1", TORCH_DISTRIBUTED_DEBUG="INFO", TORCH_SHOW_CPP_STACKTRACES="1")
    if options.pdb and world.size > 1:
        raise UsageError("--pdb: a debugger has one terminal for one process; add --processes 1")
    from launcher.launch.postmortem import post_mortem, watched
    from launcher.launch.slurm.requeue import stop_in_time
    from launcher.world.peers import mistakes_told

    if options.run_dir is not None and world.is_first:
        stop_in_time(Path(options.run_dir))
    again = shlex.join(["launcher", *arguments])
    with (
        watched(world, again, post_mortem if options.pdb else None),
        mistakes_told(world, options.run_dir),
    ):
        return _train_as_rank(recipe, options, arguments, world)
    raise AssertionError


def _train_as_rank(recipe: Recipe | None, options: argparse.Namespace, arguments: Sequence[str], world: World) -> int:
    check_started(options, world)
    if recipe is None:
        recipe = read_recipe(options)
    if world.is_first and world.supervisor is None and (world.is_launched or options.one_batch):
        say_own_code(recipe, output=options.output, width=10)  # else it was printed before this process was started
    with loading():
        from launcher.run import run
        from launcher.runs.options import Options

    if options.debug:
        import torch

        torch.autograd.set_detect_anomaly(True)
    asked_for = Options(
        cpu=options.cpu,
        run_dir=options.run_dir,
        resume=options.resume,
        start=options.start,
        until=options.until,
        allow=tuple(options.allow),
        allow_changes=tuple(options.allow_changes),
        output=options.output,
        profile=options.profile,
        how=_how(options, arguments),
    )
    if options.one_batch:
        from launcher.checks.one_batch import overfit

        return EXIT_DONE if overfit(recipe, world, asked_for, print if world.is_first else _hush) else EXIT_FAILED
    result = run(recipe, world, asked_for)
    if result.state != "stopped":
        return EXIT_DONE
    from launcher.world.peers import code_of_a_stop

    return code_of_a_stop(world)


def _hush(_: str) -> None:
    """What ranks other than 0 say."""


def _how(options: argparse.Namespace, arguments: Sequence[str]) -> dict[str, Any]:
    """What `launcher resume` needs to do the same again."""
    return {
        "command": ["launcher", *arguments],
        "recipe": os.path.abspath(options.recipe),
        "overrides": list(options.overrides),
        "remove": list(options.remove),
        "allow": list(options.allow),
        "cpu": options.cpu,
        "asked_processes": options.processes,  # beside how many there were
    }


def _resubmitted(folder: Path, options: argparse.Namespace) -> bool:
    """Queues the job of a run again that was submitted; not inside a job, and not where flags say to train here.

    Raises:
        UsageError: Its job is in the queue, or something is asked for that the job's script does not say.
    """
    from launcher.launch.slurm.requeue import go_on
    from launcher.runs.job import Submission
    from launcher.world import slurm
    from launcher.world.world import World

    submission = Submission.read(folder)
    tasks = [] if submission.script else _tasks_in(folder)
    is_here = options.cpu or options.processes or World.from_environ().job is not None
    if is_here or not (submission.script or tasks):
        return False
    if options.overrides or options.start or options.allow_changes:
        raise UsageError(
            f"{options.run_dir}: a submitted job is resumed as it was; to change it, `launcher submit … --run-dir "
            f"{options.run_dir}`, or resume here with --cpu or --processes"
        )
    if tasks:
        _go_on_with(tasks, options.run_dir)
        return True
    if (entry := slurm.queue().get(submission.job)) is not None:
        raise UsageError(f"{options.run_dir}: job {submission.job} is {entry.state.lower()} already")
    print(f"job {go_on(folder, submission)} resumes {options.run_dir}")
    return True


def _tasks_in(folder: Path) -> list[Run]:
    """The runs of the job array that was submitted into this folder."""
    from launcher.runs.job import Submission
    from launcher.runs.reading import find_runs

    def is_of_it(submission: Submission) -> bool:
        return submission.task is not None and Path(submission.script).parent == folder

    return [run for run in find_runs(folder) if is_of_it(Submission.read(run.folder))]


def _go_on_with(tasks: Sequence[Run], name: str) -> None:
    """Queues those tasks of an array again that are neither finished nor in the queue.

    Raises:
        UsageError: There are none.
    """
    from launcher.launch.slurm.requeue import go_on_with_tasks
    from launcher.runs.job import Submission
    from launcher.world import slurm

    unfinished = [run.folder for run in tasks if run.state != "finished"]
    queue = slurm.queue() if unfinished else {}
    left = [folder for folder in unfinished if Submission.read(folder).job not in queue]
    if not left:
        raise UsageError(f"{name}: of {len(tasks)} tasks {len(unfinished)} are in the queue, the others are finished")
    print(f"job {go_on_with_tasks(left)} resumes {len(left)} of the {len(tasks)} tasks of {name}")


def _folder_of(name: str) -> Path:
    """The folder of the run that a name means, or of the job array in it.

    Raises:
        UsageError: It means none, runs of several recipes, or a sweep.
    """
    from launcher.runs.naming import NamedSweep, is_saved, place_of

    path = Path(name)
    if is_saved(name) or (path.is_dir() and _tasks_in(path)):
        return path.absolute()
    place = place_of(name)
    if isinstance(place, NamedSweep):
        raise UsageError(f"{name} is a sweep's folder: `launcher sweep {place.folder}` resumes it")
    return place.folder.absolute()


def _resume(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    from launcher.runs.folder import ENVIRONMENT_FILE, check_recipe_file, read_json
    from launcher.world.world import World

    folder = _folder_of(options.run_dir)
    how = read_json(folder / ENVIRONMENT_FILE)
    if _resubmitted(folder, options):
        return EXIT_DONE
    if "recipe" not in how:
        what = "was started from Python; make the same call again" if "command" in how else "is not a run's folder"
        raise UsageError(f"{options.run_dir} {what}")
    work_in(how["directory"])
    check_recipe_file(folder, how["recipe"])
    options.run_dir = str(folder)
    options.recipe, options.remove, options.allow = how["recipe"], how["remove"], how["allow"]
    options.overrides = [*how["overrides"], *options.overrides]
    options.cpu = options.cpu or how["cpu"] is True
    world = World.from_environ()
    if world.supervisor is not None or not world.is_launched:  # else torchrun or srun has said how many
        options.processes = options.processes or how.get("asked_processes")
    return _train(options, ["resume", str(folder), *arguments[2:]] if arguments[:1] == ["resume"] else arguments)
