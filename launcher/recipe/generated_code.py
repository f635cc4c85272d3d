"""Names of layers where Python is written of them: torch.fx puts them into source unescaped, and runs it.

`getattr(self, "NAME")` is what torch.export, torch.compile and feature extraction make of a layer whose name is no
identifier, and a name may come from a recipe, by way of `nn.ModuleDict({name: … for name in heads})`. Everywhere else
any name that torch takes is fine.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from launcher.errors import LauncherError
from launcher.internals import names_within
from launcher.text import brief

if TYPE_CHECKING:
    from torch import nn

# letters, digits and separators: nothing that ends a text in quotes, begins an escape, or calls
_SAFE = re.compile(r"[\w .:,/+=@~^|<>-]*")


def check_names(module: nn.Module) -> None:
    """Refuses a module whose names could be more than names in source that is written of them.

    Args:
        module: Its own names, and those of all layers, parameters and buffers in it.

    Raises:
        LauncherError: A name holds a quote, a backslash or what is not printable.
    """
    for name in _names(module):
        if _SAFE.fullmatch(name) is None or not name.isprintable():
            raise LauncherError(
                f"{type(module).__name__}: '{brief(name)}' is a layer's name, of which torch writes Python source; "
                "rename it in letters, digits, '_' and '-'"
            )


def _names(module: nn.Module) -> Iterator[str]:
    for inner in module.modules():  # not named_modules, which passes over what occurs twice
        yield from names_within(inner)


def check_arguments(kwargs: Mapping[str, Any], values: Any) -> None:
    """Refuses names of a model's arguments that are no parameters, and keys that are no plain text.

    Args:
        kwargs: What the model is called with by name.
        values: Arguments and results: mappings in them are rebuilt by the source.

    Raises:
        LauncherError: A name is not an identifier, or a key could be more than a text.
    """
    for name in kwargs:
        if not name.isidentifier() or keyword.iskeyword(name):
            raise LauncherError(
                f"batch.inputs: '{brief(name)}' is not a name of an argument; use letters, digits and '_'"
            )
    for key in _keys(values):
        if _SAFE.fullmatch(key) is None:
            raise LauncherError(
                f"'{brief(key)}' is a key of the model's, of which torch writes Python source; rename it"
            )


def _keys(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        yield from (key for key in value if isinstance(key, str))
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    for item in items:
        yield from _keys(item)
