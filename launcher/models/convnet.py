"""A small convolutional network for small images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ConvNet(nn.Module):
    """Stages of convolution, group norm, ReLU and pooling, then one linear layer.

    Group norm looks at one image at a time: unlike batch norm it does not care how many images a rank
    gets, so that a short last batch and any world size give the same result.

    Args:
        classes: How many classes to tell apart.
        channels: The width of each stage, divisible by 8; every stage halves height and width.
        inputs: Channels of the images.
        dtype: The parameters' type; None is torch's default.
    """

    def __init__(
        self,
        classes: int,
        channels: Sequence[int] = (32, 64),
        inputs: int = 1,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        widths = [inputs, *channels]
        stages = [_stage(width_in, width_out, dtype) for width_in, width_out in zip(widths, channels, strict=False)]
        self.features = nn.Sequential(*stages, _Quarters(), nn.Flatten())
        self.head = nn.Linear(4 * widths[-1], classes, dtype=dtype)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images of shape [N, inputs, H, W] to logits of shape [N, classes]."""
        logits: Tensor = self.head(self.features(images))
        return logits


class _Quarters(nn.Module):
    """The mean of each quarter of an image, as `nn.AdaptiveAvgPool2d(2)`, whose gradient on a GPU is never the same."""

    def forward(self, images: Tensor) -> Tensor:
        """Maps [N, C, H, W] to [N, C, 2, 2]; of an odd number of rows the middle one is in both halves."""
        upper, lower = _halves(images, 2)
        means: Tensor = torch.stack([*_means(upper), *_means(lower)], dim=-1).unflatten(-1, (2, 2))
        return means


def _means(images: Tensor) -> list[Tensor]:
    return [half.mean((2, 3)) for half in _halves(images, 3)]


def _halves(images: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    size = images.shape[dim]
    half = (size + 1) // 2
    return images.narrow(dim, 0, half), images.narrow(dim, size - half, half)


def _stage(width_in: int, width_out: int, dtype: torch.dtype | None) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width_in, width_out, kernel_size=3, padding=1, dtype=dtype),
        nn.GroupNorm(8, width_out, dtype=dtype),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )
