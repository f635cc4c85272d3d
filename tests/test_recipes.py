"""The recipes that are shipped: each learns what it says it learns, and opens with the command that runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from places import ROOT, SHIPPED
from tiers import rounds
from worlds import train

RECIPES = ROOT / "recipes"


def test_your_own_loop_and_the_recipe_have_equal_losses(tmp_path: Path) -> None:
    loop = RECIPES / "custom_model" / "your_train.py"
    script = (
        f"import json, sys; sys.path.insert(0, {str(loop.parent)!r}); import your_train; "
        "json.dump(your_train.main(), open('losses.json', 'w'))"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, check=True)
    trained = train(tmp_path / "run", "track.every=1 steps", recipe=RECIPES / "custom_model" / "recipe.yaml")
    losses = json.loads((tmp_path / "losses.json").read_text())
    assert len(losses) == 640
    assert trained.column("loss") == pytest.approx(losses, abs=1e-6)  # the fused AdamW rounds otherwise than the loop's
    by_hand = torch.load(tmp_path / "model_weights.pth", weights_only=True)
    assert {name: value.shape for name, value in by_hand.items()} == {n: v.shape for n, v in trained.weights.items()}


@rounds(
    "recipe, epochs, accuracy",
    plain=[("digits_mlp", 6, 0.9), ("digits_cnn", 3, 0.9)],
    long=[("digits_mlp", 30, 0.97), ("digits_cnn", 20, 0.98)],
)
def test_digits_are_told_apart(tmp_path: Path, recipe: str, epochs: int, accuracy: float) -> None:
    trained = train(tmp_path / "run", f"train.epochs={epochs}", recipe=RECIPES / f"{recipe}.yaml")
    assert trained.column("accuracy", "test")[0] >= accuracy


@rounds("steps, off", plain=[(150, 0.5)], long=[(2000, 0.1)])
def test_the_generator_finds_the_circle(tmp_path: Path, steps: int, off: float) -> None:
    """0.56 from it before training."""
    recipe = RECIPES / "gan" / "recipe.yaml"
    trained = train(tmp_path / "run", f"train.steps={steps}", f"evaluate.every={steps} steps", recipe=recipe)
    assert trained.column("off", "validation")[-1] < off
    assert len(list((tmp_path / "run" / "figures").iterdir())) == 1


def test_the_regression_explains_the_data(tmp_path: Path) -> None:
    trained = train(tmp_path / "run", recipe=RECIPES / "tabular_regression.yaml")
    assert trained.column("r2", "test")[0] > 0.4


SHORT = ("train.steps=100", "evaluate.every=50 steps", "evaluate.limit=5 batches", "model.layers=2", "model.width=64")


@pytest.mark.timeout(900)
@rounds("changes, least", plain=[(SHORT, 4.0)], long=[(("evaluate.every=1000 steps",), 2.2)])
def test_the_gpt_learns_python_s_own_source(tmp_path: Path, changes: tuple[str, ...], least: float) -> None:
    trained = train(tmp_path / "run", *changes, recipe=RECIPES / "text_gpt.yaml", timeout=850)
    first, last = trained.column("loss", "validation")
    assert last < first < 4.0
    assert last < least


def test_every_recipe_opens_with_the_command_that_runs_it() -> None:
    for path in SHIPPED:
        head = path.read_text().split("\nname:")[0]
        assert f"launcher train {path.relative_to(ROOT)}" in head
