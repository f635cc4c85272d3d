"""Who asks: a command line, or somebody's Python. Messages say what they write there."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# what stands in the place of a section, by its key: `launcher.train(train=…)`
KEYWORDS = {
    **{name: name for name in ("model", "loss", "optimizer", "scheduler", "batch")},
    **{f"data.{name}": name for name in ("train", "validation", "test", "collate")},
    **{f"train.{name}": name for name in ("step", "count")},
    "evaluate.metrics": "metrics",
}
_is_python = False


class Keyword(str):
    """An override that was written as a keyword: `train.epochs=5` of `epochs=5`."""

    @property
    def written(self) -> str:
        """As it was."""
        name, _, value = self.partition("=")
        return f"{name.rpartition('.')[2]}={value}"


@contextmanager
def from_python() -> Iterator[None]:
    """While this holds, messages speak of keywords and not of flags."""
    global _is_python
    before, _is_python = _is_python, True
    try:
        yield
    finally:
        _is_python = before


def option(name: str, *values: str) -> str:
    """What a flag is called where it is asked for, with its values where some are given: all of a list in Python."""
    flag = f"--{name.replace('_', '-')}"
    if _is_python:
        return f"{name}=[{', '.join(map(repr, values))}]" if values else name
    return " ".join(f"{flag} {value}" for value in values) if values else flag


def setting(name: str, value: Any) -> str:
    """A flag with its one value where it is asked for: `--trials 8`, in Python `trials=8`; True has no value there."""
    if _is_python:
        return f"{name}={value!r}"
    return option(name) if value is True else f"{option(name)} {shlex.quote(str(value))}"
