"""5: training. What happens after each update: a function of the user's, then the average of the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from launcher.data.seeds import seed_generators
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
        is_gpu: Whether the device has generators of its own.
        average: Of the weights, or None.
    """

    def __init__(
        self,
        function: Callable[[nn.Module, At], Any] | None,
        model: nn.Module,
        at: Callable[[int], At],
        seed: int,
        is_gpu: bool,
        average: Average | None,
    ):
        self._function, self._model, self._at = function, model, at
        self._seed, self._is_gpu, self._average = seed, is_gpu, average

    def __call__(self, step: int) -> None:
        """After the update of the step after `step` completed ones."""
        if self._function is not None:
            seed_generators(self._seed, step, _AFTER_STEP, is_gpu=self._is_gpu)
            with torch.no_grad():
                self._function(self._model, self._at(step))
        if self._average is not None:
            self._average.update(step)
