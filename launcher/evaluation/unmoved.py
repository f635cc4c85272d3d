"""What objects hold, to be put back after something was tried with them: nobody shall see that it was.

Parameters are left out, since they are large and hardly anything but an optimizer changes them, unless they are asked
for: a step function may move a teacher's, and so may a forward.
"""

from __future__ import annotations

import random
import sys
import sysconfig
from collections import OrderedDict, deque
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from launcher.checkpoints.format import copied
from launcher.checkpoints.sameness import same
from launcher.internals import changes_of, has_storage, names_within, parts_of
from launcher.model.build import is_expanded
from launcher.model.kinds import is_sharded
from launcher.model.sharding import take_apart
from launcher.objective.loss import Objective

_DEPTH = 4  # of attributes of attributes, as a step function's meter has a list
_LARGEST = 2**28  # bytes: what is larger, and no buffer, is data
_LONGEST = 10_000  # entries that are looked into: more are data, as a vocabulary is
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
        for root in roots:
            self._keep(root, _DEPTH)
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
        self._back.append(partial(_put_buffers_back, module, buffers, frozenset(names_within(module))))
        own = {key: value for key, value in vars(module).items() if key not in _REGISTERED}
        self._back.append(partial(_put_attributes_back, vars(module), own, _REGISTERED))
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
        self._back.append(partial(_fill, kind, container, before))
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
                    self._back.append(partial(setattr, cell, "cell_contents", cell.cell_contents))
                    self._keep(cell.cell_contents, depth - 1)
            self._keep_all((*(thing.__defaults__ or ()), *(thing.__kwdefaults__ or {}).values()), depth)
            self._keep_attributes(thing, depth)
            self._keep_globals(thing, depth)
        elif isinstance(thing, type):
            self._keep_class(thing, depth)
        elif not isinstance(thing, ModuleType) and (depth == _DEPTH or is_of_the_project(type(thing))):
            self._keep_attributes(thing, depth)

    def _keep_attributes(self, thing: Any, depth: int) -> None:
        own = getattr(thing, "__dict__", None)
        if isinstance(own, dict):
            before = dict(own)
            self._back.append(partial(_put_attributes_back, own, before))
            self._keep_all(before.values(), depth)
            self._keep_class(type(thing), depth)

    def _keep_class(self, kind: type, depth: int) -> None:
        """What a project's class has for all its objects, and what its methods keep."""
        for base in kind.__mro__:
            if id(base) in self._seen or not is_of_the_project(base):
                continue
            self._seen[id(base)] = base
            for name, value in held_by_class(base).items():
                if isinstance(value, _CHANGING):
                    self._back.append(partial(_put_attribute_back, base, name, value))
                self._keep(value, depth - 1)

    def _keep_globals(self, function: FunctionType, depth: int) -> None:
        """What of its module a project's function names: a counter of calls, a meter."""
        if not is_of_the_project(function):
            return
        own = function.__globals__
        for name, value in globals_of(function).items():
            if isinstance(value, _CHANGING):
                self._back.append(partial(own.__setitem__, name, value))
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


_INSTALLED = ("site-packages", "dist-packages", sysconfig.get_paths()["stdlib"], str(Path(__file__).parent.parent))
_CHANGING = (int, float, complex, str, type(None), tuple, dict, list, set, deque, torch.Tensor, np.ndarray)
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


def _put_attribute_back(kind: type, name: str, value: Any) -> None:
    if vars(kind).get(name) is not value:
        setattr(kind, name, value)


def _put_attributes_back(own: dict[str, Any], before: Mapping[str, Any], apart: tuple[str, ...] = ()) -> None:
    for key in [key for key in own if key not in before and key not in apart]:
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
