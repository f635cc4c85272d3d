"""What objects passed from Python decide, by keys as a recipe would have them: a part of a run's identity."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from launcher.internals import inner_schedulers, milestones
from launcher.model.kinds import class_of
from launcher.objective.schedule import Schedule, Schedules
from launcher.objective.several import each
from launcher.recipe.component import GIVEN, Component
from launcher.recipe.places import dotted
from launcher.recipe.schema import Recipe
from launcher.recipe.show import given_as, scalar
from launcher.recipe.signature import parameters_of
from launcher.training.state import TrainState

_HOW = ("fused", "foreach", "capturable", "differentiable", "last_epoch", "verbose")  # a step is made, and not what


def given_identity(recipe: Recipe, state: TrainState) -> dict[str, str]:
    """Classes and settings of model, loss, optimizer and scheduler that were passed in, as far as they show.

    Read before anything is trained or taken up. The code of a function and of a class does not show.
    """
    return {key: scalar(value) for key, value in _values(recipe, state)}


def _values(recipe: Recipe, state: TrainState) -> Iterator[tuple[str, Any]]:
    if recipe.model.given is not None:
        yield "model", f"{GIVEN}: {class_of(state.model.bare).__name__}, layers {_structure(recipe.model.given)}"
    for component in _components(recipe.loss):
        yield from _settings(dotted(component.path), component.given)
    optimizers = each(state.optimizer)
    for component in _components(recipe.optimizer):
        one = optimizers[str(component.path[1]) if len(component.path) > 1 else ""]
        yield dotted(component.path), given_as(one)
        yield from _of_optimizer(dotted(component.path), one, is_made=one is not component.given)
    for component in _components(recipe.scheduler):
        schedule = _schedule(state.schedule, component)
        yield dotted(component.path), given_as(schedule.scheduler)
        yield from _of_scheduler(dotted(component.path), schedule.scheduler)


def _components(section: Component | Mapping[str, Component] | str | None) -> Iterator[Component]:
    """Those of a section that were passed in."""
    named = section if isinstance(section, Mapping) else {"": section}
    yield from (one for one in named.values() if isinstance(one, Component) and one.given is not None)


def _schedule(schedule: Schedule | Schedules, component: Component) -> Schedule:
    return schedule if isinstance(schedule, Schedule) else schedule.named[str(component.path[1])]


def _structure(model: nn.Module) -> str:
    """A short hash of the classes of a module's layers and what they print; not of what one device makes of them."""
    layers = [f"{name}: {class_of(layer).__name__}({layer.extra_repr()})" for name, layer in model.named_modules()]
    text = re.sub(r" at 0x[0-9a-f]+|(Sync)?BatchNorm(\dd)?", "", "\n".join(layers))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _of_optimizer(key: str, optimizer: Optimizer, *, is_made: bool) -> Iterator[tuple[str, Any]]:
    """The settings that its class takes, of each group where it has several.

    One that was passed in itself may have trained already, and a scheduler have changed its groups: what it was made
    with counts.
    """
    kind: Any = type(optimizer)
    known = [name for name in parameters_of(kind) or () if name in optimizer.defaults and name not in _HOW]
    groups = optimizer.param_groups if is_made else [optimizer.defaults]
    for number, group in enumerate(groups):
        place = key if len(groups) == 1 else f"{key}._groups_.{number}"
        for name in known:
            value = group.get(f"initial_{name}", group.get(name)) if name == "lr" else group.get(name)
            if _is_plain(value := _number(value)):
                yield f"{place}.{name}", value


def _of_scheduler(key: str, scheduler: Any) -> Iterator[tuple[str, Any]]:
    yield from _settings(key, scheduler)
    if turns := milestones(scheduler):
        yield f"{key}.milestones", turns
    for number, inner in enumerate(inner_schedulers(scheduler)):
        yield f"{key}.{number}", given_as(inner)
        yield from _of_scheduler(f"{key}.{number}", inner)


def _settings(key: str, thing: Any) -> Iterator[tuple[str, Any]]:
    """The arguments of an object's class that it keeps under their names."""
    kind: Any = type(thing)
    is_torchs = kind.__module__.startswith("torch.")
    for name in (parameters_of(kind) or ()) if not isinstance(thing, type) else ():
        value = getattr(thing, name, None) if is_torchs else getattr(thing, "__dict__", {}).get(name)
        value = sorted(value.elements()) if isinstance(value, Counter) else value  # MultiStepLR's milestones
        if isinstance(value, torch.Tensor) and is_torchs and not value.requires_grad:  # weights of classes
            value = value.tolist() if value.numel() <= 16 else hashlib.sha256(repr(value.tolist()).encode()).hexdigest()
        if value is not None and name not in _HOW and _is_plain(value):
            yield f"{key}.{name}", value


def _number(value: Any) -> Any:
    """A rate that is a tensor, as a number."""
    return value.item() if isinstance(value, torch.Tensor) and value.numel() == 1 else value


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)
