"""What was found is tried again: losses that a model or a step brings, and what only a run can show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from places import RECIPES
from worlds import in_world, result_of, train_here

from launcher.errors import LauncherError

RECIPE = str(RECIPES / "counted.yaml")
VECTORS = ("data.train={_target_: counted.py:Vectors}", "data.validation={_target_: counted.py:Vectors}")
EVALUATED = (*VECTORS, "evaluate.every=3 steps", "data.micro_batch_size=4")
STEP = (*EVALUATED, "train.step=depends.py:changing_step")
TURNS = (
    *EVALUATED,
    "train.step={steady: depends.py:steady_step, changing: depends.py:changing_step}",
    "optimizer={steady: {_target_: SGD, lr: 0.1, _params_: '*.bias'}, "
    "changing: {_target_: SGD, lr: 0.1, _params_: '*.weight'}}",
)
MODEL = (*EVALUATED, "loss=model", "model={_target_: depends.py:Changing}", "batch={inputs: [0, 1], targets: []}")
LATE = (VECTORS[0], "data.micro_batch_size=4", "train.step=depends.py:step_that_changes_late", "train.steps=120")


def refused_here(folder: str, overrides: tuple[str, ...]) -> str:
    """What a run ends with."""
    remove = ("loss",) if any(override.startswith("train.step") for override in overrides) else ()
    try:
        return train_here(folder, overrides, RECIPE, remove)
    except LauncherError as error:
        return str(error)


def all_refused(folder: str, cases: dict[str, tuple[str, ...]]) -> dict[str, str]:
    return {name: refused_here(f"{folder}/{name}", overrides) for name, overrides in cases.items()}


@pytest.mark.parametrize("size", [1, 2])
def test_a_loss_that_becomes_another_ends_the_run_at_an_evaluation_or_an_epoch(tmp_path: Path, size: int) -> None:
    ends: list[dict[str, Any]] = in_world(
        size, all_refused, str(tmp_path), {"step": STEP, "turns": TURNS, "model": MODEL, "late": LATE}
    )
    assert ends[0]["turns"].startswith("train.step.changing: is not a mean over samples on this batch ("), ends[0][
        "turns"
    ]
    assert ends[0]["step"].startswith("train.step: is not a mean over samples on this batch ("), ends[0]["step"]
    assert ends[0]["step"].endswith("off; fix the loss, or name what it counts as train.count")
    assert ends[0]["late"].startswith("train.step: is not a mean over samples on this batch ("), ends[0]["late"]
    # one that counts its own calls is measured from the state that it is in, and becomes another as it is trained
    assert ends[0]["model"].startswith("loss: is not a mean over samples on this batch ("), ends[0]["model"]


def train_taught(folder: str) -> None:
    own = ("data.train={_target_: counted.py:Vectors}", "model={_target_: depends.py:Taught}")
    evaluated = ("data.validation={_target_: counted.py:Vectors}", "evaluate={every: 1 steps, batch_size: 4}")
    for name, more in (("plain", ()), ("evaluated", evaluated)):
        train_here(f"{folder}/{name}", (*own, *more, "train.step=depends.py:taught_step"), RECIPE, ("loss",))


def test_a_teacher_that_a_step_moves_is_moved_by_steps_alone(tmp_path: Path) -> None:
    in_world(1, train_taught, str(tmp_path))
    assert result_of(tmp_path / "plain").distance(result_of(tmp_path / "evaluated")) == 0


# ---------------------------------------------------------------------- told before the first step

MIXED = ("data.train={_target_: counted.py:Vectors}", "data.collate={train: {_ref_: depends.py:mixed}}")
OPENED = {
    "mixed": MIXED,
    "mixed, own loss": (*MIXED, "loss={_ref_: depends.py:squared}"),
    "grows": (VECTORS[0], "model={_target_: depends.py:Remembering, grows: true}"),
    "appears": (VECTORS[0], "model={_target_: depends.py:Remembering}"),
}


def test_a_collate_that_mixes_is_measured_on_its_rows_and_what_grows_is_refused_at_once(tmp_path: Path) -> None:
    """Collated again in pieces, samples would be mixed otherwise: that says nothing of the loss."""
    ends: dict[str, str] = in_world(2, all_refused, str(tmp_path), OPENED)[0]
    assert (ends["mixed"], ends["mixed, own loss"]) == ("finished", "finished")
    for name in ("grows", "appears"):
        assert ends[name].startswith("model: 'seen' has appeared or grown since it was built"), ends[name]
        assert not (tmp_path / name / "metrics.jsonl").exists()
