"""Every rank's output, whole, in `logs/rank-N.log` of the run's folder."""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[^\n]*\r(?!\n)")


class Tee:
    """A stream that also writes to a file, there without colours and redrawn lines."""

    def __init__(self, stream: TextIO, file: TextIO):
        self._stream = stream
        self._file = file

    def write(self, text: str) -> int:
        """Writes to both; a full disk must not end the training."""
        try:
            self._file.write(_CONTROL.sub("", text))
            self._file.flush()
        except (OSError, ValueError):
            pass
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Prefixed:
    """A stream whose every line begins with who says it."""

    def __init__(self, stream: TextIO, prefix: str):
        self._stream = stream
        self._prefix = prefix
        self._unfinished = ""

    def write(self, text: str) -> int:
        """Writes whole lines, so that those of several ranks do not mix; keeps the rest."""
        *lines, self._unfinished = (self._unfinished + text).split("\n")
        if lines:
            self._stream.write("".join(f"{self._prefix}{line}\n" for line in lines))
            self._stream.flush()
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Tolerant:
    """A stream on a disk that may be full, which must not end the training."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes what can be written."""
        with suppress(OSError):
            self._stream.write(text)
            self._stream.flush()
        return len(text)

    def flush(self) -> None:
        """Nothing is left to write."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def copied_to(path: Path) -> Iterator[None]:
    """Copies this process's output to a file for a while."""
    file = _open(path)
    if file is None:
        yield
        return
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _stream(Tee(before[0], file)), _stream(Tee(before[1], file))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        with suppress(OSError):
            file.close()


def move_to(path: Path, rank: int) -> None:
    """From here on this process's output goes to a file, what compiled code prints included.

    Errors are shown on the screen too, each line with the rank's name. Warnings are not: rank 0 has the same.
    """
    file = _open(path)
    if file is None:
        return
    screen = os.fdopen(os.dup(2), "w", encoding="utf-8", errors="replace")
    sys.stdout.flush()
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
    sys.stdout = _stream(Tolerant(sys.stdout))
    sys.stderr = _stream(Tee(_stream(Prefixed(screen, f"[rank {rank}] ")), sys.stderr))
    warnings.showwarning = _into_the_log


def _into_the_log(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: str | None = None,
) -> None:
    sys.stdout.write(warnings.formatwarning(message, category, filename, lineno, line))


def _stream(like: Any) -> TextIO:
    """It has all of a stream's methods, though not its base class."""
    stream: TextIO = like
    return stream


def _open(path: Path) -> TextIO | None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a", encoding="utf-8", errors="replace")
    except OSError:
        return None
