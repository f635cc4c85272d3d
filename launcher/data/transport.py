"""A batch on its way from a worker to its trainer: a slot of memory that both see, and a pickle of the rest.

A slot is a file without a name that grows with what it has to hold, and keeps its pages from one batch to the next:
nothing is made, sent or removed for a batch. torch's own queue makes two shared files of each tensor.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
import struct
import tempfile
from collections.abc import Sequence
from multiprocessing.reduction import DupFd
from typing import Any

import numpy as np
import torch

from launcher.data.permutation import Indices

_HEADER = struct.Struct("<qqq")  # of a request: epoch, how many indices; of an answer: where the pickle is, how long
_START = 64  # where what follows the header begins: a cache line
_SMALLEST = 1 << 16
_BATCH, _FAILURE = 0, 1


class Slot:
    """Memory of one batch at a time, shared by a worker and its trainer.

    First the trainer writes a request into it, then the worker its answer; who may do what is decided elsewhere.
    """

    def __init__(self) -> None:
        self._file = _nameless_file()
        os.ftruncate(self._file, _SMALLEST)
        self.memory = mmap.mmap(self._file, _SMALLEST)

    def __getstate__(self) -> Any:
        """For a worker that does not inherit this process's memory."""
        return DupFd(self._file)

    def __setstate__(self, file: Any) -> None:
        self._file = file.detach()
        self.memory = mmap.mmap(self._file, os.fstat(self._file).st_size)

    def close(self) -> None:
        """Gives the memory back, as soon as no tensor lies in it."""
        os.close(self._file)

    def reserve(self, size: int) -> None:
        """Makes room for so many bytes, and keeps what is there."""
        if size > len(self.memory):
            size = 1 << (size - 1).bit_length()
            if os.fstat(self._file).st_size < size:
                os.ftruncate(self._file, size)
            self.memory = mmap.mmap(self._file, size)

    def ask(self, epoch: int, indices: Indices) -> None:
        """Writes a request."""
        self.reserve(_START + indices.nbytes)
        _HEADER.pack_into(self.memory, 0, epoch, len(indices), 0)
        self.memory[_START : _START + indices.nbytes] = np.ascontiguousarray(indices, dtype=np.int64).tobytes()

    def asked(self) -> tuple[int, Indices]:
        """Reads it."""
        self._see_all()
        epoch, count, _ = _HEADER.unpack_from(self.memory)
        return epoch, np.frombuffer(self.memory, dtype=np.int64, count=count, offset=_START).copy()

    def answer(self, batch: Any) -> None:
        """Writes a batch.

        Raises:
            Exception: It holds something that cannot leave a process.
        """
        self._write(batch, _BATCH)

    def fail(self, error: Any) -> None:
        """Writes what to say in place of a batch."""
        self._write(error, _FAILURE)

    def _write(self, value: Any, kind: int) -> None:
        stream = io.BytesIO()
        pickler = _Pickler(self, stream)
        pickler.dump(value)
        place, text = _aligned(pickler.end), stream.getbuffer()
        self.reserve(place + len(text))
        self.memory[place : place + len(text)] = text
        _HEADER.pack_into(self.memory, 0, kind, place, len(text))

    def answered(self, pins: bool = False) -> tuple[bool, Any]:
        """Whether it is a batch, and it, or what was written in its place; nothing of it lies in the slot any more.

        Args:
            pins: Whether its tensors are wanted in page-locked memory.
        """
        self._see_all()
        kind, place, length = _HEADER.unpack_from(self.memory)
        with memoryview(self.memory) as view:
            return kind == _BATCH, _Unpickler(self, view[place : place + length], pins).load()

    def _see_all(self) -> None:
        """Maps what the other side has made larger."""
        size = os.fstat(self._file).st_size
        if size > len(self.memory):
            self.memory = mmap.mmap(self._file, size)


def _nameless_file() -> int:
    """In memory where the system has such files."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("batches", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _aligned(place: int) -> int:
    return -(-place // _START) * _START


class _Pickler(pickle.Pickler):
    """Writes plain tensors into the slot, and of each where it is; all else as pickles have it."""

    def __init__(self, slot: Slot, stream: io.BytesIO):
        super().__init__(stream, protocol=5)
        self.slot = slot
        self.end = _START

    def reducer_override(self, value: Any) -> Any:
        """How to make this again."""
        if type(value) is not torch.Tensor or not _is_plain(value):
            return NotImplemented
        span, place = _span(value), _aligned(self.end)
        self.end = place + span * value.element_size()
        self.slot.reserve(self.end)
        if span:
            there = torch.frombuffer(self.slot.memory, dtype=value.dtype, count=span, offset=place)
            there.copy_(value.detach().as_strided((span,), (1,)))
        wants_gradient = value.requires_grad and value.is_leaf
        return _placed, (place, span, value.dtype, tuple(value.shape), value.stride(), wants_gradient)


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether its numbers lie in memory as they are."""
    if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.is_nested or tensor.is_quantized:
        return False
    return not (tensor.is_conj() or tensor.is_neg())


def _span(tensor: torch.Tensor) -> int:
    """How many numbers lie between its first and its last one: its strides stay as they are."""
    if not tensor.numel():
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def _placed(*_: Any) -> torch.Tensor:
    """Stands in a pickle for a tensor in the slot: whoever loads it puts its own function in this place."""
    raise AssertionError


class _Unpickler(pickle.Unpickler):
    """Makes a batch again, with memory of its own."""

    def __init__(self, slot: Slot, stream: memoryview, pins: bool):
        super().__init__(io.BytesIO(stream))
        self.slot, self.pins = slot, pins

    def find_class(self, module: str, name: str) -> Any:
        """What a name in the pickle means."""
        return self.placed if (module, name) == (__name__, _placed.__name__) else super().find_class(module, name)

    def placed(
        self,
        place: int,
        span: int,
        dtype: torch.dtype,
        shape: Sequence[int],
        strides: Sequence[int],
        wants_gradient: bool,
    ) -> torch.Tensor:
        """A copy of the tensor that lies there."""
        own = torch.empty(span, dtype=dtype, pin_memory=self.pins)
        if span:
            own.copy_(torch.frombuffer(self.slot.memory, dtype=dtype, count=span, offset=place))
        tensor = own.as_strided(shape, strides)
        return tensor.requires_grad_() if wants_gradient else tensor
