"""Segmentation: images to classes of their pixels."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset


class Scenes(Dataset[dict[str, Tensor]]):
    """Images [3, 16, 16] and masks [16, 16], in which 255 does not count."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        mask = torch.randint(5, (16, 16))
        return {"image": torch.rand(3, 16, 16), "mask": mask.masked_fill(torch.rand(16, 16) < 0.1, 255)}


class FCN(nn.Module):
    """Gives a mapping, as torchvision's segmentation models do."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        self.classifier = nn.Conv2d(8, num_classes, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map [N, 3, H, W] to logits [N, num_classes, H, W] under `out`."""
        features = self.backbone(images)
        return {"out": self.classifier(features), "features": features}


class DiceLoss(nn.Module):
    """One less the overlap of prediction and target over a batch; Milletari, Navab and Ahmadi 2016."""

    def __init__(self, ignore: int = 255) -> None:
        super().__init__()
        self.ignore = ignore

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Map [N, C, H, W] and [N, H, W] to a number."""
        kept = (mask != self.ignore)[:, None]
        target = nn.functional.one_hot(mask.masked_fill(mask == self.ignore, 0), logits.shape[1]).movedim(-1, 1) * kept
        chance = logits.softmax(1) * kept
        return 1 - 2 * (chance * target).sum() / (chance + target).sum()
