"""A data set in shards: tars as webdataset has them, JSON lines, Parquet; on this machine, or fetched when it is read.

With an index of each shard a sample is found by its number, so that what is true of any data set holds: the same
samples for every number of processes and workers, and a resume that reads nothing again. Only the order is another:
shards are shuffled, and the samples of a few together, so that few shards are open at a time.
"""

from __future__ import annotations

import fcntl
import glob
import hashlib
import os
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from launcher.datasets.files import FOLDER, atomic_write, cache_path, needed, state_of
from launcher.datasets.shard_files import Index, OpenShard, index_of, size_of, suffix_of
from launcher.recipe.directory import absolute
from launcher.recipe.remote_paths import foreign_path

_OURS = re.compile(r"[0-9a-f]{24}\.(tar|jsonl|parquet)")  # what may be removed again
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")


class Shards(Dataset[Any]):
    """Samples of many files: `.tar`, `.jsonl` or `.parquet`.

    A sample is a mapping: of a tar, its members by extension, decoded, and `__key__`; else the fields of a line or row.

    Args:
        path: A file, a pattern (`train-*.tar`, `train-{000..127}.tar`), an address (`hf://datasets/OWNER/NAME/*.tar`),
            or a list of them.
        parts: Keys of a sample, which is a tuple of these then, as in `[jpg, cls]`; `jpg;png` is the first that there
            is.
        transform: What is made of a sample: a function, or a component.
        mixed: Samples of this many shards are shuffled together; as many are open in each process that reads.
        cache: On which disk of this machine shards from elsewhere are kept; None is that of `~/.cache`.
        cache_gb: How much of them; those that were not read for longest make room.

    Attributes:
        shard_sizes: Samples of each shard.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A shard cannot be read, or has a member with `..` in its name, or a link.
    """

    def __init__(
        self,
        path: str | Sequence[str],
        parts: Sequence[str] | None = None,
        transform: Callable[[Any], Any] | None = None,
        mixed: int = 4,
        cache: str | None = None,
        cache_gb: float = 50.0,
    ) -> None:
        if mixed < 1:
            raise ValueError("mixed: at least 1 shard is read at a time")
        self.parts, self.transform, self.mixed = parts, transform, mixed
        self._shards = _shards_of(path, cache, cache_gb)
        self._indices = [shard.index() for shard in self._shards]
        self.shard_sizes = [size_of(index) for index in self._indices]
        self._ends = np.cumsum(self.shard_sizes)
        self._open: OrderedDict[int, OpenShard] = OrderedDict()

    @staticmethod
    def prepare(path: str | Sequence[str], cache: str | None = None, cache_gb: float = 50.0) -> None:
        """Makes the index of each shard: once for all processes of a machine."""
        for shard in _shards_of(path, cache, cache_gb):
            shard.index()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = int(np.searchsorted(self._ends, index, side="right"))
        place = index - (int(self._ends[number - 1]) if number else 0)
        sample: Any = self._opened(number).sample(place)
        if self.parts is not None:
            sample = tuple(_part(sample, names, self._shards[number].name) for names in self.parts)
        return sample if self.transform is None else self.transform(sample)

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which opens shards itself."""
        return {**self.__dict__, "_open": OrderedDict()}

    def _opened(self, number: int) -> OpenShard:
        if number in self._open:
            self._open.move_to_end(number)
        else:
            while len(self._open) >= self.mixed + 1:  # those of a group, and one of the next
                self._open.popitem(last=False)
            shard: _Shard = self._shards[number]
            self._open[number] = OpenShard(shard.local(), shard.name, self._indices[number])
        return self._open[number]


def _part(sample: Any, names: str, shard: str) -> Any:
    for name in names.split(";"):
        if name in sample:
            return sample[name]
    key = sample.get("__key__", "a sample")
    raise ValueError(f"{shard}: {key} has no '{names}'; it has: {', '.join(map(str, sample))}")


# ---------------------------------------------------------------------- where they are


class _Shard:
    """A file on this machine.

    Attributes:
        name: What it is called.
    """

    def __init__(self, name: str):
        self.name = name
        suffix_of(name)

    def local(self) -> Path:
        """It, on this machine."""
        return Path(self.name)

    def facts(self) -> tuple[Any, ...]:
        """What it is known again by."""
        return state_of(Path(self.name))

    def index(self) -> Index:
        """Where its samples lie."""
        return index_of(self.local, self.name, cache_path("shard", *self.facts()).with_suffix(".npz"))


class _RemoteShard(_Shard):
    """A file elsewhere, fetched when it is read and kept for as long as there is room."""

    def __init__(self, name: str, facts: tuple[Any, ...], folder: Path, most: int):
        super().__init__(name)
        self._facts, self._folder, self._most = facts, folder, most

    def facts(self) -> tuple[Any, ...]:
        return self._facts

    def local(self) -> Path:
        digest = hashlib.sha256(repr(self._facts).encode()).hexdigest()[:24]
        file = self._folder / f"{digest}.{suffix_of(self.name)}"
        with _locked(self._folder / f"{digest}.lock"):  # one process of this machine fetches it
            if not file.exists():
                self._make_room(int(self._facts[1] or 0))
                with atomic_write(file) as part:
                    _filesystem(self.name).get_file(self.name, str(part))
            os.utime(file)
        return file

    def _make_room(self, size: int) -> None:
        """Removes what was not read for longest; whoever has it open reads on."""
        files = sorted((file for file in self._folder.iterdir() if _OURS.fullmatch(file.name)), key=_last_read)
        total = size + sum(file.stat().st_size for file in files if file.exists())
        for file in files:
            if total <= self._most:
                return
            total -= file.stat().st_size
            file.unlink(missing_ok=True)


def _last_read(file: Path) -> float:
    with suppress(FileNotFoundError):
        return file.stat().st_mtime
    return 0.0


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _shards_of(path: str | Sequence[str], cache: str | None, cache_gb: float) -> list[_Shard]:
    folder = (cache_path("shards").parent if cache is None else absolute(cache) / FOLDER) / "shards"
    shards: list[_Shard] = []
    for text in [path] if isinstance(path, str) else path:
        if fault := foreign_path(text):
            raise ValueError(f"{text[:120]!r} {fault}")
        for name in _braces(text):
            is_remote = "://" in name
            listed = _remote(name, folder, int(cache_gb * 1e9)) if is_remote else map(_Shard, _local(name))
            shards += listed
    if not shards:
        raise FileNotFoundError(f"{path}: no shard is named so; give .tar, .jsonl or .parquet files")
    return shards


def _braces(text: str) -> Iterator[str]:
    """`train-{00..02}.tar` as three names."""
    match = _BRACES.search(text)
    if match is None:
        yield text
        return
    first, last = match.groups()
    for number in range(int(first), int(last) + 1):
        yield from _braces(f"{text[: match.start()]}{number:0{len(first)}d}{text[match.end() :]}")


def _local(name: str) -> list[str]:
    file = str(absolute(name))
    found = sorted(glob.glob(file)) if glob.has_magic(file) else [file]
    if missing := next((one for one in found if not os.path.isfile(one)), None):
        raise FileNotFoundError(f"no file at {missing}; give the path of a .tar, .jsonl or .parquet file")
    return found


def _remote(name: str, folder: Path, most: int) -> list[_Shard]:
    system = _filesystem(name)
    protocol = name.partition("://")[0]
    paths = sorted(system.glob(name)) if glob.has_magic(name) else [name]
    names = [path if "://" in path else f"{protocol}://{path}" for path in map(str, paths)]
    return [_RemoteShard(one, _remote_facts(system, one), folder, most) for one in names]


def _remote_facts(system: Any, name: str) -> tuple[Any, ...]:
    facts = system.info(name)
    stamps = [str(facts[key]) for key in ("ETag", "etag", "blob_id", "mtime", "last_commit") if facts.get(key)]
    return name, facts.get("size"), *stamps


def _filesystem(name: str) -> Any:
    return needed("fsspec", "hub", "Shards").filesystem(name.partition("://")[0])
