"""3: model. Tensors in files, of which each process reads the rows that it needs: safetensors, and what torch writes.

The first is a length, a header in JSON that says where which tensor stands, and the tensors as raw bytes: so rows are
read without the rest, and without the package. Of the second, torch says where in the archive a tensor stands.
"""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from launcher import internals
from launcher.model.rows import Read, fill
from launcher.recipe.inputs import unreadable

SUFFIX, INDEX_SUFFIX = ".safetensors", ".safetensors.index.json"
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_MOST_HEADER_BYTES = 100_000_000  # as the package has it
_MOST_INDEX_BYTES = 100_000_000


@dataclass(frozen=True)
class FileTensor:
    """A tensor in a file.

    Attributes:
        path: The file.
        name: Of the tensor.
        offset: Where its bytes begin.
        shape: Its shape.
        dtype: Of its numbers.
        read: Counts what is read.
    """

    path: Path
    name: str
    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Read = field(default_factory=Read, compare=False)

    def rows(self, first: int, stop: int) -> torch.Tensor:
        """Some of them, in memory of their own.

        Raises:
            OSError: The file cannot be read, or has become shorter.
        """
        shape = (stop - first, *self.shape[1:])
        return self._at(self.offset + first * self.dtype.itemsize * torch.Size(self.shape[1:]).numel(), shape)

    def whole(self) -> torch.Tensor:
        """All of it, in memory of its own."""
        return self._at(self.offset, self.shape)

    def mapped(self) -> torch.Tensor:
        """All of it, in the pages of the file, which the system may give up; what is written to it is in memory."""
        num_bytes = torch.Size(self.shape).numel() * self.dtype.itemsize
        if not num_bytes:
            return self.whole()
        pages = np.memmap(self.path, np.uint8, "c", self.offset, (num_bytes,))
        return torch.from_numpy(pages).view(self.dtype).view(self.shape)

    def _at(self, offset: int, shape: tuple[int, ...]) -> torch.Tensor:
        result = torch.empty(shape, dtype=self.dtype)
        memory = memoryview(result.view(-1).view(torch.uint8).numpy()) if result.numel() else memoryview(b"")
        with self.path.open("rb", buffering=0) as file:
            file.seek(offset)
            if not fill(file, memory):
                raise OSError(f"{self.path}: cut short while it was read")
        self.read.num_bytes += len(memory)
        return result


@dataclass(frozen=True)
class TensorFile:
    """What the header of a safetensors file says.

    Attributes:
        tensors: By name, in the order of the file.
        metadata: Texts by name.
    """

    tensors: Mapping[str, FileTensor]
    metadata: Mapping[str, str]


def tensor_file(path: Path, read: Read | None = None) -> TensorFile:
    """Reads a header, which may be a stranger's.

    Args:
        path: The file.
        read: Counts what is read of its tensors.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is no such file, or says what cannot be.
    """
    read = Read() if read is None else read
    if fault := unreadable(path):
        raise ValueError(f"it {fault}")
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _MOST_HEADER_BYTES):
            raise ValueError("it is no safetensors file, or is cut short")
        header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("its header is no mapping")
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata are no texts")
    begin = 8 + length
    tensors = {str(name): _tensor(path, str(name), given, begin, size, read) for name, given in header.items()}
    return TensorFile(tensors, metadata)


def _tensor(path: Path, name: str, given: Any, begin: int, size: int, read: Read) -> FileTensor:
    try:
        kind, shape, (first, stop) = given["dtype"], tuple(given["shape"]), given["data_offsets"]
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"what it says of '{name}' cannot be read") from error
    if kind not in DTYPES:
        raise ValueError(f"'{name}' is of the type {kind!s:.20}, which this program does not read")
    numbers = [*shape, first, stop]
    if any(type(number) is not int or not 0 <= number < 2**62 for number in numbers):
        raise ValueError(f"'{name}' has a shape or place that cannot be")
    dtype = DTYPES[kind]
    num_bytes = dtype.itemsize
    for number in shape:
        num_bytes *= number
    if stop - first != num_bytes or begin + stop > size:
        raise ValueError(f"'{name}' is said to stand where it is not")
    return FileTensor(path, name, begin + first, shape, dtype, read)


def is_safetensors(path: Path) -> bool:
    """Whether a file is one, or an index of such, by its name."""
    return path.name.endswith((SUFFIX, INDEX_SUFFIX))


def indexed_files(index: Path) -> list[Path]:
    """The files that an index names, which lie beside it.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no index, or names files elsewhere.
    """
    if index.stat().st_size > _MOST_INDEX_BYTES:
        raise ValueError("it is no index of safetensors files")
    said = json.loads(index.read_bytes())
    places = said.get("weight_map") if isinstance(said, dict) else None
    if not isinstance(places, dict) or not places:
        raise ValueError("it is no index of safetensors files")
    names = list(dict.fromkeys(places.values()))
    if strange := [name for name in names if not isinstance(name, str) or Path(name).name != name]:
        raise ValueError(f"it names a file elsewhere: {strange[0]!s:.60}")
    return [index.parent / name for name in names]


def stored_tensors(path: Path, read: Read | None = None) -> dict[str, FileTensor]:
    """The tensors of a file, or of all that an index names; names that are one tensor have it both.

    Args:
        path: The `.safetensors` file, or the index.
        read: Counts what is read of them.

    Raises:
        OSError: A file cannot be read.
        ValueError: It is no such file, or says what cannot be.
    """
    files = indexed_files(path) if path.name.endswith(INDEX_SUFFIX) else [path]
    found: dict[str, FileTensor] = {}
    tied: dict[str, str] = {}
    for file in files:
        opened = tensor_file(file, read)
        found.update(opened.tensors)
        tied.update(opened.metadata)
    if path.name.endswith(INDEX_SUFFIX):
        said = json.loads(path.read_bytes()).get("metadata") or {}
        tied.update({name: kept for name, kept in said.items() if isinstance(kept, str)})
    missing = {name: found[kept] for name, kept in tied.items() if kept in found and name not in found}
    return {**found, **missing}


def archived_tensors(path: Path, load: Callable[..., Any] = torch.load, **options: Any) -> Any:
    """What `torch.load` gives of a file, with tensors that stay there.

    Args:
        path: The file.
        load: `torch.load` itself.
        **options: Of it.

    Raises:
        ValueError: It is no zip archive of this machine's byte order, or has tensors with gaps.
        Exception: Whatever `torch.load` says of it.
    """
    if not zipfile.is_zipfile(path):
        raise ValueError("it is no zip archive")
    with zipfile.ZipFile(path) as archive:
        orders = [archive.read(name) for name in archive.namelist() if name.endswith("/byteorder")]
    if orders != [sys.byteorder.encode()]:
        raise ValueError("it is of another byte order, or does not say of which")
    mode, _ = internals.fake_tensors()
    with mode():
        state = load(path, **options)
    made: dict[Any, FileTensor] = {}

    def stored(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        place = internals.place_in_archive(leaf.untyped_storage())
        if place is None or leaf.layout != torch.strided or not leaf.is_contiguous():
            raise ValueError("it has tensors with gaps")
        offset = place + int(leaf.storage_offset()) * leaf.dtype.itemsize
        given = FileTensor(path, "", offset, tuple(leaf.shape), leaf.dtype)
        return made.setdefault((offset, given.shape, given.dtype), given)

    return internals.of_the_same_versions(internals.tree_map(stored, state), state)
