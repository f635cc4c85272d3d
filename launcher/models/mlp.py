"""A multilayer perceptron."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn


class MLP(nn.Module):
    """Linear layers with ReLU between them.

    Args:
        inputs: Features of one sample, counted over all its dimensions: 64 for an 8×8 image.
        hidden: The width of each hidden layer; a number is one layer, an empty list a linear model.
        outputs: Numbers to predict, or classes.
        dropout: The probability of dropping a hidden activation.
        dtype: The parameters' type; None is torch's default.
    """

    def __init__(
        self,
        inputs: int,
        hidden: list[int] | int,
        outputs: int,
        dropout: float = 0.0,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        widths = [inputs, *([hidden] if isinstance(hidden, int) else hidden)]
        layers: list[nn.Module] = [nn.Flatten()]
        for width_in, width_out in pairwise(widths):
            layers += [nn.Linear(width_in, width_out, dtype=dtype), nn.ReLU(), nn.Dropout(dropout)]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], outputs, dtype=dtype))

    def forward(self, inputs: Tensor) -> Tensor:
        """Maps inputs of shape [N, …] to outputs of shape [N, outputs]."""
        outputs: Tensor = self.layers(inputs)
        return outputs
