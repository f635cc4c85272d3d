"""Step functions that call parts of a model, in the recipe's precision; and the same loops by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from recipes.ways import Points, batches
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD


class Parts(nn.Module):
    """Two layers, which a step function calls by themselves, by a method and together."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 1)

    def encode(self, x: Tensor) -> Tensor:
        encoded: Tensor = self.norm(self.first(x)).tanh()
        return encoded

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.encode(x))
        return out


def _is_half(part: Tensor) -> float:
    return float(part.dtype == torch.bfloat16)


def step(model: Any, batch: Any, at: Any) -> Mapping[str, Any]:
    """By a method, by a part, and whole."""
    x, y = batch[0].float(), batch[1].float()
    out, whole = model.last(model.encode(x)), model(x).float()
    loss = functional.mse_loss(out, y) + functional.mse_loss(whole, y)
    return {"loss": loss, "half": _is_half(out)}


def mean(model: Any, batch: Any, at: Any) -> Mapping[str, Any]:
    """A loss in half precision: its size, from noise that nobody casts."""
    return {"loss": (model.last(model.encode(torch.ones(len(batch[0]), 4))) - 2.0).square().mean()}


def samples(batch: Any) -> int:
    """What a batch counts."""
    return len(batch[0])


Precision = Callable[[], AbstractContextManager[Any]]
AUTOCAST = {"bf16": torch.bfloat16, "bf16-true": torch.bfloat16}


def by_hand(precision: str, *steps: Any) -> tuple[list[float], float]:
    """The losses of each step, and that of an evaluation at the end."""
    dtype = AUTOCAST.get(precision)
    under = partial(torch.autocast, "cpu", dtype or torch.bfloat16, enabled=dtype is not None)
    model = Parts()
    if precision == "bf16-true":
        model = model.bfloat16()
        whole = model.forward

        def forward(x: Tensor) -> Tensor:
            with torch.autocast("cpu", enabled=False):
                return whole(x.bfloat16()).float()

        model.forward = forward  # type: ignore[method-assign]  # as `bf16-true` has it
    names = {step: ("first", "norm"), mean: ("last",)} if len(steps) > 1 else {step: ("",)}
    named = list(model.named_parameters())
    optimizers = {
        function: SGD([part for name, part in named if name.startswith(starts)], lr=0.05)
        for function, starts in names.items()
    }

    def loss_of(function: Any, batch: Any) -> Tensor:
        with under():
            value: Tensor = function(model, batch, None)["loss"]
        return value.float()

    losses = []
    for _, batch in batches():
        parts = []
        for function in steps:
            model.zero_grad()
            parts.append(loss_of(function, batch))
            parts[-1].backward()
            optimizers[function].step()
        losses.append(sum(part.item() for part in parts))
    points = Points()
    with torch.no_grad():
        return losses, sum(loss_of(function, (points.x, points.y)).item() for function in steps)
