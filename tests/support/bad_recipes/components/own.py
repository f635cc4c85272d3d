"""The user's own code for the bad recipes; nothing is wrong with it."""

import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from subprocess import Popen
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

MEANS = (0.5, 0.5)
shell = os.system
__all__ = ["Popen", "subprocess"]


class Points(Dataset[tuple[Tensor, Tensor]]):
    """Ten points of two classes."""

    def __init__(self, size: int = 10) -> None:
        self.points = torch.arange(2.0 * size).reshape(size, 2)

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.points[index], torch.tensor(index % 2)


class Net(nn.Module):
    """Takes arguments of every simple type."""

    def __init__(
        self,
        width: int = 2,
        rate: float = 0.0,
        bias: bool = True,
        kind: Literal["relu", "gelu"] = "relu",
        sizes: Sequence[int] = (),
        size: tuple[int, int] = (1, 1),
        names: Mapping[str, int] | None = None,
        activation: Callable[[Tensor], Tensor] | None = None,
        inner: nn.Module | None = None,
        dtype: torch.dtype | None = None,
        weights: Tensor | None = None,
        anything: Any = None,
    ) -> None:
        super().__init__()
        self.layer = nn.Linear(2, width, bias)

    def forward(self, points: Tensor) -> Tensor:
        """Map [N, 2] to [N, width]."""
        logits: Tensor = self.layer(points)
        return logits


class Block(nn.Module):
    """Needs an argument."""

    def __init__(self, channels: int) -> None:
        super().__init__()


class Plain:
    """Neither a module nor anything else."""


def decay(step: int) -> float:
    """For LambdaLR."""
    return 0.9**step


def mix(samples: list[Any], alpha: float) -> Any:
    """For collate."""
    return samples
