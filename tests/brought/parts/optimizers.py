"""Optimizers that people bring, with a state of all sorts."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import torch
from sets import makes
from torch import Tensor


class Own(torch.optim.Optimizer):
    """What is the same in all of them."""

    def __init__(self, params: Any, lr: float = 0.1, **settings: Any):
        super().__init__(params, {"lr": lr, **settings})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # torch overloads it
        self.before()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.move(parameter, parameter.grad, self.state[parameter], group)

    def before(self) -> None:
        """Once a step."""

    def move(self, parameter: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        raise NotImplementedError


class Counts(Own):
    """A step counter that is not a parameter's, as MADGRAD's."""

    def before(self) -> None:
        state: Any = self.state
        state.setdefault("k", torch.tensor([0]))
        state["k"] += 1

    def move(self, parameter: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        own: Any = self.state
        done = int(own["k"])
        state.setdefault("s", torch.zeros_like(parameter)).add_(grad * math.sqrt(done))
        parameter.sub_(state["s"], alpha=group["lr"] / done)


class Signs(Own):
    """Lion's."""

    def move(self, parameter: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        average = state.setdefault("average", torch.zeros_like(parameter))
        parameter.add_((average * 0.9 + grad * 0.1).sign(), alpha=-group["lr"] / 10)
        average.lerp_(grad, 0.01)


class Odd(Own):
    """Python's things in the state: numbers, text, a list, nested mappings."""

    def move(self, parameter: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        if not state:
            state.update(t=0, history=[], text="a", none=None, deep={"m": torch.zeros_like(parameter), 3: 1.5})
        state["t"] += 1
        state["history"].append(float(grad.norm()))
        state["deep"]["m"].mul_(0.9).add_(grad)
        parameter.sub_(group["lr"] * state["deep"]["m"] / (1 + sum(state["history"]) / state["t"]))


class InGroup(Own):
    """Keeps its counter in the group, as Prodigy and schedule-free ones do."""

    def __init__(self, params: Any, lr: float = 0.1):
        super().__init__(params, lr, k=0)

    def before(self) -> None:
        for group in self.param_groups:
            group["k"] += 1

    def move(self, parameter: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        parameter.sub_(grad, alpha=group["lr"] / group["k"])


class Wide(Own):
    """State in 32 bits, whatever the weights are in."""

    def move(self, parameter: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        sums = state.setdefault("sums", torch.zeros(parameter.shape, dtype=torch.float32))
        sums.mul_(0.9).add_(grad.float())
        parameter.sub_(sums.to(parameter.dtype), alpha=group["lr"])


class Sparse(Own):
    """Sums that are kept sparse."""

    def move(self, parameter: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        sums = grad + (state["sums"].to_dense() if state else 0)
        state["sums"] = sums.to_sparse()
        parameter.sub_(sums, alpha=group["lr"] / 3)


class Lazy(Own):
    """Steps every second time, on what it has gathered."""

    def move(self, parameter: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        gathered = state.setdefault("gathered", torch.zeros_like(parameter)).add_(grad)
        state["t"] = state.get("t", 0) + 1
        if state["t"] % 2 == 0:
            parameter.sub_(gathered, alpha=group["lr"] / 2)
            gathered.zero_()


class Lookahead(torch.optim.Optimizer):
    """Steps another one, and goes half of the way every second time."""

    def __init__(self, params: Any, lr: float = 0.1):
        self.inner = torch.optim.SGD(params, lr, momentum=0.9)
        super().__init__(self.inner.param_groups, {"lr": lr})
        self.param_groups, self.calls = self.inner.param_groups, 0
        self.slow = [[one.detach().clone() for one in group["params"]] for group in self.param_groups]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # torch overloads it
        self.inner.step()
        self.calls += 1
        if self.calls % 2 == 0:
            for group, slow in zip(self.param_groups, self.slow, strict=True):
                for parameter, kept in zip(group["params"], slow, strict=True):
                    kept.lerp_(parameter, 0.5)
                    parameter.copy_(kept)

    def state_dict(self) -> dict[str, Any]:
        return {"inner": self.inner.state_dict(), "calls": self.calls, "slow": self.slow}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.inner.load_state_dict(state_dict["inner"])
        self.param_groups, self.calls, self.slow = self.inner.param_groups, state_dict["calls"], state_dict["slow"]


class ScheduleFree(torch.optim.Optimizer):
    """Weights of training or of evaluation, switched by train() and eval()."""

    def __init__(self, params: Any, lr: float = 0.1, beta: float = 0.9, trains: bool = True):
        super().__init__(params, {"lr": lr, "beta": beta, "k": 0, "train_mode": trains})

    @torch.no_grad()
    def _switch(self, mode: bool) -> None:
        for group in self.param_groups:
            if group["train_mode"] != mode:
                part = 1 - group["beta"] if mode else 1 - 1 / group["beta"]
                for one in group["params"]:
                    if "z" in self.state[one]:
                        one.lerp_(self.state[one]["z"], part)
                group["train_mode"] = mode

    def eval(self) -> None:
        self._switch(False)

    def train(self) -> None:
        self._switch(True)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # torch overloads it
        for group in self.param_groups:
            assert group["train_mode"], "call optimizer.train() before stepping"
            group["k"] += 1
            part = 1 / group["k"]
            for one in group["params"]:
                own = self.state[one]
                if "z" not in own:
                    own["z"] = one.clone()
                one.lerp_(own["z"], part)
                one.add_(one.grad, alpha=group["lr"] * (group["beta"] * (1 - part) - 1))
                own["z"].sub_(one.grad, alpha=group["lr"])


class WithDeque(torch.optim.SGD):
    """What cannot be read back safely."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # torch overloads it
        super().step()
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter].setdefault("last", deque(maxlen=2)).append(parameter.grad.clone())


@makes
def switched(params: Any) -> torch.optim.Optimizer:
    """A function that makes one."""
    return torch.optim.Adam(params, lr=0.05, betas=(0.8, 0.9))


def slower(step: int) -> float:
    """A rate's factor."""
    return 1 / (1 + step)


def factor(step: int) -> float:
    return 0.9 + 0.01 * step


@makes
def in_sequence(optimizer: Any) -> Any:
    """Two schedules, one after the other."""
    rises = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=2)
    falls = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)
    return torch.optim.lr_scheduler.SequentialLR(optimizer, [rises, falls], [2])


def in_groups(params: Any) -> torch.optim.Optimizer:
    """Of a line: its weight, and its bias."""
    weight, bias = params
    groups: list[dict[str, Any]] = [{"params": [weight]}, {"params": [bias], "lr": 0.01, "weight_decay": 0.1}]
    return torch.optim.SGD(groups, lr=0.1)


class Combined(torch.optim.Optimizer):
    """One for matrices and one for the rest, in a list."""

    def __init__(self, params: Any, lr: float = 0.05):
        own = [*params]
        super().__init__(own, {"lr": lr})
        self.parts = [
            torch.optim.SGD([one for one in own if one.dim() > 1], lr, momentum=0.9),
            torch.optim.Adam([one for one in own if one.dim() < 2], lr),
        ]
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # torch overloads it
        for part in self.parts:
            part.step()


class Nested(torch.optim.Optimizer):
    """A wrapper in a wrapper, with attributes alone."""

    def __init__(self, params: Any, lr: float = 0.05):
        self.outer = Combined(params, lr)
        super().__init__(self.outer.param_groups, {"lr": lr})
        self.param_groups = self.outer.param_groups

    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # torch overloads it
        self.outer.step()
