"""`launcher runs`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.errors import EXIT_DONE, UsageError
from launcher.runs.states import ORDERS, STATES

if TYPE_CHECKING:
    from launcher.cli.arguments import Commands
    from launcher.runs.reading import Run
    from launcher.runs.table import View
    from launcher.sweep.record import Record
    from launcher.sweep.space import Space

_WATCH_SECONDS = 2.0


def add(commands: Commands) -> None:
    """Says the command's flags."""
    runs = commands.add_parser(
        "runs",
        help="list the runs, or the points of a sweep",
        description="List the runs of a folder, the newest first; of a sweep's folder its points, the best first. A "
        "run is dead where it says that it runs and no process does it any more; `launcher resume RUN` resumes it.",
    )
    runs.add_argument(
        "words",
        nargs="*",
        metavar="[best METRIC] [DIR|NAME]",
        help="`best METRIC`: the best first, by a metric as it stands in the recipe, or METRIC:min; then the folder of "
        "the runs, or the name of some (default: the site file's, or runs)",
    )
    runs.add_argument(
        "--state", action="append", choices=STATES, default=[], help="only runs in this state; may be repeated"
    )
    runs.add_argument("--name", default="", metavar="TEXT", help="only those with this in their folder or recipe")
    runs.add_argument("--sort", choices=ORDERS, default="age", help="the order (default: age, the newest first)")
    how = runs.add_mutually_exclusive_group()
    how.add_argument("--watch", action="store_true", help="refresh every two seconds, until Ctrl-C")
    how.add_argument("--json", action="store_true", help="one JSON object a line")
    runs.set_defaults(command=_runs)


def _runs(options: argparse.Namespace, _: Sequence[str]) -> int:
    from launcher.runs.table import View, with_direction

    metric, folder = _wanted(options.words)
    root = _root() if folder is None else Path(folder)
    view = View(root, options.state, options.name, "best" if metric else options.sort, metric)
    if (sweep := _sweep_of(view)) is not None:
        return _of_sweep(sweep, options)
    view = with_direction(view)
    if options.watch:
        return _watch(view)
    if options.json:
        _print_json(view)
    else:
        _print_table(view)
    return EXIT_DONE


def _wanted(words: Sequence[str]) -> tuple[str, str | None]:
    """The metric that is asked for, if one is, and the folder."""
    metric = ""
    if words[:1] == ["best"]:
        if len(words) < 2:
            raise UsageError("best: by which metric? Write `launcher runs best accuracy`, or `best loss`")
        metric, words = words[1], words[2:]
        if metric.partition(":")[2] not in ("", "min", "max"):
            raise UsageError(f"{metric}: write {metric.partition(':')[0]}:min or {metric.partition(':')[0]}:max")
    if len(words) > 1:
        raise UsageError(f"'{words[1]}': name one folder, or one name")
    return metric, words[0] if words else None


def _root() -> Path:
    from launcher.world.site import read_site

    return read_site()[0].root


def _sweep_of(view: View) -> Path | None:
    """The sweep that is named, where all of it is asked for, which has an order of its own; None of a folder above."""
    from launcher.runs.naming import is_named, is_sweep, named_sweep

    if view.states or view.name or view.metric or view.sort != "age":
        return None
    if view.root.is_dir():
        return view.root if is_sweep(view.root) else None
    return named_sweep(str(view.root)) if is_named(str(view.root)) else None


def _of_sweep(folder: Path, options: argparse.Namespace) -> int:
    """The points of a sweep, the best first."""
    from rich.console import Console

    from launcher.sweep.best import table
    from launcher.sweep.record import Record
    from launcher.sweep.space import space_of
    from launcher.sweep.view import view

    record = Record(folder)
    space = space_of(record.settings)
    if options.json:
        print(table(record, space, "json").decode(), end="")
        return EXIT_DONE
    if options.watch:
        return _watch_sweep(record, space)
    console = Console(width=None if sys.stdout.isatty() else 250, highlight=False, soft_wrap=False)
    with console.capture() as captured:
        console.print(view(record, space, width=console.width))
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))
    return EXIT_DONE


def _watch_sweep(record: Record, space: Space) -> int:
    import time

    from rich.console import Console
    from rich.live import Live

    from launcher.sweep.view import fitted

    _check_screen()
    console = Console(highlight=False)
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            record.refresh()
            live.update(fitted(record, space, console), refresh=True)
            time.sleep(_WATCH_SECONDS)


def _check_screen() -> None:
    if not sys.stdout.isatty():
        raise UsageError("--watch: this is not a terminal; use `launcher runs --json` in a script")


def _print_json(view: View) -> None:
    from launcher.runs.differing import differing
    from launcher.runs.metrics import encode
    from launcher.runs.table import as_line, chosen

    runs = chosen(view)
    queue, differences = dict(_queue_lines(runs)), differing(runs)
    for run in runs:
        print(encode({**as_line(run, differences[run]), "queue": queue.get(str(run.folder))}))


def _print_table(view: View) -> None:
    from rich.console import Console

    from launcher.runs.table import chosen, table_of

    runs = chosen(view)
    sweeps = _sweep_lines(view)
    if not runs and sweeps:
        print("\n".join(sweeps))
        return
    if not runs:
        asked = " fit --state and --name" if view.states and view.name else " fit --name" if view.name else ""
        print(f"no runs in {view.root}" + (asked or (f" are {' or '.join(view.states)}" if view.states else "")))
        return
    console = Console(width=None if sys.stdout.isatty() else 250, highlight=False)  # a file has no width to fit
    with console.capture() as captured:
        console.print(table_of(runs, console.width))
    if view.metric:
        print(f"{'metric':<12} {view.metric}\n")
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))
    for number, (what, line) in enumerate(_queue_lines(runs)):
        print(("" if number else "\n") + f"{what}: {line}")
    if sweeps:
        print("\n" + "\n".join(sweeps))


def _sweep_lines(view: View) -> list[str]:
    """A line for each sweep below the folder, whose trials are listed in its own."""
    from launcher.errors import LauncherError
    from launcher.runs.naming import NamedSweep, places_of
    from launcher.runs.reading import find_sweeps
    from launcher.sweep.ranking import ranked
    from launcher.sweep.record import Record
    from launcher.sweep.view import heads

    if view.states or view.name or view.metric:
        return []
    named = (
        []
        if view.root.is_dir()
        else [place.folder for place in places_of(str(view.root)) if isinstance(place, NamedSweep)]
    )
    lines = []
    for folder in named or find_sweeps(view.root):
        try:
            record = Record(folder)
            lines.append("; ".join(heads(record, ranked(record))))
        except LauncherError as error:
            lines.append(f"{folder}: {error}")
    return [f"sweep {line}" for line in lines]


def _queue_lines(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """How the jobs of those runs stand that are not over, by folder; nothing is asked where there are none."""
    from launcher.errors import LauncherError
    from launcher.runs.job import queue_line, queue_now

    try:
        lines = [(run, queue_line(run, queue_now)) for run in runs if run.state != "finished"]
    except LauncherError as error:
        return [("the queue is not known", str(error))]
    return [(str(run.folder), line) for run, line in lines if line]


def _watch(view: View) -> int:
    import time

    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    from launcher.runs.table import chosen, table_of

    _check_screen()
    chosen(view)  # says what is wrong before the screen is taken
    console = Console(highlight=False)
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            head = Text(f"{view.root}, {time.strftime('%H:%M:%S')}; Ctrl-C to leave", "dim")
            runs = chosen(view)
            queue = [Text(f"{what}: {line}", "cyan") for what, line in _queue_lines(runs)]
            live.update(Group(head, Text(), table_of(runs, console.width), Text(), *queue), refresh=True)
            time.sleep(_WATCH_SECONDS)
