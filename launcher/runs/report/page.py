"""`report.html`: what one or several runs were and how they went, on one page that needs no network.

The page may load nothing and send nothing: its own Content-Security-Policy forbids it, and allows the one script in
it by its hash. Whatever comes out of a run's folder is text, for Jinja's escaping and for the script.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher import text
from launcher.errors import LauncherError, UsageError
from launcher.recipe.inputs import unreadable
from launcher.recipe.masking import masked, masked_in
from launcher.runs.differing import differing, label_of, shown
from launcher.runs.metrics import METRICS_FILE
from launcher.runs.reading import Run
from launcher.runs.report.charts import Chart, Series, charts_of, steps_per_epoch
from launcher.runs.report.confusion import matrix_of
from launcher.runs.report.curves import Columns, Curves, read_curves
from launcher.runs.report.goodput import KINDS, Act, Attempt, Spent, attempts_of, spent_by
from launcher.runs.report.predictions import Mistakes, read_mistakes
from launcher.world.files import write_text

if TYPE_CHECKING:
    from jinja2 import Environment, Template

REPORT_FILE = "report.html"
GENERATOR = '<meta name="generator" content="launcher report">'  # tells a report from somebody's own page
ASSETS = Path(__file__).parent / "page"
_NARROWEST = 0.0015  # of a time line's width: what is narrower is drawn together with its neighbours


@dataclass(eq=False)
class Told:
    """One run of a report.

    Attributes:
        run: Its files.
        label: What it is called on the page, unlike the others'.
    """

    run: Run
    label: str

    @cached_property
    def curves(self) -> Curves:
        """Its numbers."""
        return read_curves(self.run.folder / METRICS_FILE)

    @property
    def train(self) -> Columns:
        """Its train lines."""
        return self.curves.get(("train", ""), {})

    @cached_property
    def attempts(self) -> list[Attempt]:
        """Its starts."""
        return attempts_of(self.run)

    @cached_property
    def spent(self) -> Spent:
        """Where its time went."""
        return spent_by(self.attempts, self.train)

    @cached_property
    def mistakes(self) -> Mistakes | str | None:
        """What it takes for what, where its predictions were saved; in words why that cannot be known."""
        try:
            return read_mistakes(self.run.folder)
        except LauncherError as error:
            return str(error)

    @property
    def begun(self) -> float | None:
        """When it began, in unix time."""
        return self.attempts[0].begun if self.attempts else None

    @property
    def samples_per_second(self) -> float | None:
        """Its median."""
        import numpy as np

        rates = self.train.get("samples_per_second")
        return None if rates is None or np.isnan(rates).all() else float(np.nanmedian(rates))


def write_report(folder: Path) -> str | None:
    """Writes the report of a run into its folder: for the end of a run, which it must not fail.

    Returns:
        Why there is none, in words; None where it is written.
    """
    try:
        save(folder / REPORT_FILE, page([Run(folder)]))
    except Exception as error:  # a page is never worth a run
        return f"{REPORT_FILE} could not be written: {error}"
    return None


def save(path: Path, text: str) -> None:
    """Writes a page, whole or not at all, over an older report but over nothing else.

    Raises:
        UsageError: Something else is there, or it cannot be written.
    """
    try:
        if path.exists() and (unreadable(path) or GENERATOR.encode() not in _beginning(path)):
            raise UsageError(f"{path} is not a report of this program; name another file with --to")
        write_text(path, text)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror or error}") from error


def _beginning(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(1000)


def told(runs: Sequence[Run], say: Callable[[str], None] = lambda _: None) -> list[Told]:
    """The runs by the shortest names that tell them apart; better ones first, where they have the same measure.

    Args:
        runs: One or several.
        say: Told of each that is left out, as what stands in its folder is not what we wrote.

    Raises:
        LauncherError: None can be shown.
    """
    named = [Told(run, run.folder.name) for run in runs]
    if len(runs) > 1:
        named = [entry for entry in named if _is_sound(entry, say)]
        if not named:
            raise LauncherError("none of these runs can be shown; see what is reported for each")
    folders = [entry.run.folder.resolve().parts for entry in named]
    depth = next((n for n in range(1, 20) if len({parts[-n:] for parts in folders}) == len(folders)), 20)
    differences = shown(differing([entry.run for entry in named]))
    labels = [label_of(differences[entry.run]) for entry in named]
    if len({entry.run.name for entry in named}) > 1:
        labels = [f"{entry.run.name} {label}".strip() for entry, label in zip(named, labels, strict=True)]
    for entry, parts, label in zip(named, folders, labels, strict=True):
        entry.label = label if label and labels.count(label) == 1 else "/".join(parts[-depth:])
    if not are_comparable(named):
        return named
    return sorted(named, key=lambda entry: entry.run.best.rank if entry.run.best else math.inf)


def _is_sound(entry: Told, say: Callable[[str], None]) -> bool:
    """Whether a page of this run alone can be made: what it needs is read here, once."""
    try:
        rendered([entry])
    except Exception as error:
        say(f"{entry.run.folder}: skipped: {error if isinstance(error, LauncherError) else text.told_by(error)}")
        return False
    return True


def are_comparable(runs: Iterable[Told]) -> bool:
    """Whether their best evaluations are by one measure."""
    return len({(best.metric, best.mode, best.label) for entry in runs if (best := entry.run.best)}) == 1


def charts(runs: Sequence[Told]) -> list[Chart]:
    """The charts of a report."""
    return charts_of([entry.curves for entry in runs], [entry.begun for entry in runs])


def page(runs: Sequence[Run]) -> str:
    """The report of these runs as HTML.

    Raises:
        LauncherError: What stands in the folder of the only one is not what we wrote.
    """
    return rendered(told(runs))


def rendered(named: Sequence[Told]) -> str:
    """The report as HTML.

    Raises:
        LauncherError: What stands in the folder of the only run is not what we wrote.
    """
    try:
        return _rendered(named)
    except LauncherError:
        raise
    except Exception as error:
        if len(named) > 1:
            raise
        raise LauncherError(f"{named[0].run.folder}: cannot be shown: {text.told_by(error)}") from error


def _rendered(named: Sequence[Told]) -> str:
    from markupsafe import Markup

    script = "\n".join((ASSETS / name).read_text(encoding="utf-8") for name in ("uPlot.iife.min.js", "report.js"))
    style = "\n".join((ASSETS / name).read_text(encoding="utf-8") for name in ("uPlot.min.css", "report.css"))
    return template().render(
        generator=Markup(GENERATOR),
        script=Markup(script),  # ours, like the style
        style=Markup(style),
        policy=policy(script),
        **_content(named),
    )


@cache  # to compile it takes longer than to render it
def template() -> Template:
    """The page, to be filled in."""
    return environment(ASSETS).get_template("report.html.jinja")


def environment(folder: Path) -> Environment:
    """What fills a page in: all is text unless it is said to be ours."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    filling = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filling.filters.update(duration=text.duration, number=text.number, moment=moment, percent=_percent)
    return filling


def policy(script: str) -> str:
    """Nothing may be loaded, and no script may run but this one."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    rules = ("default-src 'none'", f"script-src 'sha256-{digest}'", "style-src 'unsafe-inline'", "img-src data:")
    return "; ".join((*rules, "base-uri 'none'", "form-action 'none'"))


def _content(runs: Sequence[Told]) -> dict[str, Any]:
    """All that the template says."""
    drawn = charts(runs)
    recipes = {entry.run.name for entry in runs}
    title = runs[0].label if len(runs) == 1 else f"{len(runs)} runs"
    return {
        "title": f"{runs[0].run.name} {title}" if len(runs) == 1 and runs[0].run.name not in title else title,
        "recipes": ", ".join(sorted(recipes)),
        "now": time.time(),
        "runs": [_run(number, entry) for number, entry in enumerate(runs)],
        "comparable": are_comparable(runs),
        "charts": drawn,
        "data": {"runs": [_drawn_run(entry) for entry in runs], "charts": [_drawn(chart) for chart in drawn]},
        "kinds": KINDS,
        "differences": differences(runs),
    }


def _run(number: int, entry: Told) -> dict[str, Any]:
    """What the template says of one run."""
    run, spent = entry.run, entry.spent
    return {
        "number": number,
        "label": entry.label,
        "run": run,
        "best": run.best,
        "attempts": entry.attempts,
        "spent": spent,
        "shares": {kind: seconds / spent.total for kind, seconds in spent.seconds.items() if seconds > 0},
        "line": list(time_line(entry.attempts)),
        "last": list(_last_lines(entry.curves)),
        "samples_per_second": entry.samples_per_second,
        "peaks": _peaks(entry.train),
        "facts": dict(_facts(run)),
        "world": run.status.get("world"),
        "diff": masked_in((run.environment.get("git") or {}).get("diff")),
        "mistakes": entry.mistakes,
        "matrix": matrix_of(entry.mistakes) if isinstance(entry.mistakes, Mistakes) else None,
    }


def _last_lines(curves: Curves) -> Iterator[tuple[str, dict[str, float]]]:
    """The last numbers of each split: the loss and the metrics."""
    for (split, name), columns in curves.items():
        keys = ("step", "loss") if split == "train" else [key for key in columns if key not in ("epoch", "time")]
        yield f"{split} {name}".strip(), {key: float(columns[key][-1]) for key in keys if key in columns}


def _peaks(train: Columns) -> dict[str, float]:
    import numpy as np

    peaks = {key: float(np.nanmax(train[key])) for key in ("gpu_memory", "host_memory") if key in train}
    return {key: value / 2**30 for key, value in peaks.items() if math.isfinite(value)}


def _facts(run: Run) -> Iterator[tuple[str, str]]:
    """On what it ran, as label and text."""
    environment = run.environment
    command = environment.get("command")
    if isinstance(command, list):
        yield "command", masked(" ".join(map(str, command)))
    for key in ("directory", "host", "system", "cpu_model", "gpu_model", "python", "started"):
        if environment.get(key):
            yield key.removesuffix("_model"), str(environment[key])
    if run.status.get("job"):
        yield "SLURM job", str(run.status["job"])
    if versions := environment.get("versions"):
        yield "versions", ", ".join(f"{package} {version}" for package, version in versions.items())
    git = environment.get("git")
    if git:
        yield "git commit", f"{git.get('commit', '')}{', with changes' if git.get('diff') else ''}"


# ---------------------------------------------------------------------- differences


def differences(runs: Sequence[Told]) -> list[tuple[str, list[str]]]:
    """What is not the same in all runs: keys of the recipe, then the world, versions and git."""
    if len(runs) < 2:
        return []
    values = [{**entry.run.recipe, **_circumstances(entry.run)} for entry in runs]
    keys = dict.fromkeys(itertools.chain.from_iterable(values))
    rows = [(key, [value.get(key, "") for value in values]) for key in keys]
    return [(key, row) for key, row in rows if len(set(row)) > 1]


def _circumstances(run: Run) -> dict[str, str]:
    facts = dict(_facts(run))
    kept = {key: text for key, text in facts.items() if key not in ("command", "directory", "started", "system")}
    return {"world": str(run.status.get("world", "")), **kept}


# ---------------------------------------------------------------------- time line


@dataclass(frozen=True)
class Piece:
    """A stretch of a time line, or a mark on it.

    Attributes:
        kind: `training`, one of `KINDS`, or for a mark how a start ended.
        left: Where it begins, 0 to 1.
        width: How wide it is, 0 to 1; 0 for a mark.
        text: What is reported about it.
    """

    kind: str
    left: float
    width: float
    text: str


def time_line(attempts: Sequence[Attempt]) -> Iterator[Piece]:
    """A run from its first start to its end, in the order it is to be painted."""
    if not attempts or (total := attempts[-1].ended - attempts[0].begun) <= 0:
        return
    begun = attempts[0].begun

    def piece(kind: str, since: float, until: float, text: str) -> Piece:
        return Piece(kind, (since - begun) / total, max(0.0, until - since) / total, text)

    for number, attempt in enumerate(attempts, 1):
        steps = f"steps {attempt.first_step} to {attempt.last_step}"
        yield piece("training", attempt.begun, attempt.ended, f"start {number}: {steps}")
        if attempt.redone_seconds:
            since = max(attempt.begun, attempt.ended - attempt.redone_seconds)
            yield piece("redone", since, attempt.ended, f"{attempt.redone_steps} steps that were done again")
        for act, count in _together(attempt.acts, total * _NARROWEST):
            times = f" ({count} times)" if count > 1 else f" at step {act.step}"
            yield piece(act.kind, act.begun, act.ended, f"{act.kind}{times}")
    for attempt in attempts:
        text = f"{attempt.outcome} at step {attempt.last_step} {attempt.message}".strip()
        yield piece(attempt.outcome, attempt.ended, attempt.ended, text)


def _together(acts: Sequence[Act], gap: float) -> Iterator[tuple[Act, int]]:
    """Acts of a kind that lie so close that they look like one, with how many they are."""
    for kind in dict.fromkeys(act.kind for act in acts):
        begun = ended = -math.inf
        count = step = 0
        for act in (act for act in acts if act.kind == kind):
            if count and act.begun - ended > gap:
                yield Act(kind, begun, ended, step), count
                count = 0
            begun = begun if count else act.begun
            ended, step, count = act.ended, act.step, count + 1
        yield Act(kind, begun, ended, step), count


# ---------------------------------------------------------------------- for the script


def _drawn_run(entry: Told) -> dict[str, Any]:
    return {"label": entry.label, "stepsPerEpoch": steps_per_epoch(entry.curves)}


def _drawn(chart: Chart) -> dict[str, Any]:
    return {
        "key": chart.key,
        "title": chart.title,
        "series": [_drawn_series(series) for series in chart.series],
    }


def _drawn_series(series: Series) -> dict[str, Any]:
    return {
        "run": series.run,
        "split": series.split,
        "label": series.label,
        "steps": _plain(series.steps),
        "seconds": _plain(series.seconds),
        "values": _plain(series.values),
    }


def _plain(values: Iterable[float]) -> list[float | None]:
    """Seven digits, which no picture exceeds; null for what is not a number."""
    return [float(f"{value:.7g}") if math.isfinite(value) else None for value in values]


# ---------------------------------------------------------------------- words


def moment(unix: float | None) -> str:
    """A time as it is on the clock here; empty where there is none."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix)) if unix else ""


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}" if share < 0.0995 else f"{share:.0%}"
