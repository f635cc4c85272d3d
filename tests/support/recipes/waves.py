"""A small classification set with the habits of people's own: augmentation, generators of its own, a focal loss."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn


class Waves:
    """Rows of 4 numbers, in two classes by the sign of their sum.

    Args:
        size: Samples.
        augment: Whether a sample is drawn anew each time.
        own: Whether it is drawn from an unseeded generator of the set's own.
    """

    def __init__(self, size: int = 40, augment: bool = False, own: bool = False):
        self.size, self.augment = size, augment
        rows = np.random.default_rng(0).normal(size=(size, 4)).astype(np.float32)
        self.rows = torch.from_numpy(rows)
        self.generator = np.random.default_rng() if own else None

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        row = self.rows[index]
        if self.augment and self.generator is not None:
            row = row + torch.from_numpy(self.generator.normal(size=4).astype(np.float32))
        elif self.augment:
            row = row + torch.randn(4)
        return row, int(self.rows[index].sum() > 0)


class Focal(nn.Module):
    """The focal loss of Lin et al. 2017 with γ = 2."""

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        loss = nn.functional.cross_entropy(outputs, targets, reduction="none")
        return ((1 - torch.exp(-loss)) ** 2 * loss).mean()


def squares(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean of squares: class numbers as quantities."""
    return ((outputs[:, 0] - targets) ** 2).mean()


class TooLong(Waves):
    """Says that it has a sample more than it has."""

    def __len__(self) -> int:
        return self.size + 1


def training_step(model: nn.Module, batch: tuple[Tensor, Tensor], at: object) -> Tensor:
    """A step that gives the loss alone."""
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


class Failing(Focal):
    """Fails in the 14th step that is trained."""

    calls = 0

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if outputs.requires_grad:
            Failing.calls += 1
            if Failing.calls == 14:
                raise ValueError("the 14th step")
        return super().forward(outputs, targets)
