"""3: model. Files of weights that a constructor reads while it is written down: their tensors stay in them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, Protocol

import torch

from launcher import internals
from launcher.model.rows import Stored
from launcher.model.tensor_files import DTYPES, FileTensor, archived_tensors, tensor_file


class Tape(Protocol):
    """Where reading is written down."""

    def read(self, stored: Stored) -> torch.Tensor:
        """Writes down that a tensor is read; gives one without memory."""
        ...

    def refuse(self, why: str) -> NoReturn:
        """Says that this cannot be written down."""
        ...


@contextmanager
def files_left(tape: Tape) -> Iterator[None]:
    """Has `safe_open` and `torch.load` leave tensors where they are."""
    own = torch.load
    torch.load = partial(_load, tape, own)
    try:
        with internals.safetensors_through(partial(OpenedFile, tape)):
            yield
    finally:
        torch.load = own


def _load(tape: Tape, own: Any, path: Any, *args: Any, **kwargs: Any) -> Any:
    """What `torch.load` gives of a zip archive."""
    if (
        torch.device(kwargs.get("map_location") or "cpu").type != "cpu"
        or args
        or not isinstance(path, str | os.PathLike)
    ):
        tape.refuse("reads weights from a file in a way of its own")
    options = {name: value for name, value in kwargs.items() if name != "mmap"}
    try:
        state = internals.plainly(lambda: archived_tensors(Path(path), own, **options))
    except ValueError as error:
        tape.refuse(f"reads {path}: {error}")
    made: dict[int, torch.Tensor] = {}

    def read(leaf: Any) -> Any:
        if isinstance(leaf, FileTensor) and id(leaf) not in made:
            made[id(leaf)] = tape.read(leaf)
        return made.get(id(leaf), leaf)

    return internals.of_the_same_versions(internals.tree_map(read, state), state)


class OpenedFile:
    """A safetensors file as `safetensors.safe_open` opens it, of tensors without memory.

    Args:
        tape: Where reading is written down.
        filename: The file.
        framework: Must be torch.
        device: Must be a CPU.
        **options: How it is read, which is not asked here.
    """

    def __init__(self, tape: Tape, filename: Any, framework: str = "pt", device: Any = "cpu", **options: Any):
        if framework not in ("pt", "torch", "pytorch") or torch.device(device).type != "cpu":
            tape.refuse(f"reads weights to {framework}, {device}")
        self._tape = tape
        try:
            self._file = tensor_file(Path(filename))
        except ValueError as error:
            tape.refuse(f"reads {filename}: {error}")

    def __enter__(self) -> OpenedFile:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def keys(self) -> list[str]:
        """The names of the tensors."""
        return sorted(self._file.tensors)

    def offset_keys(self) -> list[str]:
        """In the order of the file."""
        return sorted(self._file.tensors, key=lambda name: self._file.tensors[name].offset)

    def metadata(self) -> dict[str, str]:
        """What else stands in its header."""
        return dict(self._file.metadata)

    def get_tensor(self, name: str) -> torch.Tensor:
        """One of them."""
        return self._tape.read(self._file.tensors[name])

    def get_tensors(self) -> dict[str, torch.Tensor]:
        """All of them."""
        return {name: self.get_tensor(name) for name in self.keys()}

    def get_slice(self, name: str) -> _Slice:
        """One of them, that is read when it is cut."""
        return _Slice(self._tape, self._file.tensors[name])


@dataclass(frozen=True)
class _Slice:
    tape: Tape
    stored: FileTensor

    def get_shape(self) -> list[int]:
        return list(self.stored.shape)

    def get_dtype(self) -> str:
        return next(name for name, dtype in DTYPES.items() if dtype == self.stored.dtype)

    def __getitem__(self, key: Any) -> torch.Tensor:
        tensor = self.tape.read(self.stored)
        return tensor if key is Ellipsis else tensor[key]
