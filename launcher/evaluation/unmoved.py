"""What objects hold, to be put back after something was tried with them: nobody shall see that it was.

Parameters are left out, since they are large and hardly anything but an optimizer changes them, unless they are asked
for: a step function may move a teacher's, and so may a forward.
"""

from __future__ import annotations

import array
import random
import sys
import sysconfig
from argparse import Namespace
from collections import OrderedDict, UserDict, UserList, deque
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import suppress
from enum import Enum
from functools import partial
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from launcher.checkpoints.format import copied
from launcher.checkpoints.sameness import same
from launcher.evaluation.values import as_it_stands, is_iterator
from launcher.internals import changes_of, has_storage, names_within, parts_of
from launcher.model.build import is_expanded
from launcher.model.kinds import is_sharded
from launcher.model.sharding import take_apart
from launcher.objective.loss import Objective

DEPTH = 12  # of attributes of attributes, as a step function's meter has a list
MOST = 100_000  # things that are looked into
_LARGEST = 2**28  # bytes: what is larger, and no buffer, is data
_LONGEST = 10_000  # entries that are looked into: more are data, as a vocabulary is
OF_TORCH = "_dynamo"  # begins what torch's compiler notes on a tensor
_REGISTERED = ("_parameters", "_buffers", "_modules")  # of a module: looked at by their public names
Back = Callable[[], object]


class Unmoved:
    """Buffers, attributes, generators and closures of modules, objects and functions, as they are now.

    Args:
        *roots: What may be changed: a model, losses, a step function.
        weights: Whether parameters are kept too.
    """

    def __init__(self, *roots: Any, weights: bool = False):
        self._seen: dict[int, Any] = {}  # held, so that no other thing has the number
        self._back: list[Back] = []
        self._modules: list[nn.Module] = []
        self._left = MOST
        self._iterators: dict[int, Any] = {}  # others that stand where they did, by the number of each
        for root in roots:
            self._keep(root, DEPTH)
        for root in roots:
            self._keep_own(root)
        self._sharded = [root for root in roots if is_sharded(root)]
        for root in self._sharded:
            take_apart(root)
        self._weights = _weights_of(self._modules) if weights else []

    @classmethod
    def of_run(cls, model: nn.Module, objective: Objective, *, weights: bool | None = None, but: Any = None) -> Unmoved:
        """What a forward of a run may change: the bare model, and all that its objective calls.

        Args:
            model: The bare module.
            objective: Its losses and step function.
            weights: Whether parameters are kept too; None where the objective says that they may move.
            but: What may remember something of it.
        """
        brought = (thing for thing in objective.brought.values() if thing is not but)
        return cls(model, *brought, weights=objective.moves_weights if weights is None else weights)

    @torch.no_grad()
    def put_back(self) -> None:
        """Makes all as it was."""
        for root in self._sharded:
            take_apart(root)
        for back in self._back:
            back()
        for weight in self._weights:
            weight.put_back()

    def moved_weights(self) -> list[nn.Parameter]:
        """The parameters that are others since, of those that are kept."""
        return [
            weight.parameter
            for weight in self._weights
            if getattr(weight.module, weight.name, None) is not weight.parameter or weight.is_moved()
        ]

    def _keep(self, thing: Any, depth: int) -> None:
        if depth < 0 or id(thing) in self._seen or isinstance(thing, _PLAIN):
            return
        self._left -= 1
        if self._left < 0:
            return
        self._seen[id(thing)] = thing
        if isinstance(thing, nn.Module):
            for module in thing.modules():
                self._seen[id(module)] = module
                self._keep_module(module, depth)
        elif isinstance(thing, torch.Tensor | np.ndarray):
            parts: Sequence[Any] = parts_of(thing) if isinstance(thing, torch.Tensor) else [thing]
            if sum(part.nbytes for part in parts) <= _LARGEST:
                self._keep_numbers(thing)
        elif isinstance(thing, _CONTAINERS):
            self._keep_container(thing, depth)
        elif isinstance(thing, bytearray | array.array):
            self._back.append(partial(_put_items_back, thing, thing[:]))
        elif isinstance(thing, tuple):
            self._keep_all(tuple.__iter__(thing), depth)
        elif (generator := of_generator(thing)) is not None:
            state, take = generator
            self._back.append(partial(take, state))
        else:
            self._keep_code_or_object(thing, depth)

    def _keep_all(self, things: Any, depth: int) -> None:
        for thing in things:
            self._keep(thing, depth - 1)

    def _keep_module(self, module: nn.Module, depth: int) -> None:
        self._modules.append(module)
        buffers = dict(module.named_buffers(recurse=False, remove_duplicate=False))
        for buffer in buffers.values():
            self._keep_numbers(buffer)
        for tensor in tensors_of(module).values():
            self._keep_attributes(tensor, depth)
        self._back.append(partial(_put_buffers_back, module, buffers, frozenset(names_within(module))))
        own = {key: value for key, value in vars(module).items() if key not in _REGISTERED}
        self._back.append(partial(_put_attributes_back, vars(module), self._standing(own), _REGISTERED))
        self._keep_all(own.values(), depth)
        self._keep_class(type(module), depth)
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is not None:
            self._keep_numbers(module.weight.detach())  # its forward changes it, also in eval mode

    def _keep_numbers(self, numbers: torch.Tensor | np.ndarray[Any, Any]) -> None:
        if isinstance(numbers, np.ndarray):
            if numbers.flags.writeable:
                self._back.append(partial(np.copyto, numbers, numbers.copy()))
        elif not isinstance(numbers, nn.Parameter) and numbers.grad_fn is None and not numbers.requires_grad:
            self._back.append(partial(_put_numbers_back, numbers, numbers.detach().clone()))

    def _keep_container(self, container: Any, depth: int) -> None:
        kind = next(kind for kind in _CONTAINERS if isinstance(container, kind))
        before = [*(kind.items(container) if issubclass(kind, dict) else kind.__iter__(container))]
        if issubclass(kind, dict):
            self._back.append(partial(_fill, kind, container, [*self._standing(dict(before)).items()]))
        else:
            self._back.append(partial(_fill, kind, container, [*map(self._as_it_stands, before)]))
        if len(before) <= _LONGEST:
            self._keep_all([value for _, value in before] if issubclass(kind, dict) else before, depth)

    def _keep_code_or_object(self, thing: Any, depth: int) -> None:
        if isinstance(thing, MethodType):
            self._keep(thing.__self__, depth)
        elif isinstance(thing, partial):
            self._keep_all((thing.func, thing.args, thing.keywords), depth + 1)
        elif isinstance(thing, FunctionType):
            for cell in thing.__closure__ or ():
                with suppress(ValueError):  # nothing is in it yet
                    before = self._as_it_stands(cell.cell_contents)
                    self._back.append(partial(setattr, cell, "cell_contents", before))
                    self._keep(cell.cell_contents, depth - 1)
            self._keep_all((*(thing.__defaults__ or ()), *(thing.__kwdefaults__ or {}).values()), depth)
            self._keep_attributes(thing, depth)
            self._keep_globals(thing, depth)
        elif isinstance(thing, type):
            self._keep_class(thing, depth)
        elif not isinstance(thing, ModuleType) and (depth == DEPTH or is_looked_into(type(thing))):
            self._keep_attributes(thing, depth)

    def _keep_attributes(self, thing: Any, depth: int) -> None:
        own, slots = getattr(thing, "__dict__", None), {name: getattr(thing, name) for name in slots_of(thing)}
        for name, value in slots.items():
            self._back.append(partial(object.__setattr__, thing, name, self._as_it_stands(value)))
        before = dict(own) if isinstance(own, dict) else {}
        if isinstance(own, dict):
            self._back.append(partial(_put_attributes_back, own, self._standing(before)))
        if slots or isinstance(own, dict):
            self._keep_all((*slots.values(), *before.values()), depth)
            self._keep_class(type(thing), depth)

    def _standing(self, before: Mapping[Any, Any]) -> dict[Any, Any]:
        """The same, with iterators that stand where these do."""
        return {name: self._as_it_stands(value) for name, value in before.items()}

    def _as_it_stands(self, value: Any) -> Any:
        """Of an iterator another one, which is the same to all that have it; of anything else the thing itself."""
        if not is_iterator(value):
            return value
        if id(value) not in self._iterators:
            self._iterators[id(value)] = as_it_stands(value)
            self._seen[id(value)] = value
        return self._iterators[id(value)]

    def _keep_class(self, kind: type, depth: int) -> None:
        """What a project's class has for all its objects, and what its methods keep."""
        for base in kind.__mro__:
            if id(base) in self._seen or not is_of_the_project(base) or issubclass(base, Enum):
                continue
            self._seen[id(base)] = base
            for name, value in held_by_class(base).items():
                if not _is_code(value):
                    self._back.append(partial(_put_attribute_back, base, name, self._as_it_stands(value)))
                self._keep(value, depth - 1)

    def _keep_globals(self, function: FunctionType, depth: int) -> None:
        """What of its module a project's function names: a counter of calls, a meter."""
        if not is_of_the_project(function):
            return
        own = function.__globals__
        for name, value in globals_of(function).items():
            if not _is_code(value):
                self._back.append(partial(own.__setitem__, name, self._as_it_stands(value)))
            self._keep(value, depth - 1)

    def _keep_own(self, thing: Any) -> None:
        """What only a `state_dict` of its own gives and takes."""
        if isinstance(thing, nn.Module) or not (hasattr(thing, "state_dict") and hasattr(thing, "load_state_dict")):
            return
        before = copied(thing.state_dict())

        def back() -> None:
            if not same(before, thing.state_dict()):
                thing.load_state_dict(copied(before))

        self._back.append(back)


def tensors_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """A module's own parameters and buffers, which may have attributes too."""
    return {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}


def held_by_class(kind: type) -> dict[str, Any]:
    """What a class itself has, by name: values, and the functions behind its methods."""
    return {
        name: getattr(value, "__func__", value)  # behind staticmethod and classmethod
        for name, value in vars(kind).items()
        if not (name.startswith("__") and name.endswith("__") and not isinstance(value, FunctionType))
    }


def globals_of(function: FunctionType) -> dict[str, Any]:
    """What of its module a function names."""
    own = function.__globals__
    return {name: own[name] for name in function.__code__.co_names if name in own}


def is_function(thing: Any) -> bool:
    """Whether it is a function written in Python."""
    return isinstance(thing, FunctionType)


def is_of_the_project(kind: type | FunctionType) -> bool:
    """Whether a class or function is a user's own: what is inside of a package's, as a tracker's client, is not."""
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    return file is not None and not any(place in file for place in _INSTALLED)


def is_looked_into(kind: type) -> bool:
    """Whether what is inside of an object is looked at: of a user's own, and of Python's that only hold attributes."""
    return is_of_the_project(kind) or kind in _HOLDERS


def _is_code(value: Any) -> bool:
    """Whether it is a function, a class, a module, or what makes an attribute of a class: no value of one."""
    return isinstance(value, type | ModuleType | BuiltinFunctionType) or hasattr(type(value), "__get__")


def slots_of(thing: Any) -> list[str]:
    """The names of what an object has in `__slots__`."""
    names: list[str] = []
    for base in type(thing).__mro__ if is_of_the_project(type(thing)) else ():
        slots = vars(base).get("__slots__", ())
        for name in [slots] if isinstance(slots, str) else slots:
            is_private = name.startswith("__") and not name.endswith("__")
            names.append(f"_{base.__name__.lstrip('_')}{name}" if is_private else name)
    return [name for name in names if name not in ("__dict__", "__weakref__") and hasattr(thing, name)]


_HOLDERS = (SimpleNamespace, Namespace, UserDict, UserList)
_INSTALLED = ("site-packages", "dist-packages", sysconfig.get_paths()["stdlib"], str(Path(__file__).parent.parent))
_CONTAINERS: tuple[Any, ...] = (OrderedDict, dict, list, set, deque)
_PLAIN = (int, float, complex, str, bytes, bool, type(None), BuiltinFunctionType)


class _Weight(NamedTuple):
    """A parameter as it is now.

    Attributes:
        module: Which has it.
        name: By this name.
        parameter: Itself.
        before: A copy of its numbers.
        changes: How often it was changed in place: a teacher that is what it follows is moved to where it is.
    """

    module: nn.Module
    name: str
    parameter: nn.Parameter
    before: torch.Tensor
    changes: int

    def is_moved(self) -> bool:
        """Whether something has written to it."""
        return changes_of(self.parameter) != self.changes or not same(self.parameter.detach(), self.before)

    def put_back(self) -> None:
        """Makes it as it was."""
        if getattr(self.module, self.name, None) is not self.parameter:
            setattr(self.module, self.name, self.parameter)
        if self.is_moved():
            _put_numbers_back(self.parameter, self.before)


def _weights_of(modules: Sequence[nn.Module]) -> list[_Weight]:
    """Every parameter: tied ones once."""
    kept: dict[int, _Weight] = {}
    for module in modules:
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in kept:
                before = parameter.detach().clone()
                kept[id(parameter)] = _Weight(module, name, parameter, before, changes_of(parameter))
    return list(kept.values())


def of_generator(thing: Any) -> tuple[Any, Callable[[Any], object]] | None:
    """Where a generator of somebody's own stands, and what takes it there; None of anything else."""
    if isinstance(thing, np.random.Generator):
        return thing.bit_generator.state, partial(setattr, thing.bit_generator, "state")
    if isinstance(thing, np.random.BitGenerator):
        return thing.state, partial(setattr, thing, "state")
    if isinstance(thing, np.random.RandomState | torch.Generator):
        return thing.get_state(), thing.set_state
    if type(thing) is random.Random:  # the system's has no state
        return thing.getstate(), thing.setstate
    return None


def _put_numbers_back(tensor: torch.Tensor, before: torch.Tensor) -> None:
    if tensor.shape == before.shape and tensor.dtype == before.dtype:
        for dim, stride in enumerate(tensor.stride() if has_storage(tensor) else ()):
            if is_expanded(tensor.shape[dim], stride):
                tensor, before = tensor.narrow(dim, 0, 1), before.narrow(dim, 0, 1)
        tensor.copy_(before)
    else:  # grown in place, as an observer's
        tensor.data = before.clone()


def _put_buffers_back(module: nn.Module, before: Mapping[str, torch.Tensor], registered: Container[str]) -> None:
    for name in [name for name, _ in module.named_buffers(recurse=False, remove_duplicate=False) if name not in before]:
        if name in registered:  # as None, to be filled by a forward
            setattr(module, name, None)
        else:
            delattr(module, name)
    for name, buffer in before.items():
        if getattr(module, name, None) is not buffer:
            setattr(module, name, buffer)


def _put_items_back(array: Any, before: Any) -> None:
    array[:] = before


def _put_attribute_back(kind: type, name: str, value: Any) -> None:
    if vars(kind).get(name) is not value:
        setattr(kind, name, value)


def _put_attributes_back(own: dict[str, Any], before: Mapping[str, Any], apart: tuple[str, ...] = ()) -> None:
    for key in [key for key in own if key not in before and key not in apart and not key.startswith(OF_TORCH)]:
        del own[key]
    own.update(before)


def _fill(kind: Any, container: Any, before: list[Any]) -> None:
    """As Python's own class does it: one that inherits that may refuse, as a frozen configuration does."""
    kind.clear(container)
    if issubclass(kind, dict):
        for key, value in before:
            kind.__setitem__(container, key, value)
    else:
        kind.update(container, before) if kind is set else kind.extend(container, before)
