"""A loss's arguments get what they are called, or the recipe must say which is which."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from launcher.errors import LauncherError
from launcher.objective.batch import BatchLayout, arguments
from launcher.objective.order import order_fault
from launcher.recipe import schema


def elbo(recon: Tensor, x: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """In an order of its own."""
    return F.mse_loss(recon, x) - (1 + logvar - mu**2 - logvar.exp()).mean()


def in_order_of_keras(y_true: Tensor, y_pred: Tensor, weight: Tensor) -> Tensor:
    """As keras and sklearn have it."""
    return ((y_true - y_pred) ** 2 * weight).mean()


class Turned(nn.Module):
    """Targets first."""

    def forward(self, labels: Tensor, logits: Tensor) -> Tensor:
        """Cross entropy."""
        return F.cross_entropy(logits, labels)


@pytest.mark.parametrize(
    ("loss", "outputs", "targets", "is_wrong"),
    [
        (in_order_of_keras, 1, 1, True),
        (in_order_of_keras, 1, 2, True),
        (in_order_of_keras, 1, 0, False),
        (Turned(), 1, 1, True),
        (functools.partial(in_order_of_keras, weight=torch.ones(1)), 1, 1, True),
        (lambda reference, estimate: reference, 1, 1, True),
        (lambda target, weight: target, 1, 1, False),
        (lambda y, y_hat: y, 1, 1, False),
        (lambda y_pred, y_true: y_pred, 1, 1, False),
        (lambda scores, labels: scores, 1, 1, False),
        (nn.GaussianNLLLoss(), 2, 1, True),
        (F.gaussian_nll_loss, 2, 1, True),
        (elbo, 3, 1, True),
        (nn.CosineEmbeddingLoss(), 2, 1, False),
        (nn.TripletMarginLoss(), 3, 0, False),
        (nn.MSELoss(), 1, 1, False),
        (lambda x, y: x, 1, 1, False),
    ],
)
def test_arguments_that_would_get_something_else_are_noticed(
    loss: Any, outputs: int, targets: int, is_wrong: bool
) -> None:
    assert (order_fault(loss, range(outputs), range(targets)) is not None) == is_wrong


def test_an_argument_gets_one_value_and_the_words_to_write_are_the_names() -> None:
    assert order_fault(in_order_of_keras, {"y_pred": 0}, {"y_true": 1, "weight": 2}) is None
    for outputs, targets in (([0], {"y_true": 1, "weight": 2}), ([0], [1, 2])):
        fault = order_fault(in_order_of_keras, outputs, targets) or ""
        assert fault.endswith("say which is which: _outputs_: {y_pred: 0}, _targets_: {y_true: 1, weight: 2}")
    layout, pred = BatchLayout(schema.Batch()), torch.zeros(4, 1)
    assert layout.picked_outputs(pred, {"y_pred": 0})["y_pred"] is pred
    with pytest.raises(LauncherError, match="the model's result has no 1; it is a Tensor"):
        layout.picked_outputs(pred, {"y_pred": 1})


def test_arguments_by_name() -> None:
    mean, var, y = torch.zeros(4, 1), torch.ones(4, 1), torch.full((4, 1), 2.0)
    args, kwargs = arguments({"input": mean, "var": var}, {"target": y})
    assert float(nn.GaussianNLLLoss()(*args, **kwargs)) == 2.0
