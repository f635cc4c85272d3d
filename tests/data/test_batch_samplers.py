"""Batches that a sampler chooses: by arithmetic or by counting, the same for every world, and from any step on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from projects import make
from torch.utils.data import BatchSampler, RandomSampler, Sampler, TensorDataset, WeightedRandomSampler

import launcher
from launcher.data.batch_samplers import ArithmeticBatches, LengthBuckets, MPerClass, TokenBudget
from launcher.data.batch_steps import BatchSteps, ByArithmetic, ByCounting
from launcher.data.loaders import Reading, TrainLoader
from launcher.errors import LauncherError

SIZE = 300
LENGTHS = np.random.default_rng(4).integers(1, 40, SIZE)
CLASSES = np.random.default_rng(5).integers(0, 9, SIZE)


def per_class(**settings: Any) -> MPerClass:
    return MPerClass(range(SIZE), 3, 12, targets=CLASSES, **settings)


def buckets(**settings: Any) -> LengthBuckets:
    return LengthBuckets(range(SIZE), 16, LENGTHS, **{"window": 5, **settings})


def budget(**settings: Any) -> TokenBudget:
    return TokenBudget(range(SIZE), 200, LENGTHS, **{"buckets": 7, **settings})


OURS = {"classes": per_class, "lengths": buckets, "tokens": budget}


def epoch_of(sampler: ArithmeticBatches, epoch: int) -> list[list[int]]:
    sampler.set_epoch(epoch)
    return list(sampler)


@pytest.mark.parametrize("kind", OURS)
def test_a_batch_is_a_function_of_seed_epoch_and_number(kind: str) -> None:
    first, again = (OURS[kind](seed=7) for _ in range(2))
    epochs = [epoch_of(first, epoch) for epoch in range(3)]
    for epoch, number in itertools.product((2, 0, 1), range(len(first) - 1, -1, -5)):
        assert again.batch(epoch, number).tolist() == epochs[epoch][number]
    assert epochs[0] != epochs[1]
    assert epoch_of(OURS[kind](seed=8), 0) != epochs[0]
    assert [len(epoch) for epoch in epochs] == [len(first)] * 3


def test_classes_come_m_at_a_time_and_all_samples_of_a_class_in_turn() -> None:
    sampler = per_class(seed=1)
    seen: dict[int, list[int]] = {number: [] for number in range(9)}
    for batch in itertools.chain(*(epoch_of(sampler, epoch) for epoch in range(12))):
        classes, counts = np.unique(CLASSES[batch], return_counts=True)
        assert (len(classes), set(counts)) == (4, {3})
        for index in batch:
            seen[int(CLASSES[index])].append(index)
    used = [np.bincount(CLASSES[batch], minlength=9) for batch in epoch_of(sampler, 0)]
    assert np.ptp(np.sum(used, axis=0)) <= 3 * 9  # no class is forgotten
    for number, indices in seen.items():
        times = np.bincount(indices, minlength=SIZE)[number == CLASSES]
        assert times.min() >= 1
        assert times.max() - times.min() <= 9  # whole passes, less what a round leaves out


@pytest.mark.parametrize("kind", ["lengths", "tokens"])
def test_every_sample_comes_once_an_epoch(kind: str) -> None:
    for epoch in range(3):
        indices = list(itertools.chain(*epoch_of(OURS[kind](seed=3), epoch)))
        assert sorted(indices) == list(range(SIZE))


def test_buckets_pad_little_and_drop_what_is_no_batch() -> None:
    def padding(batches: list[list[int]]) -> float:
        return float(sum(LENGTHS[batch].max() * len(batch) for batch in batches) / LENGTHS.sum())

    shuffled = np.random.default_rng(0).permutation(SIZE)
    plain = padding([shuffled[at : at + 16].tolist() for at in range(0, SIZE, 16)])
    assert padding(epoch_of(buckets(seed=2), 0)) < 1.35 < plain
    assert padding(epoch_of(buckets(seed=2, window=30), 0)) < 1.15
    dropped = epoch_of(buckets(seed=2, drop_last=True), 1)
    assert {len(batch) for batch in dropped} == {16}
    assert len(set(itertools.chain(*dropped))) == SIZE // 16 * 16


@pytest.mark.parametrize(("tokens", "buckets"), [(39, 1), (39, 64), (200, 7), (200, 300), (5000, 3)])
def test_a_budget_is_kept_and_used(tokens: int, buckets: int) -> None:
    sampler = TokenBudget(range(SIZE), tokens, LENGTHS, buckets=buckets, seed=6)
    for epoch in range(2):
        batches = epoch_of(sampler, epoch)
        assert sorted(itertools.chain(*batches)) == list(range(SIZE))
        assert max(len(batch) * LENGTHS[batch].max() for batch in batches) <= tokens
    assert len(epoch_of(TokenBudget(range(SIZE), 200, LENGTHS, buckets=40, seed=6), 0)) < LENGTHS.sum() / 200 * 1.6


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: MPerClass(range(SIZE), 5, 12, CLASSES), "not a multiple of m"),
        (lambda: MPerClass(range(SIZE), 1, 12, CLASSES), "12 classes, and there are 9"),
        (lambda: MPerClass(range(SIZE), 1, 8, CLASSES[:9]), "300 whole numbers are wanted"),
        (lambda: MPerClass(range(SIZE), 1, 8, CLASSES / 2), "300 whole numbers are wanted"),
        (lambda: TokenBudget(range(SIZE), 20, LENGTHS), "raise tokens, or cut it shorter"),
        (lambda: LengthBuckets([1.5, 2.5], 1), "sample 0 has no length"),
        (lambda: LengthBuckets(range(SIZE), 0, LENGTHS), "at least 1"),
    ],
)
def test_what_cannot_be_batches_is_said(
    wrong: Any, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises((ValueError, LauncherError), match=words):
        wrong()


class Texts:
    """Lists of tokens with a label; it counts its reads."""

    reads = 0

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> dict[str, Any]:
        type(self).reads += 1
        return {"id": index, "input_ids": [1] * (index % 7 + 1), "label": index % 4}


def test_what_nobody_knows_is_measured_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert LengthBuckets(Texts(), 4).lengths.tolist() == [index % 7 + 1 for index in range(20)]
    first = Texts.reads
    LengthBuckets(Texts(), 4)
    assert Texts.reads - first <= 20  # a few samples, to know it again; here that is all of them
    batch = MPerClass(Texts(), 2, 8, seed=0).batch(0, 0)
    assert sorted(index % 4 for index in batch) == [0, 0, 1, 1, 2, 2, 3, 3]
    np.save(tmp_path / "lengths.npy", np.arange(20))
    assert LengthBuckets(Texts(), 4, tmp_path / "lengths.npy").lengths.tolist() == list(range(20))


# --- dealt out ---


class Own(Sampler[list[int]]):
    """Batches of one's own, drawn from all that draws; what an epoch has depends on those before it."""

    def __init__(self, remembers: bool = False, has_length: bool = True):
        self.remembers, self.passes = remembers, 0
        if has_length:
            self.length = 9

    def __iter__(self) -> Iterator[list[int]]:
        self.passes += 1
        for number in range(9):
            size = 3 + (number * (self.passes if self.remembers else 1)) % 4
            yield [int(torch.randint(SIZE, ())), *np.random.randint(0, SIZE, size).tolist()]

    def __len__(self) -> int:
        if not hasattr(self, "length"):
            raise TypeError
        return self.length


class Endless(Sampler[list[int]]):
    def __iter__(self) -> Iterator[list[int]]:
        while True:
            yield torch.randint(SIZE, (5,)).tolist()


DATA = TensorDataset(torch.arange(SIZE))
ANY: dict[str, Callable[[], Any]] = {
    **{kind: lambda kind=kind: ByArithmetic(OURS[kind](), 5) for kind in OURS},  # type: ignore[misc]  # the loop's
    "torch's": lambda: ByCounting(BatchSampler(RandomSampler(DATA), 32, False), DATA, 5, None),
    "torch's by weight": lambda: ByCounting(
        BatchSampler(WeightedRandomSampler(range(1, SIZE + 1), 90), 32, True), DATA, 5, None
    ),
    "with a generator": lambda: ByCounting(
        BatchSampler(RandomSampler(DATA, generator=torch.Generator().manual_seed(1)), 64, False), DATA, 5, None
    ),
    "of one's own": lambda: ByCounting(Own(), DATA, 5, None),
    "that remembers": lambda: ByCounting(Own(remembers=True), DATA, 5, None),
    "without a length": lambda: ByCounting(Own(remembers=True, has_length=False), DATA, 5, 40),
    "without an end": lambda: ByCounting(Endless(), DATA, 5, 40),
}


def steps_of(kind: str, rank: int = 0, world: int = 1, micro: int | None = None) -> BatchSteps:
    return BatchSteps(DATA, ANY[kind](), rank=rank, world_size=world, micro_batch_size=micro, seed=5)


def counted(sampler: BatchSteps, step: int) -> list[int]:
    return list(itertools.chain(*(share.indices.tolist() for share in sampler.shares(step) if share.samples)))


@pytest.mark.parametrize("kind", ANY)
@pytest.mark.parametrize(("world", "micro"), [(2, None), (3, 2)])
def test_every_world_shares_the_same_batches_from_any_step_on(kind: str, world: int, micro: int | None) -> None:
    alone, ranks = steps_of(kind), [steps_of(kind, rank, world, micro) for rank in range(world)]
    expected = [sorted(counted(alone, step)) for step in range(33)]
    for step in (*range(12), 31, 14):
        parts = [counted(sampler, step) for sampler in ranks]
        assert sorted(itertools.chain(*parts)) == expected[step]
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        assert len({len(sampler.shares(step)) for sampler in ranks}) == 1
        assert micro is None or max(len(share.indices) for share in ranks[0].shares(step)) <= micro
        assert ranks[0].batch_size(step) == len(expected[step])
    resumed = steps_of(kind, 0, world, micro)
    torch.manual_seed(99)  # whatever the process draws meanwhile
    state = torch.get_rng_state()
    assert [counted(resumed, step) for step in (20, 21)] == [counted(ranks[0], step) for step in (20, 21)]
    assert torch.equal(torch.get_rng_state(), state)
    for step in (20, 0, 27, 28):
        assert alone.samples_before(step) == sum(map(len, expected[:step]))
    assert sorted(counted(alone, 28)) == expected[28]  # counting has moved nothing


@pytest.mark.parametrize("workers", [0, 2])
def test_they_are_read_by_whoever_reads(workers: int) -> None:
    loader = TrainLoader(DATA, steps_of("tokens"), Reading(workers=workers))
    read = [sorted(batch.data[0].tolist()) for step in loader.steps(3, 8) for batch in step]
    assert read == [sorted(counted(steps_of("tokens"), step)) for step in range(3, 8)]


class Wrong:
    """A sampler that gives what it is told."""

    def __init__(self, *batches: Any, length: int | None = None):
        self.batches, self.length = batches, length

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)

    def __len__(self) -> int:
        if self.length is None:
            raise TypeError
        return self.length


@pytest.mark.parametrize(
    ("sampler", "words"),
    [
        (Wrong([1], [2], length=3), "pass 0 has 2 batches, and its length says 3"),
        (Wrong([1], [2], length=1), "gives more than 1 batches"),
        (Wrong([1], [SIZE]), f"batch 1 has sample {SIZE}; there are 0 to 299"),
        (Wrong([1], [-1]), "batch 1 has sample -1"),
        (Wrong(), "a pass without any has no end"),
        (Wrong(1, 2), "BatchSampler makes them of single ones"),
        (Wrong([]), "lists of indices"),
    ],
)
def test_a_sampler_that_gives_no_batches_is_named(sampler: Any, words: str) -> None:
    with pytest.raises(LauncherError, match=f"data.batch_sampler \\(Wrong\\): .*{words}"):
        ByCounting(sampler, DATA, 0, 10).at(3)


# --- in a recipe ---

RECIPE = """
data: {train: {_target_: parts.py:Rows}, batch_sampler: SAMPLER}
model: {_target_: parts.py:Net}
loss: {_target_: CrossEntropyLoss}
optimizer: {_target_: SGD, lr: 0.1}
train: {steps: 12}
save: {every: 5 steps}
track: {every: 1 steps}
"""
PARTS = """
import os

import torch
from torch.utils.data import TensorDataset

class Net(torch.nn.Linear):
    def __init__(self):
        super().__init__(4, 5)
        self.calls = 0

    def forward(self, rows):
        self.calls += self.training
        if self.calls == int(os.environ.get("FAILS_AT", 0)):
            raise ArithmeticError("here it fails")
        return super().forward(rows)

class Rows(TensorDataset):
    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        super().__init__(torch.rand(60, 4, generator=generator), torch.arange(60) % 5)
        self.targets = self.tensors[1]

class Two:
    def __init__(self, data_source):
        self.size = len(data_source)

    def __iter__(self):
        while True:
            yield torch.randint(self.size, (7,)).tolist()
"""
MIXED = (
    """{_target_: torch.utils.data.ConcatDataset, datasets: [{_target_: parts.py:Rows}, {_target_: parts.py:Rows}]}"""
)
NAMED = {
    "ours": "{_target_: MPerClass, m: 2, batch_size: 8}",
    "torch's": "{_target_: BatchSampler, sampler: {_target_: RandomSampler}, batch_size: 7, drop_last: false}",
    "own": "{_target_: parts.py:Two}",
}


@pytest.mark.parametrize("name", NAMED)
def test_a_run_steps_through_them_and_resumes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = make(tmp_path / "project", RECIPE.replace("SAMPLER", NAMED[name]), parts=PARTS)
    whole = launcher.train(recipe, cpu=True, run_dir=tmp_path / "whole", output="quiet")
    monkeypatch.setenv("FAILS_AT", "8")
    with pytest.raises(ArithmeticError):
        launcher.train(recipe, cpu=True, run_dir=tmp_path / "cut", output="quiet")
    monkeypatch.delenv("FAILS_AT")
    again = launcher.train(recipe, cpu=True, run_dir=tmp_path / "cut", resume=True, output="quiet")
    assert again.model.calls == 12  # from step 5 on, and a checkpoint has the five before
    assert torch.equal(whole.model.weight, again.model.weight)


def test_a_recipe_mixes_data_sets_in_shares_that_change(tmp_path: Path) -> None:
    mixture = "{_target_: Mixture, batch_size: 8, shares: {0: [3, 1], 8: [1, 1]}}"
    recipe = make(tmp_path / "project", RECIPE.replace("SAMPLER", mixture), parts=PARTS)
    run = launcher.train(recipe, f"data.train={MIXED}", cpu=True, run_dir=tmp_path / "run", output="quiet")
    assert run.step == 12


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.global_batch_size=8", "goes without data.batch_sampler: a step is one batch"),
        ("data.drop_last=true", "goes without data.batch_sampler"),
        ("data.weights=w.npy", "goes without data.batch_sampler: the sampler chooses"),
        ("data.batch_sampler={_target_: MPerClass, m: 2, batch_size: 8, data_source: 3}", "data_source"),
        ("data.batch_sampler={_target_: launcher.datasets.Digits, split: train}", "is not a batch sampler"),
        ("train={epochs: 2}", "does not know how many batches an epoch has; set train.steps"),
    ],
)
def test_what_contradicts_them_is_refused(override: str, words: str, tmp_path: Path) -> None:
    recipe = make(tmp_path / "project", RECIPE.replace("SAMPLER", NAMED["own"]), parts=PARTS)
    with pytest.raises(LauncherError, match=words):
        launcher.train(recipe, override, cpu=True, run_dir=tmp_path / "run", output="quiet")
