"""Losses that give several numbers by name: which of them are losses, to be added, and which are only logged.

`loss`, `total_loss` or `total` is the loss where there is one of that name, and all else is logged; without one, what
has a gradient is added up, each a mean over its own count, and what has none (an accuracy) is logged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from launcher.errors import LauncherError
from launcher.objective.batch import at, has_gradient, has_part, losses_among
from launcher.recipe.line_keys import LINE_KEYS
from launcher.text import shapes

Entry = int | str
_ROUNDING = 1e-6


def by_name(given: Any) -> Mapping[str, Any] | None:
    """What a loss gave by names: a mapping, a dataclass, or a tuple with names; None where it gave anything else."""
    if isinstance(given, Mapping):
        return given
    if is_dataclass(given) and not isinstance(given, type):
        return vars(given)
    return given._asdict() if hasattr(given, "_fields") else None


def added(given: Any) -> Any:
    """The sum of what is added up, where a loss gives several and nothing need be counted; else what it gave."""
    named = by_name(given)
    if named is None or not (names := losses_among(named)):
        return given
    return torch.stack([named[name].reshape(()) for name in names]).sum()


def fault_in(given: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str | None:
    """Why what a loss gave for some batches cannot be added up; None where it can.

    Args:
        given: For each batch.
        names: Those that would be.
    """
    if not names:
        listed = ", ".join(map(repr, given[0])) or "nothing"
        return f"gave {listed}, none of which has a gradient; look for detach(), .item(), argmax() or no_grad()"
    for name in names:
        for values in given:
            value = values.get(name)
            if value is not None and not _is_one(value):
                return f"its '{name}' is {shapes(value)}; a step needs one number: take the mean in the loss"
    if whole := _sum_of_others(given, names):
        twice = f"its '{whole}' is the sum of the others, which would count twice"
        return f"{twice}; call it 'loss', or say batch.loss: {whole}"
    return None


def _sum_of_others(given: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str | None:
    if len(names) < 3:
        return None
    table = [[torch.as_tensor(values.get(name, float("nan"))).item() for name in names] for values in given]
    for place, name in enumerate(names):
        rest = [sum(row) - 2 * row[place] for row in table]
        if all(row[place] and abs(off) <= _ROUNDING * abs(row[place]) for row, off in zip(table, rest, strict=True)):
            return name
    return None


def _is_one(value: Any) -> bool:
    return value.numel() == 1 if isinstance(value, torch.Tensor) else isinstance(value, int | float | np.number)


def picked(given: Any, entry: Entry | None, key: str) -> Any:
    """One of the numbers that a loss gave.

    Args:
        given: All.
        entry: Its name or position; None where the loss gives one alone.
        key: Where the recipe names the loss.

    Raises:
        LauncherError: It is not there.
    """
    if entry is None:
        return given
    if not has_part(given, entry):
        raise LauncherError(f"{key}: gave {shapes(given)}, without {entry!r}; return it for each batch, 0 of nothing")
    return at(given, entry)


def to_log(given: Any, entries: Iterable[Entry], key: str, prefix: str, *, adds: bool) -> dict[str, Any]:
    """What else a loss gave, as far as it is single numbers.

    Args:
        given: All that it gave.
        entries: Those that are added up.
        key: Where the recipe names the loss.
        prefix: Before the names.
        adds: Whether all that has a gradient is to be added up.

    Raises:
        LauncherError: One has a gradient now, or is called what a line says by itself.
    """
    own, named = set(entries), by_name(given) or {}
    rest = {name: value for name, value in named.items() if name not in own and _is_one(value)}
    if adds and (strange := [n for n in rest if has_gradient(rest[n])]):
        listed = ", ".join(map(str, own))
        raise LauncherError(
            f"{key}: '{strange[0]}' has a gradient here and had none on the first samples, so that it is not trained; "
            f"what is added up is {listed}; give it with a gradient in each batch (0 * an output), or detach it"
        )
    for name in rest:
        if f"{prefix}{name}" in LINE_KEYS:
            raise LauncherError(f"{key}: a line of metrics.jsonl means something else by '{name}'; rename it")
    detached = {f"{prefix}{name}": value for name, value in rest.items()}
    return {name: value.detach() if isinstance(value, torch.Tensor) else value for name, value in detached.items()}


class _Picked:
    """One number of a loss that gives several."""

    def __init__(self, function: Callable[..., Any], entry: Entry, key: str):
        self.function, self.entry, self.key = function, entry, key

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return picked(self.function(*args, **kwargs), self.entry, self.key)


class _PickedModule(nn.Module):
    """The same of a module, whose modes, dtype and parameters are its own."""

    def __init__(self, function: nn.Module, entry: Entry, key: str):
        super().__init__()
        self.function, self.entry, self.key = function, entry, key
        self.training = function.training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return picked(self.function(*args, **kwargs), self.entry, self.key)


def alone(function: Callable[..., Any], entry: Entry | None, key: str) -> Callable[..., Any]:
    """A loss that gives one number of those that it gives."""
    if entry is None:
        return function
    return _PickedModule(function, entry, key) if isinstance(function, nn.Module) else _Picked(function, entry, key)
