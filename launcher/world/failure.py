"""What went wrong, on which rank first, and what to do: notes that ranks leave, and the report made of them."""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import sys
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import dropwhile, islice
from pathlib import Path
from types import TracebackType
from typing import Any

from launcher.errors import EXIT_FAILED, LauncherError
from launcher.recipe.directory import shortest
from launcher.recipe.secrets import masked, masked_in
from launcher.text import words_of
from launcher.world import network
from launcher.world.files import write_text

FAILURE_FILE = "failure.json"
_PACKAGE = str(Path(__file__).parent.parent) + os.sep
_OWN_CODE = tuple(_PACKAGE + name + os.sep for name in ("models", "datasets", "_recipes"))  # ours, but a recipe's parts
_SIGNALS = {
    "SIGKILL": "the machine may have run out of memory, or somebody killed it",
    "SIGSEGV": "a fault in compiled code: an extension module, or a library that does not fit the others",
    "SIGBUS": "a fault in shared memory: /dev/shm may be full",
    "SIGABRT": "compiled code gave up; the log says why",
    "SIGILL": "compiled code for another kind of CPU",
}
_WORDS, _LINE, _TRACEBACK = 4_000, 500, 100_000  # characters kept of what was said, shown of a line, written to a file
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
        is_silent: Whether this is all that others know of a rank that has ended without a word.
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
        for name in ("what", "traceback", "facts"):
            object.__setattr__(self, name, masked_in(getattr(self, name)))
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
        return f"{who}failed{when}{where}: {cut(self._lines[0], _LINE)}"

    @property
    def _lines(self) -> list[str]:
        return self.what.strip().splitlines() or ["nothing was said"]

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
    text = "".join(traceback.format_exception(error))
    if isinstance(error.__cause__, StopIteration) and words_of(error) == "generator raised StopIteration":
        error = error.__cause__  # Python's own words, where it leaves a generator
    frames, what, behind = tuple(_frames(error)), _words_of(error), tuple(islice(_behind(error), _MOST_BEHIND))
    if isinstance(error, LauncherError):
        what, behind = words_of(error), ()  # says all that its user needs
    elif inner := _in_worker(words_of(error)):
        frames, what, behind = (*frames, *inner[0]), inner[1], inner[2]
    what = cut(what, _WORDS)  # before it is searched: an exception may hold megabytes
    exit_code = error.exit_code if isinstance(error, LauncherError) else EXIT_FAILED
    details = {"is_aftermath": _follows(error, what, frames), "exit_code": exit_code, **details}
    return Failure(what, frames=frames, traceback=text, behind=behind, **details)


def _words_of(error: BaseException) -> str:
    """The last lines that Python prints of an exception, in clearer words where they say little."""
    if isinstance(error, SystemExit) and error.code in (None, 0):
        return f"left early: SystemExit({error.code!r}), where the training should have gone on"
    if isinstance(error, StopIteration):
        return "StopIteration: an iterator ran out, and next() had nothing more to give"
    if isinstance(error, KeyboardInterrupt):
        return "KeyboardInterrupt: raised by the code itself, nobody pressed Ctrl-C"
    return "".join(traceback.format_exception_only(error)).strip()


def _behind(error: BaseException, depth: int = 0) -> Iterator[str]:
    """The members of a group and the causes stated by `raise … from`, each on a line with its place."""
    members = getattr(error, "exceptions", ())
    named = [(f"{number} of {len(members)}: ", member) for number, member in enumerate(members, 1)]
    if error.__cause__ is not None:
        named.append(("because of ", error.__cause__))
    for label, inner in named if depth < _MOST_BEHIND else ():
        place = next((frame.place for frame in reversed(list(_own_frames(inner))) if frame.is_users), "")
        words = (_words_of(inner).splitlines() or [""])[0]
        yield f"{label}{words}{f' ({place})' if place else ''}"
        yield from _behind(inner, depth + 1)


def _follows(error: BaseException, what: str, frames: Sequence[Frame]) -> bool:
    """Whether another rank's end has made this one fail.

    The words alone do not tell: a user's own source of data can lose its connection as well. So they count only where
    torch stands between the user's code and the error, or raised it from compiled code, which has no lines.
    """
    if type(error).__name__ == "PeerError":
        return True
    if isinstance(error, LauncherError) or not _AFTERMATH.search(what):
        return False
    tail = _calls_no_torch(frames)
    if isinstance(error, OSError) and not any(_is_torch(frame.file) for frame in frames):
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


def of_exit(code: int, stacks: str = "", **details: Any) -> Failure:
    """The failure of a process that left nothing but its exit code, negative for a signal.

    Args:
        code: As `subprocess` gives it.
        stacks: What faulthandler wrote of its threads, if anything.
        **details: Further attributes.
    """
    frames = tuple(_crash_frames(stacks))
    return Failure(
        exit_in_words(code), frames=frames, traceback=stacks, is_aftermath=code == -signal.SIGTERM, **details
    )


def of_stack(what: str, stack: Iterable[traceback.FrameSummary], **details: Any) -> Failure:
    """The failure of a process that still lives and does not get on.

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
_TOGETHER = re.compile(
    r"torch/(distributed|nn/parallel)/|launcher/(device/)?(coordination|agreement|exchange|shared_memory)"
)


def exit_in_words(code: int) -> str:
    """`killed by signal 9 (SIGKILL): the machine may have run out of memory, …`, or `exit code 7`."""
    if code == 0:
        return "left early with exit code 0, while the others went on"
    if code > 0:
        return f"exit code {code}, without a word"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        return f"killed by signal {-code}"
    meaning = f": {_SIGNALS[name]}" if name in _SIGNALS else ""
    return f"killed by signal {-code} ({name}){meaning}"


def _frames(error: BaseException) -> Iterator[Frame]:
    """Those of the exception, or of what caused it where only that leads to the user's code."""
    own = list(_own_frames(error))
    cause = error.__cause__ or next(iter(getattr(error, "exceptions", ())), None)
    if cause is not None and not any(frame.is_users for frame in own):
        yield from _frames(cause)
    else:
        yield from own


def _own_frames(error: BaseException) -> Iterator[Frame]:
    for summary in _summaries(error.__traceback__):
        yield _frame(summary.filename, summary.lineno or 0, summary.name, summary.line or "")
    if isinstance(error, SyntaxError) and error.filename:
        yield _frame(error.filename, error.lineno or 0, "<module>", (error.text or "").strip())


def _summaries(start: TracebackType | None) -> Iterable[traceback.FrameSummary]:
    return traceback.extract_tb(start) if start is not None else ()


def _frame(file: str, line: int, function: str, code: str) -> Frame:
    foreign = "site-packages" in file or "dist-packages" in file or file.startswith("<") or _is_standard(file)
    ours = file.startswith(_PACKAGE) and not file.startswith(_OWN_CODE)
    return Frame(file, line, function, code, not foreign and not ours)


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


# ---------------------------------------------------------------------- what is known


_HINTS: tuple[tuple[str, str], ...] = (
    (
        r"CUDA out of memory|OutOfMemoryError|CUBLAS_STATUS_ALLOC_FAILED",
        "the GPU's memory is full{batch}; halve data.micro_batch_size (the result stays the same), or use "
        "device.precision=bf16 or more processes",
    ),
    (
        r"signal 9|MemoryError|Cannot allocate memory|can't allocate memory|DefaultCPUAllocator",
        "if it was memory{batch}: use fewer data.workers or processes, or a smaller data.micro_batch_size; "
        "the kernel's word on it: dmesg | grep -i 'killed process'",
    ),
    (
        r"worker process \d+ was killed",
        "memory of the machine, or /dev/shm, may be full{batch}: use fewer data.workers",
    ),
    (
        r"NCCL error|ncclSystemError|ncclUnhandledCudaError",
        "start again with NCCL_DEBUG=WARN, and run `launcher doctor`",
    ),
    (
        r"Expected to have finished reduction|did not receive grad",
        "parameters of the model were not used in the loss{unused}; use them, remove them or freeze them, or allow it: "
        "device.ddp.find_unused_parameters=true (it costs time)",
    ),
    (
        r"shapes? cannot be multiplied|size mismatch|must match the size|[Ee]xpected .* to have \d+ channels"
        r"|[Ee]xpected input batch_size|shape '.*' is invalid|Expected target size|Dimension out of range"
        r"|[Ss]izes of tensors must match|stack expects each tensor to be equal size",
        "shapes do not fit{shapes}; `launcher data RECIPE` shows what the data set gives",
    ),
    (
        r"Target -?\d+ is out of bounds|device-side assert",
        "a class is out of range: are there more than the model has?",
    ),
    (r"No space left on device", "the disk is full: `df -h` shows which"),
    (r"Too many open files", "raise the limit (ulimit -n 65536), or use fewer data.workers"),
)
# about how ranks reach each other: not where the user's own code lost a connection of its own
_HINTS_ABOUT_RANKS: tuple[tuple[str, str], ...] = (
    (
        r"Address already in use|EADDRINUSE|errno: 98",
        "another program uses that port: choose another --master HOST:PORT, or leave it away on one node",
    ),
    (
        r"[Uu]nable to find address for|couldn't find .*interface|no socket interface|Bootstrap : no socket"
        r"|connectFullMesh failed|Unable to resolve hostname|launch\.meeting_timeout: .*connections of the ranks",
        "name the network interface that reaches the other machines (ip addr lists them), as in launch.interface=eth0 "
        "or GLOO_SOCKET_IFNAME=eth0; it was {interface}; firewalls must let the machines speak to one another",
    ),
    (
        r"launch\.meeting_timeout: .*name unknown",
        "the name of rank 0's machine has no address here: name it by its address, or put it into /etc/hosts",
    ),
    (
        r"launch\.meeting_timeout",
        "were all processes started, and does a firewall stand between? Where they take longer to come (to prepare "
        "their data, say): launch.meeting_timeout='30 minutes'",
    ),
    (
        r"Name or service not known|[Nn]o address associated|getaddrinfo|Temporary failure in name resolution",
        "the host's name has no address here: name --master by its address, or put it into /etc/hosts",
    ),
    (
        r"Timed out waiting \d+ms|collective operation timeout|Connection timed out|No route to host"
        r"|Network is unreachable",
        "a rank waited for another longer than device.timeout: the other hangs, or the network is cut; launch.stall "
        "has the stacks of all ranks written down when they stop",
    ),
    (
        r"Connection closed by peer|Connection reset by peer|PeerError",
        "another rank ended first; where it is on another machine, the report there says why",
    ),
)


def hint_for(failure: Failure) -> str | None:
    """What is known about such a failure, and what to do."""
    for pattern, text in (*_HINTS, *(() if failure.is_users else _HINTS_ABOUT_RANKS)):
        if re.search(pattern, failure.what):
            known = {name: f" ({value})" for name, value in failure.facts.items()}
            interface = network.interface_in_use() or "not said"
            return text.format(**{"batch": "", "shapes": "", "unused": "", "interface": interface, **known})
    return None


# ---------------------------------------------------------------------- the first of them


def first_of(failures: Iterable[Failure]) -> Failure | None:
    """The one that the others failed because of: the earliest that is nobody's aftermath; who said so comes first."""
    return min(failures, key=_order, default=None)


def _order(failure: Failure) -> tuple[bool, bool, float]:
    return failure.is_aftermath, failure.is_silent, failure.time


class Notes:
    """Where ranks leave word: a hidden folder of the run's, read by whoever waits for them.

    Args:
        folder: The run's.
    """

    def __init__(self, folder: Path):
        self.folder = folder / ".ranks"

    def progress_of(self, node: int, local_rank: int) -> Path:
        """The file of `launcher.launch.progress`."""
        return self.folder / f"node-{node}" / f"{local_rank}.progress"

    def stacks_of(self, rank: int) -> Path:
        """The file that faulthandler writes to when this rank crashes."""
        return self.folder / f"{rank}.stacks"

    def describe(self, steps_per_epoch: int, facts: Mapping[str, str]) -> None:
        """Rank 0 says what holds for all ranks, for those that are killed and cannot say it.

        Args:
            steps_per_epoch: Of the run.
            facts: As in `Failure`.
        """
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._about.write_text(
                json.dumps({"steps_per_epoch": steps_per_epoch, "facts": dict(facts)}), encoding="utf-8"
            )

    @property
    def _about(self) -> Path:
        return self.folder / "about"

    def completed(self, failure: Failure, step: int | None) -> Failure:
        """The failure with what its rank could not say itself: the step that it had reached, epoch, batch sizes.

        Args:
            failure: As it was found.
            step: The last one that its rank has completed, as far as others can see.
        """
        try:
            about = json.loads(self._about.read_text(encoding="utf-8"))
            per_epoch, facts = int(about["steps_per_epoch"]), {**about["facts"], **failure.facts}
        except (OSError, ValueError, TypeError, KeyError):
            per_epoch, facts = 0, dict(failure.facts)
        if failure.step is None and step is not None and step >= 0:
            failure = replace(failure, step=step)
        if failure.epoch is None and failure.step is not None and per_epoch:
            failure = replace(failure, epoch=round(failure.step / per_epoch, 4))
        return replace(failure, facts=facts)

    def write(self, failure: Failure) -> bool:
        """Leaves word; False where the disk does not let it."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(self.folder / f"{failure.rank}.json", json.dumps(failure.noted))
        except OSError:
            return False
        return True

    def clear(self, rank: int) -> None:
        """Forgets what a rank said in an earlier start."""
        for path in (self.folder / f"{rank}.json", self.stacks_of(rank)):
            with suppress(OSError):
                path.unlink(missing_ok=True)

    def read(self) -> dict[int, Failure]:
        """All that was said, by rank."""
        return {
            failure.rank: failure for path in sorted(self.folder.glob("*.json")) if (failure := _read(path)) is not None
        }

    def stacks(self, rank: int) -> str:
        """What faulthandler wrote when a rank crashed."""
        try:
            return self.stacks_of(rank).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""


def _read(path: Path) -> Failure | None:
    try:
        return from_json(path.read_bytes())
    except OSError:
        return None


def from_json(text: bytes) -> Failure | None:
    """A failure as `asdict` gives it, whatever stands beside; None where it is none."""
    try:
        content = json.loads(text)
        known = {name: value for name, value in content.items() if name in Failure.__dataclass_fields__}
        lists = {
            "frames": tuple(Frame(**frame) for frame in content["frames"]),
            "behind": tuple(content.get("behind", ())),
        }
        return Failure(**{**known, **lists})
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


# ---------------------------------------------------------------------- the report


@dataclass(frozen=True)
class Report:
    """What is shown last on the screen, and written to `failure.json`.

    Attributes:
        first: The failure that the others followed from.
        folder: The run's, where there is one.
        again: The command that started it.
        resume: The command that goes on with it.
        others: The ranks that failed because of it.
        since: When this start began, where several ranks report: what one of them has told of the cause then stays.
    """

    first: Failure
    folder: Path | None
    again: str
    resume: str
    others: Sequence[Failure] = ()
    since: float | None = None

    @property
    def checkpoint(self) -> Path | None:
        """The newest checkpoint that is whole by its name."""
        checkpoints = [*self.folder.glob("checkpoints/step-*")] if self.folder else []
        return max((path for path in checkpoints if path.name[5:].isdigit()), key=lambda path: path.name, default=None)

    @property
    def log(self) -> Path | None:
        """The first rank's own."""
        path = self.folder / "logs" / f"rank-{self.first.rank}.log" if self.folder else None
        return path if path is not None and path.exists() else None

    @property
    def _was_opened(self) -> bool:
        return self.folder is not None and (self.folder / "environment.json").exists()

    def text(self) -> str:
        """Some ten lines."""
        beside = " (the other ranks' beside it)" if self.first.world > 1 else ""
        rows = [
            ("hint", hint_for(self.first)),
            ("checkpoint", self.checkpoint or ("none was saved yet" if self.folder else None)),
            ("go on", self.resume) if self._was_opened else ("again", self.again),
            ("log", f"{self.log}{beside}" if self.log else None),
        ]
        lines = [f"launcher: {self.first.line}"]
        if rest := self.first.what.strip().splitlines()[1:4]:
            lines += [f"    {cut(line, _LINE)}" for line in rest]
        lines += [f"    {cut(line, _LINE)}" for line in self.first.behind]
        lines += [f"  {line}" for line in folded(self.first.frames)]
        lines += [f"  {label:<10} {value}" for label, value in rows if value]
        return "\n".join(lines)

    def write(self) -> bool:
        """Leaves `failure.json` in the run's folder; False where a better one is there."""
        if self.folder is None:
            return True
        known = reported(self.folder, self.since) if self.since is not None else None
        if known is not None and _is_better(known, self.first):
            return False
        content = {
            **self.first.noted,
            "culprit": self.first.culprit.place if self.first.culprit else None,
            "hint": hint_for(self.first),
            "checkpoint": str(self.checkpoint) if self.checkpoint else None,
            "resume": self.resume if self._was_opened else self.again,
            "log": str(self.log) if self.log else None,
            "others": [
                {"rank": failure.rank, "host": failure.host, "what": failure.what, "is_aftermath": failure.is_aftermath}
                for failure in self.others
            ],
        }
        with suppress(OSError):
            write_text(self.folder / FAILURE_FILE, json.dumps(content, indent=2) + "\n")
        return True

    def show(self) -> None:
        """Prints it and leaves it in the folder; one line where another rank has told the cause."""
        text = self.text() if self.write() else f"launcher: {self.first.line}"
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            # which names its rank itself, as a stream that names it need not
            print(text, file=getattr(sys.stderr, "unprefixed", sys.stderr), flush=True)


def _is_better(known: Failure, new: Failure) -> bool:
    """Whether what is known comes as near to the cause; what a rank has said of itself stays."""
    of_itself = known.rank == new.rank and (known.is_aftermath, known.is_silent) <= (new.is_aftermath, new.is_silent)
    return of_itself or _order(known) <= _order(new)


def reported(folder: Path, since: float) -> Failure | None:
    """The failure that `failure.json` tells of, if it was written since then."""
    failure = _read(folder / FAILURE_FILE)
    return failure if failure is not None and failure.time >= since else None


def host_at_fault(folder: Path, since: float) -> str:
    """The one host where a failure since then began; empty where several may have, or nobody knows."""
    try:
        report = json.loads((folder / FAILURE_FILE).read_bytes())
        if float(report["time"]) < since:
            return ""
        first = [failure for failure in (report, *report.get("others", ())) if not failure.get("is_aftermath")]
        hosts = {str(failure["host"]) for failure in first}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return ""
    return hosts.pop() if len(hosts) == 1 else ""


_EXIT = re.compile(r"^srun: error: (?P<host>[^\s:]+): tasks? (?P<ranks>[\d,-]+): (?P<how>.+)$", re.MULTILINE)


def exits(log: str) -> Iterator[Failure]:
    """How tasks have failed, in the order in which srun heard of them: one that was killed cannot say it.

    Args:
        log: What a start of a job has printed.
    """
    for match in _EXIT.finditer(log):
        code = _exit_code(match["how"])
        what = match["how"] if code is None else exit_in_words(code)
        for part in match["ranks"].split(","):
            first, _, last = part.partition("-")
            for rank in range(int(first), int(last or first) + 1):
                yield Failure(what, rank=rank, host=match["host"], exit_code=code or EXIT_FAILED)


def _exit_code(how: str) -> int | None:
    """From srun's words, as `subprocess` gives it: negative for a signal."""
    if code := re.search(r"exit code (\d+)", how):
        return int(code[1])
    if "Out Of Memory" in how:
        return -signal.SIGKILL
    return next((-number for number in signal.valid_signals() if (signal.strsignal(number) or "?") in how), None)


def folded(frames: Sequence[Frame]) -> Iterator[str]:
    """The user's own frames with their code, and how many of ours and torch's lie between them."""
    shown = [number for number, frame in enumerate(frames) if frame.is_users][-6:]
    hidden = 0
    for number, frame in enumerate(frames):
        if number not in shown:
            hidden += 1
            continue
        yield from _fold(hidden)
        hidden = 0
        yield f"{frame.place} in {frame.function}"
        if frame.code:
            yield f"    {cut(frame.code, _LINE)}"
    yield from _fold(hidden)


def _fold(count: int) -> Iterator[str]:
    if count:
        yield f"({count} frame{'s' * (count > 1)} of launcher, torch and others)"
