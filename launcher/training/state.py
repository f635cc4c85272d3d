"""5: training. What a step changes, and how long a run is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from launcher import internals
from launcher.device.device import Device
from launcher.errors import LauncherError
from launcher.model.build import Model
from launcher.model.ema import Average
from launcher.objective.loss import At, Objective
from launcher.objective.schedule import Schedule
from launcher.training import fast_step
from launcher.training.nonfinite import NonFiniteGuard


@dataclass(frozen=True)
class RunLength:
    """How long the run is.

    Attributes:
        steps_per_epoch: Optimizer steps of one pass over the data.
        total_steps: The run's length; None where it is a time.
        seconds: The run's length in time, else None.
    """

    steps_per_epoch: int
    total_steps: int | None
    seconds: float | None = None

    def epoch(self, step: int) -> float:
        """Passes over the data completed after `step` steps."""
        return step / self.steps_per_epoch

    def at(self, step: int) -> At:
        """Where a step stands, for a user's step function."""
        return At(step, step // self.steps_per_epoch, step / self.total_steps if self.total_steps else 0.0)


@dataclass
class TrainState:
    """All that an optimizer step changes, and what it needs.

    Attributes:
        model: The module, bare and wrapped.
        objective: The loss.
        optimizer: Not prepared by Accelerate: it is stepped here.
        schedule: The learning rate by step.
        device: Where to compute.
        losses: Wrapped losses with parameters of their own, by name.
        clip_grad_norm: Largest norm of all gradients together, or None.
        skip_non_finite: Whether a step without finite gradients is skipped; else it ends the run.
        average: Of the model's weights, where the recipe wants one.
    """

    model: Model
    objective: Objective
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    device: Device
    losses: Mapping[str, nn.Module] = field(default_factory=dict)
    clip_grad_norm: float | None = None
    skip_non_finite: bool = False
    average: Average | None = None

    def __post_init__(self) -> None:
        self.direct = fast_step.FastStep(self.optimizer)
        self.guard = NonFiniteGuard(self)
        self.scaler = self.device.accelerator.scaler

    @property
    def parameters(self) -> list[torch.Tensor]:
        """All that the optimizer trains; a step function may have added some."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def training_state(self) -> dict[str, Any]:
        """What a checkpoint keeps besides the weights."""
        scheduler = self.schedule.scheduler
        return {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": scheduler.state_dict() if scheduler is not None else None,
            "scaler": self.scaler.state_dict() if self.scaler is not None else None,
            "losses": {name: loss.state_dict() for name, loss in self.objective.modules.items()},
            "average": self.average.state() if self.average is not None else None,
        }

    def load(
        self, weights: Mapping[str, Any], training: Mapping[str, Any], step: int, changed: Sequence[str] = ()
    ) -> None:
        """Takes up the state of a checkpoint.

        Args:
            weights: The unwrapped state_dict.
            training: What `training_state` gave.
            step: Optimizer steps completed.
            changed: Keys of the recipe that changed since: they win over what the checkpoint says.

        Raises:
            LauncherError: The state is not of this model or optimizer.
        """
        fresh = [{key: one for key, one in group.items() if key != "params"} for group in self.optimizer.param_groups]
        try:
            self.model.bare.load_state_dict(weights)
            self.optimizer.load_state_dict(_stepped_alike(training["optimizer"], fresh))
            fast_step.lay_out_state(self.optimizer)
            for name, loss in self.objective.modules.items():
                loss.load_state_dict(training["losses"][name])
        except (RuntimeError, ValueError, KeyError) as error:
            raise LauncherError(
                f"the checkpoint does not fit this model or optimizer: {error}; to begin anew with its weights use "
                "train.start_from in a new run"
            ) from error
        if self.average is not None:
            self.average.load(training["average"])
        if self.scaler is not None and training["scaler"] is not None:
            self.scaler.load_state_dict(training["scaler"])
        if any(key.partition(".")[0] in ("optimizer", "scheduler", "train") for key in changed):
            self._change(fresh, changed, step, training["scheduler"])
        elif self.schedule.scheduler is not None:
            self.schedule.scheduler.load_state_dict(training["scheduler"])

    def _change(self, fresh: Sequence[Mapping[str, Any]], changed: Sequence[str], step: int, scheduler: Any) -> None:
        """Lets changed settings of optimizer and schedule win; the schedule is gone through again up to here."""
        named = {key.split(".")[1] for key in changed if key.startswith("optimizer.")}
        if "_groups_" in named:
            named = {key for group in fresh for key in group}
        if not self.schedule.on_evaluation:
            named |= {"lr", "initial_lr"}
        for group, settings in zip(self.optimizer.param_groups, fresh, strict=True):
            group.update({key: settings[key] for key in named if key in settings})
        if self.schedule.on_evaluation:
            self.schedule.scheduler.load_state_dict(scheduler)
        else:
            self.schedule.replay(step)

    def without_sync(self) -> AbstractContextManager[Any]:
        """DDP without its all-reduce: for all but the last micro-batch of a step."""
        stack = ExitStack()
        for module in (internals.uncompiled(self.model.wrapped), *self.losses.values()):
            if isinstance(module, DistributedDataParallel):
                stack.enter_context(module.no_sync())
        return stack


_KERNELS = ("fused", "foreach")


def _stepped_alike(state: Mapping[str, Any], fresh: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """An optimizer's state whose groups step as those of this start: the device or the precision may be another."""
    if len(state["param_groups"]) != len(fresh):
        return dict(state)  # which the optimizer refuses
    groups = [
        {**group, **{key: own[key] for key in _KERNELS if key in own}}
        for group, own in zip(state["param_groups"], fresh, strict=True)
    ]
    return {**state, "param_groups": groups}
