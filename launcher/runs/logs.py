"""Every rank's output, whole, in `logs/rank-N.log` of the run's folder."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def copied_to(path: Path) -> Iterator[None]:
    """Copies this process's output to a file for a while."""
    try:
        file = path.open("a", encoding="utf-8", errors="replace")
    except OSError:
        yield
        return
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = Tee(before[0], file), Tee(before[1], file)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        file.close()
