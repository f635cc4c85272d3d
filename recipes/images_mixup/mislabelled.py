"""Handwritten digits of which many have a wrong label, as those do that were labelled in haste."""

import torch
from torch.utils.data import TensorDataset

from launcher.datasets import Digits


class Mislabelled(TensorDataset):
    """The training part of the digits, a share of them with another class's label.

    Args:
        wrong: Which share.
        seed: Another seed mislabels others.
    """

    def __init__(self, wrong: float = 0.4, seed: int = 0) -> None:
        images, digits = Digits("train").tensors
        generator = torch.Generator().manual_seed(seed)
        others = (digits + torch.randint(1, 10, digits.shape, generator=generator)) % 10
        super().__init__(images, torch.where(torch.rand(digits.shape, generator=generator) < wrong, others, digits))
