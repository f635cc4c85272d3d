"""`launcher.runs()`: the package of that name can be called, as `launcher.runs.naming.runs`."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Listing(ModuleType):
    def __call__(self, *arguments: Any, **options: Any) -> Any:
        from launcher.runs.naming import runs

        return runs(*arguments, **options)


sys.modules["launcher.runs"].__class__ = _Listing
