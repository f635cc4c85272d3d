"""A run's folder: what is written there besides numbers and weights."""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import json
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from launcher.errors import UsageError
from launcher.recipe.caller import option
from launcher.recipe.directory import absolute, directory
from launcher.recipe.masking import masked, masked_in
from launcher.runs import lock
from launcher.runs.identity import differences
from launcher.version import __version__
from launcher.world.failure_report import FAILURE_FILE
from launcher.world.files import atomic_write, write_text

AVERAGES = ("ema", "swa", "mean")
STATUS_FILE = "status.json"
QUEUE_FILE = lock.QUEUE_FILE  # of a run that was submitted as a job, see `launcher.runs.job`
ENVIRONMENT_FILE = "environment.json"
RECIPE_FILE = "recipe.yaml"  # as it was written
_MOST_BYTES = 2**26  # of a file that is read whole
_PACKAGES = ("torch", "accelerate", "numpy", "torchmetrics", "pydantic", "pyyaml", "wandb", "tensorboard")


def stem_of(form: str, average: str = "") -> str:
    """What files of final weights are called, but for their suffix, in a form of `save.format`.

    Args:
        form: The form.
        average: Which of the averages they hold; empty for the weights themselves.
    """
    return {"pth": "model_weights", "safetensors": "model"}[form] + (f"_{average}" if average else "")


def weights_files(folder: Path, average: str = "") -> list[Path]:
    """The files of final weights that are there, first the one that names or holds all of them."""
    pth, stem = stem_of("pth", average), stem_of("safetensors", average)
    parts = sorted(folder.glob(f"{stem}-?????-of-?????.safetensors"))
    named = (f"{pth}.pth", f"{stem}.safetensors", f"{stem}.safetensors.index.json")
    return [path for path in (*(folder / name for name in named), *parts) if path.exists()]


def weights_of(folder: Path, average: str = "") -> Path | None:
    """The file of final weights, or the index of several; None where there is none."""
    first = next(iter(weights_files(folder, average)), None)
    return None if first is None or "-of-" in first.name else first


@dataclass(frozen=True)
class Choice:
    """Which folder a start of the program works in.

    Attributes:
        name: The recipe's.
        run_dir: The folder that was named, if one was.
        resume: Whether to resume the newest unfinished run of this recipe.
        identity: What makes a recipe the same, see `launcher.runs.identity`.
    """

    name: str
    run_dir: str | None
    resume: bool
    identity: Mapping[str, str]

    def folder(self, root: Path = Path("runs")) -> Path:
        """The folder named, the one to resume, or a new one `runs/<name>/<when>`, which is made.

        All from the working directory as it was taken: a user's code may have changed it since.

        Raises:
            UsageError: It cannot be made, or torch could save nothing there.
        """
        if self.run_dir is not None:
            return _in_letters(absolute(self.run_dir))
        root = _in_letters(absolute(root))
        if self.resume and (folder := next(unfinished(root / self.name, self.identity), None)):
            return folder
        return _new(root / self.name)

    def forget(self, folder: Path) -> None:
        """Removes a folder that was made and never written to, and those around it that are empty then."""
        with contextlib.suppress(OSError):  # it is not empty, or never was there
            folder.rmdir()
            if self.run_dir is None:
                folder.parent.rmdir()
                folder.parent.parent.rmdir()


def _in_letters(folder: Path) -> Path:
    """The folder itself.

    Raises:
        UsageError: Its name is not text in UTF-8, which torch's files need: reported before a day of training.
    """
    try:
        str(folder).encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{option('run_dir')}: {folder}: this name is not text in UTF-8; name a folder elsewhere"
        ) from error
    return folder


def _new(parent: Path) -> Path:
    """A new folder named by the time, which no other start has: making it decides."""
    when = time.strftime("%Y-%m-%d_%H-%M-%S")
    for number in itertools.count(1):
        folder = parent / (when if number == 1 else f"{when}-{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
        except OSError as error:
            raise UsageError(
                f"{folder} cannot be made: {error.strerror or error}; name a {option('run_dir')}"
            ) from error
    raise AssertionError


def unfinished(parent: Path, identity: Mapping[str, str]) -> Iterator[Path]:
    """The runs below a folder that are not finished, of the same recipe, held by nobody; newest first."""
    folders = [path for path in parent.iterdir() if path.is_dir()] if parent.is_dir() else []
    for folder in sorted(folders, key=lambda path: path.name, reverse=True):
        status, was = read_json(folder / STATUS_FILE), read_json(folder / ENVIRONMENT_FILE).get("identity")
        if status.get("state") in (None, "finished") or not isinstance(was, dict):
            continue
        if not differences(was, identity) and lock.holder(folder) is None:
            yield folder


def create(folder: Path, launched: str | None = None) -> None:
    """Makes a run's folder, or checks that it is one.

    Args:
        folder: The run's.
        launched: The folder of the `launcher run` that this process is of, which may lie in it.

    Raises:
        UsageError: It cannot be written, or holds something else.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # a start that failed early has left its log and its failure, and no more
        early = {lock.LOCK_FILE, "logs", FAILURE_FILE}
        if launched is not None and (own := absolute(launched)).is_relative_to(folder) and own != folder:
            early.add(own.relative_to(folder).parts[0])
        strange = [path for path in folder.iterdir() if path.name not in early and path.name[0] != "."]
        if strange and not any((folder / name).exists() for name in (STATUS_FILE, "checkpoints")):
            raise UsageError(f"{option('run_dir')}: {folder} holds other things; name a new folder, or a run's")
        added_to = (*folder.glob("*.jsonl"), *folder.glob("logs/*.log"))
        if foreign := next((path for path in added_to if _leads_away(path)), None):
            raise UsageError(f"{option('run_dir')}: {foreign} is a link or a pipe, where a run writes; remove it")
        (folder / "checkpoints").mkdir(exist_ok=True)
        (folder / "logs").mkdir(exist_ok=True)
    except FileExistsError as error:
        raise UsageError(f"{option('run_dir')}: {error.filename} is there and is no folder; name another") from error
    except OSError as error:
        raise UsageError(f"{option('run_dir')}: {folder} cannot be written: {error.strerror or error}") from error


def _leads_away(path: Path) -> bool:
    """Whether what is added to a file comes elsewhere, or nowhere: one that is a link, but to a device as /dev/null."""
    return not path.is_char_device() and (path.is_symlink() or not path.is_file())


def discard(folder: Path) -> None:
    """Takes away what the processes of a start have left where no run was begun."""
    if any((folder / name).exists() for name in (STATUS_FILE, ENVIRONMENT_FILE, FAILURE_FILE)):
        return
    shutil.rmtree(folder / "logs", ignore_errors=True)
    with contextlib.suppress(OSError):
        (folder / "checkpoints").rmdir()


def describe(folder: Path, recipe_text: str, resolved: str, environment: Mapping[str, Any]) -> None:
    """Writes what the run is.

    Raises:
        UsageError: It cannot be written.
    """
    try:
        write_text(folder / RECIPE_FILE, recipe_text)
        write_text(folder / "resolved.yaml", resolved)
        write_json(folder / ENVIRONMENT_FILE, environment)
    except OSError as error:
        raise UsageError(f"{option('run_dir')}: {folder} cannot be written: {error.strerror or error}") from error


def check_recipe_file(run: Path, recipe: str) -> None:
    """Looks whether the file that a run was started with is still there.

    Raises:
        UsageError: It is not; the message says where the run has kept what stood in it.
    """
    if not Path(recipe).exists():
        raise UsageError(
            f"{run}: the recipe that it was started with is gone: {recipe}; the run has kept it: cp "
            f"{shlex.quote(str(run / RECIPE_FILE))} {shlex.quote(recipe)}"
        )


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a small JSON file, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, default=str) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """A small JSON file; empty where there is none, or none that can be read."""
    try:
        value = json.loads(read_file(path))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def read_file(path: Path) -> bytes:
    """A file of a run's folder that is no longer than any that we write: not a pipe, at which reading never ends.

    Raises:
        OSError: There is none, or it is something else.
    """
    file_status = path.stat()
    if not stat.S_ISREG(file_status.st_mode) or file_status.st_size > _MOST_BYTES:
        raise OSError(errno.EINVAL, "is not one of a run's files", str(path))
    return path.read_bytes()


def environment(how: Mapping[str, Any], git: object = None, gpus: Sequence[str] = ()) -> dict[str, Any]:
    """What the run runs on: versions, host, git; never the environment's variables, which may hold secrets.

    Args:
        how: What started it: command, recipe, overrides.
        git: The code's commit and what differs from it, where that is known already.
        gpus: What the GPUs call themselves that this process may use.
    """
    return {
        **masked_in(how),
        "directory": str(directory()),
        "host": platform.node(),
        "system": platform.platform(),
        **_hardware(gpus),
        "python": sys.version.split()[0],
        "versions": versions(),
        "git": git or _git(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _hardware(gpus: Sequence[str]) -> dict[str, str]:
    """The models of the CPU and of the GPUs."""
    counted = ", ".join(f"{gpus.count(name)} × {name}" for name in dict.fromkeys(gpus))
    models = {"cpu_model": _cpu_model(), "gpu_model": counted}  # `cpu` is what was asked for
    return {key: model for key, model in models.items() if model}


@functools.cache
def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        return next(named, "") or platform.machine()
    return platform.processor() or platform.machine()


@functools.cache  # reading them takes as long as many a save
def versions() -> Mapping[str, str]:
    """Of the packages that decide what a run computes."""
    package_versions = {"launcher": __version__}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            package_versions[package] = metadata.version(package)
    return package_versions


def _git() -> dict[str, str] | None:
    commit = output_of(*_GIT, "rev-parse", "HEAD")
    if commit is None:
        return None
    diff = "" if _has_filters() or not _is_where_its_files_are() else output_of(*_GIT, *_DIFF)
    return {"commit": commit.strip(), "diff": masked(diff or "")}


# A working tree's own settings are anybody's who has made the folder, and some of them are programs that git starts.
_GIT = ("git", "--no-pager", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null")
_DIFF = ("diff", "--no-ext-diff", "--no-textconv", "--ignore-submodules=dirty", "--submodule=short", "HEAD")
_GIT_VARIABLES = {
    "GIT_ALLOW_PROTOCOL": "none",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_TERMINAL_PROMPT": "0",
}  # no objects fetched


def _has_filters() -> bool:
    """Whether a working tree's own settings have programs through which git reads its files, or nobody can tell."""
    listed = output_of(*_GIT, "config", "--show-scope", "--name-only", "--list")
    if listed is None:
        return True
    scopes = [line.split(None, 1) for line in listed.splitlines()]
    return any(name.startswith("filter.") and scope not in ("system", "global") for scope, name in scopes)


def _is_where_its_files_are() -> bool:
    """Whether a working tree is the folder that has `.git`: its own settings may name any other folder as the tree."""
    top = output_of(*_GIT, "rev-parse", "--show-toplevel")
    with_git = next((path for path in (directory(), *directory().parents) if (path / ".git").exists()), None)
    return top is not None and with_git is not None and os.path.realpath(top.rstrip("\n")) == os.path.realpath(with_git)


def detach(path: Path) -> None:
    """Puts a copy in a file's place: who has it open still, not knowing that the run is another's, writes elsewhere.

    Raises:
        OSError: The disk is full.
    """
    with contextlib.suppress(FileNotFoundError), atomic_write(path, parents=False) as part:  # nothing was written yet
        shutil.copyfile(path, part)


def output_of(*command: str) -> str | None:
    """What a command says; None where it is not there, fails or takes too long."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=10,
            check=False,
            cwd=directory(),
            env={**os.environ, **_GIT_VARIABLES},
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
