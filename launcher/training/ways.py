"""5: training. Ways to make a step: in one update, by an optimizer that calls the loss itself, in turns.

Which one it is is chosen when the run is built; the loop has one line for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from launcher.errors import LauncherError
from launcher.evaluation.audit import audit_own
from launcher.objective.loss import INDEPENDENT
from launcher.objective.run_length import At
from launcher.training import fast_step
from launcher.training.state import TrainState
from launcher.training.step import PARTS, Parts, StepResult, accumulate, changed_on_device, scalars_of
from launcher.training.step_module import StepCall
from launcher.training.steps import StepBatch
from launcher.training.update import OneUpdate
from launcher.world import context, faults


class ByClosure:
    """A step of an optimizer that calls the loss itself, as LBFGS and SAM do.

    Each call makes the step's gradients again: with the step's seed, over all micro-batches and ranks, clipped.
    It gives the step's loss over all ranks, the same on each, so that the ranks decide alike. Where the optimizer
    does not begin with a call, as LBFGS does, the gradients are there when it is asked to step.

    Args:
        update: Its optimizer and what surrounds it.
    """

    def __init__(self, update: OneUpdate):
        self._update = update
        self._optimizer: Any = update.optimizer
        self._calls_first = isinstance(self._optimizer, torch.optim.LBFGS)

    def __call__(self, state: TrainState, step: StepBatch, at: At, do: Parts | None = None) -> StepResult:
        """One step.

        Raises:
            LauncherError: The loss does not depend on the model, or its first gradients are not finite.
        """
        first: list[StepResult] = []

        @torch.enable_grad()
        def closure() -> torch.Tensor:
            self._update.clear_gradients()
            state.seeds(at.step)
            losses, scalars = accumulate(state, step, at, do or PARTS)
            if state.retry is not None:
                state.retry.passed()
            norm = self._update.ready(at.step, checks=not first)
            self._seed(at.step)
            first.append(StepResult(losses, norm, scalars))
            return self._over_ranks(state, losses)

        if state.freezing is not None:
            state.freezing.begin(at.step)
        if state.retry is not None:
            state.retry.begin(state)  # until its first gradients are there, nothing has been stepped
        if not self._calls_first:
            closure()
        self._seed(at.step)
        self._optimizer.step(closure)
        self._update.made(at.step)
        state.schedule.advance(at.step + 1)
        if not first:
            raise LauncherError(f"optimizer: {type(self._optimizer).__name__} has not called its closure")
        return first[0]

    def _seed(self, step: int) -> None:
        """What the optimizer itself draws, every rank draws."""
        if self._update.seeds is not None:
            self._update.seeds(step)

    @staticmethod
    def _over_ranks(state: TrainState, losses: Sequence[tuple[torch.Tensor, float]]) -> torch.Tensor:
        coordinator, loss = state.device.coordinator, losses[0][0]
        own = torch.stack([part.to(state.device.kind.wide) * factor for part, factor in losses]).sum()
        if coordinator.world_size > 1:
            own = coordinator.sum(own.cpu().double().reshape(1)).result()[0] / coordinator.world_size
        return own.to(loss.device, loss.dtype)


@dataclass(frozen=True)
class Turn:
    """One of several losses that take turns.

    Attributes:
        name: Its name in `train.step`, and that of its optimizer.
        module: Its step function, under DDP for the parameters of its optimizer.
        update: Its optimizer and what surrounds it.
        parameters: The names of its parameters, in the order in which DDP numbers them.
        every: In every which step it is taken.
    """

    name: str
    module: nn.Module
    update: OneUpdate
    parameters: Sequence[str] = ()
    every: int = 1

    def is_due(self, step: int) -> bool:
        """Whether it is taken in the step after so many, as whatever is due every so many steps."""
        return (step + 1) % self.every == 0

    def rests(self, step: int) -> bool:
        """Whether all that it trains is frozen at a step: then its loss may have no gradient."""
        freezing = self.update.freezing
        return freezing is not None and freezing.has_all(self.update.parameters, step)

    def without_sync(self) -> AbstractContextManager[Any]:
        """DDP without its all-reduce: for all but the last micro-batch of a step."""
        return self.module.no_sync() if isinstance(self.module, DistributedDataParallel) else nullcontext()


class Turns:
    """A step in turns: each loss is called and its optimizer updates, in the order written.

    Args:
        turns: In that order.
        scaler: Scales losses and gradients under fp16, else None.
    """

    def __init__(self, turns: Sequence[Turn], scaler: Any = None):
        self._turns, self.scaler = list(turns), scaler

    def __call__(self, state: TrainState, step: StepBatch, at: At, do: Parts | None = None) -> StepResult:
        """One step.

        Raises:
            LauncherError: A loss does not depend on the model, or a gradient is not finite.
        """
        if state.freezing is not None:
            state.freezing.begin(at.step)
        state.seeds(at.step)
        read = self._read(state, step, at)
        if not (objective := state.objective).is_audited:
            audit_own(state.model.bare, objective, read[0], step.batches[0].samples, at)
            objective.mark_audited()
        if state.retry is not None:
            state.retry.begin(state)
        logged: list[dict[str, Any]] = [{} for _ in step.batches]
        norms: list[torch.Tensor] = []
        for place, turn in enumerate(self._turns):
            if not turn.is_due(at.step):
                turn.update.made(at.step)  # what is called after each step is called, whoever's turn it was
                continue
            self._turn(turn, place, step, at, read, logged)
            if state.retry is not None:
                state.retry.passed()  # from the first update on
            if turn.rests(at.step):
                turn.update.made(at.step)
            elif (norm := turn.update(at.step)) is not None:
                norms.append(norm)
            self.clear_gradients()  # what this loss has left in the parameters of the others is nobody's
        state.schedule.advance(at.step + 1)
        taken = [f"loss/{turn.name}" for turn in self._turns if turn.is_due(at.step)]
        parts = [[scalars[name] for name in taken] for scalars in logged]
        losses = [(torch.stack(own).sum(), scales[0]) for own, scales in zip(parts, step.scales, strict=True)]
        return StepResult(losses, torch.stack(norms).norm() if norms else None, list(logged))

    @property
    def first_whole(self) -> int:
        """The steps before the first one in which every turn is taken."""
        return math.lcm(*(turn.every for turn in self._turns)) - 1

    @staticmethod
    def _read(state: TrainState, step: StepBatch, at: At) -> list[Any]:
        """What every turn gets of each micro-batch: as `data.on_device` makes it, once."""
        if (change := state.data.train.reading.on_device) is None:
            return [batch.data for batch in step.batches]
        return [changed_on_device(state, change, batch, at) for batch in step.batches]

    def _turn(
        self, turn: Turn, place: int, step: StepBatch, at: At, read: Sequence[Any], logged: Sequence[dict[str, Any]]
    ) -> None:
        """Adds the gradients of one loss, over all micro-batches; its values are logged, and what it wants logged."""
        last = len(step.batches) - 1
        context.run.parameters = turn.parameters
        for number, (data, scales) in enumerate(zip(read, step.scales, strict=True)):
            with nullcontext() if number == last else turn.without_sync():
                context.run.batch = data
                if faults.armed:
                    faults.point("forward", at.step)
                call = StepCall(data, at)
                value, factor = turn.module(call), scales[place]
                context.run.batch = None
                if not value.requires_grad:
                    if not turn.rests(at.step):
                        raise LauncherError(f"train.step.{turn.name}: {INDEPENDENT}")
                elif self.scaler is not None:
                    self.scaler.scale(value * factor).backward()
                else:
                    fast_step.backward(value, factor)
            # what is logged is weighed by the first turn's count
            weight = factor / scales[0] if scales[0] else 0.0
            logged[number][f"loss/{turn.name}"] = value.detach() * weight
            logged[number].update(scalars_of(call.rest))

    def gradients(self, state: TrainState, step: StepBatch) -> None:
        """Those of each loss, one after the other; no update follows."""
        read = self._read(state, step, At())
        for place, turn in enumerate(self._turns):
            self._turn(turn, place, step, At(), read, [{} for _ in step.batches])
            self.clear_gradients()

    def clear_gradients(self) -> None:
        """Forgets all gradients."""
        for turn in self._turns:
            turn.update.clear_gradients()

    def check(self) -> None:
        """Before anything is kept: raises if a step since the start was bad."""
        for turn in self._turns:
            turn.update.check()

    @property
    def counts(self) -> Sequence[torch.Tensor]:
        """What the device counts of steps that were not finite, of one turn after the other; nothing on a CPU."""
        return [count for turn in self._turns for count in turn.update.counts]

    def take(self, counts: list[float], last_step: int) -> None:
        """Learns what the device had counted after a step.

        Raises:
            NonFiniteError: Names the first bad step.
        """
        for turn in self._turns:
            if size := len(turn.update.counts):
                turn.update.take(counts[:size], last_step)
                counts = counts[size:]

    def news(self) -> str | None:
        """What was skipped since this was asked last."""
        said = [f"{turn.name}: {text}" for turn in self._turns if (text := turn.update.news())]
        return "; ".join(said) or None
