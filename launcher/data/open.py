"""Opening the recipe's data sets: prepared once on each machine, built on each process, and looked over."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from launcher.data.preparation import prepare
from launcher.recipe import schema
from launcher.recipe.build import Builder
from launcher.recipe.component import Component, components_in
from launcher.recipe.signature import parameters_of

SLOW_SECONDS = 20.0  # a data set that takes longer to build on every process is spoken of


class Opener:
    """Builds data sets and gathers what the plan should say of them.

    Args:
        builder: Builds the data sets.
        section: Names them, and the scratch folder.
        world_size: How many processes build them.

    Raises:
        RecipeError: No data set takes the scratch folder that the recipe names.
    """

    def __init__(self, builder: Builder, section: schema.Data, world_size: int):
        self.builder = builder
        self.world_size = world_size
        self.notes: list[str] = []
        self._handed = {} if section.scratch is None else {"scratch": section.scratch}
        components = [*components_in(dict(section)), *builder.defined]
        if self._handed and not any(self._takes_scratch(component) for component in components):
            message = "no data set takes a 'scratch' folder; remove it, or give your class such an argument"
            raise builder.wrong("data.scratch", message)
        for component in builder.defined:
            prepare(builder, component, **self._handed)

    def open(self, component: Component, key: str) -> Any:
        """The data set of a component.

        Args:
            component: What the recipe says.
            key: Where, as in `data.train`.
        """
        prepare(self.builder, component, **self._handed)
        began = time.monotonic()
        dataset = self.builder.build(component, **self._handed)
        seconds = time.monotonic() - began
        if seconds >= SLOW_SECONDS and self.world_size > 1:
            self.notes.append(slow_note(key, type(dataset).__name__, seconds, self.world_size))
        self.notes += [str(note) for note in getattr(dataset, "plan_notes", ())]
        return dataset

    def _takes_scratch(self, component: Component) -> bool:
        targets = (self.builder.resolve(inner) for inner in component.walk() if inner.given is None)
        return any("scratch" in (parameters_of(target) or ()) for target in targets)


def slow_note(key: str, name: str, seconds: float, world_size: int) -> str:
    """What to do about a data set that every process works out for itself."""
    return (
        f"{key}: building {name} took {seconds:.0f} s on each of {world_size} processes; a class method prepare() that "
        "keeps what it works out in a file would do it once on each machine"
    )


def by_name(section: Component | dict[str, Component] | str | None, key: str) -> Iterator[tuple[str, str, Component]]:
    """The evaluation sets of a section: name (empty where there is one), key and component."""
    if isinstance(section, Component):
        yield "", key, section
    elif isinstance(section, dict):
        for name, component in section.items():
            yield name, f"{key}.{name}", component
