"""The resolved recipe: every value, where it came from, as YAML that reads back to the same recipe."""

from __future__ import annotations

import functools
import inspect
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from pydantic import BaseModel

from launcher.recipe.component import GIVEN, Component
from launcher.recipe.duration import Duration
from launcher.recipe.expressions import Expression
from launcher.recipe.places import Path
from launcher.recipe.scalars import plain_scalar
from launcher.recipe.schema import Recipe
from launcher.recipe.tree import Document, Node

_BARE = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*(?::[A-Za-z_]\w*)?")
_OTHER_YAML = {"yes", "no", "on", "off", "y", "n"}  # booleans to readers of YAML 1.1
_WIDEST = 60  # origins stand in a column of their own, but not further to the right


@dataclass(frozen=True)
class Line:
    """One line of a resolved recipe.

    Attributes:
        indent: Spaces and dashes before it.
        key: With its colon, or a dash; empty for an item of a list.
        value: As YAML; empty where what it holds stands on the lines below.
        origin: Where the value was set, `default`, or empty.
    """

    indent: str
    key: str
    value: str
    origin: str

    @property
    def text(self) -> str:
        """What YAML reads of it."""
        return self.indent + " ".join(part for part in (self.key, self.value) if part)


def resolved(recipe: Recipe) -> dict[str, Any]:
    """The recipe as nested values, defaults included, as they are written in YAML; `base` is merged in and gone."""
    tree = {name: _written(value, recipe.document) for name, value in _items(recipe) if name != "base"}
    if recipe.device.sharding != "none":
        _follow_sharding(tree, recipe)
    return {name: value for name, value in tree.items() if value is not None and value != {}}


def _follow_sharding(tree: dict[str, Any], recipe: Recipe) -> None:
    """Defaults that a sharded model does without are what happens in their place: written out they would be refused."""
    stated = recipe.device.ddp.model_fields_set
    tree["device"]["ddp"] = {name: value for name, value in tree["device"].get("ddp", {}).items() if name in stated}
    if not tree["device"]["ddp"]:
        del tree["device"]["ddp"]
    tree["evaluate"]["ranks"] = "all"


def render(recipe: Recipe) -> str:
    """The resolved recipe as YAML, each value followed by where it was set."""
    shown = lines(recipe)
    width = column_of_origins(shown)
    return "".join(f"{f'{line.text:<{width}}  # {line.origin}' if line.origin else line.text}\n" for line in shown)


def lines(recipe: Recipe) -> list[Line]:
    """The resolved recipe, line by line."""
    return list(_lines(resolved(recipe), (), recipe.document))


def column_of_origins(shown: list[Line]) -> int:
    """Where the column of origins begins."""
    return min(_WIDEST, max((len(line.text) for line in shown), default=0))


def values_of(tree: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """The values of a resolved recipe, one by one; empty lists and mappings are values too."""
    if isinstance(tree, Mapping | list) and tree:
        for key, item in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
            yield from values_of(item, (*path, key))
    else:
        yield path, tree


def nodes_of(node: Node, path: Path = ()) -> Iterator[tuple[Path, Node]]:
    """The same of a recipe as it was read, each value with its place."""
    children = list(node.items())
    for key, child in children:
        yield from nodes_of(child, (*path, key))
    if not children:
        yield path, node


# ---------------------------------------------------------------------- from objects to what YAML says


def _items(model: BaseModel) -> Iterator[tuple[str, Any]]:
    for name in type(model).model_fields:
        yield name, getattr(model, name)
    for name, value in (model.__pydantic_extra__ or {}).items():
        yield name, {} if value is None else value  # `track: {wandb: null}` is a tracker without settings


def _written(value: Any, document: Document) -> Any:
    if isinstance(value, Component):
        return _component(value, document)
    if isinstance(value, BaseModel):
        return {name: _written(item, document) for name, item in _items(value) if item is not None}
    if isinstance(value, Duration | Expression):
        return value.text
    if isinstance(value, Mapping):
        return {key: _written(item, document) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_written(item, document) for item in value]
    return value.replace("${", "$${") if isinstance(value, str) else value


def given_as(thing: Any) -> str:
    """What an object from Python is called: by its own name where it has one, else by its class."""
    while isinstance(thing, functools.partial):
        thing = thing.func
    named = thing if isinstance(thing, type) or inspect.isroutine(thing) else type(thing)
    return f"{GIVEN}: {named.__name__}"


def _component(component: Component, document: Document) -> Any:
    if component.given is not None:
        return given_as(component.given)
    target = _target(component, document)
    if component.style == "reference":
        return {"_ref_": target}
    items: dict[str, Any] = {"_target_": target}
    if component.args:
        items["_args_"] = [_written(item, document) for item in component.args]
    items.update({key: _written(item, document) for key, item in component.kwargs.items()})
    items.update({key: _written(item, document) for key, item in component.options.items()})
    if component.style == "partial":
        items["_partial_"] = True
    return items


def _target(component: Component, document: Document) -> str:
    """The target; a file that a base names beside itself is named from the recipe's folder."""
    file, colon, name = component.target.rpartition(":")
    beside = component.folder / file
    if not colon or component.folder == document.folder or not beside.is_file():
        return component.target
    return f"{FilePath(os.path.relpath(beside, document.folder)).as_posix()}:{name}"


# ---------------------------------------------------------------------- to text


def _lines(tree: Any, path: Path, document: Document, indent: str = "") -> Iterator[Line]:
    items = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
    for key, item in items:
        here: Path = (*path, key)
        label = f"{scalar(key)}:" if isinstance(tree, Mapping) else "-"
        if isinstance(item, Mapping | list) and item and not _is_short(item):
            yield Line(indent, label, "", "")
            yield from _lines(item, here, document, f"{indent}  ")
        else:
            yield Line(indent, label, _flow(item), _origin(here, item, document))


def _is_short(item: Any) -> bool:
    """Whether a list is written on one line: numbers, or a few words."""
    plain = isinstance(item, list) and not any(isinstance(entry, Mapping | list) for entry in item)
    return plain and len(_flow(item)) <= 40


def _flow(item: Any) -> str:
    if isinstance(item, list) and item:
        return f"[{', '.join(_in_brackets(entry) for entry in item)}]"
    return scalar(item)


def _in_brackets(value: Any) -> str:
    """A word with a colon, and a reference, are put in quotes in brackets."""
    text = scalar(value)
    return quoted(value) if isinstance(value, str) and re.search(r"[:{}\[\],]", text) else text


def _origin(path: Path, item: Any, document: Document) -> str:
    origin = document.origins.get(path)
    if origin is None:
        return "default"
    inner = [document.origins.get((*path, index)) for index in range(len(item))] if isinstance(item, list) else []
    changed = [
        str(inner_origin) for inner_origin in inner if inner_origin is not None and inner_origin.source != origin.source
    ]
    return ", ".join(dict.fromkeys([str(origin), *changed]))


def scalar(value: Any) -> str:
    """One value as YAML 1.2 reads it back."""
    if isinstance(value, str):
        bare = _BARE.fullmatch(value) and plain_scalar(value) == value and value.lower() not in _OTHER_YAML
        return value if bare else quoted(value)
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else (".inf" if value > 0 else "-.inf")
    if isinstance(value, Mapping | list) or value is None or isinstance(value, bool):
        return json.dumps(value)
    return repr(value)


def quoted(text: str) -> str:
    """A text in double quotes, with escapes for what is not printable."""
    return "".join(
        character if character.isprintable() else _escape(character)
        for character in json.dumps(text, ensure_ascii=False)
    )


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
