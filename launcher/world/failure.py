"""What went wrong on a rank, as an exception, an exit code or a stack tells it."""

from __future__ import annotations

import os
import platform
import re
import signal
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import dropwhile, islice, takewhile
from pathlib import Path
from types import TracebackType
from typing import Any

from launcher.errors import EXIT_FAILED, LauncherError
from launcher.recipe.directory import shortest
from launcher.recipe.masking import masked, masked_in
from launcher.recipe.raised import all_lines, cause_of, chain_of, is_a, kind_of, last_lines, members_of, trace_of
from launcher.text import printable, words_of

_PACKAGE = str(Path(__file__).parent.parent) + os.sep
_OWN_CODE = tuple(_PACKAGE + name + os.sep for name in ("models", "datasets", "_recipes"))  # ours, but a recipe's parts
_SIGNALS = {
    "SIGKILL": "the machine may have run out of memory, or it was killed",
    "SIGSEGV": "a fault in compiled code: an extension module, or a library that does not fit the others",
    "SIGBUS": "a fault in shared memory: /dev/shm may be full",
    "SIGABRT": "compiled code aborted; the log says why",
    "SIGILL": "compiled code for another kind of CPU",
}
LINE = 500  # characters shown of a line
_WORDS, _TRACEBACK = 4_000, 100_000  # characters kept of what was printed, written to a file
_MOST_BEHIND = 8  # exceptions behind one that are shown
# what a rank says whose peer has failed: never the cause
_AFTERMATH = re.compile(
    r"Connection closed by peer|Connection reset by peer|Connection timed out|No route to host"
    r"|Network is unreachable|Connection was likely closed|Broken pipe|Socket closed"
    r"|socket has already been closed|NCCL communicator was aborted|remote process exited|ncclRemoteError"
    r"|Timed out waiting \d+ms|Watchdog caught collective operation timeout|Timeout waiting for key"
    r"|wait timeout after|recvValue failed|sendBytes failed|failed to recv"
)


@dataclass(frozen=True)
class Frame:
    """One line of a traceback.

    Attributes:
        file: As Python names it.
        line: From 1.
        function: Its name.
        code: The line's text.
        is_users: Whether it is the user's own code, not ours, torch's or another package's.
    """

    file: str
    line: int
    function: str
    code: str
    is_users: bool

    @property
    def place(self) -> str:
        """`parts.py:57`, from the working directory where that is shorter."""
        return f"{shortest(self.file) if os.path.isabs(self.file) else self.file}:{self.line}"


@dataclass(frozen=True)
class Failure:
    """How one rank failed.

    Attributes:
        what: In words: `ValueError: …`, `killed by signal 9: …`, `exit code 7`.
        rank: Which.
        world: How many there were.
        host: Where.
        time: When, in unix time.
        exit_code: What the program ends with.
        frames: The traceback, outermost first.
        traceback: The same as Python prints it, whole.
        is_aftermath: Whether another rank's failure made this one fail.
        is_silent: Whether this is all that others know of a rank that has ended without a message.
        step: Optimizer steps completed, where that is known.
        epoch: The same in passes over the data.
        facts: What was known of the run where it failed: batch, shapes, parameters without a gradient.
        behind: A line for each exception of a group, and for each that this one was raised from.
    """

    what: str
    rank: int = 0
    world: int = 1
    host: str = field(default_factory=platform.node)
    time: float = field(default_factory=time.time)
    exit_code: int = EXIT_FAILED
    frames: tuple[Frame, ...] = ()
    traceback: str = ""
    is_aftermath: bool = False
    is_silent: bool = False
    step: int | None = None
    epoch: float | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    behind: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """What was raised may hold a secret; it goes into files that are shared."""
        for name in ("what", "traceback", "facts", "behind"):
            value = masked_in(getattr(self, name))
            object.__setattr__(self, name, tuple(value) if name == "behind" else value)
        frames = tuple(replace(frame, code=masked(frame.code)) for frame in self.frames)
        object.__setattr__(self, "frames", frames)

    @property
    def culprit(self) -> Frame | None:
        """The innermost line of the user's own code."""
        return next((frame for frame in reversed(self.frames) if frame.is_users), None)

    @property
    def line(self) -> str:
        """All of it on one line."""
        who = f"rank {self.rank} of {self.world} on {self.host} " if self.world > 1 else ""
        when = f" at step {self.step:,}" if self.step is not None and self.step >= 0 else ""
        when += f" (epoch {self.epoch:.2f})" if when and self.epoch is not None else ""
        where = f" in {self.culprit.place}" if self.culprit else ""
        return printable(f"{who}failed{when}{where}: {cut(self._lines[0], LINE)}")

    @property
    def _lines(self) -> list[str]:
        return self.what.strip().splitlines() or ["no message"]

    @property
    def is_users(self) -> bool:
        """Whether the user's own code raised it, or what that code called besides torch: it concerns no other rank."""
        return _calls_no_torch(self.frames) is not None

    @property
    def noted(self) -> dict[str, Any]:
        """What is written down for others to read. The rank's log has the traceback whole, however long."""
        return {**asdict(self), "traceback": cut(self.traceback, _TRACEBACK)}


def cut(text: str, most: int) -> str:
    """A text of at most so many characters, and how many it had."""
    return text if len(text) <= most else f"{text[:most]}… ({len(text):,} characters; the log has them all)"


# ---------------------------------------------------------------------- from an exception, or from what is left


def of_exception(error: BaseException, **details: Any) -> Failure:
    """The failure that an exception is."""
    text = all_lines(error)
    error = _first_of_device(error)
    cause = cause_of(error)
    if cause is not None and is_a(cause, StopIteration) and words_of(error) == "generator raised StopIteration":
        error = cause  # Python's own words, where it leaves a generator
    frames, what, behind = tuple(_frames(error)), _words_of(error), tuple(islice(_behind(error), _MOST_BEHIND))
    if is_a(error, LauncherError):
        what, behind = words_of(error), ()  # says all that its user needs: no line of ours is to blame
        frames = tuple(replace(frame, is_users=frame.is_users and not _is_ours(frame.file)) for frame in frames)
    elif inner := _in_worker(words_of(error)):
        frames, what, behind = (*frames, *inner[0]), inner[1], inner[2]
    what = cut(what, _WORDS)  # before it is searched: an exception may hold megabytes
    exit_code = getattr(error, "exit_code", EXIT_FAILED) if is_a(error, LauncherError) else EXIT_FAILED
    details = {"is_aftermath": _follows(error, what, frames), "exit_code": exit_code, **details}
    return Failure(what, frames=frames, traceback=text, behind=behind, **details)


# memory that is full is not broken
_OF_DEVICE = re.compile(r"(?:CUDA|HIP|XPU|cuDNN|MIOpen|cuBLAS|NCCL) error(?!.{0,20}out of memory)|device-side assert")


def is_of_device(error: BaseException) -> bool:
    """Whether a device is broken for this process: it says so again whatever it is asked."""
    return is_a(error, RuntimeError) and _OF_DEVICE.search(words_of(error)) is not None


def _first_of_device(error: BaseException) -> BaseException:
    """Where a device has said so again while something was put back: what it said first."""
    *_, first = takewhile(is_of_device, chain_of(error)) if is_of_device(error) else (error,)
    return first


def _words_of(error: BaseException) -> str:
    """The last lines that Python prints of an exception, in clearer words where they say little."""
    if is_a(error, SystemExit) and (code := getattr(error, "code", 1)) in (None, 0):
        return f"left early: SystemExit({code!r}), where training should have continued"
    if is_a(error, StopIteration):
        return "StopIteration: an iterator ran out, and next() had nothing more to give"
    if is_a(error, KeyboardInterrupt):
        return "KeyboardInterrupt: raised by the code itself, nobody pressed Ctrl-C"
    return last_lines(error)


def _behind(error: BaseException, depth: int = 0) -> Iterator[str]:
    """The members of a group and the causes stated by `raise … from`, each on a line with its place."""
    members, cause = members_of(error), cause_of(error)
    named = [(f"{number} of {len(members)}: ", member) for number, member in enumerate(members, 1)]
    if cause is not None:
        named.append(("because of ", cause))
    for label, inner in named if depth < _MOST_BEHIND else ():
        place = next((frame.place for frame in reversed(list(_own_frames(inner))) if frame.is_users), "")
        words = (_words_of(inner).splitlines() or [""])[0]
        yield f"{label}{cut(words, _WORDS)}{f' ({place})' if place else ''}"
        yield from _behind(inner, depth + 1)


def _follows(error: BaseException, what: str, frames: Sequence[Frame]) -> bool:
    """Whether another rank's end has made this one fail.

    The words alone do not tell: a user's own source of data can lose its connection as well. So they count only where
    torch stands between the user's code and the error, or raised it from compiled code, which has no lines.
    """
    if kind_of(error) == "PeerError":
        return True
    if is_a(error, LauncherError) or not _AFTERMATH.search(what):
        return False
    tail = _calls_no_torch(frames)
    if is_a(error, OSError) and not any(_is_torch(frame.file) for frame in frames):
        return False
    if tail is None:
        return True
    from_compiled_code = type(error) is RuntimeError or type(error).__module__.startswith("torch")
    return from_compiled_code and not tail[-1].code.startswith("raise")


def _calls_no_torch(frames: Sequence[Frame]) -> Sequence[Frame] | None:
    """The frames from the user's innermost on, if there is one and torch is not among them."""
    last = max((number for number, frame in enumerate(frames) if frame.is_users), default=None)
    if last is None or any(_is_torch(frame.file) for frame in frames[last + 1 :]):
        return None
    return frames[last:]


def _is_torch(file: str) -> bool:
    return f"{os.sep}torch{os.sep}" in file


_WATCHDOG = re.compile(r"Watchdog caught collective operation timeout[^\n]*")


def of_exit(code: int, stacks: str = "", log: str = "", **details: Any) -> Failure:
    """The failure of a process that left nothing but its exit code, negative for a signal.

    Args:
        code: As `subprocess` gives it.
        stacks: What faulthandler wrote of its threads, if anything.
        log: The end of what it has printed: NCCL aborts the rank that has waited too long, not the one that hangs.
        **details: Further attributes.
    """
    what, is_aftermath = exit_in_words(code), code == -signal.SIGTERM
    if code == -signal.SIGABRT and (waited := _WATCHDOG.search(log)):
        what, is_aftermath = f"ended by NCCL, since another rank did not come: {waited[0]}", True
    return Failure(what, frames=tuple(_crash_frames(stacks)), traceback=stacks, is_aftermath=is_aftermath, **details)


def of_stack(what: str, stack: Iterable[traceback.FrameSummary], **details: Any) -> Failure:
    """The failure of a process that still lives and makes no progress.

    One that waits inside torch or this program waits for another rank: it is that one's aftermath. One that waits for
    its own data does not.
    """
    frames = tuple(_frame(summary.filename, summary.lineno or 0, summary.name, summary.line or "") for summary in stack)
    last = max((number for number, frame in enumerate(frames) if frame.is_users), default=0)
    inner = [frame.file for frame in frames[last + 1 :]]
    waits = any(_is_torch(file) or file.startswith(_PACKAGE) for file in inner)
    waits_for_data = any(_DATA.search(file) for file in inner) and not any(_TOGETHER.search(file) for file in inner)
    return Failure(what, frames=frames, is_aftermath=waits and not waits_for_data, **details)


_DATA = re.compile(r"torch/utils/data/|launcher/(data|datasets)/")
_TOGETHER = re.compile(r"torch/(distributed|nn/parallel)/|launcher/device/(coordination|agreement|shared_memory)")


def exit_in_words(code: int) -> str:
    """`killed by signal 9 (SIGKILL): the machine may have run out of memory, …`, or `exit code 7`."""
    if code == 0:
        return "left early with exit code 0, while the others continued"
    if code > 0:
        return f"exit code {code}, without a message"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        return f"killed by signal {-code}"
    meaning = f": {_SIGNALS[name]}" if name in _SIGNALS else ""
    return f"killed by signal {-code} ({name}){meaning}"


def _frames(error: BaseException) -> Sequence[Frame]:
    """Those of the exception, or of what caused it where only that leads to the user's code."""
    frames: list[Frame] = []
    link: BaseException | None = error
    for _ in range(_MOST_BEHIND):
        if link is None or any(frame.is_users for frame in frames):
            break
        frames = list(_own_frames(link))
        link = cause_of(link) or next(iter(members_of(link)), None)
    return frames


def _own_frames(error: BaseException) -> Iterator[Frame]:
    for summary in _summaries(trace_of(error)):
        yield _frame(summary.filename, summary.lineno or 0, summary.name, summary.line or "")
    if is_a(error, SyntaxError):
        file, line, code = (getattr(error, name, None) for name in ("filename", "lineno", "text"))
        if isinstance(file, str) and file:
            yield _frame(file, line if isinstance(line, int) else 0, "<module>", str(code or "").strip())


def _summaries(start: TracebackType | None) -> Iterable[traceback.FrameSummary]:
    return traceback.extract_tb(start) if start is not None else ()


def _frame(file: str, line: int, function: str, code: str) -> Frame:
    foreign = "site-packages" in file or "dist-packages" in file or file.startswith("<") or _is_standard(file)
    ours = _is_ours(file) and not file.startswith(_OWN_CODE)
    return Frame(file, line, function, code, not foreign and not ours)


def _is_ours(file: str) -> bool:
    return file.startswith(_PACKAGE)


def _is_standard(file: str) -> bool:
    return file.startswith(os.path.dirname(os.__file__) + os.sep)


_CAUSED = "\n\nThe above exception was the direct cause of the following exception:\n\n"
_BESIDE = re.compile(r"^ *[+|][-+]* ?")  # what Python draws beside the exceptions of a group
_GROUP = re.compile(r"^  \| (?P<what>\S*Group: .* \(\d+ sub-exceptions?\))$", re.MULTILINE)
_MEMBER = re.compile(r"^    \| (?!\s|Traceback|Exception Group Traceback)(.+)$", re.MULTILINE)
_TRACEBACK_LINE = re.compile(r'^ *File "(?P<file>.+?)", line (?P<line>\d+),? in (?P<function>.+)$', re.MULTILINE)


def _in_worker(text: str) -> tuple[list[Frame], str, tuple[str, ...]] | None:
    """What torch puts into the message of a loader worker's exception: frames and words, and what is behind it."""
    _, header, inner = text.partition("Original Traceback (most recent call last):\n")
    if not header:
        return None
    *causes, (frames, what) = [_traceback_text(part) for part in inner.split(_CAUSED)]
    if causes and not any(frame.is_users for frame in frames):
        frames = [frame for part, _ in causes for frame in part] + frames
    behind = []
    for part, words in reversed(causes):
        place = next((frame.place for frame in reversed(part) if frame.is_users), "")
        behind.append(f"because of {(words.splitlines() or [''])[0]}{f' ({place})' if place else ''}")
    if group := _GROUP.search(inner):
        what, members = group["what"], _MEMBER.findall(inner[group.end() :])
        behind = [f"{number} of {len(members)}: {words}" for number, words in enumerate(members, 1)]
    return frames, what, tuple(behind[:_MOST_BEHIND])


def _traceback_text(text: str) -> tuple[list[Frame], str]:
    """Frames and words of a traceback as Python prints it."""
    lines = [_BESIDE.sub("", line) for line in text.rstrip().splitlines()]
    frames, last = [], 0
    for number, line in enumerate(lines):
        if match := _TRACEBACK_LINE.match(line):
            last = number
            code = lines[number + 1].strip() if number + 1 < len(lines) else ""
            frames.append(_frame(match["file"], int(match["line"]), match["function"], code))
    message_lines = dropwhile(lambda line: line.startswith(" "), lines[last + 1 :])  # below the last frame's code
    return frames, "\n".join(message_lines)


def _crash_frames(stacks: str) -> Iterator[Frame]:
    """The crashed thread's frames, outermost first; faulthandler writes the innermost first."""
    _, _, current = stacks.partition("Current thread")
    current = (current or stacks).partition("\n\n")[0]
    for match in reversed(list(_TRACEBACK_LINE.finditer(current))):
        yield _frame(match["file"], int(match["line"]), match["function"], "")
