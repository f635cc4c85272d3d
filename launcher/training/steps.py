"""5: training. The stream of steps: each with every micro-batch's share of the whole."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from launcher.data.loaders import MicroBatch
from launcher.device.coordination import Coordinator, Pending
from launcher.objective.loss import Objective
from launcher.objective.padding import Padding
from launcher.training.state import TrainState

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


def counted_steps(state: TrainState, start: int, stop: int | None) -> Generator[StepBatch, None, None]:
    """This rank's steps with every micro-batch's share of the whole step.

    Shares of samples are arithmetic: the same in every step of one size. Counts that are functions of the batch are
    added over the ranks one step ahead, on the side group, so that no step waits for them.
    """
    data, objective, coordinator = state.data, state.objective, state.device.coordinator
    stream = data.train.steps(start, stop)
    first = next(stream, None)
    if first is None:
        return
    objective.settle()
    batches = itertools.chain([first], stream)
    sizes = map(data.train.sampler.batch_size, itertools.count(start))
    may_pad = data.train.reading.collate is not None and not objective.is_whole
    padding = Padding(objective, lambda: data.train.draws) if may_pad else None
    if objective.counts_samples:
        yield from _by_arithmetic(batches, sizes, objective, coordinator.world_size)
    elif coordinator.world_size == 1:
        yield from _by_counting_alone(batches, sizes, objective, padding)
    else:
        yield from _by_counting(batches, sizes, objective, coordinator, padding)


def _by_arithmetic(
    stream: Iterable[list[MicroBatch]], sizes: Iterator[int], objective: Objective, world: int
) -> Iterator[StepBatch]:
    scales: dict[int, Scales] = {}  # by the size of a step: there are two, the last one of an epoch may be short
    for batches in stream:
        samples = next(sizes)
        if samples not in scales:
            local = [objective.counts(batch.data, batch.samples) for batch in batches]
            scales[samples] = _scales(objective, batches, local, objective.counts(None, samples), world)
        yield StepBatch(batches, scales[samples], float(samples), samples)


def _by_counting_alone(
    stream: Iterable[list[MicroBatch]], sizes: Iterator[int], objective: Objective, padding: Padding | None
) -> Iterator[StepBatch]:
    for batches in stream:
        if len(batches) == 1:
            total = objective.counts(batches[0].data, batches[0].samples)
            scales: Scales = [objective.scales(total, total, 1, batches[0].samples)]
        else:
            local = [objective.counts(batch.data, batch.samples) for batch in batches]
            total = [sum(counts) for counts in zip(*local, strict=True)]
            if padding:
                rows = [padding.rows(batch.data, batch.samples) for batch in batches]
                padding.check([*zip(local, rows, strict=True)], [*total, *map(sum, zip(*rows, strict=True))])
            scales = _scales(objective, batches, local, total, 1)
        yield StepBatch(batches, scales, total[0], next(sizes))


def _by_counting(
    stream: Iterable[list[MicroBatch]],
    sizes: Iterator[int],
    objective: Objective,
    coordinator: Coordinator,
    padding: Padding | None,
) -> Iterator[StepBatch]:
    ahead: deque[tuple[list[MicroBatch], list[list[float]], list[list[float]], Pending]] = deque()

    def oldest() -> StepBatch:
        batches, local, rows, pending = ahead.popleft()
        total = pending.result().tolist()
        if padding:
            padding.check([*zip(local, rows, strict=True)], total)
        return StepBatch(
            batches, _scales(objective, batches, local, total, coordinator.world_size), total[0], next(sizes)
        )

    for batches in stream:
        local = [objective.counts(batch.data, batch.samples) for batch in batches]
        rows = [padding.rows(batch.data, batch.samples) if padding else [] for batch in batches]
        sums = [float(sum(numbers)) for table in (local, rows) for numbers in zip(*table, strict=True)]
        ahead.append((batches, local, rows, coordinator.sum(torch.tensor(sums, dtype=torch.float64))))
        if len(ahead) > 1:
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


class FromAnyStep(Iterator[StepBatch]):
    """A stream of steps that can begin again at any step.

    Args:
        make: Gives the steps after so many.
        start: So many are completed.
    """

    def __init__(self, make: Callable[[int], Generator[StepBatch, None, None]], start: int):
        self._make = make
        self._steps = make(start)

    def __next__(self) -> StepBatch:
        """The next step."""
        return next(self._steps)

    def restart(self, start: int) -> None:
        """Continues with the step after so many, read again."""
        self._steps.close()
        self._steps = self._make(start)

    def close(self) -> None:
        """Ends it."""
        self._steps.close()


def timed(steps: Iterator[StepBatch]) -> Iterator[tuple[StepBatch, float]]:
    """Each step with the seconds that it was waited for."""
    while True:
        before = time.perf_counter()
        step = next(steps, None)
        if step is None:
            return
        yield step, time.perf_counter() - before
