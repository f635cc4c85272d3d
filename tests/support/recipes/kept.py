"""Small things of a user's own that keep something: optimizers, losses, layers and step functions with a state."""

from __future__ import annotations

import math
import os
import random
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset


class Reg(Dataset[tuple[Tensor, Tensor]]):
    """20 rows of 4 numbers and their sum."""

    def __init__(self, size: int = 20) -> None:
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(size, 4, generator=generator, dtype=torch.float64)
        self.y = self.x.sum(1, keepdim=True) + 0.1

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index], self.y[index]


class Lin(nn.Module):
    """4 numbers to 1."""

    def __init__(self, dtype: str = "float64") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.l = nn.Linear(4, 1, dtype=getattr(torch, dtype))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.l(x.to(self.l.weight.dtype))
        return out.to(x.dtype)

    def score(self, x: Tensor) -> Tensor:
        """The same by another name."""
        return self.forward(x)


class Loose(Lin):
    """Centred by a mean that is in no state_dict, and by one that takes another's place in each forward."""

    mean: Tensor
    other: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4, dtype=torch.float64), persistent=False)
        self.register_buffer("other", torch.zeros(1, dtype=torch.float64), persistent=False)
        self.register_buffer("mask", torch.ones(4, dtype=torch.bool), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean.lerp_(x.mean(0), 0.1)
            self.other = torch.cat([self.other[-3:], x.mean().reshape(1)])
        return super().forward(x - self.mean - self.other.mean())


class Centring(nn.Module):
    """Changes batches on the device, by a mean of those that it has seen."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4, dtype=torch.float64))

    def forward(self, batch: Any) -> Any:
        if self.training:
            self.mean.lerp_(batch[0].mean(0), 0.1)
        return batch[0] - self.mean, batch[1]


class Scaling:
    """Changes batches on the device, and has a state that is no module's; without it where nobody asks."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, batch: Any) -> Any:
        self.calls += 1
        return batch[0] * (1 + 0.1 * self.calls), batch[1]

    def state_dict(self) -> dict[str, Any]:
        return {"calls": self.calls}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.calls = state["calls"]


class Tallying:
    """Called after steps or evaluations, or on batches; counts, where told so in a way that nobody can keep."""

    def __init__(self, strange: bool = False) -> None:
        self.calls: Any = {object(): 0} if strange else 0

    def __call__(self, first: Any, *others: Any) -> Any:
        if isinstance(self.calls, dict):
            self.calls = {key: count + 1 for key, count in self.calls.items()}
        else:
            self.calls += 1
        return first if isinstance(first, tuple | list) else None


class Quiet:
    """Called after each step, and keeps what it was made of."""

    def __init__(self) -> None:
        self.most, self.names = 0.5, ["a"]

    def __call__(self, model: Any, at: Any) -> None:
        model.l.weight.clamp_(-self.most, self.most)


class Slowing(torch.optim.Optimizer):
    """Steps that become smaller, by an attribute that nobody keeps."""

    def __init__(self, params: Any, lr: float = 0.1):
        super().__init__(params, {"lr": lr})
        self.calls = 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # torch overloads it
        self.calls += 1
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.sub_(parameter.grad, alpha=group["lr"] / self.calls)


class Noting(Lin):
    """It notes what it gave last, as pictures of attention are made of: no number depends on it."""

    last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.last = super().forward(x)
        return self.last


class Backwards(Noting):
    """It counts its gradients: a forward alone shows nothing of it."""

    gradients = 0

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        if out.requires_grad:
            out.register_hook(self.count)
        return out

    def count(self, gradient: Tensor) -> None:
        self.gradients = self.gradients + 1


class Late:
    """A step function that begins to count when half of the run is over."""

    def __init__(self) -> None:
        self.late = 0

    def __call__(self, model: nn.Module, batch: tuple[Tensor, Tensor], at: Any) -> Mapping[str, Any]:
        self.late += at.step >= 4
        return {"loss": functional.mse_loss(model(batch[0]), batch[1])}


class Sparse(Lin):
    """A matrix that is mostly zeros, as a graph's neighbours, whose numbers follow the data."""

    mixing: Tensor

    def __init__(self, layout: str = "sparse_coo") -> None:
        super().__init__()
        dense = torch.eye(4, dtype=torch.float64)
        dense[0, 1] = 0.5
        self.register_buffer("mixing", dense.to_sparse(layout=getattr(torch, layout)))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            coo = self.mixing.layout is torch.sparse_coo
            (self.mixing._values() if coo else self.mixing.values()).mul_(0.9).add_(x.detach().mean())
        return super().forward((self.mixing @ x.t()).t())


class Halved(torch.Tensor):
    """Numbers in 32 bits that kept in 16: a class that wraps another tensor, as 8-bit optimizers have them."""

    kept: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor, shape: Any = None) -> Halved:
        made: Halved = torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=torch.float32)
        return made

    def __init__(self, inner: Tensor, shape: Any = None) -> None:
        self.kept = inner

    def __tensor_flatten__(self) -> tuple[list[str], Any]:
        return ["kept"], self.shape

    @classmethod
    def __tensor_unflatten__(cls, inner: Any, context: Any, *outer: Any) -> Halved:
        return cls(inner["kept"], context)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # it is called on the class
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        aten = torch.ops.aten
        if func is aten.copy_.default:
            args[0].kept.copy_(args[1].kept if isinstance(args[1], Halved) else args[1])
            return args[0]
        if func in (aten.detach.default, aten.clone.default, aten._to_copy.default):
            return cls(args[0].kept.clone() if func is not aten.detach.default else args[0].kept)
        whole = [arg.kept.float() if isinstance(arg, Halved) else arg for arg in args]
        return func(*whole, **(kwargs or {}))


class Halving(torch.optim.Optimizer):
    """Momentum in such a class."""

    def __init__(self, params: Any, lr: float = 0.1):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # torch overloads it
        for group in self.param_groups:
            for parameter in group["params"]:
                state: Any = self.state[parameter]
                if not state:
                    state["momentum"] = Halved(torch.zeros_like(parameter, dtype=torch.bfloat16))
                moved = state["momentum"].kept.to(parameter.dtype) * 0.9 + parameter.grad
                state["momentum"].copy_(moved)
                parameter.add_(moved, alpha=-group["lr"])


class ArrayStep:
    """Counts in NumPy's arrays, which it changes in place."""

    def __init__(self) -> None:
        self.seen = np.zeros((2, 3), order="F")
        self.names = np.array(3, dtype=np.uint16)

    def __call__(self, model: nn.Module, batch: Any, at: Any) -> dict[str, Tensor]:
        self.seen += 1
        self.names += 1
        return {"loss": functional.mse_loss(model(batch[0]), batch[1]) * (1 + float(self.seen.mean() + self.names) / 9)}

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen, "deep": [{"names": self.names}]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.seen, self.names = state["seen"], state["deep"][0]["names"]
        assert self.seen.shape == (2, 3)
        assert self.names.dtype == np.uint16


class Pair(nn.Module):
    """Two layers of one shape, whose lines somebody exchanges between two starts; or of another shape."""

    a: nn.Linear
    b: nn.Linear

    def __init__(self) -> None:
        super().__init__()
        order, width = os.environ.get("PAIR_LINES", "ab"), int(os.environ.get("PAIR_WIDTH", "4"))
        for name in order:
            torch.manual_seed(ord(name))
            setattr(self, name, nn.Linear(4 if name == "a" else width, width if name == "a" else 4).double())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(torch.tanh(self.a(x)))
        return out.sum(1, keepdim=True)


class Kept(torch.optim.Optimizer):
    """Keeps all sorts of things: a counter that is not a parameter's, text, numbers, state in another dtype."""

    def __init__(self, params: Any, lr: float = 0.1):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # torch overloads it
        state: Any = self.state
        if "k" not in state:
            state["k"] = torch.tensor([0])
        done = int(state["k"])
        for group in self.param_groups:
            for parameter in group["params"]:
                own = state[parameter]
                if not own:
                    sums = torch.zeros(parameter.shape, dtype=torch.float32)
                    own.update(sums=sums, kind="text", deep={"m": sums.clone(), 3: 1.5}, pair=(1, None))
                own["sums"].add_(parameter.grad.float() * math.sqrt(done + 1))
                own["deep"]["m"].mul_(0.9).add_(parameter.grad.float())
                change = (own["sums"] + own["deep"]["m"]).to(parameter.dtype)
                parameter.sub_(change, alpha=group["lr"] / (done + 1) * len(own["kind"]) / 4)
        state["k"] += 1


class Wrapped(torch.optim.Optimizer):
    """Steps another optimizer, and has a state_dict of its own, as lookahead's are."""

    def __init__(self, params: Any, lr: float = 0.1):
        self.inner = torch.optim.SGD(params, lr, momentum=0.9)
        super().__init__(self.inner.param_groups, {"lr": lr})
        self.param_groups = self.inner.param_groups
        self.calls = 0

    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # torch overloads it
        self.calls += 1
        for group in self.inner.param_groups:
            group["lr"] = 0.1 / self.calls
        self.inner.step()

    def state_dict(self) -> dict[str, Any]:
        return {"inner": self.inner.state_dict(), "calls": self.calls}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.inner.load_state_dict(state_dict["inner"])
        self.param_groups, self.calls = self.inner.param_groups, state_dict["calls"]


class WithDeque(torch.optim.SGD):
    """Keeps its last gradients in something that cannot be read back safely."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # torch overloads it
        super().step()
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter].setdefault("last", deque(maxlen=2)).append(parameter.grad.clone())


class Forgetful(Kept):
    """Cannot take up what it has given."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        raise KeyError("sums")


class LowRank(nn.Module):
    """Folds a low-rank part into its weights in eval mode, and takes it out again in train mode."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.w = nn.Parameter(torch.randn(1, 4, dtype=torch.float64))
        self.a = nn.Parameter(torch.randn(2, 4, dtype=torch.float64) * 0.3)
        self.b = nn.Parameter(torch.zeros(1, 2, dtype=torch.float64))
        self.folded = False

    def train(self, mode: bool = True) -> LowRank:
        super().train(mode)
        if mode == self.folded:
            self.w.data += (-1 if mode else 1) * self.b.data @ self.a.data
            self.folded = not mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        out = x @ self.w.T
        return out if self.folded else out + x @ self.a.T @ self.b.T


class ScheduleFree(torch.optim.Optimizer):
    """The weights at hand are those of training or of evaluation, switched by train() and eval()."""

    def __init__(self, params: Any, lr: float = 0.1, beta: float = 0.9):
        super().__init__(params, {"lr": lr, "beta": beta, "k": 0, "train_mode": False})

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


class Counting(Lin):
    """Its forward moves a buffer, attributes and a generator, in eval mode as well; all of them matter."""

    seen: Tensor
    cache: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros((), dtype=torch.float64))
        self.register_buffer("cache", torch.zeros(1, dtype=torch.float64), persistent=False)
        self.calls, self.history = 0, [0.0]
        self.generator = np.random.default_rng(0)

    def forward(self, x: Tensor) -> Tensor:
        self.seen = self.seen + 0.01
        self.calls += 1
        self.history.append(float(self.seen))
        if len(x) > len(self.cache):
            self.cache = torch.zeros(len(x), dtype=torch.float64)
        noise = self.generator.normal() if self.training else self.generator.random()
        return super().forward(x) * (1 + self.seen + 0.001 * self.calls + 0.001 * len(self.history)) + 0.01 * noise


class Centered(nn.Module):
    """A loss with a buffer and no parameter."""

    center: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(1, dtype=torch.float64))
        self.drop = nn.Dropout(0.3)

    def forward(self, out: Tensor, y: Tensor) -> Tensor:
        loss = functional.mse_loss(self.drop(out - self.center), y)
        with torch.no_grad():
            self.center.mul_(0.9).add_(0.1 * out.mean())
        return loss


class Annealed:
    """A loss that is not a module, with a counter."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, out: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        return functional.mse_loss(out, y) * (1 + 1 / self.calls)

    def state_dict(self) -> dict[str, Any]:
        return {"calls": self.calls}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.calls = state["calls"]


class Step:
    """A step function with a state, and a method that is the step."""

    def __init__(self) -> None:
        self.mean = torch.zeros(1, dtype=torch.float64)
        self.calls = 0

    def __call__(self, model: nn.Module, batch: tuple[Tensor, Tensor], at: Any) -> Mapping[str, Any]:
        out = model(batch[0])
        self.mean = 0.9 * self.mean + 0.1 * out.detach().mean()
        self.calls += 1
        return {"loss": functional.mse_loss(out - self.mean, batch[1]), "outputs": out, "targets": batch[1]}

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean, "calls": self.calls}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.mean, self.calls = state["mean"], state["calls"]


def samples(batch: tuple[Tensor, Tensor]) -> int:
    """What these steps' losses are means over; nobody can measure it where their state or chance goes into them."""
    return len(batch[0])


def drawing_step(model: nn.Module, batch: tuple[Tensor, Tensor], at: Any) -> Mapping[str, Any]:
    """Draws from all three generators."""
    drawn = random.random() + np.random.rand() + float(torch.rand(()))
    return {"loss": functional.mse_loss(model(batch[0]) * drawn, batch[1]), "drawn": drawn}


def flips_step(model: nn.Module, batch: tuple[Tensor, Tensor], at: Any) -> Mapping[str, Any]:
    """Flips a coin of NumPy's and one of torch's."""
    ours, theirs = int(np.random.randint(2)), int(torch.randint(2, ()))
    return {"loss": functional.mse_loss(model(batch[0]), batch[1]), "numpy": ours, "torch": theirs}


class Stepper(nn.Module):
    """A step function that is a module, with a buffer and a layer for its own use."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, dtype=torch.float64))
        self.drop = nn.Dropout(0.5)

    def forward(self, model: nn.Module, batch: tuple[Tensor, Tensor], at: Any) -> Mapping[str, Any]:
        out = self.drop(model(batch[0]))
        self.mean = 0.9 * self.mean + 0.1 * out.detach().mean()
        return {"loss": functional.mse_loss(out - self.mean, batch[1]), "outputs": out, "targets": batch[1]}


class Extra(Lin):
    """Keeps something that is not a tensor in its state_dict."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[str, Any] = {"calls": 0, "names": ["a"]}

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.kept = {**self.kept, "calls": self.kept["calls"] + 1}
        out: Tensor = super().forward(x) * (1 + 0.01 * self.kept["calls"])
        return out

    def get_extra_state(self) -> dict[str, Any]:
        return dict(self.kept)

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.kept = dict(state)


def method_step(model: Any, batch: tuple[Tensor, Tensor], at: Any) -> Mapping[str, Any]:
    """Calls a method, reads an attribute, and calls the model a second time."""
    out = model.score(batch[0]) + 0.1 * model(batch[0]) + 0 * model.l.weight.sum()
    return {"loss": functional.mse_loss(out, batch[1]), "outputs": out, "targets": batch[1]}


def around_step(model: Any, batch: tuple[Tensor, Tensor], at: Any) -> Mapping[str, Any]:
    """Goes around DDP, as people do after an AttributeError."""
    return {"loss": functional.mse_loss(getattr(model, "module", model).score(batch[0]), batch[1])}


class HalfFrozen(Lin):
    """A frozen layer before the one that is trained."""

    def __init__(self, thaws_at: int = -1) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4, dtype=torch.float64).requires_grad_(False)
        self.table = nn.Parameter(torch.arange(3), requires_grad=False)
        self.thaws_at, self.calls = thaws_at, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.first.requires_grad_(self.calls == self.thaws_at)
        return super().forward(self.first(x))


def thawing_step(model: Any, batch: tuple[Tensor, Tensor], at: Any) -> Mapping[str, Any]:
    """Begins to train the first layer after three steps."""
    if at.step == 3:
        model.first.weight.requires_grad_(True)
    return {"loss": functional.mse_loss(model.l(model.first(batch[0])), batch[1])}


class Rounding(torch.optim.SGD):
    """Gives its state in another dtype than it needs."""

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "calls": random.random()}


class Moments:
    """Something of a user's own, in a state."""


class SetLoss(Annealed):
    """Has it in its state."""

    def state_dict(self) -> dict[str, Any]:
        return {"calls": self.calls, "moments": Moments()}


class Growing(Lin):
    """Buffers that appear and grow in forward, as an observer's do."""

    low: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("low", torch.empty(0, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "scale"):
            self.register_buffer("scale", torch.ones(1, dtype=torch.float64))
        if self.low.numel() == 0:
            self.low.resize_(4).zero_()
        self.low.copy_(torch.minimum(self.low, x.detach().min(0).values))
        self.scale.mul_(0.99)
        return super().forward(x * self.scale + 0.01 * self.low)


class Quantized(Lin):
    """Trained for quantization: torch's observer of each channel resizes its buffers in the first forward pass."""

    def __init__(self) -> None:
        super().__init__()
        from torch.ao.quantization import FakeQuantize, MovingAveragePerChannelMinMaxObserver

        self.fake = FakeQuantize(MovingAveragePerChannelMinMaxObserver, ch_axis=1, qscheme=torch.per_channel_affine)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.fake(x.float()).double())


def parting_step(model: Any, batch: tuple[Tensor, Tensor], at: Any) -> Mapping[str, Any]:
    """Moves one rank's weights by a little more each step."""
    part = float(os.environ["PART_BY"]) * int(os.environ.get("RANK", "0"))
    with torch.no_grad():
        model.l.weight.add_(part)
    return {"loss": functional.mse_loss(model(batch[0]), batch[1])}


class Normed(Lin):
    """Has a BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.norm(x))
