"""Diabetes: 442 patients, ten measurements each, and the disease's progression a year later."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from launcher.datasets.bundled import Table, bundled
from launcher.datasets.splits import split_rows


class Diabetes(TensorDataset):
    """Features of shape [10] and a target of shape [1], from scikit-learn's table.

    Features *and target* are standardised with the train part's mean and standard deviation, so that
    an error of 1 is one standard deviation of the disease's progression, about 77 points.
    The three parts are fixed (5, 1 and 1 of every seven patients) and do not depend on a recipe's seed.

    Args:
        split: Which part.
        dtype: The type of features and target.

    Raises:
        ValueError: If `split` is none of the three.
    """

    def __init__(
        self, split: Literal["train", "validation", "test"] = "train", dtype: torch.dtype = torch.float32
    ) -> None:
        features = bundled("diabetes_data_raw.csv.gz", lambda: _loaded()[0])
        target = bundled("diabetes_target.csv.gz", lambda: _loaded()[1])
        one_class = np.zeros(len(target), dtype=np.int64)
        rows, train = split_rows(split, one_class), split_rows("train", one_class)
        columns = (features, target[:, None])
        standard = [(values[rows] - values[train].mean(0)) / values[train].std(0) for values in columns]
        super().__init__(*(torch.from_numpy(values).to(dtype) for values in standard))

    def get_batch(self, indices: Tensor) -> tuple[Tensor, ...]:
        """Reads many samples at once: features [N, 10] and targets [N, 1]."""
        return tuple(tensor.index_select(0, indices) for tensor in self.tensors)


def _loaded() -> tuple[Table, Table]:
    from sklearn.datasets import load_diabetes

    features, target = load_diabetes(return_X_y=True, scaled=False)
    return features, target
