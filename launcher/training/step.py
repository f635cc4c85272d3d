"""5: training. One optimizer step."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from launcher.data.load import Data, MicroBatch
from launcher.data.permutation import mix
from launcher.data.transfer import on_device
from launcher.device.coordination import Coordinator, Pending
from launcher.errors import LauncherError
from launcher.objective.loss import INDEPENDENT, At, Objective
from launcher.recipe.schema import LINE_KEYS
from launcher.training import fast_step
from launcher.training.state import TrainState
from launcher.world import context

_AS_EVER = nullcontext()
Scales = Sequence[Sequence[float]]


@dataclass(slots=True)
class StepBatch:
    """What one optimizer step reads.

    Attributes:
        batches: This rank's micro-batches.
        scales: For each of them, a factor for each term of the loss.
        weight: The step's count over all ranks.
        samples: The step's samples over all ranks.
    """

    batches: Sequence[MicroBatch]
    scales: Scales
    weight: float
    samples: int


@dataclass(slots=True)
class StepResult:
    """What one optimizer step leaves: numbers still on the device.

    Attributes:
        parts: Of each micro-batch, a loss and the factor that makes it this rank's part of the step's loss,
            times the world size.
        grad_norm: Norm of all gradients before clipping, where clipped.
        scalars: Of each micro-batch, what a user's step function wants logged.
    """

    parts: list[tuple[torch.Tensor, float]]
    grad_norm: torch.Tensor | None
    scalars: list[Mapping[str, Any]]


def forward(
    train_state: TrainState, batch: MicroBatch, scales: Sequence[float], at: At
) -> tuple[torch.Tensor, float, Mapping[str, Any]]:
    """The loss of one micro-batch, the factor that makes it a part of the step's mean, and scalars to log."""
    objective, layout = train_state.objective, train_state.objective.layout
    data = context.run.batch = batch.data
    logged: Mapping[str, Any] = {}
    if objective.step is not None:
        result = objective.stepped(train_state.model.wrapped, data, at)
        value, factor = result.pop("loss"), scales[0]
        logged = _scalars({key: one for key, one in result.items() if key not in _NO_SCALARS})
    else:
        args, kwargs, targets = layout.split(data)
        result = train_state.model.wrapped(*args, **kwargs)
        if objective.terms:
            value, factor = objective.value(layout.outputs(result), targets, scales)
        else:
            value, factor = layout.loss(result), scales[0]
    context.run.batch = None
    return value, factor, logged


_NO_SCALARS = ("outputs", "targets")  # of what a step function gives: they are for the metrics


def _scalars(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a step function wants logged, left on its device.

    Raises:
        LauncherError: One of them is no number, or is called what a line says by itself.
    """
    for name, value in given.items():
        if name in LINE_KEYS:
            raise LauncherError(f"train.step: a line of metrics.jsonl means something else by '{name}'; rename it")
        is_one = value.numel() == 1 if isinstance(value, torch.Tensor) else isinstance(value, int | float | np.number)
        if not is_one:
            raise LauncherError(f"train.step: '{name}' is a {type(value).__name__}; only single numbers can be logged")
    return {name: value.detach() if isinstance(value, torch.Tensor) else value for name, value in given.items()}


def backward(train_state: TrainState, value: torch.Tensor, factor: float) -> None:
    """Adds this micro-batch's gradients, times `factor`.

    Raises:
        LauncherError: There are none.
    """
    if not value.requires_grad:
        raise LauncherError(f"{'loss' if train_state.objective.step is None else 'train.step'}: {INDEPENDENT}")
    if train_state.scaler is not None:
        train_state.scaler.scale(value * factor).backward()
    else:
        fast_step.backward(value, factor)


def update(train_state: TrainState, step: int) -> torch.Tensor | None:
    """Clips, checks, steps the optimizer, clears the gradients; returns the norm where it clipped."""
    norm = None
    fast_step.lay_out_gradients(train_state.optimizer)
    if train_state.scaler is not None:
        train_state.scaler.unscale_(train_state.optimizer)
    if train_state.clip_grad_norm is not None:
        norm = nn.utils.clip_grad_norm_(train_state.parameters, train_state.clip_grad_norm)
    if train_state.scaler is not None:
        train_state.guard.scaled_step(step)
        stepped = train_state.guard.skipped_in_a_row == 0
    elif stepped := train_state.guard.allows(step):
        train_state.direct.step()
    if stepped and train_state.average is not None:
        train_state.average.update()
    train_state.direct.clear_gradients()
    return norm


class Parts(NamedTuple):
    """What a step is made of; a profiler puts names on them."""

    forward: Callable[[TrainState, MicroBatch, Sequence[float], At], tuple[torch.Tensor, float, Mapping[str, Any]]]
    backward: Callable[[TrainState, torch.Tensor, float], None]
    update: Callable[[TrainState, int], torch.Tensor | None]


PARTS = Parts(forward, backward, update)


def train_step(train_state: TrainState, step: StepBatch, at: At, do: Parts = PARTS) -> StepResult:
    """Forward, loss and backward over the micro-batches, then one update of the weights.

    Args:
        train_state: What it changes.
        step: What it reads.
        at: Where it stands in the run.
        do: How: with names on the parts, where somebody looks.
    """
    parts: list[tuple[torch.Tensor, float]] = []
    scalars: list[Mapping[str, Any]] = []
    last = len(step.batches) - 1
    for number, (batch, scales) in enumerate(zip(step.batches, step.scales, strict=True)):
        with _AS_EVER if number == last else train_state.without_sync():
            value, factor, logged = do.forward(train_state, batch, scales, at)
            do.backward(train_state, value, factor)
        # a compiled model may write the next loss where this one is
        parts.append((value.detach() if number == last else value.detach().clone(), factor))
        scalars.append(logged)
    return StepResult(parts, do.update(train_state, at.step), scalars)


def counted_steps(
    data: Data, objective: Objective, coordinator: Coordinator, start: int, stop: int | None
) -> Generator[StepBatch, None, None]:
    """This rank's steps with every micro-batch's share of the whole step.

    Shares of samples are arithmetic: the same in every step of one size. Counts that are functions of the batch are
    added over the ranks one step ahead, on the side group, so that no step waits for them.
    """
    stream = data.train.steps(start, stop)
    first = next(stream, None)
    if first is None:
        return
    objective.settle(first[0].data)
    batches = itertools.chain([first], stream)
    sizes = map(data.train.sampler.batch_size, itertools.count(start))
    if objective.counts_samples:
        yield from _by_arithmetic(batches, sizes, objective, coordinator.world_size)
    else:
        yield from _by_counting(batches, sizes, objective, coordinator)


def _by_arithmetic(
    stream: Iterable[list[MicroBatch]], sizes: Iterator[int], objective: Objective, world: int
) -> Iterator[StepBatch]:
    scales: dict[int, Scales] = {}  # by the size of a step: there are two, the last one of an epoch may be short
    for batches in stream:
        samples = next(sizes)
        if samples not in scales:
            local = [objective.counts(batch.data, batch.samples) for batch in batches]
            scales[samples] = _scales(objective, batches, local, [float(samples)] * len(local[0]), world)
        yield StepBatch(batches, scales[samples], float(samples), samples)


def _by_counting(
    stream: Iterable[list[MicroBatch]], sizes: Iterator[int], objective: Objective, coordinator: Coordinator
) -> Iterator[StepBatch]:
    ahead: deque[tuple[list[MicroBatch], list[list[float]], Pending]] = deque()

    def oldest() -> StepBatch:
        batches, local, pending = ahead.popleft()
        total = pending.result().tolist()
        return StepBatch(
            batches, _scales(objective, batches, local, total, coordinator.world_size), total[0], next(sizes)
        )

    for batches in stream:
        local = [objective.counts(batch.data, batch.samples) for batch in batches]
        sums = [float(sum(one)) for one in zip(*local, strict=True)]
        ahead.append((batches, local, coordinator.sum(torch.tensor(sums, dtype=torch.float64))))
        if len(ahead) > 1 or coordinator.world_size == 1:
            yield oldest()
    while ahead:
        yield oldest()


def _scales(
    objective: Objective,
    batches: Sequence[MicroBatch],
    local: Sequence[Sequence[float]],
    total: Sequence[float],
    world: int,
) -> Scales:
    return [objective.scales(own, total, world, batch.samples) for own, batch in zip(local, batches, strict=True)]


def seed_step(seed: int, step: int, rank: int, is_gpu: bool) -> None:
    """Seeds torch's generators for one step: randomness is arithmetic, never stored.

    `default_generator.manual_seed` costs 1.5 µs, `torch.manual_seed` 247.
    """
    value = mix(seed, step, rank) & 0x7FFFFFFFFFFFFFFF
    torch.default_generator.manual_seed(value)
    if is_gpu:
        torch.cuda.manual_seed(value)


def timed(steps: Iterator[StepBatch]) -> Iterator[tuple[StepBatch, float]]:
    """Each step with the seconds that it was waited for."""
    while True:
        before = time.perf_counter()
        step = next(steps, None)
        if step is None:
            return
        yield step, time.perf_counter() - before


def warm_up(train_state: TrainState, data: Data) -> None:
    """One forward and backward whose result is thrown away; buffers are put back."""
    buffers = {name: buffer.clone() for name, buffer in train_state.model.bare.named_buffers()}
    steps = counted_steps(data, train_state.objective, train_state.device.coordinator, 0, 1)
    step = next(on_device(steps, train_state.device.torch_device))
    value, factor, _ = forward(train_state, step.batches[-1], step.scales[-1], At())
    backward(train_state, value, factor)
    train_state.direct.clear_gradients()
    with torch.no_grad():
        for name, buffer in train_state.model.bare.named_buffers():
            buffer.copy_(buffers[name])
