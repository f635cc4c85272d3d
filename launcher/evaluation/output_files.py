"""Outputs as a file, row by row: CSV for a spreadsheet, JSON lines, Parquet."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TextIO

from launcher.datasets.files import atomic_write, needed
from launcher.errors import LauncherError, UsageError
from launcher.runs.metrics import encode

FORMS = (".csv", ".jsonl", ".parquet")
STANDARD_OUTPUT = Path("-")
_MOST_HELD = 10_000  # rows that wait for the type of a column


class Write(Protocol):
    """Writes some rows."""

    def __call__(self, columns: Mapping[str, Sequence[Any]], names: Mapping[str, Sequence[str]] | None = None) -> None:
        """Writes them.

        Args:
            columns: By their names, the same in each call.
            names: What the parts of a column's lists are called, in CSV; others are numbered.
        """


class Cell(list[Any]):
    """A list that has a length of its own for each sample: one cell of a table, as JSON."""


def check_form(target: Path, flag: str = "--to") -> None:
    """Refuses a file of which nobody knows how it is written.

    Args:
        target: The file.
        flag: Which names it; only `--to` may name standard output.

    Raises:
        UsageError: Its suffix is none of those.
    """
    may_print = flag == "--to"
    if target.suffix not in FORMS and not (may_print and target == STANDARD_OUTPUT):
        forms = ", ".join(FORMS) + (", or - for standard output" if may_print else "")
        raise UsageError(f"{flag} {target.name}: the suffix sets the format; one of: {forms}")


@contextmanager
def output_file(target: Path) -> Iterator[Write]:
    """What writes columns of a batch; the file is there whole, or not at all.

    Args:
        target: `.csv`, `.jsonl` or `.parquet`; `-` is JSON lines on standard output.

    Raises:
        UsageError: It can be written in none of these forms.
        OSError: The disk is full or read-only.
    """
    check_form(target)
    if target == STANDARD_OUTPUT:
        yield _json_writer(sys.stdout)
        return
    with atomic_write(target) as part:
        if target.suffix == ".parquet":
            with _parquet(part) as write:
                yield write
            return
        with part.open("w", encoding="utf-8", newline="") as file:
            yield _json_writer(file) if target.suffix == ".jsonl" else _csv_writer(file)


def _rows(columns: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    for row in zip(*columns.values(), strict=True):
        yield dict(zip(columns, row, strict=True))


def _json_writer(file: TextIO) -> Write:
    def write(columns: Mapping[str, Sequence[Any]], names: Mapping[str, Sequence[str]] | None = None) -> None:
        file.writelines(encode(row) + "\n" for row in _rows(columns))

    return write


def _csv_writer(file: TextIO) -> Write:
    writer = csv.writer(file, lineterminator="\n")
    header: list[str] = []

    def write(columns: Mapping[str, Sequence[Any]], names: Mapping[str, Sequence[str]] | None = None) -> None:
        for row in _rows(columns):
            cells = [cell for name, value in row.items() for cell in _cells(name, value, (names or {}).get(name))]
            if not header:
                header.extend(name for name, _ in cells)
                writer.writerow(header)
            if len(cells) != len(header):
                raise LauncherError("outputs differ in length, which a table cannot hold; write .jsonl")
            writer.writerow([value for _, value in cells])

    return write


def _cells(name: str, value: Any, names: Sequence[str] | None) -> Iterator[tuple[str, Any]]:
    """A value as cells with their names: each number of a list has its own, and deeper ones are JSON."""
    if isinstance(value, Cell | Mapping):
        yield name, _json(value)
    elif not isinstance(value, list | tuple):
        yield name, value
    elif len(value) == 1:
        yield from _cells(name, value[0], None)
    else:
        parts = names if names is not None and len(names) == len(value) else range(len(value))
        for part, item in zip(parts, value, strict=True):
            yield f"{name}_{part}", _json(item) if isinstance(item, list | tuple | Mapping) else item


def _json(value: Any) -> str:
    return encode({"": value})[len('{"": ') : -1]


@contextmanager
def _parquet(path: Path) -> Iterator[Write]:
    table = _Parquet(path)
    try:
        yield table.write
        table.begin()
    finally:
        table.close()


class _Parquet:
    """Rows as Parquet, whose types are those of the first rows in which no column is empty."""

    def __init__(self, path: Path):
        self._pyarrow = needed("pyarrow", "tables", "outputs as Parquet")
        self._parquet = needed("pyarrow.parquet", "tables", "outputs as Parquet")
        self._path = path
        self._writer: Any = None
        self._schema: Any = None
        self._held: list[Any] = []  # until a value shows of what type a column is
        self._rows = 0

    def write(self, columns: Mapping[str, Sequence[Any]], names: Mapping[str, Sequence[str]] | None = None) -> None:
        """See `Write`."""
        table = self._pyarrow.table(dict(columns))
        schema = table.schema if self._schema is None else self._together(table.schema)
        if self._writer is not None and schema != self._schema:
            raise self._differing(table.schema)
        self._schema = schema
        self._held.append(table)
        self._rows += len(table)
        if self._rows >= _MOST_HELD or not any(map(self._is_open, schema.types)):
            self.begin()

    def begin(self) -> None:
        """Writes what is held."""
        if self._schema is not None and self._writer is None:
            self._writer = self._parquet.ParquetWriter(self._path, self._schema)
        for table in self._held:
            fits = table.schema == self._schema
            self._writer.write_table(table if fits else self._pyarrow.table(table.to_pydict(), schema=self._schema))
        self._held = []

    def close(self) -> None:
        """Ends the file."""
        if self._writer is not None:
            self._writer.close()

    def _together(self, own: Any) -> Any:
        try:
            return self._pyarrow.unify_schemas([self._schema, own], promote_options="permissive")
        except self._pyarrow.ArrowException as error:
            raise self._differing(own) from error

    def _differing(self, own: Any) -> LauncherError:
        pairs = ((field, own.field(field.name)) for field in self._schema if field.name in own.names)
        odd = next((f"{old.name} is {old.type}, then {new.type}" for old, new in pairs if old.type != new.type), "")
        return LauncherError(f"outputs differ in type ({odd}), which a table cannot hold; write .jsonl")

    def _is_open(self, kind: Any) -> bool:
        types = self._pyarrow.types
        if types.is_list(kind):
            return self._is_open(kind.value_type)
        if types.is_struct(kind):
            return any(self._is_open(field.type) for field in kind)
        return bool(types.is_null(kind))
