"""Hugging Face data sets: from the hub, or from files of this machine."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from launcher.datasets.files import needed
from launcher.recipe.directory import absolute, directory
from launcher.recipe.inputs import unreadable
from launcher.recipe.local_data import check_place, keep_to_its_folder, kept_here, only_this_machine
from launcher.recipe.remote_paths import foreign_path, outdated

_FORMATS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".txt": "text",
}


class HubDataset(Dataset[Any]):
    """A data set of the Hugging Face hub or of local files, memory-mapped by their library.

    Sample *i* is row *i* as a mapping of its columns, numbers as tensors, floats in float32; or whatever `transform`
    makes of it. A recipe says which columns go where: `batch: {inputs: [pixels], targets: [label]}`.

    Args:
        path: OWNER/NAME on the hub; a folder that `save_to_disk` wrote or that holds data files; or a `.csv`,
            `.json`, `.jsonl`, `.parquet`, `.arrow` or `.txt` file.
        split: Which part, as in `train` or `train[:10%]`.
        name: The configuration, where the data set has several.
        revision: A branch, tag or commit of the hub's repository.
        columns: Only these columns; None is all.
        transform: What is made of a row, a mapping of plain values: a function by `{_ref_: my_task.py:tokenize}`, or
            a component. It is called for one sample at a time, seeded like every random preprocessing.

    Attributes:
        rows: The `datasets.Dataset`.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: It cannot be loaded, or has no such split or column.
    """

    def __init__(
        self,
        path: str,
        split: str = "train",
        name: str | None = None,
        revision: str | None = None,
        columns: Sequence[str] | None = None,
        transform: Callable[[Mapping[str, Any]], Any] | None = None,
    ) -> None:
        rows = _load(path, split, name, revision)
        if missing := [column for column in columns or () if column not in rows.column_names]:
            raise ValueError(f"{path} has no column '{missing[0]}'; it has: {', '.join(rows.column_names)}")
        rows = rows.select_columns(list(columns)) if columns is not None else rows
        self.rows = rows if transform is not None else rows.with_format("numpy")
        self.transform = transform
        self._decodes = any(hasattr(feature, "decode_example") for feature in rows.features.values())

    @staticmethod
    def prepare(path: str, split: str = "train", name: str | None = None, revision: str | None = None) -> None:
        """Downloads it, or turns its files into Arrow's format: once for all processes of a machine."""
        _load(path, split, name, revision)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        if self.transform is not None:
            return self.transform(self.rows[index])
        # one row alone would have other types than many
        return {column: values[0] for column, values in self._rows_at(torch.tensor([index])).items()}

    @property
    def get_batch(self) -> Callable[[Tensor], dict[str, Any]] | None:
        """Reads many samples at once; None with a transform, and of pictures and sound, which are work for workers."""
        return None if self.transform is not None or self._decodes else self._rows_at

    def _rows_at(self, indices: Tensor) -> dict[str, Any]:
        rows = self.rows[indices.tolist()]
        return {column: _stacked(values) for column, values in rows.items()}


def _stacked(values: NDArray[Any]) -> Any:
    """A column as a tensor; words and what else is not a number as a list."""
    if values.dtype.kind in "biuf":
        return torch.from_numpy(np.array(values))
    return [
        torch.from_numpy(np.array(v)) if isinstance(v, np.ndarray) and v.dtype.kind in "biuf" else v
        for v in values.tolist()
    ]


def _load(path: str, split: str, name: str | None, revision: str | None) -> Any:
    datasets = needed("datasets", "hub", "HubDataset")
    keep_to_its_folder()
    if fault := outdated():
        raise ImportError(fault)
    local = absolute(path)
    _check_place(path, local)
    try:
        with only_this_machine() if local.exists() else nullcontext():
            dataset = _open(datasets, path, local, split, name, revision)
    except Exception as error:
        words = " ".join(str(error).split())
        raise ValueError(
            f"{path} (split {split}) cannot be loaded: {type(error).__name__}: {words}; check name, split and network, "
            "or give files of this machine"
        ) from error
    return _part(kept_here(dataset) if local.exists() else dataset, path, split)


def _open(datasets: Any, path: str, local: Path, split: str, name: str | None, revision: str | None) -> Any:
    if local.exists():  # absolute, as `pandas` alone would mean a reader of datasets' own, which unpickles
        local = local.resolve()
    if (local / "dataset_info.json").is_file() or (local / "dataset_dict.json").is_file():
        return datasets.load_from_disk(str(local))
    if local.is_file():
        options = {"delimiter": "\t"} if local.suffix.lower() == ".tsv" else {}
        files = {"train": str(local)}
        return datasets.load_dataset(_FORMATS[local.suffix.lower()], data_files=files, split=split, **options)
    return datasets.load_dataset(str(local) if local.is_dir() else path, name, split=split, revision=revision)


def _check_place(path: str, local: Path) -> None:
    if local.is_file() and local.suffix.lower() not in _FORMATS:
        raise ValueError(f"{path}: files of this kind are not read; allowed are {', '.join(_FORMATS)}")
    if fault := foreign_path(path) or unreadable(local):
        raise ValueError(f"{path} {fault}")
    check_place(path)
    looks_local = re.fullmatch(r"\w[\w.-]*/[\w.-]+", path) is None or local.suffix.lower() in _FORMATS
    if looks_local and not local.exists():
        raise FileNotFoundError(
            f"no file or folder at {path} (looked from {directory()}), and it is not OWNER/NAME of the hub either"
        )


def _part(dataset: Any, path: str, split: str) -> Any:
    """The split of what `save_to_disk` wrote, which may be several data sets by their split, or one."""
    if not hasattr(dataset, "keys"):
        return dataset
    if split not in dataset:
        raise ValueError(f"{path} has no split '{split}'; it has: {', '.join(dataset)}")
    return dataset[split]
