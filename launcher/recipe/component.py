"""A component: a `_target_` of the recipe with its arguments, not yet built."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

from launcher.recipe.places import Origin, Path
from launcher.recipe.tree import Document

GIVEN = "given from Python"


@dataclass(frozen=True, eq=False)
class Component:
    """What to call and with what; `launcher.recipe.components` builds it.

    Attributes:
        target: `AdamW`, `torch.nn.Linear`, `my_model.py:Net`.
        args: Positional arguments (`_args_`); nested components stand in place.
        kwargs: Arguments by name.
        options: Keys of ours beside the arguments, such as `_warmup_` and `_per_`.
        style: `call` the target, bind it as a `partial`, or pass the thing itself (`reference`).
        path: Where in the recipe it stands.
        origin: Where in the file it stands.
        folder: Where `my_model.py:Net` is looked for.
        given: The object itself, where Python handed one in place of the section.
    """

    target: str
    path: Path
    origin: Origin
    folder: FilePath
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    style: str = "call"
    given: Any = None

    def children(self) -> Iterator[Component]:
        """The components among the arguments and options, at any depth of lists and mappings."""
        yield from components_in([*self.args, *self.kwargs.values(), *self.options.values()])

    def walk(self) -> Iterator[Component]:
        """This component and everything below it."""
        yield self
        for child in self.children():
            yield from child.walk()


def components_in(value: Any) -> Iterator[Component]:
    """The components that stand in a value, not those inside them."""
    if isinstance(value, Component):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from components_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from components_in(item)


def with_components(value: Any, document: Document, functions: Container[Path] = (), path: Path = ()) -> Any:
    """The same tree, with every mapping in it that states `_target_` or `_ref_` made a `Component`.

    Args:
        value: What stands at `path`.
        document: Knows where it was set.
        functions: Paths where, and below which by a name, `my_task.py:step` is short for `{_ref_: my_task.py:step}`.
        path: The place of `value`.
    """
    if isinstance(value, dict):
        is_component = bool(path) and ("_target_" in value or "_ref_" in value)
        inner = () if is_component else functions  # arguments are what they are
        items = {key: with_components(item, document, inner, (*path, key)) for key, item in value.items()}
        return _component(items, document, path) if is_component else items
    if isinstance(value, list):
        return [with_components(item, document, functions, (*path, index)) for index, item in enumerate(value)]
    if isinstance(value, str) and (path in functions or path[:-1] in functions) and _names_function(value):
        return _component({"_ref_": value}, document, path)
    return value


def _names_function(text: str) -> bool:
    """Whether a text is the full name of something: `my_task.py:step`, `torch.nn.functional.nll_loss`."""
    is_dotted = "." in text and all(part.isidentifier() for part in text.split("."))
    return ".py:" in text or (is_dotted and not text.endswith(".npy"))  # which is a file of data.weights


def _component(items: dict[str, Any], document: Document, path: Path) -> Component:
    style = "reference" if "_ref_" in items else "partial" if items.get("_partial_") is True else "call"
    target = items.pop("_ref_" if style == "reference" else "_target_")
    args = items.pop("_args_") if isinstance(items.get("_args_"), list) else []
    if isinstance(items.get("_partial_"), bool):
        del items["_partial_"]
    folder = document.folder
    for end in range(len(path), -1, -1):
        if path[:end] in document.folders:
            folder = document.folders[path[:end]]
            break
    # what is malformed here (a target that is not text, `_args_` that is not a list) stays, and `shapes` reports it
    ours = {key for key in items if isinstance(key, str) and key.startswith("_") and key.endswith("_")}
    return Component(
        target=target,
        path=path,
        origin=document.origin(path),
        folder=folder,
        args=tuple(args),
        kwargs={str(key): value for key, value in items.items() if key not in ours},
        options={key: value for key, value in items.items() if key in ours},
        style=style,
    )
