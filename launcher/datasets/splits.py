"""The fixed train, validation and test parts of a small table of rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_DEAL = ("test", "validation", *["train"] * 5)  # of every seven rows


def check_split(split: str, allowed: Sequence[str]) -> None:
    """Refuses an unknown split.

    Raises:
        ValueError: If `split` is not one of `allowed`.
    """
    if split not in allowed:
        raise ValueError(f"unknown split {split!r}; allowed: {', '.join(allowed)}")


def split_rows(split: str, classes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Chooses the rows of one part: dealt out in turn within each class, whatever the seed of a recipe.

    Args:
        split: `train` (five rows of seven), `validation` or `test` (one of seven each).
        classes: Each row's class, of shape [rows]; all parts hold the classes in the same proportions.

    Returns:
        Row numbers, ascending.

    Raises:
        ValueError: If `split` is none of the three.
    """
    check_split(split, ("train", "validation", "test"))
    by_class = np.argsort(classes, kind="stable")
    return np.sort(by_class[np.resize(_DEAL, len(classes)) == split])
