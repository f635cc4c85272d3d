"""What changes in people's own objects beside every `state_dict`: attributes, class attributes, globals, closures."""

from __future__ import annotations

import hashlib
import inspect
from collections import deque
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from launcher.evaluation.unmoved import globals_of, held_by_class, is_function, is_of_the_project, of_generator
from launcher.training.inner_optimizers import inner_optimizers
from launcher.training.loose_buffers import print_of

_KNOWN_CODE = ("torch", "launcher")  # keeps what moves in buffers
_OF_OPTIMIZERS = frozenset(  # torch's own names: kept, or no number of a step
    ("defaults", "state", "param_groups", "step", "found_inf", "grad_scale", "_opt_called", "_step_count")
)
_OF_MODULES = frozenset(vars(nn.Module()))
_DEPTH, _LONGEST, _MOST = 3, 1_000, 20_000  # of what is looked into, and how many things of one attribute


def beside_states(things: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers and tensors that no checkpoint keeps, by name: each as something that is equal while they are."""
    modules = [thing for thing in things.values() if isinstance(thing, nn.Module)]
    kept = {id(tensor) for module in modules for tensor in (*module.parameters(), *module.buffers())}
    return {name: value for key, thing in things.items() for name, value in _attributes_of(key, thing, kept)}


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


def _attributes_of(key: str, root: Any, kept: Container[int]) -> Iterator[tuple[str, Any]]:
    if isinstance(root, Optimizer):
        for name, inner in inner_optimizers(root).items():
            yield from _attributes_of(f"{key}.{name}", inner, kept)
    if isinstance(root, nn.Module):
        for name, module in root.named_modules():
            is_kept = type(module).get_extra_state is not nn.Module.get_extra_state
            if not is_known_code(module) and not is_kept:
                own = {name: value for name, value in vars(module).items() if name not in _OF_MODULES}
                yield from _seen_in(f"{key}.{name}" if name else key, _of_class(type(module)) | own, kept)
    elif is_known_code(root):
        return
    elif isinstance(root, Optimizer):
        if type(root).state_dict is Optimizer.state_dict:
            own = {name: value for name, value in vars(root).items() if name not in _OF_OPTIMIZERS}
            yield from _seen_in(key, _of_class(type(root)) | own, kept)
    elif hasattr(root, "state_dict"):
        return
    elif is_function(root):
        yield from _seen_in(key, _of_function(root), kept)
    else:
        yield from _seen_in(key, _of_class(type(root)) | getattr(root, "__dict__", {}), kept)


def _of_class(kind: type) -> dict[str, Any]:
    """What its classes have for all objects, and what their methods name of their modules."""
    found: dict[str, Any] = {}
    for base in kind.__mro__:
        for name, value in held_by_class(base).items() if is_of_the_project(base) else ():
            found |= _of_function(inspect.unwrap(value)) if is_function(value) else {name: value}
    return {name: value for name, value in found.items() if not (isinstance(value, type) and issubclass(kind, value))}


def _of_function(function: Any) -> dict[str, Any]:
    """What a function names of its module, holds in its closure, and has as defaults, which it may change."""
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    held = {name: cell.cell_contents for name, cell in cells if _is_filled(cell)}
    defaults = {f"{function.__name__}()": value for value in function.__defaults__ or () if _may_change(value)}
    return (globals_of(function) if is_of_the_project(function) else {}) | held | defaults


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


def _may_change(value: Any) -> bool:
    return isinstance(value, list | dict | set | deque | torch.Tensor | np.ndarray)


def _seen_in(key: str, attributes: Mapping[str, Any], kept: Container[int]) -> Iterator[tuple[str, Any]]:
    for name, value in attributes.items():
        if (seen := _Look(kept).at(value, _DEPTH)) is not None:
            yield f"{key}.{name}", seen


class _Look:
    """Makes of a value something that is equal while the value is, as far as it is looked into.

    Args:
        kept: The tensors that a checkpoint has, which steps are meant to change.
    """

    def __init__(self, kept: Container[int] = ()) -> None:
        self._left, self._kept = _MOST, kept

    def at(self, value: Any, depth: int) -> Any:
        """The same of one value; None of what is not looked at."""
        self._left -= 1
        if (
            self._left < 0 or depth < 0 or id(value) in self._kept or isinstance(value, Optimizer)
        ):  # those inside are looked at by themselves
            return None
        if isinstance(value, dict | list | tuple | set | deque):
            return self._in_container(value, depth)
        if (generator := of_generator(value)) is not None:
            state = generator[0]
            words = bytes(state.numpy()) if isinstance(state, torch.Tensor) else repr(state).encode()
            return hashlib.sha256(words).hexdigest()
        if isinstance(value, nn.Module):  # hidden from the model's own, in a list or an object
            return self._all((*value.parameters(), *value.buffers()), depth)
        if is_function(value):
            own = _of_function(value) if is_of_the_project(value) else {}
            return self._all(own.values(), depth) if own else None
        if isinstance(value, type):
            own = held_by_class(value) if is_of_the_project(value) else {}
            return self._all((held for held in own.values() if not is_function(held)), depth)
        if is_of_the_project(type(value)):
            return self._all(getattr(value, "__dict__", {}).values(), depth)
        return print_of(value)

    def _in_container(self, value: Any, depth: int) -> Any:
        if len(value) > _LONGEST:
            return type(value).__name__, len(value)
        if isinstance(value, set):
            return sorted(map(repr, value))
        return len(value), self._all(value.values() if isinstance(value, dict) else value, depth)

    def _all(self, values: Iterable[Any], depth: int) -> list[Any]:
        return [self.at(value, depth - 1) for value in values]
