"""What a recipe calls of the user's own code, said before anything of it is imported: such a recipe is a program."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from launcher.recipe.component import Component, components_in
from launcher.recipe.expressions import Expression
from launcher.recipe.masking import masked
from launcher.recipe.places import Path, dotted
from launcher.recipe.policy import Trust
from launcher.recipe.project import own_code
from launcher.recipe.schema import Recipe
from launcher.recipe.targets import names_own_code
from launcher.text import printable

_WIDTH = 160  # characters of a line, where the next begins


def own_calls(recipe: Recipe) -> Iterator[str]:
    """A line for each piece of own code that a recipe names: where, which, and with what arguments; nothing is cut.

    A long one is several lines, which say of what they are the rest.

    Args:
        recipe: As it was read.
    """
    for root in _roots(recipe):
        for component in root.walk():
            if component.given is None and names_own_code(component.target, _trust(component)):
                yield from _lines(component)


def questions(recipe: Recipe) -> Iterator[str]:
    """What is allowed and looks like a slip, as far as reading shows it."""
    for root in _roots(recipe):
        for component in root.walk():
            items: dict[str, Any] = {"_args_": list(component.args), **component.kwargs}
            for name, value in _texts(items, ()):
                if value == "None":
                    path = (*component.path, *name)
                    where = recipe.document.origin(path)
                    yield f"{where}: {dotted(path)}: 'None' is a word of four letters here; did you mean null?"


def _texts(value: Any, at: Path) -> Iterator[tuple[Path, str]]:
    if isinstance(value, str):
        yield at, value
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _texts(inner, (*at, key))


def _trust(component: Component) -> Trust:
    own, places = own_code(component.folder)
    return Trust(own, places=places)


def _roots(recipe: Recipe) -> Iterator[Component]:
    for name in type(recipe).model_fields:
        section = getattr(recipe, name)
        yield from components_in(dict(section) if hasattr(section, "model_fields_set") else section)


def _lines(component: Component) -> Iterator[str]:
    text = f"{dotted(component.path)}: {component.target}"
    if component.style != "reference":
        named = [f"{name}={_shown(value)}" for name, value in component.kwargs.items()]
        text += f"({', '.join([*map(_shown, component.args), *named])})"
    text = masked(printable(text))
    yield text[:_WIDTH]
    for begin in range(_WIDTH, len(text), _WIDTH):
        yield f"{printable(dotted(component.path))}: … {text[begin : begin + _WIDTH]}"


def _shown(value: Any) -> str:
    if isinstance(value, Component):
        return value.target if value.given is None else "an object"
    if isinstance(value, Expression):
        return value.text
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_shown(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else repr(value)
