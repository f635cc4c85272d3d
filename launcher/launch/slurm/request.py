"""What a job asks for: the command line's request, checked with its recipe, and its shape on the cluster."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from launcher.errors import EXIT_DONE, EXIT_USAGE, LauncherError, Problem, RecipeError, UsageError
from launcher.launch.slurm.batch_script import Value
from launcher.recipe.load import load_recipe
from launcher.recipe.schema import Recipe, Slurm
from launcher.recipe.secrets import holds_secret, is_secret_key
from launcher.text import brief
from launcher.world import slurm
from launcher.world.site import Site
from launcher.world.world import job_environment

OWN_SCRIPT = "run"  # in place of a recipe
SWEEP = "sweep"  # in place of a recipe: an array of participants in a sweep
_OF_THE_JOB = ("launch", "launch.processes", "launch.nodes", "launch.max_restarts")
_CHECK_SECONDS = 60  # a login node is everybody's


@dataclass(frozen=True)
class Request:
    """What the command line asks for.

    Attributes:
        recipe: The YAML file; `run` for a script of one's own, `sweep` for participants in a sweep.
        overrides: Changes to the recipe; of a script, its name and arguments; of a sweep, its folder and flags.
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

    def checked(self, site: Site) -> tuple[Recipe | None, Slurm, Shape]:
        """The recipe, its slurm section and the job's shape, checked for the world that it asks for.

        Raises:
            RecipeError: The recipe is wrong.
            UsageError: The request is, or what the recipe names, or the cluster does not offer that.
        """
        if self.processes is not None and not self.cpu:
            raise UsageError("--processes goes with --cpu; on GPUs there is one process for each: --gpus-per-node")
        recipe = None
        if self.recipe == OWN_SCRIPT:
            section = self._script_section()
        elif self.recipe == SWEEP:
            section = self._section()
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
        return recipe, section, shape

    def _script_section(self) -> Slurm:
        """What flags ask for, for a script of one's own.

        Raises:
            UsageError: There is no such script, or a flag goes with recipes only.
            RecipeError: A flag's value is wrong.
        """
        if not self.overrides or not Path(self.overrides[0]).is_file():
            raise UsageError("launcher submit … run SCRIPT.py: name a script that exists; flags go before `run`")
        if self.remove or self.allow:
            raise UsageError("--remove, --allow: go with a recipe; what follows a script is the script's")
        return self._section()

    def _section(self) -> Slurm:
        """What flags ask for, where there is no recipe to say it.

        Raises:
            RecipeError: A flag's value is wrong.
        """
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

    def recipes(self, site: Site) -> list[Recipe]:
        """The recipe of each task; of none where a script of one's own is queued.

        Raises:
            RecipeError: One is wrong.
            UsageError: A task says what a job cannot have, or something is secret.
        """
        _check_tasks(self.tasks)
        _refuse_secrets(self, site)
        return [] if self.recipe in (OWN_SCRIPT, SWEEP) else [self.read(*words) for words in self.tasks or ((),)]

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


def _flag_problem(detail: ErrorDetails) -> Problem:
    name = str(detail["loc"][0])
    about = Slurm.model_fields[name].description
    return Problem(f"--{name.replace('_', '-')}", "", f"{detail['input']!r}: {detail['msg']}; it is: {about}")


def _check_in_child(arguments: Sequence[str]) -> None:
    """Runs `check`; that it gave no answer in time is reported on the error output.

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
        reason = (done.stderr.strip().splitlines() or ["it ended without a message"])[-1]
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


def job_python() -> str:
    """The Python that submits is the one that trains."""
    return sys.executable


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


def _shape(request: Request, recipe: Recipe | None, section: Slurm, site: Site) -> Shape:
    shape = _shape_of_ranks(request, recipe, section, site)
    if request.recipe != SWEEP:
        return shape
    # one process a node, which has all that the node's ranks would have
    return replace(shape, processes=1, cpus=shape.cpus and shape.cpus * shape.per_node)


def _shape_of_ranks(request: Request, recipe: Recipe | None, section: Slurm, site: Site) -> Shape:
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
            f"how many GPUs of a node? Set --gpus-per-node, slurm.gpus_per_node, or --cpu; {_offered(partition)}"
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
