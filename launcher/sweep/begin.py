"""How a sweep begins or goes on: what was asked for becomes `sweep.json`, or is compared with what stands there."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec
from pathlib import Path

from launcher.errors import UsageError
from launcher.recipe.directory import absolute, directory
from launcher.recipe.duration import Duration
from launcher.recipe.load import load_recipe
from launcher.recipe.schema import Recipe, Sweep
from launcher.runs.folder import Choice
from launcher.runs.identity import digest, identity_of
from launcher.sweep.metric import metric_of
from launcher.sweep.record import Record, Settings, create, is_sweep, more_trials
from launcher.sweep.slots import Slot, gpus_here, slots_of, threads_of_each
from launcher.sweep.space import Space, read_space

_TRIALS = 32  # where the points cannot be counted and nobody says how many
_MOST_POINTS = 100_000
_FIRST_RUNG = 25.0  # per cent
_CREATING_SECONDS = 60.0
# what may differ from one start of a sweep to the next
_FREE = ("recipe", "directory", "trials", "slots", "lag", "cpu", "how", "allow", "created", "budget")


@dataclass(frozen=True)
class Asked:
    """What a command line or a call says of a sweep; None is left to the recipe's `sweep` section.

    Attributes:
        recipe: The recipe's file.
        words: Overrides, those that vary and those that do not.
        remove: Keys taken out of the recipe.
        allow: Packages that it may name.
        run_dir: The sweep's folder, resumed if it is one.
        trials: How many runs.
        metric: What is compared.
        parallel: Trials at a time.
        processes: Of each trial.
        method: How points are chosen.
        lag: How many trials before it a proposal does not wait for.
        budget: Seconds of training, of all trials together.
        keep: Whose weights stay.
        seed: Of the proposals.
        cpu: Whether to stay on the CPU.
        join: Whether to take part where others are at work.
    """

    recipe: str
    words: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    run_dir: str | None = None
    trials: int | None = None
    metric: str | None = None
    parallel: int | None = None
    processes: int | None = None
    method: str | None = None
    lag: int | None = None
    budget: float | None = None
    keep: str | None = None
    seed: int | None = None
    cpu: bool = False
    join: bool = False


@dataclass(frozen=True)
class Sought:
    """A sweep as it was asked for, read and checked, with nothing written yet.

    Attributes:
        asked: By whom.
        recipe: The baseline.
        space: What varies.
        settings: What would stand in `sweep.json`.
        slots: Where trials run here.
    """

    asked: Asked
    recipe: Recipe
    space: Space
    settings: Settings
    slots: Sequence[Slot]


def sought(asked: Asked) -> Sought:
    """Reads what was asked for.

    Raises:
        RecipeError: All that is wrong with the recipe or the space, each with its place.
        UsageError: The rest.
    """
    space = read_space(asked.recipe, asked.words, asked.remove)
    recipe = load_recipe(asked.recipe, space.fixed, asked.remove)
    section = recipe.sweep or Sweep()
    if not space.dimensions and not space.seeds:
        raise UsageError(
            f"{asked.recipe}: nothing varies; write alternatives or a range, as in optimizer.lr=1e-4..1e-2:log"
        )
    processes = asked.processes or section.processes_per_run
    names = gpus_here(asked.cpu)
    parallel = asked.parallel or (section.parallel if isinstance(section.parallel, int) else None)
    slots = slots_of(parallel, processes, names)
    settings = _settings(asked, recipe, section, space, len(slots), processes, is_on_cpu=not names)
    return Sought(asked, recipe, space, settings, slots)


def _settings(
    asked: Asked, recipe: Recipe, section: Sweep, space: Space, slots: int, processes: int, *, is_on_cpu: bool
) -> Settings:
    repeats = max(1, len(space.seeds))
    trials = asked.trials or section.trials
    method = asked.method or section.method or _method(space, trials and -(-trials // repeats))
    trials = trials or repeats * (space.size + 1 if space.size is not None and method == "grid" else _TRIALS)
    return Settings(
        recipe=os.path.abspath(absolute(asked.recipe)),
        words=space.words,
        metric=metric_of(recipe, asked.metric or section.metric),
        digest=digest(identity_of(recipe)),
        method=method,
        draws=_draws(method, space, trials // repeats),
        trials=trials,
        slots=slots,
        lag=next((lag for lag in (asked.lag, section.lag) if lag is not None), 2 * slots),
        seed=section.seed if asked.seed is None else asked.seed,
        seeds=space.seeds,
        rungs=_rungs(recipe, section) if method == "halving" else (),
        eta=section.eta,
        remove=asked.remove,
        allow=asked.allow,
        directory=str(directory()),
        processes=processes,
        cpu=asked.cpu or is_on_cpu,
        how=tuple(_how(recipe, asked.words, slots, processes)),
        keep=asked.keep or section.keep,
        budget=asked.budget or (section.budget.amount if section.budget else None),
    )


def _method(space: Space, points: int | None) -> str:
    """All points where they can be counted and are wanted; else those that results suggest, if anybody can."""
    if space.size is not None and space.size < (points or _TRIALS):
        return "grid"
    return "tpe" if find_spec("optuna") else "random"


def _draws(method: str, space: Space, points: int) -> str:
    """How points are chosen.

    Raises:
        UsageError: They cannot be counted, or nobody would live to see their end.
    """
    if method == "grid" and space.size is None:
        ranges = [str(dimension.key) for dimension in space.dimensions if dimension.size is None]
        raise UsageError(
            f"--method grid: {', '.join(ranges)} has no number of values; give it steps, or --method random"
        )
    if method == "grid" and (space.size or 0) > _MOST_POINTS:
        raise UsageError(f"--method grid: {space.size:,} points; make it fewer, or --method random --trials N")
    if method == "halving":
        return "grid" if space.size is not None and space.size < points else "random"
    return method


def _rungs(recipe: Recipe, section: Sweep) -> tuple[float, ...]:
    """Where trials are compared, in per cent of a run.

    Raises:
        UsageError: The first of them has no place in the run's length.
    """
    first = section.first_rung
    percent = _FIRST_RUNG if first is None else _percent(first, recipe)
    rungs = []
    while percent < 100 - 1e-9:
        rungs.append(percent)
        percent *= section.eta
    if recipe.train.time is not None or not rungs:
        raise UsageError(
            "--method halving: trials are compared on their way, at a share of their length; state train.epochs or "
            "train.steps, and a sweep.first_rung below it"
        )
    return (*rungs, 100.0)


def _percent(length: Duration, recipe: Recipe) -> float:
    whole = {"percent": 100, "epochs": recipe.train.epochs, "steps": recipe.train.steps}.get(length.unit)
    if not whole:
        raise UsageError(f"sweep.first_rung: '{length}' is not a share of the run's length; write it as in 25%")
    return 100 * length.amount / whole


def _how(recipe: Recipe, words: Sequence[str], slots: int, processes: int) -> list[str]:
    """What every trial has beside what it learns: fixed at the start, as other threads would round otherwise."""
    how = []
    if recipe.launch.threads == "auto":
        how.append(f"launch.threads={threads_of_each(slots, processes)}")
    if recipe.save.average_last is None and not any(word.startswith("save.keep=") for word in words):
        how.append("save.keep=1")  # beside the best one
    return how


# ---------------------------------------------------------------------- the folder


def opened(new: Sought) -> Record:
    """The sweep's folder: made, or resumed.

    Raises:
        UsageError: It holds something else, or another sweep.
    """
    asked = new.asked
    folder = Choice(f"{new.recipe.name}-sweep", asked.run_dir, False, {}).folder()
    if not is_sweep(folder):
        if not asked.join or _may_create(folder):
            return create(folder, new.settings)
        _await(folder)
    record = Record(folder)
    _check_same(record, new.settings, asked)
    grow(record, asked.trials)
    return record


def grow(record: Record, trials: int | None) -> None:
    """Has so many runs be made, if that is more than before."""
    if trials is not None and trials > max(record.budgets):
        with record.locked():
            record.append(more_trials(trials))


def _may_create(folder: Path) -> bool:
    """Whether this is the one of several participants that makes the sweep."""
    folder.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        (folder / ".made").mkdir()
        return True
    return False


def _await(folder: Path) -> None:
    deadline = time.monotonic() + _CREATING_SECONDS
    while not is_sweep(folder):
        if time.monotonic() > deadline:
            raise UsageError(
                f"--run-dir: {folder}: another participant began to make this sweep; remove {folder / '.made'}"
            )
        time.sleep(0.1)


def _check_same(record: Record, now: Settings, asked: Asked) -> None:
    """Refuses to resume one sweep as another.

    Raises:
        UsageError: It shows both values of all that differs.
    """
    was = record.settings
    wanted = replace(now, lag=was.lag if asked.lag is None else now.lag)
    names = [field.name for field in fields(Settings) if field.name not in _FREE or field.name == "lag"]
    rows = [
        f"  {name}: was {_shown(getattr(was, name))}, is now {_shown(getattr(wanted, name))}"
        for name in names
        if getattr(was, name) != getattr(wanted, name)
    ]
    if rows:
        raise UsageError(
            f"--run-dir: {record.folder}: this is not the sweep that was begun there:\n"
            + "\n".join(rows)
            + f"\nresume it as it was (launcher sweep {record.folder}), or name another folder"
        )


def _shown(value: object) -> str:
    return " ".join(map(str, value)) or "nothing" if isinstance(value, tuple) else str(value)
