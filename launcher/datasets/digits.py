"""Handwritten digits: 1,797 real 8×8 images that scikit-learn ships."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from launcher.datasets.bundled import Table, bundled
from launcher.datasets.splits import split_rows


class Digits(TensorDataset):
    """Images of shape [1, 8, 8], scaled to [0, 1], with the digit as target.

    The three parts are fixed (5, 1 and 1 of every seven images of a digit) and do not depend on
    a recipe's seed.

    Args:
        split: Which part.
        dtype: The images' type; targets are int64.

    Raises:
        ValueError: If `split` is none of the three.
    """

    def __init__(
        self, split: Literal["train", "validation", "test"] = "train", dtype: torch.dtype = torch.float32
    ) -> None:
        table = bundled("digits.csv.gz", _loaded, ",")
        pixels, digits = table[:, :-1], table[:, -1].astype(np.int64)
        rows = split_rows(split, digits)
        images = torch.from_numpy(pixels[rows] / 16).to(dtype).reshape(-1, 1, 8, 8)
        super().__init__(images, torch.from_numpy(digits[rows]))

    def get_batch(self, indices: Tensor) -> tuple[Tensor, ...]:
        """Reads many samples at once: images [N, 1, 8, 8] and targets [N]."""
        return tuple(tensor.index_select(0, indices) for tensor in self.tensors)


def _loaded() -> Table:
    from sklearn.datasets import load_digits

    return np.column_stack(load_digits(return_X_y=True))
