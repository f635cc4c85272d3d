"""Data, networks and losses of a small GAN."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as judged
from torch.utils.data import Dataset

NOISE = 4


class Ring(Dataset[Tensor]):
    """Points on a circle: what the generator is to learn."""

    def __init__(self, samples: int, seed: int = 0) -> None:
        angles = torch.rand(samples, generator=torch.Generator().manual_seed(seed)) * 2 * torch.pi
        self.points = torch.stack([angles.cos(), angles.sin()], dim=1)

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: int) -> Tensor:
        return self.points[index]


class Gan(nn.Module):
    """Both networks."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(NOISE, width), nn.Tanh(), nn.Linear(width, 2))
        self.critic = nn.Sequential(nn.Linear(2, width), nn.LeakyReLU(0.2), nn.Linear(width, 1))


def critic(model: Gan, points: Tensor, at: Any) -> Mapping[str, Tensor]:
    """The critic's turn: it tells points of the data from generated ones."""
    with torch.no_grad():
        made = model.generator(torch.randn(len(points), NOISE))
    real, fake = model.critic(points), model.critic(made)
    return {"loss": judged(real, torch.ones_like(real)) + judged(fake, torch.zeros_like(fake))}


def generator(model: Gan, points: Tensor, at: Any) -> Mapping[str, Tensor]:
    """The generator's turn: its points are to be taken for the data's."""
    verdict = model.critic(model.generator(torch.randn(len(points), NOISE)))
    return {"loss": judged(verdict, torch.ones_like(verdict))}


def look(model: Gan, at: Any, scores: Mapping[str, Any]) -> Mapping[str, Any]:
    """After an evaluation: how far from the circle 1,000 points are on the average, and a picture of them."""
    points = model.generator(torch.randn(1000, NOISE))
    picture = torch.ones(200, 200)
    column, row = ((points.T * 60 + 100).round().long()).clamp(0, 199)
    picture[row, column] = 0.0
    return {"off": (points.norm(dim=1) - 1).abs().mean(), "points": picture}
