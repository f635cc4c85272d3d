"""Outputs as a file, row by row: CSV for a spreadsheet, JSON lines, Parquet."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from launcher.datasets.files import atomic_write, needed
from launcher.errors import LauncherError, UsageError
from launcher.runs.metrics import encode

FORMS = (".csv", ".jsonl", ".parquet")
STANDARD_OUTPUT = Path("-")
Write = Callable[[Mapping[str, Sequence[Any]]], None]


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
def output_file(target: Path, names: Sequence[str] | None = None) -> Iterator[Write]:
    """What writes columns of a batch; the file is there whole, or not at all.

    Args:
        target: `.csv`, `.jsonl` or `.parquet`; `-` is JSON lines on standard output.
        names: What the parts of a sample's output are called, in CSV; None numbers them.

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
            yield _json_writer(file) if target.suffix == ".jsonl" else _csv_writer(file, names)


def _rows(columns: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    for row in zip(*columns.values(), strict=True):
        yield dict(zip(columns, row, strict=True))


def _json_writer(file: TextIO) -> Write:
    def write(columns: Mapping[str, Sequence[Any]]) -> None:
        file.writelines(encode(row) + "\n" for row in _rows(columns))

    return write


def _csv_writer(file: TextIO, names: Sequence[str] | None) -> Write:
    writer = csv.writer(file, lineterminator="\n")
    header: list[str] = []

    def write(columns: Mapping[str, Sequence[Any]]) -> None:
        for row in _rows(columns):
            cells = [cell for name, value in row.items() for cell in _cells(name, value, names)]
            if not header:
                header.extend(name for name, _ in cells)
                writer.writerow(header)
            if len(cells) != len(header):
                raise LauncherError("outputs differ in length, which a table cannot hold; write .jsonl")
            writer.writerow([value for _, value in cells])

    return write


def _cells(name: str, value: Any, names: Sequence[str] | None) -> Iterator[tuple[str, Any]]:
    """A value as cells with their names: each number of a list has its own, and deeper ones are JSON."""
    if not isinstance(value, list | tuple):
        yield name, value
    elif len(value) == 1:
        yield from _cells(name, value[0], None)
    else:
        parts = names if names is not None and len(names) == len(value) else range(len(value))
        for part, item in zip(parts, value, strict=True):
            yield f"{name}_{part}", json.dumps(item) if isinstance(item, list | tuple) else item


@contextmanager
def _parquet(path: Path) -> Iterator[Write]:
    pyarrow = needed("pyarrow", "tables", "outputs as Parquet")
    parquet = needed("pyarrow.parquet", "tables", "outputs as Parquet")
    writer: Any = None

    def table(columns: Mapping[str, Sequence[Any]]) -> None:
        nonlocal writer
        batch = pyarrow.table(dict(columns), schema=writer.schema if writer is not None else None)
        writer = writer or parquet.ParquetWriter(path, batch.schema)
        writer.write_table(batch)

    try:
        yield table
    finally:
        if writer is not None:
            writer.close()
