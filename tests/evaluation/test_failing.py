"""An evaluation that fails leaves what was trained; what a function of one's own cannot be given is told at once."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from projects import make
from worlds import train

from launcher.data.loaders import MicroBatch
from launcher.errors import LauncherError
from launcher.evaluation.metrics import Metric, OverSet
from launcher.evaluation.predictions import Predictions
from launcher.objective.batch import BatchLayout, Evaluated
from launcher.objective.loss import Objective
from launcher.recipe import schema

OWN = """
from pathlib import Path

MENDED = Path(__file__).parent / "mended"

def fails(outputs, targets):
    if len(outputs) > 16 and not MENDED.exists():  # not for the batch that is tried
        raise ValueError("the whole set is too much")
    return float(outputs.mean())

def after(model, at, scores):
    if not MENDED.exists():
        raise ValueError("the whole set is too much")
"""


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("evaluate", ["metrics: {own: {_ref_: own.py:fails}}", "after: {_ref_: own.py:after}"])
def test_a_failing_evaluation_leaves_its_step_and_a_resume_makes_it_first(
    tmp_path: Path, evaluate: str, size: int
) -> None:
    recipe = make(tmp_path, own=OWN)
    changes = [
        "data.validation={_target_: parts.py:Points, size: 40}",
        f"evaluate={{every: 3 steps, batch_size: 8, {evaluate}}}",
        "train.epochs=2",
    ]
    run = tmp_path / "run"
    with pytest.raises(AssertionError, match="the whole set is too much"):
        train(run, *changes, size=size, recipe=recipe)
    assert [path.name for path in (run / "checkpoints").glob("step-*")] == ["step-00000003"]
    (tmp_path / "mended").touch()
    resumed = train(run, *changes, size=size, recipe=recipe)
    whole = train(tmp_path / "whole", *changes, size=size, recipe=recipe)
    assert [line["step"] for line in resumed.lines if line["split"] == "validation"] == [3, 6, 8]
    assert resumed.column("loss", "validation") == whole.column("loss", "validation")
    assert resumed.distance(whole) == 0


SHAPES: dict[str, tuple[list[tuple[int, ...]], list[tuple[int, ...]]]] = {
    "the second is longer": ([(2, 3, 4), (2, 3, 5)], [(2, 4), (2, 5)]),
    "targets alone": ([(2, 3), (2, 3)], [(2, 4), (2, 5)]),
    "another number of dimensions": ([(2, 3), (2, 3, 1)], [(2,), (2,)]),
}


@pytest.mark.parametrize("name", SHAPES)
def test_batches_of_several_shapes_are_refused_at_the_second(name: str) -> None:
    metric = Metric("own", OverSet(lambda outputs, targets: float(outputs.mean()), 2))
    metric.reset(torch.device("cpu"))
    outputs, targets = SHAPES[name]
    first, second = ([torch.zeros(outputs[turn]), torch.zeros(targets[turn])] for turn in (0, 1))
    metric.update(first[:1], first[1:], is_first=True)
    with pytest.raises(LauncherError, match=r"evaluate.metrics.own: .* do not fit together; pad all samples"):
        metric.update(second[:1], second[1:])


def test_shapes_of_two_ranks_are_refused_when_they_meet() -> None:
    metrics = [Metric("own", OverSet(lambda outputs: float(outputs.mean()), 1)) for _ in range(2)]
    for length, metric in enumerate(metrics, start=4):
        metric.reset(torch.device("cpu"))
        metric.update([torch.zeros(2, length)], [], is_first=True)
    metrics[0].join([iter(metric.state()) for metric in metrics])
    with pytest.raises(LauncherError, match=r"float32 \[2, 4\] and float32 \[2, 5\] do not fit together"):
        metrics[0].scores()


def test_predictions_of_several_shapes_are_refused_at_the_second() -> None:
    predictions, of = Predictions(Objective([], BatchLayout(schema.Batch()))), partial(Evaluated, None, None)
    predictions.see(of((torch.zeros(2, 3, 4),), (torch.zeros(2, 4).long(),)), MicroBatch(None, 2, 0))
    with pytest.raises(LauncherError, match=r"predictions: .*int64 \[2, 4\] and int64 \[2, 5\] do not fit"):
        predictions.see(of((torch.zeros(2, 3, 5),), (torch.zeros(2, 5).long(),)), MicroBatch(None, 2, 2))
