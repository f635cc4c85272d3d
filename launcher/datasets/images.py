"""Pictures in a folder for each class."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from launcher.datasets.arrays import mapped_archive
from launcher.datasets.files import atomic_write, cache_path, needed, staged
from launcher.errors import SampleError
from launcher.recipe.directory import absolute, directory
from launcher.recipe.inputs import fault_of, leads_back, unreadable
from launcher.text import counted
from launcher.world.world import usable_cpus

EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_VERSION = 1  # of the index


class ImageFolder(Dataset[tuple[Any, int]]):
    """Pictures under ROOT/CLASS/…, each with its class as target; sub-folders of a class are searched too.

    The list of files is made once, kept below `~/.cache`, and made again when a folder has changed: the folder itself
    is only read. Sample *i* is the *i*-th file in the order of its class and name.

    Args:
        root: The folder with one folder for each class.
        classes: Names of the classes in the order of their numbers; None is the folders' names, sorted. A validation
            set says `"${data.train.classes}"`, or a class that it lacks moves the numbers of all behind it.
        transform: What is made of a `PIL.Image`; None is a float tensor of shape [C, H, W] in [0, 1].
        size: Cut and scale each picture to `size` × `size` around its centre, before the transform, by PIL's
            `ImageOps.fit` with its bicubic resampling.
        mode: `RGB`, or `L` for one channel.
        corrupt: What happens to pictures that cannot be read: `error` when one is met, or `skip`: all are opened
            once, when the list is made, those that cannot be read are skipped, and the plan says how many.
        scratch: Copy the folder to this disk of the machine first (`data.scratch`).

    Attributes:
        classes: As above.
        targets: Each sample's class, int64 of shape [samples].
        unreadable: The files that were skipped.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: It has no pictures, or folders that are not among `classes`.
    """

    def __init__(
        self,
        root: str | Path,
        classes: Sequence[str] | None = None,
        transform: Callable[[Any], Any] | None = None,
        size: int | None = None,
        mode: Literal["RGB", "L"] = "RGB",
        corrupt: Literal["error", "skip"] = "error",
        scratch: str | Path | None = None,
    ) -> None:
        self._pillow = needed("PIL.Image", "images", "ImageFolder")
        self._fit = needed("PIL.ImageOps", "images", "ImageFolder").fit
        self.root = staged(_checked(root), scratch)
        index = _index_of(self.root, corrupt)
        self.classes = tuple(classes) if classes is not None else index.classes
        self.targets = index.targets_among(self.classes, self.root)
        self.unreadable = index.unreadable
        self.transform = transform
        self.size = size
        self.mode = mode
        self._paths = index.paths

    @staticmethod
    def prepare(
        root: str | Path, corrupt: Literal["error", "skip"] = "error", scratch: str | Path | None = None
    ) -> None:
        """Copies the folder to the scratch disk, if there is one, and lists it: once for all processes of a machine."""
        needed("PIL.Image", "images", "ImageFolder")
        _index_of(staged(_checked(root), scratch), corrupt)

    @property
    def plan_notes(self) -> tuple[str, ...]:
        """What the plan should say."""
        if not self.unreadable:
            return ()
        count, all_files = len(self.unreadable), len(self.unreadable) + len(self)
        pictures = counted(all_files, "picture")
        return (f"{self.root}: {count:,} of {pictures} cannot be read and are skipped: {self._first()}",)

    def _first(self) -> str:
        return ", ".join(self.unreadable[:3]) + (", …" if len(self.unreadable) > 3 else "")

    def path(self, index: int) -> Path:
        """The file of a sample."""
        return self.root / os.fsdecode(bytes(self._paths[index]))

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        path = self.path(index)
        try:
            with self._pillow.open(path) as file:
                image = file.convert(self.mode)
        except Exception as error:
            why = str(error).replace(f" {str(path)!r}", "")  # which Pillow says once more
            message = f"{path}: this picture cannot be read: {why}; replace or remove it"
            raise SampleError(message, "corrupt=skip") from error
        if self.size is not None:
            image = self._fit(image, (self.size, self.size))
        return (self.transform or _to_tensor)(image), self.target(index)

    def target(self, index: int) -> int:
        """The class of a sample."""
        return int(self.targets[index])

    def row_of(self, index: int) -> dict[str, Any]:
        """What is added to a sample's prediction."""
        return {"file": os.fsencode(os.path.relpath(self.path(index), self.root)).decode(errors="replace")}


def _to_tensor(image: Any) -> Tensor:
    pixels = torch.from_numpy(np.array(image))
    return (pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()).float() / 255


def _checked(root: str | Path) -> Path:
    path = absolute(root)
    if fault := unreadable(path):
        raise FileNotFoundError(f"{root} {fault}; give the folder that has one folder for each class")
    if not path.is_dir():
        raise FileNotFoundError(
            f"no folder at {root} (looked from {directory()}); give the folder that has one folder for each class"
        )
    return path.resolve()


# ---------------------------------------------------------------------- the list of files


@dataclass(frozen=True)
class _Index:
    """What a folder holds.

    Attributes:
        classes: The names of its folders, sorted.
        paths: Files relative to the root, as bytes, of shape [samples].
        targets: Which folder each lies in, of shape [samples].
        unreadable: Files left out.
        times: When each folder, and each file that was left out, changed last, by its relative path.
    """

    classes: tuple[str, ...]
    paths: NDArray[np.bytes_]
    targets: NDArray[np.int64]
    unreadable: tuple[str, ...]
    times: dict[str, int]

    def targets_among(self, classes: Sequence[str], root: Path) -> NDArray[np.int64]:
        """Targets as places among other names.

        Raises:
            ValueError: A folder is not among them.
        """
        if strange := [name for name in self.classes if name not in classes]:
            raise ValueError(
                f"{root / strange[0]}: '{strange[0]}' is none of the {len(classes)} classes ({_some(classes)}); "
                "correct classes, or move the folder away"
            )
        return np.array([classes.index(name) for name in self.classes])[self.targets]


def _index_of(root: Path, corrupt: str) -> _Index:
    """The list of a folder: as it was kept, if no folder has changed since, else made and kept."""
    kept = cache_path("images", _VERSION, str(root), corrupt).with_suffix(".npz")
    index = _read_index(kept)
    if index is None or index.times != _times(root, index.times):
        index = _list(root, corrupt)
        with suppress(OSError):  # a home that is full or read-only: the next run lists again
            _write_index(kept, index)
    return index


def _read_index(kept: Path) -> _Index | None:
    try:
        arrays = mapped_archive(kept)
        about = json.loads(arrays["about"].tobytes())
    except ValueError:  # there is none, or it is damaged
        return None
    return _Index(
        tuple(about["classes"]), arrays["paths"], arrays["targets"], tuple(about["unreadable"]), about["times"]
    )


def _write_index(kept: Path, index: _Index) -> None:
    about = {"classes": index.classes, "unreadable": index.unreadable, "times": index.times}
    with atomic_write(kept) as part, part.open("wb") as file:
        about_bytes = np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)
        np.savez(file, paths=index.paths, targets=index.targets, about=about_bytes)


def _times(root: Path, paths: Iterable[str]) -> dict[str, int]:
    """When each of these changed last; what is not there has no entry."""
    times = {}
    for path in paths:
        with suppress(OSError):
            times[path] = os.stat(root / path).st_mtime_ns
    return times


def _list(root: Path, corrupt: str) -> _Index:
    classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise ValueError(f"{root}: no folders in it; pictures lie in one for each class, as in {root}/cat/1.jpg")
    times = _times(root, ["."])
    files = [sorted(_files_below(root, name, times, (os.path.realpath(root),))) for name in classes]
    if [] in files:
        empty = root / classes[files.index([])]
        raise ValueError(f"{empty}: no pictures in it ({', '.join(EXTENSIONS)}); add some, or remove it")
    paths = [path for of_class in files for path in of_class]
    targets = np.repeat(np.arange(len(classes)), [len(of_class) for of_class in files])
    keep = np.ones(len(paths), dtype=bool) if corrupt == "error" else readable_pictures(root, paths)
    kept = np.array([os.fsencode(path) for path, is_kept in zip(paths, keep, strict=True) if is_kept], dtype=np.bytes_)
    unreadable = tuple(path for path, is_kept in zip(paths, keep, strict=True) if not is_kept)
    if not len(kept):
        raise ValueError(f"{root}: none of its {len(paths)} pictures can be read ({_some(unreadable)})")
    return _Index(tuple(classes), kept, targets[keep], unreadable, {**times, **_times(root, unreadable)})


def _files_below(root: Path, folder: str, times: dict[str, int], above: tuple[str, ...]) -> Iterator[str]:
    """Pictures in a folder and below it, relative to the root; notes when each folder changed last.

    Args:
        root: Of the data set.
        folder: Relative to it.
        times: Filled.
        above: The folders, resolved, that led here.
    """
    if leads_back(root / folder, above):
        raise ValueError(f"{root / folder}: is a link by which this folder contains itself; remove the link")
    times.update(_times(root, [folder]))
    with os.scandir(root / folder) as entries:
        for entry in entries:
            name = f"{folder}/{entry.name}"
            if entry.is_dir():
                yield from _files_below(root, name, times, (*above, os.path.realpath(root / folder)))
            elif entry.name.lower().endswith(EXTENSIONS):
                if fault := fault_of(entry):
                    raise ValueError(f"{root / name}: {fault}; remove it")
                yield name


def readable_pictures(root: Path, paths: Sequence[str]) -> NDArray[np.bool_]:
    """Which pictures can be opened and decoded."""
    image = needed("PIL.Image", "images", "ImageFolder")

    def is_readable(path: str) -> bool:
        try:
            with image.open(root / path) as file:
                file.load()
        except Exception:  # whatever a broken file makes of a decoder
            return False
        return True

    with ThreadPoolExecutor(usable_cpus()) as pool:
        return np.fromiter(pool.map(is_readable, paths, chunksize=64), dtype=np.bool_, count=len(paths))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
