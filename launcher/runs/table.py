"""`launcher runs`: the runs of a folder as rows, filtered and sorted, and as a table."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from launcher.errors import UsageError
from launcher.runs.differing import differing, shown
from launcher.runs.direction import question
from launcher.runs.job import with_jobs
from launcher.runs.naming import NamedSweep, folders_of_runs, is_sweep, named_runs, places_of
from launcher.runs.reading import Run, Score, damaged, find_runs, natural, seconds_since
from launcher.runs.states import STATES
from launcher.text import age, number, suggestion

STYLES = {
    "running": "bold green",
    "queued": "cyan",
    "finished": "green",
    "stopped": "yellow",
    "failed": "bold red",
    "dead": "bold red",
}
_COLUMNS = ("RUN", "STATE", "RECIPE", "WORLD", "STEP", "BEST", "AGE", "WHERE")
_NARROW = 120
_WIDEST = 20  # letters of a recipe's value
_MOST_DIFFERENCES = 4  # keys that have a column of their own
_LAST = float("inf")  # what has no value comes after everything that has
_ORDERS: Mapping[str, Callable[[Run], Any]] = {
    "age": lambda run: -(run.started or 0.0),
    "best": lambda run: run.best.rank if run.best else _LAST,
    "name": lambda run: str(run.folder),
    "recipe": lambda run: run.name,
    "state": lambda run: STATES.index(run.state) if run.state in STATES else _LAST,
    "step": lambda run: -run.step,
    "world": lambda run: -int(run.status.get("world") or 0),
}


@dataclass(frozen=True)
class View:
    """Which runs, and in which order.

    Attributes:
        root: The folder that they are looked for in.
        states: Only these; all where empty.
        name: Only those whose folder or recipe matches, with `*` for anything; a part of it is enough.
        sort: One of `launcher.runs.ORDERS`.
        metric: In place of what the recipes call best, as `accuracy`, or with its direction `mape:min`.
    """

    root: Path
    states: Sequence[str] = ()
    name: str = ""
    sort: str = "age"
    metric: str = ""


def chosen(view: View) -> list[Run]:
    """The runs of a view, as they are now.

    Raises:
        UsageError: There is no such folder, or what runs have measured is not the metric that is asked for.
    """
    sound = [_readable(replace(run, metric=view.metric)) for run in _runs_in(view)]
    matching_runs = [run for run in with_jobs(sound) if _matches(run, view)]
    if view.metric and not any(run.best for run in matching_runs):
        _refuse_unmeasured(view.metric.partition(":")[0], matching_runs)
    return sorted(matching_runs, key=lambda run: (_ORDERS[view.sort](run), natural(str(run.folder))))


def with_direction(view: View) -> View:
    """The view with the direction of its metric, `ece:min`, as its runs tell it.

    Raises:
        UsageError: None of them does, or they differ; or none has measured it.
    """
    metric, _, mode = view.metric.partition(":")
    if not metric or mode:
        return view
    runs = [run for run in (_readable(run) for run in _runs_in(view)) if _matches(run, view)]
    measured = [run for run in runs if replace(run, metric=f"{metric}:min").best is not None]
    if not measured:
        _refuse_unmeasured(metric, runs)
    modes = {replace(run, metric=metric).measure[1] for run in measured} - {None}
    if measured and len(modes) != 1:
        raise UsageError(question(f"best {metric}", metric))
    return replace(view, metric=f"{metric}:{modes.pop()}") if modes else view


def _refuse_unmeasured(metric: str, runs: Iterable[Run]) -> None:
    measured = {score.metric for run in runs if (score := replace(run, metric="").best)}
    if measured:  # else none of them has come to an evaluation yet
        names = sorted({*measured, "loss"})
        near = suggestion(metric, names) or next((f"; did you mean '{name}'?" for name in names if metric in name), "")
        known = " or ".join(f"`launcher runs best {name}`" for name in names)
        write = f"{near} Write" if near else "; write"
        raise UsageError(f"{metric}: no run has measured that{write} {known}, or another of their metrics")


def _runs_in(view: View) -> Iterable[Run]:
    """The runs of a folder, or those that its name means; of sweeps their trials where a figure is wanted."""
    root = view.root
    if root in folders_of_runs():
        if not root.is_dir():
            raise UsageError(f"{root}: no runs yet; `launcher train` makes the first, or name where they lie")
        return find_runs(root)
    try:
        runs = [place for place in places_of(str(root)) if not isinstance(place, NamedSweep)]
    except UsageError:
        if root.is_dir():
            return ()
        raise
    return runs if runs or not (view.metric or is_sweep(root)) else named_runs([str(root)])


def _readable(run: Run) -> Run:
    """The run, or one of which nothing can be told: an odd folder is no reason to show none of the others."""
    try:
        as_line(run), _cells(run)
        run.seen  # noqa: B018  # all that is asked of a run is read here, once
    except Exception as error:
        return damaged(run, error)
    return run


def _matches(run: Run, view: View) -> bool:
    if view.states and run.state not in view.states:
        return False
    return not view.name or any(fnmatch.fnmatch(text, f"*{view.name}*") for text in (str(run.folder), run.name))


def as_line(run: Run, differences: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What there is to know of a run, as plain values.

    Args:
        run: The run.
        differences: In what it differs from those beside it.
    """
    best = run.best
    return {
        "run": str(run.folder),
        "state": run.state,
        "recipe": run.name,
        **({"differs": dict(differences)} if differences is not None else {}),
        "world": run.status.get("world"),
        "step": run.step,
        "total_steps": run.total_steps,
        "epoch": run.last.get("epoch", run.status.get("epoch")),
        "best": _as_best(best) if best else None,
        "started": run.started,
        "seen": run.seen,
        "host": run.status.get("host"),
        "job": run.status.get("job"),
        **({"damage": run.damage} if run.damage else {}),
    }


def _as_best(best: Score) -> dict[str, Any]:
    return {"metric": best.metric, "mode": best.mode, "value": best.value, "step": best.step, "on": best.label}


def table_of(runs: Iterable[Run], width: int) -> Table:
    """The runs for eyes.

    Args:
        runs: In the order of the rows.
        width: Columns of the screen; on a narrow one the recipe is left out where the folders say it.
    """
    rows = {run: _cells(run) for run in runs}
    is_said = all(run.name in run.folder.parts for run in rows)
    differences = shown(differing(list(rows)))
    keys = list(dict.fromkeys(key for values in differences.values() for key in values))[:_MOST_DIFFERENCES]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for title in _COLUMNS:
        if title != "RECIPE" or width >= _NARROW or not is_said:
            justify = "right" if title in ("WORLD", "STEP", "AGE") else "left"
            table.add_column(title, justify=justify, no_wrap=title not in ("RUN", "WHERE"), overflow="fold")  # type: ignore[arg-type]  # a word of rich's
        if title == "BEST":
            for key in keys:
                table.add_column(key, no_wrap=True, overflow="ellipsis", max_width=_WIDEST)
    for run, cells in rows.items():
        cells = {**cells, **{key: Text(_printable(differences[run].get(key, ""))) for key in keys}}
        table.add_row(*(cells[str(column.header)] for column in table.columns))
    return table


def _cells(run: Run) -> dict[str, Text]:
    total = f"/{run.total_steps}" if run.total_steps else ""
    since = seconds_since(run.started)
    texts = {
        "RUN": os.path.normpath(run.folder),
        "STATE": run.state,
        "RECIPE": run.name,
        "WORLD": str(run.status.get("world", "")),
        "STEP": f"{run.step}{total}",
        "BEST": f"{run.best.metric} {number(run.best.value)}" if run.best else "",
        "AGE": "" if since is None else age(since),
        "WHERE": run.damage or run.place,
    }
    printable = {title: _printable(text) for title, text in texts.items()}
    return {title: Text(text, STYLES.get(text, "") if title == "STATE" else "") for title, text in printable.items()}


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)
