"""Files and folders that appear whole or not at all: the one way in which this program replaces a file."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path

import psutil

_PART = ".part"


def write_text(path: Path, text: str) -> None:
    """Puts a small text in a file's place; the folder must be there.

    Raises:
        OSError: The disk is full, read-only or gone; what was there stays as it is.
    """
    with atomic_write(path, parents=False) as part:
        part.write_text(text, encoding="utf-8", errors="surrogateescape")  # a name of odd bytes keeps them


def own_file(name: str, flags: int) -> int:
    """Opens a file that a run adds to, as `open(…, opener=own_file)`: a folder may be a stranger's.

    A link there leads to a file of somebody else's, but for one to a device as /dev/null; at a pipe one would wait for
    ever.

    Raises:
        OSError: It is one of these, or cannot be written.
    """
    follow = 0 if Path(name).is_char_device() else os.O_NOFOLLOW
    return os.open(name, flags | follow | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)


@contextmanager
def atomic_write(path: str | os.PathLike[str], *, parents: bool = True) -> Iterator[Path]:
    """Makes a file or folder that appears at `path` when it is finished, and never half-made.

    The block writes to the path that it is given, a file or a folder of that name beside the final one. If the
    block raises, or the process is killed in it, nothing appears; what a killed one left is removed by the next. If
    somebody else has finished a folder meanwhile, theirs is kept.

    Args:
        path: Where it shall appear.
        parents: Whether folders above are made.

    Yields:
        Where to write. Nothing is there yet.
    """
    path = Path(path)
    if parents:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    prefix = f".{path.name}.{platform.node()}-"
    _remove_abandoned(path.parent, prefix)
    part = path.parent / f"{prefix}{os.getpid()}{_PART}{path.suffix}"
    try:
        yield part
        if part.is_dir() and path.is_dir():
            return
        os.replace(part, path)
    finally:
        _remove(part)


def _remove_abandoned(folder: Path, prefix: str) -> None:
    for part in folder.glob(f"{escape(prefix)}*{_PART}*"):
        process = part.name.removeprefix(prefix).partition(_PART)[0]
        if process.isdigit() and not _is_alive(int(process)):
            _remove(part)


def _is_alive(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE  # killed, and not yet asked after
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
