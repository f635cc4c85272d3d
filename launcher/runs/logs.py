"""Every rank's output, whole, in `logs/rank-N.log` of the run's folder."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from launcher.recipe.masking import masked
from launcher.runs import copy_output
from launcher.world.files import own_file
from launcher.world.screen import Steady, Wrapped, made_steady

_COLOUR = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def plain(text: str) -> str:
    """A text as a file shall have it: without colours, and of a redrawn line what was drawn last.

    It takes time in proportion to the text, however long its lines are: a program may print megabytes without a break.
    """
    if "\x1b" in text:
        text = _COLOUR.sub("", text)
    if "\r" not in text:
        return text
    *lines, rest = text.split("\n")  # the rest has no end yet: it may be drawn again
    return "".join(f"{_last_drawn(line)}\n" for line in lines) + rest.rpartition("\r")[2]


def _last_drawn(line: str) -> str:
    drawn = line.removesuffix("\r")
    return drawn.rpartition("\r")[2] + line[len(drawn) :]  # what other systems end a line with is kept


def log_of(folder: Path, rank: int) -> Path:
    """A rank's log in a run's folder."""
    return folder / "logs" / f"rank-{rank}.log"


def tail_of(path: Path, num_bytes: int = 2**16) -> str:
    """The end of a log; empty where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - num_bytes))
            return file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""


class Tee(Wrapped):
    """A stream that also writes to a file, there without colours, redrawn lines and secrets."""

    def __init__(self, stream: TextIO, file: TextIO):
        super().__init__(stream)
        self._file = file

    def write(self, text: str) -> int:
        """Writes to both; a full disk must not end the training."""
        try:
            self._file.write(masked(plain(text)))
            self._file.flush()
        except (OSError, ValueError):
            pass
        return self._stream.write(text)

    @property
    def unprefixed(self) -> Tee:
        """The same, for what names its rank itself."""
        return Tee(self._stream.stream, self._file) if isinstance(self._stream, Prefixed) else self


class Prefixed(Wrapped):
    """A stream whose every line begins with who says it."""

    def __init__(self, stream: TextIO, prefix: str):
        super().__init__(stream)
        self.stream = stream
        self._prefix = prefix
        self._unfinished: list[str] = []  # the pieces of a line that has no end yet: joined once, when it has

    def write(self, text: str) -> int:
        """Writes whole lines, so that those of several ranks do not mix; keeps the rest."""
        self._unfinished.append(text)
        if "\n" in text:
            *lines, rest = "".join(self._unfinished).split("\n")
            self._unfinished = [rest]
            self.stream.write("".join(f"{self._prefix}{line}\n" for line in lines))
            self.stream.flush()
        return len(text)


class Tolerant(Steady):
    """A stream on a disk that may be full, which must not end the training; each piece is there at once."""

    def write(self, text: str) -> int:
        """Writes what can be written, without secrets: it is a log."""
        super().write(masked(text))
        self.flush()
        return len(text)


@dataclass
class _Log:
    """Where this process's output is kept.

    Attributes:
        path: The file; None while the run's folder is not known, and the file has no name.
        descriptor: What Python writes to.
        moved: This process's own standard streams that lead there.
    """

    path: Path | None
    descriptor: int
    moved: Sequence[int] = ()


_log: _Log | None = None
_copiers: list[subprocess.Popen[bytes]] = []  # they end when nobody prints any more


@contextmanager
def kept(path: Path | None, rank: int, *, is_ours: bool) -> Iterator[None]:
    """Keeps this process's output in a file, from its first line on: rank 0's beside the screen, others' instead of it.

    Args:
        path: The file; None where the run's folder is not known yet, and `settle` says it later.
        rank: Whose output it is.
        is_ours: Whether our supervisor started this process, so that nobody sits at its terminal with a debugger: what
            compiled code and other programs print then stands in rank 0's log too.
    """
    global _log
    file = _open(path) if path is not None else _unnamed()
    if file is None:
        yield
        return
    _log = _Log(path, file.fileno(), () if rank == 0 else (1, 2))
    try:
        with ExitStack() as stack:
            if rank > 0:
                _move_to(file, path, rank)
            elif is_ours and path is not None:
                stack.enter_context(_all_copied_to(path, file))
            else:
                stack.enter_context(_copied(file, sys.stdout, sys.stderr))
            yield
    finally:
        _log = None
        with suppress(OSError):
            file.close()


def settle(path: Path) -> bool:
    """Says where the output that is kept belongs; False where none is, or it is kept elsewhere."""
    if _log is None:
        return False
    if _log.path is not None:
        return os.path.abspath(_log.path) == os.path.abspath(path)
    _log.path = path
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab", buffering=0, opener=own_file) as named:
            text = os.pread(_log.descriptor, os.fstat(_log.descriptor).st_size, 0)
            named.write(masked(text.decode(errors="replace")).encode())
            for descriptor in (_log.descriptor, *_log.moved):
                os.dup2(named.fileno(), descriptor)
        if _log.moved:
            _into_copier(path, dict.fromkeys(_log.moved))
    return True


@contextmanager
def copied_to(path: Path) -> Iterator[None]:
    """Copies what Python prints in this process to a file for a while."""
    file = _open(path)
    if file is None:
        yield
        return
    try:
        with _copied(file, sys.stdout, sys.stderr):
            yield
    finally:
        with suppress(OSError):
            file.close()


@contextmanager
def _copied(file: TextIO, *screens: TextIO) -> Iterator[None]:
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_stream(Tee(made_steady(screen), file)) for screen in screens)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


@contextmanager
def _all_copied_to(path: Path, file: TextIO) -> Iterator[None]:
    """Python writes to the screen and the file itself, as a bar on a terminal must not be in a log; the rest a process.

    Not a thread: what a library says when it aborts must still reach the screen.
    """
    with ExitStack() as stack:
        screens = [_writer(os.dup(number), stream) for number, stream in ((1, sys.stdout), (2, sys.stderr))]
        for screen in screens:
            stack.enter_context(closing(screen))
        copier = _into_copier(path, {number: screen.fileno() for number, screen in zip((1, 2), screens, strict=True)})
        if copier is not None:
            stack.callback(_end_copy, copier, screens)
        _set_line_buffers()
        with _copied(file, *screens):
            yield


def _into_copier(path: Path, screens: Mapping[int, int | None]) -> subprocess.Popen[bytes] | None:
    """Leads descriptors of this process through one of its own that copies what is printed; None where there is none.

    Args:
        path: The log.
        screens: Where each descriptor's output is shown, if it is.
    """
    pipes = {number: os.pipe() for number in screens}
    pairs = [f"{pipes[number][0]}:{'' if screen is None else screen}" for number, screen in screens.items()]
    shown = [screen for screen in screens.values() if screen is not None]
    package = Path(__file__).parent.parent.parent
    try:
        copier = subprocess.Popen(
            [sys.executable, "-I", "-S", copy_output.__file__, str(package), str(path), *pairs],
            pass_fds=[*(reading for reading, _ in pipes.values()), *shown],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for number, (_, writing) in pipes.items():
            os.dup2(writing, number)
        _copiers.append(copier)
    except OSError:
        return None
    finally:
        for descriptor in (descriptor for pipe in pipes.values() for descriptor in pipe):
            os.close(descriptor)
    return copier


def _end_copy(copier: subprocess.Popen[bytes], screens: Sequence[TextIO]) -> None:
    for number, screen in zip((1, 2), screens, strict=True):
        os.dup2(screen.fileno(), number)
    with suppress(subprocess.TimeoutExpired):  # what this process started may still hold the other end
        copier.wait(1)


def _writer(descriptor: int, like: TextIO) -> TextIO:
    """By lines: another rank's must not stand between a line and its end."""
    return made_steady(os.fdopen(descriptor, "w", buffering=1, encoding=like.encoding, errors=like.errors))


def _set_line_buffers() -> None:
    """C's own standard output would wait for 4 KiB where it is not a terminal, and be lost with a killed process."""
    with suppress(OSError, AttributeError, ValueError):
        library = ctypes.CDLL(None)
        library.setlinebuf(ctypes.c_void_p.in_dll(library, "stdout"))


def _move_to(file: TextIO, path: Path | None, rank: int) -> None:
    """From here on this process's output goes to a file, what compiled code prints included.

    Errors are shown on the screen too, each line with the rank's name. Warnings are not: rank 0 has the same.
    """
    screen = made_steady(os.fdopen(os.dup(2), "w", encoding="utf-8", errors="replace"))
    streams: tuple[Any, ...] = (sys.stdout, sys.stderr)
    for stream in streams:
        with suppress(AttributeError, ValueError):  # somebody else's stream, or that of a run before, which is closed
            stream.reconfigure(encoding="utf-8", errors="replace")  # for a file, whatever the screen's was
    if path is None or _into_copier(path, {1: None, 2: None}) is None:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    _set_line_buffers()
    sys.stdout = _stream(Tolerant(file))
    sys.stderr = _stream(Tee(_stream(Prefixed(screen, f"[rank {rank}] ")), file))
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


def _unnamed() -> TextIO | None:
    try:
        return tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
    except OSError:
        return None


def _open(path: Path) -> TextIO | None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return open(path, "a", encoding="utf-8", errors="replace", opener=own_file)
    except OSError:
        return None
