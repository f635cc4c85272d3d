"""Runs of losses with counts of their own: in pieces and on several processes, the numbers of a loop by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from places import RECIPES
from tiers import rounds
from torch import Tensor, nn
from torch.utils.data import default_collate
from worlds import in_world, result_of, train_here

from launcher.errors import LauncherError
from launcher.recipe.load import load_recipe
from launcher.run import run
from launcher.runs.options import Options
from launcher.world.world import World
from recipes import counted

RECIPE = RECIPES / "counted.yaml"
PADDED = ("data.collate={_ref_: counted.py:pad}",)
CLASSES = ("data.train={_target_: counted.py:Vectors, classes: true}", "model.outputs=4")
OWN = ("data.train={_target_: counted.py:Tokens}", "loss=model", "batch.inputs={ids: ids, labels: labels}")
OF_STEP = (*PADDED, "train.step=counted.py:step", "loss=null")
VECTORS = ("data.train={_target_: counted.py:Vectors}",)


def language(model: nn.Module, batch: Any) -> Tensor:
    loss: Tensor = model(**batch)["loss"]
    return loss


def masked(model: nn.Module, batch: Any) -> Tensor:
    return counted.masked(model(batch[0]), *batch[1:])


def of(loss: Callable[..., Tensor]) -> Callable[[nn.Module, Any], Tensor]:
    return lambda model, batch: loss(model(batch[0]), batch[1])


def gaussian(model: nn.Module, batch: Any) -> Tensor:
    mean, var = model(batch[0])
    return F.gaussian_nll_loss(mean, batch[1], var)


IN_ORDER = "loss={_target_: GaussianNLLLoss, _outputs_: {input: 0, var: 1}, _targets_: {target: 1}}"
# overrides; the data, its collate, the model and the loss of the loop by hand
Hand = tuple[Any, Any, Any, Callable[[nn.Module, Any], Tensor]]
RUNS: dict[str, tuple[tuple[str, ...], Hand]] = {
    "focal": (
        (*CLASSES, "loss={_target_: counted.py:Focal}"),
        (counted.Vectors(True), default_collate, counted.Net(4), of(counted.Focal())),
    ),
    "ignored": (
        (*CLASSES, "data.train.ignored=true", "loss={_target_: CrossEntropyLoss}"),
        (counted.Vectors(True, True), default_collate, counted.Net(4), of(F.cross_entropy)),
    ),
    "ignored by a function": (
        (*CLASSES, "data.train.ignored=true", "loss={_ref_: torch.nn.functional.cross_entropy}"),
        (counted.Vectors(True, True), default_collate, counted.Net(4), of(F.cross_entropy)),
    ),
    "graphs": (
        (
            "data.collate={_ref_: counted.py:join}",
            "data.train.classes=true",
            "model.outputs=4",
            "loss={_target_: CrossEntropyLoss}",
        ),
        (counted.Sequences(classes=True), counted.join, counted.Net(4), of(F.cross_entropy)),
    ),
    "rows": (
        ("data.collate={_ref_: counted.py:join}",),
        (counted.Sequences(), counted.join, counted.Net(), of(F.mse_loss)),
    ),
    "mask": (
        (*PADDED, "loss={_ref_: counted.py:masked}", "batch.targets=[1, 2]"),
        (counted.Sequences(), counted.pad, counted.Net(), masked),
    ),
    "step": (OF_STEP, (counted.Sequences(), counted.pad, counted.Net(), masked)),
    "step with its count": (
        (*OF_STEP, "train.count=counted.py:mask_of"),
        (counted.Sequences(), counted.pad, counted.Net(), masked),
    ),
    "model": (
        (*OWN, "model={_target_: counted.py:Language}"),
        (counted.Tokens(), default_collate, counted.Language(), language),
    ),
    "model, with its count": (
        (*OWN, "model={_target_: counted.py:Language}", "train.count=counted.py:labels_of"),
        (counted.Tokens(), default_collate, counted.Language(), language),
    ),
    "model, alone": (
        (*OWN, "model={_target_: counted.py:Language, gives: alone}"),
        (counted.Tokens(), default_collate, counted.Language(), language),
    ),
    "model, in parts": (
        (*OWN, "model={_target_: counted.py:Language, gives: parts}"),
        (counted.Tokens(), default_collate, counted.Language(), language),
    ),
    "sum": (
        (*VECTORS, "loss={_ref_: counted.py:summed}"),
        (counted.Vectors(), default_collate, counted.Net(), of(counted.summed)),
    ),
    "sum of torch's": (
        (*VECTORS, "loss.reduction=sum", "optimizer.lr=0.01"),
        (counted.Vectors(), default_collate, counted.Net(), of(nn.MSELoss(reduction="sum"))),
    ),
    "order": (
        (*VECTORS, "model={_target_: counted.py:TwoHeads}", IN_ORDER),
        (counted.Vectors(), default_collate, counted.TwoHeads(), gaussian),
    ),
}


def by_hand(name: str, steps: int = 5) -> list[float]:
    """The losses of the loop that one writes: whole batches, one process."""
    dataset, collate, model, loss = copy.deepcopy(RUNS[name][1])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01 if "optimizer.lr=0.01" in RUNS[name][0] else 0.1)
    losses = []
    for step in range(steps):
        first = step % 3 * 8
        batch = collate([dataset[number] for number in range(first, min(first + 8, 20))])
        value = loss(model, batch)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return losses


# where it matters that three share a batch unevenly
UNEVEN = ("ignored", "graphs", "mask", "step with its count", "model, in parts", "sum")


def train_all(folder: str, names: Iterable[str], *overrides: str) -> None:
    for name in names:
        own, _ = RUNS[name]
        remove = ("loss",) if "loss=null" in own else ()
        train_here(f"{folder}/{name}", (*(one for one in own if one != "loss=null"), *overrides), str(RECIPE), remove)


@rounds(
    "size, names, overrides",
    plain=[(1, tuple(RUNS), ("data.micro_batch_size=2",)), (2, tuple(RUNS), ()), (3, UNEVEN, ())],
    long=[(3, tuple(RUNS), ())],
)
def test_losses_are_those_of_a_loop_by_hand(
    tmp_path: Path, size: int, names: tuple[str, ...], overrides: tuple[str, ...]
) -> None:
    in_world(size, train_all, str(tmp_path), names, *overrides)
    for name in names:
        assert result_of(tmp_path / name).column("loss") == pytest.approx(by_hand(name), rel=1e-9), name


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
    calls: list[int] = []

    def counting(outputs: Tensor, targets: Tensor) -> Tensor:
        calls.append(len(targets))
        return (outputs - targets).abs().mean()

    def train(*overrides: str) -> int:
        calls.clear()
        recipe = load_recipe(RECIPE, [*VECTORS, *overrides, "launch.threads=1"], given={"loss": counting})
        run(recipe, World(), Options(cpu=True, run_dir=str(tmp_path / "run"), output="quiet", allow_changes=("train",)))
        return len(calls)

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
