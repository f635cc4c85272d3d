"""What a run has saved, found by the name that a user gives: its recipe and its weights."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from launcher.checkpoints import format as checkpoints
from launcher.checkpoints.format import TRAINING, Checkpoint
from launcher.checkpoints.plain import restored
from launcher.checkpoints.weights import find_weights, read_weights, stored_weights
from launcher.errors import UsageError
from launcher.model.adapt import Base, Built, changed_base
from launcher.model.bfloat16 import held_for_a_while
from launcher.model.build import Model
from launcher.model.rows import read_whole
from launcher.model.sharding import Shards
from launcher.recipe import schema
from launcher.recipe.build import Builder
from launcher.recipe.directory import shortest
from launcher.recipe.load import load_recipe
from launcher.recipe.schema import Recipe
from launcher.runs import folder as runs
from launcher.world.world import World

CLASSES = "data.train.classes"  # what `${…}` calls them


@dataclass(frozen=True)
class Saved:
    """A recipe and weights that belong to it.

    Attributes:
        recipe: The run's, or the one that was named.
        source: A file of weights, or a verified checkpoint.
        allow: Further packages that the recipe may name.
        directory: Where the run was started: relative paths and files of one's own are looked for there. None is here.
    """

    recipe: Recipe
    source: Path | Checkpoint
    allow: tuple[str, ...] = ()
    directory: Path | None = None

    @property
    def label(self) -> str:
        """Where the weights come from: the path of the checkpoint, or of the file."""
        return _place_of(self.source)

    @property
    def at(self) -> tuple[int, float]:
        """Optimizer steps that made them, and passes over the data; zeros where that is not known."""
        return _made_at(self.source)

    def weights(self) -> Mapping[str, Any]:
        """The unwrapped state_dict, on the CPU: tensors that are read when they are used, or ones in files.

        Raises:
            LauncherError: The file cannot be read.
        """
        return stored_weights(self.source)

    def averaged(self) -> Mapping[str, Any] | None:
        """The weights with averages of those that were trained, where the run had them; read when they are used."""
        if isinstance(self.source, Checkpoint):
            average = self.source.lazily(TRAINING).get("average")
            return {**self.weights(), **average["parameters"]} if average else None
        beside = (
            [runs.weights_of(self.source.parent, kind) for kind in ("ema", "swa")] if _is_final(self.source) else []
        )
        there = next((path for path in beside if path is not None), None)
        return stored_weights(there) if there is not None else None

    def readings(self) -> Mapping[str, Any]:
        """What each loss is a mean over, as the run found it; empty where no checkpoint is beside these weights."""
        source = _checkpoint_of(self.source)
        return source.manifest.get("loss", {}) if source is not None else {}

    def losses(self) -> Mapping[str, Any]:
        """States of losses and step functions, by key, as `weights`; empty where none are beside these weights."""
        source = _checkpoint_of(self.source)
        training = source.lazily(TRAINING) if source is not None else {}
        own = {name: state for name, state in training.items() if name.partition(".")[0] in ("loss", "train", "batch")}
        return {name: restored(state) for name, state in own.items()}

    def classes(self) -> list[str]:
        """The names of the training set's classes, as the run has written them down."""
        folder = self.source.folder.parent.parent if isinstance(self.source, Checkpoint) else self.source.parent
        names = runs.read_json(folder / runs.ENVIRONMENT_FILE).get("classes")
        return [str(name) for name in names] if isinstance(names, list) else []

    def base(self) -> str:
        """The hash of the base that an adapter among these weights was trained on; empty where that is not known."""
        return _base_of(self.source)


def _made_at(source: Path | Checkpoint) -> tuple[int, float]:
    """Optimizer steps that made weights, and passes over the data; zeros where that is not known."""
    if isinstance(source, Checkpoint):
        return source.step, round(float(source.manifest["epoch"]), 6)
    is_final = any(_is_final(source, average) for average in ("", *runs.AVERAGES))
    entry = runs.read_json(source.parent / runs.STATUS_FILE).get("weights", {}) if is_final else {}
    return int(entry.get("step", 0)), float(entry.get("epoch", 0.0))


def _is_final(source: Path | Checkpoint, average: str = "") -> bool:
    """Whether these are final weights of a run, or an average of them."""
    return isinstance(source, Path) and source in runs.weights_files(source.parent, average)


def _checkpoint_of(source: Path | Checkpoint) -> Checkpoint | None:
    """The checkpoint that weights are of."""
    if isinstance(source, Checkpoint):
        return source
    if _is_final(source):
        with suppress(checkpoints.DamagedError):
            return checkpoints.verify(source.parent / "checkpoints" / checkpoints.name_of(_made_at(source)[0]))
    return None


def _base_of(source: Path | Checkpoint) -> str:
    checkpoint = _checkpoint_of(source)
    return str(checkpoint.manifest.get("base", "")) if checkpoint is not None else ""


def builder_of(saved: Saved) -> Builder:
    """Builds what the recipe of saved weights names; `${data.train.classes}` is what the run's training set had."""
    builder = Builder(saved.recipe, saved.allow, saved.directory)
    if names := saved.classes():
        builder.computed[CLASSES] = names
    return builder


def evaluated_on(section: schema.Device, world: World, on_cpu: bool) -> schema.Device:
    """How a saved model is computed with: what only training needs is left out, and what a CPU has not."""
    changes: dict[str, Any] = {"recompute": False, "sharding": section.sharding if world.size > 1 else "none"}
    if on_cpu:
        changes |= {"precision": "no" if section.precision == "fp16" else section.precision, "sync_batchnorm": False}
    return section.model_copy(update=changes)


def fill(model: Built | Model, saved: Saved, shards: Shards | None = None) -> None:
    """Puts saved weights into the model of their recipe.

    Args:
        model: The model.
        saved: The weights.
        shards: What this process holds of it, where it is sharded: that is read.

    Raises:
        UsageError: They do not fit, or its frozen base is another.
    """
    with _fitting(saved.label, "the recipe's model"):
        if shards is None:
            model.load_state_dict(read_whole(saved.weights()))
        else:
            shards.load_module(shards.modules[""], saved.weights(), casts=True)
    if model.base is None or not (kept := saved.base()):
        return
    as_made = model.module if isinstance(model, Built) and saved.recipe.device.precision == "bf16-true" else None
    with nullcontext() if as_made is None else held_for_a_while(as_made):
        now = model.base_sha256()
    if now != kept:
        raise UsageError(changed_base(saved.label, kept, now))


def take_weights(model: nn.Module, source: Path | Checkpoint) -> None:
    """Puts saved weights into a module, wherever it comes from; an adapter's into one that stands on its own base.

    Raises:
        UsageError: They do not fit, or its frozen base is another.
    """
    weights, kept = read_weights(source), _base_of(source)
    names = (name for name, _ in model.named_parameters(remove_duplicate=False) if name not in weights)
    built = Built(model, Base(frozenset(names), {}) if kept else None)
    with _fitting(_place_of(source), "the model"):
        built.load_state_dict(weights)
    if kept and (now := built.base_sha256()) != kept:
        raise UsageError(changed_base(_place_of(source), kept, now, "the model that you pass"))


@contextmanager
def _fitting(label: str, what: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError) as error:
        words = " ".join(str(error).split())
        raise UsageError(f"{label} does not fit {what}: {words[:300]}") from error


def _place_of(source: Path | Checkpoint) -> str:
    return shortest(source.folder if isinstance(source, Checkpoint) else source)


def find_saved(
    path: Path, recipe: str | None = None, overrides: Sequence[str] = (), remove: Sequence[str] = ()
) -> Saved:
    """Finds recipe and weights of a run's folder, one of its checkpoints, or a file of weights.

    A run's are its final weights, or those of its newest checkpoint where it is not finished.

    Args:
        path: What was saved.
        recipe: In place of the run's; needed for a file outside of a run.
        overrides: Changes to the recipe.
        remove: What to take out of it.

    Raises:
        UsageError: There is nothing saved there, or no recipe.
        DamagedError: The checkpoint is damaged.
    """
    path = path.absolute()
    source = find_weights(path)
    run = source.folder.parent.parent if isinstance(source, Checkpoint) else source.parent
    if recipe is not None:
        return Saved(load_recipe(recipe, overrides, remove), source)
    how = runs.read_json(run / runs.ENVIRONMENT_FILE)
    if how.get("objects"):
        listed = ", ".join(how["objects"])
        raise UsageError(
            f"{run}: it was started from Python with {listed}; use what launcher.train() returned, "
            f"launcher.load(RUN, model=…), which puts {_place_of(source)} into a module, or a command with --recipe"
        )
    if "recipe" not in how and "overrides" in how:  # a mapping from Python, which the run has written down
        read = load_recipe(_mapping_of(run), [*how["overrides"], *overrides], remove)
        return Saved(read, source, tuple(how.get("allow", ())), Path(how["directory"]))
    if "recipe" not in how:
        remedy = "name their recipe: --recipe FILE" if path.is_file() else "`launcher runs` lists the runs"
        raise UsageError(f"{path}: neither a run's folder nor something in one; {remedy}")
    directory = Path(how["directory"])
    if not directory.is_dir():
        raise UsageError(f"the run was started in {directory}: {os.strerror(errno.ENOENT)}")
    runs.check_recipe_file(run, how["recipe"])
    read = load_recipe(how["recipe"], [*how["overrides"], *overrides], [*how["remove"], *remove])
    return Saved(read, source, tuple(how["allow"]), directory)


def _mapping_of(run: Path) -> Mapping[str, Any]:
    """The recipe that a run has written down.

    Raises:
        UsageError: It cannot be read.
    """
    try:
        values = yaml.safe_load((run / runs.RECIPE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UsageError(f"{run / 'recipe.yaml'} cannot be read: {error}; pass --recipe") from error
    return values if isinstance(values, dict) else {}
