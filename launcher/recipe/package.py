"""A package that can be called: `launcher.runs()`, `launcher.sweep()`."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


class _Called(ModuleType):
    """Is to `help()`, `inspect.signature` and a notebook's `?` what the function is that it calls."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return _functions[self.__name__](*arguments, **options)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(_functions[self.__name__])

    @property
    def __doc__(self) -> str:  # type: ignore[override]  # a module's is an attribute
        function = _functions[self.__name__]
        head = inspect.getdoc(function) or ""
        first, _, rest = head.partition("\n")
        return f"{first}\n\n{function.__name__}{self.__signature__}\n{rest}"


_functions: dict[str, Callable[..., Any]] = {}


def make_callable(package: str, function: Callable[..., Any]) -> None:
    """Lets a package be called as one of its functions."""
    _functions[package] = function
    sys.modules[package].__class__ = _Called
