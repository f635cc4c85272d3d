"""5: training. What happens after each update: a function of the user's, then the average of the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from launcher.data.seeds import seed_generators
from launcher.device.kind import Kind
from launcher.model.ema import Average
from launcher.objective.run_length import At

_AFTER_STEP = 2**31  # in place of a rank, which every process has the same of here


class AfterStep:
    """Calls `train.after_step` on every rank, without gradients, and takes the weights into their average.

    What the function draws is a function of seed and step, the same on every rank: it may change weights.

    Args:
        function: The user's, or None.
        model: The bare module.
        at: Gives where a step stands.
        seed: The run's.
        kind: The device, which may have a generator of its own.
        average: Of the weights, or None.
    """

    def __init__(
        self,
        function: Callable[[nn.Module, At], Any] | None,
        model: nn.Module,
        at: Callable[[int], At],
        seed: int,
        kind: Kind,
        average: Average | None,
    ):
        self._function, self._model, self._at = function, model, at
        self._seed, self._kind, self._average = seed, None if kind.is_host else kind, average

    def __call__(self, step: int) -> None:
        """After the update of the step after `step` completed ones."""
        if self._function is not None:
            seed_generators(self._seed, step, _AFTER_STEP, kind=self._kind)
            with torch.no_grad():
                self._function(self._model, self._at(step))
        if self._average is not None:
            self._average.update(step)
