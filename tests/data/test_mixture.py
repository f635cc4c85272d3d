"""Mixtures: shares that are kept, streams that are exact, the same from any step on."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, TensorDataset

from launcher.data.batch_steps import BatchSteps, ByArithmetic
from launcher.data.mixture import BLOCK, Mixture

SIZES = (40, 7, 25)
STARTS = np.cumsum((0, *SIZES))


def parts(sizes: tuple[int, ...] = SIZES) -> ConcatDataset[Any]:
    return ConcatDataset([TensorDataset(torch.arange(size)) for size in sizes])


def drawn(mixture: Mixture, start: int, stop: int) -> list[list[int]]:
    return [mixture.batch(*divmod(step, mixture.steps_per_epoch)).tolist() for step in range(start, stop)]


def counts(batches: list[list[int]]) -> np.ndarray:
    flat = np.concatenate(batches)
    return np.bincount(np.searchsorted(STARTS, flat, side="right") - 1, minlength=len(SIZES))


def test_shares_are_kept_and_a_rare_part_is_not_forgotten() -> None:
    steps = 40 * BLOCK
    mixture = Mixture(parts(), 8, [70, 29.99, 0.01], seed=4)
    expected = np.array([0.7, 0.2999, 0.0001]) * steps * 8
    found = counts(drawn(mixture, 0, steps))
    assert np.abs(found - expected).max() < 40
    often = np.mean([counts(drawn(Mixture(parts(), 8, [70, 29.99, 0.01], seed=s), 0, 4 * BLOCK))[2] for s in range(15)])
    assert 0.02 < often < 0.6  # 0.2 on average


def test_each_part_is_a_stream_without_repeats_in_a_pass() -> None:
    mixture = Mixture(parts(), 8, [1, 1, 2], seed=2)
    flat = np.concatenate(drawn(mixture, 0, 5 * BLOCK))
    for start, stop in itertools.pairwise(STARTS.tolist()):
        own = flat[(flat >= start) & (flat < stop)]
        times = np.bincount(own - start, minlength=stop - start)
        assert times.max() - times.min() <= 2


def test_shares_change_with_the_step() -> None:
    mixture = Mixture(parts(), 10, {0: [1, 0, 0], 10 * BLOCK: [0, 1, 0], 20 * BLOCK: [0, 1, 0], 21 * BLOCK: [0, 0, 5]})
    early, middle, late = (counts(drawn(mixture, at * BLOCK, (at + 1) * BLOCK)) for at in (0, 4, 30))
    assert early[0] / early.sum() == pytest.approx(0.95, abs=0.01)
    assert middle[1] / middle.sum() == pytest.approx(0.45, abs=0.01)
    assert late.tolist() == [0, 0, BLOCK * 10]


def test_any_step_is_found_at_once_and_shared_by_every_world() -> None:
    alone = drawn(Mixture(parts(), 9, [3, 2, 1], seed=1), 0, 200)
    assert drawn(Mixture(parts(), 9, [3, 2, 1], seed=1), 150, 200) == alone[150:]
    assert drawn(Mixture(parts(), 9, [3, 2, 1], seed=2), 0, 20) != alone[:20]
    ranks = [
        BatchSteps(
            parts(), ByArithmetic(Mixture(parts(), 9, [3, 2, 1]), 1), rank=rank, world_size=2, micro_batch_size=3
        )
        for rank in range(2)
    ]
    for step in (0, 77, 199):
        both = [index for rank in ranks for share in rank.shares(step) for index in share.indices.tolist()]
        assert both == alone[step]


@pytest.mark.parametrize(
    ("source", "shares", "words"),
    [
        (parts(), [1, 2], "2 for 3 parts"),
        (parts(), [1, -2, 3], "none below 0"),
        (parts(), {0: [1, 1, 1], 9: [0, 0, 0]}, "at step 9"),
        (parts((3, 0, 2)), [1, 1, 1], "part without samples"),
        (parts(), {}, "there are none"),
        (TensorDataset(torch.arange(3)), [1], "ConcatDataset"),
    ],
)
def test_shares_that_are_none_are_refused(source: Any, shares: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Mixture(source, 4, shares)
