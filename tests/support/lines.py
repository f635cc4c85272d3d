"""Streams of numbers as people have them, most of which cannot be copied, or share with a copy what they read."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from weakref import finalize

import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset

MANY = 200
Sample = tuple[Tensor, Tensor]


def sample(number: int) -> Sample:
    value = torch.tensor([float(number)], dtype=torch.float64)
    return value, value / 7


def samples() -> Iterator[Sample]:
    yield from map(sample, range(MANY))


class Generator(IterableDataset[Sample]):
    """A generator that it holds: one pass."""

    def __init__(self, folder: Any) -> None:
        self.rows = samples()

    def __iter__(self) -> Iterator[Sample]:
        return self.rows


class File(IterableDataset[Sample]):
    """An open file, read on."""

    def __init__(self, folder: Any) -> None:
        path = Path(folder) / "numbers.txt"
        if not path.exists():
            path.write_text("\n".join(map(str, range(MANY))))
        self.file = path.open()
        finalize(self, self.file.close)

    def __iter__(self) -> Iterator[Sample]:
        for line in self.file:
            yield sample(int(line))


class Socket(IterableDataset[Sample]):
    """What somebody sends."""

    def __init__(self, folder: Any) -> None:
        self.ours, theirs = socket.socketpair()
        theirs.sendall(bytes(range(MANY)))
        theirs.close()
        finalize(self, self.ours.close)

    def __iter__(self) -> Iterator[Sample]:
        while byte := self.ours.recv(1):
            yield sample(byte[0])


class Received(IterableDataset[Sample]):
    """A method of a socket's, which a copy would have too."""

    def __init__(self, folder: Any) -> None:
        ours, theirs = socket.socketpair()
        theirs.sendall(bytes(range(MANY)))
        theirs.close()
        self.receive = ours.recv
        finalize(self, ours.close)

    def __iter__(self) -> Iterator[Sample]:
        while byte := self.receive(1):
            yield sample(byte[0])


class Locked(IterableDataset[Sample]):
    """Numbers behind a lock, from where the last one was taken."""

    def __init__(self, folder: Any) -> None:
        self.lock, self.place = threading.Lock(), 0

    def __iter__(self) -> Iterator[Sample]:
        while self.place < MANY:
            with self.lock:
                self.place += 1
                yield sample(self.place - 1)


rows = samples()


class Global(IterableDataset[Sample]):
    """An iterator of its module's: a copy would read from the same."""

    def __init__(self, folder: Any) -> None:
        global rows
        rows = samples()

    def __iter__(self) -> Iterator[Sample]:
        yield from rows


class Closure(IterableDataset[Sample]):
    """One that a function of its own holds."""

    def __init__(self, folder: Any) -> None:
        own = samples()
        self.read: Callable[[], Sample | None] = lambda: next(own, None)

    def __iter__(self) -> Iterator[Sample]:
        while (row := self.read()) is not None:
            yield row


class Method(IterableDataset[Sample]):
    """A method of one."""

    def __init__(self, folder: Any) -> None:
        self.read = iter(range(MANY)).__next__

    def __iter__(self) -> Iterator[Sample]:
        for _ in range(MANY):
            yield sample(self.read())


class Shuffled(IterableDataset[Sample]):
    """It can be copied, and mixes its own list each time."""

    def __init__(self, folder: Any) -> None:
        self.order, self.rng = list(range(MANY)), random.Random(3)

    def __iter__(self) -> Iterator[Sample]:
        self.rng.shuffle(self.order)
        yield from map(sample, self.order)


class Parts(IterableDataset[Sample]):
    """A generator of each part, behind a lock."""

    num_shards = 12

    def __init__(self, folder: Any, first: int = 0, by: int = 1) -> None:
        self.lock = threading.Lock()
        self.rows = (sample(number) for number in range(first, MANY, by))

    def __iter__(self) -> Iterator[Sample]:
        return self.rows

    def shard(self, num_shards: int, index: int) -> Parts:
        return Parts(None, index, num_shards)


class Kept:
    """A sample that counts how often it is copied."""

    def __deepcopy__(self, memo: Any) -> Kept:
        Counted.copies += 1
        return self


class Inner:
    """A part of a stream, which cuts itself."""

    def __init__(self) -> None:
        self.left = list(range(100))

    def __iter__(self) -> Iterator[int]:
        return iter(self.left)

    def shard(self, num_shards: int, index: int) -> Inner:
        self.left[:] = self.left[index::num_shards]
        return self


class Counted(IterableDataset[Any]):
    """Many samples in memory; `shard` cuts them, and what it is made of, in place."""

    copies = 0
    num_shards = 12

    def __init__(self) -> None:
        self.samples, self.inner = [Kept() for _ in range(100)], Inner()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.samples)

    def shard(self, num_shards: int, index: int) -> Counted:
        del self.samples[1::2]
        self.inner.shard(num_shards, index)
        return self


class Net(nn.Module):
    """A line."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.line = nn.Linear(1, 1, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.line(x / MANY)
        return made


def measured(o: Tensor, y: Tensor) -> Tensor:
    return (o - y).square().mean()
