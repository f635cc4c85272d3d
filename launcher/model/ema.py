"""Averages of the weights over a run, by torch's own averaging functions: exponential, or of equal parts (SWA)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn

from launcher.model.rows import Rows
from launcher.model.sharding import Shards, as_local
from launcher.world.cleanup import afterwards


class Rule(Protocol):
    """How weights become an average.

    Attributes:
        kind: What it is called: `ema`, before the names of its scores, say.
    """

    kind: str

    def takes(self, step: int) -> bool:
        """Whether the weights after the step behind `step` completed ones are a part of it."""
        ...

    def average(self, averages: list[torch.Tensor], current: list[torch.Tensor], updates: int) -> None:
        """Takes the current weights into an average of `updates` others."""
        ...


@dataclass(frozen=True)
class Ema:
    """Of each step's weights, what is kept of the average at each step being `decay`.

    It warms up: of the first t steps, (1 + t) / (10 + t) is kept where that is less, or a short run's average would be
    of what the model was before it learned anything.

    Attributes:
        decay: What is kept.
        warmup: Whether it warms up.
    """

    decay: float
    warmup: bool = True
    kind = "ema"

    def takes(self, step: int) -> bool:
        """Of each."""
        return True

    def average(self, averages: list[torch.Tensor], current: list[torch.Tensor], updates: int) -> None:
        """Keeps `decay` of the average."""
        kept = min(self.decay, (1 + updates) / (10 + updates)) if self.warmup else self.decay
        get_ema_multi_avg_fn(kept)(averages, current, updates)


@dataclass(frozen=True)
class Swa:
    """Of the weights at some steps, in equal parts: stochastic weight averaging.

    Attributes:
        start: The number of steps after which the first are taken.
        every: Steps between two of them.
    """

    start: int
    every: int
    kind = "swa"

    def takes(self, step: int) -> bool:
        """Of some."""
        return step + 1 >= self.start and (step + 1 - self.start) % self.every == 0

    def average(self, averages: list[torch.Tensor], current: list[torch.Tensor], updates: int) -> None:
        """A mean of all so far."""
        get_swa_multi_avg_fn()(averages, current, updates)


class Average:
    """Averages a module's parameters over the steps; its buffers are not averaged.

    Averages of 16-bit weights are kept in 32 bits: in 16, a small part of a difference is lost to rounding.

    On lists of parameters, which costs a seventh of what `AveragedModel` does, and prefixes no names.

    Args:
        module: The bare module.
        rule: How, and of which steps.
        shards: What this process holds of the module, where it is sharded: that is averaged.
    """

    def __init__(self, module: nn.Module, rule: Rule, shards: Shards | None = None):
        self._rule, self.kind, self._shards = rule, rule.kind, shards
        wholes = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._parameters = as_local(shards, wholes)
        places = {id(parameter): place for place, parameter in enumerate(wholes)}
        named = module.named_parameters(remove_duplicate=False)  # tied weights have several names
        self._names = {name: places[id(parameter)] for name, parameter in named if id(parameter) in places}
        self._are_alike = all(parameter.dtype == _kept_in(parameter) for parameter in self._parameters)
        self._is_changed_by_modes = any(map(_has_own_modes, module.modules()))
        self._restart()

    def _restart(self) -> None:
        self._averages = [parameter.detach().to(_kept_in(parameter), copy=True) for parameter in self._parameters]
        self._updates = 0

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the weights after the step behind `step` completed ones; the first are the average."""
        if not self._rule.takes(step):
            return
        if self._updates == 0:
            self._restart()
        else:
            self._rule.average(self._averages, self._current(), self._updates)
        self._updates += 1

    def _current(self) -> list[torch.Tensor]:
        """The weights in the dtypes of their averages."""
        if self._are_alike:
            return list(self._parameters)
        return [parameter.to(_kept_in(parameter)) for parameter in self._parameters]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Puts the averages into the module for a while: they change places with the weights, and nothing is copied.

        But where they are kept in another dtype, or where the module changes its weights when it is evaluated (a
        low-rank layer folds itself in): the averages stay to the bit what they are. Before the first, the weights are
        their own.
        """
        if self._updates == 0:
            yield
            return
        if self._shards is not None:
            with self._exchanged(self._shards):
                yield
            return
        kept = [parameter.data for parameter in self._parameters]
        try:
            for parameter, average in zip(self._parameters, self._averages, strict=True):
                parameter.data = average.to(parameter.dtype, copy=self._is_changed_by_modes)
            yield
        finally:
            for parameter, value in zip(self._parameters, kept, strict=True):
                parameter.data = value

    @contextmanager
    def _exchanged(self, shards: Shards) -> Iterator[None]:
        """The same of rows, which stay in the memory that modules are put together from."""
        kept = [parameter.detach().clone() for parameter in self._parameters]
        with afterwards(lambda: self._put(kept)), shards.resharded():
            self._put(self._averages)
            yield

    @torch.no_grad()
    def _put(self, values: list[torch.Tensor]) -> None:
        for parameter, value in zip(self._parameters, values, strict=True):
            parameter.copy_(value)

    def _kept(self, place: int) -> torch.Tensor | Rows:
        average = self._averages[place]
        return average if self._shards is None else self._shards.rows(average, self._parameters[place])

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: the averages by the names that they have in a state_dict, and how many steps."""
        if self._updates == 0:
            self._restart()
        kept = [self._kept(place) for place in range(len(self._averages))]  # of tied weights once
        return {
            "kind": self.kind,
            "parameters": {name: kept[place] for name, place in self._names.items()},
            "updates": self._updates,
        }

    def load_state_dict(self, state: Mapping[str, Any] | None, /) -> None:
        """Takes up what a checkpoint kept; where it kept none of this kind, the average begins with the weights.

        An exponential average is none of the models that another is a mean of.
        """
        self._restart()
        if state is None or state.get("kind", self.kind) != self.kind:
            return
        for name, place in self._names.items():
            kept, shards = state["parameters"][name], self._shards
            self._averages[place].copy_(kept if shards is None else shards.taken(kept, self._parameters[place]))
        self._updates = state["updates"]


def _has_own_modes(module: nn.Module) -> bool:
    """Whether a class does more than torch's when it goes from training to evaluating."""
    own = type(module)
    return own.train is not nn.Module.train or own.eval is not nn.Module.eval


def _kept_in(parameter: torch.Tensor) -> torch.dtype:
    """What an average is kept in."""
    return torch.float32 if parameter.dtype in (torch.float16, torch.bfloat16) else parameter.dtype
