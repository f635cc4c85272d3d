"""5: training. What a step reads and changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from launcher import internals
from launcher.data.load import Data
from launcher.device.device import Device
from launcher.model.build import Model
from launcher.model.ema import Average
from launcher.model.sharding import Shards
from launcher.objective.loss import Objective
from launcher.objective.run_length import RunLength
from launcher.objective.schedule import Schedule, Schedules
from launcher.objective.several import Optimizers
from launcher.training.freezing import Freezing
from launcher.training.seeds import StepSeeds
from launcher.training.update import Update


class Retry(Protocol):
    """Makes a step again with half the micro-batch when memory runs out before its update."""

    def begin(self, state: TrainState) -> None:
        """Before a step: keeps what its forward passes may change."""
        ...

    def passed(self) -> None:
        """The gradients are there: what follows cannot be made again."""
        ...

    def wants(self, state: TrainState, error: Exception) -> bool:
        """Whether the step that raised this is to be made again."""
        ...

    def recover(self, state: TrainState) -> int:
        """Puts all back as it was before the step, and cuts smaller micro-batches; gives their size."""
        ...


@dataclass
class TrainState:
    """The four parts of a run that the recipe describes, and how long it is.

    Attributes:
        model: The module, bare and wrapped.
        objective: The loss.
        optimizer: Not prepared by Accelerate: `update` steps it.
        schedule: The learning rate by step.
        update: How gradients become new weights.
        take_step: How a step is made: gets the state, what it reads, where it stands, and names for a profiler.
        device: Where to compute.
        data: This rank's batches.
        length: How long the run is.
        seeds: The randomness of a step.
        losses: Wrapped losses with parameters of their own, by name.
        average: Of the model's weights, where the recipe wants one.
        shapes: Of what was in the model's state_dict when the run began, by name.
        frozen: Parameters that were not to be trained when the run began, by name.
        freezing: What is frozen until a step.
        retry: Makes a step again that has found no memory, where the recipe leaves the micro-batch open.
        trained: Names of the model's other parameters, in the order in which DDP numbers them.
        shards: What this process holds, where the model is sharded.
    """

    model: Model
    objective: Objective
    optimizer: Optimizers
    schedule: Schedule | Schedules
    update: Update
    device: Device
    data: Data
    length: RunLength
    seeds: StepSeeds
    take_step: Callable[..., Any]
    losses: Mapping[str, nn.Module] = field(default_factory=dict)
    average: Average | None = None
    shapes: Mapping[str, Sequence[int] | None] = field(default_factory=dict)
    frozen: Mapping[str, torch.Tensor] = field(default_factory=dict)
    trained: Sequence[str] = ()
    freezing: Freezing | None = None
    shards: Shards | None = None
    retry: Retry | None = None

    def without_sync(self) -> AbstractContextManager[Any]:
        """DDP without its all-reduce: for all but the last micro-batch of a step."""
        if self.shards is not None:
            return self.shards.without_sync()
        stack = ExitStack()
        for module in map(internals.uncompiled, (self.model.wrapped, *self.losses.values())):
            if isinstance(module, DistributedDataParallel):
                stack.enter_context(module.no_sync())
        return stack
