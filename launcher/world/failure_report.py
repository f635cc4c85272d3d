"""The report of a failure, on the screen and in `failure.json`, and what is read of it and of srun's words later."""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from launcher.errors import EXIT_FAILED
from launcher.text import printable
from launcher.world.failure import LINE, Failure, Frame, cut, exit_in_words
from launcher.world.files import write_text
from launcher.world.hints import hint_for
from launcher.world.notes import order, read
from launcher.world.screen import for_programs

FAILURE_FILE = "failure.json"


@dataclass(frozen=True)
class Report:
    """What is shown last on the screen, and written to `failure.json`.

    Attributes:
        first: The failure that the others followed from.
        folder: The run's, where there is one.
        again: The command that started it.
        resume: The command that resumes it.
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
        return max((path for path in checkpoints if path.name[5:].isdigit()), key=_step_of, default=None)

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
            ("resume", self.resume) if self._was_opened else ("again", self.again),
            ("log", f"{self.log}{beside}" if self.log else None),
        ]
        lines = [f"launcher: {self.first.line}"]
        if rest := self.first.what.strip().splitlines()[1:4]:
            lines += [f"    {cut(line, LINE)}" for line in rest]
        lines += [f"    {cut(line, LINE)}" for line in self.first.behind]
        lines += [f"  {line}" for line in folded(self.first.frames)]
        lines += [f"  {label:<10} {value}" for label, value in rows if value]
        return "\n".join(printable(line.expandtabs(4)) for line in lines)  # words of data are anybody's

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
            if for_programs():
                print(json.dumps(self.line()), file=getattr(sys.stdout, "unprefixed", sys.stdout), flush=True)

    def line(self) -> dict[str, object]:
        """The failure for programs, as `--json` prints it."""
        error = "\n".join(self.first.what.strip().splitlines()[:4])
        return {
            "kind": "failure",
            "error": error,
            "exit_code": self.first.exit_code,
            "rank": self.first.rank,
            "host": self.first.host,
            "step": self.first.step,
            "place": self.first.culprit.place if self.first.culprit else None,
            "checkpoint": str(self.checkpoint) if self.checkpoint else None,
            "resume": self.resume if self._was_opened else self.again,
        }


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name[5:])


def _is_better(known: Failure, new: Failure) -> bool:
    """Whether what is known comes as near to the cause; what a rank has said of itself stays."""
    of_itself = known.rank == new.rank and (known.is_aftermath, known.is_silent) <= (new.is_aftermath, new.is_silent)
    return of_itself or order(known) <= order(new)


def reported(folder: Path, since: float) -> Failure | None:
    """The failure that `failure.json` tells of, if it was written since then."""
    failure = read(folder / FAILURE_FILE)
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
            yield f"    {cut(frame.code, LINE)}"
    yield from _fold(hidden)


def _fold(count: int) -> Iterator[str]:
    if count:
        yield f"({count} frame{'s' * (count > 1)} of launcher, torch and others)"
