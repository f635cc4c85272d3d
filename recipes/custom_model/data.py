"""Points on spirals: stands for your own data set."""

import math

import torch
from torch import Tensor
from torch.utils.data import Dataset


class Spirals(Dataset[tuple[Tensor, Tensor]]):
    """Noisy points on interleaved spirals, in mixed order; the target is the spiral a point lies on.

    Args:
        samples: How many points.
        classes: How many spirals.
        noise: The points' standard deviation around their spiral, whose radius is 1.
        seed: Another seed is another set of points.
    """

    def __init__(self, samples: int, classes: int = 3, noise: float = 0.03, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.targets = torch.randint(classes, (samples,), generator=generator)
        radius = torch.rand(samples, generator=generator).sqrt()
        angle = 2 * math.pi * (self.targets / classes + radius)  # one turn from the centre to the rim
        on_spiral = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)
        self.points = on_spiral + noise * torch.randn(samples, 2, generator=generator)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.points[index], self.targets[index]
