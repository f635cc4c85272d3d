"""Transforms of whole batches where the model is: in training alone unless said, seeded by step, resumed."""

from __future__ import annotations

import json
import re
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from projects import make
from torch import nn
from torch.nn.functional import one_hot

import launcher
from launcher.cli.main import main
from launcher.data.mixing import CutMix, Mixup
from launcher.errors import LauncherError

Pair = namedtuple("Pair", "picture label")


def pictures() -> tuple[Any, Any]:
    return torch.arange(4.0).reshape(4, 1, 1, 1).expand(4, 3, 8, 8).clone(), torch.tensor([0, 1, 2, 1])


@pytest.mark.parametrize("kind", [Mixup, CutMix])
def test_pictures_and_classes_are_mixed_alike(kind: type) -> None:
    inputs, targets = pictures()
    torch.manual_seed(3)
    mixed, wanted = kind(3, alpha=1.0)([inputs, targets])
    assert mixed.shape == inputs.shape
    torch.testing.assert_close(wanted.sum(1), torch.ones(4))
    order = next(
        order
        for order in torch.cartesian_prod(*[torch.arange(4)] * 4)
        if sorted(order.tolist()) == [0, 1, 2, 3]
        and torch.allclose(mixed.mean((1, 2, 3)), _of_means(inputs, order, mixed), atol=1e-5)
    )
    left = _left(inputs, order, mixed)
    expected = one_hot(targets, 3) * left + one_hot(targets[order], 3) * (1 - left)
    torch.testing.assert_close(wanted, expected.float(), atol=1e-4, rtol=1e-4)


def _left(inputs: Any, order: Any, mixed: Any) -> float:
    """How much is left of each, from the first that changed."""
    row = next((row for row in range(4) if order[row] != row), 0)
    own, other = float(inputs[row].mean()), float(inputs[order[row]].mean())
    return (float(mixed[row].mean()) - other) / (own - other) if own != other else 1.0


def _of_means(inputs: Any, order: Any, mixed: Any) -> Any:
    left = _left(inputs, order, mixed)
    return inputs.mean((1, 2, 3)) * left + inputs[order].mean((1, 2, 3)) * (1 - left)


def test_a_batch_keeps_its_form_and_what_else_it_holds() -> None:
    inputs, targets = pictures()
    mixed = Mixup(3, input="x", target="y")({"x": inputs, "y": targets, "id": [1, 2, 3, 4]})
    assert list(mixed) == ["x", "y", "id"]
    assert mixed["id"] == [1, 2, 3, 4]
    assert isinstance(CutMix(3)(Pair(inputs, targets)), Pair)
    assert isinstance(CutMix(3)((inputs, targets)), tuple)
    assert inputs[0].sum() == 0  # the batch itself is left as it was
    with pytest.raises(ValueError, match="above 0"):
        Mixup(3, alpha=0)


RECIPE = """
data:
  train: {_target_: parts.py:Rows}
  validation: {_target_: parts.py:Rows}
  global_batch_size: 8
  on_device: CHANGE
model: {_target_: parts.py:Net}
loss: {_target_: CrossEntropyLoss}
optimizer: {_target_: SGD, lr: 0.1}
train: {steps: 12}
evaluate: {every: 6 steps}
save: {every: 5 steps}
track: {every: 1 steps}
"""
PARTS = """
import os
import random

import torch
from torch.utils.data import TensorDataset

def shaken(batch):
    rows, classes = batch
    return rows + random.random() + torch.rand(()), classes

def moved(batch):
    return batch[0] + 100, batch[1]

def turn(model, batch, at):
    return {"loss": torch.nn.functional.cross_entropy(model(batch[0]), batch[1])}

class Net(torch.nn.Linear):
    def __init__(self):
        super().__init__(4, 5)
        self.calls = 0

    def forward(self, rows):
        if self.training:
            self.calls += 1
            if self.calls == int(os.environ.get("FAILS_AT", 0)):
                raise ArithmeticError("here it fails")
        with open(os.environ["SEEN"], "a") as file:  # all else is put back after an evaluation
            file.write(f"{int(self.training)} {float(rows.max())}\\n")
        return super().forward(rows)

class Rows(TensorDataset):
    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        super().__init__(torch.rand(60, 4, generator=generator), torch.arange(60) % 5)
"""


@pytest.mark.parametrize("change", ["parts.py:shaken", "{_target_: Mixup, classes: 5}"])
def test_a_run_changes_its_batches_alike_after_a_resume(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make(tmp_path / "project", RECIPE.replace("CHANGE", change), parts=PARTS)
    monkeypatch.setenv("SEEN", str(tmp_path / "seen"))
    whole = launcher.train(recipe, cpu=True, run_dir=tmp_path / "whole", output="quiet")
    highest = seen_in(tmp_path / "seen")
    plain = launcher.train(recipe, "data.on_device=null", cpu=True, run_dir=tmp_path / "plain", output="quiet")
    monkeypatch.setenv("FAILS_AT", "8")
    with pytest.raises(ArithmeticError):
        launcher.train(recipe, cpu=True, run_dir=tmp_path / "cut", output="quiet")
    monkeypatch.delenv("FAILS_AT")
    again = launcher.train(recipe, cpu=True, run_dir=tmp_path / "cut", resume=True, output="quiet")
    assert torch.equal(whole.model.weight, again.model.weight)
    assert not torch.equal(whole.model.weight, plain.model.weight)
    assert max(highest[False]) <= 1  # not in evaluation


def seen_in(path: Path) -> dict[bool, list[float]]:
    """The highest number of each batch that the model has got, by whether it was in training mode."""
    lines = [line.split() for line in path.read_text().splitlines()]
    return {mode: [float(high) for training, high in lines if int(training) == mode] for mode in (True, False)}


def test_evaluation_has_its_own_where_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEEN", str(tmp_path / "seen"))
    change = "{train: {_ref_: parts.py:shaken}, evaluate: {_ref_: parts.py:moved}}"
    recipe = make(tmp_path / "project", RECIPE.replace("CHANGE", change), parts=PARTS)
    launcher.train(recipe, cpu=True, run_dir=tmp_path / "run", output="quiet")
    highest = seen_in(tmp_path / "seen")
    assert min(highest[False]) > 100
    assert max(highest[True]) < 4


def test_every_turn_of_a_step_gets_the_changed_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEEN", str(tmp_path / "seen"))
    turns = "optimizer: {weight: {_target_: SGD, lr: 0.1, _params_: weight}, bias: {_target_: SGD, lr: 0.1}}\n"
    text = RECIPE.replace("CHANGE", "parts.py:moved").replace("optimizer: {_target_: SGD, lr: 0.1}\n", turns)
    text = text.replace("loss: {_target_: CrossEntropyLoss}\n", "")
    text = text.replace("{steps: 12}", "{steps: 2, step: {weight: parts.py:turn, bias: parts.py:turn}}")
    recipe = make(tmp_path / "project", text, parts=PARTS)
    launcher.train(recipe, cpu=True, run_dir=tmp_path / "run", output="quiet")
    highest = seen_in(tmp_path / "seen")
    assert max(highest[True]) > 100  # a loss is measured on what is read
    assert max(highest[False]) <= 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("{_target_: Mixup}", "classes"),
        ("{test: {_target_: Mixup, classes: 3}}", "has 'test'; allowed: train, evaluate, each a transform"),
        ("3", "on_device"),
        ("{_target_: torch.nn.Linear, in_features: 1, out_features: 1, colour: red}", "colour"),
    ],
)
def test_what_is_no_transform_is_refused(change: str, words: str, tmp_path: Path) -> None:
    recipe = make(tmp_path / "project", RECIPE.replace("CHANGE", change), parts=PARTS)
    with pytest.raises(LauncherError, match=words):
        launcher.train(recipe, cpu=True, run_dir=tmp_path / "run", output="quiet")


COUNTS = """
import torch
from torch.nn import functional
from torch.utils.data import TensorDataset

ROWS = torch.rand(32, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
CLASSES = torch.arange(32) % 3

def train(): return TensorDataset(ROWS, CLASSES)
def values(): return TensorDataset(ROWS, ROWS.sum(1, keepdim=True).expand(-1, 3).clone())
def some(): return TensorDataset(ROWS, torch.where(torch.arange(32) % 3 == 0, -100, CLASSES))

class Net(torch.nn.Linear):
    def __init__(self, out=3):
        super().__init__(4, 3, dtype=torch.float64)

def mask(batch):
    return batch[0], torch.where(torch.arange(len(batch[1])) % 4 == 0, batch[1], -100)

def in_place(batch):
    batch[1][0] = -100
    return batch

calls = [0]
def later(batch):
    calls[0] += 1
    return mask(batch) if calls[0] > 5 else batch

def wider(batch):
    return batch[0], batch[1].repeat(2, 1, 1)

def scaled(batch):
    return batch[0] * 2, batch[1]

def own_mean(outputs, targets):
    return functional.cross_entropy(outputs, targets)

def step(model, batch, at):
    return {"loss": functional.cross_entropy(model(batch[0]), batch[1])}

def count(batch):
    return int((batch[1] >= 0).sum())
"""
STEP = ["--remove", "loss", "train.step=own.py:step", "train.count=own.py:count", "data.micro_batch_size=4"]


@pytest.mark.parametrize(
    ("change", "others", "counts"),
    [
        ("mask", [], "8 → 2"),
        ("in_place", [], "8 → 7"),
        ("later", [], "8 → 2"),
        ("mask", ["data.train={_target_: own.py:some}"], r"\d → \d"),
        ("mask", STEP, "4 → 1"),
        (
            "wider",
            ["data.train={_target_: own.py:values}", "loss={_target_: MSELoss}", "data.micro_batch_size=4"],
            "12 → 24",
        ),
        ("scaled", [], ""),
        ("mask", ["loss={_ref_: own.py:own_mean}"], ""),  # a mean of a whole step, by itself
    ],
)
def test_a_change_of_what_the_loss_counts_is_refused(
    change: str, others: list[str], counts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = RECIPE.replace("parts.py:Rows", "own.py:train").replace("parts.py", "own.py").replace("CHANGE", change)
    recipe = make(tmp_path, text.replace(change, f"own.py:{change}"), own=COUNTS)
    arguments = ["train", str(recipe), "--cpu", "--run-dir", str(tmp_path / "run"), *others]
    if not counts:
        assert main(arguments) == 0
    else:
        with pytest.raises(SystemExit):
            main(arguments)
        said = capsys.readouterr().err
        assert re.search(rf"data.on_device: changes what the loss counts \({counts}\); do that in data.collate", said)


@pytest.mark.parametrize("on_device", ["null", "{evaluate: {_ref_: own.py:mask}}"])
def test_an_evaluation_counts_what_it_has(tmp_path: Path, on_device: str) -> None:
    """Also where no target of the training set is ignored, or the batch is changed on the device."""
    text = RECIPE.replace("validation: {_target_: parts.py:Rows}", "validation: {_target_: own.py:some}")
    text = text.replace("parts.py:Rows", "own.py:train").replace("parts.py", "own.py").replace("CHANGE", on_device)
    recipe = make(tmp_path, text, own=COUNTS)
    run = launcher.train(recipe, cpu=True, run_dir=tmp_path / "run", output="quiet")
    rows = torch.rand(32, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kept = torch.arange(32) % 3 != 0
    if on_device != "null":
        kept &= torch.arange(32) % 8 % 4 == 0  # in batches of 8
    outputs = nn.functional.linear(rows, run.model.weight.detach(), run.model.bias.detach())
    expected = nn.functional.cross_entropy(outputs[kept], (torch.arange(32) % 3)[kept])
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] == pytest.approx(float(expected), rel=1e-9)
