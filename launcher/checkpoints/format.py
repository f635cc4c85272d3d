"""7: saving. Checkpoints that appear whole or not at all, and the final, unwrapped weights.

A checkpoint is `checkpoints/step-00000123/`: `weights.pth` (the unwrapped state_dict), `training.pt` (optimizer,
schedule and what else a step changes) and, written last, `manifest.json` (what it is, size and sha256 of every file,
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
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from launcher.errors import LauncherError, UsageError
from launcher.evaluation.best import Judge
from launcher.internals import storage_id
from launcher.recipe import schema
from launcher.world import faults

FORMAT_VERSION = 1
WEIGHTS, TRAINING, MANIFEST = "weights.pth", "training.pt", "manifest.json"
_OVERHEAD_BYTES = 64 * 1024  # of the files' own structure
_LOOK_SECONDS = 0.5  # between looks at a checkpoint that is not seen yet
_PAUSES = (0.5, 2.0)  # seconds between tries to write a checkpoint
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
        return load_state(self.folder / WEIGHTS)

    def training(self) -> dict[str, Any]:
        """Optimizer, schedule and the rest, on the CPU."""
        return load_state(self.folder / TRAINING)


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
    """

    weights: Mapping[str, Any]
    training: Mapping[str, Any]
    manifest: Mapping[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps completed."""
        return int(self.manifest["step"])

    @property
    def num_bytes(self) -> int:
        """Of its tensors; memory that several share counts once."""
        storages = {one.untyped_storage() for one in tensors_in([self.weights, self.training])}
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())

    def copied(self) -> Snapshot:
        """The same in host memory of its own, so that training may go on while it is written."""
        weights, training = copied([self.weights, self.training])
        return Snapshot(weights, training, self.manifest)


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """The tensors of a state, at any depth."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)


def copied(state: Any) -> Any:
    """A deep copy in host memory, in which tensors that share memory (tied weights) share it, with their strides."""
    return _copied(state, {})


def _copied(value: Any, copies: dict[int, torch.UntypedStorage]) -> Any:
    if isinstance(value, torch.Tensor):
        source = value.detach()
        if source.layout is not torch.strided:
            return source.to("cpu", copy=True)
        storage = source.untyped_storage()
        if (number := storage_id(storage)) not in copies:
            on_host = torch.empty(storage.nbytes(), dtype=torch.uint8)
            copies[number] = on_host.untyped_storage().copy_(storage)
        empty = torch.empty(0, dtype=source.dtype)
        return empty.set_(copies[number], source.storage_offset(), source.size(), source.stride())
    if isinstance(value, Mapping):
        return _made(value, ((key, _copied(item, copies)) for key, item in value.items()))
    if type(value) in (list, tuple):
        return type(value)(_copied(item, copies) for item in value)
    return value


def _made(like: Mapping[Any, Any], items: Iterable[tuple[Any, Any]]) -> Mapping[Any, Any]:
    """A mapping of the kinds that can be loaded safely: an OrderedDict stays one."""
    return OrderedDict(items) if isinstance(like, OrderedDict) else dict(items)


def save(folder: Path, snapshot: Snapshot) -> Path:
    """Writes one checkpoint below `folder`, whole or not at all; an existing one of that step stays.

    Args:
        folder: `checkpoints/` of a run.
        snapshot: What to write.

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
        _check_space(folder, snapshot.num_bytes)
        hidden.mkdir()
        faults.point("checkpoint.begin", step)
        contents = {WEIGHTS: snapshot.weights, TRAINING: snapshot.training}
        files = {name: _save_state(hidden / name, state, "checkpoint", step) for name, state in contents.items()}
        whole = sealed({"format": FORMAT_VERSION, **snapshot.manifest, "files": files})
        _write(hidden / MANIFEST, json.dumps(whole, indent=2).encode(), "checkpoint", step)
        _sync_folder(hidden)
        faults.point("checkpoint.rename", step)
        hidden.rename(target)
        faults.point("checkpoint.renamed", step)
        _sync_folder(folder)
    except BaseException as error:
        shutil.rmtree(hidden, ignore_errors=True)
        if not isinstance(error, OSError):
            raise
        raise SaveError(
            f"saving {target}: {error.strerror or error}; the checkpoints before it are intact, go on from them with "
            f"--run-dir {folder.parent}"
        ) from error
    return target


def sealed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest as JSON gives it back, with a sha256 of all the rest in it."""
    rest = json.loads(json.dumps({key: value for key, value in manifest.items() if key != "sha256"}))
    canonical = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return {**rest, "sha256": hashlib.sha256(canonical.encode()).hexdigest()}


def plain(value: Any) -> Any:
    """The same value with NumPy scalars as Python's own, at any depth; keys and types of containers are kept."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return _made(value, ((plain(key), plain(item)) for key, item in value.items()))
    if type(value) in (list, tuple):
        return type(value)(plain(item) for item in value)
    return value


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
            torch.save(plain(state), stream)  # type: ignore[arg-type]  # it wants write() and flush() only
        except RuntimeError as error:  # torch's writer hides the operating system's error behind its own
            raise _cause(error) from error
        faults.point(f"{where}.write", step, path)
        written = stream.sync()
        faults.point(f"{where}.sync", step, path)
    return written


def _cause(error: BaseException) -> OSError:
    """The operating system's error behind a failed `torch.save`."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, OSError):
        found = found.__cause__ or found.__context__
    return found if found is not None else OSError(str(error))


def _write(path: Path, content: bytes, where: str, step: int | None = None) -> dict[str, Any]:
    with _hashed(path) as stream:
        stream.write(content)
        faults.point(f"{where}.write", step, path)
        written = stream.sync()
        faults.point(f"{where}.sync", step, path)
    return written


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed + _OVERHEAD_BYTES:
        raise OSError(
            errno.ENOSPC,
            f"{needed / 2**20:.1f} MiB are needed and {free / 2**20:.1f} MiB are free; make room",
        )


def save_weights(path: Path, weights: Mapping[str, Any]) -> None:
    """Writes the final `model_weights.pth`, whole or not at all; `torch.load(…, weights_only=True)` reads it.

    Raises:
        SaveError: The disk is full, read-only or gone.
    """
    hidden = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        _check_space(path.parent, Snapshot(weights, {}, {}).num_bytes)
        _save_state(hidden, weights, "weights")
        faults.point("weights.rename")
        hidden.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            hidden.unlink(missing_ok=True)
        raise SaveError(
            f"saving {path}: {error.strerror or error}; the last checkpoint is intact, the same command goes on from it"
        ) from error


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
    if sealed(manifest) != manifest:
        raise DamagedError(f"{folder.name}: its manifest is not what was written (sha256 differs)")
    if set(files) != {WEIGHTS, TRAINING} or name_of(step) != folder.name:
        raise DamagedError(f"{folder.name}: its manifest is of another checkpoint")
    for name, expected in files.items():
        _verify_file(folder / name, expected)
    return Checkpoint(folder, manifest)


def awaited(folder: Path, patience_seconds: float = 60.0) -> Checkpoint:
    """Checks a checkpoint that another node has written or checked: file systems show it everywhere after a while.

    Raises:
        DamagedError: It did not become whole in that time.
    """
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            return verify(folder)
        except DamagedError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(_LOOK_SECONDS)
        with contextlib.suppress(OSError):
            os.listdir(folder.parent)  # which makes NFS ask its server again


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


def load_state(path: Path) -> dict[str, Any]:
    """What `torch.save` wrote of a state_dict, on the CPU; a file that would run code is refused.

    Raises:
        DamagedError: It is no such file.
    """
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
            say(f"{error}; {_set_aside(path)}, taking the one before")
    if candidates or any(folder.glob(".corrupt-*")):
        raise DamagedError(
            f"all checkpoints in {folder} are damaged; look at its .corrupt-… folders, or start a new run elsewhere"
        )
    return None


def load(folder: Path, say: Callable[[str], None] = print) -> Snapshot | None:
    """What the newest checkpoint that verifies is made of, for a script of your own; `save` is the other half.

    Args:
        folder: Where `save` has put them.
        say: Gets a line for each damaged one, which is passed over.

    Returns:
        None where there never was one.

    Raises:
        DamagedError: There are some, and all are damaged.
    """
    found = newest(folder, say)
    return None if found is None else Snapshot(found.weights(), found.training(), found.manifest)


def _set_aside(path: Path) -> str:
    aside = path.with_name(f".corrupt-{path.name}-{time.time_ns()}")
    try:
        path.rename(aside)
    except OSError as error:
        return f"it cannot be set aside ({error.strerror}) and is passed over"
    return f"set aside as {aside.name}"


def at(folder: Path, which: str, best_step: int | None) -> Checkpoint:
    """The checkpoint that a user names.

    Args:
        folder: `checkpoints/` of a run.
        which: `best`, or a step.
        best_step: Which one is the best.

    Raises:
        UsageError: There is none like that.
        DamagedError: It is damaged.
    """
    steps = [int(path.name.removeprefix("step-")) for path in listed(folder)]
    step = best_step if which == "best" else int(which) if which.isdigit() else None
    if step is None or step not in steps:
        known = ", ".join(map(str, steps)) or "none"
        said = "no evaluation was the best yet" if which == "best" and step is None else f"there is no '{which}'"
        raise UsageError(
            f"--from: {said} in {folder}; there are the steps {known}, and 'best' where evaluate.best is set"
        )
    return verify(folder / name_of(step))


def supersede(folder: Path, step: int) -> None:
    """Takes the checkpoints after a step out of sight: the run goes on from there; the next save removes them."""
    for path in listed(folder):
        if int(path.name.removeprefix("step-")) > step:
            path.rename(path.with_name(f".old-{path.name}-{time.time_ns()}"))


def _discard(path: Path) -> None:
    hidden = path.with_name(f".old-{path.name}-{time.time_ns()}")  # out of sight at once, however long removing takes
    with contextlib.suppress(OSError):
        path.rename(hidden)
        faults.point("checkpoint.prune")
        shutil.rmtree(hidden, ignore_errors=True)


def prune(folder: Path, keep: int, best_step: int | None) -> None:
    """Removes all but the newest `keep` checkpoints and the best."""
    old = [path for path in listed(folder)[keep:] if best_step is None or path.name != name_of(best_step)]
    for path in old:
        _discard(path)
    for left in (*folder.glob(".old-*"), *folder.glob(".step-*")):  # of a start that was killed meanwhile
        shutil.rmtree(left, ignore_errors=True)


# ---------------------------------------------------------------------- the loop's edge


class Saving:
    """When a save is due, rank 0 writes it and the others go on.

    In the background the step pays for a copy of the state. At most one write is under way; what goes wrong with
    it is said at the next step, and it is tried again.

    Args:
        section: The recipe's `save`.
        folder: `checkpoints/` of the run.
        is_first: Whether this rank writes.
        judge: Knows which checkpoint is the best so far.
        warn: Gets a line for each thing that went wrong.
        capture: Gives what a checkpoint is made of after a number of steps.
        saved: Told of each checkpoint on disk: the step, seconds of writing, seconds that training stood still.
        last_step: Of the checkpoint that this start goes on from.
    """

    def __init__(
        self,
        section: schema.Save,
        folder: Path,
        is_first: bool,
        judge: Judge,
        warn: Callable[[str], None],
        *,
        capture: Callable[[int], Snapshot],
        saved: Callable[[int, float, float], None],
        last_step: int | None = None,
    ):
        self.section = section
        self.folder = folder
        self.is_first = is_first
        self.last_step = last_step
        self.capture, self.saved = capture, saved
        self._judge = judge
        self._warn = warn
        self._writer: threading.Thread | None = None
        self._news: deque[str | SaveError] = deque()
        self._stalls: list[float] = []  # seconds that training stood still, for each checkpoint on disk

    def save(self, step: int) -> None:
        """Writes the checkpoint of this step, then removes what is no longer kept.

        Raises:
            SaveError: On rank 0, where this one or the one before failed and the recipe says stop.
        """
        if step == self.last_step:
            return
        self.last_step = step
        if not self.is_first:
            return
        began = time.perf_counter()
        self.wait()
        snapshot, best = self.capture(step), self._judge.step
        if self._in_background(snapshot):
            snapshot = snapshot.copied()
            work = partial(self._write, snapshot, best, time.perf_counter() - began)
            self._writer = threading.Thread(target=work, name="saving")
            self._writer.start()
        else:
            self._write(snapshot, best)
            self.check()

    def check(self) -> None:
        """Reports what became of the write under way; called after each step.

        Raises:
            SaveError: It failed, and the recipe says stop.
        """
        while self._news:
            news = self._news.popleft()
            if isinstance(news, SaveError) and self.section.on_failure == "stop":
                raise news
            self._warn(str(news))

    def wait(self) -> None:
        """Until nothing is being written.

        Raises:
            SaveError: The write failed, and the recipe says stop.
        """
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        self.check()

    def close(self) -> None:
        """Lets a write that is under way end, and says what came of it: nobody is left to raise to."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        while self._news:
            self._warn(str(self._news.popleft()))

    def describe(self) -> str:
        """What this start's checkpoints have cost, in a line; empty where there were none."""
        count, total = len(self._stalls), sum(self._stalls)
        if not count:
            return ""
        longest = f", {max(self._stalls):.2g} s at the longest" if count > 1 else ""
        return f"saved {count} checkpoint{'s' * (count > 1)}; training stood still for {total:.2g} s{longest}"

    def _in_background(self, snapshot: Snapshot) -> bool:
        """As the recipe says; else where the copy takes no more than a quarter of the memory that is free."""
        if self.section.background is not None:
            return self.section.background
        return bool(snapshot.num_bytes < psutil.virtual_memory().available / 4)

    def _write(self, snapshot: Snapshot, best: int | None, stall: float | None = None) -> None:
        """Writes and prunes. Whatever goes wrong is news: in a thread of its own nobody else would hear of it."""
        began = time.perf_counter()
        for pause in (*_PAUSES, None):
            try:
                verify(save(self.folder, snapshot))
                break
            except Exception as error:
                failure = self._failure(snapshot, error)
                if pause is None:
                    self._news.append(failure)
                    return
                self._news.append(f"{failure}; trying again in {pause:g} s")
                _discard(self.folder / name_of(snapshot.step))
                time.sleep(pause)
        try:
            seconds = time.perf_counter() - began
            self._stalls.append(seconds if stall is None else stall)
            self.saved(snapshot.step, seconds, self._stalls[-1])
            prune(self.folder, self.section.keep, best)
        except Exception as error:
            self._news.append(self._failure(snapshot, error))

    def _failure(self, snapshot: Snapshot, error: Exception) -> SaveError:
        if isinstance(error, SaveError):
            return error
        said = str(error) if isinstance(error, DamagedError) else f"{type(error).__name__}: {error}"
        failure = SaveError(f"saving {self.folder / name_of(snapshot.step)}: {said}")
        failure.__cause__ = error
        return failure
