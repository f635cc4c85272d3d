"""The order of an epoch: exact at every size, random by every test that torch.randperm passes, and fixed."""

from __future__ import annotations

import itertools
import tracemalloc
from collections import Counter
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch

from launcher.data.permutation import (
    Indices,
    Order,
    Permutation,
    Sequential,
    WeightedDraws,
    cumulative_weights,
    keyed_bits,
    keyed_uniform,
    mix,
    split,
)
from launcher.errors import RecipeError

Shuffle = Callable[[int, int, int], Indices]  # (size, seed, epoch) -> a permutation of range(size)
LIMIT = 4.0  # standard deviations; every test is seeded, so that it passes always or never


def ours(size: int, seed: int, epoch: int) -> Indices:
    return Permutation(size, seed, epoch).slice(0, size)


def randperm(size: int, seed: int, epoch: int) -> Indices:
    generator = torch.Generator().manual_seed(mix(seed, epoch))
    return torch.randperm(size, generator=generator).numpy()


def affine(size: int, seed: int, epoch: int) -> Indices:
    """What a hurried programmer might write: scattered to the eye, and no shuffle at all."""
    assert size % 2
    return (np.arange(size) * (size // 2 - 1) + 1009 * seed + 9176 * epoch) % size


both = pytest.mark.parametrize("shuffle", [ours, randperm])


def z_of_chi_square(counts: npt.NDArray[np.int64], degrees: int) -> float:
    """Deviations from an even spread over all cells (Wilson and Hilferty's normal approximation, 1931)."""
    expected = counts.sum() / counts.size
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    spread = 2 / (9 * degrees)
    return float(((chi_square / degrees) ** (1 / 3) - (1 - spread)) / spread**0.5)


def z_of_correlation(first: Indices, second: Indices) -> float:
    return float(np.corrcoef(first, second)[0, 1] * len(first) ** 0.5)


def neighbours(order: Indices, lag: int, cells: int = 16) -> dict[str, float]:
    """How much a position tells of the one `lag` further on: in line, in difference, in pairs of cells."""
    size, here, there = len(order), order[:-lag], order[lag:]
    pairs = here * cells // size * cells + there * cells // size
    steps = (there - here) % size * 101 // size
    return {
        f"correlation at {lag}": z_of_correlation(here, there),
        f"steps at {lag}": z_of_chi_square(np.bincount(steps, minlength=101), 100),
        f"pairs at {lag}": z_of_chi_square(np.bincount(pairs, minlength=cells**2), (cells - 1) ** 2),
    }


def batches(order: Indices, batch_size: int, classes: int = 8) -> float:
    """How evenly batches mix the classes of a data set sorted by class: neither too little nor too much."""
    num_batches = len(order) // batch_size
    labels = order[: num_batches * batch_size] * classes // len(order)
    batch = np.arange(len(labels)) // batch_size
    counts = np.bincount(batch * classes + labels, minlength=num_batches * classes)
    return z_of_chi_square(counts, (num_batches - 1) * (classes - 1))


def deviations(shuffle: Shuffle, size: int) -> dict[str, float]:
    """Standard deviations from what independent shuffles would show, by name of the test."""
    order = shuffle(size, 0, 0)
    found = {"batches of 32": batches(order, 32), "batches of 250": batches(order, 250)}
    for lag in (1, 2, 3, 64, 255, 256, 257, 1024):
        found |= neighbours(order, lag)
    for name, seed, epoch in (("next epoch", 0, 1), ("next seed", 1, 0), ("far seed", 2**40, 0)):
        found[name] = z_of_correlation(order, shuffle(size, seed, epoch))
    return found


@both
@pytest.mark.parametrize("size", [20_001, 65_537, 100_003])
def test_neighbours_batches_epochs_and_seeds_show_no_correlation(shuffle: Shuffle, size: int) -> None:
    assert {name: z for name, z in deviations(shuffle, size).items() if abs(z) > LIMIT} == {}


def test_these_statistics_notice_an_order_that_is_no_shuffle() -> None:
    noticed = [name for name, z in deviations(affine, 100_003).items() if abs(z) > LIMIT]
    assert {"correlation at 2", "steps at 1", "pairs at 1", "batches of 250", "next epoch"} <= set(noticed)


@both
@pytest.mark.parametrize(("size", "repeats"), [(64, 1500), (300, 1500)])
def test_every_index_is_equally_likely_at_every_position(shuffle: Shuffle, size: int, repeats: int) -> None:
    counts = np.zeros((size, size), dtype=np.int64)
    for epoch in range(repeats):
        counts[np.arange(size), shuffle(size, 5, epoch)] += 1
    assert abs(z_of_chi_square(counts, (size - 1) ** 2)) < LIMIT


@both
@pytest.mark.parametrize("size", [3, 4, 5])
def test_all_permutations_of_a_few_are_equally_likely_over_seeds(shuffle: Shuffle, size: int) -> None:
    seen = Counter(tuple(shuffle(size, seed, 0).tolist()) for seed in range(1200))
    counts = np.array([seen[each] for each in itertools.permutations(range(size))])
    assert abs(z_of_chi_square(counts, len(counts) - 1)) < LIMIT


@both
def test_two_orders_agree_in_one_place_on_average(shuffle: Shuffle) -> None:
    orders = [shuffle(1000, seed, epoch) for seed in range(8) for epoch in range(8)]
    agreements = [np.count_nonzero(a == b) for a, b in itertools.combinations(orders, 2)]
    num_pairs = len(agreements)  # agreements of two shuffles are Poisson distributed with mean 1
    assert abs(sum(agreements) - num_pairs) / num_pairs**0.5 < LIMIT
    assert max(agreements) < 10


def test_every_index_comes_exactly_once_at_every_size_up_to_ten_thousand() -> None:
    wrong = [size for size in range(1, 10_001) if (np.bincount(ours(size, 1, 2), minlength=size) != 1).any()]
    assert wrong == []


@pytest.mark.parametrize("size", [2**31, 2**31 + 1, 10**12])
def test_no_index_comes_twice_in_a_large_order(size: int) -> None:
    order = Permutation(size, 3, 1)
    starts = np.linspace(0, size - 100_000, 40, dtype=np.int64)
    indices = np.concatenate([order.slice(start, start + 100_000) for start in starts.tolist()])
    indices.sort()
    assert (np.diff(indices) > 0).all()  # independent draws would repeat 3,700 times in 2**31, 8 times in 10**12
    assert 0 <= indices[0] < indices[-1] < size
    assert abs(z_of_chi_square(np.bincount(indices // -(-size // 997), minlength=997), 996)) < LIMIT


@pytest.mark.parametrize("size", [2**62 - 1, 2**62, 2**62 + 1, 2**63 - 1])
def test_sizes_up_to_the_largest_int64_work(size: int) -> None:
    indices = np.sort(Permutation(size, 0, 0).slice(size - 20_000, size))
    assert (np.diff(indices) > 0).all()
    assert 0 <= indices[0] < indices[-1] < size
    assert abs(z_of_chi_square(np.bincount(indices // (size // 100 + 1), minlength=100), 99)) < LIMIT


@pytest.mark.parametrize("order", [Permutation(50_000, 3, 1), Sequential(50_000)])
def test_a_slice_is_the_same_wherever_it_starts(order: Order) -> None:
    whole = order.slice(0, 50_000)
    for start, stop in ((0, 1), (8191, 8193), (12_345, 37_000), (49_999, 50_000), (700, 700)):
        assert order.slice(start, stop).tolist() == whole[start:stop].tolist()
    assert order.at(np.array([40_000, 7, 7, 20_000])).tolist() == whole[[40_000, 7, 7, 20_000]].tolist()
    assert whole.dtype == np.int64


def test_a_slice_of_a_trillion_takes_under_a_megabyte() -> None:
    tracemalloc.start()
    Permutation(10**12, 0, 0).slice(10**11, 10**11 + 16_384)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_seed_and_epoch_and_size_each_make_another_order() -> None:
    orders = [ours(40, seed, epoch).tolist() for seed in (-1, 0, 1, 2**64 - 2, 2**63) for epoch in (0, 1, 2)]
    orders += [[i for i in ours(size, 0, 0).tolist() if i < 40] for size in (41, 42)]
    assert all(a != b for a, b in itertools.combinations(orders, 2))
    assert ours(40, 5, 6).tolist() == ours(40, 5, 6).tolist()


def test_the_order_never_changes_between_versions() -> None:
    """Runs are resumed by later versions, which must continue in the very order that earlier ones began."""
    assert ours(1, 0, 0).tolist() == [0]
    assert ours(10, 0, 0).tolist() == [9, 2, 7, 8, 0, 3, 6, 4, 5, 1]
    assert ours(100, 7, 3)[:6].tolist() == [61, 21, 46, 52, 39, 29]
    assert Permutation(60_000, 0, 1).slice(0, 4).tolist() == [39492, 17845, 702, 58839]
    trillion = Permutation(10**12, 42, 9)
    assert trillion.slice(10**11, 10**11 + 3).tolist() == [240856110323, 721613027280, 393267700997]
    draws = WeightedDraws(cumulative_weights(range(100)), 1, 2)
    assert draws.slice(0, 8).tolist() == [89, 85, 92, 66, 8, 98, 82, 99]
    assert split(12, 0.25, 0)[1].tolist() == [0, 5, 10]
    assert mix(1, 2, 3) == 7702586659592502839


def test_the_bits_are_those_of_the_published_splitmix64() -> None:
    # The generator's first outputs for this seed, as its other implementations print them.
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert keyed_bits(1234567, np.arange(4)).tolist() == published
    assert mix(1234567) == published[0]


def test_mixing_tells_values_places_and_counts_apart() -> None:
    values = [(), (0,), (1,), (-1,), (0, 0), (0, 1), (1, 0), (2**64 - 2,), (2**63,), (0, 0, 0)]
    assert len({mix(*each) for each in values}) == len(values)
    assert mix(-1) == mix(2**64 - 1)
    near = [mix(seed, epoch, index) for seed in range(10) for epoch in range(10) for index in range(100)]
    assert len(set(near)) == 10_000
    assert abs(z_of_chi_square(np.bincount([each >> 58 for each in near], minlength=64), 63)) < LIMIT
    assert abs(z_of_chi_square(np.bincount([each % 64 for each in near], minlength=64), 63)) < LIMIT


def test_uniform_numbers_fill_the_unit_interval_evenly() -> None:
    numbers = keyed_uniform(mix(0), np.arange(200_000))
    assert 0 <= numbers.min() < numbers.max() < 1
    assert abs(z_of_chi_square(np.bincount((numbers * 1000).astype(np.int64), minlength=1000), 999)) < LIMIT
    assert abs(float(np.corrcoef(numbers[:-1], numbers[1:])[0, 1])) * 200_000**0.5 < LIMIT


def test_weighted_draws_come_as_often_as_their_weights_say() -> None:
    weights = np.array([0, 1, 2, 3, 0, 10, 0.5, 0], dtype=np.float64).repeat(1000)
    cumulative = cumulative_weights(weights)
    draws = np.concatenate([WeightedDraws(cumulative, 0, epoch).slice(0, 8000) for epoch in range(50)])
    counts = np.bincount(draws // 1000, minlength=8)
    expected = len(draws) * weights[::1000] / weights[::1000].sum()
    assert not counts[expected == 0].any()
    deviation = (counts - expected)[expected > 0] / np.sqrt(expected[expected > 0])
    assert np.abs(deviation).max() < LIMIT
    assert abs(z_of_chi_square(np.bincount(draws[draws // 1000 == 5] - 5000, minlength=1000), 999)) < LIMIT


def test_weighted_draws_are_a_function_of_seed_epoch_and_position() -> None:
    cumulative = cumulative_weights(np.arange(1, 1001))
    whole = WeightedDraws(cumulative, 3, 4).slice(0, 1000)
    assert WeightedDraws(cumulative, 3, 4).slice(400, 500).tolist() == whole[400:500].tolist()
    assert WeightedDraws(cumulative_weights(np.arange(1, 1001) * 7e-5), 3, 4).slice(0, 9).tolist() == whole[:9].tolist()
    for seed, epoch in ((4, 3), (3, 5), (4, 4)):
        assert np.count_nonzero(WeightedDraws(cumulative, seed, epoch).slice(0, 1000) == whole) < 20


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, -2.0, 3.0], "1 of 3 are negative or not finite (the first is -2.0 for sample 1)"),
        ([1.0, float("nan")], "nan for sample 1"),
        ([[1.0, 2.0]], "shape (1, 2)"),
        ([0.0, 0.0], "sum must be positive"),
        ([1e308, 1e308], "sum must be positive and finite"),
        ([], "sum must be positive"),
    ],
)
def test_weights_that_cannot_be_drawn_by_are_refused(weights: list[float], message: str) -> None:
    with pytest.raises(RecipeError) as error:
        cumulative_weights(weights)
    assert str(error.value).startswith("data.weights: ")
    assert message in str(error.value)


@pytest.mark.parametrize(("size", "fraction", "held_back"), [(2, 0.5, 1), (1797, 0.1, 180), (10_000, 0.999, 9990)])
def test_a_split_is_disjoint_complete_ascending_and_stable(size: int, fraction: float, held_back: int) -> None:
    train, validation = split(size, fraction, 7)
    assert len(validation) == held_back
    assert sorted([*train.tolist(), *validation.tolist()]) == list(range(size))
    assert (np.diff(train) > 0).all()
    assert (np.diff(validation) > 0).all()
    assert split(size, fraction, 7)[1].tolist() == validation.tolist()


def test_a_split_takes_from_everywhere_and_with_another_seed_elsewhere() -> None:
    one, other = split(100_000, 0.1, 0)[1], split(100_000, 0.1, 1)[1]
    assert abs(z_of_chi_square(np.bincount(one // 1000, minlength=100), 99)) < LIMIT
    assert abs(len(np.intersect1d(one, other)) - 1000) < LIMIT * 1000**0.5


@pytest.mark.parametrize(("size", "fraction"), [(0, 0.1), (1, 0.5), (4, 0.1), (10, 0.99)])
def test_a_split_with_an_empty_part_is_refused(size: int, fraction: float) -> None:
    with pytest.raises(RecipeError, match=rf"data\.validation: .* of {size} samples is .* take another share"):
        split(size, fraction, 0)


def test_many_places_are_mixed_as_each_is() -> None:
    numbers = np.array([0, 1, 7, 2**40, 2**63 - 1])
    mixed = mix(-3, 2**64 - 1, numbers.astype(np.uint64), 5)
    assert mixed.tolist() == [mix(-3, 2**64 - 1, number, 5) for number in numbers.tolist()]
