"""The fixed train, validation and test parts of a small table of rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_BY_POSITION = np.repeat(["train", "validation", "test"], [14, 3, 3])  # 70, 15 and 15 %


def check_split(split: str, allowed: Sequence[str]) -> None:
    """Refuse an unknown split.

    Raises:
        ValueError: If `split` is not one of `allowed`.
    """
    if split not in allowed:
        raise ValueError(f"unknown split {split!r}; allowed: {', '.join(allowed)}")


def split_rows(split: str, count: int, classes: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    """Choose the rows of one part: the same on every machine, whatever the seed of a recipe.

    Args:
        split: `train` (70 % of the rows), `validation` or `test` (15 % each).
        count: The number of rows in all.
        classes: Each row's class, of shape [count]; every part then holds its share of each class.

    Returns:
        Row numbers, ascending.

    Raises:
        ValueError: If `split` is none of the three.
    """
    check_split(split, ("train", "validation", "test"))
    rows = np.random.RandomState(0).permutation(count)  # RandomState's stream is frozen, default_rng's is not
    if classes is not None:
        rows = rows[np.argsort(classes[rows], kind="stable")]
    return np.sort(rows[np.resize(_BY_POSITION, count) == split])
