"""Sets that are split by rank before they come here: noticed by all ranks together, in real processes."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset
from worlds import in_world

from launcher.data.loaders import EvaluationLoader, MicroBatch, Reading, TrainLoader
from launcher.data.own_parts import OwnPartSampler
from launcher.data.same_data import sketch
from launcher.data.sampler import StepSampler
from launcher.data.streams import StreamLoader
from launcher.errors import LauncherError
from launcher.recipe.load import load_recipe
from launcher.run import run
from launcher.runs.options import Options
from launcher.world.world import World

SIZE = 32
RECIPE = """
data: {train: null, global_batch_size: 8, shuffle: false, workers: 0}
model: null
loss: {_target_: MSELoss}
optimizer: {_target_: SGD, lr: 0.1}
train: {steps: 8}
track: {every: 1 steps}
launch: {threads: 1}
"""


class Rows(Dataset[tuple[Tensor, Tensor]]):
    """Rows, all of them or some; it notes which were read."""

    def __init__(self, numbers: Any = range(SIZE)) -> None:
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(SIZE, 4, generator=generator, dtype=torch.float64)
        self.numbers = list(numbers)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x = self.x[self.numbers[index]]
        return torch.cat([x, torch.tensor([self.numbers[index]], dtype=torch.float64)]), x.sum().reshape(1)


class Flow(IterableDataset[Any]):
    """Rows as a stream, split as it is read."""

    def __init__(self, split: bool) -> None:
        self.split = split

    def __iter__(self) -> Iterator[Any]:
        rows = Rows()
        rank, size = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
        return (rows[number] for number in range(rank if self.split else 0, SIZE, size if self.split else 1))


class ReadUp(Flow):
    """A stream that can be read once."""

    def __init__(self, split: bool) -> None:
        super().__init__(split)
        self.rows = Flow.__iter__(self)

    def __iter__(self) -> Iterator[Any]:
        return self.rows


class Unsteady(Rows):
    """Samples with noise from a generator that nobody seeds."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x, y = super().__getitem__(index)
        return torch.cat([x[:4] + random.SystemRandom().random(), x[4:]]), y


class UnsteadyPart(Unsteady):
    """The same of one rank's part: its words say whose."""

    def __getitem__(self, index: int) -> Any:
        x, y = super().__getitem__(index)
        return x, y, f"row {self.numbers[index]}"


class Rounding(Rows):
    """A machine of another kind, which rounds otherwise."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x, y = super().__getitem__(index)
        return x * (1 + 1e-7 * World.from_environ().rank), y


class Net(nn.Module):
    """Sees which rows come."""

    def __init__(self) -> None:
        super().__init__()
        self.l = nn.Linear(4, 1, dtype=torch.float64)
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Any:
        self.seen += [int(number) for number in x[:, 4]]
        return self.l(x[:, :4].double())  # the hub stores floats in 32 bits


def made(kind: str) -> Any:
    """A training set of a kind, on this rank."""
    world = World.from_environ()
    rank, size = world.rank, world.size
    if kind.startswith("hub"):
        import datasets
        from datasets import distributed

        split = vars(distributed)["split_dataset_by_node"]  # neither of the two has types
        rows = Rows()
        table = vars(datasets)["Dataset"].from_dict(
            {"x": [rows[i][0].tolist() for i in range(SIZE)], "y": rows.x.sum(1).tolist()}
        )
        if "stream" in kind:
            table = table.to_iterable_dataset(num_shards=4)
        as_torch: Any = table.with_format("torch")
        return split(as_torch, rank=rank, world_size=size)
    made: dict[str, Callable[[], Any]] = {
        "whole": Rows,
        "own arithmetic": lambda: Rows(range(rank, SIZE, size)),
        "halves": lambda: Rows(range(rank * SIZE // size, (rank + 1) * SIZE // size)),
        "uneven": lambda: Rows(range(11) if rank == 0 else range(11, SIZE)),
        "stream": lambda: Flow(split=True),
        "whole stream": lambda: Flow(split=False),
        "read up": lambda: ReadUp(split=False),
        "unsteady": Unsteady,
        "unsteady part": lambda: UnsteadyPart(range(rank, SIZE, size)),
        "rounding": Rounding,
    }
    return made[kind]()


def trained(folder: str, kind: str, overrides: tuple[str, ...], evaluated: str | None = None) -> Any:
    """Trains as one rank; gives the rows that it saw, or what it was told."""
    path = Path(folder) / f"recipe-{os.environ.get('RANK', 0)}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(RECIPE)
    net = Net()
    given = {"data.train": made(kind), "model": net}
    if evaluated is not None:
        given["data.validation"] = made(evaluated)
    if kind.startswith("hub"):
        overrides = (*overrides, "batch={inputs: [x], targets: [y]}")
        given["loss"] = lambda out, y: ((out - y.reshape(-1, 1)) ** 2).mean()
    torch.set_default_dtype(torch.float32)
    try:
        recipe = load_recipe(path, overrides, given=given)
        run(recipe, World.from_environ(), Options(cpu=True, run_dir=f"{folder}/run", output="quiet"))
    except LauncherError as error:
        return f"{type(error).__name__} ({error.exit_code}): {error}"
    return net.seen[: 8 * 4 * 10]


def by_ranks(tmp_path: Path, kind: str, *overrides: str, size: int = 2, **more: Any) -> list[Any]:
    return in_world(size, trained, str(tmp_path), kind, overrides, more.get("evaluated"))


@pytest.mark.parametrize("kind", ["own arithmetic", "halves", "uneven", "stream", "unsteady part", "hub", "hub stream"])
def test_a_set_that_is_split_is_refused_on_all_ranks(tmp_path: Path, kind: str) -> None:
    for told in by_ranks(tmp_path, kind):
        assert "RecipeError (2)" in told
        assert "data.train: ranks 0 and 1 were given different samples" in told
        assert "set data.split_by_rank: true, and each reads its own" in told


@pytest.mark.parametrize("kind", ["whole", "whole stream", "read up", "unsteady", "rounding"])
def test_a_set_that_is_whole_is_read_once(tmp_path: Path, kind: str) -> None:
    one, other = by_ranks(tmp_path, kind, "train.steps=4")
    assert sorted([*one, *other]) == list(range(SIZE))
    assert not set(one) & set(other)


@pytest.mark.parametrize("kind", ["own arithmetic", "halves", "stream", "hub", "hub stream"])
def test_where_the_recipe_says_so_each_rank_reads_its_own(tmp_path: Path, kind: str) -> None:
    one, other = by_ranks(tmp_path, kind, "data.split_by_rank=true", "train.steps=4")
    assert sorted([*one, *other]) == list(range(SIZE))  # 16 of 32 would never be read if it were split again


def test_uneven_parts_are_each_read_once_an_epoch(tmp_path: Path) -> None:
    one, other = by_ranks(tmp_path, "uneven", "data.split_by_rank=true", "train={steps: null, epochs: 1}")
    assert one[:11] == list(range(11))
    assert other == list(range(11, SIZE))
    assert set(one[11:]) <= {0}  # what stands in while the other reads on counts for nothing


def test_three_ranks_with_micro_batches(tmp_path: Path) -> None:
    settings = ("data.split_by_rank=true", "data.micro_batch_size=2", "train={steps: null, epochs: 1}")
    seen = by_ranks(tmp_path, "own arithmetic", *settings, size=3)
    for rank, rows in enumerate(seen):
        own = list(range(rank, SIZE, 3))
        warm_up = len(rows) - len(own)  # three processes settle the order of DDP's buckets first
        assert [row for row in rows[warm_up:] if row in own] == rows[warm_up:]
        assert set(rows) == set(own)


def test_a_set_that_is_whole_is_not_said_to_be_split(tmp_path: Path) -> None:
    for told in by_ranks(tmp_path, "whole", "data.split_by_rank=true"):
        assert "data.split_by_rank: ranks 0 and 1 read the same samples of data.train: it is not split" in told


def test_an_evaluation_set_is_compared_too(tmp_path: Path) -> None:
    for told in by_ranks(tmp_path, "whole", evaluated="halves"):
        assert "data.validation: ranks 0 and 1 were given different samples" in told
        assert "split_by_rank: true" not in told
    assert all(isinstance(one, list) for one in by_ranks(tmp_path / "other", "whole", evaluated="whole"))


def test_a_share_of_one_rank_s_part_is_no_validation_set(tmp_path: Path) -> None:
    told = trained(str(tmp_path), "whole", ("data.split_by_rank=true", "data.validation=10% of train"))
    assert "data.validation: '10% of train' with split_by_rank: a share of train is a share of one process's" in told


def test_one_process_has_nothing_to_compare(tmp_path: Path) -> None:
    assert trained(str(tmp_path), "whole", ("data.split_by_rank=true", "train.steps=4")) == list(range(SIZE))


# --- by arithmetic, in one process ---


def loaders(sizes: list[int], batch: int, micro: int | None, **settings: Any) -> list[TrainLoader]:
    starts = [0, *itertools.accumulate(sizes)]
    found = []
    for rank, size in enumerate(sizes):
        sampler = OwnPartSampler(
            sizes, global_batch_size=batch, rank=rank, world_size=len(sizes), micro_batch_size=micro, **settings
        )
        found.append(TrainLoader(list(range(starts[rank], starts[rank] + size)), sampler, Reading()))
    return found


def counted(steps: tuple[list[MicroBatch], ...]) -> list[int]:
    return [row for batches in steps for batch in batches for row in batch.data.tolist()[: batch.samples]]


@pytest.mark.parametrize(("batch", "micro"), [(8, None), (9, 2), (7, 1), (12, 3)])
@pytest.mark.parametrize("sizes", [[16, 16], [17, 16], [5, 30, 11], [1, 9, 1]])
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_sample_comes_once_an_epoch(sizes: list[int], batch: int, micro: int | None, shuffle: bool) -> None:
    ranks = loaders(sizes, batch, micro, seed=2, shuffle=shuffle)
    sampler = ranks[0].sampler
    steps = list(zip(*(one.steps(0, 2 * sampler.steps_per_epoch) for one in ranks), strict=True))
    rows = [counted(one) for one in steps]
    for epoch in (0, 1):
        part = rows[epoch * sampler.steps_per_epoch : (epoch + 1) * sampler.steps_per_epoch]
        assert sorted(itertools.chain(*part)) == list(range(sum(sizes)))
    assert [sampler.batch_size(step) for step in range(len(rows))] == list(map(len, rows))
    before = [0, *itertools.accumulate(map(len, rows))]
    assert [sampler.samples_before(step) for step in range(len(before))] == before
    assert all(len({len(batches) for batches in one}) == 1 for one in steps)
    dropped = loaders(sizes, batch, micro, drop_last=True)[0].sampler
    assert all(dropped.batch_size(step) == batch for step in range(dropped.steps_per_epoch))


@pytest.mark.parametrize("readers", [1, 2, 3])
def test_samples_of_a_reader_are_counted_as_they_are_read(readers: int) -> None:
    sampler = OwnPartSampler([10, 7], global_batch_size=6, rank=0, world_size=2, micro_batch_size=2)
    counts = [share.samples for step in range(12) for share in sampler.shares(step)]
    for stop in range(len(counts)):
        for reader in range(readers):
            assert sampler.samples_of(reader, readers, stop) == sum(counts[reader:stop:readers])


class Counting(IterableDataset[int]):
    """Numbers, as many as one likes; it can be cut into shards."""

    def __init__(self, numbers: range):
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[int]:
        return iter(self.numbers)

    def shard(self, num_shards: int, index: int) -> Counting:
        return Counting(self.numbers[index::num_shards])


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_split_stream_goes_on_where_it_was(workers: int) -> None:
    def ranks() -> list[StreamLoader]:
        samplers = [
            OwnPartSampler([12, 12], global_batch_size=6, rank=r, world_size=2, shuffle=False) for r in range(2)
        ]
        parts = [Counting(range(r, 24, 2)) for r in range(2)]
        return [StreamLoader(part, one, Reading(workers=workers)) for part, one in zip(parts, samplers, strict=True)]

    straight = [counted(one) for one in zip(*(one.steps(0, 8) for one in ranks()), strict=True)]
    assert sorted(itertools.chain(*straight[:4])) == list(range(24))
    again = [counted(one) for one in zip(*(one.steps(5, 8) for one in ranks()), strict=True)]
    assert again == straight[5:]


def test_looking_at_a_stream_uses_nothing_up() -> None:
    class Remembers(Flow):
        def __init__(self) -> None:
            super().__init__(split=False)
            self.at = 0

        def __iter__(self) -> Iterator[Any]:
            while self.at < SIZE:
                self.at += 1
                yield Rows()[self.at - 1]

    stream, generator = Remembers(), ReadUp(split=False)
    for dataset in (stream, generator):
        sampler = StepSampler(range(SIZE), global_batch_size=8, shuffle=False)
        loader = StreamLoader(dataset, sampler, Reading())
        assert sketch(loader) == sketch(loader)
        rows = [int(batch.data[0][0, 4]) for step in loader.steps(0, 4) for batch in step]
        assert rows == [0, 8, 16, 24]
    assert sketch(EvaluationLoader(Rows(), 4, Reading())).size == SIZE
