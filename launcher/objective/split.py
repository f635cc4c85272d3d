"""Finds out which losses give several numbers by name, by calling them on a few samples; each number becomes a term."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from launcher.data.transfer import moved
from launcher.device.coordination import Coordinator
from launcher.objective.batch import losses_among
from launcher.objective.calls import copied, device_of, seed_all, twin_of, undisturbed
from launcher.objective.entries import Entry, by_name, fault_in
from launcher.objective.loss import Objective, Term
from launcher.objective.subject import Samples
from launcher.recipe.build import Builder
from launcher.text import shapes

_GROUPS = ((0, 2), (2, 9))  # samples that are tried: an entry may have no gradient where it counts nothing


def split_losses(
    builder: Builder, objective: Objective, model: nn.Module, samples: Samples, coordinator: Coordinator
) -> None:
    """Splits each loss that gives several numbers, as rank 0 finds them.

    Args:
        builder: Says where the recipe names a loss.
        objective: Whose losses they are.
        model: The bare module; it is left as it was.
        samples: What they are called on.
        coordinator: Rank 0's word counts.

    Raises:
        RecipeError: What it gives cannot be added up.
    """
    for term in list(objective.terms):
        if term.entry is not None or (term.reading is not None and term.reading.found == "known"):
            continue
        told = _alike(_entries_of(objective, term, model, samples), coordinator)
        if isinstance(told, str):
            raise builder.wrong(term.key, told)
        if told:
            objective.split(term.key, told)


def _alike(outcome: list[Entry] | str, coordinator: Coordinator) -> list[Entry] | str:
    """What rank 0 found: all ranks have made the same calls, since a loss may speak with the others."""
    told: list[Entry] | str = coordinator.from_first(lambda: outcome)
    return told


def _entries_of(objective: Objective, term: Term, model: nn.Module, samples: Samples) -> list[Entry] | str:
    """Those that are added up, none where it gives one number; or why that cannot be known."""
    try:
        given = list(_given(objective, term, model, samples))
    except Exception:  # somebody's code, whose own mistake the measuring or the first step tells
        return []
    named = [values for values in map(by_name, given) if values is not None]
    stated = objective.layout.section.loss
    if len(named) < len(given) or not named:
        if not given or not isinstance(given[0], tuple | list):
            return []
        remedy = "say where in it the loss stands, as in batch.loss: 0, or return its parts by name, as in {'ce': …}"
        return [stated] if stated is not None else f"gave {shapes(given[0])}; {remedy}, which are added up"
    if stated is not None:
        return [stated]
    names = list(dict.fromkeys(name for values in named for name in losses_among(values)))
    return fault_in(named, names) or [*names]


def _given(objective: Objective, term: Term, model: nn.Module, samples: Samples) -> Iterator[Any]:
    layout = objective.layout
    with undisturbed(), twin_of(model) as twin, torch.enable_grad():
        for first, last in _GROUPS:
            if numbers := range(min(first, samples.number), min(last, samples.number)):
                batch = moved(samples.batch(numbers), device_of(twin))
                args, kwargs = layout.inputs(batch)
                seed_all(0)
                yield term.given(copied(term.function), layout, twin(*args, **kwargs), batch)
