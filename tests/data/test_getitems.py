"""`__getitems__`: a list of samples or the batch itself, read as torch's DataLoader does, also where it is alone."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from launcher.data.fingerprint import fingerprint
from launcher.data.getitems import gives_batches, sample_of
from launcher.data.loaders import Reading, TrainLoader
from launcher.data.many import difference
from launcher.data.measured import lengths_of
from launcher.data.reading import reading_notes
from launcher.data.sampler import StepSampler
from launcher.data.subsets import is_stream, subset
from launcher.errors import LauncherError
from launcher.objective.settle import samples_of

SIZE = 12
X = torch.arange(SIZE * 4, dtype=torch.float64).reshape(SIZE, 4).sin()


class Bare:
    """Whatever a function makes of the numbers that it is asked for, and no `__getitem__` at all."""

    def __init__(self, made: Callable[[list[int]], Any]):
        self.made = made

    def __len__(self) -> int:
        return SIZE

    def __getitems__(self, indices: list[int]) -> Any:
        return self.made(indices)


class Gives(Bare, Dataset[Any]):
    """The same with torch's base class, whose `__getitem__` gives nothing."""


class Both(Gives):
    """With a `__getitem__` that torch never asks."""

    def __getitem__(self, index: int) -> Any:
        return X[index] * 100, index


def columns(indices: list[int]) -> Any:
    return [X[indices], X[indices].sum(1)]


BATCHES: dict[str, Callable[[list[int]], Any]] = {
    "two columns": columns,
    "three columns": lambda indices: (X[indices], X[indices].sum(1), torch.tensor(indices)),
    "one column": lambda indices: [X[indices]],
    "a tensor": lambda indices: X[indices],
    "an array": lambda indices: X[indices].numpy(),
    "by name": lambda indices: {"x": X[indices], "y": X[indices].sum(1)},
    "an object": lambda indices: SimpleNamespace(x=X[indices]),
    "one sample left out": lambda indices: [X[index] for index in indices if index != 1],
}


def itself(batch: Any) -> Any:
    return batch


def batches(dataset: Any, size: int, collate: Any = itself, **reading: Any) -> list[Any]:
    loader = TrainLoader(dataset, StepSampler(dataset, global_batch_size=size), Reading(collate=collate, **reading))
    return [micro_batch.data for step in loader.steps(0, SIZE // size) for micro_batch in step]


@pytest.mark.parametrize("kind", [Gives, Bare, Both, lambda made: Subset(Gives(made), range(SIZE))])
@pytest.mark.parametrize("name", BATCHES)
def test_a_batch_goes_to_the_collate_as_torch_gives_it(name: str, kind: Any) -> None:
    dataset = kind(BATCHES[name])
    assert gives_batches(dataset)
    for size in (1, 2, 3, 4):  # as many as there are columns, and others
        by_hand: Any = DataLoader(dataset, batch_size=size, collate_fn=itself, shuffle=False)
        ours = batches(_unshuffled(dataset), size)
        assert all(difference(a, b) is None for a, b in zip(ours, by_hand, strict=True))
    (note,) = reading_notes(dataset, itself)
    assert "gives batches, not lists of samples" in note


def _unshuffled(dataset: Any) -> Any:
    """The same, mixed so that our sampler brings it back into its order."""
    order = [int(index) for index in StepSampler(dataset, global_batch_size=1).order(0).slice(0, SIZE)]
    return Subset(dataset, np.argsort(order).tolist())


@pytest.mark.parametrize("name", ["two columns", "by name"])
def test_a_batch_that_draws_is_the_same_whoever_reads_it(name: str) -> None:
    def noisy(indices: list[int]) -> Any:
        batch = BATCHES[name](indices)
        noise = torch.randn(len(indices)) + np.random.rand()
        return {**batch, "noise": noise} if isinstance(batch, dict) else [batch[0], noise]

    expected = batches(Gives(noisy), 2)
    for reading in ({"workers": 1}, {"sample_seeds": True}, {}):
        assert difference(expected, batches(Gives(noisy), 2, **reading)) is None
    drawn = [batch["noise"] if isinstance(batch, dict) else batch[1] for batch in expected]
    assert len({float(value) for noise in drawn for value in noise}) == SIZE


def test_without_a_collate_it_says_what_is_missing() -> None:
    with pytest.raises(LauncherError, match=r"__getitems__ gives batches.*name a function that takes them as"):
        batches(Gives(BATCHES["by name"]), 4, collate=None)
    with pytest.raises(ValueError, match=r"Gives.__getitems__ gives batches, no length of a sample; give the batch"):
        lengths_of(Gives(columns), None)


@pytest.mark.parametrize("kind", [Gives, Bare, lambda made: Subset(Gives(made), range(SIZE))])
def test_samples_by_getitems_alone_are_read_wherever_one_is_read(kind: Any) -> None:
    def rows(indices: list[int]) -> list[tuple[Tensor, Tensor]]:
        return [(X[index], X[index].sum() + torch.rand(())) for index in indices]

    dataset = kind(rows)
    assert not is_stream(dataset)
    assert not gives_batches(dataset)
    assert torch.equal(sample_of(dataset, 5)[0], X[5])
    assert lengths_of(dataset, None).tolist() == [4] * SIZE
    loader = TrainLoader(dataset, StepSampler(dataset, global_batch_size=4), Reading())
    text, is_steady = fingerprint(loader)
    assert is_steady
    assert text.startswith(type(getattr(dataset, "dataset", dataset)).__name__)
    assert torch.equal(sample_of(subset(dataset, np.array([7, 2])), 1)[0], X[2])


def test_what_getitems_leaves_out_is_left_out_when_it_draws_too() -> None:
    def rows(indices: list[int]) -> list[Tensor]:
        return [X[index] + torch.rand(()) for index in indices if index != 7]

    lengths = [len(batch) for batch in batches(Gives(rows), 4)]
    assert sorted(lengths) == [3, 4, 4]
    with pytest.raises(IndexError, match=r"Gives.__getitems__\(\[7\]\) gives no sample"):
        sample_of(Gives(rows), 7)


def noisy_columns(indices: list[int]) -> Any:
    return [X[indices] + torch.randn(len(indices), 4), X[indices].sum(1)]


def noisy_collate(samples: list[Tensor]) -> Any:
    return torch.stack(samples) + torch.randn(len(samples), 4)


@pytest.mark.parametrize(
    ("dataset", "collate"),
    [(Gives(noisy_columns), itself), (Gives(lambda indices: [X[index] for index in indices]), noisy_collate)],
)
def test_a_loss_is_measured_on_rows_of_what_a_batch_draws(dataset: Any, collate: Any) -> None:
    loader = TrainLoader(dataset, StepSampler(dataset, global_batch_size=4), Reading(collate=collate))
    samples = samples_of(loader)
    assert samples is not None
    whole, part = samples.batch(range(SIZE)), samples.batch([5, 6])
    rows = [column[5:7] for column in whole] if isinstance(whole, list) else whole[5:7]
    assert difference(rows, part) is None
