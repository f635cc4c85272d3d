"""Rows of a CSV or Parquet file, or of JSON lines."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import TensorDataset

from launcher.datasets.files import checked_file, needed, staged
from launcher.text import brief, hint, printable

_AN_OBJECT = 'write each row as in {"age": 41, "height": 1.7}'
_EMPTY = "is empty; a table is a line of names, then rows"
_READERS = {".csv": ",", ".tsv": "\t", ".parquet": None, ".pq": None, ".jsonl": None, ".ndjson": None}

Scale = tuple[Tensor, Tensor]


class Table(TensorDataset):
    """Numbers of each row as features, and one column or several as target; held in memory.

    Sample *i* is row *i*: features of shape [columns], and a target: a class (int64, no shape) where the column
    holds words, whole numbers or truth values, else numbers of shape [targets].

    Args:
        path: A `.csv` or `.tsv` file with a line of names, a `.parquet` file, or `.jsonl` with an object on each line.
        target: The column to predict, or several of numbers; None gives features only, as of new rows for `predict`.
        features: The columns to predict it from; None is all others.
        classes: Names of the classes in the order of their numbers, or how many there are; None finds them in the
            column. A validation set says `"${data.train.classes}"`, or words that it lacks move the numbers of others.
        regression: Whether a target of whole numbers is a quantity and not a class.
        scale: `true` moves and scales each feature to mean 0 and standard deviation 1, over the rows that are trained
            on; a validation set says `"${data.train.scaling}"`, the training set's mean and deviation.
        dtype: The type of features, and of targets that are not classes.
        scratch: Copy the file to this disk of the machine first (`data.scratch`).

    Attributes:
        features: The names of the columns, in their order.
        classes: The classes' names, or None.
        scaling: Mean and standard deviation of each feature, or None.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A row is ragged, a value is missing or not a number, a column does not exist, or a class is out of
            range; the message names file, row and column.
    """

    def __init__(
        self,
        path: str | Path,
        target: str | Sequence[str] | None,
        features: Sequence[str] | None = None,
        classes: Sequence[str] | int | None = None,
        regression: bool = False,
        scale: bool | Scale = False,
        dtype: torch.dtype = torch.float32,
        scratch: str | Path | None = None,
    ) -> None:
        file = staged(_checked(path), scratch)
        table = _read(file)
        _check_names(file, table)
        targets = [target] if isinstance(target, str) else list(target or ())
        self.features = list(features) if features is not None else [n for n in table.column_names if n not in targets]
        _check_columns(file, table.column_names, targets, self.features)
        values = torch.from_numpy(_numbers(file, table, self.features)).to(dtype)
        self._scales_itself = scale is True
        self.scaling = _scale_of(values) if scale is True else scale or None
        if self.scaling is not None:
            values = (values - self.scaling[0].to(dtype)) / self.scaling[1].to(dtype)
        self.classes: tuple[str, ...] | None = None
        self._others: dict[str, list[Any]] = {}  # of rows without a target: what tells them apart
        if not targets:
            self._others = {n: table[n].to_pylist() for n in table.column_names if n not in self.features}
            super().__init__(values)
        elif isinstance(target, str) and not regression and not _is_quantity(table[target]):
            self.classes, numbers = _classes(file, table, target, classes)
            super().__init__(values, torch.from_numpy(numbers))
        else:
            super().__init__(values, torch.from_numpy(_numbers(file, table, targets)).to(dtype))

    @staticmethod
    def prepare(path: str | Path, scratch: str | Path | None = None) -> None:
        """Copies the file to the scratch disk, if there is one: once for all processes of a machine."""
        staged(_checked(path), scratch)

    def fit_rows(self, rows: Tensor) -> None:
        """Scales all rows by some of them, where it scales by its own: those that are not held back.

        Args:
            rows: Their numbers.
        """
        if self._scales_itself and self.scaling is not None:
            values, *targets = self.tensors
            mean, deviation = _scale_of(values[rows])
            self.tensors = ((values - mean) / deviation, *targets)
            self.scaling = self.scaling[0] + mean * self.scaling[1], deviation * self.scaling[1]

    @property
    def targets(self) -> Tensor:
        """The target of each row."""
        return self.tensors[1]

    def row_of(self, index: int) -> dict[str, Any]:
        """What is added to a row's prediction: for rows without a target, the columns that are not features."""
        return {name: values[index] for name, values in self._others.items()}

    def get_batch(self, indices: Tensor) -> tuple[Tensor, ...]:
        """Reads many samples at once: features [N, columns], and targets [N] or [N, targets]."""
        return tuple(tensor.index_select(0, indices) for tensor in self.tensors)


def _checked(path: str | Path) -> Path:
    file = checked_file(path, "a .csv, .tsv, .parquet or .jsonl file")
    if file.suffix.lower() not in _READERS:
        raise ValueError(f"{file}: a table is one of {', '.join(_READERS)}; save it as one of them")
    return file


def _read(file: Path) -> Any:
    pyarrow = needed("pyarrow", "tables", "Table")
    try:
        suffix = file.suffix.lower()
        if (delimiter := _READERS[suffix]) is not None:
            return _read_text(file, delimiter)
        if suffix in (".jsonl", ".ndjson"):
            return needed("pyarrow.json", "tables", "Table").read_json(file)
        return needed("pyarrow.parquet", "tables", "Table").read_table(file)
    except (pyarrow.ArrowInvalid, OSError) as error:
        fault = _bad_line(file) if suffix in (".jsonl", ".ndjson") else None
        if fault:
            raise ValueError(f"{file}: {fault}") from error
        raise ValueError(f"{file} {_EMPTY if _is_blank(file) else f'cannot be read: {error}'}") from error


def _is_blank(file: Path) -> bool:
    return file.stat().st_size < 1_000 and not file.read_bytes().strip()


def _bad_line(file: Path) -> str | None:
    """What is wrong with the first of JSON lines that is no object."""
    for number, line in enumerate(file.read_bytes().splitlines(), start=1):
        try:
            row = json.loads(line) if line.strip() else {}
        except ValueError as error:
            return f"line {number} is not JSON: {error}; {_AN_OBJECT}"
        if not isinstance(row, dict):
            return f"line {number} is not an object; {_AN_OBJECT}"
    return None


def _read_text(file: Path, delimiter: str) -> Any:
    csv = needed("pyarrow.csv", "tables", "Table")
    ragged: list[Any] = []

    def refuse(row: Any) -> str:
        ragged.append(row)
        return "skip"  # to read on: the first is reported below, with its number

    table = csv.read_csv(
        file,
        read_options=csv.ReadOptions(use_threads=False),  # only then rows are counted
        parse_options=csv.ParseOptions(delimiter=delimiter, invalid_row_handler=refuse),
    )
    if ragged:
        row = ragged[0]
        others = f" ({len(ragged)} such rows)" if len(ragged) > 1 else ""
        raise ValueError(
            f"{file}: line {row.number} has {row.actual_columns} values and the line of names {row.expected_columns}: "
            f"'{row.text[:60]}'{others}; fix it"
        )
    return table


def _check_names(file: Path, table: Any) -> None:
    names: list[str] = table.column_names
    if twice := next((name for name, times in Counter(names).items() if times > 1), None):
        raise ValueError(f"{file} has several columns '{printable(twice)}'; rename all but one")
    if not table.num_rows and _is_blank(file):
        raise ValueError(f"{file} {_EMPTY}")
    if not table.num_rows:
        raise ValueError(f"{file} has no rows, only the names: {', '.join(map(printable, names))}")


def _check_columns(file: Path, has: Sequence[str], targets: Sequence[str], features: Sequence[str]) -> None:
    names = set(has)  # of genes there are tens of thousands
    for name in (*targets, *features):
        if name not in names:
            unlabelled = "; for rows without it say target: null" if name in targets else ""
            known = hint(name, has, f"it has: {', '.join(map(printable, has))}{unlabelled}")
            raise ValueError(f"{file} has no column '{name}'{_other_delimiter(file, has) or known}")
    if not features:
        raise ValueError(f"{file} has only the column '{targets[0]}'; at least one feature is needed")


def _other_delimiter(file: Path, has: Sequence[str]) -> str:
    """What to do where values stand apart by something else than the file's name says; else nothing."""
    expected = _READERS.get(file.suffix.lower())
    used = next((mark for mark in ";\t|," if mark != expected and mark in has[0]), None) if len(has) == 1 else None
    if expected is None or used is None:
        return ""
    if used == "\t":
        return "; its values are separated by tabs: call it .tsv"
    return f"; its values are separated by '{used}': save it with {'commas' if expected == ',' else 'tabs'}"


def _is_quantity(column: Any) -> bool:
    types = needed("pyarrow", "tables", "Table").types
    return bool(types.is_floating(column.type) or types.is_decimal(column.type))


def _numbers(file: Path, table: Any, columns: Sequence[str]) -> NDArray[np.float64]:
    """The columns as numbers, of shape [rows, columns]."""
    types = needed("pyarrow", "tables", "Table").types
    for name in columns:
        kind = table[name].type
        if not (types.is_integer(kind) or types.is_boolean(kind) or types.is_null(kind) or _is_quantity(table[name])):
            raise ValueError(_not_numbers(file, table, name, columns))
    numbers = np.empty((table.num_rows, len(columns)))
    for place, name in enumerate(columns):
        numbers[:, place] = table[name].cast("float64").to_numpy()  # null becomes NaN
    if len(bad := np.argwhere(~np.isfinite(numbers))):
        row, place = map(int, bad[0])
        others = f" ({len(bad)} such values)" if len(bad) > 1 else ""
        value = table[columns[place]][row].as_py()
        what = "nothing" if value is None else str(value)
        raise ValueError(
            f"{file}: column '{columns[place]}' has {what} for a number in row {row + 1}{others}; fill or drop it"
        )
    return numbers


def _not_numbers(file: Path, table: Any, name: str, columns: Sequence[str]) -> str:
    """Why a column cannot be a feature: the first value that is not one, and the columns that can be."""
    types = needed("pyarrow", "tables", "Table").types
    values = table[name].to_pylist()
    row = next((number for number, value in enumerate(values) if not _reads_as_number(value)), 0)
    if isinstance(values[row], bytes):
        return f"{file}: column '{name}' is not UTF-8 text in row {row + 1}; save the file as UTF-8"
    usable = [other for other in columns if types.is_integer(table[other].type) or _is_quantity(table[other])]
    others = f"features: [{', '.join(usable)}]" if usable else "other features"
    return (
        f"{file}: column '{name}' has {_shown(values[row])} for a number in row {row + 1}; correct it, or "
        f"choose {others}; categories need a class of your own, as `launcher copy tabular_categories` has"
    )


def _shown(value: Any) -> str:
    return brief(repr(value) if isinstance(value, str) else str(value))


def _reads_as_number(value: Any) -> bool:
    """Whether a value of a column of words, or of nothing, would do in one of numbers."""
    try:
        return value is not None and not isinstance(value, bytes) and float(value) is not None
    except (TypeError, ValueError):
        return False


def _scale_of(values: Tensor) -> Scale:
    deviation = values.std(0, correction=0)
    return values.mean(0), torch.where(deviation > 0, deviation, torch.ones_like(deviation))


def _classes(
    file: Path, table: Any, target: str, classes: Sequence[str] | int | None
) -> tuple[tuple[str, ...] | None, NDArray[np.int64]]:
    """The classes' names, if they have names, and each row's class."""
    column = table[target]
    types = needed("pyarrow", "tables", "Table").types
    values = column.to_pylist()
    if spoilt := next((row for row, value in enumerate(values, start=1) if isinstance(value, bytes)), None):
        raise ValueError(f"{file}: column '{target}' is not UTF-8 text (row {spoilt}); save the file as UTF-8")
    if missing := [row for row, value in enumerate(values, start=1) if value is None or value == ""]:
        others = f" ({len(missing)} such rows)" if len(missing) > 1 else ""
        raise ValueError(f"{file}: column '{target}' has no class in row {missing[0]}{others}; fill or drop it")
    if types.is_integer(column.type) or types.is_boolean(column.type):
        numbers = np.array(values, dtype=np.int64)
        _check_range(file, target, numbers, classes if isinstance(classes, int) else None)
        return None, numbers
    words = list(map(str, values))
    names = sorted(set(words)) if classes is None or isinstance(classes, int) else list(classes)
    if isinstance(classes, int) and len(names) > classes:
        raise ValueError(f"{file}: column '{target}' has {len(names)} classes, and classes is {classes}")
    places = {name: place for place, name in enumerate(names)}
    for row, word in enumerate(words, start=1):
        if word not in places:
            raise ValueError(f"{file}: column '{target}' is '{word}' in row {row}, none of: {', '.join(names)}")
    return tuple(names), np.array([places[word] for word in words], dtype=np.int64)


def _check_range(file: Path, target: str, numbers: NDArray[np.int64], classes: int | None) -> None:
    bad = np.flatnonzero((numbers < 0) | (numbers >= (classes if classes is not None else np.inf)))
    if len(bad):
        allowed = f"0 to {classes - 1}" if classes is not None else "0 and above"
        raise ValueError(
            f"{file}: column '{target}' is class {numbers[bad[0]]} in row {bad[0] + 1}, out of range: allowed are "
            f"{allowed}; correct it, or set regression: true if it is a quantity"
        )
