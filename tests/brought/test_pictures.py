"""timm and torchvision train as a loop by hand does: models by name, transforms, detectors.

The plain tier has them beside whatever torch there is (`vision_packages.py`); the long one also runs this file with a
torch and a torchvision that fit each other, in an environment of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pictured
import pytest
import torch
import vision_packages
from PIL import Image
from places import ROOT
from tiers import rounds
from torch.utils.data import DataLoader
from worlds import in_world, result_of

from tests.brought.case import CASES
from tests.brought.of_pictures import LONG, PICTURES
from tests.brought.test_brought import VARIATIONS, differing, train_all

FITS = "2.14.1"  # a torch whose build on the package index is the one that torchvision's is made for
PARTS = Path(pictured.__file__).parent
_MISSING = vision_packages.missing()
pytestmark = [pytest.mark.vision, pytest.mark.skipif(_MISSING is not None, reason=str(_MISSING))]


def train_and_compare(folder: str, wanted: Sequence[tuple[str, str, int]], steps: int) -> dict[str, str]:
    """Trains cases as a rank of this world, whose first compares them; gives what failed."""
    vision_packages.open_vision()
    CASES.update({name: replace(case, steps=steps) for name, case in PICTURES.items()})  # of this process
    failed = train_all(folder, wanted)
    is_first = os.environ.get("RANK", "0") == "0"
    return {**differing(Path(folder), wanted), **failed} if is_first else failed


def compare(folder: Path, size: int, wanted: Sequence[tuple[str, str]], steps: int) -> None:
    """All of them in one world; every one that differs is named."""
    pictured.draw(folder / "pets")
    named = [(name, variation, size) for name, variation in wanted]
    ranks = in_world(size, train_and_compare, str(folder), named, steps, timeout=1500)
    failed = {name: said for rank in reversed(ranks) for name, said in rank.items()}
    assert not failed, "\n".join(f"--- {name}\n{said}" for name, said in failed.items())


def able(size: int, variation: str = "") -> list[str]:
    """What is trained on so many processes; a detector has no loss in an evaluation."""
    cases = [case for case in PICTURES.values() if size in case.worlds]
    return [case.name for case in cases if variation != "evaluated" or case.loss is not None]


def turn(name: str, size: int) -> str:
    """What a case meets where it does not meet every variation."""
    variations = [variation for variation in VARIATIONS if name in able(size, variation)]
    return variations[([*PICTURES].index(name) + size) % len(variations)]


@pytest.mark.parametrize("size", [1, 2])
def test_each_case_is_the_loop_by_hand(tmp_path: Path, size: int) -> None:
    """On one process what is not for two, each in a variation."""
    names = [name for name in able(size) if name not in LONG and (size == 2 or 2 not in PICTURES[name].worlds)]
    compare(tmp_path, size, [(name, turn(name, size)) for name in names], 6)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("variation", VARIATIONS)
@pytest.mark.parametrize("size", [1, 2])
def test_each_case_meets_every_variation(tmp_path: Path, size: int, variation: str) -> None:
    """The large ones meet one of them."""
    names = [name for name in able(size, variation) if name not in LONG or turn(name, size) == variation]
    compare(tmp_path, size, [(name, variation) for name in names], 20)


@pytest.mark.long
@pytest.mark.timeout(14400)
@pytest.mark.skipif(not vision_packages.FOLDER.is_dir(), reason="torchvision fits the torch that is installed")
def test_all_of_this_file_with_a_torch_that_fits() -> None:
    """In an environment of its own, which takes minutes and gigabytes the first time."""
    command = [str(ROOT / "scripts" / "test"), "--torch", FITS, "--long", "-m", "vision"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode == 2 and "pip cannot get" in done.stderr:
        pytest.skip(f"torch {FITS} cannot be installed here: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


# ---------------------------------------------------------------------- commands, in a process of their own

PETS = """
name: pets
data:
  train:
    _target_: ImageFolder
    root: pets
    transform: {_target_: launcher.datasets.Preprocess, of: MODEL, training: true}
  validation:
    _target_: ImageFolder
    root: pets
    classes: "${data.train.classes}"
    transform: {_target_: launcher.datasets.Preprocess, of: MODEL}
  global_batch_size: 10
model: {_target_: timm.create_model, model_name: test_vit, pretrained: false, num_classes: 3}
loss: {_target_: CrossEntropyLoss}
optimizer: {_target_: SGD, lr: 0}
evaluate: {metrics: {accuracy: {_target_: MulticlassAccuracy, num_classes: 3}}}
train: {steps: 2, start_from: pretrained.pth}
launch: {threads: 1}
""".replace("MODEL", "test_vit.r160_in1k")
TOGETHER = 7  # pictures in a batch: with others they are rounded otherwise, and boxes of nearly one score change places
DETECTOR = """
name: boxes
data:
  train: {_target_: "pictured.py:Boxes"}
  validation: {_target_: "pictured.py:Boxes"}
  global_batch_size: 10
  collate: {_ref_: "pictured.py:listed"}
batch: {inputs: [0, 1], targets: [1]}
model: {_target_: "pictured.py:detector"}
loss: model
optimizer: {_target_: SGD, lr: 0.02, momentum: 0.9}
evaluate:
  batch_size: TOGETHER
  metrics: {map: {_target_: torchmetrics.detection.MeanAveragePrecision}}
  best: {metric: map/map, mode: max}
train: {epochs: 1}
launch: {threads: 1}
""".replace("TOGETHER", str(TOGETHER))


def pretrain(folder: str) -> None:
    """A file of weights as timm's users have it, for other classes."""
    vision_packages.open_vision()
    model = pictured.named("timm.create_model", model_name="test_vit", num_classes=7)
    torch.save(model.state_dict(), f"{folder}/pretrained.pth")


def classes_by_hand(folder: str) -> list[str]:
    """What the run's weights say of each picture."""
    vision_packages.open_vision()
    model = pictured.named("timm.create_model", model_name="test_vit", num_classes=3).eval()
    weights, pretrained = (
        torch.load(f"{folder}/{name}", weights_only=True) for name in ("run/model_weights.pth", "pretrained.pth")
    )
    assert all(torch.equal(value, pretrained[name]) for name, value in weights.items() if not name.startswith("head."))
    model.load_state_dict(weights)
    transform = pictured.of_timm("test_vit.r160_in1k")
    pictures = [Image.open(path).convert("RGB") for path in sorted(Path(folder, "new").iterdir())]
    with torch.no_grad():
        return [pictured.NAMES[model(transform(picture)[None]).argmax()] for picture in pictures]


def test_pictures_of_a_folder_by_the_model_s_own_transform(tmp_path: Path) -> None:
    """Weights of a file, the head for other classes left out; the run knows what its classes are called."""
    (tmp_path / "recipe.yaml").write_text(PETS)
    pictured.draw(tmp_path / "pets")
    in_world(1, pretrain, str(tmp_path))
    said = vision_packages.launcher(tmp_path, "train", "recipe.yaml", "--cpu", "--run-dir", "run")
    assert "of another shape: head.weight, head.bias" in said
    (tmp_path / "pets").rename(tmp_path / "gone")
    (tmp_path / "new").mkdir()
    for number, path in enumerate(sorted((tmp_path / "gone").rglob("*.png"))[::3]):
        path.rename(tmp_path / "new" / f"{number}.png")
    vision_packages.launcher(tmp_path, "predict", "run", "new", "--cpu", "--to", "out.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["class"] for row in rows] == in_world(1, classes_by_hand, str(tmp_path))[0]


def precision_by_hand(folder: str) -> float:
    """The mean average precision of the run's weights, over all pictures, in batches of as many."""
    from torchmetrics.detection import MeanAveragePrecision

    model = pictured.detector().eval()
    model.load_state_dict(torch.load(f"{folder}/run/model_weights.pth", weights_only=True))
    metric = MeanAveragePrecision()
    for pictures, targets in DataLoader(pictured.Boxes(), TOGETHER, collate_fn=pictured.listed):
        with torch.no_grad():
            metric.update(model(pictures), targets)
    return float(metric.compute()["map"])


@rounds("epochs", plain=[1], long=[8])
def test_a_detector_is_measured_by_its_boxes(tmp_path: Path, epochs: int) -> None:
    (tmp_path / "recipe.yaml").write_text(DETECTOR)
    for name in ("pictured.py", "nets.py", "sets.py"):
        shutil.copy(PARTS / name, tmp_path)
    vision_packages.launcher(tmp_path, "train", "recipe.yaml", "--cpu", "--run-dir", "run", f"train.epochs={epochs}")
    found = result_of(tmp_path / "run").column("map/map", "validation")
    measure = "from tests.brought import test_pictures as own; print(own.precision_by_hand(sys.argv[2]))"
    said = vision_packages.python(ROOT, f"sys.path.append(sys.argv[1]); {measure}", str(PARTS), str(tmp_path))
    assert found[-1] == pytest.approx(float(said.split()[-1]), rel=1e-4)
    assert found[-1] > 0  # else nothing was compared
