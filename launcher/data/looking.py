"""Looking at a stream before it is trained on, so that nothing of it is lost.

What is looked at is a copy. A stream that holds a generator, an open file, a socket or a lock cannot be copied: it is
opened once, and what was read of it is kept for whoever reads it in earnest.
"""

from __future__ import annotations

import copy
import itertools
import sys
import types
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from launcher.data.epochs import held_by

_DEPTH = 8  # of streams inside of streams
_MOST_THINGS = 1000
_HERE = str(Path(__file__).parents[1])


def copy_of(stream: Any) -> Any | None:
    """A copy to look at, with a place and generators of its own; None where it cannot be copied: a socket, a file."""
    modules = {id(module): module for module in list(sys.modules.values())}  # `self.rng = random`: they stay themselves
    if _shares_a_place(stream):
        return None
    try:
        return copy.deepcopy(stream, modules)
    except Exception:
        return None


def _shares_a_place(stream: Any) -> bool:
    """Whether a copy would read from the same iterator or file: one that a function holds, a class or a module."""
    seen, waiting = {id(stream)}, [stream]
    while waiting and len(seen) < _MOST_THINGS:
        thing = waiting.pop()
        shared = list(_shared_by(thing))
        if any(hasattr(type(part), name) for part in shared for name in ("__next__", "recv", "read")):
            return True
        new = [part for part in (*held_by(thing), *shared) if id(part) not in seen and not isinstance(part, type)]
        seen |= set(map(id, new))
        waiting += new
    return False


def _shared_by(thing: Any) -> Iterator[Any]:
    """What a thing has in common with its copy: functions and bound methods of C are copied as themselves."""
    if isinstance(thing, types.FunctionType):
        yield from _seen_by(thing)
    elif isinstance(thing, types.BuiltinFunctionType):
        yield from () if isinstance(thing.__self__, types.ModuleType) else (thing.__self__,)
    elif hasattr(thing, "__dict__") and not isinstance(thing, types.ModuleType | type):
        for value in (value for cls in type(thing).__mro__ for value in vars(cls).values()):
            yield from _seen_by(value) if isinstance(value, types.FunctionType) else (value,)


def _seen_by(function: types.FunctionType) -> Iterator[Any]:
    """What a function of the user's own looks at outside of itself."""
    file = function.__code__.co_filename
    if "site-packages" in file or file.startswith((sys.base_prefix, _HERE)):
        return
    own = function.__globals__
    yield from (own[name] for name in function.__code__.co_names if name in own)
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # empty
            yield cell.cell_contents


def light_copy(stream: Any, depth: int = _DEPTH) -> Any:
    """One that shares the samples, whose attributes and lists may be changed; the stream itself where there is none.

    For `shard` and `skip`, some of which change the stream that they are asked of. To read it takes a copy.
    """
    try:
        made = copy.copy(stream)
        for name, value in dict(vars(made)).items() if depth else ():
            if type(value) in (list, dict, set):
                setattr(made, name, copy.copy(value))
            elif hasattr(type(value), "__iter__") and hasattr(value, "__dict__"):
                setattr(made, name, light_copy(value, depth - 1))
    except Exception:
        return stream
    return made


class Ahead:
    """A stream that was opened before it is read in earnest: its first pass begins with what was looked at.

    Args:
        stream: One that cannot be copied.
    """

    def __init__(self, stream: Any):
        self.stream = stream
        self._seen: list[Any] = []
        self._rest: Iterator[Any] | None = None

    @property
    def is_open(self) -> bool:
        """Whether somebody has looked, and nobody has read it since."""
        return self._rest is not None

    def looked_at(self) -> Iterator[Any]:
        """The samples of the pass that comes next, each read once and kept for it."""
        if self._rest is None:
            self._rest = iter(self.stream)
        for number in itertools.count():
            if number == len(self._seen):
                try:
                    self._seen.append(next(self._rest))
                except StopIteration:
                    return
            yield self._seen[number]

    def __iter__(self) -> Iterator[Any]:
        if self._rest is None:
            return iter(self.stream)
        seen, rest = self._seen, self._rest
        self._seen, self._rest = [], None
        return itertools.chain(seen, rest)


class Looking:
    """What looks at such a stream.

    Args:
        ahead: The stream.
    """

    def __init__(self, ahead: Ahead):
        self._ahead = ahead
        self.stream = ahead.stream

    @property
    def is_open(self) -> bool:
        """Whether it is open already."""
        return self._ahead.is_open

    def __len__(self) -> int:
        return len(self.stream)

    def __iter__(self) -> Iterator[Any]:
        return self._ahead.looked_at()
