"""Data as a reader of the pages may have it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate


class Mine(Dataset[tuple[Tensor, Tensor]]):
    """Points with one of two classes."""

    def __init__(self, samples: int = 64):
        self.inputs = torch.randn(samples, 8, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.inputs[index], (self.inputs[index].sum() > 0).long()


class Texts(Mine):
    """Samples that stand for texts of several lengths."""


class Web(Mine):
    """One part of a mixture."""


class Books(Mine):
    """Another part of it."""


def augment(batch: Any) -> Any:
    """A transform: of a picture, or of a batch on the device."""
    return batch


def normalize(batch: Any) -> Any:
    """A transform for training and evaluation."""
    return batch


def padded(samples: list[Any]) -> Any:
    """A collate function."""
    return default_collate(samples)


def mixed(samples: list[Any]) -> Any:
    """Another one, for training alone."""
    return default_collate(samples)


def plain(picture: Any) -> Any:
    """The picture as it is."""
    return picture
