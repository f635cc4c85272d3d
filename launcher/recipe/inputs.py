"""What is not a file, though it has a path: pipes that wait for ever, devices without end, the kernel's own folders."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

_OF_THE_KERNEL = ("/proc", "/sys", "/dev")


def real_path(path: str | os.PathLike[str]) -> str:
    """Where a path leads to; the path itself where that may not be asked, as of another process's root in /proc."""
    try:
        return os.path.realpath(path)
    except OSError:
        return os.path.abspath(path)


def system_folder(path: str | os.PathLike[str]) -> str | None:
    """The folder of the kernel's that a path leads to, such as /proc; None where it leads elsewhere.

    Shared memory, /dev/shm, is an ordinary disk to those who keep data there.
    """
    real = real_path(path)
    if real == "/dev/shm" or real.startswith("/dev/shm/"):
        return None
    return next((folder for folder in _OF_THE_KERNEL if real == folder or real.startswith(f"{folder}/")), None)


def unreadable(path: str | os.PathLike[str]) -> str | None:
    """Why a path is not an input, in words that follow it; None where it is a file, a folder, or not there at all."""
    if system := system_folder(path):
        return f"is in {system}, where no data is kept"
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError):
        return None
    kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
    kind = kinds.get(stat.S_IFMT(mode))
    return f"is {kind}, not a file" if kind else None


def fault_inside(folder: str | os.PathLike[str]) -> str | None:
    """What is no data in a folder, with its path: a link by which it contains itself, or into /proc, or a pipe.

    Args:
        folder: Walked through with all its links, each folder once on the way to it.
    """
    root = real_path(folder)
    return next(_faults(root, (root,)), None)


def leads_back(path: str | os.PathLike[str], above: tuple[str, ...]) -> bool:
    """Whether a folder, met on a walk, is one of those that led to it, or contains the first of them."""
    real = real_path(path)
    return real in above or Path(above[0]).is_relative_to(real)


def fault_of(entry: os.DirEntry[str]) -> str | None:
    """Why an entry of a folder is no input; a plain file or folder, as most are, costs no look at the disk."""
    is_plain = not entry.is_symlink() and (entry.is_file() or entry.is_dir())
    return None if is_plain else unreadable(entry.path)


def _faults(folder: str, above: tuple[str, ...]) -> Iterator[str]:
    with os.scandir(folder) as opened:
        entries = list(opened)
    for entry in entries:
        if fault := fault_of(entry):
            yield f"{entry.path} {fault}; remove it"
        elif entry.is_dir() and leads_back(entry.path, above):
            yield f"{entry.path} is a link by which this folder contains itself; remove the link"
        elif entry.is_dir():
            yield from _faults(entry.path, (*above, real_path(entry.path)))
