"""What comes of a sweep: the best point as a recipe, and all trials as a table for other programs."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launcher.errors import RecipeError, UsageError
from launcher.recipe.load import load_recipe
from launcher.recipe.schema import Recipe
from launcher.recipe.show import render, resolved, scalar
from launcher.recipe.yaml import parse
from launcher.sweep.grammar import flow, plain, segments
from launcher.sweep.naming import nothing_evaluated
from launcher.sweep.plan import overrides_of
from launcher.sweep.ranking import Entry, baseline_values, leader, ranked
from launcher.sweep.record import Record, Settings
from launcher.sweep.space import Space
from launcher.text import counted, number

_OWN_FILE = re.compile(r"[\w./-]+\.py(?=:\w)")


def best_recipe(record: Record, space: Space, beside: Path | None = None, *, whole: bool = False) -> str:
    """The best point as a recipe: what the sweep's recipe is, and what is put over it.

    Args:
        record: The sweep's.
        space: Its space.
        beside: The folder that the recipe shall lie in; None: any, so that it names its base by the whole path.
        whole: Whether all is written that it says, in place of a base and what differs.

    Raises:
        UsageError: No trial has a value yet.
        RecipeError: The sweep's recipe cannot be read any more.
    """
    entries = ranked(record)
    entry = leader(entries)
    if entry is None:
        raise UsageError(nothing_evaluated(record.folder))
    settings = record.settings
    overrides = overrides_of(record, space, entry.trials[0])
    if settings.seeds:
        overrides = overrides[:-1]  # its seeds were repeats of it
    recipe = load_recipe(settings.recipe, overrides, settings.remove)
    head = "".join(f"# {line}\n" for line in _said_of(entry, len(entries), record))
    if whole:
        return head + render(recipe)
    folder, base = beside or Path.cwd(), os.path.abspath(settings.recipe)
    base = os.path.relpath(base, beside) if beside is not None else base
    over = f"{head}base: {scalar(base)}\n{_differences(overrides, recipe)}"
    return over if _reads_as(over, recipe, folder, settings) else head + render(recipe)


def where_to_save(text: str, settings: Settings, beside: Path | None) -> str | None:
    """What to know of a printed recipe that calls files beside it, as the sweep's own does; None where it does not.

    Args:
        text: The recipe.
        settings: The sweep's.
        beside: The folder that it goes to; None where nobody can tell.
    """
    folder = Path(settings.recipe).parent
    called = [file for line in text.splitlines() for file in _OWN_FILE.findall(line.partition("#")[0])]
    if not called or (beside is not None and beside.resolve() == folder.resolve()):
        return None
    return f"it calls {', '.join(dict.fromkeys(called))}, which is looked for beside it: save it in {folder}"


def _said_of(entry: Entry, count: int, record: Record) -> list[str]:
    """What the figure is, and how it came about."""
    metric, seeds = record.settings.metric, len(entry.trials)
    spread = f" ± {number(entry.error)} over {seeds} seeds" if entry.error is not None else ""
    names = ", ".join(f"{trial.number:04}" for trial in entry.trials)
    value = f"{metric.name} {number(entry.value)}{spread} after {counted(entry.step, 'step')}"
    which = f"{'the baseline' if entry.point == 0 else f'trial {names}'} of {record.folder.resolve().name}"
    whole = "" if entry.rung == record.settings.last_rung else "; the sweep is not at its end"
    return [f"{value}, 1st of {counted(count, 'point')}{whole}: {which}."]


def _differences(overrides: list[str], recipe: Recipe) -> str:
    """What is put over the base, a section a line."""
    tree: dict[str, Any] = {}
    for override in overrides:
        key, _, text = override.partition("=")
        keys, value = _where(segments(key), text, recipe)
        inside = tree
        for part in keys[:-1]:
            inside = inside.setdefault(part, {})
        inside[keys[-1]] = value
    return "".join(f"{scalar(key)}: {_flow(value)}\n" for key, value in tree.items() if key != "base")


class _Yaml(str):
    """A value as it was written."""


def _where(keys: tuple[str, ...], text: str, recipe: Recipe) -> tuple[tuple[str, ...], Any]:
    """The key and value to be stated: of an item the whole list, which a mapping put over it cannot change."""
    value: Any = resolved(recipe)
    for place, key in enumerate(keys):
        if isinstance(value, list):
            return keys[:place], _Yaml(flow(value))
        value = value.get(key) if isinstance(value, Mapping) else None
    return keys, _Yaml(text)


def _flow(value: Any) -> str:
    if isinstance(value, _Yaml):
        return str(value)
    return f"{{{', '.join(f'{scalar(key)}: {_flow(item)}' for key, item in value.items())}}}"


def _reads_as(text: str, recipe: Recipe, folder: Path, settings: Settings) -> bool:
    """Whether a text is the same recipe: what was removed, for one, no base can be without."""
    from launcher.recipe.places import Problems

    root = parse(text, "best", folder, Problems())
    if root is None or settings.remove:
        return False
    try:
        values = root.plain()
        values["base"] = os.path.abspath(os.path.join(folder, values["base"]))
        return _values(load_recipe(values)) == _values(recipe)
    except RecipeError:
        return False


def _values(recipe: Recipe) -> dict[str, Any]:
    return {key: value for key, value in resolved(recipe).items() if key != "sweep"}


# ---------------------------------------------------------------------- all trials


def rows(record: Record, space: Space) -> list[dict[str, Any]]:
    """Each trial as plain values, in the order of their numbers: for pandas, or a table.

    Keys of the recipe that vary stand by their names; `value` is the metric where the trial stands, `result` at its
    end, and None where there is none.
    """
    settings, places = record.settings, {entry.point: entry.place for entry in ranked(record)}
    keys = space.keys
    beside = {key: plain(value) for key, value in baseline_values(record, space).items() if value}
    lines = []
    for trial in sorted(record.trials.values(), key=lambda each: each.number):
        point = settings.point_of(trial.number)
        shown = space.numbers(trial.parameters) if trial.parameters is not None else beside
        line: dict[str, Any] = {"trial": trial.number, "point": point, "rank": places.get(point), "state": trial.state}
        line.update({key: shown.get(key) for key in keys})
        line.update({"seed": settings.seed_of(trial.number)} if settings.seeds else {})
        line.update(metric=settings.metric.name, value=trial.values.get(trial.rung), result=trial.result)
        line.update({f"value at {step}": trial.values.get(rung) for rung, step in enumerate(settings.rungs)})
        line.update(rung=trial.rung, step=trial.step, seconds=round(trial.seconds, 3), baseline=point == 0)
        line.update(failure=trial.failures[-1] if trial.failures else None, folder=str(record.folder_of(trial.number)))
        lines.append(line)
    return lines


def table(record: Record, space: Space, form: str) -> bytes:
    """All trials in a form that other programs read: `csv`, `parquet`, or `json`, a line each.

    Raises:
        UsageError: For parquet, pyarrow is not installed.
    """
    lines = rows(record, space)
    if form == "json":
        return "".join(f"{json.dumps(_finite(line))}\n" for line in lines).encode()
    if form == "csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, list(lines[0]) if lines else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
        return text.getvalue().encode()
    return _parquet(lines)


def _finite(line: Mapping[str, Any]) -> dict[str, Any]:
    """The line with words for what is not a number in standard JSON."""
    odd = (key for key, value in line.items() if isinstance(value, float) and not math.isfinite(value))
    return {**line, **{key: str(line[key]) for key in odd}}


def _parquet(lines: list[dict[str, Any]]) -> bytes:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UsageError(
            "--table parquet: pyarrow is not installed; pip install 'torchlauncher[tables]', or --table csv"
        ) from error
    columns = {key: [line[key] for line in lines] for key in (lines[0] if lines else ())}
    plain = {key: _of_one_kind(values) for key, values in columns.items()}
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table(plain), sink)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _of_one_kind(values: list[Any]) -> list[Any]:
    """A column as it is, or as words where it holds words and numbers."""
    kinds = {
        str if isinstance(value, str) else bool if isinstance(value, bool) else float
        for value in values
        if value is not None
    }
    return [None if value is None else str(value) for value in values] if len(kinds) > 1 else values
