"""One file of a data set in shards: where its samples lie, and how one is read. Nothing in it is ever run.

An index is made once for each file, by going through it, and kept; with it any sample is found at once.
"""

from __future__ import annotations

import functools
import io
import json
import math
import mmap
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from launcher.datasets.files import atomic_write, needed

Index = Mapping[str, NDArray[Any]]

_PICTURES = ("jpg", "jpeg", "png", "webp", "bmp")
_TEXTS, _NUMBERS = ("txt", "text"), ("cls", "cls2", "id", "index")


def suffix_of(name: str) -> str:
    """The kind of a shard by its name.

    Raises:
        ValueError: It is none that can be read at any place.
    """
    suffix = PurePosixPath(name).suffix.lower()
    kind = {".tar": "tar", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".pq": "parquet"}.get(suffix)
    if kind is None:
        remedy = "; unpack it, to be read from any place" if suffix in (".gz", ".zst", ".tgz", ".bz2", ".xz") else ""
        raise ValueError(f"{name} is not a shard: allowed are .tar, .jsonl and .parquet{remedy}")
    return kind


def index_of(used: Callable[[Callable[[Path], Index]], Index], name: str, kept: Path) -> Index:
    """Where the samples of a shard lie, from what was kept or by going through it.

    Args:
        used: Gives what a function makes of the shard on this machine, to which it may have to be brought.
        name: What it is called, for messages.
        kept: Where its index is, or will be.

    Raises:
        ValueError: It cannot be read, or has members that no data set has.
    """
    try:
        with np.load(kept, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError):
        pass
    read = {"tar": _of_tar, "jsonl": _of_lines, "parquet": _of_parquet}[suffix_of(name)]
    index = used(lambda file: read(file, name))
    kept.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(kept) as part, part.open("wb") as opened:
        np.savez(opened, allow_pickle=False, **index)
    return index


def size_of(index: Index) -> int:
    """How many samples a shard has."""
    return len(index["first"]) - 1


def _of_tar(file: Path, name: str) -> dict[str, NDArray[Any]]:
    """Members that follow one another under one key are a sample, as webdataset has it."""
    first, extensions = [0], []
    places: list[tuple[int, int]] = []
    keys: list[str] = []
    for member in _members(file, name):
        key, extension = _key_and_extension(member.name)
        if not keys or keys[-1] != key:
            first += [len(places)] if keys else []
            keys.append(key)
        places.append((member.offset_data, member.size))
        extensions.append(extension)
    first += [len(places)] if keys else []
    return {
        "first": np.array(first, dtype=np.int64),
        "places": np.array(places, dtype=np.int64).reshape(-1, 2),
        "extensions": np.array(extensions, dtype=np.str_),
        "keys": np.array(keys, dtype=np.str_),
    }


def _members(file: Path, name: str) -> Iterator[tarfile.TarInfo]:
    try:
        with tarfile.open(file, "r:") as archive:
            for member in archive:
                if member.isdir() and _is_inside(member.name):
                    continue
                if not member.isreg() or member.issparse() or not _is_inside(member.name):
                    what = "a link" if member.islnk() or member.issym() else "no plain file below the archive"
                    raise ValueError(f"{name}: its member '{member.name[:120]!s}' is {what}; it is not read further")
                yield member
    except tarfile.TarError as error:
        raise ValueError(f"{name} cannot be read as a tar: {error}") from error


def _is_inside(member: str) -> bool:
    path = PurePosixPath(member)
    return not path.is_absolute() and ".." not in path.parts and "\\" not in member and "\0" not in member


def _key_and_extension(member: str) -> tuple[str, str]:
    folder, _, base = member.rpartition("/")
    key, _, extension = base.partition(".")
    return (f"{folder}/{key}" if folder else key), extension.lower()


def _of_lines(file: Path, name: str) -> dict[str, NDArray[Any]]:
    lengths = []
    with file.open("rb") as lines:
        lengths = [len(line) for line in lines]
    first = np.append(0, np.cumsum(lengths, dtype=np.int64)).astype(np.int64)
    if len(lengths) and lengths[-1] == 1:  # an empty line at the end is not a sample
        first = first[:-1]
    return {"first": first}


def _of_parquet(file: Path, name: str) -> dict[str, NDArray[Any]]:
    parquet = needed("pyarrow.parquet", "tables", "Shards")
    try:
        rows = parquet.ParquetFile(file).metadata.num_rows
    except Exception as error:
        raise ValueError(f"{name} cannot be read as Parquet: {error}") from error
    return {"first": np.arange(rows + 1, dtype=np.int64)}


# ---------------------------------------------------------------------- reading


class OpenShard:
    """A shard that is being read: mapped into memory, or a table of Arrow's.

    Args:
        file: On this machine.
        name: What it is called, for messages.
        index: Where its samples lie.
    """

    def __init__(self, file: Path, name: str, index: Index):
        self.name, self.index, self.kind = name, index, suffix_of(name)
        if self.kind == "parquet":
            self.table = needed("pyarrow.parquet", "tables", "Shards").read_table(file)
            return
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.bytes = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        finally:
            os.close(descriptor)

    def sample(self, number: int) -> dict[str, Any]:
        """One sample, decoded.

        Raises:
            ValueError: It is of a kind that is not read, or broken.
        """
        if self.kind == "parquet":
            row: dict[str, Any] = self.table.slice(number, 1).to_pylist()[0]
            return row
        start, stop = self.index["first"][number : number + 2].tolist()
        if self.kind == "jsonl":
            value = _decoded("json", bytes(self.bytes[start:stop]), f"{self.name}, line {number + 1}")
            return value if isinstance(value, dict) else {"value": value}
        key = str(self.index["keys"][number])
        sample: dict[str, Any] = {"__key__": key}
        for member in range(start, stop):
            offset, size = self.index["places"][member].tolist()
            extension = str(self.index["extensions"][member])
            content = bytes(self.bytes[offset : offset + size])
            sample[extension] = _decoded(extension, content, f"{self.name}: {key}.{extension}")
        return sample


def _decoded(extension: str, content: bytes, place: str) -> Any:
    """What a member holds, by the last part of its extension."""
    decode = DECODERS.get(extension.rpartition(".")[2])
    if decode is None:
        raise ValueError(f"{place} is not read; allowed are: {', '.join(DECODERS)}")
    try:
        return decode(content)
    except Exception as error:
        raise ValueError(f"{place} cannot be read: {type(error).__name__}: {error}") from error


def _picture(content: bytes) -> Any:
    picture = needed("PIL.Image", "images", "Shards").open(io.BytesIO(content))
    picture.load()
    return picture.convert("RGB")


def _array(content: bytes) -> Any:
    """An array of its own; the samples of a shard have one header, and NumPy takes long over it."""
    length = int.from_bytes(content[8:10] if content[6:7] == b"\x01" else content[8:12], "little")
    start = length + (10 if content[6:7] == b"\x01" else 12)
    shape, is_fortran, dtype = _form_of(content[:start])
    values = np.frombuffer(content, dtype=dtype, offset=start, count=math.prod(shape))
    return values.reshape(shape, order="F" if is_fortran else "C").copy(order="K")


@functools.lru_cache(maxsize=256)
def _form_of(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    stream = io.BytesIO(header)
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read(stream)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are not unpickled")
    return shape, is_fortran, dtype


def _arrays(content: bytes) -> Any:
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return dict(arrays)


DECODERS: dict[str, Callable[[bytes], Any]] = {
    **dict.fromkeys(_PICTURES, _picture),
    **dict.fromkeys(_TEXTS, lambda content: content.decode("utf-8")),
    **dict.fromkeys(_NUMBERS, lambda content: int(content)),
    "json": json.loads,
    "npy": _array,
    "npz": _arrays,
}
