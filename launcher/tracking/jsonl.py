"""`metrics.jsonl`: every number of a run, one JSON object a line. The record; all other views are copies of it.

Standard JSON has no word for what is not a number, so `NaN`, `Infinity` and `-Infinity` are written as strings,
as Python's `float()` and JavaScript's `Number()` read them; `read_metrics` gives floats back. The last line may be
torn (a crash, a full disk): readers drop it. Imports nothing but the standard library.
"""

from __future__ import annotations

import gc
import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.errors import LauncherError

Line = dict[str, Any]  # {"step", "epoch", "split": "train" | "validation" | "test", "loss", …}

_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_TRAIN = re.compile(rb'\{"step": (\d+), "epoch": [^,]*, "split": "train", .*\}\n')  # to tell without parsing
_ROWS_AT_ONCE = 50_000
_WORDS = ("split", "name")  # the keys whose values are words, whatever they say


@dataclass(frozen=True)
class Past:
    """What earlier starts of a run wrote, up to the step that it goes on from.

    Attributes:
        evaluations: The lines of all splits but `train`, oldest first.
        size_bytes: How much of the file they and the train lines fill.
    """

    evaluations: Sequence[Line] = ()
    size_bytes: int = 0


@dataclass
class MetricsFile:
    """An append-only `metrics.jsonl`. Each line is with the operating system when `write` returns."""

    path: Path
    _descriptor: int | None = None
    _pending: bytearray = field(default_factory=bytearray)  # what a full disk did not take yet

    def continue_from(self, step: int) -> Past:
        """Drops the lines that will be written again by a run that goes on after `step` steps.

        At step 0 nothing was saved and all is done again, so all lines go. Lines that cannot be read go too. The
        file is replaced whole, so that a reader or a crash sees the old one or the new one.

        Raises:
            OSError: The file cannot be read or replaced.
        """
        hidden = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        evaluations: list[Line] = []
        with hidden.open("wb") as kept:
            for raw in _raw_lines(self.path) if step > 0 else ():
                train = _TRAIN.match(raw)
                line = {"step": int(train[1])} if train else _object(raw)
                if line is not None and line.get("step", math.inf) <= step:
                    kept.write(raw)
                    if line.get("split", "train") != "train":
                        evaluations.append(_numbers(line))
            size = kept.tell()
        os.replace(hidden, self.path)
        return Past(evaluations, size)

    def write(self, line: Line) -> None:
        """Appends one line.

        Raises:
            OSError: The line, or a part of it, is not in the file. It is kept and goes in front of the next one.
        """
        self._pending += encode(line).encode() + b"\n"
        self._flush()

    def close(self) -> None:
        """Closes the file; a later `write` opens it again.

        Raises:
            OSError: Lines that were kept still cannot be written.
        """
        self._flush()
        self._release()

    def _flush(self) -> None:
        if self._pending and self._descriptor is None:
            self._descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            while self._pending and self._descriptor is not None:
                del self._pending[: os.write(self._descriptor, self._pending)]
        except OSError:
            self._release()  # a network file system may want it opened anew
            raise

    def _release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def encode(line: Line) -> str:
    """The line as standard JSON, on one line; arrays and tensors become lists or numbers."""
    try:
        return json.dumps(line, allow_nan=False, default=_plain)
    except ValueError:
        return json.dumps(_finite(json.loads(json.dumps(line, default=_plain))), allow_nan=False)


def read_metrics(path: Path) -> list[Line]:
    """All lines of a `metrics.jsonl`, oldest first; none if there is no such file.

    A torn last line is left out. A million lines take a few seconds: they are parsed at one go.

    Raises:
        LauncherError: A line other than the last is not a JSON object.
    """
    if not path.exists():
        return []
    whole, _, torn = path.read_bytes().rpartition(b"\n")
    rows = whole.splitlines()
    if torn and _object(torn) is not None:
        rows.append(torn)
    try:
        lines = _together(rows)
    except ValueError:
        number = next(number for number, row in enumerate(rows, 1) if row.strip() and _object(row) is None)
        raise LauncherError(
            f"{path}:{number}: this line of the metrics is damaged; remove it, or read an earlier copy of the file"
        ) from None
    return [_numbers(line) for line in lines] if b'NaN"' in whole or b'Infinity"' in whole else lines


def read_until(path: Path, size_bytes: int) -> Iterator[Line]:
    """The lines in the first bytes of a `metrics.jsonl`, one after the other."""
    for raw in _raw_lines(path):
        size_bytes -= len(raw)
        if size_bytes < 0:
            return
        line = _object(raw)
        if line is not None:
            yield _numbers(line)


def _raw_lines(path: Path) -> Iterator[bytes]:
    """The complete lines of a file, if there is one."""
    if path.exists():
        with path.open("rb") as file:
            yield from (raw for raw in file if raw.endswith(b"\n"))


def _together(rows: Sequence[bytes]) -> list[Line]:
    """Parses many lines as few arrays, without a garbage collector that looks at each new object again and again."""
    lines: list[Line] = []
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            part = [row for row in rows[start : start + _ROWS_AT_ONCE] if row.strip()]
            lines += json.loads(b"[" + b",".join(part) + b"]")
    finally:
        if was_enabled:
            gc.enable()
    return lines


def _object(raw: bytes) -> Line | None:
    try:
        value = json.loads(raw)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _numbers(line: Line) -> Line:
    """The line with the words for what is not finite as floats."""
    for key, value in line.items():
        if isinstance(value, str) and key not in _WORDS:
            line[key] = _NOT_FINITE.get(value, value)
    return line


def _finite(value: Any) -> Any:
    """The value with words for what is not finite, at any depth."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _plain(value: Any) -> Any:
    """What JSON does not know: NumPy's and torch's scalars and arrays as numbers and lists, the rest as words."""
    return value.tolist() if hasattr(value, "tolist") else str(value)
