"""Data sets that have something to prepare, and streams, for tests."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from launcher.datasets.files import atomic_write


class Prepared(Dataset[tuple[Tensor, Tensor]]):
    """Numbers of a file that is written first; writes down who did it."""

    plan_notes = ("the numbers are small",)

    def __init__(self, folder: str, words: Sequence[str] = (), part: str = "train", scratch: str | None = None):
        self.rows = (Path(folder) / "rows").read_text().split()
        self.scratch = scratch

    @classmethod
    def prepare(cls, folder: str, words: Sequence[str], seconds: float = 0.2) -> None:
        """Writes the file."""
        with open("log", "a") as log:
            log.write(f"{os.getpid()} {' '.join(words)}\n")
        if not Path(folder).exists():
            with atomic_write(folder) as made:
                made.mkdir()
                time.sleep(seconds)
                (made / "rows").write_text("1 2 3 4 5 6")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return torch.tensor([float(self.rows[index])]), torch.zeros(1)


class Half(Dataset[Any]):
    """The first half of another."""

    def __init__(self, whole: Dataset[Any]):
        self.whole = whole

    def __len__(self) -> int:
        return len(self.whole) // 2  # type: ignore[arg-type]  # torch's Dataset has no length, ours do

    def __getitem__(self, index: int) -> Any:
        return self.whole[index]


class Unlucky(Prepared):
    """Cannot be prepared."""

    @staticmethod
    def prepare(folder: str) -> None:  # type: ignore[override]  # another signature on purpose
        """Fails."""
        raise OSError("the server does not answer")


class NoLength:
    """Has samples by number, but does not say how many."""

    __len__ = None

    def __getitem__(self, index: int) -> Tensor:
        return torch.zeros(1)


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    """Numbers in their order."""

    def __init__(self, size: int = 10):
        self.size = size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for number in range(self.size):
            yield torch.tensor([number / 10]), torch.tensor([1.0])


class SizedStream(Stream):
    """One that knows its length."""

    def __len__(self) -> int:
        return self.size


class Shards(Stream):
    """One that can be cut into parts."""

    def shard(self, num_shards: int, index: int) -> Shards:
        """One of `num_shards`."""
        part = Shards(self.size)
        part.first, part.step = index, num_shards
        return part

    first, step = 0, 1

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for number in range(self.first, self.size, self.step):
            yield torch.tensor([number / 10]), torch.tensor([1.0])


def generated() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    yield from _samples()


def zipped() -> zip[tuple[torch.Tensor, ...]]:
    return zip(torch.randn(8, 4), torch.randn(8), strict=True)


def split() -> dict[str, Any]:
    """As `datasets.load_dataset` gives it without a split."""
    return {"train": _samples(), "test": _samples()}


def columns() -> dict[str, Any]:
    return {"x": torch.randn(8, 4), "y": torch.randn(8)}


def _samples() -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.randn(4), torch.randn(())) for _ in range(8)]
