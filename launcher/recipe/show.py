"""The resolved recipe: every value, where it came from, as YAML that reads back to the same recipe."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from launcher.recipe.component import GIVEN, Component
from launcher.recipe.document import Document, Path
from launcher.recipe.duration import Duration
from launcher.recipe.references import Expression
from launcher.recipe.schema import Recipe

_BARE = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*(?::[A-Za-z_]\w*)?")
_WORDS = {"true", "false", "null", "~"}


def resolved(recipe: Recipe) -> dict[str, Any]:
    """The recipe as nested plain values, defaults included; `base` is merged in and gone."""
    tree = {name: _plain(value) for name, value in _items(recipe) if name != "base"}
    return {name: value for name, value in tree.items() if value is not None and value != {}}


def render(recipe: Recipe) -> str:
    """The resolved recipe as YAML, each value followed by where it was said."""
    lines = list(_lines(resolved(recipe), (), recipe.document))
    width = min(60, max((len(text) for text, _ in lines), default=0))
    return "".join(f"{text:<{width}}  # {origin}\n" if origin else f"{text}\n" for text, origin in lines)


def _items(model: BaseModel) -> Iterator[tuple[str, Any]]:
    for name in type(model).model_fields:
        yield name, getattr(model, name)
    yield from (model.__pydantic_extra__ or {}).items()


def _plain(value: Any) -> Any:
    if isinstance(value, Component):
        return _component(value)
    if isinstance(value, BaseModel):
        return {name: _plain(item) for name, item in _items(value) if item is not None}
    if isinstance(value, Duration):
        return value.text
    if isinstance(value, Expression):
        return value.text
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _component(component: Component) -> Any:
    if component.given is not None:
        return f"{GIVEN}: {type(component.given).__name__}"
    if component.style == "reference":
        return {"_ref_": component.target}
    items: dict[str, Any] = {"_target_": component.target}
    if component.args:
        items["_args_"] = [_plain(item) for item in component.args]
    items.update({key: _plain(item) for key, item in component.kwargs.items()})
    items.update({key: _plain(item) for key, item in component.options.items()})
    if component.style == "partial":
        items["_partial_"] = True
    return items


def _lines(value: Any, path: Path, document: Document) -> Iterator[tuple[str, str]]:
    indent = "  " * len(path)
    items = value.items() if isinstance(value, Mapping) else enumerate(value)
    for key, item in items:
        here: Path = (*path, key)
        label = f"{indent}{scalar(key)}:" if isinstance(value, Mapping) else f"{indent}-"
        if isinstance(item, Mapping | list) and item:
            yield label, ""
            yield from _lines(item, here, document)
        else:
            origin = document.origins.get(here)
            yield f"{label} {scalar(item)}", str(origin) if origin else "default"


def scalar(value: Any) -> str:
    """One value as YAML 1.2 reads it back."""
    if isinstance(value, str):
        bare = _BARE.fullmatch(value) and value.lower() not in _WORDS
        return value if bare else json.dumps(value, ensure_ascii=False)
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else (".inf" if value > 0 else "-.inf")
    if isinstance(value, Mapping | list) or value is None or isinstance(value, bool):
        return json.dumps(value)
    return repr(value)
