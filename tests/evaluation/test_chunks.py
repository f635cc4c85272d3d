"""Metrics told of batches by chunks: the same states and figures to the last bit, for each class on the list."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchmetrics
from torch import Tensor
from torchmetrics.classification import BinaryAUROC, MulticlassAccuracy, MulticlassF1Score, MultilabelAccuracy

from launcher.errors import LauncherError
from launcher.evaluation.chunks import EXACT, ROWS, Chunk, is_exact, takes_any_numbers
from launcher.evaluation.metrics import Metric

CLASSES, BATCH, BATCHES = 5, 33, 150  # more rows than a chunk, and a rest


def made(kind: type, **settings: Any) -> Any:
    name = kind.__name__
    if name.startswith("Multiclass"):
        settings["num_classes"] = CLASSES
    elif name.startswith("Multilabel"):
        settings["num_labels"] = CLASSES
    if "FBeta" in name:
        settings["beta"] = 0.5
    return kind(**settings)


def batches(name: str, are_probabilities: Any) -> list[tuple[Tensor, Tensor]]:
    """Outputs and targets; those that lie between 0 and 1 by chance are what could go wrong."""
    generator = torch.Generator().manual_seed(0)
    result = []
    for number in range(BATCHES):
        shape = (BATCH,) if name.startswith("Binary") else (BATCH, CLASSES)
        logits = torch.randn(shape, generator=generator) * 3
        if are_probabilities(number):
            logits = logits.sigmoid() if not name.startswith("Multiclass") else logits.softmax(1)
        several = name.startswith("Multilabel")
        high = CLASSES if name.startswith("Multiclass") else 2
        targets = torch.randint(high, (BATCH, CLASSES) if several else (BATCH,), generator=generator)
        result.append((logits, targets))
    return result


def states(metric: Any) -> list[Any]:
    return [torch.cat(value) if isinstance(value, list) else value for value in metric.metric_state.values()]


@pytest.mark.parametrize("kind", sorted(EXACT, key=str))
@pytest.mark.parametrize("mixed", [False, True])
def test_chunks_have_the_figures_of_batches(kind: type, mixed: bool) -> None:
    plain, told = made(kind), Metric("m", made(kind))
    assert is_exact(told.metric)
    calls: list[int] = []
    update = told.metric.update

    def counted(*parts: Tensor) -> None:
        calls.append(len(parts[0]))
        update(*parts)

    told.metric.update = counted
    for number, (outputs, targets) in enumerate(batches(kind.__name__, lambda n: n % 60 < 5 if mixed else True)):
        plain.update(outputs.clone(), targets)
        told.update([outputs], [targets])
        if number:
            outputs.fill_(7)  # whose memory is somebody else's
    scores, expected = told.scores()["m"], plain.compute()
    likeliest = takes_any_numbers(told.metric)
    logits = 0 if likeliest or not mixed else BATCHES - 15  # which are told one by one
    assert logits < len(calls) <= logits + 6
    assert sum(calls) == BATCH * BATCHES
    assert all(map(torch.equal, states(told.metric), states(plain)))
    assert repr(scores) == repr(listed(expected))


def listed(value: Any) -> Any:
    return value.tolist() if isinstance(value, Tensor) else [listed(part) for part in value]


def test_others_are_told_of_each_batch_and_a_reset_forgets_what_waits() -> None:
    class Own(MulticlassAccuracy):
        """What inherits may do anything."""

    for metric in (torchmetrics.MeanMetric(), Own(num_classes=3), MulticlassAccuracy(3, multidim_average="samplewise")):
        assert not is_exact(metric)
    pair = torchmetrics.MetricCollection([MulticlassAccuracy(3), MulticlassF1Score(3)])
    assert is_exact(pair)
    assert not is_exact(torchmetrics.MetricCollection([MulticlassAccuracy(3), Own(num_classes=3)]))
    told = Metric("both", pair)
    for rows in (4, 5, 6):
        told.update([torch.eye(3).repeat(rows, 1)], [torch.tensor([0, 1, 2]).repeat(rows)])
    told.reset(torch.device("cpu"))
    told.update([torch.eye(3)], [torch.tensor([1, 1, 2])])
    told.update([torch.eye(3)], [torch.tensor([0, 1, 1])])
    assert set(told.scores()) == {"both/MulticlassAccuracy", "both/MulticlassF1Score"}
    hits: Any = pair["MulticlassAccuracy"]
    assert int(hits.tp.sum()) == 4


def test_ranks_are_joined_with_what_waits() -> None:
    ranks = [Metric("m", BinaryAUROC()) for _ in range(2)]
    rows = [torch.linspace(0, 1, 20)[part::2] for part in range(2)]
    for metric, own in zip(ranks, rows, strict=True):
        for part in own.split(3):
            metric.update([part], [(part > 0.4).int()])
    ranks[0].join([iter(metric.state()) for metric in ranks])
    assert ranks[0].scores() == {"m": 1.0}


def test_what_a_metric_cannot_take_is_told_at_the_first_batch() -> None:
    metric = Metric("hits", MultilabelAccuracy(num_labels=4))
    with pytest.raises(LauncherError, match=r"evaluate.metrics.hits: MultilabelAccuracy does not accept .*\[3, 5\]"):
        metric.update([torch.rand(3, 5)], [torch.ones(3, 5, dtype=torch.long)])


def test_only_batches_that_are_alike_are_put_together() -> None:
    chunk = Chunk()
    told: list[list[int]] = []

    def add(*parts: Any) -> None:
        told.extend([len(part) for part in parts] for parts in chunk.add(parts))

    add(torch.rand(4), torch.ones(4))
    add(torch.rand(5), torch.ones(5))
    add(torch.rand(5) + 3, torch.ones(5))  # logits, by themselves
    assert told == [[9, 9], [5, 5]]
    add(torch.rand(6, 2), torch.ones(6))
    add(torch.rand(7, 2).double(), torch.ones(7))
    assert told[2:] == [[6, 6]]
    add(torch.rand(ROWS, 2).double(), torch.ones(ROWS))
    assert told[3:] == [[ROWS + 7, ROWS + 7]]
    add(["a", "b"], ["a", "c"])  # words are told as they come
    assert told[4:] == [[2, 2]]
    assert not list(chunk.rest())
