"""Modules that people bring, in float64, each with the same weights whenever it is made."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint


def made(build: Callable[..., nn.Module]) -> Any:
    """A function that makes a module: seeded, in float64."""

    @functools.wraps(build)
    def make(*args: Any, **kwargs: Any) -> nn.Module:
        torch.manual_seed(0)
        return build(*args, **kwargs).double()

    make.makes = True  # type: ignore[attr-defined]  # see sets.makes
    return make


class Lin(nn.Module):
    """A line."""

    def __init__(self, outputs: int = 1, inputs: int = 4, dtype: torch.dtype = torch.float64):
        super().__init__()
        torch.manual_seed(0)
        self.line = nn.Linear(inputs, outputs, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.line(x.to(self.line.weight.dtype))
        return out.to(x.dtype)

    def score(self, x: Tensor) -> Tensor:
        """The same by another name."""
        return self.forward(x)


def three(**more: Any) -> nn.Module:
    """Scores of three classes."""
    return Lin(3, **more)


three.makes = True  # type: ignore[attr-defined]


def sequential(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers)


@made
def logs() -> nn.Module:
    return sequential(nn.Linear(4, 3), nn.LogSoftmax(1))


@made
def probabilities() -> nn.Module:
    return sequential(nn.Linear(4, 3), nn.Sigmoid())


class Scores(nn.Module):
    """Scores of classes at each place: [N, C, T], or [N, T, C]."""

    def __init__(self, last: bool = False, classes: int = 3, squeezed: bool = False):
        super().__init__()
        torch.manual_seed(0)
        self.line, self.last, self.squeezed = nn.Linear(4, classes, dtype=torch.float64), last, squeezed

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.line(x)
        if self.squeezed:
            return out.squeeze(-1)
        return out if self.last else out.transpose(1, -1)


class Heads(nn.Module):
    """Several outputs of one body."""

    def __init__(self, kind: str = "pair"):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = (nn.Linear(4, 1, dtype=torch.float64) for _ in range(2))
        self.kind = kind

    def forward(self, x: Tensor) -> Any:
        a, b = self.a(x), self.b(x)
        kinds: dict[str, Any] = {
            "pair": lambda: (a, b),
            "positive": lambda: (a, b.exp()),
            "mapping": lambda: {"main": a, "other": {"aux": b}},
            "list": lambda: [a, b, a + b],
            "record": lambda: Result(a, b),
            "code": lambda: (a + b, x, a, b),
        }
        return kinds[self.kind]()


@dataclass
class Result:
    """As transformers' outputs are read: by attribute."""

    main: Tensor
    aux: Tensor


class Twin(nn.Module):
    """Called with two inputs, or three."""

    def __init__(self, outputs: int = 4):
        super().__init__()
        torch.manual_seed(0)
        self.line = nn.Linear(4, outputs, dtype=torch.float64)

    def forward(self, *inputs: Tensor, **named: Tensor) -> Any:
        return tuple(self.line(one) for one in (*inputs, *named.values()))


class Halves(nn.Module):
    """Takes its inputs by name."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right = (nn.Linear(2, 1, dtype=torch.float64) for _ in range(2))

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        out: Tensor = self.left(left) + self.right(right)
        return out


class OfBatch(Lin):
    """Takes the batch itself."""

    def forward(self, batch: Any) -> Tensor:
        return super().forward(batch.image if hasattr(batch, "image") else batch[0])


class Sparse(nn.Module):
    """A product with a sparse batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(4, 1, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.sparse.mm(x, self.weight)
        return out


class Factors(nn.Module):
    """Rows of two sparse tables, multiplied, and a bias of a third: their gradients share memory."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right, self.bias = (nn.Embedding(10, width, sparse=True) for width in (3, 3, 1))
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = (self.left(x[:, 0]) * self.right(x[:, 1])).sum(1, keepdim=True) + self.bias(x[:, 0])
        return out


class OfComplex(Lin):
    """Real and imaginary parts."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.real + 0.5 * x.imag)


class OfBool(Lin):
    """Yes and no as one and zero."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.double())


class Pooled(nn.Module):
    """Rows of graphs, and whose they are; one output a graph."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.line = nn.Linear(4, 1, dtype=torch.float64)

    def forward(self, rows: Tensor, owners: Tensor) -> Tensor:
        out: Tensor = self.line(rows)
        size = int(owners.max()) + 1
        return torch.zeros(size, 1, dtype=out.dtype).index_add(0, owners, torch.tanh(out))


# ---------------------------------------------------------------------- with a loss of their own


class Language(nn.Module):
    """Gives its own loss, of tokens that are not ignored."""

    def __init__(self, gives: str = "mapping", shifts: bool = False, dropout: float = 0.0):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(5, 8, dtype=torch.float64), nn.Linear(8, 5, dtype=torch.float64)
        self.gives, self.shifts = gives, shifts

    def forward(self, input_ids: Tensor, labels: Tensor) -> Any:
        scores = self.head(self.embed(input_ids))
        if self.shifts:
            loss = F.cross_entropy(scores[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        else:
            loss = F.cross_entropy(scores.flatten(0, 1), labels.flatten())
        kinds: dict[str, Any] = {
            "alone": lambda: loss,
            "mapping": lambda: {"loss": loss, "logits": scores},
            "tuple": lambda: (scores, loss),
            "parts": lambda: {"a": loss * 0.25, "b": loss * 0.75},
            "object": lambda: Output(loss, scores),
            "sum": lambda: F.cross_entropy(scores.flatten(0, 1), labels.flatten(), reduction="sum") / 64,
            "rows": lambda: self._by_rows(scores, labels),
            "regularized": lambda: loss + 0.01 * self.head.weight.square().sum(),
            "masked": lambda: self._masked(scores, labels),
            "brackets": lambda: loss[None],
        }
        return kinds[self.gives]()

    @staticmethod
    def _masked(scores: Tensor, labels: Tensor) -> Tensor:
        kept = (labels != -100).double()
        each = F.cross_entropy(scores.transpose(1, 2), labels.clamp(min=0), reduction="none")
        return (each * kept).sum() / kept.sum()

    @staticmethod
    def _by_rows(scores: Tensor, labels: Tensor) -> Tensor:
        kept = labels != -100
        each = F.cross_entropy(scores.transpose(1, 2), labels, reduction="none")
        return (each.sum(1) / kept.sum(1)).mean()


@dataclass
class Output:
    """With a loss."""

    loss: Tensor
    logits: Tensor


class Detects(nn.Module):
    """Losses in train mode; in eval mode the same, as few do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.line = nn.Linear(4, 3, dtype=torch.float64)

    def forward(self, x: Tensor, y: Tensor) -> Any:
        scores = self.line(x)
        return {"classes": F.cross_entropy(scores, y), "size": (scores**2).mean()}


class NamesLosses(Lin):
    """Gives its losses by name, and what is only worth knowing."""

    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        assert y is not None
        out = super().forward(x)
        far = (out - y).abs().mean().detach()
        return {"near": F.mse_loss(out, y), "small": out.square().mean(), "far": far}


class Denoiser(nn.Module):
    """Finds the noise in what it gets, and gives its loss alone, as diffusion models do.

    Args:
        draws: Whether it draws noise and time itself.
    """

    def __init__(self, draws: bool = False):
        super().__init__()
        torch.manual_seed(0)
        self.draws = draws
        self.layers = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4)).double()

    def forward(self, x: Tensor, noise: Tensor | None = None, time: Tensor | None = None) -> Tensor:
        if noise is None or time is None:
            noise, time = torch.randn_like(x), torch.rand(len(x), 1, dtype=x.dtype)
        mixed = (1 - time).sqrt() * x + time.sqrt() * noise
        return F.mse_loss(self.layers(torch.cat([mixed, time], 1)), noise)


class Slopes(nn.Module):
    """Calls autograd in its forward: forces, as of molecules."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)).double()

    def forward(self, x: Tensor) -> Any:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (slopes,) = torch.autograd.grad(self.layers(x).sum(), x, create_graph=True)
        return slopes[:, :1]


class Forces(Slopes):
    """An energy and its forces, as most write it: no thought of who calls it without gradients.

    Args:
        way: How the slopes are taken.
    """

    def __init__(self, way: str = "autograd") -> None:
        super().__init__()
        self.way = way

    def forward(self, x: Tensor) -> Any:
        if self.way == "functional":
            return self.layers(x), torch.func.grad(lambda x: self.layers(x).sum())(x)
        if self.way == "jacrev":
            return self.layers(x), torch.func.vmap(torch.func.jacrev(self.layers))(x)[:, 0]
        x.requires_grad_()
        energy = self.layers(x)
        if self.way == "hook":
            energy.register_hook(lambda gradient: gradient * 1.0)
        (slopes,) = torch.autograd.grad(energy.sum(), x, create_graph=self.training)
        return energy, slopes


class Solution(Forces):
    """A function and where it was taken, or the residual of an equation that it solves."""

    def __init__(self, residual: bool = False) -> None:
        super().__init__()
        self.residual = residual

    def forward(self, x: Tensor) -> Any:
        x.requires_grad_()
        u = self.layers(x)
        if not self.residual:
            return u, x
        (slopes,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        return (slopes.sum(1) - u[:, 0]).square().mean()


class Adapting(Slopes):
    """Learns a little from what it is given before it answers, with backward() in its forward."""

    def forward(self, x: Tensor) -> Tensor:
        first = self.layers[0](x)
        inner = first.detach().requires_grad_()
        self.layers[1:](inner).square().sum().backward()
        assert inner.grad is not None
        out: Tensor = self.layers[1:](first - 0.1 * inner.grad)
        return out


# ---------------------------------------------------------------------- that do things to themselves


class Folding(nn.Module):
    """Folds a low-rank part into its weights in eval mode."""

    def __init__(self, base_trains: bool = True):
        super().__init__()
        torch.manual_seed(0)
        self.w = nn.Parameter(torch.randn(1, 4, dtype=torch.float64), requires_grad=base_trains)
        self.a = nn.Parameter(torch.randn(2, 4, dtype=torch.float64) * 0.3)
        self.b = nn.Parameter(torch.zeros(1, 2, dtype=torch.float64))
        self.folded = False

    def train(self, mode: bool = True) -> Folding:
        super().train(mode)
        if mode == self.folded:
            self.w.data += (-1 if mode else 1) * self.b.data @ self.a.data
            self.folded = not mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        out = x @ self.w.T
        return out if self.folded else out + x @ self.a.T @ self.b.T


class FoldingInside(nn.Module):
    """The same as a part of another."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Folding(base_trains=False)
        self.last = nn.Linear(1, 1, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.inner(x))
        return out


class Forgetting(Lin):
    """Halves its weights whenever it goes back to training, as odd as it is."""

    def train(self, mode: bool = True) -> Forgetting:
        if mode and not self.training:
            with torch.no_grad():
                self.line.weight.mul_(0.5)
        super().train(mode)
        return self


class Extra(Lin):
    """Counts its steps in what `get_extra_state` gives, and scales by them."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def get_extra_state(self) -> Any:
        return {"calls": self.calls}

    def set_extra_state(self, state: Any) -> None:
        self.calls = state["calls"]

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        return super().forward(x) * (1 + 0.1 * self.calls)


class ExtraArray(Extra):
    """The same, given as an array."""

    def get_extra_state(self) -> Any:
        return np.array([self.calls])

    def set_extra_state(self, state: Any) -> None:
        self.calls = int(state[0])


class Numbered(Lin):
    """Its state_dict has a number and a word beside the tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        state = super().state_dict(*args, **kwargs)
        state["calls"], state["made by"] = self.calls, "hand"
        return state

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        tensors = {name: value for name, value in state_dict.items() if isinstance(value, Tensor)}
        self.calls = state_dict["calls"]
        return super().load_state_dict(tensors, strict, assign)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        return super().forward(x) * (1 + 0.1 * self.calls)


class Counting(Lin):
    """Moves a buffer in forward, in eval mode too."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add_(1)
        return super().forward(x) * (1 + 0.1 * self.seen)


class Growing(Lin):
    """A buffer that is there from the first forward, and grows: a memory of steps."""

    memory: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("memory", torch.zeros(0, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.memory = torch.cat([self.memory, torch.ones(1, dtype=torch.float64)])
        return super().forward(x) * (1 + 0.1 * len(self.memory))


class Quantized(nn.Module):
    """Rounds its weights to 8 bits, by a scale that is observed in forward."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.line = nn.Linear(4, 1, dtype=torch.float64)
        self.register_buffer("scale", torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.line.weight
        if self.training:
            self.scale.copy_(weight.detach().abs().max() / 127)
        rounded = weight + ((weight / self.scale).round() * self.scale - weight).detach()
        return F.linear(x, rounded, self.line.bias)


class Deep(nn.Module):
    """Layers of a kind, around a tanh."""

    def __init__(self, kind: str = "plain"):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(4, 4, dtype=torch.float64), nn.Linear(4, 1, dtype=torch.float64)
        self.kind = kind
        wraps: dict[str, Callable[[nn.Module], Any]] = {
            "weight": parametrizations.weight_norm,
            "old weight": nn.utils.weight_norm,
            "orthogonal": parametrizations.orthogonal,
            "symmetric": lambda layer: parametrize.register_parametrization(layer, "weight", Symmetric()),
        }
        if kind in wraps:
            wraps[kind](self.a)
        if kind == "frozen":
            self.a.requires_grad_(False)
        if kind == "tied":
            self.c = nn.Linear(4, 4, dtype=torch.float64)
            self.c.weight = self.a.weight
        if kind == "unused":
            self.spare = nn.Linear(2, 2, dtype=torch.float64)
        if kind == "hooked":
            self.a.register_forward_hook(lambda module, inputs, out: out * 2)
        if kind == "gradient hook":
            self.a.weight.register_hook(lambda grad: grad * 0.5)
        if kind == "frozen by eval":
            self.a.eval()

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3 if self.kind == "several" else 1):
            x = checkpoint(self._first, x, use_reentrant=False) if self.kind == "recomputed" else self._first(x)
        if self.kind == "tied":
            x = torch.tanh(self.c(x))
        out: Tensor = self.b(x)
        return out

    def _first(self, x: Tensor) -> Tensor:
        return torch.tanh(self.a(x))


class Symmetric(nn.Module):
    """A parametrization of one's own."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight.triu() + weight.triu(1).T


class Functional(nn.Module):
    """Calls its layer by a mapping of weights, as meta-learning does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.line = nn.Linear(4, 1, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        twice = {name: value * 2 for name, value in self.line.named_parameters()}
        out: Tensor = torch.func.functional_call(self.line, twice, (x,))
        return out


class Loose(nn.Module):
    """Parameters outside of layers: a number, a list, a mapping, complex ones."""

    def __init__(self, kind: str = "number"):
        super().__init__()
        torch.manual_seed(0)
        self.line, self.kind = nn.Linear(4, 1, dtype=torch.float64), kind
        self.scale = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))
        self.many = nn.ParameterList([torch.full((4,), 0.5 + n, dtype=torch.float64) for n in range(2)])
        self.named = nn.ParameterDict({"shift": torch.zeros(1, dtype=torch.float64)})

    def forward(self, x: Tensor) -> Tensor:
        for part in self.many:
            x = x * part
        out: Tensor = self.line(x) * self.scale + self.named["shift"]
        return out


class Waves(nn.Module):
    """Complex weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.line = nn.Linear(4, 1, dtype=torch.complex128)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.line(x.to(torch.complex128))
        return out.abs()


class Bag(nn.Module):
    """Token numbers to one number, through an embedding of a kind."""

    def __init__(self, kind: str = "plain"):
        super().__init__()
        torch.manual_seed(0)
        sparse = kind.startswith("sparse")
        if kind == "bag" or kind == "sparse bag":
            self.embed: nn.Module = nn.EmbeddingBag(5, 4, dtype=torch.float64, sparse=sparse)
        else:
            settings: dict[str, Any] = {"padding": {"padding_idx": 0}, "renormalized": {"max_norm": 1.0}}
            options = settings.get(kind, {})
            self.embed = nn.Embedding(5, 4, dtype=torch.float64, sparse=sparse, **options)
        self.last = nn.Linear(4, 1, dtype=torch.float64)
        if kind.endswith("alone"):
            self.last.requires_grad_(False)

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.embed(ids)
        scores: Tensor = self.last(out.mean(1) if out.dim() == 3 else out)
        return scores


# ---------------------------------------------------------------------- around all of it


class Defaulted(nn.Module):
    """Its file makes float64 torch's default, as scientists' do."""

    def __init__(self) -> None:
        super().__init__()
        torch.set_default_dtype(torch.float64)
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x) + torch.zeros(1)  # of the default's dtype
        return out


class Wrapper(nn.Module):
    """Hands everything on to what it wraps, as wrappers do."""

    def __init__(self) -> None:
        super().__init__()
        self.module = Lin()

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)
