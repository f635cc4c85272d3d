"""`random`, NumPy's and torch's generator, each looked at without drawing from it, and at next to no cost.

A look is compared with a later one: whether something drew in between. It also holds all that is needed to put the
generator back. Taking it by the public functions costs 7 µs of `random` and 23 µs of NumPy; here it is a copy of the
memory in which each keeps its state, and 2 µs for all three.
"""

from __future__ import annotations

import ctypes
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


Readers = Sequence[tuple[Any, Sequence[str]]]  # modules, and names of functions of each


class Generator(Protocol):
    """One of them."""

    @property
    def readers(self) -> Readers:
        """Functions by which others read or set its state."""

    def look(self) -> Any:
        """Its state."""

    def has_moved(self, look: Any) -> bool:
        """Whether its state is another than at that look."""

    def put_back(self, look: Any) -> None:
        """Makes its state again what it was at that look."""

    def seed(self, value: int) -> None:
        """Seeds it with what `mix` has made of a place."""


class PythonGenerator:
    """`random`: memory of CPython's own object, which is compared with `getstate` once."""

    readers: Readers = ((random, ("getstate", "setstate")),)

    def __init__(self) -> None:
        memory = internals.python_generator(_BYTES)
        is_right = memory is not None and self._state_of(memory.raw) == random.getstate()[1]
        self._memory, self._owner = memory if is_right else None, internals.python_owner()

    def look(self) -> Any:
        if self._memory is None:
            return _getstate()
        return self._memory.raw, self._owner.gauss_next

    def has_moved(self, look: Any) -> bool:
        return bool(self.look() != look)

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

    readers: Readers = ((np.random, ("get_state", "set_state")),)

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

    def has_moved(self, look: Any) -> bool:
        return bool(self.look() != look)

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
    """torch's on the CPU: its own functions are quick, and its memory is quicker to compare."""

    readers: Readers = ((torch, _TORCH_READERS), (torch.random, _TORCH_READERS))

    def __init__(self) -> None:
        self._memory = internals.torch_generator()

    def look(self) -> Any:
        return torch.default_generator.get_state(), None if self._memory is None else self._memory.raw

    def has_moved(self, look: Any) -> bool:
        state, memory = look
        if memory is not None and self._memory.raw == memory:
            return False
        return not torch.equal(state, torch.default_generator.get_state())  # what is not used may differ in memory

    def put_back(self, look: Any) -> None:
        torch.default_generator.set_state(look[0])

    def seed(self, value: int) -> None:
        seed_torch(value)


_getstate, _setstate = random.getstate, random.setstate  # what is looked through must not look like somebody's call
_engine: Callable[[], Any] = getattr(np.random, "get_bit_generator")  # noqa: B009  # which NumPy's types leave out
_get_numpy_state, _set_numpy_state = np.random.get_state, np.random.set_state

UNKNOWN_TO_TORCH: tuple[Generator, ...] = (PythonGenerator(), NumpyGenerator())
GENERATORS: tuple[Generator, ...] = (*UNKNOWN_TO_TORCH, TorchGenerator())

Looks = tuple[Any, Any, Any]  # of all three


def looked() -> Looks:
    """At all of them."""
    return _look_at_python(), _look_at_numpy(), _look_at_torch()


def moved(looks: Looks) -> set[Generator]:
    """Those whose state is another than then."""
    return {one for one, look in zip(GENERATORS, looks) if one.has_moved(look)}  # noqa: B905  # strictness costs as much


_look_at_python, _look_at_numpy, _look_at_torch = (generator.look for generator in GENERATORS)
