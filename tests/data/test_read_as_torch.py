"""Data is read as torch would read it: what a method of a known name gives is compared, and who must know is told."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import pytest
import torch
from projects import make
from torch import Tensor, nn
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Sampler,
    Subset,
    TensorDataset,
    default_collate,
)

import launcher
from launcher import internals
from launcher.data.epochs import listeners
from launcher.data.fingerprint import fingerprint
from launcher.data.loaders import EvaluationLoader, Reading, TrainLoader
from launcher.data.many import verdict_on
from launcher.data.reading import _collated, reading_notes
from launcher.data.sampler import StepSampler
from launcher.data.streams import StreamLoader
from launcher.data.subsets import subset
from launcher.data.whole import whole_batches

SIZE, BATCH = 20, 8


class Rows(Dataset[tuple[Tensor, Tensor]]):
    """Rows and their sums."""

    def __init__(self) -> None:
        self.x = torch.arange(SIZE * 4, dtype=torch.float64).reshape(SIZE, 4).sin()
        self.y = self.x.sum(1, keepdim=True)

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index], self.y[index]


class Fast(Rows):
    """The same, many at once."""

    def get_batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self.x[indices], self.y[indices]


class Overridden(Fast):
    """What one writes to augment a data set that exists."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x, y = super().__getitem__(index)
        return x * 2, y


class BothOverridden(Overridden):
    """The same, consistently."""

    def get_batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        x, y = super().get_batch(indices)
        return x * 2, y


class DrawsAtRandom(Rows):
    """As nanoGPT's: of so many."""

    def get_batch(self, batch_size: Any) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(0, SIZE, (len(batch_size),))
        return self.x[chosen], self.y[chosen]


class OfASplit(Rows):
    """As nanoGPT's: of a part of the text."""

    def get_batch(self, split: str, size: int) -> tuple[Tensor, Tensor]:
        return self.x[:size], self.y[:size]


class InItsOwnOrder(Rows):
    """It sorts what it is asked for."""

    def get_batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self.x[indices.sort().values], self.y[indices.sort().values]


class InAnotherType(Rows):
    """It gives what a default collate would not."""

    def get_batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self.x[indices].float(), self.y[indices]


class Rounded(Rows):
    """Many rows at once, by another kernel."""

    def get_batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self.x[indices] * (1 + 1e-16), self.y[indices] + 1e-15


class PassesOn(Dataset[Any]):
    """A wrapper that passes on what it does not have."""

    def __init__(self, inner: Any):
        self.inner = inner

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> Any:
        x, y = self.inner[index]
        return -x, y

    def __getattr__(self, name: str) -> Any:
        if name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)


class SetByInstance(Rows):
    """A method put into an object."""

    def __init__(self) -> None:
        super().__init__()
        self.get_batch = lambda indices: (self.x[indices], self.y[indices])


class SaysNone(Fast):
    """One that has none after all."""

    get_batch = None  # type: ignore[assignment]  # as `__hash__ = None` says it


class Mixin:
    """Many at once, for whatever has rows."""

    def get_batch(self, indices: Tensor) -> Any:
        return self.x[indices], self.y[indices]  # type: ignore[attr-defined]  # it is mixed into Rows


class Mixed(Mixin, Rows):
    """A class with a mixin."""


class OnlyAtOnce(Dataset[Any]):
    """No single samples at all."""

    def __len__(self) -> int:
        return SIZE

    def get_batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return indices.double(), indices


class Ragged(Rows):
    """Samples that make no batch by themselves."""

    def __getitem__(self, index: int) -> Any:
        return torch.zeros(index + 1), self.y[index]

    def get_batch(self, indices: Tensor) -> Any:
        return nn.utils.rnn.pad_sequence([torch.zeros(int(i) + 1) for i in indices], batch_first=True), self.y[indices]


class ForgetsEpochs(Fast):
    """Its samples know the epoch, and its batches do not."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index] + self.epoch, self.y[index]

    def get_batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self.x[indices], self.y[indices]


USED = [Fast, BothOverridden, Rounded, Mixed]
UNUSED: dict[type, str] = {
    Overridden: "Overridden overrides __getitem__, which Fast.get_batch does not know about",
    DrawsAtRandom: "for samples 19, 0, 10, 6 it gives other values at [0]",
    OfASplit: "get_batch(indices) fails (TypeError",
    InItsOwnOrder: "it gives other values",
    InAnotherType: "it gives other values at [0]",
    ForgetsEpochs: "in another epoch for samples 19, 0, 10, 6 it gives other values at [0]",
    SetByInstance: "it is not a method of the class SetByInstance",
}


def loader_of(dataset: Any, **reading: Any) -> TrainLoader:
    return TrainLoader(dataset, StepSampler(dataset, global_batch_size=BATCH, shuffle=False), Reading(**reading))


def by_hand(dataset: Any, epochs: int = 1, **settings: Any) -> list[Any]:
    """What torch's DataLoader gives, its data set told of each epoch as scripts do."""
    batches = []
    for epoch in range(epochs):
        if hasattr(dataset, "set_epoch"):
            dataset.set_epoch(epoch)
        batches += list(DataLoader(dataset, batch_size=BATCH, **settings))
    return batches


def same_batches(ours: list[Any], torchs: list[Any]) -> None:
    assert len(ours) == len(torchs)
    for one, other in zip(ours, torchs, strict=True):
        assert len(one) == len(other)
        for mine, its in zip(one, other, strict=True):
            torch.testing.assert_close(mine, its, rtol=1e-14, atol=1e-14)


def read(loader: TrainLoader, steps: int = 3) -> list[Any]:
    return [batch.data for step in loader.steps(0, steps) for batch in step]


# --- get_batch ---


@pytest.mark.parametrize("kind", USED)
def test_a_get_batch_that_stands_for_the_samples_is_used(kind: type) -> None:
    dataset = kind()
    assert whole_batches(dataset, None) is not None
    assert not list(reading_notes(dataset, None))
    same_batches(read(loader_of(dataset)), by_hand(dataset))


@pytest.mark.parametrize("kind", UNUSED)
def test_another_is_not_and_the_plan_says_why(kind: type) -> None:
    dataset = kind()
    assert whole_batches(dataset, None) is None
    (note,) = reading_notes(dataset, None)
    assert note.startswith(f"{kind.__name__}.get_batch is not used, and samples are read one by one: ")
    assert UNUSED[kind] in note
    same_batches(read(loader_of(dataset)), by_hand(dataset))


@pytest.mark.parametrize("wrap", [lambda one: one, lambda one: Subset(one, list(range(SIZE))[::-1])])
def test_a_wrapper_or_subset_is_read_by_its_own_samples(wrap: Any) -> None:
    for inner in (Fast(), Overridden(), DrawsAtRandom()):
        dataset = wrap(PassesOn(inner))
        assert whole_batches(dataset, None) is None
        same_batches(read(loader_of(dataset)), by_hand(dataset))


def test_a_get_batch_that_is_none_is_none() -> None:
    assert verdict_on(SaysNone()) == (None, "")
    assert verdict_on(Rows()) == (None, "")


@pytest.mark.parametrize(("kind", "why"), [(OnlyAtOnce, "no single samples"), (Ragged, "make no batch")])
def test_where_nothing_can_be_compared_it_is_taken_at_its_word_and_said(kind: type, why: str) -> None:
    dataset = kind()
    assert whole_batches(dataset, None) is not None
    (note,) = reading_notes(dataset, None)
    assert f"{kind.__name__}.get_batch is trusted: " in note
    assert why in note


def test_looking_leaves_the_generators_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    verdict_on(DrawsAtRandom())
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize("kind", [Fast, Overridden, BothOverridden, DrawsAtRandom])
def test_a_part_is_read_as_the_whole(kind: type) -> None:
    dataset = kind()
    part = subset(dataset, np.array([3, 5, 7, 11, 13]))
    assert (whole_batches(part, None) is None) == (whole_batches(dataset, None) is None)
    same_batches(read(loader_of(part), 1), [next(iter(DataLoader(part, batch_size=5)))])


def test_tensors_are_read_as_they_are_now_and_only_plain_ones_at_once() -> None:
    data = TensorDataset(torch.arange(SIZE))
    loader = loader_of(data)
    data.tensors = (torch.arange(SIZE) + 100,)
    assert read(loader, 1)[0][0].tolist() == list(range(100, 108))
    assert isinstance(read(loader, 1)[0], list)  # as torch's default collate gives it
    quantized = torch.quantize_per_tensor(torch.rand(SIZE, 2), 0.1, 0, torch.qint8)
    assert whole_batches(TensorDataset(quantized), None) is None


# --- the default collate ---


class Point(NamedTuple):
    x: int
    y: float


COLLATED: dict[str, list[Any]] = {
    "tensors and numbers": [(torch.ones(2) * i, i, i / 2, bool(i % 2)) for i in range(3)],
    "nested": [((i, [i, "a"]), {"k": np.float32(i)}) for i in range(3)],
    "names": [Point(i, i / 3) for i in range(3)],
    "tuples, then lists": [(1, 2), [3, 4]],
    "nothing in them": [(), ()],
    "several lengths": [(1, 2), (1, 2, 3)],
    "shorter": [(1, 2), (1,)],
    "no sequences": [(1, 2), 3],
    "several shapes": [(torch.ones(2), 1), (torch.ones(3), 1)],
    "not collated": [(object(), 1), (object(), 2)],
}


def told(collate: Callable[[Any], Any], samples: list[Any]) -> str:
    try:
        return repr(collate(samples))
    except Exception as error:
        return f"{type(error).__name__}: {re.sub('0x[0-9a-f]+', '', str(error))}"


@pytest.mark.parametrize("name", COLLATED)
def test_samples_are_collated_as_torch_collates_them(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(_collated, COLLATED[name]) == told(default_collate, COLLATED[name])
    monkeypatch.setitem(
        internals.collate_functions(), tuple, lambda batch, **_: len(batch)
    )  # as torch's documentation has it
    assert told(_collated, COLLATED[name]) == told(default_collate, COLLATED[name])


# --- __getitems__ ---


class ManyRows(Rows):
    """Many at once, in the ecosystem's words; it counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[list[int]] = []

    def __getitems__(self, indices: list[int]) -> list[Any]:
        self.calls.append(indices)
        return [(self.x[index], self.y[index]) for index in indices]


class ManyOverridden(ManyRows):
    """A `__getitem__` that torch's DataLoader never calls."""

    def __getitem__(self, index: int) -> Any:
        return self.x[index] * 3, self.y[index]


class ManyBatch(Rows):
    """What is not a list of samples, for a collate that knows it."""

    def __getitems__(self, indices: list[int]) -> Any:
        return {"x": self.x[indices], "noise": torch.rand(())}


class ManyNoisy(ManyRows):
    """Many that draw, from one index on."""

    def __getitems__(self, indices: list[int]) -> list[Any]:
        rows = super().__getitems__(indices)
        return [(x + torch.rand(()) if index >= 10 else x, y) for index, (x, y) in zip(indices, rows, strict=True)]


def test_many_samples_are_asked_for_at_once_as_torch_asks() -> None:
    for dataset in (ManyRows(), ManyOverridden(), Subset(ManyRows(), list(range(SIZE))), PassesOn(ManyRows())):
        same_batches(read(loader_of(dataset)), by_hand(dataset))
    dataset = ManyRows()
    read(loader_of(dataset))
    tried = [2, 3, 2, 2]  # whether it gives samples, then whether two of them draw without a trace
    assert list(map(len, dataset.calls)) == [*tried, 8, 8, 4]
    part = subset(dataset, np.array([4, 2]))
    same_batches(read(loader_of(part), 1), [next(iter(DataLoader(part, batch_size=2)))])


@pytest.mark.parametrize("dataset", [ManyOverridden(), PassesOn(ManyRows())])
def test_a_getitem_that_torch_would_pass_by_is_spoken_of(dataset: Any) -> None:
    (note,) = reading_notes(dataset, None)
    assert "not by its own __getitem__, as torch's DataLoader would" in note
    assert not list(reading_notes(ManyRows(), None))


@pytest.mark.parametrize("workers", [0, 2])
def test_many_that_draw_are_seeded_one_by_one_whoever_reads(workers: int) -> None:
    def noise(world: int, start: int) -> list[list[float]]:
        samplers = [StepSampler(ManyNoisy(), global_batch_size=BATCH, rank=r, world_size=world) for r in range(world)]
        ranks = [TrainLoader(ManyNoisy(), one, Reading(workers=workers)).steps(start, 6) for one in samplers]
        together = zip(*ranks, strict=True)
        return [[number for (batch,) in steps for number in batch.data[0][:, 0].tolist()] for steps in together]

    expected = noise(1, 0)
    assert noise(2, 0) == noise(3, 0) == expected
    assert noise(1, 4) == expected[4:]


def test_a_collate_gets_what_getitems_gives() -> None:
    (batch,) = read(loader_of(ManyBatch(), collate=lambda given: given["x"] * 2), 1)
    assert torch.equal(batch, Rows().x[:BATCH] * 2)


def test_a_failure_of_many_names_the_sample() -> None:
    class Broken(ManyRows):
        def __getitems__(self, indices: list[int]) -> list[Any]:
            return [1 // 0 if index == 5 else self.x[index] for index in indices]

    with pytest.raises(ZeroDivisionError) as caught:
        read(loader_of(Broken()))
    assert "sample 5" in str(getattr(caught.value, "__notes__", "sample 5"))  # notes came with Python 3.11


@pytest.mark.parametrize("form", ["numpy", "torch"])
def test_a_hub_data_set_with_a_format_is_read_as_torch_reads_it(form: str) -> None:
    table = datasets.Dataset.from_dict({"n": list(range(SIZE)), "half": [i / 2 for i in range(SIZE)]}).with_format(form)
    ours, torchs = read(loader_of(table)), by_hand(table)
    for one, other in zip(ours, torchs, strict=True):
        assert {name: (value.dtype, value.tolist()) for name, value in one.items()} == {
            name: (value.dtype, value.tolist()) for name, value in other.items()
        }


# --- set_epoch ---


class Epochs(Rows):
    """A curriculum: other rows in each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index] + self.epoch, self.y[index]


class Wrapping(Dataset[Any]):
    """A wrapper that passes nothing on."""

    def __init__(self, inner: Any):
        self.parts = {"only": [inner]}

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> Any:
        return self.parts["only"][0][index]


class Ordered(Sampler[int]):
    """A sampler that a data set asks for its order."""

    def __init__(self) -> None:
        self.epoch = -1

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.epoch, SIZE))


class BySampler(Rows):
    """Its rows come in a sampler's order."""

    def __init__(self) -> None:
        super().__init__()
        self.sampler = Ordered()

    def __getitem__(self, index: int) -> Any:
        return self.x[index] + next(iter(self.sampler)), self.y[index]


class Collate:
    """A collate that knows the epoch."""

    def __init__(self) -> None:
        self.epoch = -1

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __call__(self, samples: list[Any]) -> Any:
        return self.put(samples)

    def put(self, samples: list[Any], plus: float = 0.0) -> Any:
        return torch.stack([x + self.epoch + plus for x, _ in samples]), len(samples)


TOLD = {
    "itself": Epochs,
    "a subset": lambda: Subset(Epochs(), list(range(SIZE))),
    "a part": lambda: subset(Epochs(), np.arange(SIZE)),
    "joined": lambda: ConcatDataset([Subset(Epochs(), range(10)), Subset(Wrapping(Epochs()), range(10, SIZE))]),
    "wrapped": lambda: Wrapping(Wrapping(Epochs())),
    "passed on": lambda: PassesOn(Epochs()),
    "a sampler": BySampler,
}


def epochs_of(batches: list[Any]) -> list[int]:
    """Which epoch each batch was read in."""
    signs = [abs(batch[0].abs()[:, 0]) for batch in batches]
    rows = Rows().x[:, 0]
    cuts = [rows[:8], rows[8:16], rows[16:]]
    found = []
    for number, values in enumerate(signs):
        found.append(next(epoch for epoch in range(9) if torch.allclose((cuts[number % 3] + epoch).abs(), values)))
    return found


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", TOLD)
def test_whoever_has_a_set_epoch_is_told_before_each_epoch(name: str, workers: int) -> None:
    loader = loader_of(TOLD[name](), workers=workers)
    assert epochs_of(read(loader, 9)) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    resumed = [batch.data for step in loader_of(TOLD[name](), workers=workers).steps(6, 9) for batch in step]
    assert epochs_of(resumed) == [2, 2, 2]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("how", [lambda c: c, lambda c: c.put, lambda c: functools.partial(c.put, plus=0.0)])
def test_a_collate_is_told_too(how: Any, workers: int) -> None:
    batches = read(loader_of(Rows(), collate=how(Collate()), workers=workers), 9)
    assert epochs_of(batches) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_evaluating_what_is_trained_on_leaves_training_its_epoch() -> None:
    dataset = Epochs()
    steps, evaluation = loader_of(dataset).steps(0, 9), EvaluationLoader(dataset, BATCH, Reading())
    seen = []
    for step in steps:
        seen.append(step[0].data)
        assert epochs_of([batch.data for batch in evaluation.batches()]) == [0, 0, 0]
        dataset.epoch = 99  # what it was told last does not count: it is told again
    assert epochs_of(seen) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_a_fingerprint_is_that_of_the_first_epoch() -> None:
    dataset = Epochs()
    loader = loader_of(dataset)
    before = fingerprint(loader)
    read(loader, 9)
    assert fingerprint(loader) == before


def test_what_stands_inside_of_one_is_left_to_it() -> None:
    class Outer(Epochs):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Epochs()

    outer = Outer()
    assert listeners(outer) == [outer]
    assert listeners(nn.Linear(2, 2), [1, "a", None], {}, lambda: None) == []
    chain: list[Any] = []
    chain.append(chain)
    assert listeners(chain) == []


def test_a_stream_is_told_of_its_passes_wherever_it_stands() -> None:
    class Flow(IterableDataset[Tensor]):
        def __init__(self) -> None:
            self.source = Epochs()

        def __len__(self) -> int:
            return SIZE

        def __iter__(self) -> Iterator[Any]:
            return (self.source[index] for index in range(SIZE))

    sampler = StepSampler(Flow(), global_batch_size=10, shuffle=False)
    steps = StreamLoader(Flow(), sampler, Reading()).steps(0, 4)
    first = [float(step[0].data[0][0, 0]) for step in steps]
    rows = Rows().x
    assert first == [float(rows[0, 0]), float(rows[10, 0]), float(rows[0, 0]) + 1, float(rows[10, 0]) + 1]


# --- in a run ---

PARTS = """
import torch
from torch import nn
from torch.utils.data import Dataset

class Corpus(Dataset):
    def __init__(self):
        g = torch.Generator().manual_seed(1)
        self.x = torch.randn(20, 4, generator=g, dtype=torch.float64)
        self.y = self.x.sum(1, keepdim=True)
        self.e = 0
    def __len__(self): return 20
    def __getitem__(self, i): return self.x[i] * (1 + self.e), self.y[i]
    def set_epoch(self, e): self.e = e
    def get_batch(self, batch_size): return self.x[torch.randint(0, 20, (8,))], self.y[:8]

class Lin(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.l = nn.Linear(4, 1, dtype=torch.float64)
    def forward(self, x): return self.l(x)
"""
RECIPE = """
data: {train: {_target_: parts.py:Corpus}, global_batch_size: 8, shuffle: false, workers: WORKERS}
model: {_target_: parts.py:Lin}
loss: {_target_: MSELoss}
optimizer: {_target_: SGD, lr: 0.1}
train: {steps: 7}
track: {every: 1 steps}
launch: {threads: 1}
"""


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_has_the_numbers_of_a_loop_written_by_hand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: int
) -> None:
    recipe = make(tmp_path / "project", RECIPE.replace("WORKERS", str(workers)), parts=PARTS)
    result = launcher.train(recipe, cpu=True, run_dir=tmp_path / "run")
    lines = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    namespace: dict[str, Any] = {}
    exec(PARTS, namespace)
    data, model = namespace["Corpus"](), namespace["Lin"]()
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.1), []
    for x, y in by_hand(data, epochs=3)[:7]:
        loss = nn.functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert [line["loss"] for line in lines if line["split"] == "train"] == pytest.approx(losses, rel=1e-9)
    assert "Corpus.get_batch is not used, and samples are read one by one" in capsys.readouterr().out
