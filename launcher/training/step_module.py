"""5: training. A user's step function as a module, so that DDP goes around the whole step and not around the model."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from launcher.objective.loss import Objective


class StepCall:
    """What a step function gets and gives; DDP looks into tuples and mappings, and not into this.

    Attributes:
        batch: A micro-batch, on the device.
        at: Where it stands in the run.
        rest: What came back besides the loss.
    """

    __slots__ = ("at", "batch", "rest")

    def __init__(self, batch: Any, at: Any):
        self.batch, self.at = batch, at
        self.rest: dict[str, Any] = {}


class StepModule(nn.Module):
    """The step function with its model: that is the bare one, whose methods and attributes are there in any world.

    Args:
        model: What the step function gets.
        objective: Has the step function.
    """

    def __init__(self, model: nn.Module, objective: Objective):
        super().__init__()
        self.model = model
        self._stepped = objective.stepped

    def forward(self, call: StepCall) -> torch.Tensor:
        """The loss; the rest is left with the call."""
        call.rest = self._stepped(self.model, call.batch, call.at)
        loss: torch.Tensor = call.rest.pop("loss")
        return loss
