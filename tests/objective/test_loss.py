"""A loss put together from micro-batches of many ranks is torch's own mean over the whole batch at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from places import TINY
from torch import Tensor, nn

from launcher.objective.build import build_objective
from launcher.objective.loss import Objective
from launcher.recipe.build import Builder
from launcher.recipe.load import load_recipe

Batch = tuple[Tensor, Tensor]
CLASSES = 3


def classes(samples: int, *length: int, ignored: int | None = None) -> Batch:
    """Logits and classes, of which about a third is ignored."""
    targets = torch.randint(CLASSES, (samples, *length))
    if ignored is not None:
        targets[torch.rand(targets.shape) < 0.35] = ignored
    return torch.randn(samples, CLASSES, *length, dtype=torch.float64), targets


def values(samples: int) -> Batch:
    return torch.randn(samples, 4, dtype=torch.float64), torch.randn(samples, 4, dtype=torch.float64)


def shares(samples: int) -> Batch:
    """Logits, and how probable each class is."""
    return classes(samples)[0], torch.rand(samples, CLASSES, dtype=torch.float64)


WEIGHTS = "weight: {_target_: torch.tensor, _args_: [[1.0, 2.0, 3.0]], dtype: {_ref_: torch.float64}}"
WEIGHED = nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
SQUARE, ENTROPY = nn.MSELoss(), nn.CrossEntropyLoss()
# by what the recipe says: batches of so many samples, and torch's own mean of a whole one
LOSSES: dict[str, tuple[Callable[[int], Batch], Callable[[Tensor, Tensor], Tensor]]] = {
    "{_target_: CrossEntropyLoss}": (classes, ENTROPY),
    "{_target_: CrossEntropyLoss, label_smoothing: 0.1}": (classes, nn.CrossEntropyLoss(label_smoothing=0.1)),
    f"{{_target_: CrossEntropyLoss, {WEIGHTS}}}": (classes, WEIGHED),
    "{_target_: CrossEntropyLoss, ignore_index: 1}": (
        lambda samples: classes(samples, ignored=1),
        nn.CrossEntropyLoss(ignore_index=1),
    ),
    "{_target_: CrossEntropyLoss} of words": (lambda samples: classes(samples, 5, ignored=-100), ENTROPY),
    f"{{_target_: CrossEntropyLoss, {WEIGHTS}}} of words": (
        lambda samples: classes(samples, 5, ignored=-100),
        WEIGHED,
    ),
    "{_target_: CrossEntropyLoss} of shares": (shares, ENTROPY),
    "{_target_: CrossEntropyLoss, _per_: element} of shares": (shares, ENTROPY),
    "{_target_: MSELoss}": (values, SQUARE),
    "{_target_: MSELoss, _per_: element}": (values, SQUARE),
    "{_target_: KLDivLoss, reduction: batchmean}": (
        lambda samples: (classes(samples)[0].log_softmax(1), shares(samples)[1].softmax(1)),
        nn.KLDivLoss(reduction="batchmean"),
    ),
    "{a: {_target_: MSELoss, _weight_: 0.7}, b: {_target_: L1Loss, _per_: element, _weight_: 0.3}}": (
        values,
        lambda outputs, targets: 0.7 * SQUARE(outputs, targets) + 0.3 * nn.functional.l1_loss(outputs, targets),
    ),
}


@cache
def objective_of(loss: str) -> Objective:
    """Of what a recipe says; what stands behind `of` is the batches' own name."""
    return built(f"loss={loss.partition(' of ')[0]}")


def built(*overrides: str) -> Objective:
    recipe = load_recipe(TINY, list(overrides), ("loss",))
    return build_objective(Builder(recipe), recipe.loss, recipe.batch, recipe.train)


def put_together(objective: Objective, ranks: Sequence[Sequence[Batch]]) -> tuple[float, Tensor]:
    """The step's loss and its gradient by the outputs, from each rank's micro-batches."""
    objective.settle()
    counts = [[objective.counts((None, targets), len(targets)) for _, targets in own] for own in ranks]
    total = [sum(column) for column in zip(*(one for own in counts for one in own), strict=True)]
    loss, gradients = 0.0, []
    for own, counted in zip(ranks, counts, strict=True):
        for (outputs, targets), local in zip(own, counted, strict=True):
            leaf = outputs.clone().requires_grad_()
            scales = objective.scales(local, total, len(ranks), len(targets))
            value, factor, _ = objective.value(leaf, (None, targets), [targets], scales)
            (value * factor / len(ranks)).backward()  # as DDP's mean has it
            loss += float(value.detach()) * factor / len(ranks)
            assert leaf.grad is not None
            gradients.append(leaf.grad)
    return loss, torch.cat(gradients)


def cut(batch: Batch, places: Sequence[int]) -> list[Batch]:
    outputs, targets = batch
    return list(zip(outputs.tensor_split(list(places)), targets.tensor_split(list(places)), strict=True))


@pytest.mark.parametrize("loss", LOSSES)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), st.integers(1, 3), st.integers(0, 2**16))
def test_micro_batches_of_all_ranks_make_torchs_mean_of_the_whole(
    loss: str, sizes: list[int], world: int, seed: int
) -> None:
    torch.manual_seed(seed)
    make, whole = LOSSES[loss]
    batch = make(sum(sizes))
    parts = cut(batch, torch.tensor(sizes).cumsum(0)[:-1].tolist())
    per_rank = -(-len(parts) // world)
    ranks = [parts[start : start + per_rank] for start in range(0, len(parts), per_rank)]
    found, gradient = put_together(objective_of(loss), ranks)
    outputs = batch[0].clone().requires_grad_()
    expected = whole(outputs, batch[1])
    if not expected.isfinite():  # torch's mean over nothing; ours is of no weight
        assert found == 0
        assert not gradient.any()
        return
    expected.backward()
    assert found == pytest.approx(float(expected.detach()), rel=1e-9)
    torch.testing.assert_close(gradient, outputs.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_stand_in_counts_nothing_and_weighs_nothing(loss: str) -> None:
    objective = objective_of(loss)
    batch: Any = (None, LOSSES[loss][0](4)[1])
    objective.settle()
    none = objective.counts(batch, 0)
    assert none == [0.0] * len(objective.terms)
    assert objective.scales(none, objective.counts(batch, 4), 3, 0) == none


@cache
def counted_by_the_user() -> Objective:
    return built("train.step=parts.py:word_step", "train.count=parts.py:word_count")


@given(st.lists(st.tuples(st.floats(0.5, 9), st.floats(-3, 3)), min_size=1, max_size=6))
def test_the_mean_of_a_step_function_is_over_what_it_counts(parts: list[tuple[float, float]]) -> None:
    objective = counted_by_the_user()
    total = sum(count for count, _ in parts)
    scales = [objective.scales([count], [total], len(parts), 1)[0] for count, _ in parts]
    found = sum(scale * value for scale, (_, value) in zip(scales, parts, strict=True)) / len(parts)
    assert found == pytest.approx(sum(count * value for count, value in parts) / total)
