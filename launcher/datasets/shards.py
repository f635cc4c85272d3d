"""A data set in shards: tars as webdataset has them, JSON lines, Parquet; on this machine, or fetched when it is read.

With an index of each shard a sample is found by its number, so that what is true of any data set holds: the same
samples for every number of processes and workers, and a resume that reads nothing again. Only the order is another:
shards are shuffled, and the samples of a few together, so that few shards are open at a time.
"""

from __future__ import annotations

import glob
import os
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch.utils.data import Dataset

from launcher.datasets.files import FOLDER, cache_path, state_of
from launcher.datasets.remote_shards import Listed, fetched, listed
from launcher.datasets.shard_files import Index, OpenShard, index_of, size_of, suffix_of
from launcher.recipe.directory import absolute
from launcher.recipe.inputs import unreadable
from launcher.recipe.remote_paths import foreign_path

T = TypeVar("T")

_BRACES = re.compile(r"\{(\d{1,18})\.\.(\d{1,18})\}")
_MOST_FILES = 100_000  # that braces may stand for


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
        plan_notes: What the plan should say: of a server that does not answer.

    Raises:
        FileNotFoundError: There is no such file.
        LauncherError: Its server does not answer.
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
        self._shards, self.plan_notes = _shards_of(path, cache, cache_gb)
        self._indices = [shard.index() for shard in self._shards]
        self.shard_sizes = [size_of(index) for index in self._indices]
        self._ends = np.cumsum(self.shard_sizes)
        self._open: OrderedDict[int, OpenShard] = OrderedDict()

    @staticmethod
    def prepare(path: str | Sequence[str], cache: str | None = None, cache_gb: float = 50.0) -> None:
        """Makes the index of each shard: once for all processes of a machine."""
        for shard in _shards_of(path, cache, cache_gb)[0]:
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
            shard = self._shards[number]
            self._open[number] = shard.used(lambda file: OpenShard(file, shard.name, self._indices[number]))
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

    def used(self, use: Callable[[Path], T]) -> T:
        """What is made of it, on this machine."""
        return use(Path(self.name))

    def facts(self) -> tuple[Any, ...]:
        """What it is known again by."""
        return state_of(Path(self.name))

    def index(self) -> Index:
        """Where its samples lie."""
        return index_of(self.used, self.name, cache_path("shard", *self.facts()).with_suffix(".npz"))


class _RemoteShard(_Shard):
    """A file elsewhere, fetched when it is read and kept for as long as there is room."""

    def __init__(self, listed: Listed, folder: Path, most: int):
        super().__init__(listed.name)
        self._listed, self._folder, self._most = listed, folder, most

    def facts(self) -> tuple[Any, ...]:
        return self._listed.facts

    def used(self, use: Callable[[Path], T]) -> T:
        while True:
            file = fetched(self._listed, suffix_of(self.name), self._folder, self._most)
            try:
                return use(file)
            except FileNotFoundError:  # another process has just made room: it is fetched again
                if file.exists():
                    raise


def _shards_of(path: str | Sequence[str], cache: str | None, cache_gb: float) -> tuple[list[_Shard], tuple[str, ...]]:
    """The shards, and what the plan should say of them."""
    folder = (cache_path("shards").parent if cache is None else absolute(cache) / FOLDER) / "shards"
    shards: list[_Shard] = []
    notes: list[str] = []
    for text in [path] if isinstance(path, str) else path:
        if fault := foreign_path(text):
            raise ValueError(f"{text[:120]!r} {fault}")
        _check_braces(text)
        names = list(_braces(text))
        if "://" in text:
            found, note = listed(text, names, folder)
            notes += [note] if note else []
            shards += [_RemoteShard(one, folder, int(cache_gb * 1e9)) for one in found]
        else:
            shards += [_Shard(file) for name in names for file in _local(name)]
    if not shards:
        raise FileNotFoundError(f"{path}: no shard is named so; give .tar, .jsonl or .parquet files")
    return shards, tuple(notes)


def _check_braces(text: str) -> None:
    number = 1
    for first, last in _BRACES.findall(text):
        number *= max(0, int(last) - int(first) + 1)
        if number > _MOST_FILES:
            raise ValueError(f"{text[:120]!r} stands for more than {_MOST_FILES:,} files; check the numbers in braces")


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
    if fault := next((f"{one} {why}" for one in found if (why := unreadable(one))), None):
        raise ValueError(f"{fault}; give the path of a .tar, .jsonl or .parquet file")
    if missing := next((one for one in found if not os.path.isfile(one)), None):
        raise FileNotFoundError(f"no file at {missing}; give the path of a .tar, .jsonl or .parquet file")
    return found
