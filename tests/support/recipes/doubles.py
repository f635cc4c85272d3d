"""A module of a user's own that makes double precision the default when it is imported."""

from __future__ import annotations

import torch
from torch import Tensor, nn

torch.set_default_dtype(torch.float64)


class Doubles(nn.Module):
    """4 numbers to 1, in what is the default."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.1), nn.Linear(3, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)  # type: ignore[no-any-return]
