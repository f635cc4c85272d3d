"""Models to be adapted, and a function that adapts."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn


class Read(nn.Module):
    """The same layers as parts.py:Net has."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.0), nn.Linear(8, 3)).double()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layers(inputs)
        return out


class Single(Read):
    """The same in single precision, for inputs of any."""

    def __init__(self) -> None:
        super().__init__()
        self.float()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return super().forward(inputs.to(next(self.parameters()).dtype))


class Shifted(nn.Module):
    """A trained shift behind a frozen net: an adapter of one's own."""

    def __init__(self, net: nn.Module, scale: float):
        super().__init__()
        self.net, self.scale = net, scale
        self.shift = nn.Parameter(torch.zeros(3, dtype=torch.float64))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.net(inputs) + self.scale * self.shift
        return out


def shifted(net: nn.Module, scale: float = 1.0) -> nn.Module:
    """Freezes a net, and puts a shift behind it."""
    net.requires_grad_(False)
    return Shifted(net, scale)


def nothing(net: nn.Module) -> None:
    """Adapts nothing."""


def last_alone(net: Any) -> None:
    """Freezes all but the last layer, in place."""
    net.requires_grad_(False)
    net.layers[-1].requires_grad_(True)


def read() -> nn.Module:
    """A net whose weights come from a file, as pretrained ones do."""
    net = Read()
    net.load_state_dict(torch.load(os.environ["BASE_WEIGHTS"], weights_only=True))
    return net


def text(net: nn.Module) -> str:
    """Gives no module."""
    return "adapted"


def of_model(params: Any, model: nn.Module) -> torch.optim.Optimizer:
    """An optimizer that looks at the model's names."""
    return torch.optim.SGD([value for name, value in model.named_parameters() if "lora_" in name], lr=0.1)
