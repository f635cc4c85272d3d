"""The figures of a run in the terminal."""

from __future__ import annotations

import math
import shlex
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.text import Text

from launcher.recipe.directory import shortest
from launcher.recipe.line_keys import LINE_KEYS
from launcher.runs.metrics import Line
from launcher.text import duration, number, printable, short, short_exponent

_NOT_METRICS = LINE_KEYS - {"loss"}
GOOD, BAD, LABEL = "green", "red", "dim"


@dataclass(frozen=True)
class ShownRun:
    """What a console knows of the run.

    Attributes:
        run_dir: The run's folder.
        total_steps: Optimizer steps of the whole run; None where a time ends it.
        start_step: Steps completed before this start.
        best: The metric that decides and its mode, `min` or `max`.
        decides: The name of the validation set in which it does.
        deadline: When the job ends by its limit, in unix time.
        from_python: Whether a call from Python started it, which only the same call resumes.
    """

    run_dir: Path
    total_steps: int | None
    start_step: int
    best: tuple[str, str] | None
    decides: str
    deadline: float | None
    from_python: bool = False

    def next_commands(self, outcome: str) -> list[tuple[str, str]]:
        """What a user may want to do when a start has ended, as label and command; a failure's report says its own."""
        folder = shortest(self.run_dir)
        if outcome == "stopped":
            call = f"the same call, with run_dir={folder!r}"
            return [("resume", call if self.from_python else f"launcher resume {shlex.quote(folder)}")]
        return [("report", f"launcher report {shlex.quote(folder)}")] if outcome == "finished" else []


def metrics_in(line: Line) -> dict[str, Any]:
    """The loss and the metrics of a line; lists (a metric of each class) are for files, not for eyes."""
    return {key: value for key, value in line.items() if key not in _NOT_METRICS and isinstance(value, int | float)}


def title_of(line: Line) -> str:
    """The split and the set of a line: `validation clean`."""
    return printable(" ".join(str(line[key]) for key in ("split", "name") if key in line))


def joined(parts: Iterable[Text]) -> Text:
    """The parts that say something, side by side."""
    return Text("  ").join(part for part in parts if part)


def pair(label: str, value: str, style: str = "") -> Text:
    """A number with what it is before it."""
    return Text.assemble((f"{printable(label)} ", LABEL), (value, style))


class Scores:
    """The evaluations so far: the last of each set, and the best of the one that decides."""

    def __init__(
        self, best: tuple[str, str] | None, decides: str, past: Iterable[Line] = (), total_steps: int | None = None
    ):
        self._total_steps = total_steps
        self._metric, self._mode = best or ("", "")
        self._decides = decides
        self._last: dict[str, Line] = {}
        self._widths: dict[tuple[str, str], int] = {}  # of each set's columns, so that they stand below each other
        self.best: dict[str, Line] = {}
        for line in past:
            self.add(line)

    def add(self, line: Line, train: Line | None = None) -> Text:
        """Takes an evaluation in; returns it in words, with the change since the one before.

        Args:
            line: The evaluation.
            train: The newest line of training, whose loss is shown beside.
        """
        title = title_of(line)
        before = self._last.get(title, {})
        is_deciding = line["split"] == "validation" and line.get("name", "") == self._decides
        is_best = is_deciding and self._improves(line, self.best.get(title))
        self._last[title] = line
        if is_best:
            self.best[title] = line
        parts = [Text(title, "bold"), self._padded(title, "step", pair("step", str(line["step"])))]
        beside = train if line["split"] == "validation" else None  # a test may be of the best weights, of before
        if beside is not None and isinstance(loss := beside.get("loss"), int | float):
            parts.append(self._padded(title, "train", pair("train loss", number(loss), _alarm(loss))))
        for name, value in metrics_in(line).items():
            cell = pair(name, number(value), _alarm(value))
            if isinstance(before.get(name), int | float):
                cell.append_text(self._change(name, value - before[name]))
            if is_best and name == self._metric:
                cell.append(" best", f"bold {GOOD}")
            parts.append(self._padded(title, name, cell))
        words = joined(parts)
        words.rstrip()
        return words

    def _padded(self, title: str, name: str, cell: Text) -> Text:
        """A cell as wide as the widest of its column so far."""
        width = self._widths[title, name] = max(cell.cell_len, self._widths.get((title, name), self._least(name)))
        cell.pad_right(width - cell.cell_len)
        return cell

    def _least(self, name: str) -> int:
        """A column's width from its first line on: a figure, and the change that stands beside it later."""
        if name == "step":
            return len(f"step {self._total_steps or 100_000}")
        if name == "train":
            return len("train loss 0.001234")
        return len(f"{name} 0.001234 (-0.00012)" + " best" * (name == self._metric))

    def _improves(self, line: Line, best: Line | None) -> bool:
        value = line.get(self._metric)
        if not isinstance(value, int | float) or math.isnan(value):
            return False
        if best is None:
            return True
        return bool(value > best[self._metric] if self._mode == "max" else value < best[self._metric])

    def _change(self, name: str, change: float) -> Text:
        better = {"min": change < 0, "max": change > 0}.get(self._mode if name == self._metric else "")
        if name == "loss":
            better = change < 0
        style = LABEL if better is None or change == 0 else GOOD if better else BAD
        return Text(f" ({short_exponent(f'{change:+.2g}')})", style)


def _alarm(value: float) -> str:
    return "" if math.isfinite(value) else f"bold {BAD}"


class Pace:
    """How fast the run goes, over its last minutes; evaluations and saves count."""

    def __init__(self, run: ShownRun):
        self._run = run
        self.step = run.start_step
        self.restart()

    def update(self, step: int) -> None:
        """So many steps are completed now."""
        self.step = max(self.step, step)
        now = time.monotonic()
        if now - self._seen[-1][0] >= 1.0:
            self._seen.append((now, self.step))

    def restart(self) -> None:
        """The clock starts now: what came before was preparation."""
        self.started = time.monotonic()
        self._seen = deque([(self.started, self.step)], maxlen=120)

    @property
    def seconds(self) -> float:
        """Time since this start."""
        return time.monotonic() - self.started

    @property
    def fraction(self) -> float | None:
        """The share of the run that is done."""
        return min(1.0, self.step / self._run.total_steps) if self._run.total_steps else None

    @property
    def seconds_left(self) -> float | None:
        """Time that the rest of the run takes at this pace; None where nobody can know."""
        since, step = self._seen[1 if len(self._seen) > 2 else 0]  # the first second holds what is done only once
        if not self._run.total_steps or self.step <= step:
            return None
        pace = (time.monotonic() - since) / (self.step - step)
        return pace * max(0, self._run.total_steps - self.step)

    def times(self) -> list[Text]:
        """Time left, and time until the job's limit, in warning colours where it comes first."""
        left, parts = self.seconds_left, []
        if left is not None:
            parts.append(Text.assemble(duration(left), (" left", LABEL)))
        if self._run.deadline is not None:
            until = self._run.deadline - time.time()
            parts.append(pair("limit in", duration(until), "yellow" if left is not None and until < left else ""))
        return parts


def position_of(step: int, run: ShownRun, line: Line) -> list[Text]:
    """Where a run stands: step, and passes over the data."""
    total = f"/{run.total_steps}" if run.total_steps else ""
    parts = [pair("step", f"{step}{total}")]
    if "epoch" in line:
        parts.append(pair("epoch", f"{line['epoch']:.2f}"))
    return parts


def training_numbers(line: Line) -> list[Text]:
    """The numbers of a train line, the most wanted first."""
    parts = [pair("loss", number(line["loss"]), _alarm(line["loss"]))] if line.get("loss") is not None else []
    if "lr" in line:
        parts.append(pair("lr", short(line["lr"])))
    if "samples_per_second" in line:
        parts.append(Text.assemble(_rate(line["samples_per_second"]), (" samples/s", LABEL)))
    if "data_wait" in line:
        share = line["data_wait"]
        parts.append(pair("data wait", f"{share:.0%}", "yellow" if share > 0.2 else ""))
    if "gpu_memory" in line:
        parts.append(pair("gpu", f"{line['gpu_memory'] / 2**30:.1f} GiB"))
    if "grad_norm" in line:
        parts.append(pair("grad", short(line["grad_norm"]), _alarm(line["grad_norm"])))
    own = {name: value for name, value in metrics_in(line).items() if name != "loss"}
    return parts + [pair(name, number(value), _alarm(value)) for name, value in own.items()]


def _rate(per_second: float) -> str:
    return f"{per_second:,.0f}" if per_second >= 10 else f"{per_second:.2g}"
