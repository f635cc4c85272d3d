"""From a recipe and a few flags to a queued job: checked, planned, rendered, and only then submitted."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from launcher.errors import EXIT_DONE, EXIT_USAGE, LauncherError, Problem, RecipeError, UsageError
from launcher.launch.slurm.batch_script import (
    SCRIPT_FILE,
    Job,
    Value,
    command_words,
    expanded,
    printable,
    quoted,
    render,
)
from launcher.launch.slurm.code import keep, kept_at
from launcher.launch.slurm.requeue import lasting_words
from launcher.recipe import show
from launcher.recipe.consistency import too_short
from launcher.recipe.directory import directory
from launcher.recipe.load import load_recipe
from launcher.recipe.schema import Recipe, Slurm
from launcher.recipe.secrets import holds_secret, is_secret_key
from launcher.runs import folder as runs
from launcher.runs.identity import identity_of
from launcher.runs.job import Submission, mark_submitted, name_job
from launcher.runs.lock import check_free
from launcher.text import brief
from launcher.world import slurm
from launcher.world.files import write_text
from launcher.world.site import Site, in_recipe
from launcher.world.world import (
    FAULTS_VARIABLE,
    GPUS_VARIABLE,
    MASTER_VARIABLE,
    UNHEARD,
    job_environment,
    sbatch_variables,
    user_variable,
)

OWN_SCRIPT = "run"  # in place of a recipe
_OF_THE_JOB = ("launch", "launch.processes", "launch.nodes", "launch.max_restarts")
_PREFLIGHT_TIME = "00:15:00"
_PREFLIGHT = (f'slurm.time="{_PREFLIGHT_TIME}"', 'slurm.signal="1 minute"', "slurm.max_requeues=0")
_CHECK_SECONDS = 60  # a login node is everybody's
_ONE_STEP = {FAULTS_VARIABLE: "term@step:1"}  # asked to stop after it, it saves as on any other day


@dataclass(frozen=True)
class Request:
    """What the command line asks for.

    Attributes:
        recipe: The YAML file; `run` for a script of one's own.
        overrides: Changes to the recipe; of a script, its name and arguments.
        remove: Keys taken out of the recipe.
        allow: Further packages that it may name.
        section: Changes to its slurm section, from flags.
        nodes: How many machines, if said.
        cpu: Whether to stay on the CPU.
        processes: How many, on CPUs.
        run_dir: The run's folder, if said.
        extra: Further words for sbatch.
        tasks: The changes of each task of an array.
        command: What was typed.
    """

    recipe: str
    overrides: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    section: tuple[str, ...] = ()
    nodes: int | None = None
    cpu: bool = False
    processes: int | None = None
    run_dir: str | None = None
    extra: tuple[str, ...] = ()
    tasks: tuple[tuple[str, ...], ...] = ()
    command: tuple[str, ...] = ()

    def plan(self, site: Site, source: str) -> Plan:
        """Checks it for the world that it asks for, and decides all that was left open.

        Args:
            site: The site file.
            source: Where that is; empty where there is none.

        Raises:
            RecipeError: The recipe is wrong.
            UsageError: The request is, or what the recipe names, or the cluster does not offer that.
        """
        if self.processes is not None and not self.cpu:
            raise UsageError("--processes goes with --cpu; on GPUs there is one process for each: --gpus-per-node")
        recipe = None
        if self.recipe == OWN_SCRIPT:
            section = self._script_section()
        else:
            recipe = self.read()
            section = recipe.slurm
        shape = _shape(self, recipe, section, site)
        _check_tasks(self.tasks)
        _refuse_secrets(self, site)
        if recipe is not None:
            world = (f"launch.processes={shape.processes}", f"launch.nodes={shape.nodes}")
            for words in self.tasks or ((),):  # again, for the world that it will have
                self.read(*words, *world)
            self._check_components(world)
        plan = Plan(self, recipe, section, shape, site, source)
        _check_words(plan)
        return plan

    def _script_section(self) -> Slurm:
        """What flags ask for, for a script of one's own.

        Raises:
            UsageError: There is no such script, or a flag goes with recipes only.
            RecipeError: A flag's value is wrong.
        """
        if not self.overrides or not Path(self.overrides[0]).is_file():
            raise UsageError("launcher submit … run SCRIPT.py: name a script that exists; flags stand before `run`")
        if self.remove or self.allow:
            raise UsageError("--remove, --allow: go with a recipe; what stands behind a script is the script's")
        changes = (change.removeprefix("slurm.").partition("=") for change in self.section)
        try:
            return Slurm.model_validate({name: json.loads(value) for name, _, value in changes})
        except ValidationError as error:
            raise RecipeError(_flag_problem(detail) for detail in error.errors()) from error

    def read(self, *more: str) -> Recipe:
        """The recipe with all changes, and further ones.

        Raises:
            RecipeError: It is wrong.
        """
        return load_recipe(self.recipe, [*self.overrides, *self.section, *more], self.remove)

    def _check_components(self, world: Sequence[str]) -> None:
        """Imports what the recipe names, in a child of one thread; where that takes too long it is left to the job.

        Raises:
            UsageError: A component does not fit, in the words of `check`.
        """
        flags = [
            "--components",
            *(f"--remove={key}" for key in self.remove),
            *(f"--allow={package}" for package in self.allow),
        ]
        arguments = [self.recipe, *self.overrides, *self.section, *world, *flags]
        with tempfile.NamedTemporaryFile("w", encoding="utf-8") as file:
            if self.tasks:  # as they were read: the file may have been a pipe
                file.write("".join(f"{shlex.join(changes)}\n" for changes in self.tasks))
                file.flush()
                arguments.append(f"--array-file={file.name}")
            _check_in_child(arguments)


def _check_in_child(arguments: Sequence[str]) -> None:
    """Runs `check`; that it gave no answer in time is said on the error output.

    Raises:
        UsageError: It found mistakes.
    """
    command = [job_python(), "-m", "launcher", "check", *arguments]
    environment = {**job_environment(), "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_CHECK_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        reason = f"importing what the recipe names took more than {_CHECK_SECONDS} s"
    else:
        if done.returncode == EXIT_DONE:
            return
        if done.returncode == EXIT_USAGE:
            raise UsageError(done.stderr.rstrip("\n"))
        reason = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
    print(f"{'components':<10} not checked: {brief(reason)}; the job will", file=sys.stderr)


def _check_tasks(tasks: Sequence[Sequence[str]]) -> None:
    """What a task of an array changes is read inside the job: it cannot say what the job asks for.

    Raises:
        UsageError: One says so.
    """
    for word in (word for words in tasks for word in words):
        key = word.partition("=")[0]
        if key.partition(".")[0] == "slurm" or key in _OF_THE_JOB:
            raise UsageError(
                f"--array-file: {key}: all tasks of an array are one job and ask for the same; say it on the command "
                "line, or submit two arrays"
            )


def _refuse_secrets(request: Request, site: Site) -> None:
    """What is typed is written into the script and the run's folder, for everybody to read.

    Raises:
        UsageError: Something looks like a secret; it is not repeated.
    """
    is_script = request.recipe == OWN_SCRIPT  # a recipe's changes are judged when they are read
    typed = {
        "behind --": request.extra,
        "run SCRIPT.py": [word for words in (request.overrides, *request.tasks) for word in words] if is_script else [],
        "site file: environment": [f"{name}={value}" for name, value in site.environment.items()],
    }
    for where, words in typed.items():
        for word, follower in itertools.pairwise([*words, ""]):
            is_named = word.startswith("-") and is_secret_key(word.lstrip("-")) and follower
            if is_named or holds_secret(word):
                raise UsageError(
                    f"{where}: a word looks like a secret, and would be written into the job's script; set it in the "
                    "environment, which the job inherits"
                )


@dataclass(frozen=True)
class Shape:
    """What a job asks the cluster for.

    Attributes:
        nodes: How many machines.
        processes: Over all of them.
        gpus: Of each node, as in `4` or `h100:4`; None on CPUs.
        cpus: Of each process; None for the cluster's default.
        counted_by: The option that asks for the GPUs: `gpus-per-node`, a `gres` that was stated, or none, where SLURM
            counts none and whole nodes are asked for.
    """

    nodes: int
    processes: int
    gpus: str | None
    cpus: int | None
    counted_by: str = "gpus-per-node"

    @property
    def per_node(self) -> int:
        """Processes of a node, at most."""
        return -(-self.processes // self.nodes)


@dataclass(frozen=True)
class Plan:
    """A job as it will be queued."""

    request: Request
    recipe: Recipe | None
    section: Slurm
    shape: Shape
    site: Site
    source: str

    @property
    def name(self) -> str:
        """Of the run, and of its job."""
        return self.recipe.name if self.recipe is not None else Path(self.request.overrides[0]).stem

    @property
    def folder(self) -> Path | None:
        """The folder that was asked for."""
        return None if self.request.run_dir is None else Path(self.request.run_dir).absolute()

    @property
    def options(self) -> dict[str, Value]:
        """What sbatch is asked for, by full names with dashes, without the files of a run."""
        shape, section, site = self.shape, self.section, self.site
        ntasks: dict[str, Value] = {"ntasks-per-node": shape.per_node}
        if shape.processes != shape.per_node * shape.nodes:
            ntasks = {"ntasks": shape.processes, **ntasks}
        settings = {
            "partition": section.partition or site.partition,
            "account": section.account or site.account,
            "time": section.time,
            "gpus-per-node": shape.gpus if shape.counted_by == "gpus-per-node" else None,
            "exclusive": None if shape.counted_by else True,
            "cpus-per-task": shape.cpus,
            "mem": section.mem,
        }
        return {
            "job-name": self.name,
            "nodes": shape.nodes,
            **ntasks,
            **{name: value for name, value in settings.items() if value is not None},
            "signal": f"USR2@{self.signal_seconds}",
            "requeue" if site.requeue else "no-requeue": True,
            "open-mode": "append",
            "export": "ALL",
            **self._further,
        }

    @property
    def _further(self) -> dict[str, Value]:
        """Options of sbatch that the site file and the recipe state."""
        stated = {**self.site.options, **(self.section.__pydantic_extra__ or {})}
        return {name.replace("_", "-"): value for name, value in stated.items()}

    @property
    def heard(self) -> dict[str, str]:
        """The `SBATCH_*` variables that say what nobody else does, and so will count."""
        stated = {_SAME.get(name, name) for name in (*self.options, *_OF_A_RUN)}
        return {name: value for name, value in sbatch_variables().items() if _option_of(name) not in stated}

    def effective(self, name: str, short: str = "") -> str | None:
        """An option's value as sbatch will hear it: typed behind --, stated, or from the environment."""
        if typed := _typed(self.request.extra, name, short):
            return typed[-1]
        stated = self.options.get(name)
        from_environment = (value for variable, value in self.heard.items() if _option_of(variable) == name)
        return next(from_environment, None) if stated is None else str(stated)

    @property
    def signal_seconds(self) -> int:
        """How long before the limit the job is asked to save."""
        return max(1, round(self.section.signal.amount))

    @property
    def files(self) -> list[Path]:
        """What it runs, a recipe's bases with it: kept in the run's folder, so that no edit reaches a waiting job."""
        named = self.recipe.document.files if self.recipe is not None else [Path(self.request.overrides[0])]
        return [Path(os.path.abspath(file)) for file in named]

    def asked(self, folder: Path) -> dict[str, Value]:
        """What sbatch is asked for, with the files of a run.

        Raises:
            UsageError: sbatch would read something else in the folder's name.
        """
        if any(mark in str(folder) for mark in '%\\"'):
            raise UsageError(
                f"--run-dir: {folder} holds a '%', a backslash or a quotation mark, which sbatch reads itself"
            )
        tasks = len(self.request.tasks)
        log = f"{folder}/" + ("%a/logs/slurm-%A_%a.out" if tasks else "logs/slurm-%j.out")
        array: dict[str, Value] = {"array": f"0-{tasks - 1}"} if tasks else {}
        return {**self.options, **array, "output": log, "error": log, "chdir": str(directory())}

    def script(self, folder: Path, once: bool = False) -> str:
        """The batch script for a run's folder.

        Args:
            folder: The run's.
            once: Whether one step is all that is wanted.

        Raises:
            UsageError: A value cannot be written in one.
        """
        request, site = self.request, self.site
        job = Job(
            head=[f"{self.name}: {self._world()}. Written by: {shlex.join(request.command)}"],
            options=self.asked(folder),
            launch=self._srun(str(kept_at(self.files[0], self.files, folder))),
            python=expanded(site.python) if site.python else quoted(job_python()),
            host=quoted(job_python()) if site.container else None,
            run=quoted(str(folder)) + '/"$SLURM_ARRAY_TASK_ID"' * bool(request.tasks),
            directory=quoted(str(directory())),
            setup=site.setup,
            environment={**self._variables, **site.environment, **(_ONE_STEP if once else {})},
            tasks=request.tasks,
            max_requeues=self.section.max_requeues,
            max_restarts=self.recipe.launch.max_restarts if self.recipe is not None else 0,
            signal_seconds=self.signal_seconds,
            requeue=site.requeue,
            once=once,
        )
        return render(job)

    @property
    def _variables(self) -> dict[str, str]:
        """What the job's processes are told by variables."""
        site, variables = self.site, dict[str, str]()
        if self.shape.gpus is not None and not self.shape.counted_by:
            variables[GPUS_VARIABLE] = str(slurm.gpu_count(self.shape.gpus))
        if site.interface is not None:
            variables |= dict.fromkeys(("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "TP_SOCKET_IFNAME"), site.interface)
        if site.master is not None:
            variables[MASTER_VARIABLE] = site.master
        if not str(self.effective("export")).startswith("ALL") and (path := user_variable("PYTHONPATH")):
            variables["PYTHONPATH"] = path  # where this program may have been found
        return variables

    def test_only(self) -> str:
        """When SLURM would start it, in SLURM's words."""
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".sbatch") as file:
            file.write(self.script(Path("/tmp")))
            file.flush()
            return slurm.test_only(file.name, [*command_words(self.asked(Path("/tmp"))), *self.request.extra])

    def _world(self) -> str:
        nodes = f"{self.shape.nodes} node{'s' * (self.shape.nodes > 1)}"
        return f"{self.shape.processes} process{'es' * (self.shape.processes > 1)} on {nodes}"

    def _srun(self, file: str) -> list[str]:
        """The command that starts a task for each rank."""
        cpus = ' --cpus-per-task="$SLURM_CPUS_PER_TASK"' if self.shape.cpus is not None else ""
        inside = "".join(f"{quoted(word)} " for word in self.site.container)
        return [
            f"srun --export=ALL --kill-on-bad-exit=1{cpus} \\",
            f'  {inside}"$python" -m launcher {self._command(file)}',
        ]

    def _command(self, file: str) -> str:
        """Shell: what each rank does with the recipe or script in a file."""
        request, site = self.request, self.site
        changes = ' "$@"' if request.tasks else ""
        where = ["--cpu"] if self.shape.gpus is None else []
        where += ["--processes=1", "--nodes=1"] if self.shape.processes == 1 else []  # whatever the recipe says
        if self.recipe is None:  # flags stand before the script; what stands behind it is the script's
            return f'{_words("run", *where)} --run-dir "$run" {_words(file, *request.overrides[1:])}{changes}'
        words = [f"--remove={key}" for key in request.remove] + [f"--allow={name}" for name in request.allow]
        if site.scratch is not None and self.recipe.data.scratch is None:
            words.append(f"data.scratch={in_recipe(site.scratch)}")
        return f'{_words("train", file, *request.overrides, *words, *where)}{changes} --run-dir "$run"'


def _flag_problem(detail: ErrorDetails) -> Problem:
    name = str(detail["loc"][0])
    about = Slurm.model_fields[name].description
    return Problem(f"--{name.replace('_', '-')}", "", f"{detail['input']!r}: {detail['msg']}; it is: {about}")


def _words(*words: str) -> str:
    """Shell: these words."""
    return " ".join(map(quoted, words))


def job_python() -> str:
    """The Python that submits is the one that trains."""
    return sys.executable


def _shape(request: Request, recipe: Recipe | None, section: Slurm, site: Site) -> Shape:
    nodes = request.nodes or (recipe.launch.nodes if recipe is not None else 1)
    cpus = section.cpus_per_task or site.cpus_per_task
    if request.cpu:
        stated = recipe.launch.processes if recipe is not None else "auto"
        processes = request.processes or (stated if isinstance(stated, int) else nodes)
        if processes < nodes:
            raise UsageError(
                f"--nodes {nodes}: {processes} processes are too few; --processes counts those of all nodes"
            )
        return Shape(nodes, processes, None, cpus)
    in_gres = _gpus_in_gres({**site.options, **(section.__pydantic_extra__ or {})}.get("gres"))
    asked = section.gpus_per_node or in_gres or site.gpus_per_node
    partition = section.partition or site.partition
    if asked is None:
        raise UsageError(
            f"how many GPUs of a node? Say --gpus-per-node, slurm.gpus_per_node, or --cpu; {_offered(partition)}"
        )
    count, offers = slurm.gpu_count(asked), _offers()
    is_counted = site.gpu_gres if site.gpu_gres is not None else not offers or any(offer.gpus for offer in offers)
    cpus = cpus or _fair_share(_within(partition, offers), str(asked), is_counted)
    counted_by = "gres" if in_gres is not None else "gpus-per-node" if is_counted else ""
    return Shape(nodes, nodes * count, str(asked), cpus, counted_by)


def _gpus_in_gres(stated: Value | None) -> str | None:
    """The GPUs that `gres` names already, as `h100:4` of `gpu:h100:4,shard:2`."""
    named = re.search(r"(?:^|,)(?:gres/)?gpu((?::[^:,()]+)*)", str(stated or ""))
    if named is None:
        return None
    kind, _, count = named[1].rpartition(":")
    return named[1][1:] if count.isdigit() else f"{kind}:{count}:1".strip(":")


def _offers() -> list[slurm.Offer]:
    """What the cluster offers; nothing where it does not answer."""
    try:
        return slurm.offers()
    except LauncherError:
        return []


def _within(partition: str | None, offers: Sequence[slurm.Offer]) -> list[slurm.Offer]:
    """What the nodes of a partition offer, of several, or of all."""
    return [offer for offer in offers if partition is None or offer.partition in partition.split(",")]


def _offered(partition: str | None) -> str:
    try:
        offers = [str(offer) for offer in _within(partition, slurm.offers()) if offer.gpus]
    except LauncherError as error:
        return f"what the cluster offers is not known: {error}"
    return f"the cluster offers: {', '.join(offers)}" if offers else "the cluster says of no node that it has GPUs"


def _fair_share(offers: Sequence[slurm.Offer], gpus: str, is_counted: bool) -> int | None:
    """A node's CPUs by its GPUs, of the poorest node that fits; None where the cluster does not say."""
    kind, _, text = gpus.rpartition(":")
    count = int(text)
    if is_counted:
        fitting = [offer for offer in offers if offer.gpus >= count and kind in ("", offer.kind)]
        return max(1, min(offer.cpus // offer.gpus for offer in fitting)) if fitting else None
    return max(1, min(offer.cpus for offer in offers) // count) if offers else None


# ---------------------------------------------------------------------- what sbatch hears

_OF_A_RUN = ("array", "output", "error", "chdir", "export", "input", "wait")
# of two options that exclude each other, the one on the command line wins
_SAME = {"no-requeue": "requeue", "mem-per-cpu": "mem", "mem-per-gpu": "mem"}
_VARIABLES = {  # those that are not named like their option
    "timelimit": "time",
    "array-inx": "array",
    "mem-per-node": "mem",
    "req-switch": "switches",
    "wait4switch": "switches",
    "debug": "verbose",
}


def _option_of(variable: str) -> str:
    """The option that `SBATCH_TIMELIMIT` states: `time`."""
    name = variable.removeprefix("SBATCH_").lower().replace("_", "-")
    name = _VARIABLES.get(name, name)
    return _SAME.get(name, name)


def _typed(extra: Sequence[str], name: str, short: str = "") -> list[str]:
    """What was typed behind -- for an option, which sbatch takes by any beginning too."""
    values = []
    for word, follower in itertools.pairwise([*extra, ""]):
        flag, has_value, value = word.partition("=")
        if flag.startswith("--") and len(flag) >= 4 and f"--{name}".startswith(flag):
            values.append(value if has_value else follower)
        elif short and word.startswith(short) and not word.startswith("--"):
            values.append(word.removeprefix(short) or follower)
    return values


def _check_words(plan: Plan) -> None:
    """What only the whole of it shows: the site file, words behind -- and the environment say something too.

    Raises:
        UsageError: The job would be over before it begins, or be several jobs of one run.
    """
    if _typed(plan.request.extra, "array", "-a"):
        raise UsageError("behind --: --array: all tasks would be one run; --array-file FILE makes a run of each line")
    if _typed(plan.request.extra, "wrap"):
        raise UsageError("behind --: --wrap: the job's script is the launcher's; say `submit … run SCRIPT.py`")
    for name, short in (("time", "-t"), ("time-min", "")):
        limit = plan.effective(name, short)
        if limit is not None and (message := too_short(limit, plan.signal_seconds)):
            raise UsageError(f"{name} {limit}: {message}")


def describe(plan: Plan) -> list[tuple[str, str]]:
    """Everything that the job asks for, for people."""
    shape, options = plan.shape, plan.options
    cpus = "the cluster's default of CPUs" if shape.cpus is None else f"{shape.cpus} CPUs a process"
    each = f"{shape.per_node} process{'es' * (shape.per_node > 1)}"
    time = plan.effective("time", "-t") or "the default of the partition"
    queue, account = plan.effective("partition", "-p") or "the default", plan.effective("account", "-A")
    node = f"{each}, {_gpus_in_words(shape)}, {options.get('mem', 'default memory')}"
    rows = [
        ("asks for", f"{shape.nodes} × ({node}), {cpus}"),
        ("time", f"{time}; saves {plan.signal_seconds} s before the limit"),
        ("queue", f"{queue}, account {account or 'the default'}"),
    ]
    if "no-requeue" in options or _typed(plan.request.extra, "no-requeue"):
        rows.append(
            (
                "requeue",
                "not allowed: a new job follows each that has saved; your own jobs that wait for its end (afterok) are "
                "moved to that one, those of others start after the first part",
            )
        )
    rows += [("sbatch", f"{name}={value}, from the environment") for name, value in plan.heard.items()]
    rows += [("sbatch", f"{name} is in the environment and not used") for name in UNHEARD if name in sbatch_variables()]
    if plan.source:
        settings = plan.site.model_dump(exclude_unset=True)
        rows += [("site", f"{name}: {json.dumps(value)}, from {plan.source}") for name, value in settings.items()]
    return rows


def _gpus_in_words(shape: Shape) -> str:
    if shape.gpus is None:
        return "no GPU"
    return f"{shape.gpus} GPUs" + ("" if shape.counted_by else " (which SLURM does not count here: whole nodes)")


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
        message += f"; {plan.shape.cpus} CPUs a process is the launcher's choice: say --cpus-per-task"
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
    if plan.recipe is None:
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
        UsageError: sbatch refuses it.
    """
    recipe = plan.recipe
    if recipe is None or plan.request.tasks:
        raise UsageError("--preflight: goes with one recipe, and not with a script or an array")
    share = -(-recipe.data.global_batch_size // plan.shape.processes)
    micro = min(share, recipe.data.micro_batch_size or share)
    request = replace(
        plan.request,
        overrides=(*plan.request.overrides, f"data.micro_batch_size={micro}"),
        section=(*plan.request.section, *_PREFLIGHT),
        nodes=1,
        processes=plan.shape.per_node if plan.shape.gpus is None else None,
        run_dir=None,
    )
    small = request.plan(plan.site, plan.source)
    folder = runs.Choice(f"{recipe.name}-preflight", None, False, {}).folder(plan.site.root)
    runs.create(folder)
    script = small.script(folder, once=True)
    # what was said to sbatch of nodes and time holds for the run alone
    words = [
        *command_words(small.asked(folder)),
        *lasting_words(plan.request.extra),
        "--nodes=1",
        f"--ntasks={small.shape.processes}",
        f"--time={_PREFLIGHT_TIME}",
    ]
    number = slurm.submit(str(_write(folder, small, script)), words)
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
