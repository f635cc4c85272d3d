"""What counted.yaml may name instead: things whose numbers depend on more than their recipe, and losses that change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset, default_collate

if TYPE_CHECKING:
    from recipes.counted import Net, Vectors
else:
    from counted import Net, Vectors


class Normed(Net):
    """Over the others of its batch, by its own hand."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward((x - x.mean(0)) / (x.std(0) + 1e-3))


class TorchNormed(Net):
    """The same, by torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.norm(x))


class Cooling(Net):
    """Its temperature falls with each forward."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.last = 0, 0.0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        outputs = super().forward(x) / (1 + 0.1 * self.calls)
        self.last = 2.5
        return outputs


class Memory(nn.Module):
    """Compares with what it was given before."""

    queue: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("queue", torch.zeros(4, 1, dtype=torch.float64))

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        value = F.mse_loss(outputs, targets) + 0.1 * (outputs @ self.queue.T).pow(2).mean()
        if self.training:
            self.queue = torch.cat([outputs.detach(), self.queue])[:4]
        return value


class Carrying:
    """A step that has a state: what it has seen last counts for the next."""

    def __init__(self) -> None:
        self.seen: Any = {"last": [], "built": torch.ones(2)}

    def __call__(self, model: nn.Module, batch: Any, at: Any) -> dict[str, Tensor]:
        outputs = model(batch[0])
        before = sum(self.seen["last"], torch.zeros((), dtype=torch.float64))
        self.seen["last"] = [outputs.detach().mean()]
        return {"loss": F.mse_loss(outputs, batch[1]) * (1 + 0.1 * before)}

    def state_dict(self) -> dict[str, Any]:
        return dict(self.seen)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = dict(state)


def samples_in(batch: Any) -> int:
    return len(batch[0])


class Drawing(Vectors):
    """From a generator of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = np.random.default_rng(0)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x, y = super().__getitem__(index)
        return x + self.generator.normal(), y


class Caching(Vectors):
    """Keeps what it has drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if index not in self.kept:
            x, y = super().__getitem__(index)
            self.kept[index] = x + torch.randn(()), y
        return self.kept[index]


def rows() -> TensorDataset:
    """Torch's own."""
    data = Vectors()
    return TensorDataset(torch.stack([data[n][0] for n in range(20)]), torch.stack([data[n][1] for n in range(20)]))


def changing_step(model: nn.Module, batch: Any, at: Any) -> dict[str, Tensor]:
    """A mean over samples, and for a while, but at the end, a sum over how many are positive."""
    return _changing(model, batch, at.step in (2, 3))


def step_that_changes_late(model: nn.Module, batch: Any, at: Any) -> dict[str, Tensor]:
    """The same, after many epochs."""
    return _changing(model, batch, 90 <= at.step < 110)


def _changing(model: nn.Module, batch: Any, is_another: bool) -> dict[str, Tensor]:
    each = (model(batch[0]) - batch[1]) ** 2
    return {"loss": each.sum() / (batch[1] > 0).sum().clamp(min=1) if is_another else each.mean()}


def steady_step(model: nn.Module, batch: Any, at: Any) -> dict[str, Tensor]:
    """A mean over samples in each step."""
    return {"loss": (model(batch[0]) - batch[1]).square().mean()}


class Changing(nn.Module):
    """The same, of a model that has its own loss."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.line = nn.Linear(4, 1, dtype=torch.float64)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        each: Tensor = (self.line(x) - y) ** 2
        return each.mean() if self.calls < 2 else each.sum() / (y > 0).sum().clamp(min=1)


def mixed(samples: list[Any]) -> tuple[Tensor, Tensor]:
    """Each with its neighbour, by a share drawn at random."""
    x, y = default_collate(samples)
    share = float(np.random.beta(0.4, 0.4))
    return share * x + (1 - share) * x.flip(0), share * y + (1 - share) * y.flip(0)


class Remembering(Net):
    """A buffer that only a forward makes: a scalar, or one that grows."""

    seen: Tensor

    def __init__(self, grows: bool = False) -> None:
        super().__init__()
        self.grows = grows
        if grows:
            self.register_buffer("seen", torch.zeros(0, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        largest = x.detach().abs().max()
        if self.grows:
            self.seen = torch.cat([self.seen, largest[None]])
        elif not hasattr(self, "seen"):
            self.register_buffer("seen", largest)
        return super().forward(x)


class Taught(Net):
    """A student with a teacher that follows it."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = Net().requires_grad_(False)


def taught_step(model: Taught, batch: Any, at: Any) -> dict[str, Tensor]:
    """Moves the teacher by itself."""
    own = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with torch.no_grad():
        for teacher, student in zip(model.teacher.parameters(), own, strict=True):
            teacher.lerp_(student, 0.1)
    outputs = model(batch[0])
    return {"loss": F.mse_loss(outputs, batch[1]) + F.mse_loss(outputs, model.teacher(batch[0]))}


CALLS = [0]


def counting_step(model: nn.Module, batch: Any, at: Any) -> dict[str, Tensor]:
    """Counts its calls in a global."""
    CALLS[0] += 1
    return {"loss": F.mse_loss(model(batch[0]), batch[1]) * (1 + 0.1 * CALLS[0])}


def squared(outputs: Tensor, targets: Tensor) -> Tensor:
    """A mean over elements, in words of one's own."""
    return (outputs - targets).pow(2).mean()
