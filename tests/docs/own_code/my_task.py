"""Functions as a reader of the pages may write them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def column(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """[N, 1] and [N] to two of one shape."""
    return output.squeeze(1), target


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss of one's own."""
    return nn.functional.cross_entropy(outputs, targets)


def step(model: nn.Module, batch: Any, at: Any) -> Mapping[str, Tensor]:
    """In place of forward and loss."""
    outputs = model(batch[0])
    return {"loss": loss(outputs, batch[1]), "outputs": outputs, "targets": batch[1]}


def count(batch: Any) -> int:
    """What the step's loss is a mean over."""
    return len(batch[1])


def after(model: nn.Module, at: Any) -> None:
    """After each update: keeps the first weight's norm at one."""
    weight = next(model.parameters())
    torch.nn.functional.normalize(weight, out=weight)
