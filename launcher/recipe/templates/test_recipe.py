"""That the parts fit, and that they learn: `pytest` in this folder."""

from pathlib import Path

import torch
from data import Points
from model import Net

import launcher

RECIPE = Path(__file__).parent / "recipe.yaml"


def test_the_model_takes_what_the_data_set_gives() -> None:
    points, target = Points(samples=5)[0]
    logits = Net(classes=3)(points[None])
    assert logits.shape == (1, 3)
    assert torch.nn.functional.cross_entropy(logits, target[None]).isfinite()


def test_the_recipe_learns(tmp_path: Path) -> None:
    result = launcher.train(RECIPE, "train.epochs=3", cpu=True, run_dir=tmp_path / "run", output="quiet")
    assert result.state == "finished"
    assert result.scores[-1]["accuracy"] > 0.6
