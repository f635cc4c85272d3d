"""Models and losses that take gradients when they are called: wherever nobody trains, with the figures of a loop."""

from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from places import ROOT
from sets import Reg
from torch import Tensor, nn
from worlds import Trained, train

import launcher
from launcher.checkpoints.export import export
from launcher.checkpoints.saved_run import find_saved
from launcher.cli.main import main
from launcher.errors import LauncherError
from launcher.evaluation.predict import outputs_of
from launcher.model.own_gradients import OwnGradients

RECIPE = ROOT / "tests" / "brought" / "parts" / "brought.yaml"
FORCES = (
    "model={_target_: nets.py:Forces}",
    "loss={_ref_: losses.py:of_forces}",
    "batch.outputs=[0, 1]",
    "data.validation={_target_: sets.py:Reg}",
    "evaluate={every: 2 steps, metrics: {far: {_target_: MeanAbsoluteError, _outputs_: [0]}}}",
    "train.ema=0.5",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(tmp_path_factory.mktemp("forces") / "run", *FORCES, recipe=RECIPE)


def loss_of(model: nn.Module, inputs: Tensor, targets: Tensor) -> float:
    energy, slopes = model(inputs)
    mse = nn.functional.mse_loss
    return (mse(energy, targets) + 10 * mse(slopes, targets.expand_as(slopes))).item()


def test_what_is_saved_is_evaluated_predicted_and_loaded(run: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    model, inputs = launcher.load(run.folder, cpu=True), Reg().x
    targets = inputs.sum(1, keepdim=True) + 0.1
    (line,) = (line for line in run.lines if line["split"] == "validation" and line["step"] == 6)
    assert line["loss"] == pytest.approx(loss_of(model, inputs, targets), rel=1e-9)
    assert line["ema/loss"] != line["loss"]
    assert main(["evaluate", str(run.folder), "--json", "--cpu"]) == 0
    (again,) = (json.loads(text) for text in capsys.readouterr().out.splitlines() if text.startswith("{"))
    assert {**line, **again} == line
    outputs = outputs_of(find_saved(run.folder), "validation", cpu=True)
    assert list(outputs) == ["0", "1"]
    assert all(map(torch.equal, outputs.values(), (part.detach() for part in model(inputs))))


def test_check_says_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(RECIPE), *FORCES]) == 0
    assert "model, loss: take gradients when they are called" in capsys.readouterr().out


def test_weights_are_exported_and_programs_refused(run: Trained, tmp_path: Path) -> None:
    saved = find_saved(run.folder)
    assert "bit-equal" in export(saved, tmp_path / "model.safetensors")
    for name in ("model.pt2", "model.onnx"):
        with pytest.raises(LauncherError, match="Forces takes gradients when it is called, which a program cannot"):
            export(saved, tmp_path / name)


class Drawing(nn.Module):
    """Draws before it takes gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.line, self.calls = nn.Linear(3, 1), 0

    def forward(self, x: Tensor, *, forces: bool = True) -> Any:
        self.calls += 1
        x = x + torch.rand(3)
        if not forces:
            return self.line(x)
        return torch.autograd.grad(self.line(x.requires_grad_()).sum(), x)[0] + x


def test_it_is_found_out_once_and_nothing_moves() -> None:
    model, own = Drawing(), OwnGradients()
    torch.manual_seed(0)
    expected = [model(torch.ones(2, 3)), model(torch.ones(2, 3))]
    torch.manual_seed(0)
    given = [own.call(model, lambda: model(torch.ones(2, 3))) for _ in range(2)]
    assert all(torch.equal(one, other) for one, other in zip(given, expected, strict=True))
    assert own.are_taken
    assert model.calls == 5  # one in vain
    assert not any(one.requires_grad for one in given)


def test_nothing_is_held_and_others_are_called_without() -> None:
    model, own = Drawing(), OwnGradients()
    seen: list[weakref.ref[Tensor]] = []

    def call() -> Tensor:
        between: Tensor = model(torch.ones(2, 3), forces=torch.is_grad_enabled())
        seen.append(weakref.ref(between))
        return between

    given = own.call(model, call)
    assert not own.are_taken
    assert not given.requires_grad
    own.are_taken = True
    detached = own.call(model, call)
    gc.disable()
    try:
        assert seen[-1]() is None  # with its graph
    finally:
        gc.enable()
    assert not detached.requires_grad


def test_other_errors_are_told_as_they_are() -> None:
    def call() -> Tensor:
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        OwnGradients().call(None, call)


def test_processes_that_share_the_model_have_the_same_figures(run: Trained, tmp_path: Path) -> None:
    shared = train(tmp_path / "run", *FORCES, "device.sharding=full", size=2, recipe=RECIPE)
    for column in ("loss", "far", "ema/loss"):
        assert shared.column(column, "validation") == pytest.approx(run.column(column, "validation"), rel=1e-6), column
