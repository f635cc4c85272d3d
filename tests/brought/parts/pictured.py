"""What people do with timm and torchvision, which are imported when something is made: `vision.py` opens them first."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from nets import made
from sets import SIZE, makes, normal, whole
from torch import Tensor, nn
from torch.utils.data import Dataset

NAMES = ("cat", "dog", "owl")
EDGE = 32


def named(target: str, **settings: Any) -> nn.Module:
    """A model of a package, as its author makes it."""
    module, _, name = target.rpartition(".")
    torch.manual_seed(0)
    model: nn.Module = getattr(importlib.import_module(module), name)(**settings)
    return model


def by_groups(width: int) -> nn.Module:
    """A norm that does not depend on the batch."""
    return nn.GroupNorm(4, width)


@made
def residual() -> nn.Module:
    """Torchvision's ResNet-18, in float64."""
    from torchvision.models import resnet18

    model: nn.Module = resnet18(num_classes=len(NAMES), norm_layer=by_groups)
    return model


@makes
def flat() -> nn.Module:
    """Scores of the classes, from a few averages of a picture of any size."""
    torch.manual_seed(0)
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, len(NAMES)))


class Noise(Dataset[Any]):
    """Pictures without files, and the class of each; or of each pixel."""

    def __init__(self, edge: int = EDGE, masks: bool = False, dtype: torch.dtype = torch.float32):
        self.edge, self.masks, self.dtype = edge, masks, dtype

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> Any:
        picture = normal(3, self.edge, self.edge, seed=index).to(self.dtype)
        return picture, (picture.sum(0) > 0).long() if self.masks else torch.tensor(index % len(NAMES))


# ---------------------------------------------------------------------- detectors


class Boxes(Dataset[Any]):
    """Dark pictures with a bright square or two, and where these are."""

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> Any:
        picture, count = 0.1 * normal(3, 64, 64, seed=index).float(), 1 + index % 2
        corners = whole(24, count, 2, seed=index) + 32 * torch.arange(count)[:, None] * (count - 1)
        boxes = torch.cat([corners, corners + 14 + index % 4], 1).clamp(max=63)
        for left, top, right, bottom in boxes.tolist():
            picture[index % 3, top:bottom, left:right] += 1
        return picture, {"boxes": boxes.float(), "labels": torch.full((count,), 1 + index % 3)}


def listed(samples: list[Any]) -> Any:
    """Pictures and targets, each in a list."""
    pictures, targets = zip(*samples, strict=True)
    return list(pictures), list(targets)


@makes
def detector() -> nn.Module:
    """Torchvision's RetinaNet over a small backbone, at the pictures' own size."""
    from torchvision.models.detection import RetinaNet
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU()]
    backbone: Any = nn.Sequential(*layers)
    backbone.out_channels = 8
    anchors = AnchorGenerator(((16,),), ((1.0,),))
    model: nn.Module = RetinaNet(
        backbone, 4, anchor_generator=anchors, min_size=64, max_size=64, score_thresh=0.0, detections_per_img=10
    )
    return model


def total(model: nn.Module, batch: Any, loss: Any) -> Tensor:
    """The sum of the losses that a detector gives in training."""
    value: Tensor = sum(model(*batch).values(), torch.zeros(()))
    return value


# ---------------------------------------------------------------------- folders of pictures


def draw(root: Path, count: int = SIZE) -> None:
    """A folder for each class, with pictures of several sizes."""
    from PIL import Image

    for number in range(count):
        name = NAMES[number % len(NAMES)]
        (root / name).mkdir(parents=True, exist_ok=True)
        pixels = (whole(200, 36 + number, 44, 3, seed=number) + 20 * (number % len(NAMES))).byte()
        Image.fromarray(pixels.numpy()).save(root / name / f"{number:02}.png")


@makes
def folder(transform: Any, root: str = "pets") -> Any:
    """Torchvision's own `ImageFolder`, with a transform that is made first."""
    from torchvision.datasets import ImageFolder

    return ImageFolder(root, transform=transform())


def of_timm(name: str, training: bool = False, **settings: Any) -> Any:
    """What timm does to pictures for one of its models."""
    import timm.data

    config = timm.data.resolve_data_config({}, pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    return timm.data.create_transform(**{**config, **settings}, is_training=training)


def of_weights(name: str) -> Any:
    """What torchvision does to pictures for weights of its own."""
    from torchvision.models import get_weight

    return get_weight(name).transforms()


def first_version() -> Any:
    """An augmentation as torchvision had it for years."""
    from torchvision import transforms as t

    flips = [t.RandomResizedCrop(EDGE), t.RandomHorizontalFlip(), t.ColorJitter(0.4, 0.4), t.ToTensor()]
    return t.Compose([*flips, t.Normalize([0.5, 0.5, 0.5], [0.2, 0.2, 0.2])])


def second_version() -> Any:
    """The same as it is now."""
    from torchvision.transforms import v2

    steps = [v2.ToImage(), v2.RandomResizedCrop(EDGE), v2.RandomHorizontalFlip(), v2.TrivialAugmentWide()]
    return v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.2] * 3)])
