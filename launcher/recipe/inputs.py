"""What is no file, though it has a path: pipes that wait for ever, devices without end, the kernel's own folders."""

from __future__ import annotations

import os
import stat
from pathlib import Path

_OF_THE_KERNEL = ("/proc", "/sys", "/dev")


def system_folder(path: str | os.PathLike[str]) -> str | None:
    """The folder of the kernel's that a path leads to, such as /proc; None where it leads elsewhere.

    Shared memory, /dev/shm, is an ordinary disk to those who keep data there.
    """
    real = os.path.realpath(path)
    if real == "/dev/shm" or real.startswith("/dev/shm/"):
        return None
    return next((folder for folder in _OF_THE_KERNEL if real == folder or real.startswith(f"{folder}/")), None)


def unreadable(path: str | os.PathLike[str]) -> str | None:
    """Why a path is no input, in words that follow it; None where it is a file, a folder, or not there at all."""
    if system := system_folder(path):
        return f"lies in {system}, where no data is kept"
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError):
        return None
    kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
    kind = kinds.get(stat.S_IFMT(mode))
    return f"is {kind}, not a file" if kind else None
