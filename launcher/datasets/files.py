"""Where data sets keep what they have worked out; with `atomic_write` it appears whole or not at all."""

from __future__ import annotations

import hashlib
import importlib
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from launcher.errors import MissingPackageError
from launcher.internals import run_no_program_for_pictures
from launcher.recipe.directory import absolute, directory
from launcher.recipe.inputs import fault_inside, unreadable
from launcher.version import install
from launcher.world.files import atomic_write
from launcher.world.world import user_variable

__all__ = [
    "FOLDER",
    "atomic_write",
    "cache_path",
    "checked_file",
    "needed",
    "staged",
    "state_of",
    "temporary_folder",
]

FOLDER = "launcher-data"  # what we make lies in folders of this name, and nothing else is touched


def cache_path(kind: str, *facts: object) -> Path:
    """Where something that follows from these facts is kept between runs: below the user's `.cache`.

    Args:
        kind: A name for what is kept.
        facts: All that it depends on, such as a file's path, size and time of change.
    """
    digest = hashlib.sha256(repr(facts).encode()).hexdigest()[:24]
    home = user_variable("HOME")
    return (Path(home) / ".cache" / FOLDER if home else temporary_folder()) / f"{kind}-{digest}"


def temporary_folder() -> Path:
    """This user's own, for what cannot be kept at home.

    Raises:
        PermissionError: Somebody else has made one of that name.
    """
    folder = Path(tempfile.gettempdir()) / f"{FOLDER}-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} is another user's; set TMPDIR to a folder of your own, or state data.scratch")
    return folder


def state_of(path: Path) -> tuple[str, int, int]:
    """A file's absolute path, size and time of change: what is kept about it is good for as long as these are."""
    status = path.stat()
    return str(path.resolve()), status.st_size, status.st_mtime_ns


def checked_file(path: str | os.PathLike[str], what: str) -> Path:
    """The path of a file that is there.

    Args:
        path: Relative to the working directory, or absolute.
        what: What it should be, for the message.

    Raises:
        FileNotFoundError: There is none; the message says from where it was looked for.
    """
    file = absolute(path)
    if fault := unreadable(file):
        raise FileNotFoundError(f"{path} {fault}; give the path of {what}")
    if file.is_dir():
        raise FileNotFoundError(f"{path} is a folder; give the path of {what}")
    if not file.is_file():
        raise FileNotFoundError(f"no file at {path} (looked from {directory()}); give the path of {what}")
    return file


def staged(path: Path, scratch: str | os.PathLike[str] | None) -> Path:
    """A file or folder from the machine's own disk: copied there once, and read there by all that come later.

    Args:
        path: Where it is.
        scratch: A folder on a disk of this machine; None leaves the path as it is.

    Raises:
        OSError: The disk has no room for it.
    """
    if scratch is None:
        return path
    digest = hashlib.sha256(repr(state_of(path)).encode()).hexdigest()[:24]
    copy = absolute(scratch) / FOLDER / digest / path.name
    if copy.exists():
        return copy
    with suppress(FileExistsError), atomic_write(copy) as part:
        _check_room(path, copy.parent)
        if path.is_dir():
            if fault := fault_inside(path):
                raise ValueError(fault)
            shutil.copytree(path, part)
        else:
            shutil.copy2(path, part)
    return copy


def needed(module: str, extra: str, what: str) -> Any:
    """An optional module, imported where it is used.

    Raises:
        MissingPackageError: It is not installed; the message says how to install it.
    """
    name = module.partition(".")[0]
    try:
        if name == "PIL":
            run_no_program_for_pictures()
        return importlib.import_module(module)
    except ModuleNotFoundError:
        name = {"PIL": "Pillow"}.get(name, name)
        raise MissingPackageError(f"{what} needs {name}, which is not installed; {install(extra)}") from None


def _check_room(path: Path, folder: Path) -> None:
    files = path.rglob("*") if path.is_dir() else [path]
    needed, free = sum(file.stat().st_size for file in files if file.is_file()), shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"{path} has {needed / 1e9:.2f} GB and {folder} room for {free / 1e9:.2f} GB; "
            "use another data.scratch, or none"
        )
