"""What counted.yaml names: sequences of unequal length, ignored labels, losses with means of their own."""

from __future__ import annotations

import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset


class Sequences(Dataset[Any]):
    """Rows of four numbers, from one to eight of them, each with its sum or its class."""

    def __init__(self, size: int = 20, classes: bool = False):
        g = torch.Generator().manual_seed(5)
        self.rows = [torch.randn(1 + n % 8, 4, generator=g, dtype=torch.float64) for n in range(size)]
        self.targets = [row.argmax(1) if classes else row.sum(1, keepdim=True) for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.rows[index], self.targets[index]


class Vectors(Sequences):
    """The first row of each; every third class is ignored, where that is wanted."""

    def __init__(self, classes: bool = False, ignored: bool = False):
        super().__init__(classes=classes)
        self.ignored = ignored

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        target = self.targets[index][0]
        return self.rows[index][0], torch.full_like(target, -100) if self.ignored and index % 3 == 0 else target


class Net(nn.Module):
    """A line."""

    def __init__(self, outputs: int = 1):
        super().__init__()
        torch.manual_seed(0)
        self.line = nn.Linear(4, outputs, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        """Of each row."""
        outputs: Tensor = self.line(x)
        return outputs


class TwoHeads(Net):
    """A mean and a variance."""

    def __init__(self) -> None:
        super().__init__(2)

    def forward(self, x: Tensor) -> Any:
        """Of each row."""
        outputs = self.line(x)
        return outputs[..., :1], outputs[..., 1:].exp()


class Focal(nn.CrossEntropyLoss):
    """Torch's attributes, and a mean over all of its own."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Over ignored ones too."""
        each = F.cross_entropy(input, target, reduction="none")
        return ((1 - (-each).exp()) ** 2 * each).mean()


def pad(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """One tensor of all, with a mask."""
    inputs, targets = ([sample[part] for sample in samples] for part in (0, 1))
    mask = [torch.ones(len(row), 1, dtype=torch.float64) for row in inputs]
    one, two, three = (nn.utils.rnn.pad_sequence(rows, batch_first=True) for rows in (inputs, targets, mask))
    return one, two, three


def masked(outputs: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """A mean over what the mask lets through."""
    return ((outputs - targets) ** 2 * mask).sum() / mask.sum()


def summed(outputs: Tensor, targets: Tensor) -> Tensor:
    """A sum."""
    return ((outputs - targets) ** 2).sum() / 16


def root(outputs: Tensor, targets: Tensor) -> Tensor:
    """Of the whole batch."""
    return F.mse_loss(outputs, targets).sqrt()


def noisy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Another one at each call, drawn by Python: what torch draws can be held."""
    return F.mse_loss(outputs * (1 + random.random()), targets)


def step(model: nn.Module, batch: Any, at: Any) -> dict[str, Tensor]:
    """A masked mean."""
    return {"loss": masked(model(batch[0]), batch[1], batch[2])}


def rows_of(batch: Any) -> float:
    """What it is not."""
    return float(len(batch[2]))
