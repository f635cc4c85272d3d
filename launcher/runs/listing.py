"""`launcher.runs()`: the package of that name can be called, as the function in `launcher.api`."""

from __future__ import annotations

from types import ModuleType
from typing import Any


class Listing(ModuleType):
    """A module that can be called."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """See `launcher.api.runs`."""
        from launcher.api import runs

        return runs(*arguments, **options)
