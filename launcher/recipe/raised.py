"""Exceptions as Python itself keeps them: their classes are anybody's code, and may say of themselves anything."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from launcher.text import words_of


def _kept(error: BaseException, name: str, owner: type = BaseException) -> Any:
    """An attribute that every exception has, whatever its class has put before it."""
    return vars(owner)[name].__get__(error)


def is_a(error: BaseException, *kinds: type[BaseException]) -> bool:
    """What `except` would say, and not `isinstance`, which asks the exception."""
    return issubclass(type(error), kinds)


def kind_of(error: BaseException) -> str:
    """The name of its class."""
    return str(vars(type)["__name__"].__get__(type(error)))


def cause_of(error: BaseException) -> BaseException | None:
    """What it was raised from, by `raise … from`."""
    cause: BaseException | None = _kept(error, "__cause__")
    return cause


def context_of(error: BaseException) -> BaseException | None:
    """What was being handled when it was raised."""
    context: BaseException | None = _kept(error, "__context__")
    return context


def trace_of(error: BaseException) -> TracebackType | None:
    """Where it was raised."""
    trace: TracebackType | None = _kept(error, "__traceback__")
    return trace


def members_of(error: BaseException) -> tuple[BaseException, ...]:
    """Those of a group; of anything else none, though it may have an attribute of that name."""
    members: tuple[BaseException, ...] = ()
    if is_a(error, BaseExceptionGroup):
        members = _kept(error, "exceptions", BaseExceptionGroup)
    return members


def chain_of(error: BaseException) -> Iterator[BaseException]:
    """An error, what caused it, and so on, each once: some go round in a circle."""
    known: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in known:
        yield link
        known.add(id(link))
        link = cause_of(link) or context_of(link)


def last_lines(error: BaseException) -> str:
    """What Python prints of it below the traceback; its class and words where its class does not let that be made."""
    try:
        return "".join(traceback.format_exception_only(error)).strip()
    except BaseException:
        return f"{kind_of(error)}: {words_of(error)}"


def all_lines(error: BaseException) -> str:
    """The same with its traceback, and with those that it was raised from."""
    try:
        return "".join(traceback.format_exception(error))
    except BaseException:
        lines = ["Traceback (most recent call last):\n", *traceback.format_tb(trace_of(error))]
        return "".join([*lines, last_lines(error), "\n"])
