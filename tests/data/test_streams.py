"""Streams: split over ranks and workers without overlap, begun again at their end, and resumed by counting."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Any

import datasets
import pytest
import torch
from torch.utils.data import IterableDataset, get_worker_info

from launcher.data.loaders import Reading
from launcher.data.sampler import StepSampler
from launcher.data.streams import StreamEvaluationLoader, StreamLoader
from launcher.errors import LauncherError

BATCH = 8


class Stream(IterableDataset[Any]):
    """Counts; splits itself among workers, as torch's documentation has it, and would leave samples out."""

    def __init__(self, size: int = 20):
        self.size = size
        self.numbers: Sequence[int] = range(size)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        for number in self.numbers if info is None else self.numbers[info.id :: info.num_workers]:
            yield 100 * self.epoch + number, random.random() + torch.rand((), dtype=torch.float64)


class Shards(Stream):
    """One that can be cut into parts."""

    def __init__(self, size: int = 96, parts: int = 12):
        super().__init__(size)
        self.num_shards = parts

    def shard(self, num_shards: int, index: int) -> Shards:
        part = Shards(self.size, self.num_shards // num_shards)
        part.numbers = self.numbers[index::num_shards]
        return part


class Skipping(Stream):
    """One that need not be read to get further."""

    skipped = 0

    def skip(self, count: int) -> Skipping:
        rest = Skipping(self.size)
        rest.skipped, rest.numbers = count, self.numbers[count:]
        return rest

    def __iter__(self) -> Iterator[Any]:
        for number, sample in zip(self.numbers, super().__iter__(), strict=True):
            assert self.epoch or self.skipped <= number
            yield sample


def loader_of(stream: Any, rank: int = 0, world: int = 1, micro: int | None = None, workers: int = 0) -> StreamLoader:
    sampler = StepSampler(
        range(10**6),
        global_batch_size=BATCH,
        rank=rank,
        world_size=world,
        micro_batch_size=micro,
        seed=5,
        shuffle=False,
    )
    return StreamLoader(stream, sampler, Reading(seed=5, rank=rank, workers=workers))


def read(loaders: Sequence[StreamLoader], start: int, stop: int) -> list[list[tuple[int, float]]]:
    """The samples that count of every step over all ranks, sorted."""
    steps = []
    for batches in zip(*(loader.steps(start, stop) for loader in loaders), strict=True):
        step: list[tuple[int, float]] = []
        for batch in itertools.chain(*batches):
            numbers, noise = batch.data
            step += list(zip(numbers.tolist(), noise.tolist(), strict=True))[: batch.samples]
        steps.append(sorted(step))
    return steps


def numbers(steps: list[list[tuple[int, float]]]) -> list[list[int]]:
    return [[number for number, _ in step] for step in steps]


@pytest.fixture(scope="module")
def undisturbed() -> list[list[tuple[int, float]]]:
    return read([loader_of(Stream())], 0, 12)


def test_a_stream_is_read_in_its_order_and_begins_again(undisturbed: list[list[tuple[int, float]]]) -> None:
    steps = numbers(undisturbed)
    assert steps[0] == list(range(8))
    assert steps[2] == [16, 17, 18, 19, 100, 101, 102, 103]  # the next pass, which it is told of
    noise = [noise for step in undisturbed for _, noise in step]
    assert len(set(noise)) == len(noise)


@pytest.mark.parametrize(
    ("world", "micro", "workers", "start"), [(2, None, 0, 0), (3, 2, 1, 0), (8, None, 0, 7), (1, 3, 1, 5)]
)
def test_a_stream_without_shards_is_the_same_run_in_every_world(
    undisturbed: list[list[tuple[int, float]]], world: int, micro: int | None, workers: int, start: int
) -> None:
    loaders = [loader_of(Stream(), rank, world, micro, workers) for rank in range(world)]
    assert not any(loader.is_sharded for loader in loaders)
    assert read(loaders, start, 12) == undisturbed[start:]


@pytest.mark.parametrize("size", [20, 1000])
def test_what_was_read_is_skipped_where_a_stream_can(size: int) -> None:
    whole = read([loader_of(Stream(size))], 0, 12)
    assert read([loader_of(Skipping(size))], 1, 12) == whole[1:]
    assert read([loader_of(Skipping(size))], 7, 12) == whole[7:]  # behind the end of the short one


@pytest.mark.parametrize(("world", "workers", "micro"), [(1, 0, None), (2, 0, 3), (3, 2, 2), (2, 2, None)])
def test_shards_are_read_once_and_gone_on_with(world: int, workers: int, micro: int | None) -> None:
    loaders = [loader_of(Shards(), rank, world, micro, workers) for rank in range(world)]
    assert all(loader.is_sharded for loader in loaders)
    steps = read(loaders, 0, 16)
    assert all(len(step) == BATCH for step in steps)
    first_pass = [number for step in numbers(steps)[:9] for number in step if number < 100]
    assert len(set(first_pass)) == len(first_pass) > 60
    if world != 3:  # 8 samples divide among the readers, so that all passes end together
        assert sorted(itertools.chain(*numbers(steps)[:12])) == list(range(96))
    assert read(loaders, 13, 16) == steps[13:]


def test_shards_draw_numbers_of_their_own() -> None:
    steps = read([loader_of(Shards(), rank, 2) for rank in range(2)], 0, 12)
    noise = [noise for step in steps for _, noise in step]
    assert len(set(noise)) == len(noise)


def test_more_readers_than_shards_read_the_whole_stream(undisturbed: list[list[tuple[int, float]]]) -> None:
    loaders = [loader_of(Shards(20, parts=2), rank, 3) for rank in range(3)]
    assert not loaders[0].is_sharded
    assert read(loaders, 0, 12) == undisturbed


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_of_the_hub_s_library_is_cut_into_its_shards(workers: int) -> None:
    table = datasets.Dataset.from_dict({"number": list(range(64)), "noise": [0.0] * 64})
    loaders = [loader_of(table.to_iterable_dataset(num_shards=4), rank, 2, 2, workers) for rank in range(2)]
    assert all(loader.is_sharded for loader in loaders)

    def seen(start: int, stop: int) -> list[list[int]]:
        streams = [loader.steps(start, stop) for loader in loaders]
        return [
            sorted(number for batch in itertools.chain(*step) for number in batch.data["number"].tolist())
            for step in zip(*streams, strict=True)
        ]

    steps = seen(0, 12)
    assert sorted(itertools.chain(*steps[:8])) == list(range(64))
    assert seen(6, 12) == steps[6:]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_reads_a_stream_once_over_all_ranks(world: int) -> None:
    loader = StreamEvaluationLoader(Stream(20), 3, Reading(), limit=5)
    batches = [batch for rank in range(world) for batch in loader.batches(rank, world)]
    assert sorted(number for batch in batches for number in batch.data[0].tolist()) == list(range(15))
    assert (loader.num_samples(), loader.num_batches()) == (15, 5)
    short = StreamEvaluationLoader(Stream(7), 3, Reading(), limit=5)
    assert [batch.samples for batch in short.batches()] == [3, 3, 1]


def test_an_empty_stream_is_an_error_and_not_a_loop() -> None:
    with pytest.raises(LauncherError, match=r"data\.train \(Stream\), rank 0: the stream gave no sample \(shard 0\)"):
        next(loader_of(Stream(0)).steps(0, None))


def test_an_error_in_a_stream_names_the_sample() -> None:
    class Broken(Stream):
        def __iter__(self) -> Iterator[Any]:
            yield from itertools.islice(super().__iter__(), 11)
            raise LauncherError("part-3.tar: damaged")

    with pytest.raises(LauncherError, match=r"^data.train \(Broken\), rank 0, sample 11: part-3.tar: damaged$"):
        read([loader_of(Broken())], 0, 3)
