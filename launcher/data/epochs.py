"""Telling data sets, samplers and collates which epoch is read: `set_epoch`, wherever it stands.

A script tells them before each epoch. Here whoever reads does, before the first batch of an epoch: the training
process or each worker, whose data set is a copy of its own.
"""

from __future__ import annotations

import functools
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

_MOST_ITEMS = 4096  # of a list: longer ones hold samples
_MOST_THINGS = 20_000  # looked at in all
_NEVER = (torch.Tensor, np.ndarray, torch.nn.Module, type, types.ModuleType, types.FunctionType, str, bytes)


def listeners(*roots: Any) -> list[Any]:
    """What has a `set_epoch` of its own among data sets and collates, and in what they hold.

    What stands inside of one is left to it: whoever writes a `set_epoch` passes the number on, or does not.
    """
    return _having("set_epoch", roots)


def methods_of(name: str, *roots: Any) -> list[Callable[..., Any]]:
    """Their methods of a name, as `listeners` finds them."""
    return [getattr(thing, name) for thing in _having(name, roots)]


def _having(name: str, roots: Iterable[Any]) -> list[Any]:
    matches: list[Any] = []
    seen: set[int] = set()
    waiting = deque(roots)
    while waiting and len(seen) < _MOST_THINGS:
        thing = waiting.popleft()
        if thing is None or isinstance(thing, _NEVER) or id(thing) in seen:
            continue
        seen.add(id(thing))
        if _method(thing, name) is not None:
            matches.append(thing)
        else:
            waiting.extend(held_by(thing))
    return matches


def _method(thing: Any, name: str) -> Callable[..., Any] | None:
    try:
        attribute = getattr(thing, name, None)
    except Exception:  # a __getattr__ of somebody's
        return None
    return attribute if callable(attribute) else None


def held_by(thing: Any) -> Iterator[Any]:
    """What a data set or a collate may be made of: parts, members, transforms, bound arguments."""
    if isinstance(thing, list | tuple | Mapping):
        if len(thing) <= _MOST_ITEMS:
            yield from thing.values() if isinstance(thing, Mapping) else thing
    elif isinstance(thing, functools.partial):
        yield from (thing.func, *thing.args, *thing.keywords.values())
    elif isinstance(thing, types.MethodType):
        yield thing.__self__
    elif callable(thing) or hasattr(type(thing), "__getitem__") or hasattr(type(thing), "__iter__"):
        yield from getattr(thing, "__dict__", {}).values()


class Announcer:
    """Tells them an epoch once, and again where somebody else has told them another meanwhile.

    Args:
        *roots: Data set and collate.
    """

    _last: int | None = None  # of all announcers in this process: evaluating may tell the set that is trained on

    def __init__(self, *roots: Any):
        self._roots = roots
        self._listeners: list[Any] | None = None  # looked for by whoever reads
        self._epoch: int | None = None

    def tell(self, epoch: int) -> None:
        """This epoch is read from now on."""
        if self._listeners is None:
            self._listeners = listeners(*self._roots)
        if not self._listeners or (self._epoch == epoch and Announcer._last == id(self)):
            return
        for listener in self._listeners:
            listener.set_epoch(epoch)
        self._epoch, Announcer._last = epoch, id(self)
