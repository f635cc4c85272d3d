"""6: evaluation. `evaluate()` knows nothing of ranks: a model, batches and metrics in, figures out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from launcher.data.loaders import MicroBatch
from launcher.data.transfer import with_copies
from launcher.device.kind import kind_of
from launcher.errors import LauncherError
from launcher.evaluation.audit import audit_own
from launcher.evaluation.modes import own_randomness
from launcher.internals import changes_of
from launcher.objective.batch import Evaluated
from launcher.objective.loss import Objective
from launcher.objective.reading import tensors_in
from launcher.objective.run_length import At

if TYPE_CHECKING:
    from launcher.evaluation.metrics import Metric, Scores


Heartbeat = Callable[[int], None]
Seen = Callable[[Evaluated, MicroBatch], None]


def unseen(evaluated: Evaluated, batch: MicroBatch) -> None:
    """Nobody looks at the outputs."""


def evaluate(
    model: nn.Module,
    batches: Iterable[MicroBatch],
    objective: Objective,
    metrics: Sequence[Metric],
    device: torch.device,
    heartbeat: Heartbeat = lambda done: None,
    seen: Seen = unseen,
    at: At | None = None,
    *,
    seed: int = 0,
    rank: int = 0,
    transform: Callable[[Any], Any] | None = None,
) -> Tally:
    """The loss over the batches as sums and counts, and the metrics' state.

    Args:
        model: The unwrapped module, on `device`, in eval mode (evaluation/modes.py).
        batches: In host memory.
        objective: The loss, with what it is a mean over.
        metrics: Metrics, reset here.
        device: Where to compute.
        heartbeat: Called with the number of batches done.
        seen: Called with the outputs and targets of each batch, on `device`.
        at: Where training stands, for a step function.
        seed: The run's: an evaluation has randomness of its own.
        rank: Whose share of the batches it is.
        transform: What is made of each batch on the device.

    Raises:
        LauncherError: A metric cannot take what the model gives; the message names shapes and types.
    """
    tally, idle = (Tally(objective, measured, at or At(), transform) for measured in (metrics, []))
    for metric in metrics:
        metric.reset(device)
    with own_randomness(seed, rank, device), torch.no_grad():
        for done, (batch, data) in enumerate(with_copies(batches, device), start=1):
            if not batch.samples:  # a stand-in: computed, since the others cannot do without, and not counted
                idle.add(model, batch, data, device)
                heartbeat(done)
                continue
            evaluated = tally.add(model, batch, data, device)
            for metric in metrics:
                metric.see(objective.layout, evaluated, model, is_first=tally.samples == batch.samples)
            seen(evaluated, batch)
            heartbeat(done)
    return tally


class Tally:
    """Sums and counts of each term of the loss, and the metrics that were told of the same batches.

    Attributes:
        samples: How many there were.
    """

    def __init__(
        self,
        objective: Objective,
        metrics: Sequence[Metric],
        at: At,
        transform: Callable[[Any], Any] | None = None,
    ):
        self.objective = objective
        self.transform = transform
        self.at = at
        self.metrics = metrics
        self.samples = 0
        self._with_loss = self._without_loss = 0  # batches
        size = len(objective.terms) or 1
        self._sums = torch.zeros(size, dtype=torch.float64)
        self._is_begun = False  # then the sums are where the model is
        self._counts = torch.zeros(size, dtype=torch.float64)

    def add(self, model: nn.Module, batch: MicroBatch, data: Any, device: torch.device) -> Evaluated:
        """Evaluates one batch.

        Args:
            model: The unwrapped module.
            batch: In host memory, where it is counted.
            data: The same on the device.
            device: Where to compute.
        """
        objective = self.objective
        objective.settle()
        if objective.has_exceptions:
            objective.refuse_unforeseen(batch.data, batch.samples)
        counted = batch.data
        if self.transform is not None:
            given, before = data, _marks(objective.counted_in(data))
            data = self.transform(given)
            if _marks(objective.counted_in(data)) != before:
                counted = data  # what was read says nothing of it, and counting waits for the device
        counts = objective.counted(counted, batch.samples)
        if not self.samples and objective.is_brought:  # the first batch
            audit_own(model, objective, data, batch.samples, self.at)
        called = partial(self._called, model, data, batch.samples)
        values, evaluated = objective.own_gradients.call(model, called)
        self.samples += batch.samples
        self._add(objective.weighed(values, counts) if values else [], counts, device)
        return evaluated

    def _called(self, model: nn.Module, data: Any, samples: int) -> tuple[Sequence[torch.Tensor], Evaluated]:
        """The loss of each term on a batch, none where there is no loss; and what the metrics get."""
        objective, layout = self.objective, self.objective.layout
        if objective.step is not None:
            values, result = objective.evaluated_step(model, data, self.at)
            return values, Evaluated(result, data, _tuple(result.get("outputs")), _tuple(result.get("targets")))
        args, kwargs = layout.inputs(data)
        targets = layout.targets(data) if objective.terms or self.metrics else ()
        result = model(*args, **kwargs)
        outputs = layout.outputs(result)
        if objective.terms:
            if not self.samples:  # the first batch
                objective.audit(result, data, samples)
            values = objective.values(result, data)
        else:
            values = [layout.loss(result)] if layout.brings_loss(result) else []
        return values, Evaluated(result, data, *layout.adapted(outputs, targets))

    def _add(self, values: Sequence[torch.Tensor], counts: Sequence[float], device: torch.device) -> None:
        """Adds a batch's values and counts; one without a loss, as a detector's, has none."""
        self._with_loss += bool(values)
        self._without_loss += not values
        if values:
            wide = kind_of(device).wide
            sums = torch.stack([value.detach().to(wide) for value in values])
            self._sums = self._sums + sums if self._is_begun else sums
            self._is_begun = True
            self._counts += torch.tensor(counts, dtype=torch.float64)

    def state(self) -> list[torch.Tensor]:
        """All that `join` needs of this rank, in host memory."""
        batches = [self.samples, self._with_loss, self._without_loss]
        numbers = torch.cat([self._sums.cpu().double(), self._counts, torch.tensor(batches, dtype=torch.float64)])
        return [numbers, *itertools.chain.from_iterable(metric.state() for metric in self.metrics)]

    def join(self, states: Sequence[list[torch.Tensor]]) -> None:
        """Makes this the tally of all ranks' batches together, from the state of each."""
        ranks = [iter(state) for state in states]
        numbers = torch.stack([next(rank) for rank in ranks]).sum(0)
        terms = len(self._counts)
        self._sums, self._counts = numbers[:terms], numbers[terms:-3]
        self.samples, self._with_loss, self._without_loss = map(int, numbers[-3:].tolist())
        for metric in self.metrics:
            metric.join(ranks)

    def scores(self) -> Scores:
        """The mean loss, and each metric's value.

        Raises:
            LauncherError: A metric has none, or there is nothing that was measured.
        """
        self._check_measured()
        scores: Scores = {} if self._without_loss else {"loss": self._mean(), **self._parts()}
        for metric in self.metrics:
            scores.update(metric.scores())
        return scores

    def _check_measured(self) -> None:
        key = "loss: model" if self.objective.step is None else "train.step"
        if self._without_loss and self._with_loss:
            raise LauncherError(f"{key}: gave a loss for some batches of an evaluation, and none for others")
        if self._without_loss and not self.metrics:
            raise LauncherError(
                f"{key}: gives no loss in eval mode, and there are no metrics: nothing is measured; state "
                "evaluate.metrics, or remove data.validation and data.test"
            )

    def _parts(self) -> dict[str, float]:
        """The mean of each term of a sum, without its weight."""
        if len(self.objective.terms) < 2 or not self.samples:
            return {}
        terms = zip(self.objective.terms, self._sums.tolist(), self._divisors(), strict=True)
        return {term.part: total / count if count else math.nan for term, total, count in terms}

    def _mean(self) -> float:
        if not self.samples:
            return math.nan
        weights = [term.weight for term in self.objective.terms] or [1.0]
        parts = zip(weights, self._sums.tolist(), self._divisors(), strict=True)
        return sum(weight * total / count if count else math.nan for weight, total, count in parts)

    def _divisors(self) -> list[float]:
        counts = zip(self._counts.tolist(), self.objective.besides, strict=True)
        return [count + beside for count, beside in counts]


def _marks(parts: Any) -> list[tuple[int, int]]:
    """Which tensors these are, and how often each was changed: equal where nobody has touched them."""
    return [(id(tensor), changes_of(tensor)) for _, tensor in tensors_in(parts)]


def _tuple(value: Any) -> tuple[Any, ...]:
    if value is None:
        return ()
    if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        return (value,)  # a mapping for each sample, as detectors give and get, is one thing
    return tuple(value) if isinstance(value, tuple | list) else (value,)
