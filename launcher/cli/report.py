"""`launcher report`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.cli.arguments import RUN_NAMES
from launcher.errors import EXIT_DONE, UsageError

if TYPE_CHECKING:
    from launcher.cli.arguments import Commands


def add(commands: Commands) -> None:
    """Says the command's flags."""
    report = commands.add_parser(
        "report",
        help="make one page of one or several runs, or of a sweep",
        description="Make one self-contained page of a run, or of several to compare: what was run, how it went, "
        "curves, where the time went. Of a sweep's folder: which points were the best, and what decided.",
    )
    report.add_argument("runs", nargs="+", metavar="RUN", help=f"{RUN_NAMES}; all that are meant")
    report.add_argument(
        "--to", metavar="FILE", help="the page (default: RUN/report.html; of several runs, report.html)"
    )
    report.add_argument("--open", action="store_true", help="show it in the browser")
    report.add_argument("--png", metavar="DIR", help="the curves as pictures too, a file each")
    report.set_defaults(command=_report)


def _report(options: argparse.Namespace, _: Sequence[str]) -> int:
    from launcher.runs.naming import named_sweep

    sweep = named_sweep(options.runs[0]) if len(options.runs) == 1 else None
    path = _of_runs(options) if sweep is None else _of_sweep(sweep, options)
    if options.open:
        import webbrowser

        webbrowser.open(path.resolve().as_uri())
    return EXIT_DONE


def _of_runs(options: argparse.Namespace) -> Path:
    from launcher.runs.naming import named_runs
    from launcher.runs.report.page import REPORT_FILE, rendered, save, told

    runs = named_runs(options.runs)
    path = Path(options.to or (runs[0].folder / REPORT_FILE if len(runs) == 1 else REPORT_FILE))
    named = told(runs, lambda text: print(text, file=sys.stderr))
    save(path, rendered(named))
    print(path)
    if options.png:
        from launcher.runs.report.png import draw

        for picture in draw(named, Path(options.png)):
            print(picture)
    return path


def _of_sweep(folder: Path, options: argparse.Namespace) -> Path:
    from launcher.runs.report.page import REPORT_FILE, save
    from launcher.sweep.page import sweep_page
    from launcher.sweep.record import Record
    from launcher.sweep.space import space_of

    if options.png:
        raise UsageError("--png: draws runs; name trials, as in launcher report DIR/trials/0000 --png pictures")
    record = Record(folder)
    path = Path(options.to or record.folder / REPORT_FILE)
    save(path, sweep_page(record, space_of(record.settings)))
    print(path)
    return path
