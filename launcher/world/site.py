"""The site file: what belongs to a cluster and not to a recipe. Trusted, and no recipe can set it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from launcher.errors import Problem, RecipeError, UsageError
from launcher.recipe import yaml
from launcher.recipe.places import Problems, dotted
from launcher.recipe.tree import Node
from launcher.text import hint
from launcher.world.world import site_variable

PLACES = (Path("~/.config/launcher/site.yaml"), Path("/etc/launcher/site.yaml"))


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
    interface: str | None = Field(
        None, description="The network interface between nodes, as in ib0: for gloo and NCCL (GLOO_SOCKET_IFNAME, …)."
    )
    runs: str | None = Field(None, description="Where runs lie; null: `runs` in the working directory.")
    scratch: str | None = Field(
        None, description="A folder on a disk of each node, for data sets that take one: data.scratch, if not said."
    )

    @property
    def root(self) -> Path:
        """The folder of all runs."""
        return Path(self.runs).expanduser() if self.runs else Path("runs")


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
    found = next((place.expanduser() for place in PLACES if place.expanduser().is_file()), None)
    return (Site(), "") if found is None else (_read(found), str(found))


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
        return Site.model_validate(dict(values or {}))
    except ValidationError as error:
        raise RecipeError(_problem(path, detail) for detail in error.errors()) from error


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
