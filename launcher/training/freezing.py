"""5: training. Parameters that are frozen until a step: a function of the step alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from launcher.objective.patterns import by_first_name, chosen, no_such
from launcher.objective.run_length import RunLength
from launcher.recipe.build import Builder
from launcher.recipe.duration import Duration

ALWAYS = "always"
Freeze = Mapping[str, Duration | str]  # how long each pattern's parameters are frozen


def freeze_for_good(freeze: Freeze, named: Mapping[str, nn.Parameter]) -> None:
    """Freezes what is never trained, before DDP waits for a gradient of it."""
    for pattern, names in chosen(freeze, named).items():
        for name in names if freeze[pattern] == ALWAYS else ():
            named[name].requires_grad_(False)


class Freezing:
    """Keeps parameters from being trained until their step.

    One process computes no gradient of them. DDP waits for one of every parameter that it was made with, so with
    several processes they are computed and dropped. Either way an optimizer sees none, and begins to keep something
    of a parameter when it is thawed.

    Args:
        until: Of each parameter that is frozen at first, the step before which it is.
        saves_work: Whether gradients need not be computed.
    """

    def __init__(self, until: Iterable[tuple[torch.Tensor, int]], *, saves_work: bool):
        self._until = list(until)
        self._saves_work = saves_work
        self._last = max((step for _, step in self._until), default=0)

    def begin(self, step: int) -> None:
        """Before the forward of the step after `step` completed ones."""
        if self._saves_work and step <= self._last:
            for parameter, thaws in self._until:
                parameter.requires_grad_(step >= thaws)

    def has_all(self, parameters: Iterable[torch.Tensor], step: int) -> bool:
        """Whether all of these are frozen at a step."""
        frozen = {id(parameter) for parameter, thaws in self._until if step < thaws} if step < self._last else set()
        return bool(frozen) and all(id(parameter) in frozen for parameter in parameters)

    def drop(self, step: int) -> None:
        """Before that step's update: forgets the gradients of what is frozen."""
        if step < self._last:
            for parameter, thaws in self._until:
                if step < thaws:
                    parameter.grad = None


def build_freezing(
    builder: Builder, freeze: Freeze, every: Mapping[str, nn.Parameter], length: RunLength, *, saves_work: bool
) -> Freezing | None:
    """What `train.freeze` says; None where it says nothing.

    Args:
        builder: Says where a pattern stands.
        freeze: How long each pattern's parameters are frozen.
        every: All parameters, by each of their names.
        length: The run's.
        saves_work: Whether gradients of what is frozen need not be computed.

    Raises:
        RecipeError: A pattern has no parameter, its duration is not a number of steps, or nothing is left to train.
    """
    until: list[tuple[torch.Tensor, int]] = []
    named = by_first_name(every)
    for pattern, names in chosen(freeze, named).items():
        path, duration = ("train", "freeze", pattern), freeze[pattern]
        if not names:
            raise builder.wrong(path, no_such(pattern, every), at_key=True)
        try:
            steps = length.steps_of(duration) if isinstance(duration, Duration) else None
        except ValueError as error:
            raise builder.wrong(path, f"{error}; write it in steps or epochs") from error
        if steps is not None:  # what the model itself has frozen stays so
            until += [(named[name], steps) for name in names if named[name].requires_grad]
    at_first = {id(parameter) for parameter, _ in until}
    if until and not any(parameter.requires_grad and id(parameter) not in at_first for parameter in named.values()):
        raise builder.wrong(("train", "freeze"), "nothing is left to train in the first step; freeze less")
    return Freezing(until, saves_work=saves_work) if until else None
