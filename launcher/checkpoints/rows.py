"""7: saving. Tensors of which each process writes some rows: raw bytes, with an index in JSON; no pickle.

Beside the files of every checkpoint stand `rows-00000.bin` of rank 0, `rows-00001.bin` of rank 1, with an index each.
An index says of which tensor which rows stand where, with a sha256 of every few rows: whoever reads some of them proves
what it has read, and nothing else is read. The manifest has the sha256 of the indexes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from launcher.errors import LauncherError
from launcher.model.rows import Read, Rows, bytes_of, fill
from launcher.recipe.inputs import unreadable
from launcher.world import faults

MARK = "_rows_"  # in a state that torch.save writes: here belongs the tensor of this name
_PROVEN_BYTES = 64 * 1024  # what is proven at once, at least
_PROOFS = 32  # of a piece, at most: who reads a part of it reads little more
_DATA, _INDEX = "rows-{:05d}.bin", "rows-{:05d}.json"
_INDEX_NAME = re.compile(r"rows-\d{5}\.json")
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex128),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    )
}


class DamagedError(LauncherError):
    """A checkpoint is not what its manifest says."""


class DamagedRowsError(DamagedError):
    """Nor are rows of it, which nobody has read before."""


# ---------------------------------------------------------------------- writing


def without_rows(tree: Any, found: dict[str, Rows], name: str) -> Any:
    """A state in which marks stand for its rows, which are put into `found` by name, in the same order on all ranks.

    Args:
        tree: Tensors, rows and plain values at any depth.
        found: Takes the rows.
        name: Of the state, before those of its tensors.
    """
    return _marked(tree, found, name, {id(rows): key for key, rows in found.items()})


def _marked(value: Any, found: dict[str, Rows], name: str, names: dict[int, str]) -> Any:
    if isinstance(value, Rows):
        if id(value) not in names:
            names[id(value)], found[name] = name, value
        return {MARK: names[id(value)]}
    if isinstance(value, Mapping):
        items = ((key, _marked(item, found, f"{name}/{key}", names)) for key, item in value.items())
        return OrderedDict(items) if isinstance(value, OrderedDict) else dict(items)
    if type(value) in (list, tuple):
        return type(value)(_marked(item, found, f"{name}/{place}", names) for place, item in enumerate(value))
    return value


def write_rows(folder: Path, rank: int, found: Mapping[str, Rows], step: int) -> dict[str, Any]:
    """Writes this rank's rows and their index, to the disk.

    Returns:
        The entry of the manifest: the index's name, its size and hash, and the size of the data.
    """
    index: dict[str, Any] = {}
    with (folder / _DATA.format(rank)).open("wb") as file:
        for name, rows in found.items():
            index[name] = _write_tensor(file, rows)
        size = file.tell()
        _synced(file, folder / _DATA.format(rank), step)
    content = json.dumps(index, separators=(",", ":")).encode()
    with (folder / _INDEX.format(rank)).open("wb") as file:
        file.write(content)
        _synced(file, folder / _INDEX.format(rank), step)
    return {
        "name": _INDEX.format(rank),
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "data_bytes": size,
    }


def _synced(file: Any, path: Path, step: int) -> None:
    faults.point("checkpoint.write", step, path)
    file.flush()
    os.fsync(file.fileno())
    faults.point("checkpoint.sync", step, path)


def _write_tensor(file: Any, rows: Rows) -> dict[str, Any]:
    tensor, count = rows.tensor.detach(), rows.tensor.shape[0]
    at_once = _rows_proven_at_once(count, row_bytes(rows.shape, tensor.dtype))
    entry = {
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "shape": list(rows.shape),
        "first": rows.first,
        "rows": count,
        "offset": file.tell(),
        "at_once": at_once,
    }
    hashes = []
    for start in range(0, count, at_once):
        block = bytes_of(tensor[start : start + at_once])
        hashes.append(hashlib.sha256(block).hexdigest())
        file.write(block)
    return {**entry, "sha256": hashes}


def row_bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """What one row of a tensor of this shape takes."""
    size = dtype.itemsize
    for number in shape[1:]:
        size *= number
    return size


def _rows_proven_at_once(count: int, each: int) -> int:
    return max(1, -(-_PROVEN_BYTES // max(1, each)), -(-count // _PROOFS))


# ---------------------------------------------------------------------- reading


@dataclass(frozen=True)
class _Piece:
    """Some rows in one file."""

    path: Path
    first: int
    rows: int
    offset: int
    at_once: int
    sha256: tuple[str, ...]


@dataclass(frozen=True)
class StoredTensor:
    """A tensor whose rows stand in files.

    Attributes:
        name: Its name.
        shape: Of the whole.
        dtype: Of its numbers.
        pieces: Where which rows stand, in order.
        read: Counts what is read.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    pieces: tuple[_Piece, ...]
    read: Read = field(default_factory=Read)

    def rows(self, first: int, stop: int) -> torch.Tensor:
        """Some of them, proven.

        Raises:
            DamagedError: They are not what was written.
        """
        result = torch.empty((stop - first, *self.shape[1:]), dtype=self.dtype)
        for piece in self.pieces:
            low, high = max(first, piece.first), min(stop, piece.first + piece.rows)
            for start, block in self._blocks(piece, low - piece.first, high - piece.first) if low < high else ():
                begin, end = max(start + piece.first, low), min(start + piece.first + len(block), high)
                shift = start + piece.first
                result[begin - first : end - first] = block[begin - shift : end - shift]
        return result

    def whole(self) -> torch.Tensor:
        """All of it."""
        return self.rows(0, self.shape[0])

    def _blocks(self, piece: _Piece, low: int, high: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Those of a piece that hold some of its rows, each with its first row in the piece."""
        each, size = piece.at_once, row_bytes(self.shape, self.dtype)
        with piece.path.open("rb", buffering=0) as file:
            for number in range(low // each, -(-high // each)):
                start = number * each
                count = min(each, piece.rows - start)
                file.seek(piece.offset + start * size)
                block = bytearray(count * size)
                if not fill(file, memoryview(block)):
                    raise DamagedRowsError(f"{file.name}: cut short")
                if hashlib.sha256(block).hexdigest() != piece.sha256[number]:
                    place = f"{piece.path.parent.name}/{piece.path.name}"
                    raise DamagedRowsError(f"{place}: '{self.name}' is not what was written (sha256 differs)")
                self.read.num_bytes += len(block)
                yield start, torch.frombuffer(block, dtype=torch.uint8).view(self.dtype).view(count, *self.shape[1:])


def stored_in(folder: Path, manifest: Mapping[str, Any], read: Read) -> dict[str, StoredTensor]:
    """The tensors whose rows stand in a checkpoint's files, by name: indexes are proven now, rows when they are read.

    Raises:
        DamagedError: An index is not what was written, or says what cannot be.
    """
    pieces: dict[str, list[tuple[_Piece, tuple[int, ...], torch.dtype]]] = {}
    for entry in manifest["rows"]:
        for name, piece, shape, dtype in _index(folder, entry):
            pieces.setdefault(name, []).append((piece, shape, dtype))
    return {name: _stored(folder, name, parts, read) for name, parts in pieces.items()}


def verify_rows(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Whether the indexes are what was written, and the data is as long; no rows are read.

    Raises:
        DamagedError: They are not.
    """
    stored_in(folder, manifest, Read())


def prove_rows(folder: Path, entry: Mapping[str, Any]) -> None:
    """Reads all that a rank has written back, and proves it.

    Raises:
        DamagedError: It is not what was written.
    """
    for name, piece, shape, dtype in _index(folder, entry):
        tensor = StoredTensor(name, shape, dtype, (piece,))
        for _ in tensor._blocks(piece, 0, piece.rows):
            pass


def _index(folder: Path, entry: Mapping[str, Any]) -> Iterator[tuple[str, _Piece, tuple[int, ...], torch.dtype]]:
    """What an index says, looked at: it may be a stranger's."""
    name = str(entry["name"])
    place = f"{folder.name}/{name}"
    try:
        if not _INDEX_NAME.fullmatch(name):
            raise ValueError("no such name")
        data = folder / name.replace(".json", ".bin")
        if fault := unreadable(folder / name) or unreadable(data):
            raise ValueError(fault)
        content = (folder / name).read_bytes()
        if hashlib.sha256(content).hexdigest() != entry["sha256"]:
            raise ValueError("it is not what was written (sha256 differs)")
        size, used = data.stat().st_size, 0
        if size != entry["data_bytes"]:
            raise ValueError(f"{data.name} has {size} bytes, not {entry['data_bytes']}")
        for key, given in json.loads(content).items():
            piece, shape, dtype = _piece(data, given)
            used += piece.rows * row_bytes(shape, dtype)
            if used > size or piece.offset + piece.rows * row_bytes(shape, dtype) > size:
                raise ValueError(f"'{key}' is said to stand where nothing is")
            yield key, piece, shape, dtype
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{place}: {error}") from error


def _piece(data: Path, given: Mapping[str, Any]) -> tuple[_Piece, tuple[int, ...], torch.dtype]:
    shape = tuple(_natural(number) for number in given["shape"])
    first, rows, offset, at_once = (_natural(given[key]) for key in ("first", "rows", "offset", "at_once"))
    hashes = tuple(str(digest) for digest in given["sha256"])
    if not shape or at_once < 1 or len(hashes) != -(-rows // at_once):
        raise ValueError("its hashes are not those of its rows")
    return _Piece(data, first, rows, offset, at_once, hashes), shape, _DTYPES[given["dtype"]]


def _natural(number: Any) -> int:
    if type(number) is not int or not 0 <= number < 2**62:
        raise ValueError(f"{number!r} is not a number of rows or bytes")
    return number


def _stored(
    folder: Path, name: str, parts: list[tuple[_Piece, tuple[int, ...], torch.dtype]], read: Read
) -> StoredTensor:
    """A tensor of which all rows are there, each once."""
    _, shape, dtype = parts[0]
    pieces = sorted((piece for piece, _, _ in parts if piece.rows), key=lambda piece: piece.first)
    reached = 0
    for piece in pieces:
        if piece.first != reached:
            raise DamagedError(f"{folder.name}: rows of '{name}' are missing or written twice")
        reached += piece.rows
    if reached != shape[0] or any((other, kind) != (shape, dtype) for _, other, kind in parts):
        raise DamagedError(f"{folder.name}: the rows of '{name}' do not make a tensor of its shape")
    return StoredTensor(name, shape, dtype, tuple(pieces), read)


def with_stored(tree: Any, stored: Mapping[str, StoredTensor], made: Callable[[StoredTensor], Any]) -> Any:
    """A state with what is made of each stored tensor in place of its mark; of tied ones it is made once.

    Raises:
        DamagedError: A mark names a tensor that is not there.
    """
    return _unmarked(tree, stored, made, {})


def _unmarked(value: Any, stored: Mapping[str, StoredTensor], made: Any, done: dict[str, Any]) -> Any:
    if isinstance(value, Mapping):
        if value.keys() == {MARK}:
            name = value[MARK]
            if name not in stored:
                raise DamagedError(f"there are no rows of '{name}'")
            if name not in done:
                done[name] = made(stored[name])
            return done[name]
        items = ((key, _unmarked(item, stored, made, done)) for key, item in value.items())
        return OrderedDict(items) if isinstance(value, OrderedDict) else dict(items)
    if type(value) in (list, tuple):
        return type(value)(_unmarked(item, stored, made, done) for item in value)
    return value
