"""Models of repeated blocks, in doubles, with all that a second forward could find changed."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class Block(nn.Module):
    """A residual layer with dropout; with `odd` it draws from every generator, and moves buffers."""

    calls: Tensor

    def __init__(self, dropout: float, odd: bool = False):
        super().__init__()
        self.layer, self.dropout, self.odd = nn.Linear(6, 6), nn.Dropout(dropout), odd
        if odd:
            self.norm = nn.BatchNorm1d(6)
            self.register_buffer("calls", torch.zeros((), dtype=torch.float64))

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.dropout(torch.tanh(self.layer(inputs)))
        if self.odd and self.training:
            self.calls += 1
            hidden = self.norm(hidden) * (1 + 0.1 * self.calls + 0.1 * random.random() + 0.1 * np.random.rand())
        added: Tensor = inputs + hidden
        return added


class Stack(nn.Module):
    """6 numbers to 3 logits through blocks, one of which may be another's too."""

    def __init__(self, blocks: int = 3, dropout: float = 0.3, odd: bool = False, dtype: Any = torch.float64):
        super().__init__()
        self.blocks = nn.ModuleList(Block(dropout, odd) for _ in range(blocks))
        self.head = nn.Linear(6, 3)
        self.to(dtype)

    def forward(self, inputs: Tensor) -> Tensor:
        for block in self.blocks:
            inputs = block(inputs)
        logits: Tensor = self.head(inputs)
        return logits


class Around(Stack):
    """Never calls a block itself, but something in it."""

    def forward(self, inputs: Tensor) -> Tensor:
        for block in self.blocks:
            inputs = inputs + block.layer(inputs)  # type: ignore[operator]  # a module's attribute
        logits: Tensor = self.head(inputs)
        return logits


class Complex(Stack):
    """Has a complex parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = nn.Parameter(torch.ones(3, dtype=torch.complex64))

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs) * self.turn.abs()


class Reading(Stack):
    """Reads values when it is made."""

    def __init__(self, dropout: float = 0.3):
        super().__init__(dropout=dropout)
        self.rates = [float(rate) for rate in torch.linspace(0, 1, 3)]
        for block in self.blocks:
            nn.init.trunc_normal_(block.get_parameter("layer.weight"))


class Asking(Stack):
    """Asks for a value in each forward."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs if inputs.sum().item() > 0 else -inputs)
