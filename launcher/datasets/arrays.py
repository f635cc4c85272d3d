"""NumPy's files, mapped into memory instead of read into it: every process of a machine shares the same pages."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from launcher.datasets.files import checked_file, staged
from launcher.recipe.inputs import unreadable

_LOCAL_HEADER = 30  # bytes of a zip member's local header before its name


class NumpyArrays(Dataset[Any]):
    """Rows of several arrays: sample *i* is the *i*-th row of each, as a tuple of tensors in the order of the files.

    Args:
        files: One `.npy` file or several, or one `.npz`.
        keys: Which arrays of the `.npz`, in the order of a sample's parts; None is all, in the file's order.
        classes: If the last array holds classes: how many. Every row is checked to lie in 0 … `classes` - 1, and is
            given as int64, which losses want, whatever the file holds.
        transform: What is made of the first part of a sample, a tensor.
        scratch: Copy the files to this disk of the machine first (`data.scratch`).

    Attributes:
        arrays: The arrays themselves.

    Raises:
        FileNotFoundError: A file is not there.
        ValueError: A file is not NumPy's or holds Python objects, the arrays differ in length, or a class is out of
            range.
    """

    def __init__(
        self,
        files: str | Path | Sequence[str | Path],
        keys: Sequence[str] | None = None,
        classes: int | None = None,
        transform: Callable[[Tensor], Any] | None = None,
        scratch: str | Path | None = None,
    ) -> None:
        self.arrays = dict(_named_arrays(_paths(files, scratch), keys))
        _check_lengths(self.arrays)
        for name, array in self.arrays.items():
            _check_type(name, array)
        if classes is not None:
            _check_classes(*list(self.arrays.items())[-1], classes)
        self.transform = transform
        self._has_classes = classes is not None

    @staticmethod
    def prepare(files: str | Path | Sequence[str | Path], scratch: str | Path | None = None) -> None:
        """Copies the files to the scratch disk, if there is one: once for all processes of a machine."""
        _paths(files, scratch)

    @property
    def targets(self) -> NDArray[Any]:
        """The last array."""
        return list(self.arrays.values())[-1]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        parts: list[Any] = self._parts(index)
        if self.transform is not None:
            parts[0] = self.transform(parts[0])
        return tuple(parts)

    @property
    def get_batch(self) -> Callable[[Tensor], tuple[Tensor, ...]] | None:
        """Reads many samples at once; None with a transform, which is made of one."""
        return None if self.transform is not None else self._rows

    def _rows(self, indices: Tensor) -> tuple[Tensor, ...]:
        return tuple(self._parts(indices.numpy()))

    def _parts(self, rows: Any) -> list[Tensor]:
        parts = [_tensor(array[rows]) for array in self.arrays.values()]
        if self._has_classes:
            parts[-1] = parts[-1].long()
        return parts


def _tensor(values: Any) -> Tensor:
    """A copy in memory of ours, which may be written to, in this machine's byte order."""
    array = np.array(values)
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))


def _paths(files: str | Path | Sequence[str | Path], scratch: str | Path | None) -> list[Path]:
    listed = [files] if isinstance(files, str | Path) else files
    return [staged(checked_file(file, "a .npy or .npz file"), scratch) for file in listed]


def _named_arrays(paths: Sequence[Path], keys: Sequence[str] | None) -> list[tuple[str, NDArray[Any]]]:
    if any(path.suffix == ".npz" for path in paths):
        if len(paths) > 1:
            raise ValueError(f"files: {paths[0]} and others; give one .npz, or .npy files only")
        members = mapped_archive(paths[0])
        if missing := [key for key in keys or () if key not in members]:
            raise ValueError(f"{paths[0]} has no array '{missing[0]}'; it has: {', '.join(members)}")
        return [(f"{paths[0]}: {key}", members[key]) for key in keys or members]
    if keys is not None:
        raise ValueError("keys: are for one .npz file; several .npy files are parts of a sample in their order")
    return [(str(path), mapped_array(path)) for path in paths]


def mapped_array(path: Path) -> NDArray[Any]:
    """The array of a .npy file, read as it is needed.

    Raises:
        ValueError: It is none; the message says what it is, in words of ours.
    """
    if fault := unreadable(path):
        raise ValueError(f"{path} {fault}; give the path of a .npy file")
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(_unreadable(path, error)) from error
    return array


def mapped_archive(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an `.npz` file by name: mapped where they are stored plainly (`np.savez`), else read.

    Raises:
        ValueError: It is no such file, or holds Python objects.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return {info.filename.removesuffix(".npy"): _member(path, archive, info) for info in archive.infolist()}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(_unreadable(path, error)) from error


def _member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> NDArray[Any]:
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = read_header(file)
        header = file.tell()
        if info.compress_type != zipfile.ZIP_STORED or dtype.hasobject or 0 in shape:
            file.seek(0)
            array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
            return array
    offset = _data_offset(path, info) + header
    return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape, order="F" if is_fortran else "C")


def _data_offset(path: Path, info: zipfile.ZipInfo) -> int:
    """Where a stored member begins: behind its local header, whose lengths differ from the directory's."""
    with path.open("rb") as file:
        file.seek(info.header_offset + 26)
        lengths = file.read(4)
    name, extra = int.from_bytes(lengths[:2], "little"), int.from_bytes(lengths[2:], "little")
    return info.header_offset + _LOCAL_HEADER + name + extra


def _unreadable(path: Path, error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{path} cannot be read: {error.strerror}"
    if "pickle" not in str(error) and "Python objects" not in str(error):
        return f"{path} cannot be read as NumPy's: {error}; write it again with np.save or np.savez"
    with path.open("rb") as file:  # NumPy takes whatever it does not know for a pickle, and says how to load that
        is_numpy_s = file.read(6).startswith((b"\x93NUMPY", b"PK"))
    if is_numpy_s:
        return f"{path} holds Python objects, not numbers; save an array of numbers, such as np.stack(rows)"
    return f"{path} is not a .npy or .npz file; write it with np.save or np.savez, and read tables with Table"


def _check_lengths(arrays: Mapping[str, NDArray[Any]]) -> None:
    lengths = {name: array.shape[0] if array.ndim else None for name, array in arrays.items()}
    if not lengths or None in lengths.values() or len(set(lengths.values())) > 1:
        shapes = "; ".join(f"{name} has shape {list(array.shape)}" for name, array in arrays.items())
        raise ValueError(f"the arrays do not have one row a sample each: {shapes or 'there are none'}")


def _check_type(name: str, array: NDArray[Any]) -> None:
    try:
        _tensor(array[:0])
    except TypeError as error:
        raise ValueError(f"{name} holds {array.dtype}, which torch has no tensors of; save it as numbers") from error


def _check_classes(name: str, array: NDArray[Any], classes: int) -> None:
    if array.dtype.kind not in "iub":
        raise ValueError(f"{name} holds {array.dtype}; classes are whole numbers: save it with .astype('int64')")
    bad = np.flatnonzero((array < 0) | (array >= classes))
    if len(bad):
        raise ValueError(
            f"{name}: row {bad[0]} is class {array.flat[bad[0]]}, out of range: allowed are 0 to {classes - 1}"
            f" ({len(bad)} such rows)"
        )
