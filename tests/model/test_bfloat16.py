"""`device.precision: bf16-true`: the weights themselves are bfloat16, from the first step to what is evaluated."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from recipes.stacks import Stack
from safetensors.torch import load_file
from tiers import rounds
from torch import nn
from worlds import TINY, killed, result_of, train, train_here, train_in_process

from launcher.checkpoints import format as checkpoints
from launcher.checkpoints.export import export
from launcher.checkpoints.saved_run import find_saved
from launcher.checks.rehearsal import rehearse
from launcher.errors import RecipeError
from launcher.evaluation.offline import evaluate_saved
from launcher.model.bfloat16 import hold_in_bfloat16
from launcher.objective.optimizer import describe_optimizer
from launcher.recipe.build import Builder
from launcher.recipe.load import load_recipe
from launcher.world.world import World

HALF = ("device.precision=bf16-true", "model={_target_: stacks.py:Stack, dropout: 0.0}", "train.ema=0.9")
VALIDATION = "data.validation={_target_: parts.py:WholeNumbers, size: 23, seed: 2}"


def newest(run: Path) -> checkpoints.Checkpoint:
    return checkpoints.verify(max((run / "checkpoints").glob("step-*")))


@rounds("size", plain=[2], long=[1])
def test_weights_are_bfloat16_and_their_average_is_not(tmp_path: Path, size: int) -> None:
    run = train(tmp_path / "run", *HALF, VALIDATION, "data.micro_batch_size=5", size=size)
    assert {value.dtype for value in run.weights.values()} == {torch.bfloat16}
    averaged = torch.load(run.folder / "model_weights_ema.pth", weights_only=True)
    assert {value.dtype for value in averaged.values()} <= {torch.bfloat16, torch.float32}
    state = newest(run.folder).training()["average"]["parameters"]
    assert {value.dtype for value in state.values()} == {torch.float32}
    losses = run.column("loss")
    assert losses[-1] < losses[0]
    assert run.column("loss", "validation")[-1] < 1.1  # of 3 classes


def test_a_killed_run_goes_on_to_the_bit(tmp_path: Path) -> None:
    changes = (*HALF, "save.every=2 steps", VALIDATION)
    whole, run = train(tmp_path / "whole", *changes), tmp_path / "run"
    assert killed(1, train_here, str(run), changes, str(TINY), (), "kill@step:5")
    train(run, *changes)
    assert result_of(run).distance(whole) == 0
    assert result_of(run).column("loss", "validation") == whole.column("loss", "validation")


def test_saved_weights_give_the_scores_of_training_when_they_are_evaluated_again(tmp_path: Path) -> None:
    run = train(tmp_path / "run", *HALF, VALIDATION)
    last = [line for line in run.lines if line["split"] == "validation"][-1]
    saved = find_saved(run.folder)
    again = evaluate_saved(saved, World(), "validation", cpu=True)
    assert again[0]["loss"] == last["loss"]
    for form in ("pth", "safetensors", "pt2"):
        assert "bit-equal" in export(saved, tmp_path / f"model.{form}")
    for written in (torch.load(tmp_path / "model.pth", weights_only=True), load_file(tmp_path / "model.safetensors")):
        assert {name: value.dtype for name, value in written.items()} == dict.fromkeys(run.weights, torch.bfloat16)
        assert all(torch.equal(value, run.weights[name]) for name, value in written.items())


def test_the_plan_says_what_the_optimizer_keeps_and_in_which_type() -> None:
    recipe = load_recipe(TINY, list(HALF))
    plan = dict(rehearse(recipe, Builder(recipe), World(), lambda *_: None).plan)
    assert "precision bf16-true" in plan["device"]
    assert "keeps step in float32 and exp_avg, exp_avg_sq in bfloat16" in plan["optimizer"]
    model = nn.Linear(2, 2)
    assert "keeps" not in describe_optimizer(torch.optim.AdamW(model.parameters()))
    assert "momentum_buffer in bfloat16" in describe_optimizer(
        torch.optim.SGD(model.bfloat16().parameters(), lr=0.1, momentum=0.9)
    )


class Demanding(torch.optim.SGD):
    """Cannot be made of parameters and defaults alone."""

    def __init__(self, params: object, secret: object):
        super().__init__(params, lr=0.1)  # type: ignore[arg-type]  # anything


def test_an_optimizer_that_cannot_be_tried_is_said_not_to_be_known() -> None:
    optimizer = Demanding(nn.Linear(2, 2).bfloat16().parameters(), "x")
    assert "whose first step shows" in describe_optimizer(optimizer)


def test_batch_norm_stays_in_float32_and_floats_of_any_kind_come_in(tmp_path: Path) -> None:
    model = "model={_target_: stacks.py:Stack, odd: true, dtype: {_ref_: torch.float32}}"
    run = train(tmp_path / "run", HALF[0], model, "data.drop_last=true", VALIDATION)
    kinds = {name: value.dtype for name, value in run.weights.items()}
    assert kinds["blocks.0.norm.running_mean"] == kinds["blocks.0.norm.weight"] == torch.float32
    assert kinds["blocks.0.layer.weight"] == torch.bfloat16


def test_complex_parameters_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"device.precision: bf16-true: 'turn' of the model is complex"):
        train_in_process(tmp_path / "run", HALF[0], "model={_target_: stacks.py:Complex}")


def test_a_copy_in_double_precision_computes_in_it() -> None:
    recipe = load_recipe(TINY, [])
    model = Stack(dropout=0.0)
    hold_in_bfloat16(Builder(recipe), model)
    inputs = torch.randn(3, 6, dtype=torch.float64)
    assert model(inputs).dtype == torch.float32
    assert copy.deepcopy(model).double()(inputs).dtype == torch.float64
