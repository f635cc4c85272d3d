"""A recipe as it was written: a tree whose nodes know their place."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from launcher.recipe.places import Key, Origin, Path
from launcher.recipe.scalars import Scalar

if TYPE_CHECKING:
    from launcher.recipe.expressions import Expression


# Far above any recipe, and low enough that the slowest text of this size is read in well under a second.
MAX_BYTES = 64 * 1024
MAX_VALUES = 5_000  # and keys
MAX_DEPTH = 32
TOO_MANY = f"more than {MAX_VALUES:,} keys and values, with the repeated ones; move long lists into a file of their own"


@dataclass(frozen=True, slots=True)
class Node:
    """One value and its place. Never changed, so that aliases and references can share it.

    Attributes:
        value: A scalar, a list or mapping of nodes, or an expression that only the run can evaluate.
        origin: Where the value stands.
        folder: Of the file it stands in; Python files that it names are looked for there.
        key: Where its key stands, for the values of a mapping.
        size: How many keys and values it holds, itself included, shared ones as often as they occur.
        depth: How many levels it has.
    """

    value: Scalar | list[Node] | dict[Key, Node] | Expression
    origin: Origin
    folder: pathlib.Path
    key: Origin | None = None
    size: int = field(init=False)
    depth: int = field(init=False)

    def __post_init__(self) -> None:
        children = [child for _, child in self.items()]
        keys = len(children) if isinstance(self.value, dict) else 0
        object.__setattr__(self, "size", 1 + keys + sum(child.size for child in children))
        object.__setattr__(self, "depth", 1 + max((child.depth for child in children), default=0))

    def items(self) -> Iterable[tuple[Key, Node]]:
        """What is directly below this value, each with its key or index."""
        if isinstance(self.value, dict):
            return self.value.items()
        return enumerate(self.value) if isinstance(self.value, list) else ()

    def with_items(self, items: Iterable[tuple[Key, Node]]) -> Node:
        """This list or mapping with other things in it; any other value as it is."""
        if isinstance(self.value, dict):
            return replace(self, value=dict(items))
        return replace(self, value=[child for _, child in items]) if isinstance(self.value, list) else self

    def find(self, segment: str) -> tuple[Key, Node] | None:
        """The key or index that a segment of a dotted name means here, and what is there, if anything."""
        number = int(segment) if re.fullmatch("[0-9]{1,9}", segment) else -1
        if isinstance(self.value, list) and 0 <= number < len(self.value):
            return number, self.value[number]
        if isinstance(self.value, dict):
            return next(((key, self.value[key]) for key in (segment, number) if key in self.value), None)
        return None

    def plain(self) -> Any:
        """Its value in plain lists and mappings."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        return [child.plain() for child in self.value] if isinstance(self.value, list) else self.value

    def states_component(self) -> bool:
        """Whether this is something to be built: a mapping with `_target_`."""
        return isinstance(self.value, dict) and "_target_" in self.value

    def excess(self) -> str | None:
        """In words what of this is more than a recipe may hold; None if nothing is."""
        if self.size > MAX_VALUES:
            return TOO_MANY
        return f"more than {MAX_DEPTH} levels" if self.depth > MAX_DEPTH else None


@dataclass
class Document:
    """A recipe as read: its values, and where each was set.

    Attributes:
        values: Plain mappings, lists and scalars, with an `Expression` wherever a `${…}` needs what only the
            run knows.
        origins: Of every value, mappings and lists included; `()` is the whole recipe.
        keys: Of every key of a mapping.
        folder: The recipe's own, absolute.
        folders: Of every value: where `my_model.py:Net` is looked for. For a component, the folder of the
            file that says its `_target_`.
        files: The recipe and its bases, in the order they were read.
        text: The recipe file as written.
        env: The environment variables that it used, by name.
        from_env: Of the texts that such a variable is part of.
    """

    values: dict[str, Any]
    origins: dict[Path, Origin]
    keys: dict[Path, Origin]
    folder: pathlib.Path
    folders: dict[Path, pathlib.Path]
    files: tuple[pathlib.Path, ...]
    text: str
    env: dict[str, str]
    from_env: set[Path] = field(default_factory=set)

    def origin(self, path: Path) -> Origin:
        """Where the value of this path was set, or else its nearest ancestor."""
        while path not in self.origins:
            path = path[:-1]
        return self.origins[path]

    def key_origin(self, path: Path) -> Origin:
        """Where the key of this path stands, or else its value."""
        return self.keys.get(path) or self.origin(path)
