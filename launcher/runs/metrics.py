"""`metrics.jsonl`: every number of a run, one JSON object a line. The record; all other views are copies of it.

Standard JSON has no word for what is not a number, so `NaN`, `Infinity` and `-Infinity` are written as strings,
as Python's `float()` and JavaScript's `Number()` read them; `read_metrics` gives floats back. The last line may be
torn (a crash, a full disk): readers drop it.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from launcher.errors import LauncherError

METRICS_FILE = "metrics.jsonl"
Line = dict[str, Any]  # {"step", "epoch", "split": "train" | "validation" | "test", "loss", …}

_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_BLOCK_BYTES = 1 << 16  # as many lines as stay in a processor's cache: parsing more at once takes twice as long
_WORDS = ("split", "name")  # the keys whose values are words, whatever they say


@dataclass
class Redone:
    """What earlier starts of a run did after the step that it resumes from, which is therefore repeated.

    Attributes:
        steps: Optimizer steps.
        seconds: What they took, as far as their lines say it.
        seen: When the newest line was written, in unix time: the last that is known of a start that was killed.
    """

    steps: int = 0
    seconds: float = 0.0
    seen: float | None = None


@dataclass(frozen=True)
class Past:
    """What earlier starts of a run wrote, up to the step that it resumes from.

    Attributes:
        evaluations: The validation lines, oldest first.
        size_bytes: How much of the file is left.
        redone: What they wrote after it.
    """

    evaluations: Sequence[Line] = ()
    size_bytes: int = 0
    redone: Redone = field(default_factory=Redone)


@dataclass
class MetricsFile:
    """An append-only `metrics.jsonl`. Each line is with the operating system when `write` returns."""

    path: Path
    _descriptor: int | None = None
    _pending: bytearray = field(default_factory=bytearray)  # what a full disk did not take yet

    def continue_from(self, step: int, evaluated: int | None = None) -> Past:
        """Cuts off the lines that will be written again by a run that resumes after `step` steps.

        They are the newest: the file is read from its end to the first line that stays. Lines there that cannot be
        read go too, and so do those of a test, which is made at a run's end.

        Args:
            step: Optimizer steps completed; with 0 all is done again.
            evaluated: The step of the last evaluation that is not made again, -1 where there is none: an evaluation
                comes after the checkpoint of its own step at the end of a run. None where all up to `step` stay.

        Raises:
            OSError: The file cannot be read or cut.
        """
        self._release()
        redone, size, newest = Redone(), 0, True
        evaluated = step or -1 if evaluated is None else evaluated
        with self.path.open("a+b") as file:
            for start, raw in _lines_backwards(file):
                line = _object(raw) if raw.endswith(b"\n") else None
                if line is None:
                    continue
                if newest:
                    redone.seen, newest = line.get("time"), False
                if _stays(line, step, evaluated):
                    size = start + len(raw)
                    break
                _count(line, step, redone)
            file.truncate(size)
        return Past(list(read_evaluations(self.path, "validation")), size, redone)

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
            self._release()  # a network file system may want it opened again
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
    """All lines of a `metrics.jsonl`, oldest first; none if there is no such file. A torn last line is left out.

    Raises:
        LauncherError: A line other than the last is not a JSON object.
    """
    return [line for block in read_blocks(path) for line in block]


def read_blocks(path: Path) -> Iterator[list[Line]]:
    """The lines of a `metrics.jsonl`, some hundreds at a time, so that a million need neither memory nor patience.

    Raises:
        LauncherError: A line other than the last is not a JSON object.
    """
    if not path.is_file():  # at a pipe reading would wait for ever
        return
    number, rest = 1, b""
    with path.open("rb") as file:
        while data := file.read(_BLOCK_BYTES):
            whole, newline, rest = (rest + data).rpartition(b"\n")
            if newline:
                yield _parsed(whole, path, number)
                number += whole.count(b"\n") + 1
    if rest and (line := _object(rest)) is not None:
        yield [_numbers(line)]


def read_evaluations(path: Path, split: str) -> Iterator[Line]:
    """The lines of a split other than `train`, oldest first: found without parsing the many train lines."""
    mark = f'"split": "{split}"'.encode()
    if not path.is_file():
        return
    with suppress(OSError, ValueError), path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as text:
        place = text.find(mark)
        while place >= 0:
            end = text.find(b"\n", place) % (len(text) + 1)
            line = _object(text[text.rfind(b"\n", 0, place) + 1 : end])
            if line is not None and line.get("split") == split:
                yield _numbers(line)
            place = text.find(mark, end)


def read_last(path: Path, having: str = "") -> Line:
    """The newest line that can be read, or that has this key; empty where there is none.

    As fast as the file is long or short: only its end is looked at.
    """
    if not path.is_file():
        return {}
    with suppress(OSError), path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _BLOCK_BYTES))
        rows = reversed(file.read().splitlines())
        lines = (_numbers(line) for row in rows if (line := _object(row)) is not None)
        return next((line for line in lines if not having or having in line), {})
    return {}


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
    if path.is_file():
        with path.open("rb") as file:
            yield from (raw for raw in file if raw.endswith(b"\n"))


def _lines_backwards(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Where each line of a file begins, and its bytes, newest first; the last may be torn."""
    with suppress(ValueError), mmap(file.fileno(), 0, access=ACCESS_READ) as text:  # an empty file has no map
        end = len(text)
        while end > 0:
            start = text.rfind(b"\n", 0, end - 1) + 1
            yield start, text[start:end]
            end = start


def _stays(line: Line, step: int, evaluated: int) -> bool:
    """Whether a line will not be written again by a run that resumes after `step` steps."""
    split = line.get("split", "train")
    return split != "test" and bool(line.get("step", math.inf) <= (step if split == "train" else evaluated))


def _count(line: Line, step: int, redone: Redone) -> None:
    """Adds a line that will be written again."""
    redone.steps = max(redone.steps, line.get("step", step) - step)
    redone.seconds += line.get("seconds", 0.0)


def _parsed(block: bytes, path: Path, first: int) -> list[Line]:
    """Complete lines, parsed as one array."""
    try:
        lines: list[Line] = orjson.loads(b"[" + block.replace(b"\n", b",") + b"]")
    except ValueError:
        lines = []
    if not lines or not all(map(_is_line, lines)):
        lines = [_checked(raw, path, number) for number, raw in enumerate(block.split(b"\n"), first) if raw.strip()]
    has_words = b'NaN"' in block or b'Infinity"' in block
    return [_numbers(line) for line in lines] if has_words else lines


def _checked(raw: bytes, path: Path, number: int) -> Line:
    line = _object(raw)
    if line is None:
        raise LauncherError(
            f"{path}:{number}: this line of the metrics is damaged; remove it, or read an earlier copy of the file"
        )
    return line


def _object(raw: bytes) -> Line | None:
    try:
        value = orjson.loads(raw)
    except ValueError:
        return None
    return value if _is_line(value) else None


def _is_line(value: Any) -> bool:
    """Whether it is what stands on a line: words for the split and its name, a count of steps."""
    if not isinstance(value, dict) or not isinstance(value.get("split", ""), str):
        return False
    step = value.get("step", 0)
    return isinstance(value.get("name", ""), str) and isinstance(step, int) and 0 <= step < 2**63


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
