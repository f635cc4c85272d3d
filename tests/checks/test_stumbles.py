"""What people stumbled over: mistakes whose message names the remedy, and what a plan or a check says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from places import RECIPES

from launcher.cli.main import main

RECIPE = str(RECIPES / "waves.yaml")
PLAIN = "loss={_target_: CrossEntropyLoss}"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["evaluate.early_stop=4"], "write {patience: 4}"),
        (["evaluate.best=accuracy"], "write {metric: accuracy, mode: max}"),
        (["evaluate.best=loss"], "write {metric: loss, mode: min}"),
        (["data.validation=0.2"], "write '20% of train'"),
        (
            ["evaluate.metrics={accuracy: {_target_: MulticlassAccuracy, num_classes: 5}}"],
            "the outputs have 2 classes and the metric 5: evaluate.metrics.accuracy.num_classes=2",
        ),
        (["data.train._target_=waves.py:TooLong", "data.validation=null"], "does its __len__ say too"),
    ],
)
def test_a_mistake_is_told_with_its_remedy(
    capsys: pytest.CaptureFixture[str], overrides: list[str], message: str
) -> None:
    assert main(["check", RECIPE, PLAIN, *overrides]) != 0
    assert message in capsys.readouterr().err


def test_pictures_of_several_sizes_are_told_how_to_be_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(4):
        for kind in ("cat", "dog"):
            (tmp_path / "photos" / kind).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8 + number, 9)).save(tmp_path / "photos" / kind / f"{number}.png")
    photos = f"data.train={{_target_: ImageFolder, root: {tmp_path / 'photos'}}}"
    assert main(["check", RECIPE, photos, "data.validation=null"]) != 0
    assert "set data.train.size=8, or make them alike" in capsys.readouterr().err


def test_a_batch_larger_than_the_set_is_a_question(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", RECIPE, "data.global_batch_size=64"]) == 0
    assert "question     data.global_batch_size: 64 is more than the 30 training samples" in capsys.readouterr().out


def test_a_loss_beside_a_step_function_is_said_to_be_unused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", RECIPE, "train.step=waves.py:training_step"]) == 0  # which gives a tensor, as Lightning's
    printed = capsys.readouterr().out
    assert "note         loss: is not used, since train.step gives the loss" in printed
    assert main(["check", RECIPE, "train.step=waves.py:training_step", "--remove", "loss"]) == 0
    assert "is not used" not in capsys.readouterr().out


def test_one_step_number_in_all_that_is_said_of_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train.epochs=5", "data.workers=0", "launch.threads=1", "track.every=10 steps", "data.validation=null"]
    command = ["train", RECIPE, "--cpu", "--json", "--run-dir", str(tmp_path / "run")]
    with pytest.raises(SystemExit):
        main([*command, "loss={_target_: waves.py:Failing}", *words])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    steps = {line["step"] for line in lines if line["kind"] in ("end", "failure")}
    assert steps == {13}
