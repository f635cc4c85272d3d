"""What changes in people's own objects beside every `state_dict`: attributes, class attributes, globals, closures."""

from __future__ import annotations

import hashlib
import inspect
import marshal
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from enum import Enum
from functools import partial
from types import GeneratorType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from launcher.evaluation.unmoved import (
    DEPTH,
    MOST,
    OF_TORCH,
    globals_of,
    held_by_class,
    is_function,
    is_looked_into,
    is_of_the_project,
    of_generator,
    slots_of,
    tensors_of,
)
from launcher.evaluation.values import taken_apart
from launcher.training.inner_optimizers import inner_optimizers
from launcher.training.loose_buffers import container_of, print_of

_KNOWN_CODE = ("torch", "launcher")  # keeps what moves in buffers
_OF_OPTIMIZERS = frozenset(  # torch's own names: kept, or no number of a step
    ("defaults", "state", "param_groups", "step", "found_inf", "grad_scale", "_opt_called", "_step_count")
)
_OF_MODULES = frozenset(vars(nn.Module()))
_SETTINGS = (bool, int, float)  # of a module of torch's, that somebody may change: a momentum, a rate of dropout


class Held(NamedTuple):
    """A value, and what puts another in its place.

    Attributes:
        value: As it is now.
        put: Where it is; of what is only changed in place, it does nothing.
    """

    value: Any
    put: Callable[[Any], object]


def held_beside(things: Mapping[str, Any]) -> dict[str, Held]:
    """All that no checkpoint keeps by itself, by name."""
    return {name: held for key, thing in things.items() for name, held in _attributes_of(key, thing)}


def homes_of(things: Mapping[str, Any]) -> dict[str, Callable[[str, Any], object]]:
    """What gives an attribute to each of the things, and to the modules in them: a step may be the first to do so."""
    homes = {key: thing for key, thing in things.items() if hasattr(thing, "__dict__")}
    for key, thing in things.items():
        if isinstance(thing, nn.Module):
            homes |= {f"{key}.{name}" if name else key: module for name, module in thing.named_modules()}
    given: dict[str, Callable[[str, Any], object]] = {key: partial(setattr, home) for key, home in homes.items()}
    return given | {
        f"{key}.{name}": vars(tensor).__setitem__
        for key, module in homes.items()
        if isinstance(module, nn.Module)
        for name, tensor in tensors_of(module).items()
    }


def beside_states(things: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers and tensors that no checkpoint keeps by itself, by name: each as something equal while they are."""
    return prints_of(held_beside(things), things)


def prints_of(held: Mapping[str, Held], things: Mapping[str, Any]) -> dict[str, Any]:
    """The same of what was found; parameters and buffers are kept."""
    modules = [thing for thing in things.values() if isinstance(thing, nn.Module)]
    kept = {id(tensor) for module in modules for tensor in (*module.parameters(), *module.buffers())}
    seen = {name: _Look(kept).at(value, DEPTH) for name, (value, _) in held.items()}
    return {name: print_ for name, print_ in seen.items() if print_ is not None}


def changed_names(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The names of what is another since."""
    return [name for name in after if before.get(name) != after[name]]


def listed(names: Sequence[str]) -> str:
    """The first few, in words."""
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def is_known_code(thing: Any) -> bool:
    """Whether torch or this program brings it."""
    kind = thing if hasattr(thing, "__qualname__") else type(thing)
    return (getattr(kind, "__module__", None) or "").partition(".")[0] in _KNOWN_CODE


def _attributes_of(key: str, root: Any) -> Iterator[tuple[str, Held]]:
    if isinstance(root, Optimizer):
        for name, inner in inner_optimizers(root).items():
            yield from _attributes_of(f"{key}.{name}", inner)
    if isinstance(root, nn.Module):
        for name, module in root.named_modules():
            yield from _named(f"{key}.{name}" if name else key, _of_module(module))
    elif is_known_code(root):
        return
    elif isinstance(root, Optimizer):
        if type(root).state_dict is Optimizer.state_dict:
            own = {name: held for name, held in _own(root).items() if name not in _OF_OPTIMIZERS}
            yield from _named(key, of_class(type(root)) | own)
    elif hasattr(root, "state_dict"):
        return
    elif is_function(root):
        yield from _named(key, of_function(root))
    else:
        yield from _named(key, of_class(type(root)) | _own(root))


def _named(key: str, attributes: Mapping[str, Held]) -> Iterator[tuple[str, Held]]:
    return ((f"{key}.{name}", held) for name, held in attributes.items())


def _of_module(module: nn.Module) -> dict[str, Held]:
    own = {name: held for name, held in _own(module).items() if name not in _OF_MODULES}
    of_tensors = {
        f"{name}.{attribute}": held
        for name, tensor in tensors_of(module).items()
        for attribute, held in _own(tensor).items()
        if not attribute.startswith(OF_TORCH)
    }
    if is_known_code(module):
        return of_tensors | {name: held for name, held in own.items() if isinstance(held.value, _SETTINGS)}
    if type(module).get_extra_state is not nn.Module.get_extra_state:
        return of_tensors
    return of_class(type(module)) | of_tensors | own


def _own(thing: Any) -> dict[str, Held]:
    own = getattr(thing, "__dict__", {})
    slots = {name: Held(getattr(thing, name), partial(object.__setattr__, thing, name)) for name in slots_of(thing)}
    return slots | {name: Held(value, partial(own.__setitem__, name)) for name, value in own.items()}


def of_class(kind: type) -> dict[str, Held]:
    """What its classes have for all objects, and what their methods name of their modules."""
    held: dict[str, Held] = {}
    for base in kind.__mro__:
        for name, value in held_by_class(base).items() if is_of_the_project(base) else ():
            if is_function(value):
                held |= of_function(inspect.unwrap(value))
            else:
                held[name] = Held(value, partial(setattr, base, name))
    return {
        name: one for name, one in held.items() if not (isinstance(one.value, type) and issubclass(kind, one.value))
    }


def of_function(function: Any) -> dict[str, Held]:
    """What a function names of its module, holds in its closure, has as attributes, and as defaults that may change."""
    own, globals_ = getattr(function, "__globals__", {}), {}
    if is_of_the_project(function):
        globals_ = {name: Held(value, partial(own.__setitem__, name)) for name, value in globals_of(function).items()}
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    closed = {
        name: Held(cell.cell_contents, partial(setattr, cell, "cell_contents"))
        for name, cell in cells
        if _is_filled(cell)
    }
    defaults = {
        f"{function.__name__}()": Held(value, _nowhere) for value in function.__defaults__ or () if _may_change(value)
    }
    return globals_ | closed | defaults | _own(function)


def _nowhere(value: Any) -> None:
    """A default argument is changed in place."""


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


def _may_change(value: Any) -> bool:
    return isinstance(value, list | dict | set | deque | torch.Tensor | np.ndarray)


def inside(value: Any) -> dict[str, Held] | None:
    """What a function, a class or an object of the project's has in itself; None of anything else."""
    if is_function(value):
        return of_function(value) if is_of_the_project(value) else None
    if isinstance(value, type):
        held = held_by_class(value) if is_of_the_project(value) and not issubclass(value, Enum) else {}
        return {
            name: Held(one, partial(setattr, value, name)) for name, one in held.items() if not is_function(one)
        } or None
    return _own(value) if is_looked_into(type(value)) else None


class _Look:
    """Makes of a value something that is equal while the value is, as far as it is looked into.

    Args:
        kept: The tensors that a checkpoint has, which steps are meant to change.
    """

    def __init__(self, kept: Container[int] = ()) -> None:
        self._left, self._kept = MOST, kept  # things of one attribute
        self._seen: dict[int, Any] = {}  # held, so that no other thing has the number

    def at(self, value: Any, depth: int) -> Any:
        """The same of one value; None of what is not looked at."""
        self._left -= 1
        if (
            self._left < 0 or depth < 0 or id(value) in self._kept or isinstance(value, Optimizer)
        ):  # those inside are looked at by themselves
            return None
        if (apart := taken_apart(value)) is not None:
            return apart.by, self.at(apart.of, depth), self.at(apart.place, depth)
        if isinstance(value, np.ndarray | GeneratorType) or container_of(value) is not None:
            return self._in_container(value, depth)
        if (generator := of_generator(value)) is not None:
            state = generator[0]
            words = bytes(state.numpy()) if isinstance(state, torch.Tensor) else repr(state).encode()
            return hashlib.sha256(words).hexdigest()
        if isinstance(value, nn.Module):  # hidden from the model's own, in a list or an object
            return self._all((*value.parameters(), *value.buffers()), depth)
        if (own := inside(value)) is not None:
            if id(value) in self._seen:
                return None
            self._seen[id(value)] = value
            return self._all((held.value for held in own.values()), depth) if own else None
        return print_of(value)

    def _in_container(self, value: Any, depth: int) -> Any:
        if isinstance(value, np.ndarray):
            return self._all(value.ravel(), depth) if value.dtype == object else print_of(value)
        if isinstance(value, GeneratorType):
            return inspect.getgeneratorstate(value), self._all(inspect.getgeneratorlocals(value).values(), depth)
        kind = container_of(value)
        items = [*(dict.items(value) if kind is dict else kind.__iter__(value))]
        if kind is set:
            return sorted(map(repr, items))
        try:  # numbers and words alone, as many as they are
            return hashlib.sha256(marshal.dumps(items, 2)).hexdigest()
        except ValueError:
            parts = ([key for key, _ in items], [one for _, one in items]) if kind is dict else (items,)
            return [len(items), *(self._all(part, depth) for part in parts)]

    def _all(self, values: Iterable[Any], depth: int) -> list[Any]:
        return [self.at(value, depth - 1) for value in values]
