"""From a plan to a queued job: its folder is made and filled, and only then is it submitted."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from launcher.errors import LauncherError, UsageError
from launcher.launch.slurm.batch_script import SCRIPT_FILE, command_words, printable
from launcher.launch.slurm.code import keep
from launcher.launch.slurm.plan import Plan, plan_of
from launcher.launch.slurm.request import SWEEP
from launcher.launch.slurm.requeue import lasting_words
from launcher.recipe import show
from launcher.recipe.directory import directory
from launcher.recipe.schema import micro_batch
from launcher.runs import folder as runs
from launcher.runs.identity import identity_of
from launcher.runs.job import Submission, mark_submitted, name_job
from launcher.runs.lock import check_free
from launcher.world import slurm
from launcher.world.files import write_text

_PREFLIGHT_TIME = "00:15:00"
_PREFLIGHT = (f'slurm.time="{_PREFLIGHT_TIME}"', 'slurm.signal="1 minute"', "slurm.max_requeues=0")


def submit(plan: Plan, after: str | None = None) -> str:
    """Makes the run's folder and queues the job; gives its number.

    Args:
        plan: The job.
        after: A job that must have ended well before.

    Raises:
        UsageError: sbatch refuses it; no folder is left behind.
    """
    folder = _choose_folder(plan)
    is_new = plan.request.run_dir is None or not folder.exists()
    script = plan.script(folder)
    try:
        with _alone(folder):
            number, count = _queue(plan, folder, script, after)
    except LauncherError as error:
        if is_new:
            _remove(folder)
        if after:
            slurm.cancel([after])
        raise _explained(error, plan) from error
    shown = _shown(folder)
    print(f"{'job':<10} {number}" + (f", {count} tasks" if plan.request.tasks else ""))
    print(f"{'folder':<10} {shown}")
    print(f"{'watch':<10} launcher runs {shown}; launcher logs -f {shown}")
    print(f"{'cancel':<10} launcher cancel {shown}")
    return number


def _queue(plan: Plan, folder: Path, script: str, after: str | None) -> tuple[str, int]:
    """Fills the run's folder and queues the job; gives its number, and how many runs it is."""
    # of an array, each task is a run of its own
    tasks: list[str | None] = [str(number) for number in range(len(plan.request.tasks))] or [None]
    places = [folder if task is None else folder / task for task in tasks]
    _refuse_busy(places)
    options = command_words(plan.asked(folder))
    git = runs.environment({})["git"]
    for place, task, changes in zip(places, tasks, plan.request.tasks or [()], strict=True):
        runs.create(place)
        submission = Submission(
            script=str(folder / SCRIPT_FILE),
            task=task,
            options=options,
            extra=list(plan.request.extra),
            over=Submission.read(place).history,
        )
        mark_submitted(place, submission, is_recipe=plan.recipe is not None)
        _describe(place, plan, changes, git)
    path = _write(folder, plan, script)
    waits = [f"--dependency=afterok:{after}", "--kill-on-invalid-dep=yes"] if after else []
    number = slurm.submit(str(path), [*options, *waits, *plan.request.extra])
    for place, task in zip(places, tasks, strict=True):
        name_job(place, number if task is None else f"{number}_{task}")
    return number, len(places)


def _explained(error: LauncherError, plan: Plan) -> LauncherError:
    """A refusal, with what nobody has said and the launcher has chosen."""
    message = str(error)
    if not message.startswith("sbatch refused"):
        return error
    if plan.heard:
        message += f"; the environment says too: {', '.join(plan.heard)}"
    is_chosen = plan.shape.cpus is not None and not (plan.section.cpus_per_task or plan.site.cpus_per_task)
    if is_chosen and ("CPU count" in message or "configuration" in message):
        message += f"; {plan.shape.cpus} CPUs a process is the launcher's choice: set --cpus-per-task"
    return UsageError(message)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Lets nobody else submit into a folder meanwhile, where the file system knows locks."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise UsageError(f"--run-dir: {folder} cannot be written: {error.strerror or error}") from error
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _refuse_busy(places: Sequence[Path]) -> None:
    """A run has one job at a time.

    Raises:
        UsageError: One of the runs is queued or running.
    """
    jobs = {place: job for place in places if (job := Submission.read(place).job)}
    queue = slurm.queue() if jobs else {}
    for place, job in jobs.items():
        if (entry := queue.get(job)) is not None:
            raise UsageError(
                f"--run-dir: {_shown(place)}: job {job} is {entry.state.lower()} already; `launcher cancel "
                f"{_shown(place)}` ends it, or name another folder"
            )
    for place in places:
        if place in jobs:  # which is over: the lock of its last start binds nobody
            submission = Submission.read(place)
            replace(submission, over=submission.history).write(place)
        check_free(place)


def _describe(place: Path, plan: Plan, words: Sequence[str], git: object) -> None:
    """Keeps what was submitted: the recipe, its values, the code's commit and what differs from it."""
    if was := runs.read_json(place / runs.ENVIRONMENT_FILE):  # a run that is submitted again, with the code of today
        runs.write_json(place / runs.ENVIRONMENT_FILE, {**was, "git": git})
        return
    how: dict[str, object] = {"command": list(plan.request.command)}
    if plan.request.recipe == SWEEP:
        runs.write_json(
            place / runs.ENVIRONMENT_FILE, runs.environment({**how, "sweep": plan.request.overrides[0]}, git)
        )
    elif plan.recipe is None:
        script, *arguments = plan.request.overrides
        how |= {"script": str(Path(script).absolute()), "arguments": [*arguments, *words]}
        runs.write_json(place / runs.ENVIRONMENT_FILE, runs.environment(how, git))
    else:
        recipe = plan.request.read(*words)
        how |= {
            "recipe": str(Path(plan.request.recipe).absolute()),
            "overrides": [*plan.request.overrides, *words],
            "remove": list(plan.request.remove),
            "allow": list(plan.request.allow),
            "cpu": plan.request.cpu,
        }
        runs.describe(place, recipe.document.text, show.render(recipe), runs.environment(how, git))


def _write(folder: Path, plan: Plan, text: str) -> Path:
    """The batch script in its folder, and the code that it runs.

    Raises:
        UsageError: It cannot be written.
    """
    path = folder / SCRIPT_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
        path.chmod(0o755)
    except OSError as error:
        raise UsageError(f"--run-dir: {folder} cannot be written: {error.strerror or error}") from error
    if note := keep(plan.files, folder):
        print(f"{'code':<10} {note}")
    return path


def preflight(plan: Plan) -> str:
    """Queues one step of the run on one node, with micro-batches as large as the run's; gives the job's number.

    Raises:
        UsageError: sbatch refuses it; no folder is left behind.
    """
    recipe = plan.recipe
    if recipe is None or plan.request.tasks:
        raise UsageError("--preflight: goes with one recipe, and not with a script or an array")
    if (batch := recipe.data.global_batch_size) is None:
        raise UsageError("--preflight: a data.batch_sampler chooses batches of any size; try it with --processes 1")
    share = -(-batch // plan.shape.processes)
    micro = min(share, micro_batch(recipe.data) or share)
    request = replace(
        plan.request,
        overrides=(*plan.request.overrides, f"data.micro_batch_size={micro}"),
        section=(*plan.request.section, *_PREFLIGHT),
        nodes=1,
        processes=plan.shape.per_node if plan.shape.gpus is None else None,
        run_dir=None,
    )
    small = plan_of(request, plan.site, plan.source)
    folder = runs.Choice(f"{recipe.name}-preflight", None, False, {}).folder(plan.site.root)
    runs.create(folder)
    script = small.script(folder, once=True)
    # what sbatch was told about nodes and time is for the run alone
    words = [
        *command_words(small.asked(folder)),
        *lasting_words(plan.request.extra),
        "--nodes=1",
        f"--ntasks={small.shape.processes}",
        f"--time={_PREFLIGHT_TIME}",
    ]
    try:
        number = slurm.submit(str(_write(folder, small, script)), words)
    except LauncherError as error:
        _remove(folder)
        raise _explained(error, small) from error
    print(f"{'preflight':<10} job {number}, one step on one node; the run waits for it. {_shown(folder)}")
    return number


def _choose_folder(plan: Plan) -> Path:
    identity = identity_of(plan.recipe) if plan.recipe is not None else {}
    folder = runs.Choice(plan.name, plan.request.run_dir, False, identity).folder(plan.site.root)
    printable(str(folder))
    return folder


def _shown(folder: Path) -> str:
    try:
        return str(folder.relative_to(directory()))
    except ValueError:
        return str(folder)


def _remove(folder: Path) -> None:
    """Takes away what was made for a job that was refused, and folders above it that hold nothing else."""
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        folder.parent.rmdir()
        folder.parent.parent.rmdir()
