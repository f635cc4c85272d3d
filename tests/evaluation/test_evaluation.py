"""Evaluation: what it measures, on one rank or on all, what becomes of it, and what was saved measured again."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recipes.parts import Net, Numbers, OneNumber, Values, WordNet, Words, YesOrNo, spread
from sklearn.metrics import f1_score, precision_score, r2_score, roc_auc_score, roc_curve
from tiers import rounds
from torch import nn
from worlds import TINY, Command, Trained, in_world, survivors, train, train_here, train_in_process

import launcher
from launcher.cli.main import main
from launcher.errors import RecipeError
from launcher.recipe.duration import Duration
from launcher.recipe.load import load_recipe
from launcher.runs.report.predictions import read_mistakes
from launcher.training.finish import mean_of

SIZES = (1, 7, 97, 100)
ACCURACY = "accuracy: {_target_: MulticlassAccuracy, num_classes: 3, average: micro}"


def sets(name: str) -> str:
    listed = ", ".join(f"n{size}: {{_target_: 'parts.py:{name}', size: {size}}}" for size in SIZES)
    return f"data.validation={{{listed}}}"


# a task: what is trained, on sets of every size, and the metrics
TASKS = {
    "classes": (
        sets("Numbers"),
        "evaluate.metrics={accuracy: {_target_: MulticlassAccuracy, num_classes: 3, average: micro},"
        " f1: {_target_: MulticlassF1Score, num_classes: 3, average: macro},"
        " each: {_target_: MulticlassRecall, num_classes: 3, average: none},"
        " auroc: {_target_: MulticlassAUROC, num_classes: 3, _sets_: [n7, n97, n100]},"
        " spread: {_ref_: 'parts.py:spread'},"
        " by class: {_target_: torchmetrics.wrappers.ClasswiseWrapper,"
        "  metric: {_target_: MulticlassF1Score, num_classes: 3, average: none}},"
        " most: {_target_: torchmetrics.wrappers.MinMaxMetric,"
        "  base_metric: {_target_: MulticlassAccuracy, num_classes: 3, average: micro}},"
        " both: {_target_: MetricCollection, metrics: ["
        "  {_target_: MulticlassPrecision, num_classes: 3}, {_target_: MulticlassF1Score, num_classes: 3}]},"
        " curve: {_target_: MulticlassROC, num_classes: 3, average: micro, _input_: probabilities}}",
    ),
    "yes or no": (
        "data.train={_target_: 'parts.py:YesOrNo'}",
        "model={_target_: 'parts.py:OneNumber'}",
        "loss={_target_: BCEWithLogitsLoss}",
        sets("YesOrNo"),
        "evaluate.metrics={auroc: {_target_: BinaryAUROC, _input_: probabilities, _sets_: [n7, n97, n100]},"
        " f1: {_target_: BinaryF1Score, _input_: classes}}",
    ),
    "values": (
        "data.train={_target_: 'parts.py:Values'}",
        "model={_target_: 'parts.py:OneNumber'}",
        "loss={_target_: MSELoss}",
        sets("Values"),
        "evaluate.metrics={r2: {_target_: R2Score, _sets_: [n7, n97, n100]}}",
    ),
    "words": (
        "data.train={_target_: 'parts.py:Words'}",
        "model={_target_: 'parts.py:WordNet'}",
        "loss={_target_: CrossEntropyLoss, ignore_index: -100}",
        sets("Words"),
        "evaluate.metrics={perplexity: {_target_: Perplexity, ignore_index: -100}}",
    ),
}


def by_brute_force(task: str, weights: dict[str, torch.Tensor], size: int) -> dict[str, Any]:
    """Loss and metrics over all samples at once, by torch, scikit-learn and NumPy alone."""
    data = {"classes": Numbers, "yes or no": YesOrNo, "values": Values, "words": Words}[task](size)
    model = {"classes": Net, "yes or no": OneNumber, "values": OneNumber, "words": WordNet}[task]()
    model.load_state_dict(weights)
    rows = [data[index] for index in range(size)]
    inputs, targets = torch.stack([row[0] for row in rows]), torch.stack([torch.as_tensor(row[1]) for row in rows])
    with torch.no_grad():
        outputs = model.eval()(inputs)
    if task == "values":
        error = float(((outputs - targets) ** 2).mean())
        return {"loss": error} if size == 1 else {"loss": error, "r2": r2_score(targets, outputs)}
    if task == "words":
        kept = targets != -100
        loss = float(nn.functional.cross_entropy(outputs.transpose(1, 2)[kept], targets[kept]))
        return {"loss": loss, "perplexity": float(np.exp(loss))}
    if task == "yes or no":
        loss = float(nn.functional.binary_cross_entropy_with_logits(outputs, targets))
        found = {"loss": loss, "f1": f1_score(targets, outputs > 0, zero_division=0)}
        return found if size == 1 else {**found, "auroc": roc_auc_score(targets, outputs)}
    chosen, shares = outputs.argmax(1), outputs.softmax(1)
    accuracy = float((chosen == targets).double().mean())
    f1 = f1_score(targets, chosen, average="macro", zero_division=0)
    each = f1_score(targets, chosen, average=None, labels=range(3), zero_division=0)
    wrong_share, right_share, _ = roc_curve(
        nn.functional.one_hot(targets, 3).flatten(), shares.flatten(), drop_intermediate=False
    )
    found = {
        "loss": float(nn.functional.cross_entropy(outputs, targets)),
        "accuracy": accuracy,
        "most/raw": accuracy,
        "f1": f1,
        "both/MulticlassF1Score": f1,
        "spread": spread(outputs, targets),
        **{f"by class/multiclassf1score_{one}": each[one] for one in range(3)},
        "both/MulticlassPrecision": precision_score(targets, chosen, average="macro", zero_division=0),
        "curve": [wrong_share.tolist(), right_share.tolist()],
    }
    if size == 1:
        return found
    recalls = [float((chosen[targets == one] == one).double().mean()) for one in range(3)]
    auroc = roc_auc_score(targets, shares, multi_class="ovr", average="macro")
    return {**found, "auroc": auroc, "each": recalls}


def check_task(task: str, trained: Trained) -> None:
    for size in SIZES:
        line = [line for line in trained.lines if line.get("name") == f"n{size}"][-1]
        for name, value in by_brute_force(task, trained.weights, size).items():
            pairs = zip(line[name], value, strict=False) if name == "curve" else [(line[name], value)]
            assert all(one == pytest.approx(other, abs=1e-6, rel=1e-6) for one, other in pairs), (size, name)


@rounds("size, ranks", plain=[(1, "first"), (2, "all"), (3, "all")], long=[(2, "first"), (4, "all")])
def test_the_figures_are_those_of_brute_force(tmp_path: Path, size: int, ranks: str) -> None:
    how = ("train={steps: 2}", "evaluate.batch_size=9", f"evaluate.ranks={ranks}")
    for task, settings in TASKS.items():
        check_task(task, train(tmp_path / task.replace(" ", "-"), *settings, *how, size=size))


BATCH_NORM = ("model.norm=true", "data.drop_last=true", "data.validation={_target_: 'parts.py:Numbers', size: 23}")


@pytest.mark.parametrize("size", [2, 3])
def test_all_ranks_find_what_rank_0_finds_also_with_batch_norm(tmp_path: Path, size: int) -> None:
    settings = (*BATCH_NORM, f"evaluate.metrics={{{ACCURACY}}}", "evaluate.every=1 steps", "train={steps: 5}")
    first = train(tmp_path / "first", *settings, size=size)
    shared = train(tmp_path / "all", *settings, "evaluate.ranks=all", size=size)
    assert shared.distance(first) == 0
    for key in ("loss", "accuracy"):
        assert shared.column(key, "validation") == pytest.approx(first.column(key, "validation"), abs=1e-9)


@rounds("size, seconds", plain=[(2, 4)], long=[(2, 6), (3, 6)])
def test_evaluation_may_take_several_times_the_group_s_timeout(tmp_path: Path, size: int, seconds: int) -> None:
    slow = f"data.validation={{_target_: 'parts.py:Slow', seconds: {seconds}}}"
    timeout = "device.timeout=2 seconds"
    settings = (*BATCH_NORM[:2], "train={steps: 3}")
    trained = train(tmp_path / "run", *settings, slow, timeout, "evaluate.every=2 steps", size=size)
    assert trained.distance(train(tmp_path / "without", *settings, size=size)) == 0


# ---------------------------------------------------------------------- what goes wrong

# the data set, the fault, and what the others say when rank 0 alone evaluates
FAILURES = {
    "raises": ("Numbers", "raise@evaluation.batch:2", "rank 0 failed: RuntimeError: a fault"),
    "is killed": ("Deadly", None, "rank 0 ended while this rank waited for it, evaluating 1/12"),
    "hangs": ("Stuck", None, "rank 0 ended while this rank waited for it, evaluating 1/12"),
}


def _tells(folder: str, faults: str | None, overrides: tuple[str, ...]) -> str:
    try:
        train_here(folder, overrides, faults=faults)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


@rounds(
    "ranks, how",
    plain=[("first", "raises"), ("first", "is killed"), ("all", "hangs")],
    long=[("all", "raises"), ("all", "is killed"), ("first", "hangs")],
)
def test_a_rank_that_is_lost_in_evaluation_ends_the_others_at_once(tmp_path: Path, how: str, ranks: str) -> None:
    validation, faults, said = FAILURES[how]
    overrides = (
        f"data.validation={{_target_: 'parts.py:{validation}', size: 60}}",
        *("evaluate.batch_size=5", f"evaluate.ranks={ranks}", "evaluate.timeout=2 seconds", "evaluate.every=1 steps"),
    )
    lost = 1 if ranks == "all" and how != "raises" else 0  # whose share the row is that never comes
    told = survivors(3, _tells, str(tmp_path / "run"), faults, overrides, lost=lost, within=20)
    if ranks == "first":
        assert all(said in one for one in told), told
    assert all(one != "nothing" for one in told)


# by what happens on rank 0: the fault, and how the report begins
REPORTS = {
    "raises": ("raise@evaluation.batch:2", r": RuntimeError: a fault at evaluation\.batch"),
    "is killed": ("kill@evaluation.batch:2", r": killed by signal 9"),
    "hangs": ("", r" in \S*parts\.py:\d+: evaluate\.timeout: no progress for 2 seconds in validation, 4 of"),
}


@rounds("how, size", plain=[(how, 2) for how in REPORTS], long=[(how, 3) for how in REPORTS])
def test_what_happens_to_rank_0_in_an_evaluation_is_reported_and_nobody_is_left(
    tmp_path: Path, how: str, size: int
) -> None:
    faults, first = REPORTS[how]
    validation = "Stuck" if how == "hangs" else "Numbers"
    overrides = (
        f"data.validation={{_target_: 'parts.py:{validation}', size: 60}}",
        *("evaluate.batch_size=5", "evaluate.timeout=2 seconds", "evaluate.every=2 steps", "launch.threads=1"),
    )
    arguments = ("--cpu", "--processes", str(size), "--run-dir", "run", "--quiet")
    done = Command(tmp_path, "train", str(TINY), *arguments, *overrides, LAUNCHER_FAULTS=faults).wait()
    ended = time.time()
    assert (done.code, done.left) == (1, []), done.screen
    assert re.match(rf"launcher: rank 0 of {size} on \S+ failed at step 2 \(epoch 0\.50\){first}", done.report), (
        done.screen
    )
    failure = json.loads((tmp_path / "run" / "failure.json").read_text())
    assert (failure["rank"], failure["step"]) == (0, 2)
    assert ended - failure["time"] < 10  # the issue's own bound


def _says_into(errors: str, folder: str, overrides: tuple[str, ...]) -> None:
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT), 2)
    train_here(folder, overrides)


def test_what_hangs_is_shown_where_it_stands(tmp_path: Path) -> None:
    stuck = "data.validation={_target_: 'parts.py:Stuck', size: 60}"
    overrides = (stuck, "evaluate.timeout=2 seconds", "evaluate.first=true", "evaluate.batch_size=5")
    errors = tmp_path / "errors"
    with pytest.raises(AssertionError, match="it died"):
        in_world(1, _says_into, str(errors), str(tmp_path / "run"), overrides)
    said = errors.read_text()
    assert "evaluate.timeout: no progress for 2 seconds in validation, 4 of 12 batches done" in said
    assert "time.sleep(3600 if index == 20 else 0)" in said


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (
            "{_target_: MulticlassAccuracy, num_classes: 5}",
            r"evaluate\.metrics\.it: MulticlassAccuracy does not accept .*float\d+ \[2, 3\], int64 \[2\]",
        ),
        (
            "{_ref_: 'parts.py:halved'}",
            r"evaluate\.metrics\.it: halved does not accept outputs and targets of float\d+ \[2, 3\]",
        ),
        ("{_target_: MeanSquaredError}", r"evaluate\.metrics\.it: MeanSquaredError does not accept"),
    ],
)
def test_a_metric_that_does_not_fit_is_named_by_check(
    metric: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    validation = "data.validation={_target_: 'parts.py:Numbers'}"
    assert main(["check", str(TINY), validation, f"evaluate.metrics={{it: {metric}}}"]) == 2
    said = capsys.readouterr()
    assert re.search(message, said.err + said.out), said


def test_a_metric_that_has_no_value_in_the_end_is_named_with_the_shapes(capsys: pytest.CaptureFixture[str]) -> None:
    settings = (*TASKS["values"][:3], "data.validation={_target_: 'parts.py:Values', size: 1}")
    assert main(["check", str(TINY), *settings, "evaluate.metrics={it: {_target_: R2Score}}"]) == 2
    said = capsys.readouterr()
    shapes = r"float64 \[1\], float64 \[1\]"
    wanted = (
        rf"evaluate\.metrics\.it: R2Score: Needs at least two .*; the first batch had outputs and targets of {shapes}"
    )
    assert re.search(wanted, said.err + said.out), said


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evaluate.metrics={it: {_target_: BinaryAUROC, _input_: logit}}", "is not allowed; one of: probabilities"),
        ("evaluate.metrics={it: {_target_: BinaryAUROC, _sets_: clean}}", "must be a list of names"),
        ("evaluate.metrics={it: {_target_: BinaryAUROC, _sets_: [clean]}}", "no evaluation set is named 'clean'"),
        ("evaluate.best={metric: ema/loss, mode: min}", "no metric is named 'ema/loss'"),
    ],
)
def test_what_a_metric_cannot_say(override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(TINY, ["data.validation={_target_: 'parts.py:Numbers'}", override])


# ---------------------------------------------------------------------- what follows


@pytest.mark.parametrize("size", [1, 2])
def test_the_average_is_that_of_the_weights_after_each_step(tmp_path: Path, size: int) -> None:
    settings = (
        *("train.ema=0.8", "train.epochs=2", "save={every: 1 steps, keep: 20}", "evaluate.every=1 steps"),
        *("data.validation={_target_: 'parts.py:Numbers', size: 23}", "evaluate.best={metric: ema/loss, mode: min}"),
    )
    trained = train(tmp_path / "run", *settings, size=size)
    steps = sorted((tmp_path / "run" / "checkpoints").iterdir())
    weights = [torch.load(step / "weights.pth", weights_only=True) for step in steps]
    average = dict(weights[0])
    for number, after in enumerate(weights[1:], 1):
        kept = min(0.8, (1 + number) / (10 + number))  # it warms up
        average = {name: value + (1 - kept) * (after[name] - value) for name, value in average.items()}
    saved = torch.load(tmp_path / "run" / "model_weights_ema.pth", weights_only=True)
    assert all(torch.allclose(saved[name], value, atol=1e-12) for name, value in average.items())
    loss = by_brute_force("classes", saved, 23)["loss"]
    assert trained.column("ema/loss", "validation")[-1] == pytest.approx(loss, abs=1e-9)
    plain = train(tmp_path / "plain", "train.epochs=2", size=size)
    assert trained.distance(plain) == 0  # averaging and evaluating change nothing


def test_equal_parts_and_the_mean_of_the_last_checkpoints(tmp_path: Path) -> None:
    settings = (
        *("train.swa={start: 3 steps, every: 2 steps}", "train.epochs=2", "save={every: 1 steps, keep: 20}"),
        *("save.average_last=4", "data.validation={_target_: 'parts.py:Numbers', size: 23}"),
    )
    trained = train(tmp_path / "run", *settings)
    steps = sorted((tmp_path / "run" / "checkpoints").iterdir())
    weights = [torch.load(step / "weights.pth", weights_only=True) for step in steps]
    for kind, taken in (("swa", weights[2::2]), ("mean", weights[-4:])):
        saved = torch.load(tmp_path / "run" / f"model_weights_{kind}.pth", weights_only=True)
        for name in saved:
            mean = torch.stack([one[name].double() for one in taken]).mean(0)
            assert torch.allclose(saved[name].double(), mean, atol=1e-7), (kind, name)
    assert len(trained.column("swa/loss", "validation")) == 2


def test_fractions_of_every_kind_have_a_mean(tmp_path: Path) -> None:
    kinds = (torch.complex64, torch.complex128, torch.bfloat16, torch.float8_e4m3fn, torch.int32)
    states = [{str(kind): torch.full((2,), step).to(kind) for kind in kinds} for step in (2.0, 1.0)]
    for step, state in zip((2.0, 1.0), states, strict=True):
        state |= {"coo": (step * torch.eye(2)).to_sparse(), "csr": (step * torch.eye(2)).to_sparse_csr()}
    mean = mean_of(states)
    assert [mean[str(kind)].dtype for kind in kinds] == list(kinds)
    assert [mean[str(kind)].to(torch.complex64)[0].item() for kind in kinds] == [1.5, 1.5, 1.5, 1.5, 2]
    assert [mean[name].to_dense()[0, 0] for name in ("coo", "csr")] == [1.5, 2]


def test_an_average_of_another_kind_begins_anew(tmp_path: Path) -> None:
    run, often = tmp_path / "run", ("train.epochs=2", "save={every: 1 steps, keep: 20}")
    train_in_process(run, "train.ema=0.9", *often, until=Duration.parse("2 steps"))
    changed = {"allow_changes": ("train.ema", "train.swa")}
    train_in_process(run, "train.swa={start: 4 steps, every: 1 steps}", *often, **changed)
    steps = sorted((run / "checkpoints").iterdir())
    taken = [torch.load(step / "weights.pth", weights_only=True) for step in steps[3:]]
    saved = torch.load(run / "model_weights_swa.pth", weights_only=True)
    for name, value in saved.items():
        mean = torch.stack([weights[name].double() for weights in taken]).mean(0)
        assert torch.allclose(value.double(), mean, atol=1e-7), name


def test_an_average_without_warming_up(tmp_path: Path) -> None:
    settings = ("train.ema=0.8", "train.ema_warmup=false", "train={steps: 2}", "save={every: 1 steps, keep: 2}")
    train(tmp_path / "run", *settings)
    first, last = (
        torch.load(step / "weights.pth", weights_only=True)
        for step in sorted((tmp_path / "run" / "checkpoints").iterdir())
    )
    saved = torch.load(tmp_path / "run" / "model_weights_ema.pth", weights_only=True)
    assert all(torch.allclose(saved[name], 0.8 * first[name] + 0.2 * last[name], atol=1e-6) for name in saved)


def test_the_average_goes_on_after_a_stop(tmp_path: Path) -> None:
    settings = ("train.ema=0.8", "save.every=2 steps", "model.dropout=0.3")
    straight = train(tmp_path / "straight", *settings)
    with pytest.raises(AssertionError):
        in_world(1, train_here, str(tmp_path / "run"), settings, str(TINY), (), "kill@step:5")
    gone_on = train(tmp_path / "run", *settings)
    assert gone_on.distance(straight) == 0
    one, other = (torch.load(run.folder / "model_weights_ema.pth", weights_only=True) for run in (straight, gone_on))
    assert all(torch.equal(one[name], other[name]) for name in one)


# ---------------------------------------------------------------------- what was saved


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run with two validation sets, a test set, a best, and averaged weights."""
    return train(
        tmp_path_factory.mktemp("saved") / "run",
        "data.validation.near={_target_: 'parts.py:Numbers', size: 23}",
        "data.validation.far={_target_: 'parts.py:Numbers', seed: 9}",
        "data.test={_target_: 'parts.py:Numbers', size: 31, seed: 3}",
        f"evaluate.metrics={{{ACCURACY}, each: {{_target_: MulticlassRecall, num_classes: 3, average: none}}}}",
        *("evaluate.best={metric: loss, mode: min, of: far}", "save.final=best", "train.ema=0.5"),
    )


def figures(lines: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        f"{line['split']} {line.get('name', '')} {key}": value
        for line in lines
        for key, value in line.items()
        if key not in ("time", "split", "name")
    }


@pytest.mark.parametrize("processes", [1, 2])
def test_evaluate_gives_the_figures_that_training_printed(
    saved: Trained, processes: int, capfd: pytest.CaptureFixture[str]
) -> None:
    many = ["--processes", str(processes)] if processes > 1 else ["data.train={_target_: 'parts.py:Gone'}"]
    assert main(["evaluate", str(saved.folder), "--cpu", "--json", "launch.threads=1", *many]) == 0
    said = [json.loads(line) for line in capfd.readouterr().out.splitlines() if line.startswith("{")]
    best = min((line for line in saved.lines if line.get("name") == "far"), key=lambda line: line["loss"])["step"]
    printed = [line for line in saved.lines if line["split"] != "train" and line["step"] == best]
    expected, found = figures(printed), figures(said)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-9 if processes == 1 else 1e-6), name


def test_evaluate_knows_the_parameters_of_the_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loss = ("loss={_target_: 'parts.py:Scaled'}", "data.validation={_target_: 'parts.py:Numbers', size: 23}")
    trained = train(tmp_path / "run", *loss, "optimizer.lr=0.1")
    for path in (trained.folder, trained.folder / "checkpoints" / "step-00000012"):
        assert main(["evaluate", str(path), "--cpu", "--json", "launch.threads=1"]) == 0
        said = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
        assert said[-1]["loss"] == pytest.approx(trained.column("loss", "validation")[-1], abs=1e-12)
    copy = tmp_path / "weights.pth"
    copy.write_bytes((trained.folder / "model_weights.pth").read_bytes())
    assert main(["evaluate", str(copy), "--recipe", str(TINY), *loss, "--cpu"]) == 2
    assert "the loss has parameters of its own" in capsys.readouterr().err


def test_evaluate_shows_a_table_and_each_class(saved: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(saved.folder), "--cpu", "--split", "test"]) == 0
    said = capsys.readouterr().out
    assert all(one in said for one in ("accuracy", "ema/accuracy", "test, class"))
    assert main(["evaluate", str(saved.folder), "--cpu", "--split", "tset"]) == 2
    refused = "no set is called tset; did you mean 'test'? There are: validation near, validation far, test, train"
    assert refused in capsys.readouterr().err
    assert main(["evaluate", str(saved.folder), "--cpu", "--split", "train", "--json"]) == 0
    line = json.loads(capsys.readouterr().out)
    assert (line["split"], "accuracy" in line) == ("train", True)


def test_evaluate_takes_a_checkpoint_or_a_file_with_its_recipe(
    saved: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = sorted((saved.folder / "checkpoints").iterdir())[-1]
    assert main(["evaluate", str(checkpoint), "--cpu", "--json", "--split", "near"]) == 0
    line = json.loads(capsys.readouterr().out)
    printed = [line for line in saved.lines if line.get("name") == "near"][-1]
    assert line["loss"] == pytest.approx(printed["loss"], abs=1e-9)
    alone = tmp_path / "alone.pth"
    alone.write_bytes((checkpoint / "weights.pth").read_bytes())
    assert main(["evaluate", str(alone), "--cpu"]) == 2
    assert "name their recipe: --recipe FILE" in capsys.readouterr().err
    validation = "data.validation={_target_: 'parts.py:Numbers', size: 23}"
    assert main(["evaluate", str(alone), "--recipe", str(TINY), "--cpu", "--json", validation]) == 0
    assert json.loads(capsys.readouterr().out)["loss"] == pytest.approx(printed["loss"], abs=1e-9)


def test_predictions_have_every_sample_in_order(saved: Trained, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "seen.parquet"
    assert main(["evaluate", str(saved.folder), "--cpu", "--split", "test", "--predictions", str(path)]) == 0
    table = parquet.read_table(path).to_pydict()
    data, model = Numbers(31, 3), Net()
    model.load_state_dict(saved.weights)
    with torch.no_grad():
        shares = model.eval()(data.inputs).softmax(1)
    assert table["index"] == list(range(31))
    assert table["target"] == data.targets.tolist()
    assert table["prediction"] == shares.argmax(1).tolist()
    assert table["probability"] == pytest.approx(shares.max(1).values.tolist(), abs=1e-6)
    expected = -shares[torch.arange(31), data.targets].log()
    assert table["loss"] == pytest.approx(expected.tolist(), abs=1e-5)
    of_the_run = parquet.read_table(saved.folder / "predictions.parquet").to_pydict()
    assert of_the_run == table  # written at the run's end, for its report


def test_predictions_of_a_stream_are_in_order_whoever_made_them(saved: Trained, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "seen.parquet"
    stream = ("data.test={_target_: 'parts.py:Flow', size: 31, seed: 3}", "evaluate.batch_size=4", "launch.threads=1")
    shared = ("--cpu", "--split", "test", "--processes", "2", "--predictions", str(path))
    assert main(["evaluate", str(saved.folder), *stream, *shared]) == 0
    table = parquet.read_table(path).to_pydict()
    of_the_run = parquet.read_table(saved.folder / "predictions.parquet").to_pydict()
    assert table.keys() == of_the_run.keys()
    assert all(table[name] == pytest.approx(of_the_run[name], abs=1e-6) for name in table)


# what a run keeps for its report, without anybody having asked: settings, the warning, whether there is a file
KEPT = {
    "a stream": (("data.test={_target_: 'parts.py:Flow'}",), None, True),
    "rows that are no samples": (
        (
            *("data.train={_target_: 'parts.py:FlatWords'}", "data.test={_target_: 'parts.py:FlatWords'}"),
            "model={_target_: Linear, in_features: 4, out_features: 3, dtype: {_ref_: torch.float64}}",
            "loss={_target_: CrossEntropyLoss, ignore_index: -100}",
        ),
        *(None, False),
    ),
    "rows that cannot be read again": (
        ("data.test={_target_: 'parts.py:OnlyBatches', seed: 3}",),
        *("predictions.parquet: NotImplementedError('ask for batches'); the report shows no mistakes", False),
    ),
}


@pytest.mark.parametrize("case", KEPT)
def test_no_run_fails_for_its_predictions(tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    pytest.importorskip("pyarrow")
    settings, warning, is_kept = KEPT[case]
    result = launcher.train(TINY, "launch.threads=1", *settings, "train.epochs=1", run_dir=tmp_path / "run", cpu=True)
    said = capsys.readouterr()
    assert result.state == "finished"
    assert (tmp_path / "run" / "model_weights.pth").exists()
    assert (tmp_path / "run" / "predictions.parquet").exists() == is_kept
    assert warning in said.out + said.err if warning else "predictions.parquet" not in said.out + said.err


@pytest.mark.parametrize("size", [1, 2])
def test_without_a_test_set_the_report_shows_the_validation_set(tmp_path: Path, size: int) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    settings = (*TASKS["yes or no"][:3], "evaluate.ranks=all", "evaluate.batch_size=4", "train.epochs=2")
    sets_of_it = "data.validation={one: {_target_: 'parts.py:YesOrNo', size: 23}, two: {_target_: 'parts.py:YesOrNo'}}"
    trained = train(tmp_path / "run", *settings, sets_of_it, size=size)
    data, model = YesOrNo(23), OneNumber()
    model.load_state_dict(trained.weights)
    with torch.no_grad():
        outputs = model.eval()(data.inputs)
    table = parquet.read_table(tmp_path / "run" / "predictions.parquet").to_pydict()
    assert table["index"] == list(range(23))
    assert table["target"] == (data.targets > 0).long().tolist()
    assert table["prediction"] == (outputs > 0).long().tolist()
    losses = nn.functional.binary_cross_entropy_with_logits(outputs, (data.targets > 0).double(), reduction="none")
    assert table["loss"] == pytest.approx(losses.tolist(), abs=1e-5)
    mistakes = read_mistakes(tmp_path / "run")
    assert mistakes is not None
    assert (mistakes.of, int(mistakes.matrix.sum())) == ("validation one", 23)


def refuse(word: str) -> None:
    raise AssertionError(f"{word} is not JSON")


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_predict_gives_outputs_in_order(saved: Trained, tmp_path: Path, suffix: str) -> None:
    target = tmp_path / f"outputs.{suffix}"
    changed = "data.test={_target_: 'parts.py:Inputs', size: 45}"
    assert main(["predict", str(saved.folder), changed, "--cpu", "--to", str(target)]) == 0
    if suffix == "jsonl":
        rows = [json.loads(line) for line in target.read_text().splitlines()]
    else:
        rows = pytest.importorskip("pyarrow.parquet").read_table(target).to_pylist()
    model = Net()
    model.load_state_dict(saved.weights)
    with torch.no_grad():
        outputs = model.eval()(Numbers(45).inputs)
    assert [row["index"] for row in rows] == list(range(45))
    assert torch.allclose(torch.tensor([row["output"] for row in rows]).double(), outputs, atol=1e-5)
    assert [row["prediction"] for row in rows] == outputs.argmax(1).tolist()


def test_outputs_that_are_no_numbers_are_words(saved: Trained, tmp_path: Path) -> None:
    target, unknown = tmp_path / "outputs.jsonl", "data.test={_target_: 'parts.py:Blank', size: 2}"
    assert main(["predict", str(saved.folder), unknown, "--cpu", "--to", str(target)]) == 0
    first, second = (json.loads(line, parse_constant=refuse) for line in target.read_text().splitlines())
    assert first["output"] == ["NaN"] * 3
    assert all(isinstance(one, float) for one in second["output"])


def test_weights_of_another_model_are_a_mistake_of_the_command(
    saved: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = ["model={_target_: parts.py:Net, norm: true}", "data.validation={_target_: parts.py:WholeNumbers}"]
    weights = str(saved.folder / "model_weights.pth")
    assert main(["evaluate", weights, "--recipe", str(TINY), *changes, "--cpu"]) == 2
    said = capsys.readouterr().err
    assert "does not fit the recipe's model: Error(s) in loading state_dict for Net: Missing key(s)" in said
    assert said.count("\n") == 1


def test_predict_says_what_it_cannot(saved: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(saved.folder), "--cpu", "--to", "outputs.txt"]) == 2
    assert "the suffix sets the format; one of: .csv, .jsonl, .parquet, or -" in capsys.readouterr().err
    assert not Path("outputs.txt").exists()
