"""A sweep for eyes: the ranked table, how far it is, and how long it may take."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from launcher.runs.differing import short_keys
from launcher.runs.reading import Run
from launcher.runs.table import STYLES
from launcher.sweep.halving import Cohort
from launcher.sweep.ranking import Entry, called, leader, ranked, shown_values, verdict
from launcher.sweep.record import Record, Trial
from launcher.sweep.space import Space
from launcher.text import duration, number, printable

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

_STATES = ("finished", "running", "paused", "failed", "waiting")
_TOGETHER = "VALUES"
_WHOLE = {"": 3, "STATE": 8}  # columns that are never cut
_ROOM, _ROOM_OF_VALUE = 62, 9  # columns for all but the values; and for one of them
_WIDEST = 24  # letters of a value
_LINES_BESIDE = 8  # the table, on a terminal
_STYLES = {**STYLES, "paused": "yellow", "waiting": "cyan"}


def view(
    record: Record, space: Space, most: int | None = None, width: int = 120, now: float | None = None
) -> RenderableType:
    """The whole of it: a head, the ranked table, and what there is to say of it.

    Args:
        record: As far as it is known.
        space: The sweep's.
        most: Rows; the rest is counted. Those that run are always among them.
        width: Columns of the screen; on a narrow one a point's values share a column.
        now: In unix time, for what is running.
    """
    from rich.console import Group
    from rich.text import Text

    entries = ranked(record)
    rows = _rows(entries, most)
    lines: list[RenderableType] = [Text(line, "dim") for line in heads(record, entries, now)]
    left_out = len(entries) - len(rows)
    notes = [f"and {left_out} more points; `launcher report {record.folder}` shows all"] if left_out else []
    if sentence := verdict(entries):
        notes.append(sentence)
    return Group(*lines, Text(), table_of(record, space, rows, width, now), *(Text(note, "dim") for note in notes))


def fitted(record: Record, space: Space, console: Console) -> RenderableType:
    """The same for a terminal: as many rows as it has room for."""
    return view(record, space, max(1, console.height - _LINES_BESIDE), console.width)


def _rows(entries: Sequence[Entry], most: int | None) -> Sequence[Entry]:
    """The best, and those that run: what has no place yet is of more interest than what lies far behind."""
    if most is None or len(entries) <= most:
        return entries
    running = [entry for entry in entries if entry.state == "running"][:most]
    others = [entry for entry in entries if entry not in running][: most - len(running)]
    chosen = {entry.point for entry in (*running, *others)}
    return [entry for entry in entries if entry.point in chosen]


def counted_up(record: Record) -> str:
    """How it goes, and how many trials are in which state: `random, 8 trials: 2 finished, 6 to come`."""
    states = [trial.state for trial in record.trials.values()]
    counts = [f"{states.count(state)} {state}" for state in _STATES if states.count(state)]
    ahead = record.budgets[-1] - len(states)
    counts += [f"{ahead} to come"] if ahead > 0 else []
    return f"{record.settings.method}, {record.budgets[-1]} trials: {', '.join(counts)}"


def heads(record: Record, entries: Sequence[Entry], now: float | None = None) -> list[str]:
    """How it stands, in two lines: counts of trials, the best so far, the time left."""
    settings = record.settings
    left = seconds_left(record, now)
    time_left = f"; about {duration(left)} left" if left else ""
    first = f"{record.folder}: {counted_up(record)}{time_left}"
    best = leader(entries)
    if best is None:
        return [first]
    spread = f" ± {number(best.error)}" if best.error is not None else ""
    return [first, f"best {settings.metric.name}: {number(best.value)}{spread}, {called(best)}"]


def table_of(
    record: Record, space: Space, entries: Sequence[Entry], width: int = 120, now: float | None = None
) -> Table:
    """The points as rows: rank, trial, values, figure, rung, state, step, time left."""
    from rich.table import Table
    from rich.text import Text

    short = short_keys(space.keys)
    is_narrow = _ROOM + sum(max(len(word), _ROOM_OF_VALUE) for word in short.values()) > width
    keys = [_TOGETHER] if is_narrow else list(short.values())
    halves = record.settings.num_rungs > 1
    figure = record.settings.metric.key.upper()
    titles = ["", "TRIAL", *keys, figure, *(["RUNG"] if halves else []), "STATE", "STEP", "LEFT"]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for title in titles:
        justify = "right" if title in ("", "STEP", "LEFT", "RUNG", figure) else "left"
        is_whole = title in ("", figure, "STATE")
        table.add_column(
            title,
            justify=justify,  # type: ignore[arg-type]  # a word of rich's
            no_wrap=title not in (_TOGETHER, "TRIAL"),
            overflow="fold" if title == _TOGETHER else "ellipsis",
            max_width=None if title == _TOGETHER else _WIDEST,
            min_width=_WHOLE[title] if is_whole and title in _WHOLE else None,
        )
    for entry in entries:
        cells = _cells(record, space, entry, short, figure, now)
        styles = {"STATE": _STYLES.get(cells["STATE"], "")}
        row = [Text(printable(cells.get(title, "")), styles.get(title, "")) for title in titles]
        table.add_row(*row, style="dim" if entry.is_early else "")
    return table


def _cells(
    record: Record, space: Space, entry: Entry, short: Mapping[str, str], figure: str, now: float | None
) -> Mapping[str, str]:
    settings = record.settings
    values = {short[key]: value for key, value in shown_values(record, space, entry).items() if value}
    at_work = [trial for trial in entry.trials if trial.taken is not None]
    run = Run(record.folder_of(at_work[0].number)) if at_work else None
    total = f"/{run.total_steps}" if run is not None and run.total_steps else ""
    step = max(run.step, entry.step) if run is not None else entry.step
    left = _left_of(at_work[0], run, now) if run is not None else None
    rung = f"{entry.rung + 1}/{settings.num_rungs}" if entry.rung >= 0 else ""
    return {
        **values,
        _TOGETHER: " ".join(f"{key}={value}" for key, value in values.items()),
        "": str(entry.place or ""),
        "TRIAL": called(entry),
        figure: _figure(record, entry, at_work),
        "RUNG": f"{rung} (further, not counted)" if entry.is_early and rung else rung,
        "STATE": entry.state,
        "STEP": f"{step}{total}" if step else "",
        "LEFT": duration(left) if left is not None else "",
    }


def _figure(record: Record, entry: Entry, at_work: Sequence[Trial]) -> str:
    """The value that counts; of what runs and has none, the newest."""
    if entry.value is not None:
        return number(entry.value) + (f" ± {number(entry.error)}" if entry.error is not None else "")
    newest = record.settings.metric.best_until(record.folder_of(at_work[0].number)) if at_work else None
    return f"{number(newest[1])} so far" if newest is not None else ""


def _left_of(trial: Trial, run: Run, now: float | None) -> float | None:
    """How long a run will take to its end at its pace of now."""
    began, done = trial.since, run.step - trial.step
    if began is None or done <= 0 or run.total_steps is None:
        return None
    return ((now or time.time()) - began) / done * max(0, run.total_steps - run.step)


def seconds_left(record: Record, now: float | None = None) -> float | None:
    """How long the sweep may take, by what its trials took and the slots that work; None before that is known."""
    spent = sum(trial.seconds for trial in record.trials.values())
    units = sum(_units(record, trial.rung) for trial in record.trials.values())
    if not spent or not units:
        return None
    cohort = Cohort(record, record.budgets[-1])
    to_do = 0.0
    for rung, quota in enumerate(cohort.quotas):
        arrived = len(cohort.ranked(rung, cohort.members(rung)))
        to_do += (quota - arrived) * record.settings.repeats * (_units(record, rung) - _units(record, rung - 1))
    elapsed = sum(
        (now or time.time()) - trial.since
        for trial in record.trials.values()
        if trial.taken is not None and trial.since
    )
    slots = max(1, len(record.running) or record.settings.slots)
    return max(0.0, to_do * spent / units - elapsed) / slots


def _units(record: Record, rung: int) -> float:
    """How much of a run has been done at a rung."""
    rungs = record.settings.rungs
    if rung < 0:
        return 0.0
    return rungs[rung] / rungs[-1] if rungs else 1.0
