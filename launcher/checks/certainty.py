"""What `check` knew, what it measured, and what it took on trust: nothing is called right that nobody has decided."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from launcher.data.getitems import gives_batches
from launcher.data.load import Data
from launcher.data.loaders import EvaluationLoader, TrainLoader
from launcher.data.many import verdict_on
from launcher.data.subsets import is_stream, name_of
from launcher.device.kind import found
from launcher.objective.loss import APART, Objective
from launcher.objective.reading import Reading, shown
from launcher.objective.several import each
from launcher.recipe import schema
from launcher.recipe.component import components_in
from launcher.recipe.places import dotted
from launcher.recipe.schema import Recipe
from launcher.training.cut import Dependence
from launcher.training.state import TrainState
from launcher.world.world import World

KNOWN, MEASURED, TRUSTED = "known", "measured", "on trust"
_TORCHS = ("torch", "launcher")


class Finding(NamedTuple):
    """Something that decides what a run computes.

    Attributes:
        basis: `known` where the code that runs is documented, `measured` where it was called and compared, else
            `on trust`.
        text: What it is, with its key in the recipe.
    """

    basis: str
    text: str


def findings_of(recipe: Recipe, state: TrainState, world: World, depends: Dependence) -> list[Finding]:
    """What the numbers of a run rest on, the certain first.

    Args:
        recipe: The recipe.
        state: Opened for the world, its losses settled.
        world: The processes that the run is meant for.
        depends: What its numbers depend on beside the recipe.
    """
    findings = [
        *_of_losses(state.objective),
        *_of_data(state.data),
        *_of_model(state, recipe, depends),
        *_of_own_code(recipe, state),
        *_of_device(recipe, world),
    ]
    return sorted(findings, key=lambda finding: (KNOWN, MEASURED, TRUSTED).index(finding.basis))


# ---------------------------------------------------------------------- losses


def _of_losses(objective: Objective) -> Iterator[Finding]:
    for key, reading in objective.readings.items():
        if reading is not None:
            yield from _of_reading(key, reading, objective.is_whole)


def _of_reading(key: str, reading: Reading, is_whole: bool) -> Iterator[Finding]:
    why = f": {reading.why}" if reading.why else ""
    if reading.found == "known":
        yield Finding(KNOWN, f"{key}: {reading.words}{why}")
    elif reading.found == "measured" and reading.kind == "batch" and is_whole:
        yield Finding(MEASURED, f"{key}: of the whole batch, which one process takes at once{why}")
    elif reading.found == "measured":
        yield Finding(MEASURED, f"{key}: {reading.words}{why}")
    elif reading.found == "stated":
        yield Finding(TRUSTED, f"{key}: {reading.words}, as the recipe says{why}")
    else:
        yield Finding(
            TRUSTED, f"{key}: what it is a mean over is not known, and one process that takes a batch at once need not"
        )
    for where, value in reading.unless:
        text = f"{key}: that no {value:g} comes in {shown(where)}: with it, the loss is not {reading.words}; {APART}"
        yield Finding(TRUSTED, text)
    if reading.needs and not is_whole:
        yield Finding(TRUSTED, f"{key}: that each piece of a batch has something that counts, as the loss needs it")
    if reading.untold:
        yield Finding(TRUSTED, f"{key}: that it is no mean over {reading.untold}: these samples cannot tell")


# ---------------------------------------------------------------------- data


def _of_data(data: Data) -> Iterator[Finding]:
    sets: dict[str, TrainLoader | EvaluationLoader] = {
        "data.train": data.train,
        **{loader.name: loader for loader in (*data.validation.values(), *data.test.values())},
    }
    grouped: dict[Finding, list[str]] = {}
    for key, loader in sets.items():
        for finding in _of_set(loader):
            grouped.setdefault(finding, []).append(key)
    for finding, keys in grouped.items():
        yield Finding(finding.basis, f"{', '.join(keys)}: {finding.text}")


def _of_set(loader: TrainLoader | EvaluationLoader) -> Iterator[Finding]:
    dataset, collate = loader.dataset, loader.reading.collate
    if is_stream(dataset):
        yield Finding(KNOWN, "a stream, its samples in their order")
        return
    verdict = verdict_on(dataset)
    if collate is None and verdict.get_batch is not None:
        text = verdict.why or f"{name_of(dataset)}.get_batch gives what its single samples give, on a few"
        yield Finding(TRUSTED if verdict.why else MEASURED, text)
    elif loader.reads_whole_batches:
        yield Finding(KNOWN, "whole batches are its rows")
    elif gives_batches(dataset):
        yield Finding(MEASURED, "batches, as its __getitems__ gives them to torch's DataLoader")
    else:
        yield Finding(KNOWN, "its samples one by one, as torch's DataLoader reads them")
    if not loader.reading.sample_seeds:
        yield Finding(TRUSTED, "that no sample is drawn at random: data.sample_seeds is false")


# ---------------------------------------------------------------------- the rest


def _of_model(state: TrainState, recipe: Recipe, depends: Dependence) -> Iterator[Finding]:
    """How a step is cut, and what is not kept: it was measured that it moves, and not what follows."""
    if depends.fault:
        yield Finding(
            TRUSTED, f"model: that checkpoints keep all that a forward changes: it could not be tried ({depends.fault})"
        )
    for note in depends.notes(state.objective, synchronised=recipe.device.sync_batchnorm):
        yield Finding(KNOWN if note.startswith("model: BatchNorm") else TRUSTED, note)


def _of_own_code(recipe: Recipe, state: TrainState) -> Iterator[Finding]:
    for optimizer in dict.fromkeys(type(one) for one in each(state.optimizer).values()):
        if optimizer.__module__.partition(".")[0] not in _TORCHS:
            yield Finding(MEASURED, f"optimizer: what {optimizer.__name__} keeps was written, read back, and equal")
    for step in components_in(recipe.train.step):
        yield Finding(TRUSTED, f"{dotted(step.path)}: that {step.target} makes the same calls on every process")
    for after in components_in(recipe.train.after_step):
        yield Finding(TRUSTED, f"train.after_step: that {after.target} makes the same weights on every process")


def _rehearsed_in(section: schema.Device) -> str:
    return "bfloat16" if section.precision == "bf16-true" else "float32"


def _of_device(recipe: Recipe, world: World) -> Iterator[Finding]:
    section = recipe.device
    asked: Mapping[str, Any] = {
        f"precision {section.precision}": section.precision not in ("no", "bf16-true"),
        "compile": section.compile,
        "sync_batchnorm": section.sync_batchnorm,
        "a GPU's kernels": found() is not None,
    }
    untried = [what for what, is_asked in asked.items() if is_asked]
    if untried:
        yield Finding(TRUSTED, f"device: {', '.join(untried)}: the rehearsal is in {_rehearsed_in(section)} on a CPU")
    if world.size > 1:
        yield Finding(TRUSTED, f"launch: {world.size} processes: one was rehearsed, and the others are arithmetic")


def conclusion(recipe: str, findings: Sequence[Finding]) -> str:
    """The last line: it claims what was decided, and no more."""
    count = sum(finding.basis == TRUSTED for finding in findings)
    if not count:
        return f"{recipe}: nothing wrong was found"
    return f"{recipe}: nothing wrong was found in what is known or measured; on trust: {count}, named above"
