"""Opening the recipe's data sets: prepared once on each machine, built on each process, and looked over."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from torch.utils.data import DataLoader

from launcher.data.dataloaders import Opened, contradictions, loader_inside, taken_apart
from launcher.data.preparation import prepare
from launcher.data.subsets import is_stream, why_none
from launcher.errors import RecipeError
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
        trains: Whether the training set is trained on; what its batches and its order are matters only then.

    Raises:
        RecipeError: No data set takes the scratch folder that the recipe names.
    """

    def __init__(self, builder: Builder, section: schema.Data, world_size: int, trains: bool = True):
        self.builder = builder
        self.section = section
        self.trains = trains
        self.world_size = world_size
        self.notes: list[str] = []
        self._handed = {} if section.scratch is None else {"scratch": section.scratch}
        components = [*components_in(dict(section)), *builder.defined]
        if self._handed and not any(self._takes_scratch(component) for component in components):
            message = "no data set takes a 'scratch' folder; remove it, or give your class such an argument"
            raise builder.wrong("data.scratch", message)
        for component in builder.defined:
            prepare(builder, component, **self._handed)

    def open(self, component: Component, key: str) -> Opened:
        """The data set of a component, and the collate of a DataLoader that stood in its place.

        Args:
            component: What the recipe says.
            key: Where, as in `data.train`.

        Raises:
            RecipeError: A DataLoader says something else than the recipe.
        """
        prepare(self.builder, component, **self._handed)
        began = time.monotonic()
        dataset = self.builder.build(component, **self._handed)
        seconds = time.monotonic() - began
        if seconds >= SLOW_SECONDS and self.world_size > 1:
            self.notes.append(slow_note(key, type(dataset).__name__, seconds, self.world_size))
        opened = self._taken_apart(dataset, component, key)
        self.notes += [*opened.notes, *(str(note) for note in getattr(opened.dataset, "plan_notes", ()))]
        return opened

    def _taken_apart(self, dataset: Any, component: Component, key: str) -> Opened:
        section, wrong = self.section, self.builder.wrong
        if (why := why_none(dataset)) is not None:
            raise wrong(key, why)
        if not isinstance(dataset, DataLoader):
            if is_stream(dataset) and (loader := loader_inside(dataset)) is not None:
                message = f"{type(dataset).__name__} passes on the batches of a {type(loader).__name__}, not samples"
                raise wrong(key, f"{message}; pass what that reads, and data.collate for its batches")
            return Opened(dataset)
        is_training, is_known = key == "data.train", component.path in self.builder.meant
        conflicts = contradictions(dataset, section, self.world_size, is_training)
        if (self.trains or not is_training) and not is_known and (faults := [*conflicts]):
            problems = [wrong(component.path, f"a {type(dataset).__name__}: {fault}").problems for fault in faults]
            raise RecipeError([problem for inner in problems for problem in inner])
        opened = taken_apart(dataset, key)
        self.builder.meant[component.path] = opened.dataset
        stated = _stated_collate(section.collate, "train" if is_training else "evaluate")
        if opened.collate is not None and stated is not None:
            message = "its DataLoader has a collate_fn, and the recipe data.collate; remove one of the two"
            raise wrong(key, message)
        return opened

    def _takes_scratch(self, component: Component) -> bool:
        targets = (self.builder.resolve(inner) for inner in component.walk() if inner.given is None)
        return any("scratch" in (parameters_of(target) or ()) for target in targets)


def _stated_collate(section: Any, name: str) -> Any:
    """What the recipe says of the collate for training or evaluating; None where it says nothing."""
    return section.get(name) if isinstance(section, Mapping) else section


def transform_for(builder: Builder, section: schema.Data, name: str) -> Any:
    """What the recipe makes of batches on the device, for `train` or `evaluate`; one alone is for training."""
    stated = section.on_device
    if isinstance(stated, Mapping):
        stated = stated.get(name)
    elif name != "train":
        return None
    return builder.build(stated) if isinstance(stated, Component) else stated


def collate_for(builder: Builder, section: schema.Data, name: str) -> Any:
    """The recipe's collate for `train` or `evaluate`, built; None for torch's default."""
    stated = _stated_collate(section.collate, name)
    return builder.build(stated) if isinstance(stated, Component) else stated


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
