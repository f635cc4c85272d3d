"""Room on the disk: what a sweep's checkpoints and weights take at most, before it is begun and while it works."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.errors import LauncherError, UsageError
from launcher.recipe.build import Builder
from launcher.recipe.caller import option, setting
from launcher.recipe.schema import Recipe
from launcher.recipe.show import resolved
from launcher.runs.folder import AVERAGES, weights_files
from launcher.sweep.record import Record, Settings
from launcher.text import size

CHECKPOINTS = "checkpoints"
_OVERHEAD_BYTES = 32 * 1024  # of a checkpoint's files but for their tensors, of a small model
_DECIDES = ("model", "optimizer", "loss")  # sections of a recipe that decide what a checkpoint holds


@dataclass(frozen=True)
class Each:
    """What one trial puts on the disk.

    Attributes:
        checkpoint: Bytes of a checkpoint.
        weights: Bytes of its final weights.
        kept: Checkpoints that it keeps.
    """

    checkpoint: int
    weights: int
    kept: int = 1

    @property
    def left(self) -> int:
        """Of a trial that has ended, and of which all is kept."""
        return self.kept * self.checkpoint + self.weights


@dataclass(frozen=True)
class Estimate:
    """What a sweep will need.

    Attributes:
        likely: Bytes at most at once, by the mean of what its points need.
        least: The same by the smallest of them.
        each: Of the largest checkpoint.
        why: Why nothing is known; empty where it is.
    """

    likely: int = 0
    least: int = 0
    each: int = 0
    why: str = ""

    def line(self, folder: Path) -> str:
        """In words, beside what is free where a folder is or will be."""
        if self.why:
            return f"what a checkpoint takes shows in the first trial: {self.why}"
        free = free_at(folder)
        verdict = "" if self.likely <= free else ", which may not suffice"
        return f"about {size(self.likely)} at most, {size(self.each)} a checkpoint; {size(free)} are free{verdict}"

    def check(self, folder: Path, settings: Settings) -> None:
        """Refuses a sweep that plainly does not fit.

        Raises:
            UsageError: It does not.
        """
        free = free_at(folder)
        if self.least > free:
            keep = f" or leave out {setting('keep', 'all')}," if settings.keep == "all" else ""
            raise UsageError(
                f"{existing(folder)}: the sweep needs at least {size(self.least)} for checkpoints and weights, and "
                f"{size(free)} are free; write fewer {option('trials')},{keep} or a {option('run_dir')} on another disk"
            )


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(place for place in (folder, *folder.parents) if place.exists())


def free_at(folder: Path) -> int:
    """Bytes that are free where a folder is or will be; where that is not counted, more than anybody needs."""
    usage = shutil.disk_usage(existing(folder))
    return usage.free if usage.total else sys.maxsize


# ---------------------------------------------------------------------- before it is begun


def estimated(settings: Settings, recipes: Iterable[Recipe]) -> Estimate:
    """What a sweep will need, by the recipes of some of its points.

    Args:
        settings: What it is.
        recipes: The baseline's and those at the corners of its space.
    """
    from launcher.checks.stored import stored

    sizes: dict[str, Each] = {}
    why = ""
    for recipe in recipes:
        tree = resolved(recipe)
        key = json.dumps([*(tree.get(name) for name in _DECIDES), tree["train"].get("freeze")], default=str)
        if key in sizes:
            continue
        try:
            found = stored(recipe, Builder(recipe, settings.allow))
        except LauncherError as error:
            why = why or str(error).splitlines()[0]
            continue
        sizes[key] = Each(found.checkpoint + _OVERHEAD_BYTES, found.weights, _kept(recipe, settings))
    if not sizes:
        return Estimate(why=why)
    needs = [at_once(settings, settings.trials, each) for each in sizes.values()]
    return Estimate(sum(needs) // len(needs), min(needs), max(each.checkpoint for each in sizes.values()))


def _kept(recipe: Recipe, settings: Settings) -> int:
    """Checkpoints that a trial keeps, the best one beside the newest."""
    newest = 1 if "save.keep=1" in settings.how else recipe.save.keep
    return newest + (recipe.evaluate.best is not None)


def at_once(settings: Settings, trials: int, each: Each) -> int:
    """What trials hold at the moment when they hold most.

    A trial that works has one more checkpoint, which is written before an old one goes. Of those that are over all
    stays with `keep: all`, else the best point's; under halving, all trials may lie paused.
    """
    working = min(settings.slots, trials)
    if settings.keep == "all":
        held = trials * each.left
    elif settings.num_rungs > 1:
        held = trials * each.kept * each.checkpoint + settings.repeats * each.weights
    else:  # those that work, what has ended of points with runs to come, and the best
        held = min(trials, working + 2 * settings.repeats) * each.left
    return held + working * each.checkpoint


# ---------------------------------------------------------------------- while it works


def still_needed(record: Record, trial: int) -> tuple[int, int]:
    """What a sweep will take besides what its trials hold now, by what one of them does; and what is free, in bytes."""
    files = [*_checkpoints(record.folder_of(trial)), *all_weights(record.folder_of(trial))]
    sizes = {path: _size(path) for path in files}
    checkpoint = max((held for path, held in sizes.items() if path.is_dir()), default=0)
    weights = sum(held for path, held in sizes.items() if path.is_file())
    weights = weights or max((_size(path / "weights.pth") for path in files), default=0)  # of one that is paused
    each = Each(checkpoint, weights, max(1, sum(path.is_dir() for path in files)))
    whole = at_once(record.settings, record.budgets[-1], each)
    held = sum(
        _size(path)
        for number in record.trials
        for folder in [record.folder_of(number)]
        for path in (folder / CHECKPOINTS, *all_weights(folder))
    )
    return max(0, whole - held), free_at(record.folder)


def all_weights(folder: Path) -> list[Path]:
    """The files of a trial's final weights, and of their averages."""
    return [path for average in ("", *AVERAGES) for path in weights_files(folder, average)]


def _checkpoints(folder: Path) -> Sequence[Path]:
    inside = folder / CHECKPOINTS
    return list(inside.glob("step-*")) if inside.is_dir() else []


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
