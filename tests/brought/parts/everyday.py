"""What many repositories have: small numbers in denominators, losses that change what they get, objects for results."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from nets import Lin
from sets import SIZE, Rows, normal, whole
from torch import Tensor, nn
from torch.utils.data import Dataset

# ---------------------------------------------------------------------- numbers beside a count


def visible(outputs: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Of what is visible, and never divided by nothing."""
    return (F.smooth_l1_loss(outputs, targets, reduction="none") * mask).sum() / (mask.sum() + 1e-8)


def laplace(outputs: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """One more than there are."""
    return ((outputs - targets) ** 2 * mask).sum() / (mask.sum() + 1)


class Lifetimes(Rows):
    """How long, and whether it was seen to end."""

    def __init__(self) -> None:
        self.tensors = normal(SIZE, 4), normal(SIZE, seed=4).abs(), (whole(3, SIZE) > 0).double()


def survival(outputs: Tensor, time: Tensor, event: Tensor) -> Tensor:
    """By the events that were seen; those that were not have a part in it, too."""
    rate = outputs[:, 0].exp()
    return -(event * rate.log() - rate * time).sum() / event.sum()


# ---------------------------------------------------------------------- that change what they get


def rewriting(outputs: Tensor, targets: Tensor) -> Tensor:
    """Marks a class as ignored, in the batch itself."""
    targets[targets == 1] = -100
    return F.cross_entropy(outputs, targets)


class WithMask(Dataset[Any]):
    """Three numbers to find and which of them count, by name."""

    def __init__(self) -> None:
        self.x, self.y, self.mask = normal(SIZE, 4), normal(SIZE, 3, seed=4), (whole(3, SIZE, 3) > 0).double()

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> Any:
        return self.x[index], {"y": self.y[index], "mask": self.mask[index]}


def popping(outputs: Tensor, targets: dict[str, Tensor]) -> Tensor:
    """Takes a part out of its mapping."""
    mask = targets.pop("mask")
    return ((outputs - targets["y"]) ** 2 * mask).sum() / mask.sum()


def halving(model: Any, batch: Any, at: Any = None) -> dict[str, Any]:
    """Scales its batch where it stands."""
    batch[0].mul_(0.5)
    return {"loss": F.mse_loss(model(batch[0]), batch[1])}


# ---------------------------------------------------------------------- results that are objects


@dataclass
class Answer:
    """What a loss gives."""

    loss: Tensor
    parts: Any = None


def in_dataclass(outputs: Tensor, targets: Tensor) -> Answer:
    return Answer(F.mse_loss(outputs, targets), {"near": 1.0})


@dataclass
class Scores:
    """What a model gives."""

    logits: Tensor
    hidden: Any = None


class Output(OrderedDict[str, Any]):
    """The same by name and by attribute, and closed: as transformers' are."""

    def __getattr__(self, name: str) -> Any:
        return self[name]

    def update(self, *_: Any, **__: Any) -> None:
        raise Exception("You cannot use ``update`` on an Output instance.")


class Answers(Lin):
    """Scores of three classes in an object."""

    def __init__(self, kind: str):
        super().__init__(3)
        self.kind = kind

    def forward(self, x: Tensor) -> Any:
        logits = super().forward(x)
        if self.kind == "distribution":
            return torch.distributions.Normal(logits, 1.0)
        return Scores(logits) if self.kind == "dataclass" else Output([("logits", logits)])


def of_logits(outputs: Any, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.logits, targets)


def likelihood(outputs: Any, targets: Tensor) -> Tensor:
    value: Tensor = -outputs.log_prob(targets[:, None]).sum(1).mean()
    return value


class Attending(nn.Module):
    """An output, and two things beside it: a batch of two has as many samples."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(4, 4).double(), nn.Linear(4, 1).double()

    def forward(self, x: Tensor) -> Any:
        hidden = torch.tanh(self.a(x))
        return {"out": self.b(hidden), "beside": (hidden.softmax(1), hidden.T.softmax(0)), "none": None}


def with_attention(outputs: dict[str, Any], targets: Tensor) -> Tensor:
    one, other = outputs["beside"]
    value: Tensor = F.mse_loss(outputs["out"], targets) + 0.1 * (one.square().mean() + other.square().mean())
    return value


# ---------------------------------------------------------------------- model and loss that know each other


@torch.jit.script
def scripted(outputs: Tensor, targets: Tensor) -> Tensor:
    return ((outputs - targets) ** 2).mean()


class WithCriterion(Lin):
    """Its loss stands in it."""

    def __init__(self) -> None:
        super().__init__()
        self.criterion = nn.MSELoss()


class Decaying(nn.Module):
    """Is told the model, which it keeps in a list, so that its parameters are not its own."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.models = [model]

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        decay = torch.stack([parameter.square().sum() for parameter in self.models[0].parameters()]).sum()
        return F.mse_loss(outputs, targets) + 0.01 * decay


# ---------------------------------------------------------------------- what is not there, in numbers and lists


class Unmeasured(Rows):
    """Three numbers to find; what nobody has measured is -1, or -999."""

    def __init__(self, nothing: float = -1.0):
        y = normal(SIZE, 3, seed=4).abs() + 0.1
        missing = whole(3, SIZE, 3) == 0
        missing[:, 0] = False
        y[missing] = nothing
        self.tensors = normal(SIZE, 4), y


def measured(outputs: Tensor, targets: Tensor) -> Tensor:
    there = targets != -1
    return (outputs - targets)[there].square().mean()


def above(outputs: Tensor, targets: Tensor) -> Tensor:
    there = targets > -900
    return F.l1_loss(outputs[there], targets[there])


class SomeWithout(Dataset[Any]):
    """Every third sample has no class."""

    def __init__(self) -> None:
        self.x, self.y = normal(SIZE, 4), whole(3, SIZE)

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> Any:
        return self.x[index], self.y[index] if index % 3 else None


def listed(samples: list[Any]) -> tuple[Tensor, list[Any]]:
    return torch.stack([x for x, _ in samples]), [y for _, y in samples]


def of_those_with(outputs: Tensor, targets: list[Any]) -> Tensor:
    """A mean over all samples, to which those without a class add nothing."""
    pairs = zip(outputs, targets, strict=True)
    each = [F.cross_entropy(one, target) if target is not None else 0 * one.sum() for one, target in pairs]
    return torch.stack(each).mean()


class ByName(nn.Module):
    """Takes all by name alone."""

    def forward(self, *, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels)


class OfTuple(nn.Module):
    """Insists on a tuple that no annotation asks for, as code under a checker of types does."""

    def __init__(self, sizes: Any):
        super().__init__()
        if not isinstance(sizes, tuple):
            raise TypeError(f"sizes={sizes} is a list and not a tuple")
        torch.manual_seed(0)
        self.line = nn.Linear(sizes[0], sizes[1], dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.line(x)
        return out


class Failing(nn.Module):
    """Fails whatever it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(4, 1, dtype=torch.float64)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        raise ValueError("nothing is ready")


def squared(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().mean()
