"""7: saving. Whole weights from rows, tensor by tensor: nobody holds more than one of them.

The file is what `torch.save` makes of the whole state: laid out first, without its numbers, and filled in.
"""

from __future__ import annotations

import json
import os
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch
import torch.distributed as dist
from torch.serialization import skip_data

from launcher.checkpoints.format import check_space, plain, weights_saved
from launcher.checkpoints.rows import StoredTensor, bytes_of, row_bytes
from launcher.errors import UsageError
from launcher.internals import storage_id
from launcher.model.rows import Rows, rows_of
from launcher.model.sharding import Mesh
from launcher.world import faults
from launcher.world.files import atomic_write

_BLOCK_BYTES = 2**26  # read at once of a tensor in files


def save_streamed(path: Path, weights: Mapping[str, Any], mesh: Mesh) -> None:
    """Writes whole weights, whole or not at all; all processes call it, and rank 0 writes.

    Args:
        path: The file to make, `.pth` or `.safetensors`.
        weights: A state_dict with rows, or tensors in files, in place of tensors.
        mesh: Which processes have rows.

    Raises:
        UsageError: A `.safetensors` file does not hold such values.
        SaveError: On rank 0: the disk is full, read-only or gone.
    """
    write = _write
    if path.suffix == ".safetensors":
        check_holds(weights)
        write = _write_safetensors
    if mesh.group_rank:
        return
    sources = [value for value in _once(weights) if not isinstance(value, torch.Tensor)]
    if mesh.rank:
        for _ in _gathered(sources, mesh):
            pass
        return
    blocks = _gathered(sources, mesh)
    try:
        with weights_saved(path):
            write(path, weights, sources, blocks)
    finally:
        for _ in blocks:  # the others wait to give theirs
            pass


def _once(weights: Mapping[str, Any]) -> list[Any]:
    """The values that tensors are made of, tied ones once."""
    kinds = (torch.Tensor, Rows, StoredTensor)
    return list({id(value): value for value in weights.values() if isinstance(value, kinds)}.values())


def tied(weights: Mapping[str, Any]) -> dict[str, str]:
    """Which names are second ones, and the first of the same tensor; as safetensors chooses between them."""
    first: dict[int, str] = {}
    for name in sorted(weights):
        first.setdefault(id(weights[name]), name)
    return {name: first[id(value)] for name, value in weights.items() if first[id(value)] != name}


def _gathered(sources: Iterable[Any], mesh: Mesh) -> Iterator[tuple[Any, Iterator[torch.Tensor]]]:
    """Each source with its rows from the first to the last, in blocks; on ranks other than 0 nothing is in them."""
    for source in sources:
        if isinstance(source, StoredTensor):
            yield source, _read(source)
        else:
            yield source, iter(_collected(source, mesh))


def _read(source: StoredTensor) -> Iterator[torch.Tensor]:
    rows = source.shape[0]
    each = max(1, _BLOCK_BYTES // max(1, row_bytes(source.shape, source.dtype)))
    return (source.rows(first, min(first + each, rows)) for first in range(0, rows, each))


def _collected(source: Rows, mesh: Mesh) -> list[torch.Tensor]:
    """The rows of all processes of the group, on its first one."""
    each = rows_of(source.shape[0], 0, mesh.per_group)[1]
    own = source.tensor.detach()
    padded = own if len(own) == each else torch.cat([own, own.new_zeros((each - len(own), *own.shape[1:]))])
    parts = [torch.empty_like(padded) for _ in range(mesh.per_group)] if mesh.rank == 0 else None
    dist.gather(padded.contiguous(), parts, group_dst=0, group=mesh.group)
    shares = [rows_of(source.shape[0], rank, mesh.per_group) for rank in range(mesh.per_group)]
    return [part[: stop - first] for part, (first, stop) in zip(parts or (), shares, strict=False)]


# ---------------------------------------------------------------------- the file


def _write(path: Path, weights: Mapping[str, Any], sources: Sequence[Any], blocks: Any) -> None:
    shell, places = _shell(weights)
    check_space(path.parent, sum({storage_id(s): s.nbytes() for s in map(_storage, shell.values()) if s}.values()))
    with atomic_write(path, parents=False) as part:
        records = _laid_out(part, shell)
        with part.open("r+b") as file:
            checks = {}
            for source, rows in blocks:
                record = records[places[id(source)]]
                checks[record.filename] = _fill(file, _data_offset(file, record), rows)
            for value in _once(weights):
                if isinstance(value, torch.Tensor):
                    record = records[places[id(value)]]
                    checks[record.filename] = _fill(file, _data_offset(file, record), [_stored_as(value)])
            _put_checks(file, part, checks)
            faults.point("weights.write", None, part)
            file.flush()
            os.fsync(file.fileno())
            faults.point("weights.sync", None, part)
        faults.point("weights.rename")


def _storage(value: Any) -> torch.UntypedStorage | None:
    return value.untyped_storage() if isinstance(value, torch.Tensor) else None


def _shell(weights: Mapping[str, Any]) -> tuple[dict[str, Any], dict[int, int]]:
    """A state of tensors that hold nothing, and the number of each source's storage in the file."""
    made: dict[int, torch.Tensor] = {}
    shell: dict[str, Any] = OrderedDict()
    for name, value in weights.items():
        if isinstance(value, Rows | StoredTensor):
            dtype = value.tensor.dtype if isinstance(value, Rows) else value.dtype
            shell[name] = made.setdefault(id(value), torch.empty(value.shape, dtype=dtype))
        elif isinstance(value, torch.Tensor):
            shell[name] = made.setdefault(id(value), torch.empty(value.shape, dtype=value.dtype))
        else:
            shell[name] = value
    return shell, {identity: number for number, identity in enumerate(made)}


def _stored_as(value: torch.Tensor) -> torch.Tensor:
    return value.detach().reshape(1, -1) if value.ndim == 0 else value.detach()


def _laid_out(part: Path, shell: Mapping[str, Any]) -> dict[int, zipfile.ZipInfo]:
    """Writes the file without numbers; gives the record of each storage by its number."""
    with part.open("wb") as file, skip_data():
        torch.save(plain(shell), file)
    with zipfile.ZipFile(part) as archive:
        found = {info.filename.rpartition("/data/")[2]: info for info in archive.infolist()}
    return {int(name): info for name, info in found.items() if name.isdigit()}


# ---------------------------------------------------------------------- the same as safetensors

_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.complex64: "C64",
}


def check_holds(weights: Mapping[str, Any]) -> None:
    """Refuses what safetensors cannot hold.

    Raises:
        UsageError: It holds no such thing.
    """
    for name, value in weights.items():
        if (dtype := getattr(value, "dtype", None)) not in _TYPES:
            kind = type(value).__name__ if dtype is None else str(dtype)
            raise UsageError(f"--to: safetensors holds tensors only, and '{name}' of the model is a {kind}; write .pth")


def _write_safetensors(path: Path, weights: Mapping[str, Any], sources: Sequence[Any], blocks: Any) -> None:
    second = tied(weights)
    header, places, size = _header({name: value for name, value in weights.items() if name not in second}, second)
    check_space(path.parent, size)
    with atomic_write(path, parents=False) as part, part.open("wb") as file:
        file.write(header)
        for source, rows in blocks:
            _fill(file, places[id(source)], rows)
        for value in _once(weights):
            if isinstance(value, torch.Tensor):
                _fill(file, places[id(value)], [_stored_as(value)])
        faults.point("weights.write", None, part)
        file.flush()
        os.fsync(file.fileno())


def _header(weights: Mapping[str, Any], second: Mapping[str, str]) -> tuple[bytes, dict[int, int], int]:
    """What stands before the numbers, where each tensor's begin, and how long the file is; wide ones come first."""
    entries: dict[str, Any] = {"__metadata__": dict(second)} if second else {}
    starts, end = dict[int, int](), 0
    for name, value in sorted(weights.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])):
        starts[id(value)], begin = end, end
        end += value.dtype.itemsize * torch.Size(value.shape).numel()
        entries[name] = {"dtype": _TYPES[value.dtype], "shape": list(value.shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    header = struct.pack("<Q", len(text)) + text
    return header, {number: len(header) + start for number, start in starts.items()}, len(header) + end


# ---------------------------------------------------------------------- the same as torch.save, its zip file

_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_CENTRAL = struct.Struct("<4sHHHHHHIIIHHHHHII")


def _data_offset(file: IO[bytes], record: zipfile.ZipInfo) -> int:
    file.seek(record.header_offset)
    header = _LOCAL.unpack(file.read(_LOCAL.size))
    return record.header_offset + _LOCAL.size + int(header[9]) + int(header[10])


def _fill(file: IO[bytes], offset: int, rows: Iterable[torch.Tensor]) -> int:
    """Puts rows where they belong; gives the check sum of all of them."""
    check = 0
    file.seek(offset)
    for tensor in rows:
        block = bytes_of(tensor)
        check = zlib.crc32(block, check)
        file.write(block)
    return check


def _put_checks(file: IO[bytes], part: Path, checks: Mapping[str, int]) -> None:
    """Puts check sums into the file's headers, and into its directory."""
    with zipfile.ZipFile(part) as archive:
        records, place = archive.infolist(), archive.start_dir
    for record in records:
        file.seek(place)
        entry = _CENTRAL.unpack(file.read(_CENTRAL.size))
        if record.filename in checks:
            check = struct.pack("<I", checks[record.filename])
            file.seek(place + 16)
            file.write(check)
            _put_local_check(file, record, check)
        place += _CENTRAL.size + sum(map(int, entry[10:13]))


def _put_local_check(file: IO[bytes], record: zipfile.ZipInfo, check: bytes) -> None:
    """In the header before the data, or in what follows it where the header says so."""
    if record.flag_bits & 8:
        file.seek(_data_offset(file, record) + record.file_size)
        if file.read(4) == b"PK\x07\x08":
            file.seek(_data_offset(file, record) + record.file_size + 4)
            file.write(check)
    else:
        file.seek(record.header_offset + 14)
        file.write(check)
