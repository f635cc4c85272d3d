"""How a sweep begins or goes on: what was asked for becomes `sweep.json`, or is compared with what stands there."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from launcher.errors import LauncherError, UsageError
from launcher.recipe.caller import option, setting
from launcher.recipe.directory import absolute
from launcher.recipe.schema import Recipe
from launcher.recipe.show import resolved
from launcher.runs.folder import Choice
from launcher.runs.naming import is_sweep
from launcher.sweep.metric import check_metric
from launcher.sweep.plan import (
    Length,
    Sources,
    check_growth,
    check_length,
    check_same_recipe,
    check_space,
    corners,
    section_of,
    settle,
    sources_of,
)
from launcher.sweep.record import Record, Settings, create, more_trials, other_budget
from launcher.sweep.room import Estimate, estimated
from launcher.sweep.slots import Slot, slots_here, threads_of_each
from launcher.sweep.space import Space, read_space
from launcher.world.files import write_text

_CREATING_SECONDS = 60.0
_MOST_READ = 64  # corners of a space whose metric is looked for, and whose models are built to be weighed
# what may differ from one start of a sweep to the next
_SHOWN_AS = {"words": "what varies"}  # what a person calls a setting
_FREE = ("recipe", "directory", "trials", "slots", "cpu", "how", "allow", "created", "budget")


@dataclass(frozen=True)
class Asked:
    """What a command line or a call says of a sweep; None is left to the recipe's `sweep` section.

    Attributes:
        recipe: The recipe's file, or what would stand in it, as if it lay in the working directory.
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
        budget: Training that all trials together may take, as in `12 hours`.
        keep: Whose weights stay.
        seed: Of the proposals.
        cpu: Whether to stay on the CPU.
        join: Whether to take part where others are at work.
    """

    recipe: str | Mapping[str, Any]
    words: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    run_dir: str | None = None
    trials: int | None = None
    metric: str | None = None
    parallel: int | str | None = None
    processes: int | None = None
    method: str | None = None
    lag: int | None = None
    budget: str | None = None
    keep: str | None = None
    seed: int | None = None
    cpu: bool = False
    join: bool = False

    @property
    def stated(self) -> dict[str, object]:
        """By the keys of the recipe's `sweep` section; None is not said."""
        names = ("trials", "metric", "parallel", "method", "lag", "keep", "seed", "budget")
        return {**{name: getattr(self, name) for name in names}, "processes_per_run": self.processes}


@dataclass(frozen=True)
class Sought:
    """A sweep as it was asked for, read and checked, with nothing written yet.

    Attributes:
        asked: What was said.
        recipe: The baseline's.
        space: What varies.
        settings: What would stand in `sweep.json`.
        slots: Where trials run here.
        room: What it will need on the disk.
    """

    asked: Asked
    recipe: Recipe
    space: Space
    settings: Settings
    slots: Sequence[Slot]
    room: Estimate


def sought(asked: Asked, slots: Sequence[Slot] | None = None, threads: int | None = None) -> Sought:
    """Reads what was asked for, and checks all of it.

    Args:
        asked: What was said.
        slots: Where trials will run; None is this machine.
        threads: CPU threads of a trial's process; None is its share of this machine.

    Raises:
        RecipeError: All that is wrong with the recipe or the space, each with its place.
        UsageError: The rest.
    """
    source = _in_full(asked.recipe) if isinstance(asked.recipe, Mapping) else os.path.abspath(absolute(asked.recipe))
    space = read_space(source, asked.words, asked.remove)
    sources = Sources(source, asked.remove, asked.allow)
    recipe = check_space(sources, space)
    section = section_of(recipe, asked.stated)
    processes = section.processes_per_run
    is_on_cpu = asked.cpu
    if slots is None:
        slots = slots_here(section.parallel if isinstance(section.parallel, int) else None, processes, asked.cpu)
        is_on_cpu = not slots[0].gpus
    lengths = _Lengths(asked.allow) if section.method == "halving" else None
    length = Length(recipe.train.steps) if lengths is None else lengths.of(recipe)
    settings = settle(recipe, space, sources, len(slots), length, asked.stated)
    settings = replace(
        settings,
        cpu=is_on_cpu,
        how=tuple(_how(recipe, asked, threads or threads_of_each(len(slots), processes))),
    )
    points = [recipe]
    for changes in itertools.islice(corners(space), _MOST_READ):
        points.append(sources.read([*space.fixed, *changes]))
        place = f"space at {' '.join(changes)}"
        check_metric(settings.metric, points[-1], place)
        if lengths is not None:
            check_length(length, lengths.of(points[-1]), place, space)
    return Sought(asked, recipe, space, settings, slots, estimated(settings, points))


def _in_full(recipe: Mapping[str, Any]) -> Mapping[str, Any]:
    """A mapping with the paths of its bases in full: it will lie in the sweep's folder."""
    named = recipe.get("base")
    if isinstance(named, str):
        return {**recipe, "base": os.path.abspath(absolute(named))}
    if isinstance(named, list) and all(isinstance(base, str) for base in named):
        return {**recipe, "base": [os.path.abspath(absolute(base)) for base in named]}
    return recipe  # reading it says what is wrong


class _Lengths:
    """How long runs are: where that is a number of epochs the data is opened for it, once where it is the same.

    Args:
        allow: Packages that recipes may name.
    """

    def __init__(self, allow: tuple[str, ...]):
        self._allow = allow
        self._known: dict[str, Length] = {}

    def of(self, recipe: Recipe) -> Length:
        """How long a run of a recipe is."""
        if recipe.train.steps is not None or recipe.train.time is not None:
            return Length(recipe.train.steps)
        tree = resolved(recipe)
        same = json.dumps([recipe.seed, recipe.train.epochs, tree["data"], tree.get("define")], sort_keys=True)
        if same not in self._known:
            self._known[same] = _opened_length(recipe, self._allow)
        return self._known[same]


def _opened_length(recipe: Recipe, allow: tuple[str, ...]) -> Length:
    from launcher.objective.run_length import RunLength
    from launcher.recipe.build import Builder
    from launcher.training.build import open_run_data
    from launcher.world.world import World

    data = open_run_data(recipe, Builder(recipe, allow), World())
    length = RunLength.of(recipe.train, data.steps_per_epoch, data.samples_before(data.steps_per_epoch))
    return Length(length.total_steps, length.steps_per_epoch)


def _how(recipe: Recipe, asked: Asked, threads: int) -> list[str]:
    """What every trial has beside what it learns: fixed at the start, as other threads would round otherwise."""
    words = asked.words
    how = []
    if recipe.launch.threads == "auto":
        how.append(f"launch.threads={threads}")
    if recipe.save.average_last is None and not any(word.startswith("save.keep=") for word in words):
        how.append("save.keep=1")  # beside the best one
    if "wandb" in recipe.track.trackers and not recipe.track.trackers["wandb"].get("group"):
        how.append(f"track.wandb.group={recipe.name}-sweep-{time.strftime('%Y-%m-%d_%H-%M-%S')}")
    if isinstance(asked.recipe, Mapping) and recipe.train.start_from is not None:
        how.append(f"train.start_from={os.path.abspath(absolute(recipe.train.start_from))}")
    return how


# ---------------------------------------------------------------------- the folder


def opened(new: Sought, root: Path = Path("runs")) -> Record:
    """The sweep's folder: made, or resumed.

    Args:
        new: The sweep.
        root: Where runs lie, for one whose folder nobody has named.

    Raises:
        UsageError: It holds something else, or another sweep; or what the sweep needs does not fit the disk.
        RecipeError: A mapping names own code that it could not name as a file in that folder.
    """
    asked = new.asked
    place = absolute(root if asked.run_dir is None else asked.run_dir)
    if not is_sweep(place):
        new.room.check(place, new.settings)
    choice = Choice(f"{new.recipe.name}-sweep", asked.run_dir, False, {})
    folder = choice.folder(root)
    if not is_sweep(folder):
        if not asked.join or _may_create(folder):
            return _created(new, folder, choice) if isinstance(asked.recipe, Mapping) else create(folder, new.settings)
        _await(folder)
    record = Record(folder)
    _check_same(record, new.settings, asked)
    check_settled(record, asked)
    is_as_begun = asked.trials == record.settings.trials  # the same command again, whatever it grew to since
    grow(record, replace(asked, trials=None) if is_as_begun else asked, new.recipe, new.space)
    return record


def _created(new: Sought, folder: Path, choice: Choice) -> Record:
    """The folder of a sweep whose recipe is a mapping: it becomes a file there, if it reads the same as such."""
    path = folder / "recipe.yaml"
    if path.exists():
        raise UsageError(
            f"{option('run_dir')}: {folder} holds {path.name}; name a new folder, or a sweep's to resume it"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(path, new.recipe.document.text)
        settings = replace(new.settings, recipe=os.path.abspath(path))
        check_same_recipe(settings, sources_of(settings).read(new.space.fixed))
        return create(folder, settings)
    except OSError as error:
        raise UsageError(f"{option('run_dir')}: {folder} cannot be written: {error.strerror or error}") from error
    except LauncherError:
        path.unlink()
        choice.forget(folder)
        raise


def grow(record: Record, asked: Asked, recipe: Recipe, space: Space) -> None:
    """Has more runs be made, where more are asked for than before, and has another budget.

    Args:
        record: The sweep's.
        asked: What was said.
        recipe: The baseline's.
        space: The sweep's.

    Raises:
        UsageError: The budget is no time; or fewer runs are asked for, or more than the space has.
    """
    stated, lines = section_of(recipe, {"budget": asked.budget, "trials": asked.trials}), []
    if asked.trials is not None:
        check_growth(record, recipe, space, asked.trials)
        lines += [more_trials(asked.trials)] if asked.trials > max(record.budgets) else []
    if asked.budget is not None and stated.budget is not None and stated.budget.amount != record.seconds:
        lines.append(other_budget(stated.budget.amount))
    if lines:
        with record.locked():
            record.append(*lines)


def check_settled(record: Record, asked: Asked) -> None:
    """Refuses what was settled when the sweep was begun, and cannot be otherwise from now on.

    Raises:
        UsageError: It names the flag.
    """
    settings = record.settings
    others = [package for package in asked.allow if package not in settings.allow]
    if others or (asked.cpu and not settings.cpu):
        what = option("allow", others[0]) if others else setting("cpu", True)
        raise UsageError(f"{record.folder}: {what}: this sweep was begun without it and continues as it was; omit it")


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
                f"{option('run_dir')}: {folder}: another participant began to make this sweep; "
                f"remove {folder / '.made'}"
            )
        time.sleep(0.1)


def _check_same(record: Record, now: Settings, asked: Asked) -> None:
    """Refuses to resume one sweep as another.

    Raises:
        UsageError: It shows both values of all that differs.
    """
    was = record.settings
    wanted = replace(now, lag=was.lag if asked.lag is None else now.lag)
    if asked.trials is None or asked.trials != was.trials:
        wanted = replace(wanted, draws=was.draws)  # which may follow from how many there are
    rows = [
        f"  {_SHOWN_AS.get(name, name)}: was {_shown(getattr(was, name))}, is now {_shown(getattr(wanted, name))}"
        if name != "digest"
        else "  the recipe: is no longer what it was"
        for name in (field.name for field in fields(Settings) if field.name not in _FREE)
        if getattr(was, name) != getattr(wanted, name)
    ]
    if rows:
        raise UsageError(
            f"{option('run_dir')}: {record.folder}: this is not the sweep that was begun there:\n"
            + "\n".join(rows)
            + f"\nresume it as it was (launcher sweep {record.folder}), or name another folder"
        )


def _shown(value: object) -> str:
    return " ".join(map(str, value)) or "nothing" if isinstance(value, tuple) else str(value)
