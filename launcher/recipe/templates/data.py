"""The data set: anything with a length and items will do."""

import torch
from torch import Tensor
from torch.utils.data import Dataset


class Points(Dataset[tuple[Tensor, Tensor]]):
    """Random points in the plane; a point's class is the ring around the centre that it lies in.

    Args:
        samples: How many points.
        seed: Another seed is another set of points.
    """

    def __init__(self, samples: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.points = torch.randn(samples, 2, generator=generator)
        self.targets = self.points.norm(dim=1).clamp(max=2.9).long()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.points[index], self.targets[index]
