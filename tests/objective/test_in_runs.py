"""What a loss was found to be, in runs: tried again after each save, left where it does not hold, and found again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from launcher.checkpoints.saved_run import find_saved
from launcher.errors import LauncherError
from launcher.evaluation.offline import evaluate_saved
from launcher.recipe.load import load_recipe
from launcher.run import run
from launcher.runs.options import Options
from launcher.world.world import World

PARTS = """
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset


def data():
    g = torch.Generator().manual_seed(0)
    x, y, z = torch.randn(96, 4, generator=g).double(), torch.arange(96) % 3, torch.arange(96) % 2
    z[66::3] = -100
    return TensorDataset(x, y, z, (torch.arange(96) % 3 > 0) * (1.0 + torch.arange(96) % 5).double())


def net():
    torch.manual_seed(0)
    return nn.Linear(4, 3).double()


def both(o, y, z):
    return F.cross_entropy(o, y) + F.cross_entropy(o.flip(1), z)


def weighted(o, y, weight):
    return (F.cross_entropy(o, y, reduction="none") * weight).sum() / weight.sum()


def for_a_while(model, batch, at):
    o = model(batch[0])
    spread = o.std(0, unbiased=False).mean() if 3 <= at.step < 9 else 0.0
    return {"loss": F.cross_entropy(o, batch[1]) + spread}
"""
RECIPE = """
data: {train: {_target_: "parts.py:data"}, global_batch_size: 8, micro_batch_size: 4, shuffle: false, workers: 0}
model: {_target_: "parts.py:net"}
optimizer: {_target_: SGD, lr: 0.1}
train: {steps: 12}
track: {every: 1 steps}
launch: {threads: 1}
"""


def trained(folder: Path, *overrides: str) -> Path:
    """Trains in this process; gives the run's folder."""
    (folder / "parts.py").write_text(PARTS)
    (folder / "recipe.yaml").write_text(RECIPE)
    recipe = load_recipe(folder / "recipe.yaml", overrides)
    run(recipe, World(), Options(cpu=True, run_dir=str(folder / "run"), output="quiet"))
    return folder / "run"


def steps_of(folder: Path) -> int:
    """How many it has made."""
    return len((folder / "run" / "metrics.jsonl").read_text().splitlines())


def test_a_step_function_is_tried_again_after_a_save(tmp_path: Path) -> None:
    with pytest.raises(LauncherError, match=r"train\.step: is not a mean over .* on this batch"):
        trained(tmp_path, "train.step=parts.py:for_a_while", "save.every=4 steps")
    assert steps_of(tmp_path) == 4


def test_what_the_measured_samples_lack_ends_the_run_when_it_comes(tmp_path: Path) -> None:
    with pytest.raises(
        LauncherError, match=r"loss: a batch has -100 in \[1\], and with it the loss is not a mean over"
    ):
        trained(tmp_path, "loss={_ref_: parts.py:both}", "batch.targets=[1, 2]")
    assert steps_of(tmp_path) <= 8  # the ninth has the first


def test_where_a_step_is_one_pass_it_may_come(tmp_path: Path) -> None:
    trained(tmp_path, "loss={_ref_: parts.py:both}", "batch.targets=[1, 2]", "data.micro_batch_size=null")
    assert steps_of(tmp_path) == 12


def test_weights_outside_of_their_folder_have_their_loss_measured(tmp_path: Path) -> None:
    evaluated = ("data.validation={_target_: parts.py:data}", "evaluate={every: 12 steps, batch_size: 7}")
    overrides = ("loss={_ref_: parts.py:weighted}", "batch.targets=[1, 3]", *evaluated)
    folder = trained(tmp_path, *overrides)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    (expected,) = [line["loss"] for line in lines if line["split"] == "validation"]
    shutil.copy(folder / "model_weights.pth", tmp_path / "elsewhere.pth")
    saved = find_saved(tmp_path / "elsewhere.pth", str(tmp_path / "recipe.yaml"), overrides)
    (line,) = evaluate_saved(saved, World(), None, cpu=True)
    assert line["loss"] == pytest.approx(expected, rel=1e-12)
