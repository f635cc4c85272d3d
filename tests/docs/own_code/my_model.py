"""A model of a reader's own."""

from __future__ import annotations

from torch import Tensor, nn


class Net(nn.Module):
    """Two layers."""

    def __init__(self, inputs: int = 64, width: int = 32, classes: int = 10):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, classes))

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs] -> [N, classes]."""
        out: Tensor = self.layers(x)
        return out
