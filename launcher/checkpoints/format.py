"""7: saving. Checkpoints that appear whole or not at all, and the final, unwrapped weights.

A checkpoint is `checkpoints/step-00000123/`: `weights.pth` (the unwrapped state_dict), `training.pt` (optimizer,
schedule and what else a step changes), `evaluated.pth` where the optimizer keeps other weights for evaluating than for
training (a schedule-free one), and, written last, `manifest.json` (what it is, size and sha256 of every file,
and a sha256 of all that). It is written under a hidden name, synced to disk, and renamed; old ones go only after it was
read back.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from launcher.checkpoints.plain import made_like, with_arrays
from launcher.checkpoints.plain import plain as plain
from launcher.checkpoints.rows import DamagedError as DamagedError
from launcher.checkpoints.rows import StoredTensor, stored_in, verify_rows, with_stored
from launcher.errors import LauncherError, UsageError
from launcher.internals import has_storage, parts_of, storage_id
from launcher.model.rows import Read, Rows
from launcher.recipe.inputs import unreadable
from launcher.recipe.raised import chain_of
from launcher.runs.folder import read_file
from launcher.text import size
from launcher.world import faults
from launcher.world.files import atomic_write

FORMAT_VERSION = 3
FORMAT_OF_ROWS = 4  # where processes have written rows of tensors (checkpoints/rows.py)
WEIGHTS, TRAINING, MANIFEST = "weights.pth", "training.pt", "manifest.json"
EVALUATED = "evaluated.pth"  # where evaluating has weights of its own
_OVERHEAD_BYTES = 64 * 1024  # of the files' own structure
_LOOK_SECONDS = 0.5  # between looks at a checkpoint that is not seen yet
NAME_PATTERN = re.compile(r"step-(\d{8,})")


class SaveError(LauncherError):
    """A save failed; what was saved before is intact."""


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
        """The unwrapped state_dict that training continues with, on the CPU."""
        return with_arrays(self._whole(WEIGHTS))

    def evaluated(self) -> dict[str, Any]:
        """The unwrapped state_dict to evaluate and to hand on, on the CPU: mostly the same."""
        return with_arrays(self._whole(self.evaluated_file))

    @property
    def evaluated_file(self) -> str:
        """Which of its files those are in."""
        return EVALUATED if EVALUATED in self.manifest["files"] else WEIGHTS

    def training(self) -> dict[str, Any]:
        """Optimizer, schedule and the rest, on the CPU."""
        return self._whole(TRAINING)

    def lazily(self, name: str, read: Read | None = None) -> dict[str, Any]:
        """What is in one of its files, with tensors of which rows can be read: nothing else of them is.

        Args:
            name: Of the file.
            read: Counts what is read of them.
        """
        if "rows" not in self.manifest:
            return load_state(self.folder / name, mmap=True)
        return self._with(name, lambda stored: stored, read)

    def _whole(self, name: str) -> dict[str, Any]:
        return self._with(name, StoredTensor.whole) if "rows" in self.manifest else load_state(self.folder / name)

    def _with(self, name: str, made: Callable[[StoredTensor], Any], read: Read | None = None) -> dict[str, Any]:
        stored = stored_in(self.folder, self.manifest, read or Read())
        state: dict[str, Any] = with_stored(load_state(self.folder / name), stored, made)
        return state


def name_of(step: int) -> str:
    """`step-00000123`."""
    return f"step-{step:08d}"


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint is made of.

    Attributes:
        weights: The unwrapped state_dict.
        training: Plain values and tensors only.
        manifest: At least `step`; format version and files are added.
        evaluated: The state_dict to evaluate, where it is another.
    """

    weights: Mapping[str, Any]
    training: Mapping[str, Any]
    manifest: Mapping[str, Any]
    evaluated: Mapping[str, Any] | None = None

    @property
    def contents(self) -> dict[str, Mapping[str, Any]]:
        """What is in its files, by their names."""
        files = {WEIGHTS: self.weights, TRAINING: self.training}
        return files if self.evaluated is None else {**files, EVALUATED: self.evaluated}

    @property
    def step(self) -> int:
        """Optimizer steps completed."""
        return int(self.manifest["step"])

    @property
    def num_bytes(self) -> int:
        """Of its tensors; memory that several share counts once."""
        return size_in(self.contents)

    def copied(self) -> Snapshot:
        """The same in host memory of its own, so that training may continue while it is written."""
        weights, training, evaluated = copied([self.weights, self.training, self.evaluated])
        return Snapshot(weights, training, self.manifest, evaluated)


def size_in(state: Any) -> int:
    """Bytes of a state's tensors; memory that several share counts once."""
    sizes: dict[int, int] = {}
    for part in (part for tensor in tensors_in(state) for part in parts_of(tensor)):
        if has_storage(part):
            sizes[storage_id(part.untyped_storage())] = part.untyped_storage().nbytes()
        else:
            sizes[id(part)] = part.nbytes
    return sum(sizes.values())


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """The tensors of a state, at any depth."""
    if isinstance(value, torch.Tensor | Rows):
        yield value if isinstance(value, torch.Tensor) else value.tensor
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)


def copied(state: Any) -> Any:
    """A deep copy in host memory, in which tensors that share memory (tied weights) share it, with their strides."""
    return _copied(state, {}, {})


def copied_into(state: Any, parts: Mapping[int, torch.UntypedStorage]) -> Any:
    """The same in memory that is there already; nobody waits for what a device copies.

    Args:
        state: Tensors and plain values at any depth.
        parts: Host memory for each storage, by its number.
    """
    return _copied(state, {}, parts)


def in_host_memory(state: Any) -> Any:
    """The state itself, or a copy where a part of it is on a device: its files are opened where there may be none."""
    return state if all(tensor.device.type == "cpu" for tensor in tensors_in(state)) else copied(state)


def _copied_rows(rows: Rows, copies: dict[Any, Any], parts: Mapping[int, torch.UntypedStorage]) -> Rows:
    """Tied parameters have one, and so do the copies."""
    key = ("rows", id(rows))
    if key not in copies:
        copies[key] = Rows(_copied(rows.tensor, copies, parts), rows.shape, rows.first)
    copy: Rows = copies[key]
    return copy


def _copied(value: Any, copies: dict[Any, Any], parts: Mapping[int, torch.UntypedStorage]) -> Any:
    if isinstance(value, torch.Tensor):
        source = value.detach()
        if not has_storage(source):
            return source.to("cpu", copy=True)
        storage = source.untyped_storage()
        if (number := storage_id(storage)) not in copies:
            on_host = parts[number] if parts else torch.empty(storage.nbytes(), dtype=torch.uint8).untyped_storage()
            copies[number] = on_host.copy_(storage, non_blocking=bool(parts))
        empty = torch.empty(0, dtype=source.dtype)
        return empty.set_(copies[number], source.storage_offset(), source.size(), source.stride())
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, Rows):
        return _copied_rows(value, copies, parts)
    if isinstance(value, Mapping):
        return made_like(value, ((key, _copied(item, copies, parts)) for key, item in value.items()))
    if type(value) in (list, tuple):
        return type(value)(_copied(item, copies, parts) for item in value)
    return value


class Others(Protocol):
    """Processes that write one checkpoint together."""

    def write(self, folder: Path) -> Mapping[str, Any]:
        """Has all write their rows into a folder; gives what the manifest says of them."""
        ...


def save(folder: Path, snapshot: Snapshot, others: Others | None = None) -> Path:
    """Writes one checkpoint below `folder`, whole or not at all; an existing one of that step stays.

    Args:
        folder: `checkpoints/` of a run.
        snapshot: What to write.
        others: What other processes write of it.

    Raises:
        SaveError: The disk is full, read-only or gone. Nothing is left behind under a visible name.
    """
    step = snapshot.step
    target = folder / name_of(step)
    hidden = folder / f".{target.name}.{os.getpid()}"
    try:
        if not folder.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, f"the run's folder {folder.parent} is gone")
        folder.mkdir(exist_ok=True)
        if target.exists():
            return target
        shutil.rmtree(hidden, ignore_errors=True)
        check_space(folder, snapshot.num_bytes)
        hidden.mkdir()
        faults.point("checkpoint.begin", step)
        rows = others.write(hidden) if others is not None else {}
        files = {
            name: _save_state(hidden / name, state, "checkpoint", step) for name, state in snapshot.contents.items()
        }
        version = FORMAT_OF_ROWS if rows else FORMAT_VERSION
        whole = sealed({"format": version, **snapshot.manifest, "files": files, **rows})
        _write(hidden / MANIFEST, json.dumps(whole, indent=2).encode(), "checkpoint", step)
        sync_folder(hidden)
        faults.point("checkpoint.rename", step)
        hidden.rename(target)
        faults.point("checkpoint.renamed", step)
        sync_folder(folder)
    except BaseException as error:
        shutil.rmtree(hidden, ignore_errors=True)
        if not isinstance(error, OSError):
            raise
        raise SaveError(f"saving {target}: {error.strerror or error}; {_left_in(folder)}") from error
    return target


def _left_in(folder: Path) -> str:
    """What a run resumes from after a save that failed."""
    if not folder.parent.is_dir():
        return "what was saved before went with it"
    with contextlib.suppress(OSError):
        if not any(NAME_PATTERN.fullmatch(name) for name in os.listdir(folder)):
            return "nothing was saved before"
    return f"what was saved before is intact, resume from it with --run-dir {folder.parent}"


def sealed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest as JSON gives it back, with a sha256 of all the rest in it."""
    rest = json.loads(json.dumps({key: value for key, value in manifest.items() if key != "sha256"}))
    canonical = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return {**rest, "sha256": hashlib.sha256(canonical.encode()).hexdigest()}


class _Hashed:
    """A file that is hashed while it is written: `torch.save` appends only."""

    def __init__(self, path: Path):
        self.file = path.open("wb")
        self.digest = hashlib.sha256()
        self.num_bytes = 0

    def write(self, block: Any) -> int:
        """Appends a block of bytes."""
        self.digest.update(block)
        self.num_bytes += len(block)
        return self.file.write(block)

    def flush(self) -> None:
        """To the operating system."""
        self.file.flush()

    def sync(self) -> dict[str, Any]:
        """To the disk; gives size and hash for the manifest."""
        self.flush()
        os.fsync(self.file.fileno())
        return {"bytes": self.num_bytes, "sha256": self.digest.hexdigest()}


@contextlib.contextmanager
def _hashed(path: Path) -> Iterator[_Hashed]:
    stream = _Hashed(path)
    try:
        yield stream
    finally:
        stream.file.close()


def _save_state(path: Path, state: Mapping[str, Any], where: str, step: int | None = None) -> dict[str, Any]:
    """Streams what `torch.save` writes of a state, NumPy numbers made plain so that `weights_only=True` reads it."""
    with _hashed(path) as stream:
        try:
            torch.save(plain(in_host_memory(state)), stream)  # type: ignore[arg-type]  # it wants write() and flush() only
        except RuntimeError as error:  # torch's writer hides the operating system's error behind its own
            raise _cause(error) from error
        faults.point(f"{where}.write", step, path)
        written = stream.sync()
        faults.point(f"{where}.sync", step, path)
    return written


def _cause(error: BaseException) -> OSError:
    """The operating system's error behind a failed `torch.save`."""
    return next((cause for cause in chain_of(error) if isinstance(cause, OSError)), OSError(str(error)))


def _write(path: Path, content: bytes, where: str, step: int | None = None) -> dict[str, Any]:
    with _hashed(path) as stream:
        stream.write(content)
        faults.point(f"{where}.write", step, path)
        written = stream.sync()
        faults.point(f"{where}.sync", step, path)
    return written


def sync_folder(folder: Path) -> None:
    """Has a folder's entries on the disk, not in memory alone."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_space(folder: Path, needed: int) -> None:
    """Looks whether there is room for `needed` bytes.

    Raises:
        OSError: There is not.
    """
    free = shutil.disk_usage(folder).free
    if free < needed + _OVERHEAD_BYTES:
        raise OSError(
            errno.ENOSPC,
            f"{size(needed + _OVERHEAD_BYTES)} are needed and {size(free)} are free; make room",
        )


def save_weights(path: Path, weights: Mapping[str, Any]) -> None:
    """Writes the final `model_weights.pth`, whole or not at all; `torch.load(…, weights_only=True)` reads it.

    Raises:
        SaveError: The disk is full, read-only or gone.
    """
    with weights_saved(path):
        check_space(path.parent, Snapshot(weights, {}, {}).num_bytes)
        with atomic_write(path, parents=False) as part:
            _save_state(part, weights, "weights")
            faults.point("weights.rename")


@contextlib.contextmanager
def weights_saved(path: Path) -> Iterator[None]:
    """What makes `path` inside of it is on the disk afterwards.

    Raises:
        SaveError: The disk is full, read-only or gone.
    """
    try:
        yield
        sync_folder(path.parent)
    except OSError as error:
        raise SaveError(
            f"saving {path}: {error.strerror or error}; the last checkpoint is intact, the same command resumes from it"
        ) from error


# ---------------------------------------------------------------------- reading


def verify(folder: Path, *, is_hashed: bool = True) -> Checkpoint:
    """Checks a checkpoint's manifest, and size and hash of each of its files; rows are proven when they are read.

    Args:
        folder: The checkpoint.
        is_hashed: Whether to read the files for that; not where another process has done so.

    Raises:
        DamagedError: Something is missing, cut short or changed.
        UsageError: It is of another format; nothing is changed.
    """
    try:
        manifest = json.loads(read_file(folder / MANIFEST))
        version, files, step = manifest["format"], dict(manifest["files"]), int(manifest["step"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise DamagedError(f"{folder.name}: its manifest cannot be read ({type(error).__name__}: {error})") from error
    is_sealed = sealed(manifest) == manifest
    known = FORMAT_OF_ROWS if "rows" in manifest else FORMAT_VERSION
    if version != known and (is_sealed or "sha256" not in manifest):
        raise UsageError(
            f"{folder}: a checkpoint of format {version}; this program reads format {FORMAT_VERSION}: resume with the "
            "version that wrote it, or start a new run with its weights (train.start_from)"
        )
    if not is_sealed:
        raise DamagedError(f"{folder.name}: its manifest is not what was written (sha256 differs)")
    if set(files) - {EVALUATED} != {WEIGHTS, TRAINING} or name_of(step) != folder.name:
        raise DamagedError(f"{folder.name}: its manifest is of another checkpoint")
    for name, expected in files.items():
        _verify_file(folder / name, expected, is_hashed=is_hashed)
    if "rows" in manifest:
        try:
            verify_rows(folder, manifest)
        except (KeyError, TypeError, AttributeError) as error:
            raise DamagedError(f"{folder.name}: what its manifest says of rows cannot be read ({error})") from error
    return Checkpoint(folder, manifest)


def awaited(folder: Path, patience_seconds: float = 60.0, *, is_hashed: bool = True) -> Checkpoint:
    """Checks a checkpoint that another node has written or checked: file systems show it everywhere after a while.

    Args:
        folder: The checkpoint.
        patience_seconds: How long it may take.
        is_hashed: Whether to read its files for that.

    Raises:
        DamagedError: It did not become whole in that time.
    """
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            return verify(folder, is_hashed=is_hashed)
        except DamagedError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(_LOOK_SECONDS)
        with contextlib.suppress(OSError):
            os.listdir(folder.parent)  # which makes NFS ask its server again


def _verify_file(path: Path, expected: Mapping[str, Any], *, is_hashed: bool = True) -> None:
    place = f"{path.parent.name}/{path.name}"
    try:
        size = path.stat().st_size
        if size != expected["bytes"]:
            raise DamagedError(f"{place}: {size} bytes, not {expected['bytes']}")
        if fault := unreadable(path):
            raise DamagedError(f"{place} {fault}")
        if not is_hashed:
            return
        with path.open("rb") as file:
            digest = hashlib.sha256()
            while block := file.read(2**20):
                digest.update(block)
    except (OSError, KeyError, TypeError) as error:
        raise DamagedError(f"{place}: {error}") from error
    if digest.hexdigest() != expected["sha256"]:
        raise DamagedError(f"{place}: its content is not what was written (sha256 differs)")


def load_state(path: Path, *, mmap: bool = False) -> dict[str, Any]:
    """What `torch.save` wrote of a state_dict, on the CPU; a file that would run code is refused.

    Args:
        path: The file.
        mmap: Whether tensors are read when their numbers are.

    Raises:
        DamagedError: It is no such file.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # whatever an unpickler raises: the file is not ours
        raise DamagedError(f"{path.parent.name}/{path.name}: refused: {type(error).__name__}: {error}") from error
    if not isinstance(state, dict):
        raise DamagedError(f"{path.parent.name}/{path.name}: holds a {type(state).__name__}, not a state_dict")
    return state


# ---------------------------------------------------------------------- the loop's edge
