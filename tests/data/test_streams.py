"""Streams: split over ranks and workers without overlap, begun again at their end, and resumed by counting."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import IterableDataset, get_worker_info

from launcher.data.loaders import Reading
from launcher.data.same_data import sketch
from launcher.data.sampler import StepSampler
from launcher.data.seeds import randomness_restored
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


class Once:
    """Begins where it ended."""

    def __init__(self) -> None:
        self.left = iter(range(6))

    def __iter__(self) -> Iterator[int]:
        return self.left


def test_a_stream_that_ends_for_good_is_told_as_that() -> None:
    with pytest.raises(LauncherError, match=r"no sample \(shard 0\) in pass 2; its __iter__ must start from the beg"):
        list(loader_of(Once()).steps(0, 5))
    loader = StreamEvaluationLoader(Once(), 3, Reading(), limit=5)
    assert [batch.samples for batch in loader.batches()] == [3, 3]
    with pytest.raises(LauncherError, match="no sample; its __iter__ must start from the beginning each time"):
        list(loader.batches())


def test_an_error_in_a_stream_names_the_sample() -> None:
    class Broken(Stream):
        def __iter__(self) -> Iterator[Any]:
            yield from itertools.islice(super().__iter__(), 11)
            raise LauncherError("part-3.tar: damaged")

    with pytest.raises(LauncherError, match=r"^data.train \(Broken\), rank 0, sample 11: part-3.tar: damaged$"):
        read([loader_of(Broken())], 0, 3)


# --- what looks at a stream uses nothing of it up ---


class InPlace(Stream):
    """It shuffles its own list each time, as people write it."""

    def __init__(self, generator: Any):
        super().__init__()
        self.order, self.rng = list(range(self.size)), generator

    def __iter__(self) -> Iterator[Any]:
        self.rng.shuffle(self.order)
        for number in self.order:
            yield number, torch.zeros(())


@pytest.mark.parametrize("generator", [random, random.Random(3), np.random, np.random.default_rng(3)])
def test_whoever_looks_at_a_stream_first_leaves_it_as_it_was(generator: Any) -> None:
    stream = InPlace(generator)
    before = list(stream.order)
    loader = loader_of(stream)
    evaluation = StreamEvaluationLoader(stream, 4, Reading(), limit=2)
    with randomness_restored(needed=True):
        sketches = [sketch(loader), sketch(evaluation), sketch(loader)]
        assert loader.num_readable() == stream.size
        evaluation.first_batch()
        next(loader.apart().steps(0, 1))
    assert sketches[0].exact == sketches[2].exact
    assert stream.order == before


# --- `shard` and `skip` are known by what they take and give, not by their names ---


class Predicate(Stream):
    def skip(self, number: int) -> bool:
        return number % 7 == 3

    def shard(self, num_shards: int, index: int) -> list[int] | None:
        return None


class OtherArguments(Stream):
    def skip(self, first: int, last: int) -> Any:
        return self

    def shard(self, rank: int, world: int) -> Any:
        return self


class Moves(Stream):
    """Its `skip` moves itself, and gives nothing."""

    def skip(self, count: int) -> None:
        self.numbers = self.numbers[count:]

    def shard(self, num_shards: int, index: int) -> None:
        self.numbers = self.numbers[index::num_shards]


class SkipsFours(Stream):
    """It skips batches."""

    def skip(self, batches: int) -> Stream:
        rest = Stream(self.size)
        rest.numbers = self.numbers[4 * batches :]
        return rest


class Fails(Stream):
    skip = shard = len


class NoMethods(Stream):
    skip: Any = 3
    shard: Any = "train"


@pytest.mark.parametrize("kind", [Predicate, OtherArguments, Moves, SkipsFours, Fails, NoMethods])
def test_shard_and_skip_that_mean_something_else_are_not_used(
    kind: type[Stream], undisturbed: list[list[tuple[int, float]]]
) -> None:
    loaders = [loader_of(kind(), rank, 2) for rank in range(2)]
    assert read(loaders, 0, 12) == undisturbed
    assert read([loader_of(kind())], 1, 12) == undisturbed[1:]
    assert not any(loader.is_sharded for loader in loaders)


@pytest.mark.parametrize(
    ("kind", "notes"),
    [
        (Predicate, ("as its shard(num_shards, index) gives a NoneType, and no stream", "as its skip(n) gives a bool")),
        (OtherArguments, ("as its shard takes other arguments than shard(num", "its skip takes other arguments than")),
        (Fails, ("as its shard takes other arguments than shard(num", "as its skip(n) fails: TypeError: ")),
        (Stream, ("as it has no method shard(num_shards, index)", "reads past what was read before")),
        (Skipping, ("as it has no method shard(num_shards, index)", "skips what was read before")),
    ],
)
def test_the_plan_says_why_they_are_not_used(kind: type[Stream], notes: Sequence[str]) -> None:
    said = loader_of(kind(), 0, 2).describe()
    assert all(note in said for note in notes), said


def test_one_that_moves_itself_and_gives_itself_is_used() -> None:
    class MovesItself(Moves):
        def skip(self, count: int) -> Any:
            super().skip(count)
            return self

    whole = read([loader_of(Stream())], 0, 6)
    assert read([loader_of(MovesItself())], 1, 6) == whole[1:]  # and the next pass is whole again
    assert "skips what was read before" in loader_of(MovesItself()).describe()
