"""The whole recipe language as one page of Markdown: `launcher explain --all`, which is docs/agents.md."""

from __future__ import annotations

import importlib
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path

from launcher.recipe.keys import KeyText, all_keys
from launcher.recipe.shipped import shipped

_TEMPLATE = Path(__file__).with_name("language.md.jinja")
_SHIPPED = {"Data sets": "launcher.datasets", "Models": "launcher.models"}


def whole_language(commands: Mapping[str, str]) -> str:
    """The page.

    Args:
        commands: What each command does, by its name.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False)
    page = environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        sections=list(_sections()), shipped=list(shipped_components().items()), commands=list(commands.items())
    )
    return page.rstrip("\n") + "\n"


def shipped_components() -> dict[str, list[str]]:
    """The lines of what comes with the package, by kind."""
    listed = {title: list(_components(module)) for title, module in _SHIPPED.items()}
    listed["Recipes, for `launcher copy NAME`"] = [f"`{name}`: {summary}" for name, summary in shipped().items()]
    return listed


def shipped_component(name: str) -> str | None:
    """The whole text of one of them, by its name or its path; None where there is none of it."""
    module, _, known = name.rpartition(".")
    home = shipped_names().get(known)
    if home is None or module not in ("", home):
        return None
    thing = getattr(importlib.import_module(home), known)
    return f"{home}.{known}({_arguments(thing)})\n{textwrap.indent(inspect.getdoc(thing) or '', '  ')}"


def shipped_names() -> dict[str, str]:
    """The data sets and models that come with the package, each with the module that it is named in."""
    return {name: module for module in _SHIPPED.values() for name in importlib.import_module(module).__all__}


def _sections() -> Iterator[tuple[KeyText, list[KeyText]]]:
    keys = all_keys()
    for section in keys.values():
        if "." not in section.key:
            inner = [entry for entry in keys.values() if entry.key.startswith(f"{section.key}.")]
            yield section, [entry for entry in inner if entry.kind != "section"]


def _components(module: str) -> Iterator[str]:
    """Each with its arguments and the first sentence of its text."""
    package = importlib.import_module(module)
    for name in package.__all__:
        thing = getattr(package, name)
        text = (inspect.getdoc(thing) or "").partition("\n\n")[0].replace("\n", " ")
        yield f"`{module}.{name}({_arguments(thing)})`: {text}"


def _arguments(thing: object) -> str:
    """Its arguments with their defaults, without their types."""
    parameters = inspect.signature(thing).parameters.values()  # type: ignore[arg-type]  # a class, or a function
    return ", ".join(
        parameter.name if parameter.default is parameter.empty else f"{parameter.name}={parameter.default!r}"
        for parameter in parameters
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    )
