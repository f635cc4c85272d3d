"""The page of a sweep: which points were the best, what decided, and how they learned; all from disk, in one file.

Like a run's report it loads nothing and sends nothing: its Content-Security-Policy forbids it, and allows its one
script by its hash. Whatever comes out of a folder is text.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.recipe.masking import masked
from launcher.runs.reading import Run
from launcher.runs.report import page as report
from launcher.sweep.grammar import plain
from launcher.sweep.halving import is_complete
from launcher.sweep.importances import FEWEST, importances
from launcher.sweep.proposals import is_sampled
from launcher.sweep.ranking import Entry, called, known, leader, ranked, shown_values, verdict
from launcher.sweep.record import Record
from launcher.sweep.space import Parameter, Space
from launcher.sweep.view import seconds_left

if TYPE_CHECKING:
    from jinja2 import Template

_PAGE = Path(__file__).parent / "page"
_MOST_OF_A_CURVE = 120  # evaluations that are drawn
_MOST_TICKS = 8  # of a range whose values are all written at its axis
_NOT_COMPARED = ("name", "base", "track", "launch", "slurm", "save", "sweep", "seed")  # of the best and the baseline


def sweep_page(record: Record, space: Space) -> str:
    """The page as HTML.

    Args:
        record: As far as it is known.
        space: The sweep's.
    """
    from markupsafe import Markup

    script = (_PAGE / "sweep.js").read_text(encoding="utf-8")
    styles = (report.ASSETS / "report.css", _PAGE / "sweep.css")
    return _template().render(
        generator=Markup(report.GENERATOR),
        script=Markup(script),  # ours, like the style
        style=Markup("\n".join(path.read_text(encoding="utf-8") for path in styles)),
        policy=report.policy(script),
        **_content(record, space),
    )


@cache
def _template() -> Template:
    return report.environment(_PAGE).get_template("sweep.html.jinja")


def _content(record: Record, space: Space) -> dict[str, Any]:
    """All that the template says."""
    settings, entries = record.settings, ranked(record)
    keys = _keys(space)
    points = [_point(record, space, entry, keys) for entry in entries]
    shares = importances(space, known(record))
    best = _best(record, entries)
    return {
        "title": _title(record),
        "folder": str(record.folder),
        "state": _state(record),
        "method": settings.method,
        "now": time.time(),
        "metric": settings.metric.name,
        "best": best,
        "baseline": next((entry.value for entry in entries if entry.point == 0), None),
        "counts": _counts(record),
        "wanted": record.budgets[-1],
        "left": seconds_left(record),
        "spent": sum(trial.seconds for trial in record.trials.values()),
        "slots": settings.slots,
        "steps_share": _steps_share(record),
        "sentences": list(_sentences(record, entries)),
        "importances": list(shares.items()) if shares is not None else None,
        "fewest": FEWEST,
        "conditional": any(parameter.choice for parameter in space.parameters),
        "keys": [key["key"] for key in keys],
        "repeats": settings.repeats,
        "num_rungs": settings.num_rungs,
        "points": points,
        "differences": _differences(record, entries),
        "facts": list(_facts(record)),
        "data": _data(record, entries, keys, points),
    }


def _title(record: Record) -> str:
    """The recipe's name, as its runs have it; else the folder's."""
    runs = (Run(record.folder_of(number)) for number in record.trials)
    return next((run.recipe["name"] for run in runs if "name" in run.recipe), record.folder.resolve().name)


def _state(record: Record) -> str:
    return "running" if record.running else "finished" if is_complete(record) else "paused"


def _counts(record: Record) -> dict[str, int]:
    states = [trial.state for trial in record.trials.values()]
    return {state: states.count(state) for state in ("finished", "running", "paused", "failed", "waiting")}


def _best(record: Record, entries: Sequence[Entry]) -> dict[str, Any] | None:
    best = leader(entries)
    if best is None or best.value is None:
        return None
    baseline = next((entry for entry in entries if entry.point == 0), None)
    is_fair = baseline is not None and baseline.value is not None and baseline.rung == best.rung and best.point != 0
    gain = best.value - (baseline.value or 0.0) if is_fair and baseline is not None else None
    return {"value": best.value, "error": best.error, "name": called(best), "gain": gain}


def _steps_share(record: Record) -> float | None:
    """Of halving: the steps that were made, of those that bringing all to the end would have taken."""
    rungs = record.settings.rungs
    if not rungs or not record.trials:
        return None
    made = sum(rungs[trial.rung] for trial in record.trials.values() if trial.rung >= 0)
    return made / (rungs[-1] * len(record.trials))


def _sentences(record: Record, entries: Sequence[Entry]) -> Iterator[str]:
    if sentence := verdict(entries):
        yield sentence
    if is_sampled(record.settings) and record.settings.lag == 0:
        yield (
            "Proposals were made from whatever was known (--lag 0): with other timing the same sweep would have tried "
            "other points."
        )
    failed = sorted(trial.number for trial in record.trials.values() if trial.is_failed)
    if failed:
        names = ", ".join(f"{number:04}" for number in failed[:8]) + (", …" if len(failed) > 8 else "")
        counts = (
            f"{len(failed)} trial failed, and counts" if len(failed) == 1 else f"{len(failed)} trials failed, and count"
        )
        yield f"{counts} as the worst: {names}."


# ---------------------------------------------------------------------- points


def _keys(space: Space) -> list[dict[str, Any]]:
    """The keys that vary, each with its alternatives' names where it has some, and whether its scale is logarithmic."""
    return [_key(space, key) for key in space.keys]


def _key(space: Space, key: str) -> dict[str, Any]:
    mine = [parameter for parameter in space.parameters if parameter.key == key]
    ranges = [parameter.range for parameter in mine if parameter.range is not None]
    names = [] if _is_numeric(space, key, mine) else _names(space, key)
    few = [each for each in ranges if each.size is not None and each.size <= _MOST_TICKS]
    is_few = len(ranges) == len(few) == 1 and not names
    ticks = [few[0].value(index) for index in range(few[0].size or 0)] if is_few else []
    is_log = bool(ranges) and not names and all(each.scale == "log" for each in ranges)
    return {"key": key, "names": names, "ticks": ticks, "log": is_log}


def _is_numeric(space: Space, key: str, mine: Sequence[Parameter]) -> bool:
    """Whether all of its values are numbers that lie apart: drawn as numbers, not as names."""
    dimension = next((each for each in space.dimensions if each.key == key), None)
    if dimension is None or all(parameter.range is not None for parameter in mine):
        return True
    fixed = [plain(str(alternative)) for alternative in dimension.alternatives if not alternative.holes]
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in fixed)
    return numbers and all(not hole.keys for alternative in dimension.alternatives for hole in alternative.holes)


def _names(space: Space, key: str) -> list[str]:
    dimension = next(each for each in space.dimensions if each.key == key)
    return [alternative.label for alternative in dimension.alternatives]


def _point(record: Record, space: Space, entry: Entry, keys: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the page says of a point."""
    shown = shown_values(record, space, entry)
    link = Path("trials") / f"{entry.trials[0].number:04}" / report.REPORT_FILE
    failures = [failure for trial in entry.trials for failure in trial.failures]
    return {
        "point": entry.point,
        "name": called(entry),
        "place": entry.place,
        "value": _finite(entry.value),
        "error": entry.error,
        "rung": entry.rung,
        "is_early": entry.is_early,
        "state": entry.state,
        "step": entry.step,
        "seconds": round(sum(trial.seconds for trial in entry.trials), 1),
        "shown": [shown.get(key["key"], "") for key in keys],
        "places": _places(space, entry, keys),
        "failure": masked(failures[-1])[:120] if failures else "",
        "link": link.as_posix() if (record.folder / link).exists() else None,
    }


def _places(space: Space, entry: Entry, keys: Sequence[Mapping[str, Any]]) -> list[float | None]:
    """Where a point lies on each key's axis: its number, or its alternative's."""
    if entry.parameters is None:
        return [None] * len(keys)
    values = space.numbers(entry.parameters)
    places: list[float | None] = []
    for key in keys:
        if key["names"]:
            places.append(entry.parameters.get(key["key"]))
        else:
            value = values.get(key["key"])
            places.append(value if isinstance(value, int | float) and not isinstance(value, bool) else None)
    return places


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value


# ---------------------------------------------------------------------- for the script


def _data(
    record: Record, entries: Sequence[Entry], keys: Sequence[Mapping[str, Any]], points: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    settings = record.settings
    drawn = ("point", "name", "place", "value", "error", "state", "shown", "places")
    return {
        "metric": {"name": settings.metric.name, "mode": settings.metric.mode},
        "keys": list(keys),
        "points": [
            {**{key: point[key] for key in drawn}, "curves": _curves(record, point["point"])} for point in points
        ],
        "progress": _progress(record, entries),
    }


def _curves(record: Record, point: int) -> list[list[list[float | None]]]:
    """Each run's steps and values."""
    curves: list[list[list[float | None]]] = []
    for number in range(point * record.settings.repeats, (point + 1) * record.settings.repeats):
        pairs = list(record.settings.metric.values(record.folder_of(number))) if number in record.trials else []
        if len(pairs) > _MOST_OF_A_CURVE:
            every = len(pairs) / _MOST_OF_A_CURVE
            pairs = [pairs[int(place * every)] for place in range(_MOST_OF_A_CURVE)] + pairs[-1:]
        if pairs:
            curves.append([[step for step, _ in pairs], [_short(value) for _, value in pairs]])
    return curves


def _short(value: float) -> float | None:
    """Five digits, which no picture exceeds; null for what is not a number."""
    return float(f"{value:.5g}") if math.isfinite(value) else None


def _progress(record: Record, entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """The results that count, in the order in which they came: of repeats their mean, when the last of them did."""
    last = record.settings.last_rung
    came = [
        (max((trial.seen or 0.0) for trial in entry.trials), entry)
        for entry in entries
        if entry.rung == last and entry.is_whole
    ]
    return [
        {
            "point": entry.point,
            "seconds": max(0.0, round(seen - record.settings.created, 1)),
            "value": _finite(entry.value),
        }
        for seen, entry in sorted(came, key=lambda pair: pair[0])
    ]


# ---------------------------------------------------------------------- tables


def _differences(record: Record, entries: Sequence[Entry]) -> list[tuple[str, str, str]]:
    """In what the best one's recipe is another than the baseline's, as their folders tell."""
    best = leader(entries)
    if best is None or best.point == 0:
        return []
    before, after = (Run(record.folder_of(number)).recipe for number in (0, best.trials[0].number))
    keys = [key for key in dict.fromkeys([*before, *after]) if key.partition(".")[0] not in _NOT_COMPARED]
    return [(key, before.get(key, "–"), after.get(key, "–")) for key in keys if before.get(key) != after.get(key)]


def _facts(record: Record) -> Iterator[tuple[str, str]]:
    settings = record.settings
    yield "recipe", settings.recipe
    yield "space", masked(" ".join(settings.words))
    yield "metric", str(settings.metric)
    yield "method", settings.method + (f", points by {settings.draws}" if settings.draws != settings.method else "")
    if settings.rungs:
        yield (
            "rungs",
            f"{', '.join(f'{step:,}' for step in settings.rungs)} steps; of each, one in {settings.eta} goes on",
        )
    if is_sampled(settings):
        known_ones = f"proposal k knows the results of trials 0 to k − {settings.lag}"
        yield "lag", known_ones if settings.lag else "none: a proposal knows whatever was known when it was made"
    yield "seed", f"{settings.seed}, of the proposals"
    if settings.seeds:
        yield "repeats", f"each point with seeds {', '.join(map(str, settings.seeds))}"
    yield "processes", f"{settings.processes} a trial, {settings.slots} trials at a time at the start"
    yield "started", report.moment(settings.created)
