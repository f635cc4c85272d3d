"""What steps change beside every `state_dict`, in a checkpoint all the same: a counter, a temperature, a generator.

Each value is kept as plain data, and comes back into what has it now: a list, a tensor or an object stays the thing
that others may hold too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from launcher.evaluation.unmoved import DEPTH, of_generator
from launcher.evaluation.values import Apart, is_iterator, name_of_class, put_together, taken_apart
from launcher.internals import has_storage, parts_of
from launcher.training.beside import Held, changed_names, held_beside, homes_of, inside, prints_of
from launcher.training.loose_buffers import CONTAINERS, LARGEST, container_of

_PLAIN = frozenset((bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size))
_KINDS: dict[str, Any] = {kind.__name__: kind for kind in CONTAINERS}
_LEFT = {"kind": "left"}  # what nobody looks at stays what it is
_SPARSE = (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)
_UNMAKEABLE = (ValueError, TypeError, KeyError, ArithmeticError)  # a member that an enumeration no longer has
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
        self._names = {id(part): name for name, part in _parts_of(things).items()}
        self._around: set[int] = set()  # the objects that hold what is looked at

    def kept_of(self, value: Any) -> dict[str, Any] | None:
        """A value as a checkpoint has it; None where it cannot be kept."""
        try:
            return {"value": self._kept(value, DEPTH)}
        except UnkeepableError:
            return None

    def _kept(self, value: Any, depth: int) -> Any:
        if type(value) in _PLAIN:
            return value
        if isinstance(value, Optimizer) or id(value) in self._names or id(value) in self._around:
            return _LEFT
        if depth < 0:
            raise UnkeepableError
        if isinstance(value, torch.Tensor):
            return _kept_tensor(value)
        if isinstance(value, np.generic | np.ndarray):
            return self._kept_array(value, depth)
        if (generator := of_generator(value)) is not None:
            return {"kind": "generator", "of": generator[0]}
        if isinstance(value, nn.Module):
            return self._inside(value, _of_module(value), depth)
        if (apart := taken_apart(value)) is not None:
            parts = [self._kept(part, depth - 1) for part in apart.of]
            return {"kind": "made", "class": apart.by, "of": parts, "place": self._kept(apart.place, depth - 1)}
        if is_iterator(value):
            raise UnkeepableError
        if (kind := container_of(value)) is not None:
            return self._container(kind.__name__, value, depth)
        own = inside(value)
        return _LEFT if own is None else self._inside(value, own, depth)

    def _inside(self, value: Any, own: Mapping[str, Held], depth: int) -> dict[str, Any]:
        self._around.add(id(value))
        try:
            of = {name: self._kept(held.value, depth - 1) for name, held in own.items()}
        finally:
            self._around.remove(id(value))
        return {"kind": "inside", "class": name_of_class(type(value)), "of": of}

    def _kept_array(self, value: Any, depth: int) -> Any:
        array = np.asarray(value)
        if array.nbytes > LARGEST or type(value) not in (np.ndarray, array.dtype.type):
            raise UnkeepableError
        if array.dtype.kind in "biufc":
            return array.copy() if type(value) is np.ndarray else {"kind": "number", "of": array.copy()}
        if array.dtype == object:
            of = [self._kept(item, depth - 1) for item in array.ravel()]
            return {"kind": "objects", "of": of, "shape": list(array.shape)}
        fields = array.dtype.str if array.dtype.names is None else [[*field] for field in array.dtype.descr]
        if _type_of_rows(fields) != array.dtype:
            raise UnkeepableError
        return {"kind": "rows", "of": array.tobytes(), "fields": fields, "shape": list(array.shape)}

    def _container(self, kind: str, value: Any, depth: int) -> dict[str, Any]:
        more: dict[str, Any] = {"class": name_of_class(type(value))}
        if kind == "dict":
            items = [[self._key(key), self._kept(item, depth - 1)] for key, item in value.items()]
            return {"kind": kind, "of": items, **more}
        if kind == "set":
            return {"kind": kind, "of": list(map(self._key, value)), **more}
        more |= {"most": value.maxlen} if kind == "deque" else {}
        return {"kind": kind, "of": [self._kept(item, depth - 1) for item in value], **more}

    def _key(self, key: Any) -> Any:
        """A parameter, or its `id()`, which is another in each process, by its name."""
        if id(key) in self._names:
            return {"kind": "part", "of": self._names[id(key)]}
        if type(key) is int and key in self._names:
            return {"kind": "id", "of": self._names[key]}
        if type(key) in _PLAIN:
            return key
        if type(key) is tuple:
            return {"kind": "tuple", "of": list(map(self._key, key))}
        if (apart := taken_apart(key)) is not None:
            return {"kind": "made", "class": apart.by, "of": list(map(self._key, apart.of))}
        raise UnkeepableError


class _Taker:
    """Takes up what was kept, in what has it now where that can be filled.

    Args:
        things: As above.
        device: Where a tensor goes that was on a device, and has no place here yet.
    """

    def __init__(self, things: Mapping[str, Any], device: torch.device):
        self._parts, self._device = _parts_of(things), device

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
        if kind == "made":
            return self._made(kept, now)
        if kind in ("number", "rows", "objects"):
            return self._array(kind, kept, now)
        if kind == "generator":
            if (generator := of_generator(now)) is None:
                return _NOTHING
            generator[1](of)
        if kind == "inside":
            if kept["class"] != name_of_class(type(now)):
                return _NOTHING
            self._fill(now, of)
        return now

    def _container(self, kept: Mapping[str, Any], now: Any) -> Any:
        kind, of = kept["kind"], kept["of"]
        try:
            if kind == "set":
                items: Any = list(map(self._key, of))
            else:
                items = self._mapping(of, now) if kind == "dict" else self._sequence(of, now)
        except _UNMAKEABLE:
            return _NOTHING
        is_there = kept["class"] == name_of_class(type(now)) and kind != "tuple"
        if items is None or not (is_there or kept["class"] == name_of_class(_KINDS[kind])):
            return _NOTHING  # nobody knows how to make one of somebody's class
        return _filled_again(now, items) if is_there else _made(kind, items, kept.get("most"))

    def _made(self, kept: Mapping[str, Any], now: Any) -> Any:
        before = taken_apart(now)
        items = self._sequence(kept["of"], before.of if before is not None and before.by == kept["class"] else None)
        place = self.taken_up(kept["place"], _NOTHING)
        if items is None or place is _NOTHING:
            return _NOTHING
        try:
            return put_together(Apart(kept["class"], tuple(items), place), now)
        except _UNMAKEABLE:
            return _NOTHING

    def _array(self, kind: str, kept: Mapping[str, Any], now: Any) -> Any:
        if kind == "number":
            return kept["of"][()]
        if kind == "objects":
            before = [*now.ravel()] if isinstance(now, np.ndarray) and now.dtype == object else None
            items = self._sequence(kept["of"], before)
            if items is None:
                return _NOTHING
            array = np.empty(len(items), dtype=object)
            array[:] = items
        else:
            array = np.frombuffer(kept["of"], _type_of_rows(kept["fields"])).copy()
        return _filled_array(now, array.reshape(kept["shape"]))

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
        if key["kind"] in ("tuple", "made"):
            items = tuple(map(self._key, key["of"]))
            return items if key["kind"] == "tuple" else put_together(Apart(key["class"], items))
        part = self._parts[key["of"]]
        return part if key["kind"] == "part" else id(part)

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


def _parts_of(things: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters, buffers and modules, by name."""
    roots = {key: thing for key, thing in things.items() if isinstance(thing, nn.Module)}
    return {
        f"{key}.{name}": part
        for key, root in roots.items()
        for name, part in (*root.named_modules(), *root.named_parameters(), *root.named_buffers())
    }


def _is_own(name: str) -> bool:
    """Whether a step may have begun an attribute of this name: `__class__` would make another thing of an object."""
    return name.isidentifier() and not name.startswith("__")


def _type_of_rows(fields: Any) -> np.dtype[Any]:
    """The type of an array of rows of several types, of dates or of text."""
    return np.dtype(fields if isinstance(fields, str) else [tuple(field) for field in fields])


def _kept_tensor(tensor: torch.Tensor) -> Any:
    own = tensor.detach().resolve_conj().resolve_neg()
    is_keepable = has_storage(own) or own.layout in _SPARSE
    if tensor.grad_fn is not None or not is_keepable or sum(part.nbytes for part in parts_of(own)) > LARGEST:
        raise UnkeepableError
    own = own.cpu().clone()
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
