"""The screen of a process: it may be closed, break or know few letters, and no run fails for that."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast


@contextmanager
def unseen() -> Iterator[None]:
    """For trials of ours with a user's code: nothing of it is shown, and no `breakpoint()` stops.

    What it prints, and where it stops, is for the training that somebody looks at.
    """
    before = sys.breakpointhook, sys.stdout, sys.stderr
    with io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="replace") as nowhere:
        sys.breakpointhook, sys.stdout, sys.stderr = (lambda *_, **__: None), nowhere, nowhere
        try:
            yield
        finally:
            sys.breakpointhook, sys.stdout, sys.stderr = before


_is_for_programs = False  # whether standard output takes a JSON object a line

# a pipe that nobody reads, a terminal that is gone, a descriptor that somebody has closed
_GONE = (errno.EPIPE, errno.EIO, errno.EBADF, errno.ENXIO)


def prepare() -> None:
    """For the beginning of a process, or of a call from somebody else's: each standard stream is there.

    Where one was closed, the next file to be opened would have its number, and what is printed would land in that.
    """
    for number, access in enumerate((os.O_RDONLY, os.O_WRONLY, os.O_WRONLY)):
        with suppress(OSError):
            _occupy(number, access)
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            stream = open(number, mode, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115  # it stays
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)


def quieten_packages(*, is_first: bool) -> None:
    """For the beginning of a command, before it imports what a recipe names: what transformers and its kin may print.

    Bars stay where somebody watches them, as of a download; in a file, or between the lines of other ranks, they are
    drawn over and over. All ranks load the same, so that the first one's warnings are all there are. What the
    environment says of it stays.

    Args:
        is_first: Whether this is rank 0, or no rank.
    """
    if not (is_first and sys.stderr.isatty()):
        for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
            os.environ.setdefault(name, "1")
    if not is_first:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def take_any_letter() -> None:
    """For the beginning of a process: letters that the screen does not know become question marks."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")


def _occupy(number: int, access: int) -> None:
    try:
        os.fstat(number)
    except OSError:
        opened = os.open(os.devnull, access)
        os.dup2(opened, number)  # which programs that are started inherit
        if opened != number:
            os.close(opened)
        else:
            os.set_inheritable(number, True)


def for_programs() -> bool:
    """Whether standard output takes one JSON object a line, and nothing else."""
    return _is_for_programs


@contextmanager
def speaking_json(wanted: bool) -> Iterator[None]:
    """For a command with `--json`: what goes wrong inside is told to programs as well."""
    global _is_for_programs
    was, _is_for_programs = _is_for_programs, wanted
    try:
        yield
    finally:
        _is_for_programs = was


class Wrapped:
    """A stream around another, which has all that the other has; what is written goes through `write`.

    Args:
        stream: The other.
    """

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes to the other."""
        return self._stream.write(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Writes each."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        if name == "_stream":  # not made yet, as when it is copied
            raise AttributeError(name)
        return getattr(self._stream, name)


class Steady(Wrapped):
    """A stream that may break: what it cannot take is lost, and nobody fails.

    When it is gone for good its descriptor leads nowhere, so that compiled code and programs that were started can go
    on printing as well.

    Attributes:
        broken: What was wrong when it broke; None as long as it works.
    """

    def __init__(self, stream: TextIO):
        super().__init__(stream)
        self.broken: OSError | None = None

    def write(self, text: str) -> int:
        """Writes what can be written."""
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding
            self.write(text.encode(encoding, "replace").decode(encoding))
        except (OSError, ValueError) as error:  # a ValueError is a stream that somebody has closed
            self._give_up(error)
        return len(text)

    def flush(self) -> None:
        """Lets go what is held back."""
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._give_up(error)

    def close(self) -> None:
        """Closes it, whatever becomes of what is held back."""
        self.flush()
        with suppress(OSError, ValueError):
            self._stream.close()

    @property
    def buffer(self) -> Steady:
        """The stream of bytes, as steady."""
        inner = Steady(cast(TextIO, self._stream.buffer))
        inner.broken = self.broken
        return inner

    def _give_up(self, error: OSError | ValueError) -> None:
        if self.broken is not None or not isinstance(error, OSError) or error.errno not in _GONE:
            return  # a full disk may have room again
        self.broken = error
        with suppress(OSError, ValueError):
            _lead_nowhere(self._stream.fileno())


def _lead_nowhere(descriptor: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def made_steady(stream: TextIO) -> TextIO:
    """The stream, steady; itself where it is already."""
    return stream if isinstance(stream, Steady) else cast(TextIO, Steady(stream))


@contextmanager
def steady() -> Iterator[None]:
    """Makes standard output and errors steady for a while.

    What they hold back is let go at the end: Python would fail when it does so itself.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = mine = made_steady(before[0]), made_steady(before[1])
    try:
        yield
    finally:
        for stream in mine:
            stream.flush()
        if (sys.stdout, sys.stderr) == mine:
            sys.stdout, sys.stderr = before


def let_go() -> None:
    """At the end of a process: what is held back is written, or dropped where the screen is gone."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            made_steady(stream).flush()
