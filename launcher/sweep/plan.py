"""What a sweep is to be, checked before anything is written: the space against the recipe, and the settings."""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from launcher.errors import Problem, RecipeError, UsageError
from launcher.recipe.build import Builder
from launcher.recipe.caller import option, setting
from launcher.recipe.load import fields_at, kind_fault, load_recipe
from launcher.recipe.schema import Recipe, Sweep
from launcher.recipe.show import resolved
from launcher.runs.identity import digest, identity_of
from launcher.sweep.grammar import Alternative, plain, segments
from launcher.sweep.metric import metric_of
from launcher.sweep.ranges import written
from launcher.sweep.record import Parameters, Record, Settings, Trial
from launcher.sweep.samplers import check_installed, is_installed
from launcher.sweep.space import Dimension, Space, is_same
from launcher.text import brief, suggestion

_MOST_POINTS = 10_000  # of a grid
_MOST_CORNERS = 16  # of the whole space, each read as a recipe
_MOST_TOGETHER = 64  # of those of a larger space
_MOST_NUMBERS = 64  # of one key that are each read as a recipe
_DEFAULT_POINTS = 32  # where points cannot be counted
_NOTHING = object()
_FIRST_SHARE = 0.25  # of a run's length: the first rung

Source = str | os.PathLike[str] | Mapping[str, Any]


@dataclass(frozen=True)
class Sources:
    """From what every trial's recipe is read.

    Attributes:
        recipe: The file, or what would stand in it.
        remove: Keys taken out of it.
        allow: Packages that it may name.
    """

    recipe: Source
    remove: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()

    def read(self, overrides: Sequence[str]) -> Recipe:
        """The recipe of a point.

        Raises:
            RecipeError: All that is wrong with it, read and with its components looked at.
        """
        recipe = load_recipe(self.recipe, overrides, self.remove)
        Builder(recipe, self.allow).check()
        return recipe


# ---------------------------------------------------------------------- the space against the recipe


def check_space(sources: Sources, space: Space) -> Recipe:
    """Reads the recipe as it is, with every alternative and every end of a range, and at the corners of the space.

    Each key is tried by itself, the others as the recipe has them; then all together.

    Returns:
        The baseline's recipe.

    Raises:
        RecipeError: All that is wrong, with the place in the space.
    """
    baseline = sources.read(space.fixed)
    stated = baseline.document.values.get("define") or {}
    for dimension in space.dimensions:
        first, *rest = segments(dimension.key)
        if first == "define" and rest and rest[0] not in stated:
            message = f"the recipe defines no '{rest[0]}', and nothing refers to it{suggestion(rest[0], stated)}"
            raise RecipeError([Problem(dimension.place, dimension.key, message)])
    problems = _once(_problems_of_each(sources, space)) or _once(_problems_of_corners(sources, space))
    if problems:
        raise RecipeError(problems)
    return baseline


def _once(problems: Iterator[tuple[Problem, str]]) -> list[Problem]:
    """Each mistake once, with the first of the values that make it."""
    first: dict[str, Problem] = {}
    for problem, message in problems:
        first.setdefault(message, problem)
    return list(first.values())


def _problems_of_each(sources: Sources, space: Space) -> Iterator[tuple[Problem, str]]:
    for dimension in space.dimensions:
        for alternative in _telling(dimension.alternatives):
            which = "alternative " if dimension.is_choice else "with " if alternative.holes else ""
            for text in _ends(alternative):
                problems = _wrong_with(sources, [*space.fixed, f"{dimension.key}={text}"])
                for problem in problems:
                    path = "" if problem.path in ("", dimension.key) else f"{problem.path}: "
                    message = f"{which}{brief(text)}: {path}{problem.message}" if which else f"{path}{problem.message}"
                    yield Problem(dimension.place, dimension.key, message), problem.message
                if problems:
                    break  # the other ends of a range are wrong in the same way


def _problems_of_corners(sources: Sources, space: Space) -> Iterator[tuple[Problem, str]]:
    """What is wrong only where several keys vary together."""
    for changes in corners(space) if len(space.dimensions) > 1 else ():
        for problem in _wrong_with(sources, [*space.fixed, *changes]):
            yield Problem(f"space at {' '.join(changes)}", problem.path, problem.message), problem.message


def corners(space: Space) -> Iterator[list[str]]:
    """Changes that all keys make together: all combinations of their ends; of many, so many that each end is there."""
    telling = (_telling(dimension.alternatives) for dimension in space.dimensions)
    ends = [[text for each in alternatives for text in _ends(each)] for alternatives in telling]
    count = math.prod(map(len, ends))
    most = min(_MOST_TOGETHER, max(map(len, ends), default=0))
    lines = zip(*(itertools.islice(itertools.cycle(texts), most) for texts in ends), strict=True)
    for texts in itertools.product(*ends) if count <= _MOST_CORNERS else lines:
        yield [f"{dimension.key}={text}" for dimension, text in zip(space.dimensions, texts, strict=True)]


def _telling(alternatives: Sequence[Alternative]) -> Sequence[Alternative]:
    """All of them; of very many numbers, as of a range, the smallest and the largest of each kind stand for all."""
    if len(alternatives) <= _MOST_NUMBERS:
        return alternatives
    ends: dict[type, tuple[tuple[float, int], tuple[float, int]]] = {}  # by kind
    places = []
    for place, each in enumerate(alternatives):
        value = None if each.holes else plain(str(each))
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            least, most = ends.get(type(value), ((value, place), (value, place)))
            ends[type(value)] = min(least, (value, place)), max(most, (value, place))
        else:
            places.append(place)
    return [alternatives[place] for place in sorted({*places, *(end[1] for both in ends.values() for end in both)})]


def _ends(alternative: Alternative) -> list[str]:
    """An alternative as it is, or with its ranges at their lower and at their upper ends."""
    if not alternative.holes:
        return [str(alternative)]
    lows = [written(hole.range.low) for hole in alternative.holes]
    return [alternative.filled(lows), alternative.filled([written(hole.range.high) for hole in alternative.holes])]


def _wrong_with(sources: Sources, overrides: Sequence[str]) -> Sequence[Problem]:
    try:
        sources.read(overrides)
    except RecipeError as error:
        return error.problems
    return ()


def questions(space: Space, recipe: Recipe) -> list[str]:
    """What looks like a slip in a space, beside what its words alone tell: whole numbers where the recipe has none."""
    tree, lines = resolved(recipe), list(space.questions)
    for dimension in space.dimensions:
        value = _at(tree, segments(dimension.key))
        for hole in (hole for alternative in dimension.alternatives for hole in alternative.holes if not hole.keys):
            if hole.range.is_integer and isinstance(value, float) and not value.is_integer():
                real = f"{float(hole.range.low)}..{float(hole.range.high)}"
                lines.append(
                    f"{dimension.key}={hole.range} has whole numbers only, and the recipe {value}; did you mean {real}?"
                )
    return lines


def locate(space: Space, recipe: Recipe) -> Parameters | None:
    """Where the recipe as it is lies in the space; None where it lies beside it."""
    tree, parameters = resolved(recipe), dict[str, int | float]()
    for dimension in space.dimensions:
        part = _located(dimension, tree)
        if part is None:
            return None
        parameters.update(part)
    return parameters


def _located(dimension: Dimension, tree: Mapping[str, Any]) -> dict[str, int | float] | None:
    value = _at(tree, segments(dimension.key))
    for index, alternative in enumerate(dimension.alternatives):
        numbers = [_at(value, hole.keys) for hole in alternative.holes]
        if any(isinstance(number, bool) or not isinstance(number, int | float) for number in numbers):
            continue
        if not all(hole.range.holds(number) for hole, number in zip(alternative.holes, numbers, strict=True)):
            continue
        if is_same(plain(alternative.filled(numbers)), value):
            choice = {dimension.key: index} if dimension.is_choice else {}
            names = (parameter.name for parameter in dimension.holes(index))
            return {**choice, **dict(zip(names, numbers, strict=True))}
    return None


def _at(value: Any, keys: Sequence[str]) -> Any:
    """What stands at a place of a resolved recipe; where nothing does, what no value is the same as."""
    for place, key in enumerate(keys):
        if isinstance(value, list) and key.isdecimal() and int(key) < len(value):
            value = value[int(key)]
        elif isinstance(value, Mapping) and key in value:
            value = value[key]
        else:  # of the schema's own keys, those that are null are left out
            return None if place == len(keys) - 1 and key in fields_at(tuple(keys[:-1])) else _NOTHING
    return value


# ---------------------------------------------------------------------- settings


@dataclass(frozen=True)
class Length:
    """How long a run is.

    Attributes:
        steps: Optimizer steps; None where a time ends it.
        steps_per_epoch: Of one pass over the training data.
    """

    steps: int | None
    steps_per_epoch: int = 1


def settle(
    recipe: Recipe, space: Space, sources: Sources, slots: int, length: Length, stated: Mapping[str, Any] | None = None
) -> Settings:
    """What a sweep is, of what was asked for and of what follows from it.

    Args:
        recipe: The baseline's.
        space: The sweep's.
        sources: From what trials are read; the recipe as a file, absolute.
        slots: Trials at a time.
        length: Of a run.
        stated: What the command line says, by the keys of the recipe's `sweep:` section; None is not said.

    Raises:
        UsageError: It does not fit together.
    """
    asked = section_of(recipe, stated or {})
    if not space.dimensions and not space.seeds:
        raise UsageError(
            "launcher sweep: nothing varies; write KEY=VALUE,VALUE or KEY=LOW..HIGH, as in optimizer.lr=1e-4..1e-2:log"
        )
    located = locate(space, recipe)
    method = asked.method or _method(space, asked.trials)
    check_installed(method)
    points = _points(asked, space, method, located is not None)
    repeats = max(1, len(space.seeds))
    is_drawn = method in ("tpe", "cmaes", "random")
    if method == "cmaes" and not any(each.range and each.choice is None for each in space.parameters):
        raise UsageError(
            f"{setting('method', 'cmaes')}: varies ranges, and there is none; write {setting('method', 'tpe')}"
        )
    return Settings(
        recipe="" if isinstance(sources.recipe, Mapping) else os.fspath(sources.recipe),
        words=space.words,
        metric=metric_of(recipe, asked.metric, Builder(recipe, sources.allow)),
        digest=digest_of(recipe),
        method=method,
        draws=method if is_drawn else "grid" if _is_all(space, points, located is not None) else "random",
        trials=points * repeats,
        slots=slots,
        lag=2 * slots if asked.lag is None else asked.lag,
        seed=asked.seed,
        seeds=space.seeds,
        rungs=rungs(length, asked) if method == "halving" else (),
        eta=asked.eta,
        remove=sources.remove,
        allow=sources.allow,
        directory=str(Path.cwd()),
        processes=asked.processes_per_run,
        keep=asked.keep,
        budget=asked.budget.amount if asked.budget is not None else None,
    )


def section_of(recipe: Recipe, stated: Mapping[str, Any]) -> Sweep:
    """The recipe's `sweep` section, with what was said put over it.

    Raises:
        UsageError: Some of that is not what it may be.
    """
    said = {key: value for key, value in stated.items() if value is not None}
    try:
        checked = Sweep.model_validate(said)
    except ValidationError as error:
        kinds: dict[str, list[ErrorDetails]] = {}
        for detail in error.errors():
            kinds.setdefault(str(detail["loc"][0]), []).append(detail)
        raise UsageError("\n".join(f"{option(name)}: {kind_fault(each)}" for name, each in kinds.items())) from error
    return (recipe.sweep or Sweep()).model_copy(update={key: getattr(checked, key) for key in said})


def _method(space: Space, trials: int | None) -> str:
    """What is chosen where nothing is said."""
    if space.size is not None and trials is None and space.size <= 2 * _DEFAULT_POINTS:
        return "grid"
    return "tpe" if is_installed("optuna") else "random"


def _is_all(space: Space, points: int, is_inside: bool) -> bool:
    """Whether so many points are all that there are, with the baseline."""
    return space.size is not None and points == space.size + (not is_inside)


def _points(asked: Sweep, space: Space, method: str, is_inside: bool) -> int:
    """How many points are tried, the baseline included."""
    repeats = max(1, len(space.seeds))
    there_are = None if space.size is None else space.size + (not is_inside)
    stated = setting("trials", asked.trials)
    if method == "grid":
        _check_grid(space, there_are)
        assert there_are is not None
        if asked.trials is not None and asked.trials != there_are * repeats:
            raise UsageError(
                f"{stated}: the grid has {there_are * repeats:,} runs with the baseline; omit {option('trials')}, "
                f"or write {setting('method', 'random')}"
            )
        return there_are
    if asked.trials is None:
        return min(_DEFAULT_POINTS, there_are or _DEFAULT_POINTS)
    if asked.trials % repeats:
        down, up = asked.trials // repeats * repeats, (asked.trials // repeats + 1) * repeats
        nearest = f"{setting('trials', down)} or {up}" if down else setting("trials", up)
        raise UsageError(f"{stated}: each point is run with {repeats} seeds; write {nearest}")
    if there_are is not None and asked.trials > there_are * repeats:
        raise UsageError(
            f"{stated}: the space has {there_are * repeats:,} runs with the baseline; write "
            f"{setting('trials', there_are * repeats)}"
        )
    return asked.trials // repeats


def check_growth(record: Record, recipe: Recipe, space: Space, trials: int) -> None:
    """Refuses fewer trials than a sweep has, and more than its space does.

    Raises:
        UsageError: It says how many there may be.
    """
    settings, most = record.settings, max(record.budgets)
    if trials < most:
        raise UsageError(f"{setting('trials', trials)}: the sweep has {most} already; write more than that, or omit it")
    if trials == most:
        return
    is_inside = locate(space, recipe) is not None
    if settings.draws == "grid" and _is_all(space, most // settings.repeats, is_inside):
        raise UsageError(
            f"{setting('trials', trials)}: the space has {most:,} runs with the baseline, and the sweep has all; "
            "omit it"
        )
    method = settings.method if settings.method != "grid" else "random"
    _points(section_of(recipe, {"trials": trials}), space, method, is_inside)


def _check_grid(space: Space, there_are: int | None) -> None:
    if there_are is None:
        endless = next(each for each in space.parameters if each.range is not None and each.range.size is None)
        assert endless.range is not None
        raise UsageError(
            f"{setting('method', 'grid')}: {endless.key}={endless.range} has no end of values; give it a step ("
            f"{written(endless.range.low)}..{written(endless.range.high)}:STEP), a factor (:x10) or single values, or "
            f"write {setting('method', 'random')}"
        )
    if there_are > _MOST_POINTS:
        raise UsageError(
            f"{setting('method', 'grid')}: {there_are:,} points; at most {_MOST_POINTS:,} are run; write "
            f"{setting('method', 'random')} {setting('trials', 64)}"
        )


_LENGTHS = ("train", "train.epochs", "train.steps", "train.time")


def check_length(length: Length, other: Length, place: str, space: Space) -> None:
    """Refuses a point under halving whose runs are longer or shorter than the baseline's: a rung is one step for all.

    Raises:
        UsageError: It names the place in the space.
    """
    if other.steps == length.steps:
        return
    said = next((each.key for each in space.dimensions if each.key in _LENGTHS), None)
    raise UsageError(
        f"{setting('method', 'halving')}: {place}: a run has {other.steps} steps there, {length.steps} as the recipe "
        f"is, and trials are compared after the same; {f'omit {said}' if said else 'fix train.steps'}, or choose "
        "another method"
    )


def rungs(length: Length, asked: Sweep) -> tuple[int, ...]:
    """The steps at which trials are compared, the last of them the run's length.

    Raises:
        UsageError: The run's length is a time, or it is too short for two rungs.
    """
    if length.steps is None:
        raise UsageError(
            f"{setting('method', 'halving')}: train.time has no steps at which trials are compared; write train.epochs "
            "or train.steps"
        )
    if asked.first_rung is None:
        first = max(1, math.floor(_FIRST_SHARE * length.steps))
    else:
        first = asked.first_rung.in_steps(length.steps_per_epoch, length.steps)
    levels = [length.steps]
    while levels[-1] // asked.eta >= first:
        levels.append(levels[-1] // asked.eta)
    if len(levels) < 2:
        most = length.steps // asked.eta
        remedy = f"write sweep.first_rung='{most} steps', or less" if most else "choose another method"
        raise UsageError(
            f"{setting('method', 'halving')}: a run has {length.steps} step{'s' * (length.steps > 1)}, and the first "
            f"rung is at {first}; {remedy}"
        )
    return tuple(reversed(levels))


# ---------------------------------------------------------------------- a sweep that there is


def sources_of(settings: Settings) -> Sources:
    """From what the trials of a sweep are read."""
    return Sources(settings.recipe, settings.remove, settings.allow)


def overrides_of(record: Record, space: Space, trial: Trial) -> list[str]:
    """A trial's changes to the recipe; the baseline has none but its seed."""
    settings = record.settings
    parameters = None if settings.point_of(trial.number) == 0 else trial.parameters
    return space.overrides(parameters, settings.seed_of(trial.number))


def digest_of(recipe: Recipe) -> str:
    """Of all that decides a figure: what is learned, and what it is measured by and on."""
    tree = resolved(recipe)
    data, precision = tree["data"], tree["device"]["precision"]
    measured = {"data.validation": data.get("validation"), "device.precision": precision}
    measured |= {"data.collate": data.get("collate"), "evaluate": tree["evaluate"]}
    return digest(
        {**identity_of(recipe), **{key: json.dumps(value, sort_keys=True) for key, value in measured.items()}}
    )


def check_same_recipe(settings: Settings, recipe: Recipe) -> None:
    """Refuses to resume a sweep whose recipe is another by now: its figures could not be compared.

    Raises:
        UsageError: It is.
    """
    if digest_of(recipe) != settings.digest:
        raise UsageError(
            f"{settings.recipe}: is no longer the recipe that the sweep was begun with; put it back, or begin another "
            f"sweep with a {option('run_dir')} of its own"
        )
