"""3: model. Some rows of a tensor that no process holds whole."""

from __future__ import annotations

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


class Stored(Protocol):
    """A tensor in a file, of which rows can be read."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    def rows(self, first: int, stop: int) -> torch.Tensor:
        """Some of them, in memory of their own."""
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


def shape_of(value: Any) -> tuple[int, ...] | None:
    """That of a whole tensor; of what is none, nothing."""
    if isinstance(value, torch.Tensor | Rows):
        return tuple(value.shape)
    return tuple(value.shape) if hasattr(value, "rows") and hasattr(value, "shape") else None
