"""5: training. One optimizer step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from launcher.data.load import MicroBatch
from launcher.data.transfer import on_device
from launcher.errors import LauncherError, UsageError
from launcher.evaluation.audit import audit_own
from launcher.evaluation.modes import own_randomness
from launcher.evaluation.unmoved import Unmoved
from launcher.internals import batch_norms
from launcher.objective.loss import INDEPENDENT
from launcher.objective.run_length import At
from launcher.recipe.line_keys import LINE_KEYS
from launcher.training import fast_step
from launcher.training.state import TrainState
from launcher.training.step_module import StepCall
from launcher.training.steps import StepBatch, counted_steps
from launcher.training.update import OneUpdate
from launcher.world import context, faults

_SYNCHRONISED = nullcontext()
_LOOKS_EVERY = 100  # steps


@dataclass(slots=True)
class StepResult:
    """What one optimizer step leaves: numbers still on the device.

    Attributes:
        losses: Of each micro-batch, a loss and the factor that makes it this rank's part of the step's loss,
            times the world size.
        grad_norm: Norm of all gradients before clipping, where clipped.
        scalars: Of each micro-batch, what a user's step function wants logged.
    """

    losses: list[tuple[torch.Tensor, float]]
    grad_norm: torch.Tensor | None
    scalars: list[Mapping[str, Any]]


def train_step(state: TrainState, step: StepBatch, at: At, do: Parts | None = None) -> StepResult:
    """One optimizer step, in the order in which it is read; a line stands for what is done elsewhere, and says where.

    Args:
        state: What the step changes.
        step: What it reads.
        at: Where it stands in the run.
        do: Its parts, with names on them where a profiler looks.

    Raises:
        LauncherError: The loss does not depend on the model, or a gradient is not finite.
    """
    do = do or PARTS

    # Mode: set before the first step (training/loop.py), and put back by each evaluation (evaluation/modes.py).

    # The batch to the device: begun one step ago, beside the GPU's work on the one before (data/transfer.py).

    # Randomness: a function of seed, step and rank; no generator is ever saved.
    state.seeds(at.step)

    if state.freezing is not None:
        state.freezing.begin(at.step)

    # Zero the gradients: done at the end of the update before, which gives their memory back (training/update.py).

    # Forward of each micro-batch, and the loss.
    # Backward: adds its part to the gradients. What runs out of memory until here can be made again, in smaller pieces.
    if state.retry is not None:
        state.retry.begin(state)
    losses, scalars = accumulate(state, step, at, do)
    if state.retry is not None:
        state.retry.passed()

    # Clip, and the optimizer's step.
    grad_norm = do.update(state, at.step)

    # Schedule: the learning rate of the next step.
    state.schedule.advance(at.step + 1)
    return StepResult(losses, grad_norm, scalars)


def accumulate(
    state: TrainState, step: StepBatch, at: At, do: Parts
) -> tuple[list[tuple[torch.Tensor, float]], list[Mapping[str, Any]]]:
    """The step's gradients, from all micro-batches of all ranks; gives their losses, and scalars to log."""
    losses: list[tuple[torch.Tensor, float]] = []
    scalars: list[Mapping[str, Any]] = []
    last = len(step.batches) - 1
    for number, (batch, scales) in enumerate(zip(step.batches, step.scales, strict=True)):
        with _SYNCHRONISED if number == last else state.without_sync():
            if faults.armed:
                faults.point("forward", at.step)
            loss, factor, logged = do.forward(state, batch, scales, at)
            if faults.armed:
                faults.point("backward", at.step)
            do.backward(state, loss, factor)
        # A compiled model may write the next loss where this one is.
        losses.append((loss.detach() if number == last else loss.detach().clone(), factor))
        scalars.append(logged)
    return losses, scalars


def forward(
    state: TrainState, batch: MicroBatch, scales: Sequence[float], at: At
) -> tuple[torch.Tensor, float, Mapping[str, Any]]:
    """The loss of one micro-batch, the factor that makes it a part of the step's mean, and scalars to log."""
    objective, layout = state.objective, state.objective.layout
    data = context.run.batch = batch.data
    if (change := state.data.train.reading.on_device) is not None:
        data = context.run.batch = changed_on_device(state, change, batch, at)
    logged: Mapping[str, Any] = {}
    if state.model.has_graphs:
        torch.compiler.cudagraph_mark_step_begin()  # what the last step gave may be written over
    if not objective.is_audited and not objective.terms:
        audit_own(state.model.bare, objective, data, batch.samples, at)
        objective.mark_audited()
    if objective.step is not None:
        call = StepCall(data, at)
        value, factor = state.model.wrapped(call), scales[0]
        logged = scalars_of(call.rest)
    elif not objective.terms:  # the model brings its loss, and needs no targets
        args, kwargs = layout.inputs(data)
        result = state.model.wrapped(*args, **kwargs)
        value, factor, logged = layout.loss(result), scales[0], objective.own_parts(result)
    else:
        args, kwargs, targets = layout.split(data)
        result = state.model.wrapped(*args, **kwargs)
        if not objective.is_audited:
            objective.audit(result, data, batch.samples)
            objective.mark_audited()
        value, factor, logged = objective.value(result, data, targets, scales)
    if factor == 0 and not objective.terms:
        value = _of_nothing(state, value)
    context.run.batch = None
    if state.frozen:
        _check_frozen(state.frozen)
    return value, factor, logged


def changed_on_device(state: TrainState, change: Callable[[Any], Any], batch: MicroBatch, at: At) -> Any:
    """The batch as `data.on_device` makes it: of which the loss must count what was counted of what was read.

    Looked at in each step on a CPU, and now and then where counting waits for the device.
    """
    objective = state.objective
    is_looked_at = state.device.kind.is_host or not objective.is_audited or at.step % _LOOKS_EVERY == 0
    needs_counts = not objective.is_whole or any(term.sums for term in objective.terms)
    if not (batch.samples and is_looked_at and needs_counts) or objective.counts_by_samples:
        return change(batch.data)
    was = objective.counted(batch.data, batch.samples)
    data = change(batch.data)
    objective.check_changed(was, data, batch.samples)
    return data


def _of_nothing(state: TrainState, value: torch.Tensor) -> torch.Tensor:
    """A loss of a batch in which nothing counts: where it is a mean of nothing, NaN × 0 would be NaN.

    Zero by way of the parameters stands in its place, since DDP waits for a gradient of each.
    """
    if value.isfinite():
        return value
    trained = [parameter for parameter in state.model.bare.parameters() if parameter.requires_grad]
    return torch.stack([parameter.sum().real for parameter in trained]).sum() * 0.0


def _check_frozen(frozen: Mapping[str, torch.Tensor]) -> None:
    """Refuses parameters that somebody has begun to train: neither the optimizer nor the other ranks know of them.

    Raises:
        UsageError: There is one.
    """
    thawed = [name for name, parameter in frozen.items() if parameter.requires_grad]
    if thawed:
        more = f" and {len(thawed) - 1} more" if len(thawed) > 1 else ""
        raise UsageError(
            f"model: '{thawed[0]}'{more} was frozen when the run began and requires a gradient now; what the optimizer "
            "trains is settled then: let it require one from the beginning (a group of optimizer._groups_ may have "
            "lr: 0), or continue in a new run with train.start_from"
        )


_NO_SCALARS = ("outputs", "targets")  # of what a step function gives: they are for the metrics


def scalars_of(rest: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a step function wants logged of what it gave besides the loss, left on its device.

    Raises:
        LauncherError: One of them is not a number, or is called what a line says by itself.
    """
    given = {key: value for key, value in rest.items() if key not in _NO_SCALARS}
    for name, value in given.items():
        if name in LINE_KEYS:
            raise LauncherError(f"train.step: a line of metrics.jsonl means something else by '{name}'; rename it")
        is_one = value.numel() == 1 if isinstance(value, torch.Tensor) else isinstance(value, int | float | np.number)
        if not is_one:
            raise LauncherError(f"train.step: '{name}' is a {type(value).__name__}; only single numbers can be logged")
    return {name: value.detach() if isinstance(value, torch.Tensor) else value for name, value in given.items()}


def backward(state: TrainState, value: torch.Tensor, factor: float) -> None:
    """Adds this micro-batch's gradients, times `factor`.

    Raises:
        LauncherError: There are none.
    """
    if not value.requires_grad:
        raise LauncherError(f"{'loss' if state.objective.step is None else 'train.step'}: {INDEPENDENT}")
    if state.update.scaler is not None:
        state.update.scaler.scale(value * factor).backward()
    else:
        fast_step.backward(value, factor)


def update(state: TrainState, step: int) -> torch.Tensor | None:
    """The weights from the gradients, as the run's optimizers do it; the gradients' norm where they are clipped."""
    assert isinstance(state.update, OneUpdate)
    return state.update(step)


class Parts(NamedTuple):
    """What a step is made of; a profiler puts names on them."""

    forward: Callable[[TrainState, MicroBatch, Sequence[float], At], tuple[torch.Tensor, float, Mapping[str, Any]]]
    backward: Callable[[TrainState, torch.Tensor, float], None]
    update: Callable[[TrainState, int], torch.Tensor | None]


PARTS = Parts(forward, backward, update)


def warm_up(state: TrainState, gradients: Callable[[TrainState, StepBatch], None] | None = None) -> None:
    """One forward and backward whose result is thrown away, and nothing of what they have moved is left behind.

    Args:
        state: Whose modules these are.
        gradients: Makes them; None makes those of a step's last micro-batch.
    """
    unmoved = Unmoved.of_run(state.model.bare, state.objective)
    norms = [one for one in state.model.bare.modules() if isinstance(one, batch_norms()) and one.training]
    for norm in norms:  # a train() of the model's own, not called yet, may freeze it, and one sample has no variance
        norm.training = False
    with own_randomness(state.seeds.seed, state.device.world.rank, state.device.torch_device):
        steps = counted_steps(replace(state, data=replace(state.data, train=state.data.train.apart())), 0, 1)
        step = next(on_device(steps, state.device.torch_device))
        (gradients or _last_gradients)(state, step)
    for norm in norms:
        norm.training = True
    state.update.clear_gradients()
    unmoved.put_back()


def _last_gradients(state: TrainState, step: StepBatch) -> None:
    """The gradients of a step's last micro-batch."""
    value, factor, _ = forward(state, step.batches[-1], step.scales[-1], At())
    backward(state, value, factor)
