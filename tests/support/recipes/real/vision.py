"""Stands for torchvision, which has no build for this CPU: its shapes, names and arguments, small enough for a test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate


class Compose:
    """Transforms one after another."""

    def __init__(self, transforms: Sequence[Callable[[Tensor], Tensor]]) -> None:
        self.transforms = transforms

    def __call__(self, image: Tensor) -> Tensor:
        for transform in self.transforms:
            image = transform(image)
        return image


class RandomCrop(nn.Module):
    """A random square of an image."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, image: Tensor) -> Tensor:
        """Map [C, H, W] to [C, size, size]."""
        top, left = (int(torch.randint(side - self.size + 1, ())) for side in image.shape[-2:])
        return image[..., top : top + self.size, left : left + self.size]


class RandomApply(nn.Module):
    """A transform, or not."""

    def __init__(self, transforms: Sequence[nn.Module], p: float = 0.5) -> None:
        super().__init__()
        self.transforms = nn.ModuleList(transforms)
        self.p = p

    def forward(self, image: Tensor) -> Tensor:
        """Keep the shape."""
        if torch.rand(()) < self.p:
            for transform in self.transforms:
                image = transform(image)
        return image


class RandomHorizontalFlip(nn.Module):
    """A mirrored image."""

    def forward(self, image: Tensor) -> Tensor:
        """Keep the shape."""
        return image.flip(-1)


class ToDtype(nn.Module):
    """An image in another type of number."""

    def __init__(self, dtype: torch.dtype, scale: bool = False) -> None:
        super().__init__()
        self.dtype, self.scale = dtype, scale

    def forward(self, image: Tensor) -> Tensor:
        """Bytes to floats between 0 and 1, where scaled."""
        return image.to(self.dtype) / (255 if self.scale else 1)


class Normalize(nn.Module):
    """Less the mean, by the standard deviation, of each channel."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.mean, self.std = torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None]

    def forward(self, image: Tensor) -> Tensor:
        """Keep the shape."""
        return (image - self.mean) / self.std


class ImageFolder(Dataset[tuple[Tensor, int]]):
    """Images of bytes, [3, 40, 40], and their classes."""

    def __init__(self, root: str, transform: Callable[[Tensor], Tensor] | None = None, images: int = 50) -> None:
        self.transform = transform
        self.images = torch.randint(256, (images, 3, 40, 40), generator=torch.Generator().manual_seed(0)).byte()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.images[index]
        return (image if self.transform is None else self.transform(image)), index % 10


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions around a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels, kernel, step in ((width, 1, 1), (width, 3, stride), (4 * width, 1, 1)):
            before = inputs if not layers else width
            layers += [nn.Conv2d(before, channels, kernel, step, kernel // 2, bias=False), nn.BatchNorm2d(channels)]
            layers += [nn.ReLU()]
        self.residual = nn.Sequential(*layers[:-1])
        self.shortcut = nn.Conv2d(inputs, 4 * width, 1, stride, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        """Map [N, inputs, H, W] to [N, 4 width, H / stride, W / stride]."""
        return nn.functional.relu(self.residual(image) + self.shortcut(image))


class ResNet(nn.Module):
    """ResNet-50's shape with a sixteenth of its width."""

    def __init__(self, layers: Sequence[int], num_classes: int = 1000) -> None:
        super().__init__()
        blocks: list[nn.Module] = [nn.Conv2d(3, 4, 7, 2, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()]
        inputs = 4
        for stage, count in enumerate(layers):
            for number in range(count):
                width = 4 * 2**stage
                blocks.append(Bottleneck(inputs, width, 2 if number == 0 and stage else 1))
                inputs = 4 * width
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(inputs, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map [N, 3, H, W] to logits [N, num_classes]."""
        logits: Tensor = self.fc(self.blocks(images).mean((-2, -1)))
        return logits


def resnet50(*, weights: str | None = None, **kwargs: Any) -> ResNet:
    """As torchvision.models has it."""
    assert weights is None
    return ResNet([3, 4, 6, 3], **kwargs)


def mixup(samples: list[tuple[Tensor, int]], *, classes: int, alpha: float) -> tuple[Tensor, Tensor]:
    """Images and targets mixed with those of the next sample: [N, 3, H, W] and probabilities [N, classes]."""
    images, targets = default_collate(samples)
    share = torch.distributions.Beta(alpha, alpha).sample()
    targets = nn.functional.one_hot(targets, classes).float()
    return images.lerp(images.roll(1, 0), share), targets.lerp(targets.roll(1, 0), share)
