"""7: saving. Whole weights from rows, tensor by tensor: nobody holds more than one of them.

The file is what `torch.save` makes of the whole state: laid out first, without its numbers, and filled in.
"""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from torch.serialization import skip_data

from launcher.checkpoints.format import check_space, plain, weights_saved
from launcher.checkpoints.rows import StoredTensor
from launcher.internals import storage_id
from launcher.model.rows import Rows, bytes_of
from launcher.model.sharding import Mesh
from launcher.world import faults
from launcher.world.files import atomic_write

_BLOCK_BYTES = 2**26  # read at once of a tensor in files


def save_streamed(path: Path, weights: Mapping[str, Any], mesh: Mesh) -> None:
    """Writes whole weights, whole or not at all; all processes call it, and rank 0 writes.

    Args:
        path: The file to make.
        weights: A state_dict with rows, or tensors in files, in place of tensors.
        mesh: Which processes have rows.

    Raises:
        SaveError: On rank 0: the disk is full, read-only or gone.
    """
    sources = [value for value in _once(weights) if not isinstance(value, torch.Tensor)]
    with blocks_of(sources, mesh) as blocks:
        if blocks is not None:
            with weights_saved(path):
                _write(path, weights, sources, blocks)


@contextmanager
def blocks_of(sources: Sequence[Any], mesh: Mesh | None) -> Iterator[Iterator[Iterable[torch.Tensor]] | None]:
    """Of each source its rows from the first to the last, in blocks, on rank 0; None on the others, which give theirs.

    Args:
        sources: Tensors, rows, or tensors in files; the same on all processes, which call this together.
        mesh: Which processes have rows; None where there are none.
    """
    if mesh is not None and mesh.group_rank:
        yield None
        return
    blocks = _gathered(sources, mesh)
    if mesh is not None and mesh.rank:
        for _ in blocks:
            pass
        yield None
        return
    try:
        yield blocks
    finally:
        for _ in blocks:  # the others wait to give theirs
            pass


def _once(weights: Mapping[str, Any]) -> list[Any]:
    """The values that tensors are made of, tied ones once."""
    kinds = (torch.Tensor, Rows, StoredTensor)
    return list({id(value): value for value in weights.values() if isinstance(value, kinds)}.values())


def _gathered(sources: Iterable[Any], mesh: Mesh | None) -> Iterator[Iterable[torch.Tensor]]:
    """Each source's rows from the first to the last, in blocks; on ranks other than 0 nothing is in them."""
    for source in sources:
        if isinstance(source, torch.Tensor):
            yield [source.detach()]
        elif isinstance(source, StoredTensor):
            yield _read(source)
        else:
            assert mesh is not None
            yield mesh.gathered(source)


def _read(source: StoredTensor) -> Iterator[torch.Tensor]:
    rows = source.shape[0]
    size = source.dtype.itemsize * max(1, torch.Size(source.shape[1:]).numel())
    each = max(1, _BLOCK_BYTES // size)
    return (source.rows(first, min(first + each, rows)) for first in range(0, rows, each))


# ---------------------------------------------------------------------- the file


def _write(path: Path, weights: Mapping[str, Any], sources: Sequence[Any], blocks: Any) -> None:
    shell, places = _shell(weights)
    check_space(path.parent, sum({storage_id(s): s.nbytes() for s in map(_storage, shell.values()) if s}.values()))
    with atomic_write(path, parents=False) as part:
        records = _laid_out(part, shell)
        with part.open("r+b") as file:
            checks = {}
            for source in sources:
                record = records[places[id(source)]]
                checks[record.filename] = _fill(file, _data_offset(file, record), next(blocks))  # and then forgotten
            for value in _once(weights):
                if isinstance(value, torch.Tensor):
                    record = records[places[id(value)]]
                    checks[record.filename] = _fill(file, _data_offset(file, record), [value])
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


def _laid_out(part: Path, shell: Mapping[str, Any]) -> dict[int, zipfile.ZipInfo]:
    """Writes the file without numbers; gives the record of each storage by its number."""
    with part.open("wb") as file, skip_data():
        torch.save(plain(shell), file)
    with zipfile.ZipFile(part) as archive:
        found = {info.filename.rpartition("/data/")[2]: info for info in archive.infolist()}
    return {int(name): info for name, info in found.items() if name.isdigit()}


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
