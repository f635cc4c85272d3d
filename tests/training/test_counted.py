"""Runs of losses with counts of their own: what is refused, said and kept; `tests/brought` holds their numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from places import RECIPES
from torch import Tensor
from worlds import result_of, train_here

from launcher.errors import LauncherError
from launcher.recipe.load import load_recipe
from launcher.run import run
from launcher.runs.options import Options
from launcher.world.world import World
from recipes import counted

RECIPE = RECIPES / "counted.yaml"
PADDED = ("data.collate={_ref_: counted.py:pad}",)
OF_STEP = (*PADDED, "train.step=counted.py:step", "loss=null")
VECTORS = ("data.train={_target_: counted.py:Vectors}",)
WHOLE = "its value is of the whole batch"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            (*VECTORS, "loss={_ref_: counted.py:root}"),
            rf"loss: {WHOLE} \(nearest: a mean over samples, off by .*\), and 4 "
            r"micro-batches a process would give other numbers; say _per_: batch and remove data.micro_batch_size",
        ),
        ((*PADDED,), rf"loss: {WHOLE}"),
        (
            (*VECTORS, "loss={_ref_: counted.py:noisy}"),
            r"loss: what it is a mean over cannot be measured \(its value on the same",
        ),
        (
            (*VECTORS, "loss={_ref_: counted.py:summed, _per_: sample}"),
            "_per_: sample is not what it is a mean over: it is a sum",
        ),
        (
            (*VECTORS, "loss._per_=sum"),
            r"loss: _per_: sum is not what it is: a mean over the elements of the targets \(torch's own",
        ),
        (
            (*OF_STEP, "train.count=counted.py:rows_of"),
            "train.count is not what the loss is a mean over: it is a mean over what mask",
        ),
        (
            (
                *VECTORS,
                "model={_target_: counted.py:TwoHeads}",
                "loss={_target_: GaussianNLLLoss}",
                "batch.outputs=[0, 1]",
            ),
            r"loss: GaussianNLLLoss takes \(input, target, var\), and 'target' would not get what is meant; say which",
        ),
    ],
)
def test_what_is_refused(tmp_path: Path, overrides: tuple[str, ...], message: str) -> None:
    remove = ("loss",) if "loss=null" in overrides else ()
    own = tuple(one for one in overrides if one != "loss=null")
    with pytest.raises(LauncherError, match=message):
        train_here(str(tmp_path / "run"), (*own, "data.micro_batch_size=2"), str(RECIPE), remove)


def test_what_is_asked_for_can_be_said(tmp_path: Path) -> None:
    said = (*VECTORS, "loss={_ref_: counted.py:noisy, _per_: sample}", "data.micro_batch_size=2")
    assert train_here(str(tmp_path / "said"), said, str(RECIPE)) == "finished"
    whole = (*VECTORS, "loss={_ref_: counted.py:root}")
    assert train_here(str(tmp_path / "whole"), whole, str(RECIPE)) == "finished"


def test_a_resume_does_not_measure_again(tmp_path: Path) -> None:
    calls = tmp_path / "calls"  # what lies in memory is put back after measuring

    def counting(outputs: Tensor, targets: Tensor) -> Tensor:
        with calls.open("a") as file:
            file.write(".")
        return (outputs - targets).abs().mean()

    def train(*overrides: str) -> int:
        calls.write_text("")
        recipe = load_recipe(RECIPE, [*VECTORS, *overrides, "launch.threads=1"], given={"loss": counting})
        run(recipe, World(), Options(cpu=True, run_dir=str(tmp_path / "run"), output="quiet", allow_changes=("train",)))
        return calls.stat().st_size

    assert train("train.steps=2") > 50
    assert train("train.steps=4") < 10


def test_each_loss_and_metric_takes_what_it_names_and_the_parts_are_logged(tmp_path: Path) -> None:
    first = "a: {_target_: MSELoss, _outputs_: [0], _weight_: 0.5}"
    second = "b: {_target_: GaussianNLLLoss, _outputs_: {input: 0, var: 1}, _targets_: {target: 1}}"
    own = (
        *VECTORS,
        "data.validation={_target_: counted.py:Vectors}",
        "model={_target_: counted.py:TwoHeads}",
        f"loss={{{first}, {second}}}",
        "evaluate.metrics={mse: {_target_: MeanSquaredError, _outputs_: [0]}}",
        "data.micro_batch_size=3",
    )
    train_here(str(tmp_path / "run"), own, str(RECIPE), ("loss",))
    run = result_of(tmp_path / "run")
    for split in ("train", "validation"):
        parts = zip(*(run.column(key, split) for key in ("loss", "loss/a", "loss/b")), strict=True)
        assert all(loss == pytest.approx(0.5 * a + b) for loss, a, b in parts)
    assert run.column("mse", "validation") == pytest.approx(run.column("loss/a", "validation"))
    mean, var = counted.TwoHeads()(torch.stack([counted.Vectors()[n][0] for n in range(8)]))
    targets = torch.stack([counted.Vectors()[n][1] for n in range(8)])
    assert run.column("loss/b")[0] == pytest.approx(F.gaussian_nll_loss(mean, targets, var).item())


def test_what_one_forward_pass_need_not_know_is_measured_when_a_run_goes_on_in_pieces(tmp_path: Path) -> None:
    whole = (*VECTORS, "loss={_ref_: counted.py:root}", "train.steps=2")
    assert train_here(str(tmp_path / "run"), whole, str(RECIPE)) == "finished"
    recipe = load_recipe(RECIPE, [*whole[:-1], "train.steps=4", "data.micro_batch_size=2", "launch.threads=1"])
    options = Options(cpu=True, run_dir=str(tmp_path / "run"), output="quiet", allow_changes=("train", "data"))
    with pytest.raises(LauncherError, match=WHOLE):
        run(recipe, World(), options)
