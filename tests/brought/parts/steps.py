"""Step functions that people bring, and what their batches count."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from losses import contrast, masked
from nets import Lin
from torch import Tensor, nn


def plain(model: Any, batch: Any, at: Any = None) -> dict[str, Any]:
    out = model(batch[0])
    return {"loss": F.mse_loss(out, batch[1]), "outputs": out, "targets": batch[1]}


def penalised(model: Any, batch: Any, at: Any = None) -> dict[str, Any]:
    """The squared norm of the slopes beside the loss, as critics have it."""
    x = batch[0].requires_grad_()
    out = model(x)
    (slopes,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    return {"loss": F.mse_loss(out, batch[1]) + (slopes.norm(dim=1) - 1).square().mean(), "outputs": out}


def ramped(model: Any, batch: Any, at: Any) -> dict[str, Any]:
    out = model(batch[0])
    return {"loss": F.mse_loss(out, batch[1]) + 3 * at.fraction * out.std(0, unbiased=False).mean()}


def of_mask(model: Any, batch: Any, at: Any = None) -> dict[str, Any]:
    return {"loss": masked(model(batch[0]), batch[1], batch[2])}


def mask_of(batch: Any) -> float:
    return float(batch[2].sum())


def labels_of(batch: Any) -> float:
    return float((batch["labels"] != -100).sum())


def by_method(model: Any, batch: Any, at: Any = None) -> dict[str, Any]:
    return {"loss": F.mse_loss(model.score(batch[0]), batch[1]), "norm": model.line.weight.norm()}


def around_wrapper(model: Any, batch: Any, at: Any = None) -> dict[str, Any]:
    return {"loss": F.mse_loss(getattr(model, "module", model).score(batch[0]), batch[1])}


def by_parts(model: Any, batch: Any, at: Any = None) -> dict[str, Any]:
    """Calls layers by themselves, more than once."""
    hidden = torch.tanh(model.a(batch[0]))
    hidden = torch.tanh(model.a(hidden))
    return {"loss": F.mse_loss(model.b(hidden), batch[1])}


def consistent(model: Any, batch: Any, at: Any = None) -> dict[str, Any]:
    """Two forward passes."""
    one, other = model(batch[0]), model(batch[0] * 1.1)
    return {"loss": F.mse_loss(one, batch[1]) + 0.5 * F.mse_loss(one, other)}


def penalized(model: Any, batch: Any, at: Any = None) -> dict[str, Any]:
    """A penalty on the gradient with respect to the input."""
    with torch.enable_grad():
        x = batch[0].detach().requires_grad_()
        out = model(x)
        (slopes,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    return {"loss": F.mse_loss(out, batch[1]) + 0.1 * (slopes**2).sum(1).mean()}


def with_weights(model: Any, batch: Any, at: Any = None) -> dict[str, Any]:
    """L1 of the weights in the loss itself."""
    decay = sum(parameter.abs().sum() for parameter in model.parameters())
    return {"loss": F.mse_loss(model(batch[0]), batch[1]) + 0.01 * decay}


def mixed(model: Any, batch: Any, at: Any = None) -> dict[str, Any]:
    """Mixup, drawn by NumPy."""
    x, y = batch
    share = float(np.random.beta(0.4, 0.4))
    x, y = share * x + (1 - share) * x.flip(0), share * y + (1 - share) * y.flip(0)
    return {"loss": F.mse_loss(model(x), y), "share": share}


def drawn_by_all(model: Any, batch: Any, at: Any = None) -> dict[str, Any]:
    noise = random.random() + float(np.random.rand()) + torch.rand(()).item()
    return {"loss": F.mse_loss(model(batch[0] * (1 + noise)), batch[1])}


def summed(model: Any, batch: Any, at: Any = None) -> dict[str, Any]:
    return {"loss": F.mse_loss(model(batch[0]), batch[1], reduction="sum") / 8}


def contrasted(model: Any, batch: Any, at: Any = None) -> dict[str, Any]:
    return {"loss": contrast(*model(*batch))}


def annealed(model: Any, batch: Any, at: Any) -> dict[str, Any]:
    """Knows where it stands."""
    return {"loss": F.mse_loss(model(batch[0]), batch[1]) * (1 + 0.1 * at.step)}


def of_present(model: Any, batch: Any, at: Any = None) -> dict[str, Any]:
    """Drops the samples whose target is missing."""
    kept = ~batch[1].isnan().any(1)
    return {"loss": F.mse_loss(model(batch[0][kept]), batch[1][kept])}


def present_of(batch: Any) -> float:
    return float((~batch[1].isnan().any(1)).sum())


class Teacher:
    """A teacher that follows the student, in a state of its own."""

    def __init__(self) -> None:
        self.teacher = Lin()
        self.teacher.requires_grad_(False)

    def state_dict(self) -> dict[str, Any]:
        return self.teacher.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.teacher.load_state_dict(state)

    def __call__(self, model: Any, batch: Any, at: Any = None) -> dict[str, Any]:
        with torch.no_grad():
            for own, other in zip(self.teacher.parameters(), model.parameters(), strict=True):
                own.mul_(0.9).add_(0.1 * other)
        out = model(batch[0])
        return {"loss": F.mse_loss(out, batch[1]) + 0.3 * F.mse_loss(out, self.teacher(batch[0]))}


class TeachingModule(nn.Module):
    """The same as a module: its weights are buffers, as they are in many repositories."""

    center: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(1, dtype=torch.float64))

    def forward(self, model: Any, batch: Any, at: Any = None) -> dict[str, Any]:
        loss = F.mse_loss(model(batch[0]) - self.center, batch[1])
        with torch.no_grad():
            self.center.mul_(0.9).add_(0.1)
        return {"loss": loss}
