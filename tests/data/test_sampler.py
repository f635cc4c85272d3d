"""What every rank reads at every step: together exactly the global batch, in any world, from any step."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from launcher.data.permutation import Permutation, WeightedDraws, cumulative_weights
from launcher.data.sampler import StepSampler, describe_shares, evaluation_shares, piece
from launcher.errors import RecipeError

WORLDS = (1, 2, 3, 4, 8)
Build = Callable[..., StepSampler]


def world_of(size: int, build: Build) -> list[StepSampler]:
    return [build(rank=rank, world_size=size) for rank in range(size)]


def read(samplers: list[StepSampler], step: int) -> list[int]:
    """All samples of a step that count, rank after rank, micro-batch after micro-batch."""
    shares = [share for sampler in samplers for share in sampler.shares(step)]
    return [index for share in shares for index in share.indices[: share.samples].tolist()]


@settings(deadline=None)
@given(
    size=st.integers(1, 200),
    batch=st.integers(1, 70),
    world=st.integers(1, 8),
    micro=st.none() | st.integers(1, 20),
    drop_last=st.booleans(),
    epoch=st.integers(0, 3),
)
def test_a_step_is_its_slice_of_the_order_whatever_reads_it(
    size: int, batch: int, world: int, micro: int | None, drop_last: bool, epoch: int
) -> None:
    build = partial(
        StepSampler, range(size), global_batch_size=batch, micro_batch_size=micro, seed=5, drop_last=drop_last
    )
    samplers = world_of(world, build)
    order = Permutation(size, 5, epoch).slice(0, size).tolist()
    num_steps = size // batch if drop_last else -(-size // batch)
    assert samplers[0].steps_per_epoch == num_steps
    for number in range(num_steps):
        step = epoch * num_steps + number
        expected = order[number * batch : (number + 1) * batch]
        assert read(samplers, step) == expected
        for sampler in samplers:
            assert sampler.batch_size(step) == len(expected)
            check_shares(sampler, step, samplers[0].accumulation(step), expected[0])


def check_shares(sampler: StepSampler, step: int, accumulation: int, first: int) -> None:
    shares = sampler.shares(step)
    assert len(shares) == sampler.accumulation(step) == accumulation
    for share in shares:
        assert share.indices.dtype == np.int64
        if share.samples == 0:
            assert share.indices.tolist() == [first]
        else:
            assert share.samples == len(share.indices) <= (sampler.micro_batch_size or sampler.batch_size(step))


@pytest.mark.parametrize("world", range(1, 9))
@pytest.mark.parametrize(("size", "batch"), [(1, 8), (7, 8), (64, 8), (97, 16), (1000, 24)])
def test_an_epoch_is_every_sample_once(world: int, size: int, batch: int) -> None:
    samplers = world_of(world, partial(StepSampler, range(size), global_batch_size=batch))
    steps = range(2 * samplers[0].steps_per_epoch, 3 * samplers[0].steps_per_epoch)
    assert sorted(index for step in steps for index in read(samplers, step)) == list(range(size))


@pytest.mark.parametrize("weights", [None, np.arange(997) % 7])
@pytest.mark.parametrize("micro", [None, 1, 5, 8, 64])
def test_a_step_is_the_same_set_in_every_world(weights: Any, micro: int | None) -> None:
    build = partial(StepSampler, range(997), global_batch_size=64, micro_batch_size=micro, seed=3, weights=weights)
    alone = build()
    for world, step in itertools.product(WORLDS, (0, 1, 15, 16, 31, 32, 1000)):
        assert read(world_of(world, build), step) == read([alone], step)


def test_uneven_parts_are_cut_into_micro_batches_of_their_own() -> None:
    samplers = world_of(3, partial(StepSampler, range(640), global_batch_size=64, micro_batch_size=8))
    samples = [[share.samples for share in sampler.shares(0)] for sampler in samplers]
    assert samples == [[8, 7, 7], [7, 7, 7], [7, 7, 7]]


@pytest.mark.parametrize("parts", range(1, 12))
def test_pieces_are_those_of_tensor_split(parts: int) -> None:
    for total in range(40):
        expected = [part.tolist() for part in torch.arange(total).tensor_split(parts)]
        assert [list(range(*piece(total, parts, number))) for number in range(parts)] == expected


def test_without_shuffling_the_data_set_is_read_in_its_own_order() -> None:
    samplers = world_of(2, partial(StepSampler, range(10), global_batch_size=4, shuffle=False))
    assert [read(samplers, step) for step in range(4)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9], [0, 1, 2, 3]]


def test_every_epoch_has_an_order_of_its_own() -> None:
    sampler = StepSampler(range(100), global_batch_size=100)
    orders = [sampler.shares(epoch)[0].indices.tolist() for epoch in range(10)]
    assert all(a != b for a, b in itertools.combinations(orders, 2))


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_batch_of_all_samples_that_there_are_says_so(ranks: int) -> None:
    few, enough = (describe_shares(StepSampler(range(size), global_batch_size=1000), ranks) for size in (400, 1000))
    assert few.endswith("; all samples that there are, where the recipe says 1000")
    assert "where the recipe" not in enough


def test_a_data_set_smaller_than_a_dropped_batch_has_no_steps() -> None:
    assert StepSampler(range(7), global_batch_size=8, drop_last=True).steps_per_epoch == 0
    assert StepSampler(range(0), global_batch_size=8).steps_per_epoch == 0


def test_weighted_steps_draw_as_often_as_the_weights_say() -> None:
    weights = np.array([1.0, 2.0, 0.0, 5.0]).repeat(250)
    samplers = world_of(3, partial(StepSampler, range(1000), global_batch_size=32, seed=1, weights=weights))
    num_epochs, steps = 40, samplers[0].steps_per_epoch
    drawn = [index for step in range(num_epochs * steps) for index in read(samplers, step)]
    counts = np.bincount(np.array(drawn) // 250, minlength=4)
    expected = np.array([1, 2, 0, 5]) / 8 * 1000 * num_epochs
    assert len(drawn) == 1000 * num_epochs
    assert (np.abs(counts - expected) <= 4 * np.sqrt(expected)).all()
    assert read(samplers, 5) == WeightedDraws(cumulative_weights(weights), 1, 0).slice(160, 192).tolist()


def test_weights_for_another_number_of_samples_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"data\.weights: 9 weights for 10 samples"):
        StepSampler(range(10), global_batch_size=2, weights=np.ones(9))


def test_steps_may_be_read_in_any_order() -> None:
    build = partial(StepSampler, range(100_000), global_batch_size=64, rank=1, world_size=2)
    sampler, step_order = build(), Permutation(200, 0, 0).slice(0, 200) * 37
    for step in step_order.tolist():
        assert [s.indices.tolist() for s in sampler.shares(step)] == [s.indices.tolist() for s in build().shares(step)]


@pytest.mark.parametrize(("world", "batch"), [(1, 64), (64, 4096), (16_384, 131_072)])
def test_starting_deep_in_a_trillion_samples_takes_no_time_or_memory(world: int, batch: int) -> None:
    step = 10_000_000 if batch < 10**5 else 7_000_000
    tracemalloc.start()
    sampler = StepSampler(range(10**12), global_batch_size=batch, rank=world - 1, world_size=world)
    (share,) = sampler.shares(step)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000
    start = step * batch + batch - batch // world
    assert share.indices.tolist() == Permutation(10**12, 0, 0).slice(start, start + batch // world).tolist()


@pytest.mark.parametrize("micro", [None, 3])
@pytest.mark.parametrize("batch", [10, 10**18, 10**30])
def test_a_batch_larger_than_the_data_set_is_the_data_set(batch: int, micro: int | None) -> None:
    samplers = [
        StepSampler(range(10), global_batch_size=batch, micro_batch_size=micro, rank=r, world_size=2) for r in (0, 1)
    ]
    assert {sampler.steps_per_epoch for sampler in samplers} == {1}
    assert {sampler.accumulation(0) for sampler in samplers} == {1 if micro is None else 2}
    assert sorted(read(samplers, 0)) == list(range(10))
    assert {len(list(itertools.islice(sampler, 4))) for sampler in samplers} == {4}


def test_memory_stays_bounded_over_a_long_run() -> None:
    sampler = StepSampler(range(10**9), global_batch_size=512, rank=1, world_size=2, micro_batch_size=64)
    tracemalloc.start()
    for step in range(2000):
        sampler.shares(step)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


class Echo(Dataset[tuple[int, int]]):
    """Returns the (epoch, index) pair it was asked for."""

    def __len__(self) -> int:
        return 50

    def __getitem__(self, pair: Any) -> tuple[int, int]:
        epoch, index = pair
        return int(epoch), int(index)


def loaded(sampler: StepSampler, workers: int, count: int | None = None) -> list[list[tuple[int, int]]]:
    loader = DataLoader(Echo(), batch_sampler=sampler, num_workers=workers, collate_fn=list)
    return list(itertools.islice(loader, count))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_loader_reads_micro_batches_with_their_epoch(workers: int) -> None:
    sampler = StepSampler(Echo(), global_batch_size=16, rank=1, world_size=2, micro_batch_size=5, seed=2)
    sampler.start_step, sampler.stop_step = 2, 9
    expected = [
        [(step // 4, index) for index in share.indices.tolist()]
        for step in range(2, 9)
        for share in sampler.shares(step)
    ]
    assert loaded(sampler, workers) == expected
    assert {epoch for batch in expected for epoch, _ in batch} == {0, 1, 2}


def test_iteration_goes_on_over_epochs_without_end() -> None:
    sampler = StepSampler(Echo(), global_batch_size=20)
    batches = loaded(sampler, 0, count=300)
    assert [epoch for epoch, _ in (batch[0] for batch in batches)] == [number // 3 for number in range(300)]


def test_set_epoch_covers_one_epoch_as_the_usual_loop_expects() -> None:
    sampler = StepSampler(Echo(), global_batch_size=16, micro_batch_size=5)
    assert isinstance(sampler, DistributedSampler)
    for epoch in (0, 3):
        sampler.set_epoch(epoch)
        batches = loaded(sampler, 0)
        assert len(batches) == len(sampler) == 3 * 4 + 1
        assert sorted(itertools.chain(*batches)) == [(epoch, index) for index in range(50)]


@pytest.mark.parametrize(("drop_last", "micro_batches"), [(False, 7), (True, 6)])
def test_length_is_the_micro_batches_of_an_epoch(drop_last: bool, micro_batches: int) -> None:
    sampler = StepSampler(range(46), global_batch_size=20, world_size=2, micro_batch_size=4, drop_last=drop_last)
    assert len(sampler) == micro_batches
    assert len(sampler) == sum(sampler.accumulation(step) for step in range(sampler.steps_per_epoch))


@settings(deadline=None)
@given(size=st.integers(0, 100), batch=st.integers(1, 40), world=st.integers(1, 8))
def test_evaluation_reads_every_sample_once_in_order(size: int, batch: int, world: int) -> None:
    shards = [list(evaluation_shares(size, batch, rank, world)) for rank in range(world)]
    batches = [indices for shard in shards for indices in shard]
    assert [index for indices in batches for index in indices.tolist()] == list(range(size))
    assert all(1 <= len(indices) <= batch for indices in batches)
    assert all(len(indices) == batch for shard in shards for indices in shard[:-1])
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@pytest.mark.parametrize(("size", "micro", "drop_last"), [(50, 3, False), (50, 3, True), (64, 4, False), (7, 2, False)])
@pytest.mark.parametrize("readers", [1, 2, 3, 4])
def test_what_one_of_several_readers_has_read_is_arithmetic(
    size: int, micro: int, drop_last: bool, readers: int
) -> None:
    sampler = StepSampler(
        range(size), global_batch_size=7, rank=1, world_size=2, micro_batch_size=micro, drop_last=drop_last
    )
    read = [share.samples for step in range(6 * sampler.steps_per_epoch) for share in sampler.shares(step)]
    for reader in range(readers):
        expected = [sum(read[reader:stop:readers]) for stop in range(len(read))]
        assert [sampler.samples_of(reader, readers, stop) for stop in range(len(read))] == expected
