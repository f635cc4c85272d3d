"""7: saving. Checkpoints that appear whole or not at all, and the final, unwrapped weights.

A checkpoint is `checkpoints/step-00000123/`: `weights.pth` (the unwrapped state_dict), `training.pt` (optimizer,
schedule and what else a step changes) and, written last, `manifest.json` (what it is, and size and sha256 of
every file). It is written under a hidden name, synced to disk, and renamed.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from launcher.errors import LauncherError
from launcher.evaluation import Judge
from launcher.recipe import schema

FORMAT_VERSION = 1
WEIGHTS, TRAINING, MANIFEST = "weights.pth", "training.pt", "manifest.json"
_NAME = re.compile(r"step-(\d{8,})")


class SaveError(LauncherError):
    """A save failed; what was saved before is intact."""


class DamagedError(LauncherError):
    """A checkpoint is not what its manifest says."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk, verified.

    Attributes:
        folder: Where it is.
        manifest: Step, epoch, samples, world, threads, versions, and the files.
    """

    folder: Path
    manifest: Mapping[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps completed when it was saved."""
        return int(self.manifest["step"])

    def weights(self) -> dict[str, Any]:
        """The unwrapped state_dict, on the CPU."""
        return _load(self.folder / WEIGHTS)

    def training(self) -> dict[str, Any]:
        """Optimizer, schedule and the rest, on the CPU."""
        return _load(self.folder / TRAINING)


def name_of(step: int) -> str:
    """`step-00000123`."""
    return f"step-{step:08d}"


def save(folder: Path, weights: Mapping[str, Any], training: Mapping[str, Any], manifest: Mapping[str, Any]) -> Path:
    """Writes one checkpoint below `folder`, whole or not at all; an existing one of that step stays.

    Args:
        folder: `checkpoints/` of a run.
        weights: The unwrapped state_dict.
        training: Plain values and tensors only.
        manifest: At least `step`; format version and files are added.

    Raises:
        SaveError: The disk is full, read-only or gone. Nothing is left behind under a visible name.
    """
    target = folder / name_of(int(manifest["step"]))
    hidden = folder / f".{target.name}.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if target.exists():
            return target
        shutil.rmtree(hidden, ignore_errors=True)
        contents = {WEIGHTS: serialized(weights), TRAINING: serialized(training)}
        _check_space(folder, sum(map(len, contents.values())))
        hidden.mkdir()
        files = {name: _write(hidden / name, content) for name, content in contents.items()}
        whole = {"format": FORMAT_VERSION, **manifest, "files": files}
        _write(hidden / MANIFEST, json.dumps(whole, indent=2).encode())
        _sync_folder(hidden)
        hidden.rename(target)
        _sync_folder(folder)
    except OSError as error:
        shutil.rmtree(hidden, ignore_errors=True)
        raise SaveError(f"saving {target}: {error.strerror or error}; those before it are intact") from error
    return target


def serialized(state: Mapping[str, Any]) -> bytes:
    """What `torch.save` writes of a state, with NumPy numbers made plain so that `weights_only=True` reads it."""
    buffer = io.BytesIO()
    torch.save(plain(state), buffer)
    return buffer.getvalue()


def plain(value: Any) -> Any:
    """The same value with NumPy scalars as Python's own, at any depth; keys and types of containers are kept."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        make: Callable[..., Any] = type(value)  # an OrderedDict stays one
        return make((plain(key), plain(item)) for key, item in value.items())
    if type(value) in (list, tuple):
        return type(value)(plain(item) for item in value)
    return value


def _write(path: Path, content: bytes) -> dict[str, Any]:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise SaveError(
            f"saving into {folder} needs {needed / 2**20:.1f} MiB and {free / 2**20:.1f} MiB are free; make room and "
            f"go on with --run-dir {folder.parent}; the checkpoints before it are intact"
        )


def save_weights(path: Path, weights: Mapping[str, Any]) -> None:
    """Writes the final `model_weights.pth`, whole or not at all; `torch.load(…, weights_only=True)` reads it.

    Raises:
        SaveError: The disk is full, read-only or gone.
    """
    hidden = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        content = serialized(weights)
        _check_space(path.parent, len(content))
        _write(hidden, content)
        hidden.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            hidden.unlink(missing_ok=True)
        raise SaveError(f"saving {path}: {error.strerror or error}") from error


# ---------------------------------------------------------------------- reading


def verify(folder: Path) -> Checkpoint:
    """Checks a checkpoint's manifest, and size and hash of each of its files.

    Raises:
        DamagedError: Something is missing, cut short, changed, or not of this format.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        version, files, step = manifest["format"], dict(manifest["files"]), int(manifest["step"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{folder.name}: its manifest cannot be read ({type(error).__name__}: {error})") from error
    if version != FORMAT_VERSION:
        raise DamagedError(f"{folder.name}: format {version}; this program reads format {FORMAT_VERSION}")
    if set(files) != {WEIGHTS, TRAINING} or name_of(step) != folder.name:
        raise DamagedError(f"{folder.name}: its manifest is of another checkpoint")
    for name, expected in files.items():
        _verify_file(folder / name, expected)
    return Checkpoint(folder, manifest)


def _verify_file(path: Path, expected: Mapping[str, Any]) -> None:
    place = f"{path.parent.name}/{path.name}"
    try:
        size = path.stat().st_size
        if size != expected["bytes"]:
            raise DamagedError(f"{place}: {size} bytes, not {expected['bytes']}")
        with path.open("rb") as file:
            digest = hashlib.sha256()
            while block := file.read(2**20):
                digest.update(block)
    except (OSError, KeyError, TypeError) as error:
        raise DamagedError(f"{place}: {error}") from error
    if digest.hexdigest() != expected["sha256"]:
        raise DamagedError(f"{place}: its content is not what was written (sha256 differs)")


def _load(path: Path) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever an unpickler raises: the file is not ours
        raise DamagedError(f"{path.parent.name}/{path.name}: refused: {type(error).__name__}: {error}") from error
    if not isinstance(state, dict):
        raise DamagedError(f"{path.parent.name}/{path.name}: holds a {type(state).__name__}, not a state_dict")
    return state


def listed(folder: Path) -> list[Path]:
    """The checkpoints below a folder by name, newest first; verified or not."""
    if not folder.is_dir():
        return []
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def newest(folder: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint that verifies; damaged ones are set aside and said so.

    Args:
        folder: `checkpoints/` of a run.
        say: Gets a line for each damaged one.

    Returns:
        None where there never was one.

    Raises:
        DamagedError: There are some, and all are damaged: starting again would lose the run silently.
    """
    candidates = listed(folder)
    for path in candidates:
        try:
            return verify(path)
        except DamagedError as error:
            aside = path.with_name(f".corrupt-{path.name}-{time.time_ns()}")
            path.rename(aside)
            say(f"{error}; set aside as {aside.name}, taking the one before")
    if candidates or any(folder.glob(".corrupt-*")):
        raise DamagedError(
            f"all checkpoints in {folder} are damaged; look at its .corrupt-… folders, or start a new run elsewhere"
        )
    return None


def prune(folder: Path, keep: int, best_step: int | None) -> None:
    """Removes all but the newest `keep` checkpoints and the best; never the last one that verifies."""
    old = [path for path in listed(folder)[keep:] if best_step is None or path.name != name_of(best_step)]
    for path in old:
        hidden = path.with_name(f".old-{path.name}")  # gone from sight at once, however long removing takes
        with contextlib.suppress(OSError):
            path.rename(hidden)
            shutil.rmtree(hidden, ignore_errors=True)
    for left in folder.glob(".old-*"):
        shutil.rmtree(left, ignore_errors=True)


# ---------------------------------------------------------------------- the loop's edge


class Saving:
    """When a save is due, rank 0 writes it and the others go on.

    Args:
        section: The recipe's `save`.
        folder: `checkpoints/` of the run.
        is_first: Whether this rank writes.
        judge: Knows which checkpoint is the best so far.
        say: Gets a line for each warning.
    """

    def __init__(self, section: schema.Save, folder: Path, is_first: bool, judge: Judge, say: Callable[[str], None]):
        self.section = section
        self.folder = folder
        self.is_first = is_first
        self.last_step: int | None = None
        self.outcome = "running"
        # gives (weights, training state, manifest) after a number of steps; set by the session
        self.capture: Callable[[int], tuple[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]]]
        self._judge = judge
        self._say = say

    def save(self, step: int) -> None:
        """Writes the checkpoint of this step, then removes what is no longer kept.

        Raises:
            SaveError: On rank 0, where it failed and the recipe says stop.
        """
        if step == self.last_step:
            return
        self.last_step = step
        if not self.is_first:
            return
        try:
            save(self.folder, *self.capture(step))
            prune(self.folder, self.section.keep, self._judge.step)
        except SaveError as error:
            if self.section.on_failure == "stop":
                raise
            self._say(f"warning: {error}")

    def finish(self, step: int, outcome: str) -> None:
        """Writes the last checkpoint; the outcome is the run's."""
        self.save(step)
        self.outcome = outcome
