"""What keeps something in itself beside every state_dict, or changes what it is given."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from nets import Deep, Lin
from optimizers import Own
from torch import Tensor, nn

# ---------------------------------------------------------------------- modules


class Counting(Lin):
    """Scales by how often it was called in training."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        return super().forward(x) * (1 + 0.1 * self.calls)


class Drawing(Lin):
    """Noise from a generator of its own, one number a forward."""

    def __init__(self, kind: str = "torch"):
        super().__init__()
        kinds: dict[str, Any] = {"torch": torch.Generator().manual_seed(3), "python": random.Random(3)}
        self.generator = kinds.get(kind) or np.random.default_rng(3)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        if isinstance(self.generator, torch.Generator):
            drawn = torch.rand((), generator=self.generator).item()
        else:
            drawn = self.generator.random()
        return super().forward(x * (1 + 0.1 * drawn))


class Recurrent(nn.Module):
    """Its state at the end of a batch is where the next one begins."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cell, self.line = nn.GRUCell(4, 3, dtype=torch.float64), nn.Linear(3, 1, dtype=torch.float64)
        self.state: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        before = torch.zeros(1, 3, dtype=x.dtype) if self.state is None else self.state
        after = self.cell(x, before.expand(len(x), 3))
        if self.training:
            self.state = after.mean(0, keepdim=True).detach()
        out: Tensor = self.line(after)
        return out


class Phase(Enum):
    """Of a training."""

    FIRST = 1
    SECOND = 2
    LAST = 3


class Mean(NamedTuple):
    """A running one."""

    value: float
    steps: int


@dataclass(slots=True)
class Meter:
    """Without a `__dict__`."""

    total: Fraction = Fraction(0)


class OfEveryKind(Lin):
    """Moves values of every kind in training, and scales by what they come to."""

    def __init__(self) -> None:
        super().__init__()
        self.phase, self.mean, self.seen = Phase.FIRST, Mean(0.0, 0), frozenset[int]()
        self.numbers, self.turns, self.rest = itertools.count(1), itertools.cycle((1, 2, 3)), iter(range(1, 99))
        self.meter, self.space = Meter(), SimpleNamespace(deep={"a": [{"b": [0]}]})
        self.rows, self.names = np.zeros(1, [("n", "i8")]), np.array([None, 0.0])
        self.losses, self.queue = [0.0] * 2000, torch.zeros(2**21 + 1, dtype=torch.float64)
        self.scale = 0.0

    def _moved(self) -> float:
        self.phase = Phase(min(self.phase.value + 1, 3))
        self.mean = Mean(self.mean.value / 2 + 1, self.mean.steps + 1)
        self.seen |= {self.mean.steps}
        self.meter.total += Fraction(1, 3)
        self.space.deep["a"][0]["b"][0] += 1
        self.rows["n"] += 1
        self.names[1] += 1
        self.losses[-1] += 1
        self.queue += 1
        self.line.weight.steps = getattr(self.line.weight, "steps", 0) + 1  # type: ignore[attr-defined]  # as many do
        values = self.phase.value, self.mean.value, len(self.seen), float(self.meter.total), *self.rows["n"]
        steps = next(self.numbers), next(self.turns), next(self.rest), self.line.weight.steps  # type: ignore[attr-defined]
        inner = self.space.deep["a"][0]["b"][0], self.names[1], self.losses[-1], float(self.queue[-1])
        return 0.01 * sum((*values, *steps, *inner))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.scale = self._moved()
        return super().forward(x) * (1 + self.scale)


class Tempered(Lin):
    """Divides by a temperature that somebody else lowers."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / self.temperature


class Dropping(Deep):
    """With a dropout that somebody else raises."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(self.drop(self._first(x)))
        return out


class Normed(nn.Module):
    """With a BatchNorm of which somebody else lowers the momentum."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.line = nn.BatchNorm1d(4, dtype=torch.float64), nn.Linear(4, 1, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.line(self.norm(x))
        return out


class Hiding(Lin):
    """A teacher in a list, which hides it from state_dict and parameters()."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = [Lin()]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = super().forward(x) + 0.5 * self.hidden[0](x).detach()
        return out


class Expanded(Lin):
    """Buffers whose entries are one in memory, and one that is there by two names."""

    mask: Tensor
    one: Tensor
    also: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer(
            "mask", torch.tensor([1.0, 2.0, 1.0, 0.5], dtype=torch.float64).expand(3, 4), persistent=False
        )
        self.register_buffer("one", torch.full((4,), 0.5, dtype=torch.float64))
        self.register_buffer("also", self.one)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * self.mask[0] * self.also)


class Aliased(Lin):
    """Has its weights a second time, as a buffer: a view, which follows them."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", self.line.weight.detach().T)
        self.seen: Tensor

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = super().forward(x) + 0.1 * x @ self.seen
        return out


class Silent(nn.Module):
    """A frozen BatchNorm by a train() that forgets to return the module."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.line = nn.BatchNorm1d(4, dtype=torch.float64), nn.Linear(4, 1, dtype=torch.float64)

    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        self.norm.eval()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.line(self.norm(x))
        return out


class HeadAlone(Deep):
    """Gives the parameters of its head alone."""

    def parameters(self, recurse: bool = True) -> Any:
        return self.b.parameters(recurse)


# ---------------------------------------------------------------------- after each step


def cooled(model: Any, at: Any) -> None:
    model.temperature *= 0.9


def raised(model: Any, at: Any) -> None:
    model.drop.p = 0.1 * at.step


def slowed(model: Any, at: Any) -> None:
    model.norm.momentum *= 0.7


def followed(model: Any, at: Any) -> None:
    for weight, own in zip(model.hidden[0].parameters(), model.line.parameters(), strict=True):
        weight.lerp_(own, 0.3)


# ---------------------------------------------------------------------- optimizers


class Inside(Own):
    """Momentum in an attribute: by the parameter, by its id, or by its place."""

    def __init__(self, params: Any, lr: float = 0.1, by: str = "place"):
        super().__init__(params, lr)
        self.moments: dict[Any, Tensor] = {}
        self.by, self.steps = by, 0

    def before(self) -> None:
        self.steps += 1

    def move(self, parameter: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        keys = {"parameter": parameter, "id": id(parameter), "place": tuple(parameter.shape).__len__()}
        moment = self.moments.setdefault(keys[self.by], torch.zeros_like(parameter))
        moment.mul_(0.9).add_(grad)
        parameter.sub_(moment, alpha=group["lr"] / self.steps)


class Langevin(torch.optim.SGD):
    """Noise after each step."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # torch overloads it
        super().step()
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.add_(torch.randn_like(parameter), alpha=0.01)


# ---------------------------------------------------------------------- steps and losses


def changing(model: Any, batch: Any, at: Any = None) -> dict[str, Any]:
    """Changes its batch in place."""
    x, y = batch
    x.add_(0.5)
    y.mul_(2)
    return {"loss": F.mse_loss(model(x), y)}


def emptying(model: Any, batch: Any, at: Any = None) -> dict[str, Any]:
    """Takes the targets out of its batch."""
    y = batch.pop(1)
    return {"loss": F.mse_loss(model(batch[0]), y)}


def of_shifted(outputs: Tensor, targets: Tensor) -> Tensor:
    """Changes its targets in place, as those do who number classes from one."""
    targets.sub_(1.0)
    return F.mse_loss(outputs, targets)


class Curriculum:
    """A second term from its fourth call on."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, model: Any, batch: Any, at: Any = None) -> dict[str, Any]:
        out = model(batch[0])
        self.calls += model.training
        return {"loss": F.mse_loss(out, batch[1]) + (self.calls > 3) * out.square().mean()}


def by_backward(model: Any, batch: Any, at: Any = None) -> dict[str, Any]:
    """A sample against the model, found by backward(), which leaves gradients in the weights too."""
    x = batch[0].clone().requires_grad_()
    F.mse_loss(model(x), batch[1]).backward()
    return {"loss": F.mse_loss(model(batch[0] + 0.05 * x.grad.sign()), batch[1])}


def and_cleared(model: Any, batch: Any, at: Any = None) -> dict[str, Any]:
    """The same, which clears them."""
    x = batch[0].clone().requires_grad_()
    F.mse_loss(model(x), batch[1]).backward()
    model.zero_grad()
    return {"loss": F.mse_loss(model(batch[0] + 0.05 * x.grad.sign()), batch[1])}


def of_two(model: Any, batch: Any) -> dict[str, Any]:
    """Takes no `at`."""
    return {"loss": F.mse_loss(model(batch[0]), batch[1])}


# ---------------------------------------------------------------------- of odd form: what a forward makes, and refuses


class Slopes(Lin):
    """Fills a buffer that was registered as None when it is first called, as ALiBi's in x-transformers."""

    bias: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bias", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        bias = self.bias
        if bias is None:
            bias = torch.linspace(0, 1, 4, dtype=x.dtype)
            self.register_buffer("bias", bias, persistent=False)
        return super().forward(x * bias)


class Irreps(tuple[int, ...]):
    """A tuple without a length, as e3nn's are."""

    def __len__(self) -> int:
        raise NotImplementedError


class Described(Lin):
    """Is described by one."""

    def __init__(self) -> None:
        super().__init__()
        self.irreps = Irreps((1, 3))
