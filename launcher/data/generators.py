"""`random`, NumPy's and torch's generator, each looked at without drawing from it, and at next to no cost.

A look is compared with a later one: whether something drew in between. It also holds all that is needed to put the
generator back. Taking it by the public functions costs 7 µs of `random` and 23 µs of NumPy; here it is a copy of the
memory in which each keeps its state, and 2 µs for all three.
"""

from __future__ import annotations

import ctypes
import itertools
import pickle
import random
import struct
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from launcher import internals
from launcher.data.seeds import LOWER, seed_torch

_WORDS = 624  # of a Mersenne Twister
_BYTES = 4 * _WORDS + 4  # these, and how many of them are used up


Readers = Sequence[tuple[Any, str]]


class Generator(Protocol):
    """One of them."""

    @property
    def readers(self) -> Readers:
        """Functions by which others read or set its state, as (module, name)."""

    def look(self) -> Any:
        """Its state, to be compared with an earlier look."""

    def put_back(self, look: Any) -> None:
        """Makes its state again what it was at that look."""

    def seed(self, value: int) -> None:
        """Seeds it with what `mix` has made of a place."""


class PythonGenerator:
    """`random`: memory of CPython's own object, which is compared with `getstate` once."""

    readers: Readers = ((random, "getstate"), (random, "setstate"))

    def __init__(self) -> None:
        memory = internals.python_generator(_BYTES)
        is_right = memory is not None and self._state_of(memory.raw) == random.getstate()[1]
        self._memory = memory if is_right else None

    def look(self) -> Any:
        if self._memory is None:
            return _getstate()
        return self._memory.raw, internals.python_half_pair()

    def put_back(self, look: Any) -> None:
        _setstate(look if self._memory is None else (3, self._state_of(look[0]), look[1]))

    def seed(self, value: int) -> None:
        random.seed(value)

    @staticmethod
    def _state_of(memory: bytes) -> tuple[int, ...]:
        index, *words = struct.unpack(f"i{_WORDS}I", memory)
        return (*words, index)


class NumpyGenerator:
    """NumPy's: its engine's memory is where NumPy says; what `randn` has kept for its next call stands elsewhere."""

    readers: Readers = ((np.random, "get_state"), (np.random, "set_state"))

    def __init__(self) -> None:
        self._engine: Any = None
        self._memory: Any = None
        self._pair = internals.numpy_half_pair()

    def look(self) -> Any:
        engine = _engine()
        if engine is not self._engine:  # somebody may have set one of another kind
            self._engine, self._memory = engine, None
            if self._pair is not None and isinstance(engine, np.random.MT19937):
                self._memory = (ctypes.c_char * _BYTES).from_address(engine.ctypes.state_address)
        if self._memory is None:
            return engine, pickle.dumps(_get_numpy_state(legacy=False)), None
        return engine, self._memory.raw, self._pair.raw

    def put_back(self, look: Any) -> None:
        engine, memory, pair = look
        if engine is not _engine():  # exchanged meanwhile, and meant to be
            return
        if pair is None:
            _set_numpy_state(pickle.loads(memory))
        else:
            words, (used,) = np.frombuffer(memory, np.uint32, _WORDS), struct.unpack_from("i", memory, 4 * _WORDS)
            _set_numpy_state(("MT19937", words, used, *struct.unpack("i4xd", pair)))

    def seed(self, value: int) -> None:
        np.random.seed(value & LOWER)


_TORCH_READERS = "initial_seed", "get_rng_state", "set_rng_state"


class TorchGenerator:
    """torch's on the CPU, by its own functions, which are quick."""

    readers: Readers = tuple(itertools.product((torch, torch.random), _TORCH_READERS))

    def look(self) -> bytes:
        state = torch.default_generator.get_state()
        return ctypes.string_at(state.data_ptr(), state.numel())  # a third of what NumPy's way to bytes takes

    def put_back(self, look: bytes) -> None:
        torch.default_generator.set_state(torch.frombuffer(bytearray(look), dtype=torch.uint8))

    def seed(self, value: int) -> None:
        seed_torch(value)


_getstate, _setstate = random.getstate, random.setstate  # what is looked through must not look like somebody's call
_engine: Callable[[], Any] = getattr(np.random, "get_bit_generator")  # noqa: B009  # which NumPy's types leave out
_get_numpy_state, _set_numpy_state = np.random.get_state, np.random.set_state

UNKNOWN_TO_TORCH: tuple[Generator, ...] = (PythonGenerator(), NumpyGenerator())
GENERATORS: tuple[Generator, ...] = (*UNKNOWN_TO_TORCH, TorchGenerator())
