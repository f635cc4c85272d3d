"""Losses put together at random: an entry's loss, weights, a denominator, and what is done with the whole."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.utils.data import Dataset

CHOICES: Mapping[str, tuple[Any, ...]] = {
    "entry": ("square", "absolute", "classes", "yes or no"),
    "weights": ("none", "mask", "real", "classes", "length"),
    "below": ("samples", "elements", "weights", "kept", "one", "256", "at least 1", "means of rows", "root", "largest"),
    "outer": ("", "", "", "twice", "plus", "root"),
    "long": (1, 3, 5),
    "ignored": (None, -100, 0),
    "late": (False, True),
}


@dataclass(frozen=True)
class Spec:
    """A loss and its data.

    Attributes:
        entry: Of one number.
        weights: Of each.
        below: What their sum is divided by.
        outer: What is done with the whole.
        long: Numbers of a sample.
        ignored: The class that does not count.
        late: Whether the data lacks it, and masks let all through, at first.
        seed: Of the data.
    """

    entry: str
    weights: str
    below: str
    outer: str
    long: int
    ignored: int | None
    late: bool
    seed: int

    @classmethod
    def of(cls, seed: int) -> Spec:
        """One of a number."""
        choose = random.Random(seed)
        return cls(**{name: choose.choice(options) for name, options in CHOICES.items()}, seed=seed)


class Data(Dataset[Any]):
    """Inputs, targets, and weights where the loss takes some.

    Args:
        size: Samples.
        **spec: Of `Spec`.
    """

    def __init__(self, size: int = 24, **spec: Any):
        own, g = Spec(**spec), Generator().manual_seed(spec["seed"])
        self.inputs = torch.randn(size, 3, generator=g, dtype=torch.float64)
        shape, later = (size, own.long), torch.arange(size)[:, None] >= size // 2
        self.extra = _weights_of(own, g, size, later)
        if own.entry == "classes":
            self.targets = torch.randint(0, 4, shape, generator=g)
            if own.ignored is not None:
                holes = torch.rand(shape, generator=g) < 0.4
                holes[:, 0] = False
                self.targets = self.targets.clamp(min=1).masked_fill(holes & (later | (not own.late)), own.ignored)
        elif own.entry == "yes or no":
            self.targets = torch.randint(0, 2, shape, generator=g).double()
            if own.below == "kept" and own.ignored == 0:
                self.targets[:, 0] = 1.0  # a process whose samples have nothing to divide by ends the run
        else:
            self.targets = torch.randn(shape, generator=g, dtype=torch.float64)

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return self.inputs[index], self.targets[index], self.extra[index]


def _weights_of(spec: Spec, g: Generator, size: int, later: Tensor) -> Tensor:
    if spec.weights == "mask":
        mask = torch.arange(spec.long) <= torch.randint(0, spec.long, (size, 1), generator=g)
        return (mask | (spec.late & ~later)).double()
    if spec.weights == "real":
        return torch.rand(size, spec.long, generator=g, dtype=torch.float64) + 0.1
    return torch.randint(1, 6, (size,), generator=g)


class Net(nn.Module):
    """A line to as many numbers as the loss takes, or to the scores of four classes for each.

    Args:
        **spec: Of `Spec`.
    """

    def __init__(self, **spec: Any):
        super().__init__()
        torch.manual_seed(0)
        own = Spec(**spec)
        self.classes = 4 if own.entry == "classes" else 1
        self.line = nn.Linear(3, own.long * self.classes, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, long]`, or `[N, 4, long]`."""
        outputs: Tensor = self.line(x)
        return outputs if self.classes == 1 else outputs.view(len(x), 4, -1)


ENTRIES: Mapping[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "square": lambda o, t, ignored: (o - t) ** 2,
    "absolute": lambda o, t, ignored: (o - t).abs(),
    "yes or no": lambda o, t, ignored: F.binary_cross_entropy_with_logits(o, t, reduction="none"),
    "classes": lambda o, t, ignored: F.cross_entropy(o, t, reduction="none", ignore_index=ignored),
}
OUTER: Mapping[str, Callable[[Tensor], Tensor]] = {
    "": lambda value: value,
    "twice": lambda value: 2 * value,
    "plus": lambda value: value + 0.3,
    "root": lambda value: (value + 1e-3).sqrt(),
}


class Loss(nn.Module):
    """The loss of a batch.

    Args:
        **spec: Of `Spec`.
    """

    def __init__(self, **spec: Any):
        super().__init__()
        self.spec = Spec(**spec)

    def forward(self, outputs: Tensor, targets: Tensor, extra: Tensor) -> Tensor:
        """One number."""
        spec, each = self.spec, ENTRIES[self.spec.entry](outputs, targets, self.spec.ignored or -100)
        if spec.entry == "classes" and spec.ignored == 0:
            each = each * (targets != 0)
        w = self._weights(each, targets, extra)
        if spec.below == "means of rows":
            return OUTER[spec.outer](((each * w).sum(1) / w.sum(1).clamp(min=1e-9)).mean())
        below: Mapping[str, Any] = {
            "samples": len(targets),
            "elements": targets.numel(),
            "weights": w.sum(),
            "one": 1,
            "256": 256,
            "kept": (targets != spec.ignored).sum() if spec.ignored is not None else targets.numel(),
            "at least 1": w.sum().clamp(min=1),
            "root": len(targets) ** 0.5,
            "largest": w.max(),
        }
        return OUTER[spec.outer]((each * w).sum() / below[spec.below])

    def _weights(self, each: Tensor, targets: Tensor, extra: Tensor) -> Tensor:
        if self.spec.weights in ("mask", "real"):
            return extra
        if self.spec.weights == "length":
            return (torch.arange(each.shape[1]) < extra[:, None]).double()
        if self.spec.weights == "classes" and self.spec.entry == "classes":
            return torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=each.dtype)[targets.clamp(min=0)] * (targets >= 0)
        return torch.ones_like(each)


def recipe_of(spec: Spec) -> tuple[str, ...]:
    """Overrides of counted.yaml that make it a recipe of this loss."""
    words = ", ".join(f"{name}: {'null' if value is None else repr(value)}" for name, value in asdict(spec).items())
    words = words.replace("False", "false").replace("True", "true")
    parts = {"data.train": "Data", "model": "Net", "loss": "Loss"}
    own = tuple(f"{key}={{_target_: drawn.py:{name}, {words}}}" for key, name in parts.items())
    return (*own, "batch.targets=[1, 2]", "optimizer.lr=0.01", "train.steps=3")
