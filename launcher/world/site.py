"""The site file: what belongs to a cluster and not to a recipe. Trusted, and no recipe can set it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from launcher.errors import Problem, RecipeError, UsageError
from launcher.recipe import yaml
from launcher.recipe.places import Problems, dotted
from launcher.recipe.project import SITE_PLACES
from launcher.recipe.tree import Node
from launcher.text import hint
from launcher.world.world import site_variable, user_variable

PLACES = SITE_PLACES


class Site(BaseModel):
    """What a cluster needs, for every run on it."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")
    setup: list[str] = Field(default_factory=list, description="Lines of shell at the job's start: module load …")
    environment: dict[str, str] = Field(
        default_factory=dict, description="Variables of the job, as in NCCL_SOCKET_IFNAME: ib0. No secrets."
    )
    container: list[str] = Field(
        default_factory=list, description="Words in front of each rank's command: [apptainer, exec, --nv, image.sif]"
    )
    python: str | None = Field(None, description="The Python of the jobs; null: the one that submits them.")
    partition: str | None = Field(None, description="The queue, where the recipe names none.")
    account: str | None = Field(None, description="Who pays, where the recipe does not say.")
    gpus_per_node: Annotated[int, Field(gt=0)] | str | None = Field(None, description="As in 4 or h100:4.")
    cpus_per_task: Annotated[int, Field(gt=0)] | None = Field(None, description="CPUs of a process.")
    options: dict[str, str | int | float | bool] = Field(
        default_factory=dict, description="Further long options of sbatch, as in qos: normal."
    )
    requeue: bool = Field(True, description="Whether jobs may queue themselves again; else a new job follows.")
    bases: list[str] = Field(
        default_factory=list, description="Folders of recipes that any recipe may build on, as in /shared/recipes."
    )
    gpu_gres: bool | None = Field(
        None,
        description="Whether SLURM counts GPUs; false where nodes are whole, and gpus_per_node only says how many "
        "processes; null asks the cluster.",
    )
    interface: str | None = Field(
        None, description="The network interface between nodes, as in ib0: for gloo and NCCL (GLOO_SOCKET_IFNAME, …)."
    )
    master: str | None = Field(
        None, description="How the others reach the node of rank 0, as in {host}-ib; null: by SLURM's name or address."
    )
    runs: str | None = Field(None, description="Where runs lie; null: `runs` in the working directory.")
    scratch: str | None = Field(
        None, description="A folder on a disk of each node, for data sets that take one; data.scratch overrides it."
    )

    @property
    def root(self) -> Path:
        """The folder of all runs.

        Raises:
            UsageError: It names a variable that is not set.
        """
        return Path(set_variables("runs", self.runs)).expanduser() if self.runs else Path("runs")


def read_site() -> tuple[Site, str]:
    """The site file of this machine, and where it is; empty where there is none.

    Raises:
        UsageError: `LAUNCHER_SITE` names a file that is not there.
        RecipeError: Everything that is wrong in it.
    """
    named = site_variable()
    if named is not None:
        if not Path(named).is_file():
            raise UsageError(f"LAUNCHER_SITE: there is no file '{named}'; name the site file, or unset the variable")
        return _read(Path(named)), named
    path = next((place for place in map(_place, PLACES) if place is not None and place.is_file()), None)
    return (Site(), "") if path is None else (_read(path), str(path))


def _read(path: Path) -> Site:
    problems = Problems()
    try:
        root = yaml.parse(yaml.decode(path.read_bytes(), str(path)), str(path), path.parent, problems)
    except yaml.TextError as error:
        raise UsageError(f"{error.origin}: {error}") from error
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    values = _plain(root) if root is not None else None
    if problems:
        raise RecipeError(problems)
    if not isinstance(values, Mapping | None):
        raise UsageError(f"{path}: a site file is a mapping; write key: value")
    try:
        site = Site.model_validate(_personal(dict(values or {})))
    except ValidationError as error:
        raise RecipeError(_problem(path, detail) for detail in error.errors()) from error
    if site.options:
        _check_options(path, site.options)
    return site


# what a site file may say to sbatch beside what a recipe may; the rest is the launcher's to say
SITE_OPTIONS = (
    *("account", "bb", "bbf", "begin", "clusters", "container", "cpus_per_task", "deadline", "dependency", "export"),
    *("export_file", "get_user_env", "gpus", "gpus_per_node", "gpus_per_socket", "gpus_per_task", "ignore_pbs", "mem"),
    *("ntasks_per_gpu", "partition", "reboot", "time", "wait_all_nodes"),
)


def _check_options(path: Path, options: Mapping[str, Any]) -> None:
    """Sbatch would take every beginning of an option for it.

    Raises:
        RecipeError: One is not an option's full name, or is the launcher's to say.
    """
    from launcher.recipe.sbatch import SBATCH_OPTIONS

    known = sorted({*SBATCH_OPTIONS, *SITE_OPTIONS})
    strange = [name for name in options if name.replace("-", "_") not in known]
    listed = "`launcher check --allowed` lists what it may say, and a recipe"
    problems = (
        Problem(str(path), f"options.{name}", f"no site file says this to sbatch{hint(name, known, listed)}")
        for name in strange
    )
    if strange:
        raise RecipeError(problems)


def _place(path: Path) -> Path | None:
    try:
        return path.expanduser()
    except RuntimeError:  # this user has no home
        return None


_NAMED = re.compile(r"\$(?:\{(?:env\.)?([A-Za-z_]\w*)\}|([A-Za-z_]\w*))")


def _personal(value: Any) -> Any:
    """The site file's values with this user's name and home in them: they are the same on all machines.

    Other variables are the job's: the shell of the batch script sets them, and `scratch` is read on its nodes.
    """
    if isinstance(value, dict):
        return {key: inner if key == "setup" else _personal(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_personal(inner) for inner in value]
    return _NAMED.sub(lambda match: _about_user(match) or match[0], value) if isinstance(value, str) else value


def _about_user(match: re.Match[str]) -> str:
    name = match[1] or match[2]
    return (user_variable(name) or "") if name in ("USER", "LOGNAME", "HOME") else ""


def set_variables(key: str, text: str) -> str:
    """A text with the variables that are set now.

    Raises:
        UsageError: One is not.
    """

    def said(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if (value := user_variable(name)) is None:
            raise UsageError(f"site file: {key}: the variable {name} is not set here; write a path without it")
        return value

    return _NAMED.sub(said, text)


def in_recipe(text: str) -> str:
    """A text with `$NAME` written as a recipe has it, `${env.NAME}`: read where the run is."""
    return _NAMED.sub(lambda match: f"${{env.{match[1] or match[2]}}}", text)


def _problem(path: Path, detail: Any) -> Problem:
    key = dotted(tuple(detail["loc"]))
    if detail["type"] == "extra_forbidden":
        known = list(Site.model_fields)
        return Problem(str(path), key, f"unknown key{hint(key, known, 'it has: ' + ', '.join(known))}")
    about = Site.model_fields[str(detail["loc"][0])].description
    return Problem(str(path), key, f"{detail['msg'][0].lower()}{detail['msg'][1:]}; it is: {about}")


def _plain(node: Node) -> Any:
    if isinstance(node.value, dict):
        return {key: _plain(inner) for key, inner in node.value.items()}
    if isinstance(node.value, list):
        return [_plain(inner) for inner in node.value]
    return node.value
