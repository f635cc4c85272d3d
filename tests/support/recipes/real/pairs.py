"""A siamese model: two images in, their distance out."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset


class Pairs(Dataset[dict[str, Tensor]]):
    """Two images and whether they show the same."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        left, right = torch.rand(2, 1, 8, 8)
        return {"image_a": left, "image_b": right, "same": torch.tensor(float(index % 2))}


class Siamese(nn.Module):
    """One encoder for both."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
        """Map two images [N, 1, 8, 8] to their distance [N]."""
        a, b = self.encoder(left), self.encoder(right)
        return {"distance": (a - b).norm(dim=1), "left": a, "right": b}


class ContrastiveLoss(nn.Module):
    """Near where the same, at least `margin` apart where not; Hadsell, Chopra and LeCun 2006."""

    def __init__(self, margin: float = 1.0) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, distance: Tensor, same: Tensor) -> Tensor:
        """Map [N] and [N] to a mean."""
        apart = (self.margin - distance).clamp(min=0)
        return (same * distance.square() + (1 - same) * apart.square()).mean()
