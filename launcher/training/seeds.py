"""5: training. The randomness of a step: arithmetic, never stored."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from launcher.data.permutation import mix
from launcher.data.seeds import seed_generators, seed_torch
from launcher.device.kind import Kind
from launcher.internals import has_hooks

_DRAW_FROM_TORCH = ("torch", "launcher")  # what these packages draw in a step, they draw from torch


class StepSeeds:
    """Seeds the generators for a step, a function of seed, step and rank.

    Args:
        seed: The run's.
        rank: This process's.
        kind: The device, which may have a generator of its own.
        only_torch: Whether nothing runs in a step that could draw from another generator than torch's.
    """

    def __init__(self, seed: int, rank: int, kind: Kind, only_torch: bool = False):
        self.seed, self._rank = seed, rank
        self._kind = None if kind.is_host else kind
        self._only_torch = only_torch

    def __call__(self, step: int) -> None:
        """Seeds for the step after `step` completed ones."""
        if self._only_torch:  # which draws the same after either
            seed_torch(mix(self.seed, step, self._rank), self._kind)
        else:
            seed_generators(self.seed, step, self._rank, kind=self._kind)


def draws_only_from_torch(things: Iterable[Any]) -> bool:
    """Whether nobody else's code runs in modules, losses, functions and an optimizer.

    Hooks may be anybody's; so may a module that hides behind them.
    """
    return all(_is_torchs(part) for thing in things for part in _parts(thing))


def _parts(thing: Any) -> Iterable[Any]:
    return thing.modules() if isinstance(thing, nn.Module) else [thing]


def _is_torchs(part: Any) -> bool:
    kind = part if hasattr(part, "__qualname__") else type(part)
    if (getattr(kind, "__module__", None) or "").partition(".")[0] not in _DRAW_FROM_TORCH:
        return False
    return not (isinstance(part, nn.Module) and ("forward" in vars(part) or has_hooks(part)))
