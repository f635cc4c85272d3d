"""6: evaluation. Eval mode, no gradients, every sample once; `evaluate()` knows nothing of ranks."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from accelerate.utils import send_to_device
from torch import nn

from launcher import faults
from launcher.averages import Average
from launcher.batch import Evaluated
from launcher.coordination import Coordinator, packed, unpacked
from launcher.data.loaders import EvaluationLoader, MicroBatch
from launcher.data.streams import StreamEvaluationLoader
from launcher.device import Device
from launcher.errors import LauncherError
from launcher.judge import Judge, deciding_set, value_of
from launcher.model import Model
from launcher.objective import At, Objective
from launcher.recipe import schema
from launcher.tracking import Line, Tracking
from launcher.watch import Patience, Progress

if TYPE_CHECKING:
    from launcher.measures import Measure, Scores  # brings torchmetrics, which a run without metrics need not wait for

Heartbeat = Callable[[int], None]
Seen = Callable[[Sequence[Any], Sequence[Any], MicroBatch], None]  # outputs, targets, and the batch they belong to
Look = Callable[[str, str], Seen]  # gives what sees the batches of a set, by its split and name
_LENIENCE = 2.0  # seconds
AVERAGED = "ema/"  # before the name of a score of the averaged weights


def unseen(outputs: Sequence[Any], targets: Sequence[Any], batch: MicroBatch) -> None:
    """Nobody looks at the outputs."""


def evaluate(
    model: nn.Module,
    batches: Iterable[MicroBatch],
    objective: Objective,
    measures: Sequence[Measure],
    device: torch.device,
    heartbeat: Heartbeat = lambda done: None,
    seen: Seen = unseen,
) -> Tally:
    """The loss over the batches as sums and counts, and the metrics' state; the model is left as it was found.

    Args:
        model: The unwrapped module, on `device`.
        batches: In host memory.
        objective: The loss, with what it is a mean over.
        measures: Metrics, reset here.
        device: Where to compute.
        heartbeat: Called with the number of batches done.
        seen: Called with the outputs and targets of each batch, on `device`.

    Raises:
        LauncherError: A metric cannot take what the model gives; the message names shapes and types.
    """
    tally = Tally(objective, measures)
    for measure in measures:
        measure.reset(device)
    with _evaluating(model, device), torch.no_grad():
        for done, batch in enumerate(batches, start=1):
            evaluated = tally.add(model, batch, device)
            for measure in measures:
                measure.see(objective.layout, evaluated, is_first=done == 1)
            seen(evaluated.outputs, evaluated.targets, batch)
            heartbeat(done)
    return tally


@contextmanager
def _evaluating(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Eval mode and randomness of its own for a while.

    Afterwards each module is in the mode it was in (a frozen one stays frozen), and torch's generators go on where
    they were: evaluating or not changes nothing in training.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.default_generator.manual_seed(0)
            yield
    finally:
        for module, training in modes:
            module.training = training


class Tally:
    """Sums and counts of each term of the loss, and the metrics that were told of the same batches.

    Attributes:
        samples: How many there were.
    """

    def __init__(self, objective: Objective, measures: Sequence[Measure]):
        self.objective = objective
        self.measures = measures
        self.samples = 0
        size = len(objective.terms) or 1
        self._sums = torch.zeros(size, dtype=torch.float64)
        self._counts = torch.zeros(size, dtype=torch.float64)

    def add(self, model: nn.Module, batch: MicroBatch, device: torch.device) -> Evaluated:
        """Evaluates one batch."""
        objective, layout = self.objective, self.objective.layout
        objective.settle()
        counts = objective.counts(batch.data, batch.samples)
        data = batch.data if device.type == "cpu" else send_to_device(batch.data, device, non_blocking=True)
        if objective.step is not None:
            result = objective.stepped(model, data, At())
            values = [result["loss"]]
            outputs, targets = _tuple(result.get("outputs")), _tuple(result.get("targets"))
        else:
            args, kwargs = layout.inputs(data)
            targets = layout.targets(data) if objective.terms or self.measures else ()
            result = model(*args, **kwargs)
            outputs = layout.outputs(result)
            if objective.terms:
                if not self.samples:  # the first batch
                    objective.audit(result, data, batch.samples)
                values = [term.value(term.function, layout, result, data) for term in objective.terms]
            else:
                values = [layout.loss(result)]
        values = objective.weighed(values, counts)
        self.samples += batch.samples
        self._sums = self._sums.to(device) + torch.stack([value.detach().double() for value in values])
        self._counts += torch.tensor(counts, dtype=torch.float64)
        return Evaluated(result, data, outputs, targets)

    def state(self) -> list[torch.Tensor]:
        """All that `join` needs of this rank, in host memory."""
        numbers = torch.cat([self._sums.cpu(), self._counts, torch.tensor([float(self.samples)], dtype=torch.float64)])
        return [numbers, *itertools.chain.from_iterable(measure.state() for measure in self.measures)]

    def join(self, states: Sequence[list[torch.Tensor]]) -> None:
        """Makes this the tally of all ranks' batches together, from the state of each."""
        ranks = [iter(state) for state in states]
        numbers = torch.stack([next(rank) for rank in ranks]).sum(0)
        terms = len(self._counts)
        self._sums, self._counts, self.samples = numbers[:terms], numbers[terms:-1], int(numbers[-1])
        for measure in self.measures:
            measure.join(ranks)

    def scores(self) -> Scores:
        """The mean loss, and each metric's value.

        Raises:
            LauncherError: A metric has none.
        """
        scores: Scores = {"loss": self._mean(), **self._parts()}
        for measure in self.measures:
            scores.update(measure.scores())
        return scores

    def _parts(self) -> dict[str, float]:
        """The mean of each term of a sum, without its weight."""
        if len(self.objective.terms) < 2 or not self.samples:
            return {}
        terms = zip(self.objective.terms, self._sums.tolist(), self._counts.tolist(), strict=True)
        return {term.part: total / count if count else math.nan for term, total, count in terms}

    def _mean(self) -> float:
        if not self.samples:
            return math.nan
        weights = [term.weight for term in self.objective.terms] or [1.0]
        parts = zip(weights, self._sums.tolist(), self._counts.tolist(), strict=True)
        return sum(weight * total / count if count else math.nan for weight, total, count in parts)


def _tuple(value: Any) -> tuple[Any, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, tuple | list) else (value,)


class Evaluable(Protocol):
    """What is evaluated: a model in training, or one that was saved."""

    model: Model
    objective: Objective
    device: Device
    average: Average | None


class _StopRequested(Exception):  # noqa: N818  # not an error
    """This process was asked to stop in the middle of an evaluation."""


class Evaluation:
    """The loop's edge: who evaluates when it is due, and that all ranks learn what follows.

    Args:
        section: The recipe's `evaluate`.
        sets: What to evaluate on, by name.
        trainable: The model as training left it, and its loss.
        measures: The metrics, on the ranks that evaluate.
        tracking: Where the lines go.
        judge: The best so far.
        stopping: Whether this process was asked to stop.
        folder: The run's, for word of what hangs.
    """

    def __init__(
        self,
        section: schema.Evaluate,
        sets: Mapping[str, EvaluationLoader],
        trainable: Evaluable,
        measures: Sequence[Measure],
        tracking: Tracking,
        judge: Judge,
        stopping: Callable[[], bool] = lambda: False,
        folder: Path | None = None,
    ):
        self.section = section
        self.sets = sets
        self.trainable = trainable
        self.measures = measures
        self.tracking = tracking
        self.judge = judge
        self.stopping = stopping
        self.folder = folder
        self.last_step: int | None = None
        self.is_owed = False  # one was begun and left, since this process was asked to stop
        self.lines: list[Line] = []  # of the last evaluation
        self.made: Callable[[int, float], None] = lambda step, seconds: None  # told of each, with its seconds
        self.judged: Callable[[float], None] = lambda value: None  # told of the value that decides
        self.look: Look = lambda split, name: unseen  # at the batches of each set, with the weights as they are
        self.improved = False

    @property
    def goes_on(self) -> bool:
        """Whether early stopping lets training go on."""
        return self.judge.is_patient

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"step": self.last_step, "lines": self.lines, "owed": self.is_owed}

    def load(self, state: Mapping[str, Any]) -> None:
        """Takes up what a checkpoint kept."""
        self.last_step, self.lines, self.is_owed = state["step"], list(state["lines"]), state["owed"]

    def run(self, step: int, epoch: float) -> bool:
        """Evaluates the validation sets after `step` steps; all ranks call it.

        Returns:
            Whether it was made to its end: a rank leaves it when it is asked to stop, and the next start makes it.

        Raises:
            PeerError: On the other ranks, when one failed.
        """
        self.improved = False
        if not self.sets:
            return True
        lines = self.measured(self.sets, "validation", step, epoch)
        self.is_owed = lines is None
        if lines is None:
            return False
        self.lines, self.last_step = lines, step
        if self.section.best is not None:
            value = self._deciding(self.section.best)
            self.improved = self.judge.see(step, value)
            self.judged(value)
        return True

    def measured(self, sets: Mapping[str, EvaluationLoader], split: str, step: int, epoch: float) -> list[Line] | None:
        """One line for each set, told to all ranks; None where one that evaluates was asked to stop."""
        began = time.perf_counter()
        measure = self._by_all if self.is_shared else self._by_first
        lines = measure(sets, split, step, epoch)
        for line in lines or ():
            self.tracking.log(line)
        self.made(step, time.perf_counter() - began)
        return lines

    @property
    def is_shared(self) -> bool:
        """Whether every rank evaluates a share."""
        return self.section.ranks == "all" and self.trainable.device.world.size > 1

    def _by_first(self, sets: Mapping[str, EvaluationLoader], split: str, step: int, epoch: float) -> list[Line] | None:
        """Rank 0 evaluates; the others wait, and no collective of the main group is pending meanwhile."""

        def measure() -> list[Line] | None:
            try:
                return [
                    self._line(name, split, step, epoch, self._scores(loader, name, split, step))
                    for name, loader in sets.items()
                ]
            except _StopRequested:
                return None

        # the others are more patient than rank 0's own watch: then it is rank 0 that says where it stands
        patience = None if self._patience is None else self._patience + _LENIENCE
        lines: list[Line] | None = self._coordinator.from_first(measure, patience)
        return lines

    def _by_all(self, sets: Mapping[str, EvaluationLoader], split: str, step: int, epoch: float) -> list[Line] | None:
        """Every rank evaluates its share; sums, counts and the metrics' states are put together, never means."""
        self._share_buffers()
        lines = []
        for name, loader in sets.items():
            scores: Scores = {}
            for prefix, weights in self._weights():
                with weights:
                    found = self._together(loader, name, split, step, not prefix)
                if found is None:
                    return None
                scores.update({prefix + key: value for key, value in found.items()})
            lines.append(self._line(name, split, step, epoch, scores))
        told: list[Line] = self._coordinator.from_first(lambda: lines)
        return told

    def _together(self, loader: EvaluationLoader, name: str, split: str, step: int, seen: bool) -> Scores | None:
        """What all ranks find on a set, each on its share; None where one was asked to stop."""
        world = self.trainable.device.world
        tallies = []

        def share() -> bytes:
            try:
                tallies.append(self._tally(loader, name, split, step, seen, world.rank, world.size))
            except _StopRequested:
                return b""
            return packed(tallies[0].state())

        states = self._coordinator.everywhere(share)
        if not all(states):
            return None
        tally = tallies[0]
        tally.join([unpacked(state) for state in states])
        _check_counted(tally, loader)
        return tally.scores()

    def _scores(self, loader: EvaluationLoader, name: str, split: str, step: int) -> Scores:
        """What rank 0 finds on a set, with the weights as they are and with their average."""
        scores: Scores = {}
        for prefix, weights in self._weights():
            with weights:
                tally = self._tally(loader, name, split, step, not prefix)
            _check_counted(tally, loader)
            scores.update({prefix + key: value for key, value in tally.scores().items()})
        return scores

    def _tally(
        self, loader: EvaluationLoader, name: str, split: str, step: int, seen: bool, rank: int = 0, size: int = 1
    ) -> Tally:
        progress = Progress(f"{split} {name}".strip(), -(-loader.num_batches() // size))
        device = self.trainable.device.torch_device
        patience = Patience(self._patience, "evaluate.timeout", self.trainable.device.world, self.folder, step)
        with patience.watching(progress):
            return evaluate(
                self.trainable.model.bare,
                loader.batches(rank, size),
                self.trainable.objective,
                [one for one in self.measures if one.is_for(name)],
                device,
                heartbeat=partial(self._beat, progress, split, step),
                seen=self.look(split, name) if seen else unseen,
            )

    def _beat(self, progress: Progress, split: str, step: int, done: int) -> None:
        progress.advance(done)
        self.tracking.evaluating(done, progress.total, split)
        self._coordinator.beat(done, progress.total)
        faults.point("evaluation.batch", step)
        if self.stopping() or self._coordinator.is_asked_to_stop:
            raise _StopRequested

    def _weights(self) -> Iterator[tuple[str, AbstractContextManager[None]]]:
        """The weights to evaluate with, each with what stands before the names of its scores."""
        yield "", nullcontext()
        if self.trainable.average is not None:
            yield AVERAGED, self.trainable.average.in_place()

    def _share_buffers(self) -> None:
        """Makes every rank's buffers rank 0's, as DDP does before a forward: running means differ until then."""
        for buffer in self.trainable.model.bare.buffers():
            self._coordinator.share(buffer)

    def _line(self, name: str, split: str, step: int, epoch: float, scores: Scores) -> Line:
        label = {"name": name} if name else {}
        return {"step": step, "epoch": round(epoch, 6), "split": split, **label, **scores}

    @property
    def _coordinator(self) -> Coordinator:
        return self.trainable.device.coordinator

    @property
    def _patience(self) -> float | None:
        return self.section.timeout.amount if self.section.timeout is not None else None

    def _deciding(self, best: schema.Best) -> float:
        """The value of the metric that decides, in the set that decides."""
        name = deciding_set(best, self.sets)
        line = next(line for line in self.lines if line.get("name", "") == name)
        return value_of(best, line)


def _check_counted(tally: Tally, loader: EvaluationLoader) -> None:
    """Every sample once, over all ranks: a stream may end before the length that it states."""
    expected = loader.num_samples()
    if tally.samples != expected and not isinstance(loader, StreamEvaluationLoader):
        raise LauncherError(f"{loader.name}: {tally.samples} samples were evaluated, and the set has {expected}")
