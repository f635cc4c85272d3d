"""Buffers that a model's `state_dict` leaves out, as those with `persistent=False`: a resume has them all the same."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from launcher.internals import has_storage, parts_of

CONTAINERS: tuple[Any, ...] = (dict, list, tuple, set, deque)
_PLAIN = (bool, int, float, complex, str, bytes, np.generic, torch.dtype, torch.device)
LARGEST = 2**28  # bytes of what is looked at as a whole: what is larger is likely data
_SAMPLE = 2**16  # numbers of what is larger


class LooseBuffers:
    """Those of them that have moved since the model was built; the others are as its class makes them.

    Args:
        module: The model.
        names: Its buffers that no `state_dict` has.
    """

    def __init__(self, module: nn.Module, names: Collection[str]):
        self._module = module
        self._built = {name: print_of(module.get_buffer(name)) for name in names}

    def state_dict(self) -> dict[str, torch.Tensor]:
        """What has moved, by name."""
        now = {name: self._module.get_buffer(name) for name in self._built}
        return {name: buffer for name, buffer in now.items() if print_of(buffer) != self._built[name]}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, torch.Tensor], /) -> None:
        """Takes it up."""
        for name, value in state.items():
            place, _, own = name.rpartition(".")
            buffer = self._module.get_buffer(name)
            if buffer.shape == value.shape and buffer.dtype == value.dtype and has_storage(buffer):
                buffer.copy_(value)
            else:
                setattr(self._module.get_submodule(place), own, value.to(buffer.device))


def loose_in(module: nn.Module, state: Collection[str]) -> list[str]:
    """Names of a model's buffers that are not in its state, in any order that is the same each time."""
    return [name for name, _ in module.named_buffers() if name not in state]


def print_of(value: Any) -> Any:
    """Something that is equal while the value is; None of what is not looked at."""
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, torch.Tensor) and not has_storage(value):
        parts = parts_of(value)
        return [print_of(part) for part in parts] if all(map(has_storage, parts)) else None
    if isinstance(value, torch.Tensor):
        numbers = value.detach().flatten()
        if value.nbytes > LARGEST:
            numbers = numbers[:: len(numbers) // _SAMPLE]
        numbers = numbers.cpu().clone()  # torch never resizes again what NumPy has seen
        return tuple(value.shape), hashlib.sha256(numbers.view(torch.uint8).numpy()).hexdigest()
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        flat = value if value.nbytes <= LARGEST else value.flat[:: value.size // _SAMPLE]
        return value.shape, hashlib.sha256(flat.tobytes()).hexdigest()
    if (kind := container_of(value)) is None:
        return None
    length = kind.__len__(value)
    if kind in (list, tuple) and length <= 1_000 and all(isinstance(item, _PLAIN) for item in kind.__iter__(value)):
        return repr(value)
    return (type(value).__name__, length) if kind in (list, set, dict) else None


def container_of(value: Any) -> Any:
    """Python's own class of a container; one that inherits may refuse its methods, as e3nn's irreps do `len`."""
    return next((kind for kind in CONTAINERS if isinstance(value, kind)), None)
