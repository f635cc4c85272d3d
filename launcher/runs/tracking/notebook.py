"""What a notebook shows of a run: a bar and the loss's curve in one output that changes, and lines below it."""

from __future__ import annotations

import html
import math
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from launcher.runs.metrics import Line
from launcher.runs.tracking.console import Console, Plain, open_console
from launcher.runs.tracking.scores import Scores, ShownRun, title_of
from launcher.text import duration, number

REDRAW_SECONDS = 0.5
_WIDTH, _HEIGHT, _LEFT, _BELOW = 640, 200, 56, 22
_MOST_POINTS = 400
_COLOURS = ("#2563c9", "#d9700f", "#1b8a5a", "#b03a8c", "#7a5bc7")


def open_screen(output: str, run: ShownRun, past: Iterable[Line]) -> Console:
    """What shows the run where it is: in a notebook this, elsewhere see `open_console`."""
    ipython = sys.modules.get("IPython")
    is_notebook = getattr(ipython and ipython.get_ipython(), "kernel", None) is not None
    if output == "auto" and is_notebook:
        return Notebook(run, Scores(run.best, run.decides, past, run.total_steps))
    return open_console(output, run, past)


class Notebook(Plain):
    """The plan and each evaluation as text, all else in an output that changes."""

    def __init__(self, run: ShownRun, scores: Scores):
        super().__init__(run, scores)
        self._curves: dict[str, list[tuple[int, float]]] = {}
        self._output: Any = None
        self._drawn_at = -math.inf
        self._ended = ""

    def start(self, plan: Sequence[tuple[str, str]]) -> None:
        """The plan, then the bar."""
        super().start(plan)
        self._draw()

    def line(self, line: Line) -> None:
        """Another point of a curve; an evaluation is a line of text as well."""
        self.pace.update(line["step"])
        if line["split"] == "train":
            self.train = line
        else:
            self.say(self.scores.add(line, self.train))
        if isinstance(loss := line.get("loss"), int | float) and math.isfinite(loss):
            self._add(title_of(line), line["step"], loss)
        self._draw_soon()

    def progress(self, step: int) -> None:
        """Moves the bar."""
        self.pace.update(step)
        self._draw_soon()

    def close(self, outcome: str, summary: Sequence[Line], saved: int | None = None) -> None:
        """The bar stays as it is at the end."""
        self._ended = outcome
        self._draw()
        super().close(outcome, summary, saved)

    def _add(self, title: str, step: int, loss: float) -> None:
        points = self._curves.setdefault(title, [])
        points.append((step, loss))
        if len(points) > 2 * _MOST_POINTS:
            del points[1:-1:2]  # every second, and never an end

    def _draw_soon(self) -> None:
        if time.monotonic() - self._drawn_at >= REDRAW_SECONDS:
            self._draw()

    def _draw(self) -> None:
        from IPython.display import display

        self._drawn_at = time.monotonic()
        shown = {"text/html": self._html(), "text/plain": self._words()}
        if self._output is None:
            self._output = display(shown, raw=True, display_id=True)
        else:
            self._output.update(shown, raw=True)

    def _words(self) -> str:
        total = f" of {self.run.total_steps}" if self.run.total_steps else ""
        loss = f", loss {number(self.train['loss'])}" if self.train is not None else ""
        return f"{self._ended or 'training'}: step {self.pace.step}{total}{loss}, {duration(self.pace.seconds)}"

    def _html(self) -> str:
        done = 1.0 if self._ended == "finished" else self.pace.fraction or 0.0
        bar = (
            f'<div style="height:6px;max-width:{_WIDTH}px;border-radius:3px;background:#8884;margin:6px 0">'
            f'<div style="height:6px;border-radius:3px;width:{done:.1%};background:{_COLOURS[0]}"></div></div>'
        )
        return f"<div>{html.escape(self._words())}{bar}{curve(self._curves)}</div>"


def curve(curves: dict[str, list[tuple[int, float]]]) -> str:
    """Losses over steps as SVG, each in its colour; empty where there is none yet."""
    points = [point for several in curves.values() for point in several]
    if not points:
        return ""
    steps, losses = zip(*points, strict=True)
    last, lowest, highest = max(1, *steps), min(losses), max(losses)
    span = highest - lowest or 1.0

    def place(step: int, loss: float) -> str:
        x = _LEFT + step / last * (_WIDTH - _LEFT - 8)
        return f"{x:.1f},{8 + (highest - loss) / span * (_HEIGHT - _BELOW - 16):.1f}"

    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" style="max-width:{_WIDTH}px;width:100%" font-size="11" '
        f'font-family="sans-serif" fill="currentColor">'
        f'<text x="{_LEFT - 6}" y="14" text-anchor="end">{number(highest)}</text>'
        f'<text x="{_LEFT - 6}" y="{_HEIGHT - _BELOW - 6}" text-anchor="end">{number(lowest)}</text>'
        f'<text x="{_WIDTH - 8}" y="{_HEIGHT - 6}" text-anchor="end">step {last:,}</text>'
        f"{''.join(_drawn(curves, place))}</svg>"
    )


def _drawn(curves: dict[str, list[tuple[int, float]]], place: Any) -> Iterator[str]:
    for place_of, (title, points) in enumerate(curves.items()):
        colour, x = _COLOURS[place_of % len(_COLOURS)], _LEFT + 130 * place_of
        path = " ".join(place(*point) for point in points)
        yield f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{path}"/>'
        x_end, y_end = place(*points[-1]).split(",")
        yield f'<circle cx="{x_end}" cy="{y_end}" r="2.5" fill="{colour}"/>'
        yield f'<text x="{x}" y="{_HEIGHT - 6}" fill="{colour}">{html.escape(title)} loss</text>'
