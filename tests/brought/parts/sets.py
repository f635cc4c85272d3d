"""Data sets, samplers and collates that people bring. 20 samples each, in float64."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, StackDataset, Subset, TensorDataset

SIZE = 20


def makes(function: Any) -> Any:
    """Marks a function that makes a part, and is none itself."""
    function.makes = True
    return function


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def whole(below: int, *shape: int, seed: int = 2) -> Tensor:
    return torch.randint(0, below, shape, generator=torch.Generator().manual_seed(seed))


class Rows(Dataset[Any]):
    """What many others are made of: tensors with a row a sample."""

    tensors: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, index: int) -> Any:
        return tuple(tensor[index] for tensor in self.tensors)


class Reg(Rows):
    """Four numbers and their sum."""

    def __init__(self, size: int = SIZE, outputs: int = 1):
        self.x = normal(size, 4)
        self.y = self.x.sum(1, keepdim=True) + 0.1 * torch.arange(1, outputs + 1)
        self.tensors = self.x, self.y


class Noised(Rows):
    """Four numbers, noise of each, and a time."""

    def __init__(self) -> None:
        self.tensors = normal(SIZE, 4), normal(SIZE, 4, seed=5), normal(SIZE, 1, seed=6).sigmoid()


class Cls(Rows):
    """Four numbers and one of three classes; every third is ignored, where that is wanted."""

    def __init__(self, ignored: int | None = None):
        self.x, self.y = normal(SIZE, 4), whole(3, SIZE)
        if ignored is not None:
            self.y[::3] = ignored
        self.tensors = self.x, self.y


class Broken(Dataset[Any]):
    """Samples that cannot be read, none of them among the first 64."""

    def __init__(self) -> None:
        self.x, self.y = normal(80, 4), whole(3, 80)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Any:
        return None if index >= 64 and index % 3 == 1 else (self.x[index], self.y[index])


class Dense(Rows):
    """Rows of six positions of four numbers, and a class of each; ends are ignored."""

    def __init__(self, ignored: int | None = -100):
        self.x, self.y = normal(SIZE, 6, 4), whole(3, SIZE, 6)
        for row in range(SIZE if ignored is not None else 0):
            self.y[row, 1 + row % 6 :] = ignored if ignored is not None else 0
        self.tensors = self.x, self.y


class Soft(Rows):
    """Probabilities of three classes."""

    def __init__(self, kind: str = "probabilities"):
        soft = normal(SIZE, 3, seed=3).softmax(1)
        targets = {
            "probabilities": soft,
            "logs": soft.log(),
            "signs": (soft > 0.3) * 2.0 - 1,
            "yes": soft.gt(0.3) * 1.0,
        }
        self.tensors = normal(SIZE, 4), targets[kind].double()


class Signs(Rows):
    """Two inputs, and whether they belong together."""

    def __init__(self) -> None:
        self.tensors = normal(SIZE, 4), normal(SIZE, 4, seed=5), whole(2, SIZE) * 2.0 - 1


class Labels(Rows):
    """Several class numbers a sample, ended by -1."""

    def __init__(self) -> None:
        labels = torch.full((SIZE, 3), -1)
        for row in range(SIZE):
            labels[row, : 1 + row % 2] = torch.tensor([row % 3, (row + 1) % 3])[: 1 + row % 2]
        self.tensors = normal(SIZE, 4), labels


class Positive(Rows):
    """Targets above zero."""

    def __init__(self) -> None:
        x = normal(SIZE, 4)
        self.tensors = x, x.abs().sum(1, keepdim=True) + 1


class Holes(Rows):
    """Three numbers to find, some of which are NaN."""

    def __init__(self) -> None:
        y = normal(SIZE, 3, seed=4)
        y[(whole(5, SIZE, 3) < 2) & (torch.arange(3) > 0)] = float("nan")
        self.tensors = normal(SIZE, 4), y


class Weighted(Rows):
    """A weight for each sample."""

    def __init__(self) -> None:
        x = normal(SIZE, 4)
        self.tensors = x, x.sum(1, keepdim=True), normal(SIZE, 1, seed=6).abs() + 0.1


class Masked(Rows):
    """Rows of six, with a mask."""

    def __init__(self, kind: str = "float") -> None:
        mask = torch.arange(6) <= whole(6, SIZE, 1)
        if kind == "some":
            mask[8:13] = False
        self.tensors = normal(SIZE, 6, 4), normal(SIZE, 6, seed=7), mask if kind == "bool" else mask.double()


class Lengths(Rows):
    """Rows of six, and how many of each count."""

    def __init__(self) -> None:
        self.tensors = normal(SIZE, 6, 4), normal(SIZE, 6, seed=7), whole(6, SIZE) + 1


class Speech(Rows):
    """Frames, letters and both lengths."""

    def __init__(self) -> None:
        self.tensors = normal(SIZE, 12, 4), whole(2, SIZE, 4) + 1, torch.full((SIZE,), 12), whole(3, SIZE) + 2


class Pictures(Rows):
    """Two channels of 6 × 6, and a class."""

    def __init__(self, masks: bool = False):
        x = normal(SIZE, 2, 6, 6)
        self.tensors = x, (x.sum(1) > 0).long() if masks else whole(3, SIZE)


class Views(Rows):
    """Two views of one thing."""

    def __init__(self) -> None:
        x = normal(SIZE, 4)
        self.tensors = x, x + 0.1 * normal(SIZE, 4, seed=8)


class Triplets(Rows):
    """An anchor, one like it, one unlike it."""

    def __init__(self) -> None:
        x = normal(SIZE, 4)
        self.tensors = x, x + 0.1 * normal(SIZE, 4, seed=8), normal(SIZE, 4, seed=9)


class Tokens(Rows):
    """Token numbers, and one number."""

    def __init__(self) -> None:
        tokens = whole(5, SIZE, 6)
        self.tensors = tokens, tokens.double().mean(1, keepdim=True)


class Tok(Dataset[Any]):
    """Token numbers and labels by name; of some samples all but one are ignored."""

    def __init__(self, ignored: bool = True, none: bool = False):
        self.x, self.y = whole(5, SIZE, 6), whole(5, SIZE, 6, seed=4)
        if none:
            self.y[8:13] = -100
        for row in range(SIZE if ignored else 0):
            self.y[row, 1 + row % 6 :] = -100

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.x[index], "labels": self.y[index]}


class Sequences(Dataset[Any]):
    """From one to eight rows a sample, with a sum or a class of each row."""

    def __init__(self, classes: bool = False):
        self.rows = [normal(1 + (3 * number) % 8, 4, seed=number) for number in range(SIZE)]
        self.targets = [rows.argmax(1) % 3 if classes else rows.sum(1, keepdim=True) for rows in self.rows]

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.rows[index], self.targets[index]


# ---------------------------------------------------------------------- read in ways of their own


class Corpus(Reg):
    """`get_batch(size)` draws a random batch, as nanoGPT's does."""

    def get_batch(self, batch_size: int) -> Any:
        numbers = torch.randint(0, SIZE, (batch_size if isinstance(batch_size, int) else len(batch_size),))
        return self.x[numbers], self.y[numbers]


class Fast(Reg):
    """Many at once."""

    def get_batch(self, indices: Tensor) -> Any:
        return self.x[indices], self.y[indices]


class Doubled(Fast):
    """Overrides `__getitem__` alone."""

    def __getitem__(self, index: int) -> Any:
        x, y = super().__getitem__(index)
        return x * 2, y


class Several(Reg):
    """`__getitems__`, as torch's DataLoader asks for it; it is not what `__getitem__` gives, and counts."""

    def __getitems__(self, indices: list[int]) -> list[Any]:
        return [(self.x[index] * 3, self.y[index]) for index in indices]


class Delegating:
    """A wrapper that passes all else on."""

    def __init__(self) -> None:
        self.inner = Fast()

    def __getattr__(self, name: str) -> Any:
        if name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> Any:
        x, y = self.inner[index]
        return -x, y


class Epochs(Reg):
    """Is told the epoch, as curricula are."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, index: int) -> Any:
        return self.x[index] * (1 + self.epoch), self.y[index]


class EpochsForgotten(Epochs):
    """Its `get_batch` does not know of them."""

    def get_batch(self, indices: Tensor) -> Any:
        return self.x[indices], self.y[indices]


class EpochCollate:
    """A collate that is told the epoch."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __call__(self, samples: list[Any]) -> Any:
        x, y = torch.utils.data.default_collate(samples)
        return x + self.epoch, y


class Wrapping(Dataset[Any]):
    """Holds one that is told the epoch."""

    def __init__(self) -> None:
        self.inner = Epochs()

    def set_epoch(self, epoch: int) -> None:
        self.inner.set_epoch(epoch)

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> Any:
        return self.inner[index]


class Augmented(Reg):
    """Drawn at random in each sample, by one generator or all."""

    def __init__(self, by: str = "all"):
        super().__init__()
        self.by = by

    def __getitem__(self, index: int) -> Any:
        x, y = super().__getitem__(index)
        draws = {"random": random.random, "numpy": np.random.rand, "torch": lambda: torch.rand(()).item()}
        chosen = draws.values() if self.by == "all" else [draws[self.by]]
        return x * (1 + sum(draw() for draw in chosen)), y


class Generated(Reg):
    """A generator of its own, made from torch's seed as people do in `__getitem__`."""

    def __getitem__(self, index: int) -> Any:
        own = np.random.default_rng(torch.initial_seed() % 2**32)
        return self.x[index] + torch.from_numpy(own.standard_normal(4)), self.y[index]


class Streamed(IterableDataset[Any]):
    """Rows one after another; the loop by hand asks for them by number."""

    def __init__(self) -> None:
        self.inner = Reg()

    def __len__(self) -> int:
        return SIZE

    def __iter__(self) -> Iterator[Any]:
        return (self.inner[index] for index in range(SIZE))

    def __getitem__(self, index: int) -> Any:
        return self.inner[index]


# ---------------------------------------------------------------------- samples of all kinds


class Pair(NamedTuple):
    """By name and by position."""

    image: Any
    label: Any


@dataclass
class Record:
    """An object of one's own."""

    image: Tensor
    label: Tensor


class Shaped(Reg):
    """The same samples in other clothes."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind

    def __getitem__(self, index: int) -> Any:
        x, y = self.x[index], self.y[index]
        kinds: dict[str, Any] = {
            "named": lambda: Pair(x, y),
            "nested": lambda: {"x": {"left": x[:2], "right": x[2:]}, "y": [y, 0]},
            "record": lambda: Record(x, y),
            "space": lambda: SimpleNamespace(image=x, label=y),
            "numpy": lambda: (x.numpy(), y.numpy()),
            "numbers": lambda: ([float(one) for one in x], float(y)),
            "list": lambda: [x, y],
            "sparse": lambda: (x.relu().to_sparse(), y),
            "complex": lambda: (torch.complex(x, x.flip(0)), y),
            "bool": lambda: (x > 0, y),
            "extra": lambda: (x, y, f"sample {index}", {"path": str(index)}),
            "dropped": lambda: None if index % 5 == 4 else (x, y),
            "empty": lambda: (x, y, torch.zeros(0)),
        }
        return kinds[self.kind]()


def stacked_records(samples: list[Any]) -> Record:
    return Record(torch.stack([sample.image for sample in samples]), torch.stack([sample.label for sample in samples]))


def stacked_spaces(samples: list[Any]) -> Any:
    return SimpleNamespace(**vars(stacked_records(samples)))


def stacked_numbers(samples: list[Any]) -> tuple[Tensor, Tensor]:
    x, y = zip(*samples, strict=True)
    return torch.tensor(x, dtype=torch.float64), torch.tensor(y, dtype=torch.float64)[:, None]


def stacked_sparse(samples: list[Any]) -> tuple[Tensor, Tensor]:
    return torch.stack([sample[0] for sample in samples]), torch.stack([sample[1] for sample in samples])


def without_missing(samples: list[Any]) -> Any:
    """As people leave broken samples out."""
    return torch.utils.data.default_collate([sample for sample in samples if sample is not None])


def pad(samples: list[Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of unequal length, with a mask."""
    padded = nn.utils.rnn.pad_sequence
    x, y = (padded([sample[part] for sample in samples], batch_first=True) for part in (0, 1))
    return x, y, padded([torch.ones(len(sample[0]), 1, dtype=torch.float64) for sample in samples], batch_first=True)


def pad_alone(samples: list[Any]) -> tuple[Tensor, Tensor]:
    """The same without one."""
    return pad(samples)[:2]


def pad_ignored(samples: list[Any]) -> tuple[Tensor, Tensor]:
    """Class numbers are padded with -100."""
    padded = nn.utils.rnn.pad_sequence
    y = padded([sample[1] for sample in samples], batch_first=True, padding_value=-100)
    return padded([sample[0] for sample in samples], batch_first=True), y


def joined(samples: list[Any]) -> tuple[Tensor, Tensor]:
    """All rows of all samples, as graphs are batched."""
    return torch.cat([sample[0] for sample in samples]), torch.cat([sample[1] for sample in samples])


def with_owners(samples: list[Any]) -> tuple[Tensor, Tensor, Tensor]:
    """The rows, the sample of each, and one target a sample."""
    owners = torch.cat([torch.full((len(sample[0]),), number) for number, sample in enumerate(samples)])
    return torch.cat([sample[0] for sample in samples]), owners, torch.stack([sample[1].mean(0) for sample in samples])


def noisy_collate(samples: list[Any]) -> Any:
    """Draws by all three generators, once for each sample."""
    x, y = torch.utils.data.default_collate(samples)
    draws = [random.random() + np.random.rand() + torch.rand(()).item() for _ in samples]
    return x * (1 + torch.tensor(draws, dtype=torch.float64)[:, None]), y


def tripled(samples: list[Any]) -> Any:
    """For training alone."""
    x, y = torch.utils.data.default_collate(samples)
    return x * 3, y


def first_dimension_second(samples: list[Any]) -> tuple[Tensor, Tensor]:
    """Time first, as recurrent nets have it."""
    x, y = torch.utils.data.default_collate(samples)
    return x.transpose(0, 1), y.transpose(0, 1)


# ---------------------------------------------------------------------- torch's own ways to put sets together


@makes
def tensors() -> Any:
    return TensorDataset(*Reg().tensors)


@makes
def concatenated() -> Any:
    return ConcatDataset([Subset(Reg(), range(6)), Subset(Fast(), range(6, SIZE))])


@makes
def subset() -> Any:
    return Subset(Doubled(), list(reversed(range(SIZE))))


@makes
def stacked() -> Any:
    one = Reg()
    return StackDataset(x=TensorDataset(one.x), y=TensorDataset(one.y))


@makes
def loader() -> Any:
    """A DataLoader handed over."""
    return DataLoader(Reg(), batch_size=8, collate_fn=tripled)


@makes
def loader_of_four() -> Any:
    return DataLoader(Reg(), batch_size=4)


@makes
def loader_that_draws() -> Any:
    return DataLoader(Reg(), sampler=torch.utils.data.WeightedRandomSampler([1.0] * SIZE, SIZE))


@makes
def split_by_rank() -> Any:
    """Every process keeps its own part, as it found its rank in the environment."""
    import os

    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    return Subset(Reg(), range(rank, SIZE, world))


def weights() -> Any:
    """Of each sample."""
    return np.arange(1, SIZE + 1)
