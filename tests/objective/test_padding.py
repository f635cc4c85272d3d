"""A step whose pieces a collate has padded to other lengths, after a loss was found to be a mean over elements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from launcher.errors import LauncherError
from launcher.objective.batch import BatchLayout
from launcher.objective.loss import Objective, Term
from launcher.objective.padding import Padding
from launcher.objective.reading import Reading
from launcher.recipe import schema


def checked(shapes: Sequence[tuple[int, ...]], kind: str = "elements", draws: bool = False) -> None:
    """Looks at a step of such pieces, of which this process has the first two."""
    objective = Objective([Term("", F.mse_loss, 1.0, None, Reading(kind))], BatchLayout(schema.Batch()))
    padding = Padding(objective, lambda: draws)
    batches: list[Any] = [(torch.zeros(shape), torch.zeros(shape)) for shape in shapes]
    pieces = [(objective.counts(batch, len(batch[0])), padding.rows(batch, len(batch[0]))) for batch in batches]
    total = [sum(numbers) for table in zip(*pieces, strict=True) for numbers in zip(*table, strict=True)]
    padding.check(pieces[:2], total)


def test_rows_that_are_padded_to_other_lengths_end_the_run() -> None:
    for shapes in ([(2, 5), (2, 7)], [(2, 5), (2, 5), (1, 6)], [(2, 3, 4), (2, 3, 4), (0, 3, 4), (2, 3, 5)]):
        with pytest.raises(LauncherError, match=r"loss: is a mean over elements, and a collate has padded rows to"):
            checked(shapes)
        checked(shapes, draws=True)  # a size that is drawn for each batch
        checked(shapes, kind="samples")


def test_rows_of_one_length_may_be_as_many_as_they_like() -> None:
    for shapes in ([(2, 5), (7, 5)], [(2,), (3,), (9,)], [(30, 1), (4, 1), (0, 1), (1, 1)]):
        checked(shapes)
