"""Files and folders that a process needs while it lives, and that nobody finds afterwards, however it has ended.

Their owner holds a lock on each. One that was killed removes nothing; the next that needs such a place removes what
nobody holds any more. None has its name before it is held, so that nobody takes a new one for a left-over.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX = "launcher_tmp_"
_UNNAMED = ".launcher_new_"
_LONGEST = 60  # bytes: a socket's name has 107 at most, and multiprocessing waits for ever for one that cannot be made


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder of this process's for a while.

    Raises:
        OSError: There can be none.
    """
    path, descriptor = held_folder()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(descriptor)


def held_folder() -> tuple[Path, int]:
    """A folder in `place`, and the descriptor that holds it for as long as it is open.

    Raises:
        OSError: There can be none.
    """
    parent = place()
    sweep(parent)
    path = Path(tempfile.mkdtemp(prefix=_UNNAMED, dir=parent))
    return _held(path, os.open(path, os.O_RDONLY | os.O_DIRECTORY))


def place() -> str:
    """TMPDIR; where its name is so long that no socket could have one in there, what every system has."""
    named = tempfile.gettempdir()
    is_long = len(os.fsencode(named)) > _LONGEST
    return "/tmp" if is_long and os.access("/tmp", os.W_OK | os.X_OK) else named


def held_file(parent: Path) -> tuple[Path, int]:
    """A file, open for reading and writing, whose descriptor holds it for as long as it is open.

    Args:
        parent: Where.

    Raises:
        OSError: There can be none.
    """
    sweep(parent)
    descriptor, name = tempfile.mkstemp(prefix=_UNNAMED, dir=parent)
    return _held(Path(name), descriptor)


def _held(path: Path, descriptor: int) -> tuple[Path, int]:
    with suppress(OSError):  # a file system without locks: then nobody else takes it for a left-over either
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    named = path.with_name(path.name.replace(_UNNAMED, _PREFIX))
    os.rename(path, named)
    return named, descriptor


def sweep(parent: str | os.PathLike[str]) -> None:
    """Removes what processes of this user's have left there that have been killed.

    Args:
        parent: A folder which other users have as well.
    """
    try:
        left = [entry for entry in os.scandir(parent) if entry.name.startswith(_PREFIX)]
    except OSError:
        return
    for entry in left:
        with suppress(OSError):  # somebody else's, held, or removed by another sweep
            _remove_unheld(entry.path)


def _remove_unheld(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if status.st_uid != os.getuid():
            return
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if stat.S_ISDIR(status.st_mode):
            shutil.rmtree(path, ignore_errors=True)
        else:
            os.unlink(path)
    finally:
        os.close(descriptor)
