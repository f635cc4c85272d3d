"""The working directory, taken once: a user's code may change it at any time, and moves nothing of ours."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from launcher.errors import UsageError

_taken: Path | None = None


def take() -> None:
    """Takes the working directory as it is now, for the rest of a command or call."""
    global _taken
    try:
        _taken = Path.cwd()
    except OSError:  # it was removed; what needs it says so
        _taken = None


@contextmanager
def taken() -> Iterator[None]:
    """Takes it for a while."""
    global _taken
    before = _taken
    take()
    try:
        yield
    finally:
        _taken = before


def directory() -> Path:
    """The working directory as it was taken; as it is where nobody has taken it.

    Raises:
        UsageError: It was removed.
    """
    try:
        return Path.cwd() if _taken is None else _taken
    except OSError:
        raise UsageError("the working directory no longer exists; change to another") from None


def absolute(path: str | os.PathLike[str]) -> Path:
    """A path of a user's in full: of the home where it begins with `~`, else from the working directory."""
    path = Path(path).expanduser()
    return path if path.is_absolute() else directory() / path


def shortest(file: str | os.PathLike[str]) -> str:
    """A path from the working directory, where it lies below that."""
    relative = os.path.relpath(file, directory())
    if relative.startswith("-"):  # on a command line it would be an option
        return f"./{relative}"
    return os.fspath(file) if relative.startswith("..") else relative
