"""What a person sees of a run: a bar on a terminal, plain lines in a file, JSON, or next to nothing.

The only module that imports rich. A terminal has one writer, the training's thread, and no clock of its own: the bar
is redrawn when the loop reports progress and never while a debugger has the terminal.
"""

from __future__ import annotations

import io
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TextIO, cast

from rich.console import Console as Rich
from rich.table import Table
from rich.text import Text

from launcher.recipe.masking import masked, masked_in
from launcher.runs.metrics import Line, encode
from launcher.runs.tracking.scores import (
    BAD,
    GOOD,
    LABEL,
    Pace,
    Scores,
    ShownRun,
    joined,
    metrics_in,
    pair,
    position_of,
    title_of,
    training_numbers,
)
from launcher.text import duration, number, printable, printable_block
from launcher.world.screen import Wrapped, made_steady

REDRAW_SECONDS = 0.25
_WIDEST = 12  # numbers of a row that a table shows


def open_console(output: str, run: ShownRun, past: Iterable[Line]) -> Console:
    """The console for where standard output goes.

    Args:
        output: `auto`, `quiet` or `json`.
        run: What is shown.
        past: Evaluations of earlier starts, to compare with.
    """
    if output == "quiet":
        return Console(run)
    if output == "json":
        return JsonLines(run)
    scores = Scores(run.best, run.decides, past, run.total_steps)
    encoding = (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "")
    if sys.stdout.isatty() and not Rich().is_dumb_terminal and encoding == "utf8":
        return Terminal(run, scores)
    return Plain(run, scores)


class Console:
    """Quiet: errors, and the last line."""

    def __init__(self, run: ShownRun):
        self.run = run
        self.pace = Pace(run)

    def start(self, plan: Sequence[tuple[str, str]]) -> None:
        """Shows the plan."""
        self.pace.restart()

    def line(self, line: Line) -> None:
        """Shows a line of `metrics.jsonl`."""
        self.pace.update(line["step"])

    def progress(self, step: int) -> None:
        """Shows how many steps are completed."""
        self.pace.update(step)

    def message(self, text: str) -> None:
        """Says something."""

    def warn(self, text: str) -> None:
        """Reports that something went wrong."""
        _write(text, sys.stderr)

    def evaluating(self, done: int, total: int, split: str) -> None:
        """Shows how far an evaluation is."""

    def close(self, outcome: str, summary: Sequence[Line], saved: int | None = None) -> None:
        """Says how the run ended."""
        _write(self._last_line(outcome, summary, saved).plain)

    def _last_line(self, outcome: str, summary: Sequence[Line], saved: int | None) -> Text:
        style = {"finished": f"bold {GOOD}", "failed": f"bold {BAD}"}.get(outcome, "bold yellow")
        step, is_stopped = self.pace.step, outcome == "stopped"
        stopped = "stopped, saved after step" if saved == step else "stopped after step"
        ended = pair(stopped if is_stopped else f"{outcome}  step", str(step))
        ended.stylize(style, 0, len("stopped") if is_stopped else len(outcome))
        parts = [ended]
        if is_stopped and saved != step:
            parts.append(Text("nothing saved" if saved is None else f"saved step {saved}", style=f"bold {BAD}"))
        if outcome == "finished" and saved not in (None, step):
            parts.append(Text(f"the last checkpoint is of step {saved}", style=f"bold {BAD}"))
        if summary and summary[-1]["split"] != "train":
            scores = metrics_in(summary[-1])
            parts += [Text(title_of(summary[-1]))] + [pair(name, number(value)) for name, value in scores.items()]
        parts += [pair("in", duration(self.pace.seconds)), Text(str(self.run.run_dir))]
        return joined(parts)


class JsonLines(Console):
    """One JSON object a line on standard output, nothing else; see `launcher.runs.tracking.json_lines`."""

    def start(self, plan: Sequence[tuple[str, str]]) -> None:
        """`{"kind": "plan", "plan": {label: text}}`."""
        super().start(plan)
        _write(encode({"kind": "plan", "plan": masked_in(dict(plan))}))

    def line(self, line: Line) -> None:
        """The line as it stands in `metrics.jsonl`."""
        super().line(line)
        _write(encode({"kind": "metrics", **masked_in(line)}))

    def message(self, text: str) -> None:
        """`{"kind": "message", "message": text}`."""
        _write(encode({"kind": "message", "message": masked(text)}))

    def warn(self, text: str) -> None:
        """`{"kind": "warning", "warning": text}`."""
        _write(encode({"kind": "warning", "warning": text}))

    def close(self, outcome: str, summary: Sequence[Line], saved: int | None = None) -> None:
        """`{"kind": "end", "outcome", "step", "saved", "seconds", "run", "summary"}`."""
        end = {
            "step": self.pace.step,
            "saved": saved,
            "seconds": round(self.pace.seconds, 3),
            "run": str(self.run.run_dir),
        }
        _write(encode({"kind": "end", "outcome": outcome, **end, "summary": list(summary)}))


class Plain(Console):
    """Plain lines for a file: no escape codes, no wrapping, and not too many."""

    def __init__(self, run: ShownRun, scores: Scores):
        super().__init__(run)
        self.scores = scores
        self.train: Line | None = None  # the newest train line
        self._said_at = -math.inf
        self._said_fraction = 0.0

    def start(self, plan: Sequence[tuple[str, str]]) -> None:
        """The plan, labels in a column."""
        super().start(plan)
        width = max((len(label) for label, _ in plan), default=0)
        for label, text in plan:
            self.say(Text(f"{label:<{width}}  {text}"))

    def line(self, line: Line) -> None:
        """Every evaluation; a train line when the last one is some time ago."""
        super().line(line)
        if line["split"] != "train":
            self.say(self.scores.add(line, self.train))
            return
        self.train = line
        if self._is_time():
            self.say(joined(position_of(line["step"], self.run, line) + training_numbers(line) + self.pace.times()))

    def message(self, text: str) -> None:
        """The text as it is."""
        self.say(Text(printable_block(text)))

    def warn(self, text: str) -> None:
        """The text, to the same place as all else, so that it stands where it happened."""
        self.say(Text(printable_block(text), "yellow"))

    def evaluating(self, done: int, total: int, split: str) -> None:
        """One line for each minute of a long evaluation."""
        if time.monotonic() - self._said_at >= 60:
            self._said_at = time.monotonic()
            self.say(Text(f"evaluating {split}  {done}/{total}"))

    def close(self, outcome: str, summary: Sequence[Line], saved: int | None = None) -> None:
        """A table of the last numbers, the last line, and what to do next."""
        if columns := self._columns(summary):
            self.show_table(_table(columns))
        self.say(self._last_line(outcome, (), saved))
        for label, command in self.run.next_commands(outcome):
            self.say(pair(f"{label:<9}", command))

    def say(self, text: Text) -> None:
        """Writes one line."""
        _write(text.plain)

    def show_table(self, table: Table) -> None:
        """Writes the table as text."""
        rich = _rich(file=io.StringIO(), width=200, color_system=None, force_terminal=False, force_jupyter=False)
        _write("\n".join(["", *(line.rstrip() for line in _rendered(rich, table).splitlines()), ""]))

    def _columns(self, summary: Sequence[Line]) -> dict[str, Line]:
        """The last train line, the best evaluations, and the summary, by title."""
        columns = {"train": self.train} if self.train is not None else {}
        for title, line in self.scores.best.items():
            columns[f"best {title}"] = line
        for line in summary:
            columns[title_of(line)] = line
        return {title: line for title, line in columns.items() if not self._is_repeated(title, columns)}

    @staticmethod
    def _is_repeated(title: str, columns: Mapping[str, Line]) -> bool:
        last = columns.get(title.removeprefix("best "))
        return title.startswith("best ") and last is not None and last["step"] == columns[title]["step"]

    def _is_time(self) -> bool:
        """Ten seconds after the last line, later a minute; or a twentieth of the run, if that is a second."""
        now, fraction = time.monotonic(), self.pace.fraction or 0.0
        since = now - self._said_at
        period = 10.0 if self.pace.seconds < 600 else 60.0
        if since < period and not (since >= 1.0 and fraction - self._said_fraction >= 0.05):
            return False
        self._said_at, self._said_fraction = now, fraction
        return True


class Terminal(Plain):
    """A bar and the newest numbers in the last two lines of a terminal; everything else scrolls by above them."""

    def __init__(self, run: ShownRun, scores: Scores):
        super().__init__(run, scores)
        # Past sys.stdout, which may be copied to a log: redrawn lines are nothing to keep.
        self._screen = made_steady(os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8", errors="replace"))
        self._rich = _rich(file=io.StringIO(), highlight=False, force_terminal=True)
        self._streams: list[Aside] = []
        self._evaluation: Text | None = None
        self._is_drawn = False
        self._drawn_at = -math.inf
        self._midline = False  # somebody's text waits for its end: drawing would tear it

    def start(self, plan: Sequence[tuple[str, str]]) -> None:
        """The plan, then the bar."""
        self.pace.restart()
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style=LABEL, no_wrap=True)
        grid.add_column(overflow="fold")
        for label, text in plan:
            grid.add_row(label, Text(text))
        self._print(grid)
        self._print(Text())
        self._streams = [Aside(sys.stdout, self._make_room), Aside(sys.stderr, self._make_room)]
        sys.stdout, sys.stderr = (cast(TextIO, stream) for stream in self._streams)
        self._draw()

    def line(self, line: Line) -> None:
        """Train lines are in the bar; evaluations scroll by."""
        self.pace.update(line["step"])
        if line["split"] == "train":
            self.train = line
            return
        self._evaluation = None
        self.say(self.scores.add(line, self.train))

    def progress(self, step: int) -> None:
        """Moves the bar, a few times a second."""
        self.pace.update(step)
        self._evaluation = None
        self._refresh()

    def evaluating(self, done: int, total: int, split: str) -> None:
        """Shows the evaluation in place of the newest numbers."""
        self._evaluation = Text.assemble(("evaluating ", LABEL), split, f"  {done}/{total}")
        self._refresh()

    def say(self, text: Text) -> None:
        """Writes one line above the bar."""
        self._print(text)
        self._draw()

    def show_table(self, table: Table) -> None:
        """Writes the table in colour."""
        for part in (Text(), table, Text()):
            self._print(part)

    def close(self, outcome: str, summary: Sequence[Line], saved: int | None = None) -> None:
        """Takes the bar away, gives the streams back, and sums up."""
        if self._streams and sys.stdout is self._streams[0] and sys.stderr is self._streams[1]:
            sys.stdout, sys.stderr = (stream.stream for stream in self._streams)
        self._streams = []
        super().close(outcome, summary, saved)
        self._screen.close()

    def _print(self, what: Text | Table) -> None:
        """Prints through sys.stdout, so that a copy of it has the line too."""
        self._erase()
        _write("\n".join(line.rstrip() for line in _rendered(self._rich, what).splitlines()))

    def _refresh(self) -> None:
        if time.monotonic() - self._drawn_at >= REDRAW_SECONDS:
            self._draw()

    def _draw(self) -> None:
        is_debugged = sys.gettrace() is not None  # then the terminal is the debugger's
        if not self._streams or self._midline or is_debugged:
            return
        width = self._rich.width - 1
        above, below = self._bar(width), self._evaluation or self._numbers(width)
        above.truncate(width)
        below.truncate(width)
        back = "\x1b[2F" if self._is_drawn else ""
        self._screen.write(back + _rendered(self._rich, above, below, end="\x1b[K\n"))
        self._screen.flush()
        self._is_drawn, self._drawn_at = True, time.monotonic()

    def _erase(self) -> None:
        if self._is_drawn:
            self._screen.write("\x1b[2F\x1b[J")
            self._screen.flush()
            self._is_drawn = False

    def _make_room(self, text: str) -> None:
        """Somebody else is about to write."""
        self._erase()
        self._midline = bool(text) and not text.endswith("\n")

    def _bar(self, width: int) -> Text:
        parts = joined(position_of(self.pace.step, self.run, self.train or {}) + self.pace.times())
        fraction = self.pace.fraction
        length = min(40, width - parts.cell_len - 2)
        if fraction is None or length < 8:
            return parts
        done = round(length * fraction)
        return Text.assemble(("━" * done, GOOD), ("━" * (length - done), "bright_black"), "  ", parts)

    def _numbers(self, width: int) -> Text:
        """As many of the newest numbers as one line takes."""
        parts = (
            training_numbers(self.train) if self.train is not None else [Text("waiting for the first numbers", LABEL)]
        )
        while len(parts) > 1 and joined(parts).cell_len > width:
            parts.pop()
        return joined(parts)


class Aside(Wrapped):
    """A standard stream that takes the bar off the screen before other people's text appears there."""

    def __init__(self, stream: TextIO, make_room: Callable[[str], None]):
        super().__init__(stream)
        self.stream = stream
        self._make_room = make_room
        self._process = os.getpid()

    def write(self, text: str) -> int:
        """Makes room and writes; a DataLoader's worker just writes, for the bar is not its own."""
        if os.getpid() == self._process:
            self._make_room(text)
        return self.stream.write(text)


def _table(columns: Mapping[str, Line]) -> Table:
    """Metrics down, splits across."""
    names = dict.fromkeys(name for line in columns.values() for name in ("step", "epoch", *metrics_in(line)))
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    table.add_column("", style=LABEL)
    for title in columns:
        table.add_column(title, justify="right")
    for name in names:
        table.add_row(printable(name), *(_cell(name, line) for line in columns.values()))
    return table


def tables(lines: Sequence[Line]) -> str:
    """Evaluations as a table, and one more for each set that has metrics with a value for each class."""
    rich = _rich(force_jupyter=False)
    rendered_tables = [_rendered(rich, _table({title_of(line): line for line in lines}))]
    for line in lines:
        listed = {name: value for name, value in line.items() if isinstance(value, list)}
        if listed:
            rendered_tables.append(_rendered(rich, _by_class(title_of(line), listed)))
    return "\n".join(rendered_tables)


def _by_class(title: str, listed: Mapping[str, Sequence[Any]]) -> Table:
    """Classes down, metrics across."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    table.add_column(f"{title}, class", style=LABEL)
    for name in listed:
        table.add_column(printable(name), justify="right")
    for place in range(max(map(len, listed.values()))):
        cells = (values[place] if place < len(values) else None for values in listed.values())
        table.add_row(str(place), *map(_in_words, cells))
    return table


def _in_words(value: Any) -> str:
    """A number, a row of a matrix, or how long a curve is: that is in the JSON."""
    if isinstance(value, list):
        return " ".join(map(_in_words, value)) if len(value) <= _WIDEST else f"{len(value):,} numbers"
    return number(value) if isinstance(value, int | float) else str(value or "")


def _cell(name: str, line: Line) -> str:
    value = line.get(name)
    if value is None:
        return ""
    return f"{value:.2f}" if name == "epoch" else number(value)


def _rich(**settings: Any) -> Rich:
    """A console that takes no `[` in a name for markup, and no `:x:` for a picture."""
    return Rich(markup=False, emoji=False, **settings)


def _rendered(rich: Rich, *parts: Text | Table, end: str = "\n") -> str:
    """The parts as rich would print them. Rich never writes itself: a broken pipe makes it end the program."""
    with rich.capture() as captured:
        for part in parts:
            rich.print(part, end=end, soft_wrap=isinstance(part, Text))
    return captured.get()


def _write(text: str, stream: TextIO | None = None) -> None:
    """Writes a line to standard output; letters that it cannot take become question marks."""
    stream = stream or sys.stdout
    encoding = getattr(stream, "encoding", None) or "utf-8"
    stream.write(text.encode(encoding, "replace").decode(encoding) + "\n")
    stream.flush()
