"""7: saving. Weights as safetensors, tensor by tensor: one file, or several with an index where they are large.

Files and index are those of the Hub's libraries: at most 5 GB each, `model-00001-of-00003.safetensors`. Of names that
are one tensor the first alone is written; the others stand in the metadata.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from launcher.checkpoints.format import check_space, weights_saved
from launcher.checkpoints.streamed import blocks_of
from launcher.errors import LauncherError, UsageError
from launcher.internals import has_storage
from launcher.model.rows import bytes_of, shape_of
from launcher.model.sharding import Mesh
from launcher.model.tensor_files import DTYPES, INDEX_SUFFIX, SUFFIX
from launcher.world import faults
from launcher.world.files import atomic_write, write_text

MOST_BYTES = 5 * 10**9  # of a file
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class _Entry:
    """A tensor that is written."""

    name: str
    source: Any
    num_bytes: int


def unfit_for_safetensors(state: Mapping[str, Any]) -> str | None:
    """Why a state cannot be written as safetensors; None where it can be."""
    for name, value in state.items():
        if shape_of(value) is None:
            kind = type(value).__name__
            return f"safetensors holds tensors only, and '{name}' of the model is a {kind}"
        held = value.to_local() if hasattr(value, "to_local") else value  # of a sharded one this process's rows
        if isinstance(held, torch.Tensor) and not has_storage(held):
            return f"safetensors holds dense tensors only, and '{name}' of the model is sparse, quantized or wrapped"
        if value.dtype not in _NAMES:
            return f"safetensors has no {str(value.dtype).removeprefix('torch.')}, which '{name}' is"
    return None


def save_safetensors(
    folder: Path, stem: str, weights: Mapping[str, Any], mesh: Mesh | None = None, most: int = MOST_BYTES
) -> None:
    """Writes `STEM.safetensors`, or several files and then their index; all processes call it where they share a model.

    Args:
        folder: Where.
        stem: What the files are called.
        weights: A state_dict, with rows or tensors in files in place of tensors where it is sharded.
        mesh: Which processes have rows.
        most: Bytes of a file.

    Raises:
        SaveError: The disk is full, read-only or gone.
        LauncherError: There is something else than tensors.
    """
    if fault := unfit_for_safetensors(weights):
        raise LauncherError(f"save.format: {fault}; say pth")
    _save(folder, stem, weights, mesh, most)


def export_safetensors(path: Path, state: Mapping[str, Any], mesh: Mesh | None = None) -> None:
    """Writes one file, however large: that is what was asked for. Otherwise as `save_safetensors`.

    Raises:
        UsageError: It cannot hold the state.
        SaveError: The disk is full, read-only or gone.
    """
    if fault := unfit_for_safetensors(state):
        raise UsageError(f"--to: {fault}; write .pth")
    _save(path.parent, path.name.removesuffix(SUFFIX), state, mesh, sys.maxsize)


def _save(folder: Path, stem: str, weights: Mapping[str, Any], mesh: Mesh | None, most: int) -> None:
    entries, tied = _entries(weights)
    files = _dealt(entries, most)
    with blocks_of([entry.source for file in files for entry in file], mesh) as blocks:
        if blocks is None:
            return
        with weights_saved(folder / f"{stem}{SUFFIX}"):
            check_space(folder, sum(entry.num_bytes for entry in entries))
            _write(folder, stem, list(weights), files, tied, blocks)


def _entries(weights: Mapping[str, Any]) -> tuple[list[_Entry], dict[str, str]]:
    """The tensors that are written, and of other names which of those they are."""
    known: dict[Any, str] = {}
    entries, tied = [], {}
    for name, value in weights.items():
        first = known.setdefault(_identity(value), name)
        if first != name:
            tied[name] = first
            continue
        entries.append(_Entry(name, value, torch.Size(value.shape).numel() * value.dtype.itemsize))
    return entries, tied


def _identity(value: Any) -> Any:
    """What two names of one tensor share."""
    if not isinstance(value, torch.Tensor) or not value.numel():
        return id(value)
    return value.data_ptr(), value.shape, value.stride(), value.dtype


def _dealt(entries: Iterable[_Entry], most: int) -> list[list[_Entry]]:
    """The entries of each file; within one they stand by the size of their numbers, so that all of them are aligned."""
    files: list[list[_Entry]] = [[]]
    size = 0
    for entry in entries:
        if files[-1] and size + entry.num_bytes > most:
            files.append([])
            size = 0
        files[-1].append(entry)
        size += entry.num_bytes
    return [sorted(file, key=lambda entry: -int(entry.source.dtype.itemsize)) for file in files]


def _write(
    folder: Path,
    stem: str,
    order: Sequence[str],
    files: Sequence[Sequence[_Entry]],
    tied: Mapping[str, str],
    blocks: Iterator[Iterable[torch.Tensor]],
) -> None:
    several = len(files) > 1
    names = [f"{stem}-{number:05}-of-{len(files):05}{SUFFIX}" for number in range(1, len(files) + 1)]
    paths = [folder / name for name in (names if several else [f"{stem}{SUFFIX}"])]
    with ExitStack() as stack:
        for path, entries in zip(paths, files, strict=True):
            part = stack.enter_context(atomic_write(path, parents=False))
            here = {name: kept for name, kept in tied.items() if any(kept == entry.name for entry in entries)}
            with part.open("wb") as file:
                _write_file(file, entries, order, here, blocks)
                faults.point("weights.write", None, part)
                file.flush()
                os.fsync(file.fileno())
                faults.point("weights.sync", None, part)
        faults.point("weights.rename")
    if several:
        places = {entry.name: path.name for path, entries in zip(paths, files, strict=True) for entry in entries}
        total = sum(entry.num_bytes for entries in files for entry in entries)
        index = {
            "metadata": {"total_size": total, **tied},
            "weight_map": {name: places[name] for name in order if name in places},
        }
        write_text(folder / f"{stem}{INDEX_SUFFIX}", json.dumps(index, indent=2))


def _write_file(
    file: IO[bytes],
    entries: Sequence[_Entry],
    order: Sequence[str],
    tied: Mapping[str, str],
    blocks: Iterator[Iterable[torch.Tensor]],
) -> None:
    """A length, a header in the order of the state_dict, and the tensors."""
    said: dict[str, Any] = {}
    begin = 0
    for entry in entries:
        shape, stop = list(entry.source.shape), begin + entry.num_bytes
        said[entry.name] = {"dtype": _NAMES[entry.source.dtype], "shape": shape, "data_offsets": [begin, stop]}
        begin = stop
    header = {"__metadata__": {"format": "pt", **tied}, **{name: said[name] for name in order if name in said}}
    content = json.dumps(header, separators=(",", ":")).encode()
    content += b" " * (-len(content) % 8)
    file.write(len(content).to_bytes(8, "little") + content)
    for _ in entries:
        for block in next(blocks):
            file.write(bytes_of(block))
