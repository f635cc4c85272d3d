"""The user's own files as they were imported: Python imports each once, and a kernel lives longer than that."""

from __future__ import annotations

import hashlib
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launcher.errors import LauncherError
from launcher.recipe.directory import shortest
from launcher.recipe.policy import Trust

_seen: dict[str, tuple[Any, str]] = {}  # of each own module, the import it is of, and what its file held then


def check_unchanged(module: types.ModuleType, trust: Trust) -> None:
    """Refuses a file of the user's, or one that it imports, that holds something else than when it was first seen here.

    What was reloaded since (`importlib.reload`, IPython's autoreload) is what it is now.

    Raises:
        LauncherError: One does; imported again, its classes would be others than those that are in use.
    """
    for own in _own_modules(module, trust, {}):
        try:
            content = hashlib.sha256(Path(str(own.__file__)).read_bytes()).hexdigest()
        except OSError:  # it is gone, and what it held is here
            continue
        imported, was = _seen.get(own.__name__, (None, ""))
        if imported is not own.__spec__:
            _seen[own.__name__] = own.__spec__, content
        elif was != content:
            file = shortest(str(own.__file__))
            raise LauncherError(f"{file} has changed since it was imported: restart the kernel, or reload the module")


def _own_modules(
    module: types.ModuleType, trust: Trust, known: dict[str, types.ModuleType]
) -> Iterator[types.ModuleType]:
    """A module, if it is the user's own, and those of theirs whose names it has."""
    known[module.__name__] = module
    if not trust.owns(getattr(module, "__file__", None)):
        return
    yield module
    for value in list(vars(module).values()):
        other = value if isinstance(value, types.ModuleType) else sys.modules.get(_home(value))
        if other is not None and other.__name__ not in known:
            yield from _own_modules(other, trust, known)


def _home(value: Any) -> str:
    """The module of a class or function; nothing else is asked for its own."""
    return str(value.__module__) if isinstance(value, type | types.FunctionType) else ""
