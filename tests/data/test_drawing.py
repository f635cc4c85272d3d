"""Only what draws is seeded, and gets the numbers that it would get if all were: data sets made at random, compared."""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from randomness import states
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset, default_collate, get_worker_info

from launcher.data.drawing import Draws
from launcher.data.generators import GENERATORS, NumpyGenerator, PythonGenerator, TorchGenerator
from launcher.data.loaders import EvaluationLoader, Reading, TrainLoader
from launcher.data.reading import Reader
from launcher.data.sampler import StepSampler

SIZE, BATCH = 37, 8
ENGINE: Callable[[], np.random.BitGenerator] = getattr(np.random, "get_bit_generator")  # noqa: B009  # not in its types


def forked() -> float:
    with torch.random.fork_rng():
        return float(torch.rand(()))


def forked_and_seeded() -> float:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return float(torch.rand(()))


def numpy_put_back() -> float:
    state = np.random.get_state()
    number = np.random.rand()
    np.random.set_state(state)
    return float(number)


def python_put_back() -> float:
    state = random.getstate()
    number = random.random()
    random.setstate(state)
    return number


def state_copied() -> float:
    twin = random.Random()
    twin.setstate(random.getstate())
    return twin.random()


def seeded_by_itself() -> float:
    np.random.seed(0)
    return float(np.random.rand()) + random.random()


def in_a_thread() -> float:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: random.gauss(0, 1) + float(torch.rand(()))).result()


def nested() -> float:
    loader = DataLoader(TensorDataset(torch.arange(6.0)), batch_size=2, shuffle=True)
    return float(sum(batch[0] * 7**number for number, (batch,) in enumerate(loader)))


DRAWS: dict[str, Callable[[], float]] = {
    "nothing": lambda: 0.0,
    "torch.rand": lambda: float(torch.rand(3).double().sum()),
    "torch.randn": lambda: float(torch.randn(())),  # keeps a second number
    "torch.randint": lambda: float(torch.randint(0, 10**6, ())),
    "torch.randperm": lambda: float((torch.randperm(50) * torch.arange(50)).sum()),
    "torch dropout": lambda: float(torch.nn.functional.dropout(torch.ones(40), 0.5).dot(torch.arange(40.0))),
    "numpy.rand": lambda: float(np.random.rand(3).sum()),
    "numpy.randn": lambda: float(np.random.randn()),  # keeps a second number
    "numpy.permutation": lambda: float((np.random.permutation(50) * np.arange(50)).sum()),
    "numpy, a whole block": lambda: float(np.random.randint(0, 2**32, 624, dtype=np.uint32).astype(float).sum()),
    "random.random": lambda: random.random(),
    "random.gauss": lambda: random.gauss(0, 1),  # keeps a second number
    "random.shuffle": lambda: float(sum(a * b for a, b in enumerate(random.sample(range(50), 50)))),
    "random, a whole block": lambda: float(sum(random.getrandbits(32) for _ in range(624))),
    "forked": forked,
    "forked and seeded": forked_and_seeded,
    "numpy put back": numpy_put_back,
    "random put back": python_put_back,
    "a state copied": state_copied,
    "the seed read": lambda: float(np.random.default_rng(torch.initial_seed() % 2**32).random()),
    "seeded by itself": seeded_by_itself,
    "in a thread": in_a_thread,
    "numpy's engine": lambda: float(np.random.Generator(ENGINE()).random()),
    "a loader in it": nested,
}
WHEN: dict[str, Callable[[int], bool]] = {
    "always": lambda index: True,
    "at one sample": lambda index: index == 5,
    "seldom": lambda index: index % 11 == 3,
    "in the second half": lambda index: index >= 20,
}


class Drawing(Dataset[Any]):
    """Samples with what some functions give, for some of them."""

    epoch = 0

    def __init__(self, draws: list[str], when: str, epochs: int = 1):
        self.draws, self.when, self.epochs = draws, when, epochs

    def __len__(self) -> int:
        return SIZE

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor]:
        draws = WHEN[self.when](index) and self.epoch % self.epochs == 0
        numbers = [DRAWS[name]() if draws else 0.0 for name in self.draws]
        return index, torch.tensor(numbers, dtype=torch.float64)


class AtOnce(Drawing):
    """The same, asked for many at once."""

    def __getitems__(self, indices: list[int]) -> list[Any]:
        return [self[index] for index in indices]


def noisy(samples: list[Any]) -> Any:
    indices, numbers = default_collate(samples)
    return indices, numbers + torch.rand(()) + random.random() + np.random.randn()


def seldom_noisy(samples: list[Any]) -> Any:
    indices, numbers = default_collate(samples)
    return indices, numbers + (torch.randn(()) if 7 in indices.tolist() else 0)


def forking(samples: list[Any]) -> Any:
    indices, numbers = default_collate(samples)
    return indices, numbers + forked()


COLLATES = {"torch's": None, "quiet": default_collate, "noisy": noisy, "seldom": seldom_noisy, "forks": forking}


def read(dataset: Any, seeds: Any, world: int = 1, start: int = 0, micro: int | None = None, **reading: Any) -> Any:
    """Each rank's batches of steps from `start` on, as plain numbers."""
    loaders = []
    for rank in range(world):
        sampler = StepSampler(
            dataset, global_batch_size=BATCH, rank=rank, world_size=world, micro_batch_size=micro, seed=3
        )
        loaders.append(TrainLoader(dataset, sampler, Reading(seed=3, rank=rank, sample_seeds=seeds, **reading)))
    streams = [loader.steps(start, start + 7) for loader in loaders]
    steps = [
        [[(*(part.tolist() for part in batch.data), batch.samples) for batch in rank] for rank in step]
        for step in zip(*streams, strict=True)
    ]
    for stream in streams:
        stream.close()
    return steps


def half_used() -> tuple[Any, ...]:
    """Leaves each generator with a number that is kept for its next call; their states."""
    random.gauss(0, 1), np.random.randn(), torch.randn(())
    return states()


@pytest.mark.parametrize("name", DRAWS)
def test_whatever_draws_gets_its_numbers_and_leaves_the_process_as_it_was(name: str) -> None:
    for when, kind in itertools.product(WHEN, (Drawing, AtOnce)):
        before = half_used()
        wanted, numbers = (read(kind([name], when), seeds) for seeds in (True, "auto"))
        assert numbers == wanted, (when, kind.__name__)
        assert states() == before, (when, kind.__name__)


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    draws=st.lists(st.sampled_from(sorted(DRAWS)), min_size=1, max_size=4),
    when=st.sampled_from(sorted(WHEN)),
    epochs=st.sampled_from([1, 2]),
    collate=st.sampled_from(sorted(COLLATES)),
    kind=st.sampled_from([Drawing, AtOnce]),
    part=st.booleans(),
    world=st.integers(1, 3),
    micro=st.sampled_from([None, 1, 3]),
    start=st.sampled_from([0, 3, 7]),
)
def test_data_sets_made_at_random_read_as_if_all_were_seeded(
    draws: list[str],
    when: str,
    epochs: int,
    collate: str,
    kind: type[Drawing],
    part: bool,
    world: int,
    micro: int | None,
    start: int,
) -> None:
    whole = kind(draws, when, epochs)
    dataset: Any = Subset(whole, list(range(30, 3, -1))) if part else whole
    how: dict[str, Any] = {"world": world, "micro": micro, "start": start, "collate": COLLATES[collate]}
    assert read(dataset, "auto", **how) == read(dataset, True, **how)


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_read_the_same(workers: int) -> None:
    for draws, when in (
        (["torch.randn", "numpy.randn"], "seldom"),
        (["random.gauss"], "at one sample"),
        (["forked"], "always"),
    ):
        dataset = Drawing(draws, when)
        here, there = (read(dataset, "auto", workers=count, collate=seldom_noisy) for count in (0, workers))
        assert here == there == read(dataset, True, collate=seldom_noisy)


class OfItsWorker(Drawing):
    """Looks at the seed of the worker that it is in, for some samples."""

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor]:
        worker = get_worker_info()
        seed = worker.seed if worker is not None and WHEN[self.when](index) else 0
        return index, torch.tensor([seed % 2**40], dtype=torch.float64)


@pytest.mark.parametrize("when", ["always", "seldom"])
def test_the_seed_of_a_worker_is_that_of_the_sample(when: str) -> None:
    one, three, later = (
        read(OfItsWorker([], when), "auto", workers=count, start=start) for count, start in ((1, 0), (3, 0), (3, 3))
    )
    assert one == three
    assert one[3:] == later[: len(one) - 3]


@pytest.mark.parametrize("name", ["torch.randn", "numpy.randn", "random.gauss", "forked"])
def test_evaluating_reads_the_same_each_time(name: str) -> None:
    dataset = Drawing([name], "in the second half")
    passes = []
    for seeds in (True, "auto", "auto"):
        loader = EvaluationLoader(dataset, BATCH, Reading(seed=3, sample_seeds=seeds))
        passes += [[batch.data[1].tolist() for batch in loader.batches()] for _ in range(2)]
    assert all(one == passes[0] for one in passes)


class Failing(Drawing):
    """Fails where a draw says so."""

    def __getitem__(self, index: int) -> Any:
        if random.random() > 0.97:
            raise ValueError(f"drawn badly at {index}")
        return super().__getitem__(index)


def test_an_error_that_depends_on_a_draw_is_the_same_error() -> None:
    errors = []
    for seeds in (True, "auto"):
        with pytest.raises(ValueError, match="drawn badly") as caught:
            read(Failing(["nothing"], "always"), seeds)
        errors.append((str(caught.value), caught.value.__notes__))
    assert errors[0] == errors[1]


class Quiet(Drawing):
    """Counts what is asked of it."""

    def __init__(self) -> None:
        super().__init__(["nothing"], "always")
        self.asked: list[int] = []

    def __getitem__(self, index: int) -> Any:
        self.asked.append(index)
        return super().__getitem__(index)


def test_what_draws_nothing_is_never_seeded_and_read_once() -> None:
    dataset, before = Quiet(), half_used()
    read(dataset, "auto")
    assert len(dataset.asked) == 4 + 32 + 5 + 16  # two samples twice, then seven steps
    assert states() == before
    draws = Draws(always=False)
    assert draws.read(lambda: 7, restored=True) == 7
    assert draws.drawn == ()


class Cached(Drawing):
    """Keeps samples as they were first read: what was there before anything was drawn, or all."""

    def __init__(self, draws: list[str], kind: str):
        super().__init__(draws, "always")
        self.kind, self.kept = kind, dict[int, Any]()

    @functools.lru_cache(maxsize=None)  # noqa: B019, UP033  # as it is written
    def remembered(self, index: int) -> Any:
        return super().__getitem__(index)

    def __getitem__(self, index: int) -> Any:
        if self.kind == "lru":
            return self.remembered(index)
        if index not in self.kept:
            self.kept[index] = super().__getitem__(index) if self.kind == "dict" else torch.ones(1)
        return self.kept[index] if self.kind == "dict" else (index, self.kept[index] * super().__getitem__(index)[1])


@pytest.mark.parametrize("draws", [["torch.rand"], ["numpy.rand"], ["random.gauss", "torch.rand"]])
@pytest.mark.parametrize(("kind", "keeps"), [("lru", True), ("dict", True), ("raw", False)])
def test_samples_that_keep_what_they_drew_are_noticed(kind: str, draws: list[str], keeps: bool) -> None:
    for dataset in (Cached(draws, kind), Subset(Cached(draws, kind), range(8))):
        reader = Reader(dataset, Reading(sample_seeds="auto"), "data.train")
        reader.batch(0, np.arange(4))
        assert reader.keeps_draws == keeps


class OwnGenerator(Drawing):
    """Draws from a generator of its own, as Albumentations and MONAI do."""

    def seed_sample(self, value: int) -> None:
        self.generator = np.random.default_rng(value)

    def __getitem__(self, index: int) -> Any:
        return index, torch.tensor([self.generator.random()], dtype=torch.float64)


def test_a_generator_of_its_own_is_seeded_for_each_sample() -> None:
    dataset = OwnGenerator(["nothing"], "always")
    whole = read(dataset, "auto")
    assert read(dataset, "auto", workers=2) == read(dataset, True) == whole
    assert read(dataset, "auto", start=3)[:4] == whole[3:]
    numbers = [number for step in whole for rank in step for _, batch, _ in rank for number in itertools.chain(*batch)]
    assert len(set(numbers)) == len(numbers)
    assert read(Subset(dataset, list(range(SIZE))), "auto") == whole


def test_another_engine_than_numpys_own_is_put_back_too() -> None:
    numpy_random: Any = np.random  # NumPy's own types leave these two out
    own = numpy_random.get_bit_generator()
    try:
        numpy_random.set_bit_generator(np.random.PCG64(3))
        generator = NumpyGenerator()
        look, first = generator.look(), float(np.random.rand())
        assert generator.has_moved(look)
        generator.put_back(look)
        assert not generator.has_moved(look)
        assert float(np.random.rand()) == first
    finally:
        numpy_random.set_bit_generator(own)


def test_looks_without_memory_are_the_same_looks() -> None:
    kinds: tuple[Any, ...] = (PythonGenerator(), NumpyGenerator(), TorchGenerator())
    assert None not in (kinds[0]._memory, kinds[1]._pair, kinds[2]._memory)
    kinds[0]._memory = kinds[1]._pair = kinds[2]._memory = None  # as where they are kept elsewhere
    draws: list[Callable[[], float]] = [
        lambda: random.gauss(0, 1),
        lambda: float(np.random.randn()),
        lambda: float(torch.randn(())),
    ]
    for generator, draw in [*zip(kinds, draws, strict=True), *zip(GENERATORS, draws, strict=True)]:
        for _ in range(2):  # the second number was kept by the first draw
            look, first = generator.look(), draw()
            assert generator.has_moved(look)
            generator.put_back(look)
            assert not generator.has_moved(look)
            assert draw() == first
