"""The code of a submitted run as it was then, so that an edit while the job waits changes nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from launcher.errors import UsageError
from launcher.runs.folder import QUEUE_FILE, STATUS_FILE

CODE_FOLDER = "code"
_MOST_FILES, _MOST_BYTES = 1_000, 10_000_000  # of Python; more is not a project beside a recipe
_MOST_SEEN = 20_000
_OURS = Path(__file__).parent.parent.parent  # a copy of this package would hide the one that runs
_FOREIGN = ("__pycache__", "node_modules", "site-packages")


def kept_at(file: Path, files: Sequence[Path], folder: Path) -> Path:
    """Where `keep` puts one of the files, for a run's folder."""
    return folder / CODE_FOLDER / file.relative_to(_top(files))


def keep(files: Sequence[Path], folder: Path) -> str | None:
    """Copies files into a run's folder with the Python files beside them and below; the rest is linked to.

    Args:
        files: A recipe and its bases, or a script; absolute.
        folder: The run's.

    Returns:
        What to say where folders hold too much to be copied.

    Raises:
        UsageError: They cannot be copied.
    """
    shutil.rmtree(folder / CODE_FOLDER, ignore_errors=True)
    large = []
    try:
        for place in dict.fromkeys(file.parent for file in files):
            python_files = _python_below(place, folder)
            if python_files is None:
                large.append(str(place))
            own = {*files, *(python_files if python_files is not None else place.glob("*.py"))}
            _copy(place, kept_at(place, files, folder), own, folder)
    except OSError as error:
        raise UsageError(f"--run-dir: {folder} cannot be written: {error.strerror or error}") from error
    return f"{', '.join(large)}: too much to be copied; folders there are read when the job runs" if large else None


def _top(files: Sequence[Path]) -> Path:
    return Path(os.path.commonpath([file.parent for file in files]))


def _python_below(place: Path, run: Path) -> list[Path] | None:
    """Python files in a folder and below, without environments and runs; None where they are too many."""
    files: list[Path] = []
    seen = size = 0
    for where, folders, names in os.walk(place):
        at = Path(where)
        folders[:] = [name for name in folders if not _is_foreign(at / name, run)]
        mine = [at / name for name in names if name.endswith(".py") and (at / name).is_file()]
        files += mine
        seen += len(names) + len(folders)
        size += sum(file.stat().st_size for file in mine)
        if seen > _MOST_SEEN or size > _MOST_BYTES or len(files) > _MOST_FILES:
            return None
    return files


def _is_foreign(folder: Path, run: Path) -> bool:
    if folder.name.startswith(".") or folder.name in _FOREIGN or run.is_relative_to(folder) or folder == _OURS:
        return True
    return any((folder / name).exists() for name in ("pyvenv.cfg", STATUS_FILE, QUEUE_FILE))


def _copy(place: Path, target: Path, own: set[Path], run: Path) -> None:
    """Copies a folder's own files; what else lies there can still be opened from them, through a link."""
    target.mkdir(parents=True, exist_ok=True)
    holders = {parent for file in own for parent in file.parents}
    for entry in place.iterdir():
        if entry in own:
            shutil.copy(entry, target / entry.name)
        elif entry in holders and not entry.is_symlink():
            if (target / entry.name).is_symlink():
                (target / entry.name).unlink()
            _copy(entry, target / entry.name, own, run)
        elif not _is_hidden(entry, run) and not os.path.lexists(target / entry.name):
            (target / entry.name).symlink_to(entry)


def _is_hidden(entry: Path, run: Path) -> bool:
    return entry.name.startswith(".") or entry.name == "__pycache__" or run.is_relative_to(entry)
