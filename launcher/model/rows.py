"""3: model. Some rows of a tensor that no process holds whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch


@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of a tensor, as one process holds them.

    Attributes:
        tensor: Those rows.
        shape: Of the whole tensor.
        first: Which row of the whole is the first of these.
    """

    tensor: torch.Tensor
    shape: tuple[int, ...]
    first: int

    @property
    def dtype(self) -> torch.dtype:
        """Of its numbers."""
        return self.tensor.dtype


@dataclass
class Read:
    """How many bytes were read of tensors in files."""

    num_bytes: int = 0


class Stored(Protocol):
    """A tensor in a file, of which rows can be read."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Of its numbers."""
        ...

    def rows(self, first: int, stop: int) -> torch.Tensor:
        """Some of them, in memory of their own."""
        ...

    def whole(self) -> torch.Tensor:
        """All of it, in memory of its own."""
        ...


def rows_of(rows: int, rank: int, ranks: int) -> tuple[int, int]:
    """The first row of a process's share and the one after its last, as torch cuts them."""
    each = -(-rows // ranks)
    first = min(rank * each, rows)
    return first, min(first + each, rows)


def take_rows(source: Any, first: int, stop: int) -> torch.Tensor:
    """Rows of a tensor, or of one in a file, in memory of their own."""
    if isinstance(source, Rows):  # of the same process
        return source.tensor
    taken: torch.Tensor = source[first:stop].clone() if isinstance(source, torch.Tensor) else source.rows(first, stop)
    return taken


def whole_of(source: Any) -> torch.Tensor:
    """A tensor, or all of one in a file."""
    whole: torch.Tensor = source if isinstance(source, torch.Tensor) else source.whole()
    return whole


def read_whole(tree: Any) -> Any:
    """A state with the tensors themselves in place of those in files."""
    if shape_of(tree) is not None:
        return tree if isinstance(tree, Rows) else whole_of(tree)
    if isinstance(tree, Mapping):
        read = {name: read_whole(value) for name, value in tree.items()}
        return tree if all(read[name] is value for name, value in tree.items()) else read
    return type(tree)(map(read_whole, tree)) if type(tree) in (list, tuple) else tree


@dataclass(frozen=True)
class Converted:
    """A tensor, or one in a file, as it is in another type.

    Attributes:
        source: It.
        dtype: The type.
    """

    source: Any
    dtype: torch.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return tuple(self.source.shape)

    def rows(self, first: int, stop: int) -> torch.Tensor:
        """Some of them."""
        return take_rows(self.source, first, stop).to(self.dtype)

    def whole(self) -> torch.Tensor:
        """All of it."""
        return whole_of(self.source).to(self.dtype)


def shape_of(value: Any) -> tuple[int, ...] | None:
    """That of a whole tensor; of what is none, nothing."""
    if isinstance(value, torch.Tensor | Rows):
        return tuple(value.shape)
    return tuple(value.shape) if hasattr(value, "rows") and hasattr(value, "shape") else None


def fill(file: Any, memory: memoryview) -> bool:
    """Reads from where an unbuffered file stands until the memory is full; whether the file had as much."""
    done = 0
    while done < len(memory):
        count = file.readinto(memory[done:])
        if not count:
            return False
        done += count
    return True


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The memory of a tensor's numbers, on the host."""
    return memoryview(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy())
