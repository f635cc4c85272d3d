"""Models and optimizers that keep what their steps change beside every `state_dict`, wherever Python lets them."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor, nn


class Counting(nn.Module):
    """Gives more with each forward in train mode."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.l = nn.Linear(4, 1, dtype=torch.float64)

    def more(self) -> float:
        """How much more."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.l(x)
        return out * (1 + 0.1 * self.more()) if self.training else out


class InClass(Counting):
    """In an attribute of a class."""

    calls = 0

    def more(self) -> float:
        InClass.calls += 1
        return self.calls


_calls = 0


class InModule(Counting):
    """In a global number."""

    def more(self) -> float:
        global _calls
        _calls += 1
        return _calls


class InClosure(Counting):
    """In a variable of a function around."""

    def __init__(self) -> None:
        super().__init__()
        calls = 0

        def count() -> int:
            nonlocal calls
            calls += 1
            return calls

        self.count = count

    def more(self) -> float:
        return self.count()


class InDefault(Counting):
    """In a default argument."""

    def forward(self, x: Tensor, seen: list[int] = []) -> Tensor:  # noqa: B006  # which is the point
        if self.training:
            seen.append(1)
        out: Tensor = self.l(x)
        return out * (1 + 0.1 * len(seen))


class Meter:
    """An object of the model's own."""

    def __init__(self) -> None:
        self.calls = 0


class InObject(Counting):
    """In an attribute of that."""

    def __init__(self) -> None:
        super().__init__()
        self.meter = Meter()

    def more(self) -> float:
        self.meter.calls += 1
        return self.meter.calls


class InDeque(Counting):
    """In a queue of the last two."""

    def __init__(self) -> None:
        super().__init__()
        self.last = deque([0.0, 0.0], maxlen=2)

    def more(self) -> float:
        self.last.append(self.last[-1] + 1)
        return sum(self.last)


class InMapping(Counting):
    """In the value of a mapping."""

    def __init__(self) -> None:
        super().__init__()
        self.named = {"calls": 0}

    def more(self) -> float:
        self.named["calls"] += 1
        return self.named["calls"]


class InList(Counting):
    """In a module that a list hides."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = [nn.Linear(1, 1)]

    @torch.no_grad()
    def more(self) -> float:
        return self.hidden[0].weight.add_(1).item()


class InGenerator(Counting):
    """In a generator of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.noise = torch.Generator().manual_seed(0)

    def more(self) -> float:
        return torch.rand((), generator=self.noise).item()


class InWeights(Counting):
    """In weights, past all that counts changes."""

    def more(self) -> float:
        self.l.bias.data = self.l.bias.data + 1
        return 0.0


class Noisy(torch.optim.SGD):
    """Draws from a generator of its own."""

    def __init__(self, params: Any, lr: float):
        super().__init__(params, lr)
        self.noise = torch.Generator().manual_seed(0)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # torch overloads it
        super().step()
        for parameter in self.param_groups[0]["params"]:
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=self.noise, dtype=parameter.dtype))


class Shared(torch.optim.SGD):
    """Counts in its class."""

    steps = 0

    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # torch overloads it
        Shared.steps += 1
        super().step()
