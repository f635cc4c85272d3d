"""One run: what it evaluates, refuses, writes and resumes from."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from places import ROOT
from recipes.parts import Net, Numbers, WholeNumbers
from tiers import rounds
from torch import nn
from worlds import TINY, in_world, killed, result_of, train

import launcher
from launcher.api import Result
from launcher.cli.main import main
from launcher.datasets import Digits
from launcher.device.device import open_device
from launcher.errors import EXIT_PREEMPTED, LauncherError, RecipeError, UsageError
from launcher.models import MLP
from launcher.recipe.load import load_recipe
from launcher.runs.metrics import read_evaluations
from launcher.training.nonfinite import NonFiniteError
from launcher.world.world import FAULTS_VARIABLE, World

EVALUATED = [
    "data.validation={_target_: parts.py:Numbers, size: 23, seed: 2}",
    "data.test={_target_: parts.py:WholeNumbers, size: 31, seed: 3}",
    "evaluate={every: 2 steps, metrics: {accuracy: {_target_: MulticlassAccuracy, num_classes: 3, average: micro}}}",
]


def run(folder: Path, *overrides: str, **objects: Any) -> Result:
    return launcher.train(TINY, "launch.threads=1", *overrides, run_dir=folder, cpu=True, output="quiet", **objects)


def brute_force(weights: dict[str, torch.Tensor], data: Numbers, norm: bool = False) -> tuple[float, float]:
    model = Net(norm=norm)
    model.load_state_dict(weights)
    with torch.no_grad():
        outputs = model.eval()(data.inputs)
    accuracy = (outputs.argmax(1) == data.targets).double().mean().item()
    return nn.functional.cross_entropy(outputs, data.targets).item(), accuracy


def test_a_loss_of_one_number_may_have_any_shape(tmp_path: Path) -> None:
    said = "loss={_target_: parts.py:%s, _partial_: true}"
    scalar = run(tmp_path / "scalar", *EVALUATED)
    result = run(tmp_path / "shaped", *EVALUATED, said % "one_in_brackets")
    for one, other in zip(scalar.scores, result.scores, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
    with pytest.raises(LauncherError, match=r"loss: gave float64 \[16\]; a step needs one number"):
        run(tmp_path / "many", said % "one_each")
    with pytest.raises(LauncherError, match=r"loss: gave complex128 \[\]; a step needs a real number"):
        run(tmp_path / "complex", said % "one_complex")


def test_every_parameter_of_every_loss_is_trained(tmp_path: Path) -> None:
    terms = "{kept: {_target_: parts.py:Scaled}, b: {_target_: parts.py:Scaled}, c: {_target_: parts.py:Shifted}}"
    groups = "optimizer._groups_={'loss.kept.*': {lr: 0}}"
    folder = train(tmp_path / "run", f"loss={terms}", groups, remove=("loss",)).folder
    path = folder / "checkpoints" / "step-00000012" / "training.pt"
    losses = torch.load(path, weights_only=True)
    assert losses["loss.kept"]["scale"] == 1
    assert losses["loss.b"]["scale"] != 1
    assert (losses["loss.c"]["shift"] != 0).all()


def test_gradients_of_a_trial_by_hand_are_no_part_of_the_first_step(tmp_path: Path) -> None:
    clean, tried = Net(), Net()
    tried.load_state_dict(clean.state_dict())
    (tried(Numbers(4, 0).inputs).sum() * 1e6).backward()
    weights = [
        run(tmp_path / name, model=model).model.state_dict() for name, model in (("clean", clean), ("tried", tried))
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_an_optimizer_that_cannot_be_the_run_s_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="has none of this model's parameters"):
        run(tmp_path / "run", optimizer=torch.optim.SGD(Net().parameters(), 0.1))
    with pytest.raises(UsageError, match="optimizer: 'Adam' is a name; pass a function of the parameters"):
        run(tmp_path / "run", optimizer="Adam")


def test_a_rate_that_is_a_tensor_goes_the_same_way(tmp_path: Path) -> None:
    run(tmp_path / "number", optimizer=lambda params: torch.optim.AdamW(params, lr=0.01))
    run(tmp_path / "tensor", optimizer=lambda params: torch.optim.AdamW(params, lr=torch.tensor(0.01)))
    rates = [result_of(tmp_path / name).column("lr") for name in ("number", "tensor")]
    assert rates[1] == pytest.approx(rates[0], rel=1e-5)
    assert len(set(rates[0])) > 6


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("norm", [False, True])
def test_evaluation_counts_every_sample_once(tmp_path: Path, size: int, norm: bool) -> None:
    norms = [f"model.norm={str(norm).lower()}", "data.drop_last=true"]
    trained = train(tmp_path / "run", *EVALUATED, *norms, size=size)
    last = [line for line in trained.lines if line["split"] == "validation"][-1]
    loss, accuracy = brute_force(trained.weights, Numbers(23, 2), norm)
    assert last["loss"] == pytest.approx(loss, abs=1e-9)
    assert last["accuracy"] == pytest.approx(accuracy, abs=1e-6)
    test = trained.column("loss", "test")
    assert test == pytest.approx([brute_force(trained.weights, Numbers(31, 3), norm)[0]], abs=1e-9)
    assert [line["step"] for line in trained.lines if line["split"] == "validation"] == list(
        range(2, 2 * (len(trained.column("loss")) // 2) + 1, 2)
    ) + ([len(trained.column("loss"))] if len(trained.column("loss")) % 2 else [])


def test_evaluating_does_not_change_training(tmp_path: Path) -> None:
    dropout = "model.dropout=0.5"
    plain = train(tmp_path / "plain", dropout)
    evaluated = train(tmp_path / "evaluated", dropout, *EVALUATED, "evaluate.every=1 steps")
    assert evaluated.distance(plain) == 0


def test_what_is_said_on_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 7190))
    best = (
        "evaluate.best={metric: loss, mode: max}",
        "save.every=1 steps",
        "optimizer.lr=0.1",
    )  # the first is the best
    result = launcher.train(TINY, "launch.threads=1", *EVALUATED, *best, run_dir=tmp_path / "run", cpu=True)
    said = capsys.readouterr().out
    assert re.search(r"step \d+/12 .* limit in 1:5\d:\d\d", said)
    losses = {line["step"]: line["loss"] for line in read_evaluations(tmp_path / "run" / "metrics.jsonl", "validation")}
    chosen = max(losses, key=lambda step: losses[step])
    assert chosen != 12
    assert f"test: with the best weights, of step {chosen}" in said
    assert result.scores[-1]["step"] == chosen


def test_an_evaluation_is_due_by_the_clock(tmp_path: Path) -> None:
    paced = "data.train={_target_: parts.py:Paced, seconds: 0.06}"  # a step takes so long or longer
    trained = train(tmp_path / "run", *EVALUATED, paced, "evaluate.every=0.002 minutes")
    steps = trained.column("step", "validation")
    assert steps[-1] == 12
    assert all(1 <= after - before <= 2 for before, after in zip([0, *steps], steps, strict=False))


@rounds("size", plain=[1, 2], long=[3])
def test_a_run_goes_on_from_its_checkpoint_bit_for_bit(tmp_path: Path, size: int) -> None:
    changes = ["model.dropout=0.3", "save={every: 2 steps, keep: 20}", *EVALUATED]
    straight = train(tmp_path / "straight", *changes, size=size)
    folder = tmp_path / "stopped"
    train(folder, *changes, size=size)
    for name in ("step-00000012", "step-00000010", "step-00000008"):
        for file in (folder / "checkpoints" / name).iterdir():
            file.unlink()
        (folder / "checkpoints" / name).rmdir()
    (folder / "model_weights.pth").unlink()
    resumed = train(folder, *changes, size=size)
    assert resumed.distance(straight) == 0
    assert resumed.column("step") == straight.column("step")
    assert resumed.column("loss") == straight.column("loss")


OPTIMIZERS = {
    "AdamW": "{_target_: AdamW, lr: 1e-2}",
    "SGD": "{_target_: SGD, lr: 0.1, momentum: 0.9, nesterov: true}",
    "Adagrad": "{_target_: Adagrad, lr: 0.1}",
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_optimizer_steps_fused_unless_told_otherwise_and_goes_on_as_it_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    said, folder = [f"optimizer={OPTIMIZERS[name]}", "save={every: 4 steps, keep: 20}"], tmp_path / "fused"
    plain = train(tmp_path / "plain", *said, "optimizer.fused=false")
    launcher.train(TINY, "launch.threads=1", *said, run_dir=folder, cpu=True)
    assert f"optimizer  {name}, fused (optimizer.fused=false turns that off)" in capsys.readouterr().out
    assert result_of(folder).distance(plain) < 1e-9
    shutil.rmtree(folder / "checkpoints" / "step-00000012")
    (folder / "model_weights.pth").unlink()
    assert train(folder, *said, "optimizer.fused=false").distance(plain) < 1e-9


def test_gradients_that_are_not_finite_end_the_run_with_the_step(tmp_path: Path) -> None:
    changes = ["model={_target_: parts.py:Exploding, limit: 2.0}", "save.every=1 steps", "save.keep=100"]
    with pytest.raises(NonFiniteError, match=r"^step (\d+): a gradient is not finite") as caught:
        run(tmp_path / "run", *changes)
    step = int(str(caught.value).split()[1].rstrip(":"))
    saved = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))
    assert [path.name for path in saved] == [f"step-{number:08d}" for number in range(1, step + 1)]
    kept = torch.load(saved[-1] / "weights.pth", weights_only=True)
    assert all(value.isfinite().all() for value in kept.values())
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "failed"


@pytest.mark.parametrize("value", ["nan", "inf"])
@pytest.mark.parametrize("validation", [None, "10% of train"])  # of a part the sample is numbered in the whole
def test_data_that_are_not_finite_are_said_to_be_the_cause(tmp_path: Path, value: str, validation: str | None) -> None:
    numbers = WholeNumbers()
    numbers.inputs[[5, 6]] = float(value)
    told = rf"^step \d+: data\.train: sample [56] has {'NaN' if value == 'nan' else 'infinity'} in part 0; correct it"
    with pytest.raises(NonFiniteError, match=told):
        run(tmp_path / "run", train=numbers, validation=validation)


@pytest.mark.parametrize(("model", "optimizer"), [("Looked", "SparseAdam"), ("Waves", "AdamW")])
def test_sparse_and_complex_gradients_are_looked_at_too(tmp_path: Path, model: str, optimizer: str) -> None:
    changes = [f"model={{_target_: parts.py:{model}}}", f"optimizer={{_target_: {optimizer}, lr: 0.1}}"]
    losses = train(tmp_path / "run", *changes).column("loss")
    assert min(losses[-4:]) < losses[0]
    assert train(tmp_path / "two", *changes, size=2).column("loss") == pytest.approx(losses, abs=1e-9)
    with pytest.raises(NonFiniteError, match=r"^step (\d+): a gradient is not finite"):
        run(tmp_path / "bad", *changes, "model.limit=2.0")


@pytest.mark.parametrize("fused", ["true", "false"])
def test_gradients_that_a_hook_has_expanded_are_looked_at_too(tmp_path: Path, fused: str) -> None:
    changes = ["model={_target_: parts.py:Evened}", f"optimizer={{_target_: SGD, lr: 0.1, fused: {fused}}}"]
    trained = train(tmp_path / "run", *changes)
    assert all(value.isfinite().all() for value in trained.weights.values())
    assert train(tmp_path / "foreach", *changes, "optimizer.fused=false").distance(trained) < 1e-9
    with pytest.raises(NonFiniteError, match=r"^step (\d+): a gradient is not finite"):
        run(tmp_path / "bad", *changes, "model.limit=2.0")


def test_gradients_that_are_not_finite_can_be_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = ["model={_target_: parts.py:Exploding, limit: 2.0}", "train.non_finite=skip"]
    one, two = train(tmp_path / "one", *changes), train(tmp_path / "two", *changes, size=2)
    launcher.train(TINY, *changes, "launch.threads=1", run_dir=tmp_path / "said", cpu=True)
    assert "1 update skipped: gradients were not finite (1 so far)" in "".join(capsys.readouterr())
    assert any(math.isnan(loss) or math.isinf(loss) for loss in map(float, one.column("loss")))
    assert all(value.isfinite().all() for value in one.weights.values())
    assert two.distance(one) < 1e-9


def test_bf16_runs_on_a_cpu_and_fp16_names_it(tmp_path: Path) -> None:
    recipe = ROOT / "recipes" / "digits_mlp.yaml"
    trained = train(tmp_path / "run", "device.precision=bf16", "train.epochs=2", recipe=recipe)
    assert trained.column("loss", "validation")[-1] < 1.5
    assert {value.dtype for value in trained.weights.values()} == {torch.float32}
    data, model = Digits("validation"), MLP(64, [256, 256], 10, dropout=0.3).eval()
    model.load_state_dict(trained.weights)
    with torch.no_grad():
        losses = []
        for enabled in (True, False):
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                parts = [model(data.tensors[0][start : start + 64]).float() for start in range(0, len(data), 64)]
            losses.append(float(nn.functional.cross_entropy(torch.cat(parts), data.tensors[1])))
    found = trained.column("loss", "validation")[-1]  # evaluated under autocast, as it was trained
    assert found == pytest.approx(losses[0], abs=1e-6)
    assert found != pytest.approx(losses[1], abs=1e-6)
    with pytest.raises(UsageError, match="fp16 needs a GPU; on a CPU use bf16"):
        run(tmp_path / "other", "device.precision=fp16")
    assert not (tmp_path / "other").exists()


def test_the_best_weights_are_kept_and_become_the_final_ones_if_asked(tmp_path: Path) -> None:
    best = ["evaluate.best={metric: loss, mode: max}", "save.final=best", "save.keep=1", "optimizer.lr=0.5"]
    trained = train(tmp_path / "run", *EVALUATED, *best, remove=("scheduler",))
    losses = {line["step"]: line["loss"] for line in trained.lines if line["split"] == "validation"}
    step = max(losses, key=losses.__getitem__)
    assert step != max(losses)
    assert brute_force(trained.weights, Numbers(23, 2))[0] == pytest.approx(losses[step], abs=1e-9)
    assert [line["step"] for line in trained.lines if line["split"] == "test"] == [step]
    assert sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir()) == [
        f"step-{step:08d}",
        "step-00000012",
    ]


def test_early_stopping_stops_every_rank(tmp_path: Path) -> None:
    stop = ["evaluate.best={metric: loss, mode: min}", "evaluate.early_stop={patience: 1}", "optimizer.lr=0.5"]
    trained = train(tmp_path / "run", *EVALUATED, *stop, "train.epochs=100", size=2)
    losses = trained.column("loss", "validation")
    assert len(losses) < 100
    assert losses[-1] >= min(losses[:-1])


def test_early_stopping_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stop = ["evaluate.best={metric: loss, mode: min}", "evaluate.early_stop={patience: 2}", "optimizer.lr=0.0"]
    launcher.train(TINY, "launch.threads=1", *EVALUATED, *stop, "train.epochs=100", run_dir=tmp_path / "run", cpu=True)
    said = r"step 6: stopped early: loss has not improved for 2 evaluations; its best, \d\.\d+, is of step 2\n"
    assert re.search(said, capsys.readouterr().out)


def test_plateau_steps_with_what_rank_0_measured(tmp_path: Path) -> None:
    plateau = ["scheduler={_target_: ReduceLROnPlateau, patience: 0, factor: 0.5}", "optimizer.lr=0.5"]
    best = "evaluate.best={metric: loss, mode: min}"
    one = train(tmp_path / "one", *EVALUATED, *plateau, best)
    two = train(tmp_path / "two", *EVALUATED, *plateau, best, size=2)
    assert one.column("lr") == two.column("lr")
    assert one.column("lr")[-1] < 0.5
    best = "evaluate.best={metric: accuracy, mode: max}"  # whose mode is the scheduler's
    up = train(tmp_path / "up", *EVALUATED, *plateau, best, "train.epochs=5")
    found = up.column("accuracy", "validation")[:-1]
    falls = [value <= max(found[:number], default=0.0) for number, value in enumerate(found)]
    rates = dict(zip(up.column("step"), up.column("lr"), strict=True))
    after = [line["step"] + 1 for line in up.lines if line["split"] == "validation"][:-1]
    assert [rates[step] for step in after] == [0.5 * 0.5 ** sum(falls[: number + 1]) for number in range(len(falls))]
    assert not all(falls[1:])


def test_a_plateau_may_follow_another_metric_than_the_best(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plateau = "scheduler={_target_: ReduceLROnPlateau, patience: 0, factor: 0.5, threshold: 0.9, _monitor_: loss}"
    for name, more in (("alone", []), ("beside", ["evaluate.best={metric: accuracy, mode: max}"])):
        recipe = [*EVALUATED, plateau, "optimizer.lr=0.5", "launch.threads=1", *more]
        launcher.train(TINY, *recipe, run_dir=tmp_path / name, cpu=True)
        assert "ReduceLROnPlateau, follows loss (min) at each evaluation" in capsys.readouterr().out
    rates = [result_of(tmp_path / name).column("lr") for name in ("alone", "beside")]
    assert rates[0] == rates[1]
    assert rates[0][-1] < 0.5


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["_target_: ReduceLROnPlateau"], "follows a metric; write _monitor_: loss beside it"),
        (["_target_: ReduceLROnPlateau, _monitor_: los"], "no metric is named 'los'; did you mean 'loss'"),
        (["_target_: StepLR, step_size: 1, _monitor_: loss"], "StepLR follows no metric"),
        (["_target_: ReduceLROnPlateau, _monitor_: loss", "data.validation=null"], "there is nothing to measure it on"),
    ],
)
def test_a_monitor_that_cannot_be_is_refused(tmp_path: Path, overrides: list[str], message: str) -> None:
    scheduler, *more = overrides
    with pytest.raises(RecipeError, match=message):
        run(tmp_path / "run", *EVALUATED, f"scheduler={{{scheduler}}}", "evaluate.best=null", *more)


def test_the_weights_load_into_the_bare_class(tmp_path: Path) -> None:
    trained = train(tmp_path / "run", "model.norm=true", "data.drop_last=true", size=2)
    assert not any(name.startswith(("module.", "_orig_mod.")) for name in trained.weights)
    Net(norm=True).load_state_dict(trained.weights)


def test_the_run_folder_holds_what_the_design_lists(tmp_path: Path) -> None:
    result = run(tmp_path / "run", *EVALUATED)
    assert [line["split"] for line in result.scores] == ["validation", "test"]
    assert run(tmp_path / "run", *EVALUATED).scores == result.scores
    names = {str(path.relative_to(tmp_path / "run")) for path in (tmp_path / "run").rglob("*") if path.is_file()}
    expected = {"recipe.yaml", "resolved.yaml", "environment.json", "status.json", "metrics.jsonl", "model_weights.pth"}
    assert expected | {"logs/rank-0.log", "checkpoints/step-00000012/manifest.json"} <= names
    assert (tmp_path / "run" / "recipe.yaml").read_text() == TINY.read_text()


def test_objects_from_python_stand_in_place_of_sections(tmp_path: Path) -> None:
    torch.manual_seed(3)
    result = run(tmp_path / "given", model=Net(), train=WholeNumbers(), loss=nn.CrossEntropyLoss())
    assert result.state == "finished"
    assert result.step == 12
    by_recipe = train(tmp_path / "recipe")
    assert result_of(tmp_path / "given").distance(by_recipe) == 0
    assert "given from Python: Net" in (tmp_path / "given" / "resolved.yaml").read_text()
    torch.testing.assert_close(result.model.state_dict(), by_recipe.weights, rtol=0, atol=0)
    again = run(tmp_path / "given", model=Net(), train=WholeNumbers(), loss=nn.CrossEntropyLoss())  # gives what it left
    assert (again.folder, again.state, again.step) == (result.folder, "finished", 12)
    torch.testing.assert_close(again.model.state_dict(), by_recipe.weights, rtol=0, atol=0)
    left = run(
        tmp_path / "left", "train.steps=2", "train.epochs=null", model=None, validation=None
    )  # as the recipe says
    assert left.step == 2
    with pytest.raises(TypeError, match="unexpected keyword argument 'modell'"):
        launcher.train(TINY, modell=Net())  # type: ignore[call-arg]  # which mypy says as well
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        launcher.trian(TINY)  # type: ignore[attr-defined]  # this too


def _trains_objects(folder: str, faults: str = "") -> str:
    os.environ[FAULTS_VARIABLE] = faults
    torch.manual_seed(3)
    return run(Path(folder), "save={every: 2 steps, keep: 2}", model=Net(), train=WholeNumbers()).state


def test_objects_in_a_launched_world_and_a_resume_by_the_same_call(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(tmp_path / "run")
    assert killed(2, _trains_objects, folder, "kill@step:5")
    assert main(["resume", folder]) == 2
    assert capsys.readouterr().err == f"{folder} was started from Python; make the same call again\n"
    assert in_world(2, _trains_objects, folder) == ["finished", "finished"]
    resumed = result_of(tmp_path / "run")
    assert resumed.distance(train(tmp_path / "straight", size=2)) == 0
    assert resumed.column("step") == list(range(1, 13))


def test_a_loss_handed_in_twice_is_the_same_loss(tmp_path: Path) -> None:
    loss = nn.CrossEntropyLoss()
    for name in ("one", "two"):
        run(tmp_path / name, "train.epochs=1", loss=loss)
    assert loss.reduction == "mean"
    assert result_of(tmp_path / "two").distance(result_of(tmp_path / "one")) == 0
    run(tmp_path / "three", "train.epochs=1", loss=nn.CrossEntropyLoss(reduction="sum"))
    means, sums = (result_of(tmp_path / name).column("loss") for name in ("one", "three"))
    assert sums[0] == pytest.approx(means[0] * 16)


def test_a_scheduler_may_be_a_class_a_function_or_an_object(tmp_path: Path) -> None:
    optim, plateau = torch.optim.lr_scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau
    best = [*EVALUATED, "optimizer.lr=0.5", "evaluate.best={metric: loss, mode: min}"]
    train(tmp_path / "recipe", *best, "scheduler={_target_: ReduceLROnPlateau, patience: 0, factor: 0.5}")
    run(tmp_path / "given", *best, scheduler=lambda optimizer: plateau(optimizer, patience=0, factor=0.5))
    rates = result_of(tmp_path / "given").column("lr")
    assert rates == result_of(tmp_path / "recipe").column("lr")
    assert rates[-1] < rates[0]
    run(tmp_path / "class", "train.epochs=1", scheduler=optim.ConstantLR)
    assert result_of(tmp_path / "class").column("lr")[0] == pytest.approx(1e-2 / 3)
    other = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1)
    with pytest.raises(RecipeError, match="scheduler: steps another optimizer than the run's"):
        run(tmp_path / "other", scheduler=optim.ConstantLR(other))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("", "data.global_batch_size: is required; write 'global_batch_size: 64', or a batch_sampler"),
        ("data: null\n", "data.global_batch_size: is required; write 'global_batch_size: 64', or a batch_sampler"),
        ("data: 5\n", "data: 5 is not a mapping"),
    ],
)
def test_an_object_goes_into_a_section_that_is_not_there(tmp_path: Path, data: str, message: str) -> None:
    text = "model: {_target_: Linear}\nloss: model\noptimizer: {_target_: SGD}\ntrain: {epochs: 1}\n"
    (tmp_path / "recipe.yaml").write_text(text + data)
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "recipe.yaml", given={"data.train": WholeNumbers()})
    assert [f"{problem.path}: {problem.message}" for problem in caught.value.problems] == [message]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["data.global_batch_size=100", "data.drop_last=true"],
            "an epoch has no step: the training set has 50 samples",
        ),
        (["data.train.size=0"], "an epoch has no step: the training set is empty"),
        (["loss.reduction=none"], "loss.reduction: 'none' is not allowed: it gives a number for each entry"),
        (["optimizer._groups_={'*.bios': {lr: 1}}"], r"no parameter is named like '\*\.bios'"),
        (["scheduler={_target_: OneCycleLR, max_lr: 1, total_steps: 10, _warmup_: 2 steps}"], "warms up by itself"),
        (["model={_target_: Dropout}"], "there is nothing to train"),
        (["model={_target_: LazyLinear, out_features: 3}"], "model: has lazy modules, whose sizes are not known yet"),
        (["loss={_target_: parts.py:nothing_of, _partial_: true}"], "loss: does not depend on the model: no parameter"),
        (["data.weights={_ref_: parts.py:weights_of_none}"], "data.weights: TypeError: weights_of_none"),
        (
            [
                *EVALUATED,
                "evaluate.metrics={each: {_ref_: parts.py:each_output}}",
                "evaluate.best={metric: each, mode: max}",
            ],
            "evaluate.best.metric: 'each' gives a list, and only one number can be the best; average it",
        ),
        (["optimizer.lrr=1"], "AdamW takes no 'lrr'; did you mean 'lr'\\?"),
        (["optimizer.params=[]"], "'params' is passed in by the run; remove it"),
        (["loss._per_=batch", "data.micro_batch_size=8"], "_per_: batch needs a rank's whole share at once"),
        (["batch.inputs=[7]"], "a batch has no 7; it is a tuple of 2"),
    ],
)
def test_what_cannot_be_is_said(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(LauncherError, match=message):
        run(tmp_path / "run", *overrides)


def test_a_run_can_be_as_long_as_a_time(tmp_path: Path) -> None:
    trained = train(tmp_path / "run", "train={time: 1 seconds}", size=2, remove=("scheduler",))
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["state"] == "finished"
    assert status["step"] == trained.column("step")[-1] > 12


def _terminate_when(path: Path) -> None:
    """Sends SIGTERM to this process once a run has written its first line."""
    while not path.exists() or not path.stat().st_size:
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_saves_and_the_same_command_goes_on(tmp_path: Path) -> None:
    paced = "data.train={_target_: parts.py:Paced, seconds: 0.005}"
    long = ["train.epochs=100", "track.every=20 steps", paced]
    straight = train(tmp_path / "straight", *long, "data.train.seconds=0")
    before = signal.getsignal(signal.SIGTERM)
    threading.Thread(target=_terminate_when, args=(tmp_path / "run" / "metrics.jsonl",), daemon=True).start()
    with pytest.raises(SystemExit) as end:
        run(tmp_path / "run", *long)
    assert end.value.code == EXIT_PREEMPTED
    assert signal.getsignal(signal.SIGTERM) == before
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["state"] == "stopped"
    assert 0 < status["step"] < 400
    assert train(tmp_path / "run", *long).distance(straight) == 0


def test_more_ranks_than_samples_in_a_batch_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="2 samples cannot be shared by 3 processes"):
        train(tmp_path / "run", "data.global_batch_size=2", size=3)
    assert not (tmp_path / "run").exists()


def test_several_validation_sets_and_a_share_of_the_training_set(tmp_path: Path) -> None:
    sets = "data.validation={near: {_target_: parts.py:Numbers, seed: 2}, far: {_target_: parts.py:Numbers, seed: 9}}"
    trained = train(tmp_path / "several", sets)
    assert [line["name"] for line in trained.lines if line["split"] == "validation"][:2] == ["near", "far"]
    shared = train(tmp_path / "share", "data.validation=20% of train")
    assert len(shared.column("loss", "validation")) == 3
    assert len(shared.column("loss")) == 9  # 40 samples are left: 3 steps an epoch


def test_all_mistakes_are_reported_together() -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(TINY, ["trian.epochs=1", "data.global_batch_size=many", "evaluate.every=soon"])
    text = str(caught.value)
    assert "did you mean 'train'?" in text
    assert "'many' is not a whole number" in text
    assert "'soon' is not a duration" in text


def test_a_world_that_contradicts_itself_is_refused() -> None:
    accelerate = {"ACCELERATE_MIXED_PRECISION": "no"}
    with pytest.raises(UsageError, match="asked for several processes on the CPU and started one"):
        World.from_environ({**accelerate, "MASTER_PORT": "1"})
    with pytest.raises(UsageError, match="WORLD_SIZE is set and RANK is not"):
        World.from_environ({"WORLD_SIZE": "2"})
    with pytest.raises(UsageError, match="RANK='x' is not a whole number"):
        World.from_environ({"WORLD_SIZE": "2", "RANK": "x"})


def test_accelerate_s_world_must_be_the_environment_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section, two = load_recipe(TINY).device, World(size=2, local_size=2, started_by="torchrun")
    with (
        pytest.raises(UsageError, match="says rank 0 of 2, Accelerate sees rank 0 of 1; start with `launcher train`"),
        open_device(section, two, cpu=True),
    ):
        pass
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "meta")
    with pytest.raises(UsageError, match="made its device 'meta' where 'cpu' was asked for; unset the ACCELERATE_"):
        run(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def _fails_on_rank_0(folder: str) -> str:
    try:
        run(Path(folder), "data.validation={_target_: parts.py:Broken}")
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def test_an_error_in_rank_0_s_evaluation_reaches_every_rank(tmp_path: Path) -> None:
    first, second = in_world(2, _fails_on_rank_0, str(tmp_path / "run"))
    assert first == "ZeroDivisionError: row 3 is broken"
    assert second.startswith("PeerError: rank 0 failed: ZeroDivisionError: row 3 is broken")


# ---------------------------------------------------------------------- without a recipe's file, and afterwards


def test_objects_alone_or_a_mapping_are_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    alone = launcher.train(
        model=Net(),
        train=WholeNumbers(),
        loss=nn.CrossEntropyLoss(),
        optimizer=partial(torch.optim.SGD, lr=0.1),
        global_batch_size=16,
        steps=3,
        cpu=True,
        output="quiet",
    )
    assert (alone.state, alone.step, alone.folder.parent) == ("finished", 3, tmp_path / "runs" / "run")
    digits = {
        "name": "said",
        "data": {"train": {"_target_": "launcher.datasets.Digits"}, "global_batch_size": 64},
        "model": {"_target_": "launcher.models.MLP", "inputs": 64, "hidden": (16,), "outputs": 10},
        "loss": {"_target_": "CrossEntropyLoss"},
        "optimizer": {"_target_": "SGD", "lr": 0.1},
    }
    (tmp_path / "said.yaml").write_text(yaml.safe_dump({**digits, "train": {"steps": 5}}).replace("!!python/tuple", ""))
    by_mapping = launcher.train(digits, steps=5, cpu=True, output="quiet")
    by_file = launcher.train("said.yaml", cpu=True, output="quiet")
    torch.testing.assert_close(by_mapping.model.state_dict(), by_file.model.state_dict(), rtol=0, atol=0)
    with pytest.raises(RecipeError, match=r"model: holds an object, .* pass it by keyword: model="):
        launcher.train({**digits, "model": Net()})
    assert [run.name for run in launcher.runs()] == ["said", "said", "run"]
    assert [run.folder for run in launcher.runs("said@1")] == [by_mapping.folder]
    loaded = launcher.load("said@2", cpu=True)
    assert not loaded.training
    torch.testing.assert_close(loaded.state_dict(), by_file.model.state_dict(), rtol=0, atol=0)


def test_a_result_has_rows_scores_predictions_and_a_page(tmp_path: Path) -> None:
    result = run(tmp_path / "run", *EVALUATED)
    assert [row["step"] for row in result.metrics if row["split"] == "validation"] == [2, 4, 6, 8, 10, 12]
    assert result.best is not None
    assert result.best.value == min(row["loss"] for row in result.metrics if row["split"] == "validation")
    data = Numbers(size=23, seed=2)
    outputs = result.predict(data.inputs, cpu=True)
    with torch.no_grad():
        torch.testing.assert_close(outputs, result.model.eval()(data.inputs))
    torch.testing.assert_close(result.predict("validation", cpu=True), outputs)
    (measured,) = result.evaluate(data, cpu=True)
    assert measured["split"] == "given"
    assert {**measured, "split": "validation"} == result.scores[0]
    assert result.evaluate("test", cpu=True) == result.scores[1:]
    assert "<!doctype html>" in result.report().read_text().lower()


def test_what_is_wrong_with_a_recipe_is_a_list() -> None:
    assert launcher.check(TINY) == []
    (problem,) = launcher.check(TINY, "optimizer.lrr=1")
    assert (problem.path, "did you mean 'lr'?" in problem.message) == ("optimizer.lrr", True)


def test_processes_that_nobody_started_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"launch.processes: launcher.train\(\) trains in the 1 process that"):
        run(tmp_path / "run", "launch.processes=2")
    assert not (tmp_path / "run").exists()


LOOP = """
import sys, launcher
for number in range(3):
    result = launcher.train(sys.argv[1], "launch.threads=1", "train.epochs=100000", run_dir=f"run-{number}", cpu=True)
    print("came back", result.state)
"""


@pytest.mark.parametrize(("name", "code"), [("SIGINT", -signal.SIGINT), ("SIGTERM", 75)])
def test_a_loop_of_runs_ends_when_it_is_asked_to(tmp_path: Path, name: str, code: int) -> None:
    command = [sys.executable, "-c", LOOP, str(TINY)]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as loop:
        while not (tmp_path / "run-0" / "metrics.jsonl").exists():
            assert loop.poll() is None
            time.sleep(0.05)
        loop.send_signal(getattr(signal, name))
        printed, _ = loop.communicate(timeout=60)
    assert loop.returncode == code
    assert "came back" not in printed
    assert "resume    launcher resume run-0" in printed
    assert json.loads((tmp_path / "run-0" / "status.json").read_text())["state"] == "stopped"
    assert not (tmp_path / "run-1").exists()


def test_a_report_that_lacks_something_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pyarrow" else there(name))
    launcher.train(TINY, "launch.threads=1", *EVALUATED, run_dir=tmp_path / "run", cpu=True)
    assert "no confusion matrix and no mistakes: pyarrow is not installed; pip install" in capsys.readouterr().out
