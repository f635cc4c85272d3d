"""A sweep while it works: the ranked table on a terminal, a line a result everywhere else."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Self

from launcher.sweep.ranking import ranked
from launcher.sweep.record import Record, Trial
from launcher.sweep.space import Space
from launcher.sweep.view import fitted
from launcher.text import counted, duration, number, ordinal

if TYPE_CHECKING:
    from rich.live import Live

_SECONDS = 1.0  # between two looks: whatever happens more often nobody reads


class Screen:
    """What is shown of a sweep as it goes.

    Args:
        record: The sweep's; what it holds already is not told again.
        space: Its space.
        plain: Whether to write lines though there is a terminal.
    """

    def __init__(self, record: Record, space: Space, plain: bool = False):
        self._space = space
        self._live: Live | None = None
        self._is_plain = plain or not sys.stdout.isatty()
        self._stack = ExitStack()
        self._shown = -_SECONDS  # when
        self._told = {trial.number: trial.rung for trial in record.trials.values()}

    def __enter__(self) -> Self:
        if not self._is_plain:
            from rich.console import Console
            from rich.live import Live

            console = Console(highlight=False)
            self._live = self._stack.enter_context(Live(console=console, auto_refresh=False, transient=True))
        return self

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._live = None
        self._stack.close()

    def say(self, line: str) -> None:
        """What a person should know, above the table."""
        if self._live is not None:
            self._live.console.print(line, markup=False)
        else:
            print(line, flush=True)

    def show(self, record: Record) -> None:
        """How the sweep stands."""
        if self._live is None:
            self._tell(record)
        elif time.monotonic() >= self._shown + _SECONDS:
            self._shown = time.monotonic()
            self._live.update(fitted(record, self._space, self._live.console), refresh=True)

    def _tell(self, record: Record) -> None:
        """A line for each trial that has reached a rung since."""
        news = [trial for trial in record.trials.values() if trial.rung > self._told.get(trial.number, -1)]
        entries = ranked(record) if news else []
        whole = [entry for entry in entries if entry.place is not None and entry.is_whole]  # with all of its seeds
        of = f"of {counted(len(whole), 'point')} so far"
        ranks = {one.number: f", {ordinal(entry.place or 0)} {of}" for entry in whole for one in entry.trials}
        for trial in sorted(news, key=lambda each: each.seen or 0.0):
            self._told[trial.number] = trial.rung
            self.say(_line(record, trial, ranks.get(trial.number, "")))


def _line(record: Record, trial: Trial, rank: str) -> str:
    """What a trial has reached, in a line."""
    settings = record.settings
    figure = f"{settings.metric.name} {number(trial.values[trial.rung])}"
    state = "finished" if trial.result is not None else f"at rung {trial.rung + 1} of {settings.num_rungs}"
    return f"trial {trial.number:04} {state}: {figure}{rank}; step {trial.step:,}, {duration(trial.seconds)}"
