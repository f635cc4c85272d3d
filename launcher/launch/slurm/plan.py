"""The plan of a job: what sbatch hears of it, its script, and all of that in words."""

from __future__ import annotations

import itertools
import json
import os
import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.errors import UsageError
from launcher.launch.slurm.batch_script import Job, Value, command_words, expanded, quoted, render
from launcher.launch.slurm.code import kept_at
from launcher.launch.slurm.request import SWEEP, Request, Shape, job_python
from launcher.recipe.consistency import too_short
from launcher.recipe.directory import directory
from launcher.recipe.schema import Recipe, Slurm
from launcher.text import printable
from launcher.world import network, slurm
from launcher.world.site import Site, in_recipe
from launcher.world.world import (
    FAULTS_VARIABLE,
    GPUS_VARIABLE,
    MASTER_VARIABLE,
    UNHEARD,
    sbatch_variables,
    user_variable,
)

_ONE_STEP = {FAULTS_VARIABLE: "term@step:1"}  # asked to stop after it, it saves as on any other day


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
        if self.request.recipe == SWEEP:
            return "sweep"
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
        if self.request.recipe == SWEEP:
            return []  # its trials compare the recipe with that of the sweep's start
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
            launch=self._srun(str(kept_at(self.files[0], self.files, folder)) if self.files else ""),
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
            variables |= network.variables(site.interface, None)
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
        if request.recipe == SWEEP:
            return _words("sweep", *request.overrides, "--join")
        changes = ' "$@"' if request.tasks else ""
        where = ["--cpu"] if self.shape.gpus is None else []
        where += ["--processes=1", "--nodes=1"] if self.shape.processes == 1 else []  # whatever the recipe says
        if self.recipe is None:  # flags stand before the script; what stands behind it is the script's
            return f'{_words("run", *where)} --run-dir "$run" {_words(file, *request.overrides[1:])}{changes}'
        words = [f"--remove={key}" for key in request.remove] + [f"--allow={name}" for name in request.allow]
        if site.scratch is not None and self.recipe.data.scratch is None:
            words.append(f"data.scratch={in_recipe(site.scratch)}")
        return f'{_words("train", file, *request.overrides, *words, *where)}{changes} --run-dir "$run"'


def _words(*words: str) -> str:
    """Shell: these words."""
    return " ".join(map(quoted, words))


def plan_of(request: Request, site: Site, source: str) -> Plan:
    """Checks a request for the world that it asks for, and decides all that was left open.

    Args:
        request: The request.
        site: The site file.
        source: Where that is; empty where there is none.

    Raises:
        RecipeError: The recipe is wrong.
        UsageError: The request is, or what the recipe names, or the cluster does not offer that.
    """
    recipe, section, shape = request.checked(site)
    plan = Plan(request, recipe, section, shape, site, source)
    _check_words(plan)
    return plan


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
        raise UsageError("after --: --array: all tasks would be one run; --array-file FILE makes a run of each line")
    if _typed(plan.request.extra, "wrap"):
        raise UsageError("after --: --wrap: the job's script is the launcher's; say `submit … run SCRIPT.py`")
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
    if mail := plan.effective("mail-user"):
        rows.append(("mail", f"of the job's beginning and end goes to {printable(mail)}"))
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
