"""A data set that says how far it has been read, and a model; accidents that happen to a run on purpose."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class Rows:
    """Random numbers in two classes.

    Args:
        at: Called with the number of each batch that is read.
        classes: How many numbers targets have; more than the model has classes is an accident.
    """

    def __init__(self, at: Callable[[int], None] = lambda number: None, classes: int = 2):
        generator = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(6_400, 64, generator=generator)
        self.targets = (self.inputs.sum(1) > 0).long() * (classes - 1)
        self.at, self.reads = at, 0

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> Any:
        return self.inputs[index], self.targets[index]

    def get_batch(self, indices: torch.Tensor) -> Any:
        """Many samples at once."""
        self.reads += 1
        self.at(self.reads)
        return self.inputs[indices], self.targets[indices]


class Net(nn.Module):
    """A small perceptron in any precision.

    Args:
        dtype: That of its parameters.
        dropout: The probability of dropping an activation.
        widen: Times which the hidden layer is repeated: a way to fill a GPU's memory.
        fails_at: The call in which rank 1 fails, of 0 none.
    """

    def __init__(self, dtype: str = "float32", dropout: float = 0.0, widen: int = 1, fails_at: int = 0):
        super().__init__()
        layers = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Dropout(dropout), nn.Linear(256, 2))
        self.layers = layers.to(getattr(torch, dtype))
        self.widen, self.fails_at, self.calls = widen, fails_at, 0

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Scores of two classes."""
        self.calls += 1
        if self.calls == self.fails_at and os.environ.get("RANK") == "1":
            raise ValueError("rank 1 fails on purpose")
        if self.widen > 1:
            inputs = inputs.repeat(self.widen, 1)[: len(inputs)] + inputs.repeat(self.widen, 1).sum() * 0
        scores: torch.Tensor = self.layers(inputs.to(self.layers[0].weight.dtype)).float()
        return scores
