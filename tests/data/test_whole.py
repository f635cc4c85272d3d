"""Whole batches: the same values, types, strides and containers as torch's DataLoader makes of single samples."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, StackDataset, Subset, TensorDataset, random_split

from launcher.data.loaders import Reading, TrainLoader
from launcher.data.sampler import StepSampler
from launcher.data.subsets import subset
from launcher.data.whole import whole_batches
from launcher.datasets.arrays import NumpyArrays

SIZE, BATCH = 23, 5


def rows(seed: int = 0, dtype: torch.dtype = torch.float32) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    return TensorDataset(torch.rand(SIZE, 3, generator=generator).to(dtype), torch.arange(SIZE) + 100 * seed)


class Own(TensorDataset):
    """A class of one's own that makes its tensors; torch's code reads them."""

    def __init__(self) -> None:
        super().__init__(*rows(7).tensors)


class ByName(TensorDataset):
    """Tensors that are worked out when they are asked for."""

    def __init__(self) -> None:
        self.shift = 0

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (torch.arange(SIZE) + self.shift,)

    @tensors.setter
    def tensors(self, tensors: tuple[Tensor, ...]) -> None:
        raise AssertionError

    def __len__(self) -> int:
        return SIZE


class ReadsItself(TensorDataset):
    def __getitem__(self, index: int) -> Any:
        return tuple(tensor[index] * 2 for tensor in self.tensors)


class ManyItself(TensorDataset):
    def __getitems__(self, indices: list[int]) -> Any:
        return [(self.tensors[0][index] * 3, self.tensors[1][index]) for index in indices]


class Passes(TensorDataset):
    def __getattr__(self, name: str) -> Any:
        if name == "__getitems__":
            return lambda indices: [(torch.tensor(float(index)),) for index in indices]
        raise AttributeError(name)


class Backwards(Subset[Any]):
    def __getitem__(self, index: Any) -> Any:
        return self.dataset[self.indices[-1 - index]]

    def __getitems__(self, indices: list[int]) -> Any:
        return [self[index] for index in indices]


def odd(tensor: Tensor) -> TensorDataset:
    return TensorDataset(tensor, torch.arange(len(tensor)))


def images() -> Tensor:
    return torch.rand(SIZE, 3, 4, 4).to(memory_format=torch.channels_last)


def hub(form: str | None) -> Any:
    columns = {"n": range(SIZE), "half": [i / 2 for i in range(SIZE)], "word": [f"w{i}" for i in range(SIZE)]}
    table = datasets.Dataset.from_dict(
        {**columns, "pair": [[i, -i] for i in range(SIZE)], "truth": [i % 3 == 0 for i in range(SIZE)]}
    )
    return table.with_format(form) if form else table


def mapped(folder: Path) -> NumpyArrays:
    np.save(folder / "x.npy", np.random.default_rng(0).random((SIZE, 4)))
    np.save(folder / "y.npy", np.arange(SIZE))
    return NumpyArrays([folder / "x.npy", folder / "y.npy"])


WHOLE: dict[str, Callable[[], Any]] = {
    "its own class": Own,
    "tensors worked out": ByName,
    "no columns": lambda: odd(torch.rand(SIZE, 0)),
    "transposed": lambda: odd(torch.rand(4, SIZE).t()),
    "expanded": lambda: odd(torch.rand(4).expand(SIZE, 4)),
    "channels last": lambda: odd(images()),
    "with a gradient": lambda: odd(torch.rand(SIZE, 2, requires_grad=True)),
    "complex": lambda: odd(torch.rand(SIZE, 2, dtype=torch.complex64)),
    "truths": lambda: odd(torch.rand(SIZE, 2) > 0.5),
    "a memory map": lambda: odd(torch.from_numpy(np.arange(SIZE * 2.0).reshape(SIZE, 2))),
    "a subset": lambda: Subset(rows(), [5, 3, 3, 22, 0, 1, 9]),
    "a subset by an array": lambda: Subset(rows(), np.array([5, 3, 3, 22, 0, 1, 9])),  # type: ignore[arg-type]  # people do
    "a subset by a tensor": lambda: Subset(rows(), torch.tensor([5, 3, 3, 22, 0, 1])),  # type: ignore[arg-type]  # people do
    "a subset by a range": lambda: Subset(rows(), range(2, 20, 3)),
    "a subset of a subset": lambda: Subset(Subset(rows(), range(3, 20)), [4, 2, 9, 0, 11, 3]),
    "a random split": lambda: random_split(rows(), [9, 14], generator=torch.Generator().manual_seed(1))[1],
    "several": lambda: ConcatDataset([rows(1), rows(2), Own()]),
    "several of channels last": lambda: ConcatDataset([odd(images()), odd(images())]),
    "several with gradients": lambda: ConcatDataset([odd(torch.rand(9, 2, requires_grad=True)), rows_of_two()]),
    "stacked": lambda: StackDataset(rows(1), odd(torch.rand(SIZE, 2))),
    "stacked by name": lambda: StackDataset(left=rows(1), right=Subset(rows(2), range(SIZE))),
    "parts of several": lambda: Subset(ConcatDataset([rows(1), rows(2)]), [40, 3, 22, 23, 45, 0]),
    "a part of ours": lambda: subset(ConcatDataset([rows(1), Own()]), np.array([40, 3, 22, 23, 45, 0])),
    "several of a hub": lambda: ConcatDataset([hub("torch").select_columns(["n", "pair"])] * 2),
    **{f"columns as {form}": lambda form=form: hub(form) for form in (None, "torch", "numpy")},  # type: ignore[misc]  # the loop's
}
SINGLE: dict[str, Callable[[], Any]] = {
    "reads itself": lambda: ReadsItself(*rows().tensors),
    "many itself": lambda: ManyItself(*rows().tensors),
    "passes a method on": lambda: Passes(*rows().tensors),
    "a subset that reads itself": lambda: Backwards(rows(), range(SIZE)),
    "a subset of what reads itself": lambda: Subset(ReadsItself(*rows().tensors), range(9)),
    "several with one that reads itself": lambda: ConcatDataset([rows(), ReadsItself(*rows().tensors)]),
    "stacked with a list": lambda: StackDataset(rows(), [1.5] * SIZE),  # type: ignore[arg-type]  # what has items
    "words": lambda: hub(None).with_transform(lambda columns: columns),
}
# read at once where that is the same, else one by one: torch promotes, refuses, or counts from the end
FALLS_BACK: dict[str, Callable[[], Any]] = {
    "counts from the end": lambda: Subset(rows(), [-1, 3, -5, 7, 0]),
    "several types": lambda: ConcatDataset([odd(torch.rand(9, 2)), odd(torch.rand(9, 2, dtype=torch.float64))]),
    "several containers": lambda: ConcatDataset([StackDataset(a=rows(1)), StackDataset(a=rows(2))]),
    "words of several": lambda: ConcatDataset([hub(None), hub(None)]),
}


def rows_of_two() -> TensorDataset:
    return odd(torch.rand(9, 2))


def described(batch: Any) -> Any:
    """Everything that can be told of a batch."""
    if isinstance(batch, Tensor):
        return batch.dtype, batch.shape, batch.stride(), batch.requires_grad, batch.is_leaf, batch.detach().tolist()
    if isinstance(batch, dict):
        return {name: described(part) for name, part in batch.items()}
    if isinstance(batch, list | tuple):
        return type(batch), [described(part) for part in batch]
    return type(batch), batch


def by_hand(dataset: Any) -> Iterator[Any]:
    torch.manual_seed(5)
    order = torch.randperm(len(dataset)).tolist()
    yield from DataLoader(dataset, batch_sampler=[order[at : at + BATCH] for at in range(0, len(order), BATCH)])


def at_once(dataset: Any) -> Iterator[Any]:
    torch.manual_seed(5)
    order = torch.randperm(len(dataset)).numpy()
    read = whole_batches(dataset, None)
    assert read is not None
    for at in range(0, len(order), BATCH):
        yield read(order[at : at + BATCH])


@pytest.mark.parametrize("name", WHOLE)
def test_batches_are_torch_s_in_every_respect(name: str) -> None:
    dataset = WHOLE[name]()
    ours, torchs = list(map(described, at_once(dataset))), list(map(described, by_hand(dataset)))
    assert ours == torchs


def test_a_table_and_arrays_of_files_are_read_at_once_also_in_parts(tmp_path: Path) -> None:
    arrays = mapped(tmp_path)
    sets: list[Any] = [arrays, Subset(arrays, [3, 1, 9]), ConcatDataset([arrays, arrays])]
    for dataset in sets:
        for ours, torchs in zip(at_once(dataset), by_hand(dataset), strict=True):
            assert all(map(torch.equal, ours, torchs))


@pytest.mark.parametrize("name", SINGLE)
def test_whoever_reads_by_code_of_its_own_is_read_by_it(name: str) -> None:
    assert whole_batches(SINGLE[name](), None) is None


@pytest.mark.parametrize(
    ("name", "workers"),
    [*((name, 0) for name in (*SINGLE, *FALLS_BACK)), ("counts from the end", 1), ("several types", 1)],
)
def test_what_cannot_be_read_at_once_is_read_as_torch_reads_it(name: str, workers: int) -> None:
    dataset = {**SINGLE, **FALLS_BACK}[name]()
    sampler = StepSampler(dataset, global_batch_size=BATCH, shuffle=False)
    loader = TrainLoader(dataset, sampler, Reading(workers=workers))
    ours = [described(batch.data) for step in loader.steps(0, sampler.steps_per_epoch) for batch in step]
    assert ours == [described(batch) for batch in DataLoader(dataset, batch_size=BATCH)]


def test_what_is_exchanged_later_is_read_as_it_is_then() -> None:
    part = Subset(rows(), [5, 3, 3, 22])
    read = whole_batches(part, None)
    assert read is not None
    part.indices = [1, 2]
    assert read(np.array([1, 0]))[1].tolist() == [2, 1]
    own = Own()
    read = whole_batches(own, None)
    assert read is not None
    own.tensors = (torch.arange(SIZE) * 2,)
    assert read(np.array([4]))[0].tolist() == [8]
    own.tensors = (torch.quantize_per_tensor(torch.rand(SIZE), 0.1, 0, torch.qint8),)
    assert read(np.array([4])) is None
    part.dataset = [object()] * 9  # type: ignore[assignment]  # whoever does it
    several: ConcatDataset[Any] = ConcatDataset([rows(1), rows(2)])
    read = whole_batches(several, None)
    assert read is not None
    several.datasets[1] = ReadsItself(*rows(2).tensors)
    assert read(np.array([30])) is None


@pytest.mark.parametrize("name", [name for name in WHOLE if name not in ("tensors worked out",)])
def test_they_travel_to_workers_that_are_started_afresh(name: str) -> None:
    dataset = WHOLE[name]()
    read = whole_batches(dataset, None)
    there = pickle.loads(pickle.dumps(read))
    assert read is not None
    assert described(there(np.array([2, 0, 1]))) == described(read(np.array([2, 0, 1])))
