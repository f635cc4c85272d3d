"""What steps change beside every `state_dict`, in a checkpoint all the same: a counter, a temperature, a generator.

Each value is kept as plain data, and comes back into what has it now: a list, a tensor or an object stays the thing
that others may hold too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from launcher.evaluation.unmoved import of_generator
from launcher.internals import has_storage
from launcher.training.beside import Held, changed_names, held_beside, homes_of, inside, prints_of

_DEPTH, _LARGEST = 6, 2**24  # changes are seen as far, or less
_PLAIN = (bool, int, float, complex, str, bytes, type(None), np.generic)
_KINDS: dict[str, Any] = {"list": list, "tuple": tuple, "set": set, "deque": deque, "dict": dict}
_LEFT = {"kind": "left"}  # what nobody looks at stays what it is
_NOTHING = object()  # in which a value could be taken up that cannot be made


class UnkeepableError(Exception):
    """What is plain data is kept, and this is not."""


class KeptBeside:
    """Those values of people's own objects that are not what they were when the run was built, as a checkpoint's part.

    Args:
        things: What may have them, by key.
        device: The model's.

    Attributes:
        changed: What is no longer as it was built, by name, as of the last look: as it is kept, None of what cannot be.
        lost: The names of what was kept of objects that are not there, as steps had made them.
    """

    def __init__(self, things: Mapping[str, Any], device: torch.device):
        self._things, self._device = things, device
        self.changed: dict[str, dict[str, Any] | None] = {}
        self.lost: list[str] = []
        self._built = prints_of(held_beside(things), things)
        self._taken: set[str] = set()  # a process that trains again may have them from before

    def state_dict(self) -> dict[str, Any]:
        """What can be kept of what has changed, by name."""
        return {name: kept for name, kept in self.look().items() if kept is not None}

    def look(self) -> dict[str, dict[str, Any] | None]:
        """What has changed, by name: as it is kept, None of what cannot be."""
        held, keeper = held_beside(self._things), Keeper(self._things)
        names = [*changed_names(self._built, prints_of(held, self._things)), *(self._taken & held.keys())]
        self.changed = {name: keeper.kept_of(held[name].value) for name in dict.fromkeys(names)}
        return self.changed

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Puts it back."""
        held, homes, taker = held_beside(self._things), homes_of(self._things), _Taker(self._things, self._device)
        self.lost = []
        for name, kept in state.items():
            place, _, own = name.rpartition(".")
            is_begun = name not in held  # by a step
            value = taker.taken_up(kept["value"], _NOTHING if is_begun else held[name].value)
            if value is _NOTHING or (is_begun and not (place in homes and _is_own(own))):
                self.lost.append(name)
                continue
            homes[place](own, value) if is_begun else held[name].put(value)
            self._taken.add(name)


class Keeper:
    """Makes plain data of values; parameters and buffers are kept elsewhere, and may be keys.

    Args:
        things: What has them, by key.
    """

    def __init__(self, things: Mapping[str, Any]):
        self._names = {id(tensor): name for name, tensor in _tensors_of(things).items()}

    def kept_of(self, value: Any) -> dict[str, Any] | None:
        """A value as a checkpoint has it; None where it cannot be kept."""
        try:
            return {"value": self._kept(value, _DEPTH)}
        except UnkeepableError:
            return None

    def _kept(self, value: Any, depth: int) -> Any:
        if isinstance(value, _PLAIN):
            return value
        if isinstance(value, Optimizer) or id(value) in self._names:
            return _LEFT
        if depth < 0:
            raise UnkeepableError
        if isinstance(value, torch.Tensor):
            return _kept_tensor(value)
        if isinstance(value, np.ndarray):
            if value.dtype.kind not in "biufc" or value.nbytes > _LARGEST:
                raise UnkeepableError
            return value.copy()
        if (generator := of_generator(value)) is not None:
            return {"kind": "generator", "of": generator[0]}
        if isinstance(value, nn.Module):
            return self._inside(value, _of_module(value), depth)
        if isinstance(value, Enum):  # which is there once for all
            raise UnkeepableError
        if (kind := next((name for name, one in _KINDS.items() if isinstance(value, one)), None)) is not None:
            return self._container(kind, value, depth)
        own = inside(value)
        return _LEFT if own is None else self._inside(value, own, depth)

    def _inside(self, value: Any, own: Mapping[str, Held], depth: int) -> dict[str, Any]:
        of = {name: self._kept(held.value, depth - 1) for name, held in own.items()}
        return {"kind": "inside", "class": _class_of(value), "of": of}

    def _container(self, kind: str, value: Any, depth: int) -> dict[str, Any]:
        more: dict[str, Any] = {"class": _class_of(value)}
        if kind == "dict":
            items = [[self._key(key), self._kept(item, depth - 1)] for key, item in value.items()]
            return {"kind": kind, "of": items, **more}
        is_named = kind == "tuple" and type(value) is not tuple
        if is_named or (kind == "set" and not all(isinstance(item, _PLAIN) for item in value)):
            raise UnkeepableError
        more |= {"most": value.maxlen} if kind == "deque" else {}
        return {"kind": kind, "of": [self._kept(item, depth - 1) for item in value], **more}

    def _key(self, key: Any) -> Any:
        """A parameter, or its `id()`, which is another in each process, by its name."""
        if id(key) in self._names:
            return {"kind": "tensor", "of": self._names[id(key)]}
        if type(key) is int and key in self._names:
            return {"kind": "id", "of": self._names[key]}
        if isinstance(key, _PLAIN):
            return key
        raise UnkeepableError


class _Taker:
    """Takes up what was kept, in what has it now where that can be filled.

    Args:
        things: As above.
        device: Where a tensor goes that was on a device, and has no place here yet.
    """

    def __init__(self, things: Mapping[str, Any], device: torch.device):
        self._tensors, self._device = _tensors_of(things), device

    def taken_up(self, kept: Any, now: Any) -> Any:
        """A value, in what there is now; `_NOTHING` where it has no place there, and cannot be made."""
        of: Any
        if isinstance(kept, torch.Tensor):
            return _filled(now, kept)
        if isinstance(kept, np.ndarray):
            return _filled_array(now, kept)
        if not isinstance(kept, dict):
            return kept
        kind, of = kept["kind"], kept.get("of", ())
        if kind == "device":
            return _filled(now, of.to(now.device if isinstance(now, torch.Tensor) else self._device))
        if kind in _KINDS:
            return self._container(kept, now)
        if kind == "generator":
            if (generator := of_generator(now)) is None:
                return _NOTHING
            generator[1](of)
        if kind == "inside":
            if kept["class"] != _class_of(now):
                return _NOTHING
            self._fill(now, of)
        return now

    def _container(self, kept: Mapping[str, Any], now: Any) -> Any:
        kind, of = kept["kind"], kept["of"]
        items = self._mapping(of, now) if kind == "dict" else self._sequence(of, now)
        is_there = kept["class"] == _class_of(now) and kind != "tuple"
        if items is None or not (is_there or kept["class"] == _class_of(_KINDS[kind]())):
            return _NOTHING  # nobody knows how to make one of somebody's class
        return _filled_again(now, items) if is_there else _made(kind, items, kept.get("most"))

    def _fill(self, now: Any, of: Mapping[str, Any]) -> None:
        own = _of_module(now) if isinstance(now, nn.Module) else inside(now) or {}
        for name, kept in of.items():
            value = self.taken_up(kept, own[name].value if name in own else _NOTHING)
            if value is _NOTHING:
                continue
            if name in own:
                own[name].put(value)
            elif hasattr(now, "__dict__") and _is_own(name):
                setattr(now, name, value)

    def _mapping(self, of: Sequence[Any], now: Any) -> dict[Any, Any] | None:
        """The entries; None where some have no place here."""
        before = now if isinstance(now, dict) else {}
        known = [(self._key(key), value) for key, value in of]
        items = {key: self.taken_up(value, before.get(key, _NOTHING)) for key, value in known}
        return None if any(item is _NOTHING for item in items.values()) else items

    def _key(self, key: Any) -> Any:
        if not isinstance(key, dict):
            return key
        tensor = self._tensors[key["of"]]
        return tensor if key["kind"] == "tensor" else id(tensor)

    def _sequence(self, of: Sequence[Any], now: Any) -> list[Any] | None:
        """The items; None where some have no place here."""
        has_all = isinstance(now, list | tuple | deque) and len(now) == len(of)
        earlier = list(now) if has_all else [_NOTHING] * len(of)
        items = [self.taken_up(value, before) for value, before in zip(of, earlier, strict=True)]
        return None if any(item is _NOTHING for item in items) else items


def _made(kind: str, items: Any, most: int | None) -> Any:
    return deque(items, most) if kind == "deque" else _KINDS[kind](items)


def _filled_again(container: Any, items: Any) -> Any:
    container.clear()
    container.update(items) if isinstance(container, dict | set) else container.extend(items)
    return container


def _tensors_of(things: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    modules = {key: thing for key, thing in things.items() if isinstance(thing, nn.Module)}
    return {
        f"{key}.{name}": tensor
        for key, module in modules.items()
        for name, tensor in (*module.named_parameters(), *module.named_buffers())
    }


def _is_own(name: str) -> bool:
    """Whether a step may have begun an attribute of this name: `__class__` would make another thing of an object."""
    return name.isidentifier() and not name.startswith("__")


def _class_of(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _kept_tensor(tensor: torch.Tensor) -> Any:
    if tensor.grad_fn is not None or not has_storage(tensor) or tensor.nbytes > _LARGEST:
        raise UnkeepableError
    own = tensor.detach().cpu().clone()
    return own if tensor.device.type == "cpu" else {"kind": "device", "of": own}


def _of_module(module: nn.Module) -> dict[str, Held]:
    """The numbers of a module that is hidden from the model's own."""
    own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: Held(tensor, lambda value: None) for name, tensor in own.items()}


def _filled(now: Any, kept: torch.Tensor) -> torch.Tensor:
    is_alike = isinstance(now, torch.Tensor) and (now.shape, now.dtype) == (kept.shape, kept.dtype)
    if not is_alike or not has_storage(now) or now.grad_fn is not None or 0 in now.stride():
        return kept.clone()
    now.detach().copy_(kept)
    tensor: torch.Tensor = now
    return tensor


def _filled_array(now: Any, kept: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    is_alike = isinstance(now, np.ndarray) and (now.shape, now.dtype) == (kept.shape, kept.dtype)
    if not is_alike or not now.flags.writeable:
        return kept
    np.copyto(now, kept)
    array: np.ndarray[Any, Any] = now
    return array
