"""Values that are made of others: dates, named tuples, enumerations, iterators that know their place.

A checkpoint has of each what makes it, and of what. That is one of the few makers below, or a class of values that is
loaded: no file has anything else called.
"""

from __future__ import annotations

import array
import datetime
import decimal
import fractions
import itertools
import sys
from collections.abc import Callable, Iterator
from enum import Enum, Flag
from functools import partial
from types import GeneratorType
from typing import Any, NamedTuple

import numpy as np

_MAKERS: dict[str, Callable[..., Any]] = {
    f"{maker.__module__}.{maker.__qualname__}": maker
    for maker in (
        *(bytearray, frozenset, range, slice, iter, enumerate, reversed, zip),
        *(itertools.chain, itertools.count, itertools.cycle, itertools.islice, itertools.repeat),
        *(datetime.date, datetime.time, datetime.datetime, datetime.timedelta, datetime.timezone),
        *(decimal.Decimal, fractions.Fraction, array.array),
    )
}
_MAKERS["functools.partial"] = lambda function, args, keywords: partial(function, *args, **dict(keywords))
_KINDS = frozenset(maker for maker in _MAKERS.values() if isinstance(maker, type))
_BASES = (int, float, complex, str, bytes, tuple, frozenset)
_CHANGE = (bytearray, array.array)  # in place
_OF = {"builtins.bytearray": bytes, "builtins.frozenset": tuple}  # a file could make them of what has no end


class Apart(NamedTuple):
    """A value taken apart.

    Attributes:
        by: The name of what makes it.
        of: Of what.
        place: Where an iterator stands in it; None of anything else.
    """

    by: str
    of: tuple[Any, ...]
    place: Any = None


def taken_apart(value: Any) -> Apart | None:
    """What makes a value, and of what; None of what is no value, or cannot be taken apart."""
    kind = type(value)
    if isinstance(value, Enum):
        return Apart(name_of_class(kind), (value.value if isinstance(value, Flag) else value.name,))
    if isinstance(value, bytearray | frozenset):
        return Apart(name_of_class(kind), (bytes(value) if isinstance(value, bytearray) else tuple(value),))
    if kind is array.array:
        return Apart(name_of_class(kind), (value.typecode, value.tolist()))
    if (base := next((base for base in _BASES if isinstance(value, base) and kind is not base), None)) is not None:
        if isinstance(value, np.generic):
            return None
        return Apart(name_of_class(kind), (*tuple.__iter__(value),) if base is tuple else (base(value),))
    if kind is partial:
        return Apart("functools.partial", (value.func, value.args, tuple(value.keywords.items())))
    if kind in _KINDS or is_iterator(value):
        return _reduced(value)
    return None


def is_iterator(value: Any) -> bool:
    """Whether it is one of Python's own iterators, a generator among them."""
    return isinstance(value, Iterator) and type(value).__module__ in ("builtins", "itertools")


def _reduced(value: Any) -> Apart | None:
    try:
        maker, of, *place = value.__reduce__()
    except (TypeError, ValueError):  # a generator, or a Python that no longer does this
        return None
    by = f"{maker.__module__}.{maker.__qualname__}"
    return Apart(by, of, place[0] if place else None) if by in _MAKERS else None


def put_together(apart: Apart, now: Any = None) -> Any:
    """The value again; what others may hold too, and can be changed in place, is.

    Raises:
        ValueError: Nothing makes it here.
    """
    value = _made(apart)
    if type(value) in _CHANGE and type(now) is type(value):
        now[:] = value
        return now
    return value


def _made(apart: Apart) -> Any:
    if (maker := _MAKERS.get(apart.by)) is not None:
        if not all(isinstance(part, _OF.get(apart.by, object)) for part in apart.of):
            raise ValueError(f"{apart.by} is not made of that")
        value = maker(*apart.of)
        if apart.place is not None:
            value.__setstate__(apart.place)
        return value
    kind = _loaded(apart.by)
    if issubclass(kind, Flag):
        return kind(*apart.of)
    if issubclass(kind, Enum):
        return kind[str(apart.of[0])]
    base: Any = next((base for base in _BASES if issubclass(kind, base)), None)
    if base is None:
        raise ValueError(f"{apart.by} is no class of values")
    return base.__new__(kind, apart.of if base is tuple else apart.of[0])


def _loaded(name: str) -> type[Any]:
    """A class that is here already, by its name.

    Raises:
        ValueError: There is none.
    """
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        found: Any = sys.modules.get(".".join(parts[:length]))
        for part in parts[length:]:
            found = getattr(found, part, None)
        if isinstance(found, type):
            return found
    raise ValueError(f"no class {name} is loaded")


def as_it_stands(value: Any) -> Any:
    """Another iterator that stands where this one does, of which nothing else knows; the value itself of others."""
    if isinstance(value, GeneratorType) or not is_iterator(value):
        return value
    apart = _reduced(value)
    if apart is None:
        return value
    place = apart.place
    if isinstance(place, tuple):  # of a cycle, what it will repeat, to which it adds
        place = tuple([*part] if isinstance(part, list) else as_it_stands(part) for part in place)
    return _made(Apart(apart.by, tuple(map(as_it_stands, apart.of)), place))


def name_of_class(kind: type[Any]) -> str:
    """By which it is found again."""
    return f"{kind.__module__}.{kind.__qualname__}"
