"""Three generators, three independent streams: what one draws says nothing of what another draws."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from randomness import states
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from launcher.data.loaders import EvaluationLoader, Reading, TrainLoader
from launcher.data.permutation import mix
from launcher.data.sampler import StepSampler
from launcher.data.seeds import numpy_seed, seed_everything, seed_generators, seed_torch
from launcher.data.streams import StreamLoader

SAMPLES, SIDES = 4000, 4
UNLIKELY = 45.1  # of chi-square with 9 degrees of freedom: one of a million


def rolls() -> list[int]:
    """One roll of a die by each generator, and one by what people use beside these."""
    by_numpy, by_torch = int(np.random.randint(SIDES)), int(torch.randint(SIDES, ()))
    return [random.randrange(SIDES), by_numpy, by_torch, int(torch.randperm(SIDES)[0])]


def chi_square(one: Tensor, other: Tensor) -> float:
    seen = torch.zeros(SIDES, SIDES, dtype=torch.float64)
    seen.index_put_((one, other), torch.ones(len(one), dtype=torch.float64), accumulate=True)
    expected = seen.sum(1, keepdim=True) * seen.sum(0) / seen.sum()
    return float(((seen - expected) ** 2 / expected).sum())


def are_independent(rows: Tensor) -> None:
    """No generator says anything of another, nor of itself in the next sample."""
    assert rows.shape == (SAMPLES, 4)
    for one, other in itertools.combinations(range(3), 2):
        assert chi_square(rows[:, one], rows[:, other]) < UNLIKELY, (one, other)
    for one, other in itertools.product(range(3), repeat=2):
        assert chi_square(rows[:-1, one], rows[1:, other]) < UNLIKELY, (one, other, "of the next")
    for column in rows.T:
        counts = torch.bincount(column, minlength=SIDES)
        assert float(((counts - SAMPLES / SIDES) ** 2 / (SAMPLES / SIDES)).sum()) < 37, counts


class Rolling(Dataset[Tensor]):
    """Samples that are rolls."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor(rolls())


class RollingAtOnce(Rolling):
    """The same, asked for many at once as torch's DataLoader asks."""

    def __getitems__(self, indices: list[int]) -> list[Tensor]:
        return [self[index] for index in indices]


class Still(Rolling):
    """Samples that draw nothing."""

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor(index)


class Stream(IterableDataset[Tensor]):
    """Rolls in a row."""

    def __len__(self) -> int:
        return SAMPLES

    def __iter__(self) -> Iterator[Tensor]:
        return (torch.tensor(rolls()) for _ in range(SAMPLES))


def rolled(samples: list[Any]) -> Tensor:
    return torch.tensor([rolls() for _ in samples])


def loader(dataset: Any, batch: int, **reading: Any) -> TrainLoader:
    kind = StreamLoader if isinstance(dataset, IterableDataset) else TrainLoader
    sampler = StepSampler(dataset, global_batch_size=batch, shuffle=False)
    return kind(dataset, sampler, Reading(seed=5, **reading))


@pytest.mark.parametrize("kind", [Rolling, RollingAtOnce, Stream])
def test_samples_draw_independently(kind: type) -> None:
    are_independent(torch.cat([step[0].data for step in loader(kind(), 100).steps(0, 40)]))


def test_collates_draw_independently() -> None:
    are_independent(torch.cat([step[0].data for step in loader(Still(), 1, collate=rolled).steps(0, SAMPLES)]))


def test_evaluations_draw_independently_and_unlike_training() -> None:
    batches = [batch.data for batch in EvaluationLoader(Rolling(), 100, Reading(seed=5)).batches()]
    are_independent(torch.cat(batches))


def test_steps_draw_independently() -> None:
    rows = []
    for step in range(SAMPLES):
        seed_generators(7, step, 0)
        rows.append(rolls())
    are_independent(torch.tensor(rows))


def test_processes_draw_independently_from_the_start() -> None:
    rows = []
    for seed in range(SAMPLES):
        random.seed(seed)
        np.random.seed(numpy_seed(seed))
        torch.default_generator.manual_seed(seed)
        rows.append(rolls())
    are_independent(torch.tensor(rows))


def test_a_seed_everywhere_leaves_torch_as_a_script_seeds_it_and_numpy_another() -> None:
    seed_everything(11)
    weights, noise = torch.rand(3), np.random.random_sample(3)
    torch.manual_seed(11)
    assert torch.equal(weights, torch.rand(3))
    np.random.seed(11)
    assert not np.allclose(noise, np.random.random_sample(3))


def test_torch_alone_gets_what_it_gets_with_the_others() -> None:
    seed_generators(1, 2, 3)
    expected = torch.rand(4)
    seed_torch(mix(1, 2, 3))
    assert torch.equal(torch.rand(4), expected)
    random.seed(0)
    np.random.seed(0)
    before = states()
    seed_torch(mix(4))
    assert states()[:4] == before[:4]


@pytest.mark.parametrize(
    "draw", [lambda: random.random(), lambda: np.random.rand(), lambda: torch.rand(()), lambda: torch.randn(1)]
)
def test_a_draw_from_any_generator_shows(draw: Any) -> None:
    before = states()
    assert states() == before
    draw()
    assert states() != before
