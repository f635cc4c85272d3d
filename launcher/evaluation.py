"""6: evaluation. Eval mode, no gradients, every sample once; `evaluate()` knows nothing of ranks."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import send_to_device
from torch import nn

from launcher import faults
from launcher.data.loaders import EvaluationLoader, MicroBatch
from launcher.errors import LauncherError
from launcher.objective import Objective
from launcher.recipe import schema
from launcher.recipe.components import Workshop
from launcher.tracking import Line, Tracking

if TYPE_CHECKING:
    from launcher.training import Trainable

Scores = dict[str, Any]  # "loss" and each metric by its name: a number, or a list of them per class
Heartbeat = Callable[[int], None]


@dataclass(frozen=True)
class At:
    """Where a step stands in its run; a user's step function gets it.

    Attributes:
        step: Optimizer steps completed before this one.
        epoch: The pass over the data, from 0.
        fraction: How much of the run is done, 0 to 1; 0 where its length is a time.
    """

    step: int = 0
    epoch: int = 0
    fraction: float = 0.0


def evaluate(
    model: nn.Module,
    batches: Iterable[MicroBatch],
    objective: Objective,
    metrics: Mapping[str, Any],
    device: torch.device,
    at: At | None = None,
    heartbeat: Heartbeat = lambda done: None,
) -> Scores:
    """Mean loss and metrics over the batches; the model is left as it was found.

    Args:
        model: The unwrapped module, on `device`.
        batches: In host memory.
        objective: The loss, with what it is a mean over.
        metrics: torchmetrics by name, reset here.
        device: Where to compute.
        at: Handed to a user's step function.
        heartbeat: Called with the number of batches done.

    Raises:
        LauncherError: A metric cannot take what the model gives; the message names shapes and types.
    """
    tally = _Tally(objective)
    for metric in metrics.values():
        metric.reset()
    with _evaluating(model), torch.no_grad():
        for done, batch in enumerate(batches, start=1):
            outputs, targets = tally.add(model, batch, device, at or At())
            for name, metric in metrics.items():
                _update(name, metric, outputs, targets)
            heartbeat(done)
    return {"loss": tally.mean(), **_computed(metrics)}


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode for a while; afterwards each module is in the mode it was in (a frozen one stays frozen)."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


class _Tally:
    """Sums and counts of each term of the loss."""

    def __init__(self, objective: Objective):
        self.objective = objective
        self.sums: list[Any] = []
        self.counts: list[float] = []

    def add(self, model: nn.Module, batch: MicroBatch, device: torch.device, at: At) -> tuple[Any, Any]:
        """Evaluates one batch; returns its outputs and targets."""
        objective, layout = self.objective, self.objective.layout
        objective.settle(batch.data)
        counts = objective.counts(batch.data, batch.samples)
        data = batch.data if device.type == "cpu" else send_to_device(batch.data, device, non_blocking=True)
        if objective.step is not None:
            result = objective.step(model, data, at)
            values = [result["loss"] * counts[0]]
            outputs, targets = _tuple(result.get("outputs")), _tuple(result.get("targets"))
        else:
            args, kwargs, targets = layout.split(data)
            result = model(*args, **kwargs)
            outputs = layout.outputs(result)
            if objective.terms:
                values = [
                    term.function(*outputs, *targets) * (1.0 if term.sums else count)
                    for term, count in zip(objective.terms, counts, strict=True)
                ]
            else:
                values = [layout.loss(result) * counts[0]]
        values = [value.double() for value in values]
        self.sums = [a + b for a, b in zip(self.sums, values, strict=True)] if self.sums else values
        self.counts = [a + b for a, b in zip(self.counts, counts, strict=True)] if self.counts else counts
        return outputs, targets

    def mean(self) -> float:
        weights = [term.weight for term in self.objective.terms] or [1.0]
        parts = zip(weights, self.sums, self.counts, strict=True) if self.sums else ()
        return sum((w * float(s) / c if c else math.nan for w, s, c in parts), 0.0) if self.sums else math.nan


def _tuple(value: Any) -> tuple[Any, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _update(name: str, metric: Any, outputs: Any, targets: Any) -> None:
    try:
        metric.update(*outputs, *targets)
    except Exception as error:
        shapes = ", ".join(f"{tuple(one.shape)} {one.dtype}" for one in (*outputs, *targets) if hasattr(one, "shape"))
        raise LauncherError(
            f"evaluate.metrics.{name}: {type(metric).__name__} cannot take outputs and targets of {shapes}: {error}"
        ) from error


def _computed(metrics: Mapping[str, Any]) -> Scores:
    scores: Scores = {}
    for name, metric in metrics.items():
        value = metric.compute()
        if isinstance(value, Mapping):  # a MetricCollection
            scores.update({f"{name}/{key}": _plain(one) for key, one in value.items()})
        else:
            scores[name] = _plain(value)
    return scores


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, torch.Tensor) else value


def build_metrics(workshop: Workshop, device: torch.device) -> dict[str, Any]:
    """The recipe's metrics on the device, told never to talk to other ranks by themselves.

    torchmetrics' `compute()` gathers over the main process group and would hang where one rank evaluates.
    """
    metrics: dict[str, Any] = {}
    for name, component in workshop.recipe.evaluate.metrics.items():
        metric = workshop.build(component)
        for one in metric.values() if hasattr(metric, "values") else [metric]:
            one.sync_on_compute = one._to_sync = False  # the second is read once, when a metric is made
        metrics[name] = metric.to(device)
    return metrics


@dataclass
class Judge:
    """Keeps the best evaluation, and says when it is time to stop.

    Attributes:
        best: The recipe's `evaluate.best`.
        early_stop: The recipe's `evaluate.early_stop`.
        value: The best value so far, None before the first that is a number.
        step: When it was.
        since: Evaluations since the last improvement.
    """

    best: schema.Best | None
    early_stop: schema.EarlyStop | None = None
    value: float | None = None
    step: int | None = None
    since: int = field(default=0)

    def see(self, step: int, value: float) -> bool:
        """Takes an evaluation's value in; whether it is the best so far. NaN never is."""
        if self._improves(value, 0.0):
            delta = self.early_stop.min_delta if self.early_stop else 0.0
            self.since = 0 if self._improves(value, delta) else self.since + 1
            self.value, self.step = value, step
            return True
        self.since += 1
        return False

    def _improves(self, value: float, delta: float) -> bool:
        if self.best is None or math.isnan(value):
            return False
        if self.value is None:
            return True
        return value > self.value + delta if self.best.mode == "max" else value < self.value - delta

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"value": self.value, "step": self.step, "since": self.since, "by": self._by}

    def load(self, state: Mapping[str, Any]) -> None:
        """Takes up what a checkpoint kept, if it was judged by the same metric."""
        if state["by"] == self._by:
            self.value, self.step, self.since = state["value"], state["step"], state["since"]

    @property
    def _by(self) -> list[Any] | None:
        return [self.best.metric, self.best.mode, self.best.of] if self.best is not None else None

    @property
    def is_patient(self) -> bool:
        """Whether training may go on."""
        return self.early_stop is None or self.since < self.early_stop.patience


class _StopRequested(Exception):  # noqa: N818  # not an error
    """This process was asked to stop in the middle of an evaluation."""


class Evaluation:
    """The loop's edge: when an evaluation is due, rank 0 makes it and all learn what follows.

    Args:
        section: The recipe's `evaluate`.
        sets: What to evaluate on, by name.
        trainable: The model as training left it, the loss and the schedule.
        metrics: torchmetrics by name, built on rank 0 only.
        tracking: Where the lines go.
        judge: The best so far.
        stopping: Whether this process was asked to stop.
    """

    def __init__(
        self,
        section: schema.Evaluate,
        sets: Mapping[str, EvaluationLoader],
        trainable: Trainable,
        metrics: Mapping[str, Any],
        tracking: Tracking,
        judge: Judge,
        stopping: Callable[[], bool] = lambda: False,
    ):
        self.section = section
        self.sets = sets
        self.trainable = trainable
        self.metrics = metrics
        self.tracking = tracking
        self.judge = judge
        self.stopping = stopping
        self.last_step: int | None = None
        self.lines: list[Line] = []  # of the last evaluation
        self.made: Callable[[int, float], None] = lambda step, seconds: None  # told of each, with its seconds
        self.improved = False

    @property
    def goes_on(self) -> bool:
        """Whether early stopping lets training go on."""
        return self.judge.is_patient

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"step": self.last_step, "lines": self.lines}

    def load(self, state: Mapping[str, Any]) -> None:
        """Takes up what a checkpoint kept."""
        self.last_step, self.lines = state["step"], list(state["lines"])

    def run(self, step: int, epoch: float) -> bool:
        """Evaluates the validation sets after `step` steps; all ranks call it, rank 0 computes.

        Returns:
            Whether it was made to its end: rank 0 leaves it when it is asked to stop, and the next start makes it.

        Raises:
            PeerError: On the other ranks, when rank 0 failed.
        """
        self.improved = False
        if not self.sets:
            return True
        lines = self.measured(self.sets, "validation", step, epoch)
        if lines is None:
            return False
        self.lines, self.last_step = lines, step
        if self.section.best is not None:
            value = self._deciding(self.section.best)
            self.improved = self.judge.see(step, value)
            self.trainable.schedule.evaluated(value)
        return True

    def measured(self, sets: Mapping[str, EvaluationLoader], split: str, step: int, epoch: float) -> list[Line] | None:
        """One line for each set, computed by rank 0 and told to all; None where rank 0 was asked to stop."""

        def measure() -> list[Line] | None:
            try:
                return self._measure(sets, split, step, epoch)
            except _StopRequested:
                return None

        began = time.perf_counter()
        lines: list[Line] | None = self.trainable.device.coordinator.from_first(measure)
        for line in lines or ():
            self.tracking.log(line)
        self.made(step, time.perf_counter() - began)
        return lines

    def _measure(self, sets: Mapping[str, EvaluationLoader], split: str, step: int, epoch: float) -> list[Line]:
        device = self.trainable.device
        lines: list[Line] = []
        for name, loader in sets.items():
            scores = evaluate(
                self.trainable.model.bare,
                loader.batches(),
                self.trainable.objective,
                self.metrics,
                device.torch_device,
                heartbeat=partial(self._beat, loader.num_batches(), split, step),
            )
            label = {"name": name} if name else {}
            lines.append({"step": step, "epoch": round(epoch, 6), "split": split, **label, **scores})
        return lines

    def _beat(self, total: int, split: str, step: int, done: int) -> None:
        self.tracking.evaluating(done, total, split)
        faults.point("evaluation.batch", step)
        if self.stopping():
            raise _StopRequested

    def _deciding(self, best: schema.Best) -> float:
        """The value of the metric that decides, in the set that decides."""
        name = best.of if best.of is not None else next(iter(self.sets))
        line = next(line for line in self.lines if line.get("name", "") == name)
        value = line[best.metric]
        return float(value)
