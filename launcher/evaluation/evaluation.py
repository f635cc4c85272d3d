"""6: evaluation. Eval mode, no gradients, every sample once; `evaluate()` knows nothing of ranks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import nn

from launcher.data.loaders import EvaluationLoader
from launcher.data.streams import StreamEvaluationLoader
from launcher.device.coordination import Coordinator, packed, unpacked
from launcher.device.device import Device
from launcher.errors import LauncherError
from launcher.evaluation.after import After
from launcher.evaluation.best import BestTracker, deciding_set, value_of
from launcher.evaluation.evaluate import Seen, Tally, evaluate, unseen
from launcher.evaluation.in_step import StopRequested, in_step
from launcher.evaluation.modes import evaluating
from launcher.model.build import Model
from launcher.model.ema import Average
from launcher.objective.loss import Objective
from launcher.objective.run_length import At
from launcher.recipe import schema
from launcher.runs.tracking.tracking import Line, Tracking
from launcher.world import faults
from launcher.world.watchdog import BatchProgress, Patience

if TYPE_CHECKING:
    from launcher.evaluation.metrics import Metric, Scores
    from launcher.recipe.build import Builder

Look = Callable[[str, str], Seen]  # gives what sees the batches of a set, by its split and name


def unlooked(split: str, name: str) -> Seen:
    """Nobody looks at any set."""
    return unseen


def metrics_of(builder: Builder, section: schema.Evaluate, batch: schema.Batch) -> Sequence[Metric]:
    """What the recipe measures; where that is nothing, torchmetrics, seconds of imports, stays where it is."""
    if not section.metrics:
        return []
    from launcher.evaluation.metrics import build_metrics

    return build_metrics(builder, section, batch)


_LENIENCE = 2.0  # seconds


class Evaluable(Protocol):
    """What is evaluated: a model in training, or one that was saved."""

    model: Model
    objective: Objective
    device: Device
    average: Average | None

    @property
    def optimizer(self) -> Any:
        """Where it is in training, its optimizer."""
        ...


@dataclass
class History:
    """What evaluations have said so far.

    Attributes:
        last_step: Optimizer steps completed at the last one.
        lines: Of the last one.
        is_owed: One was begun and left, since this process was asked to stop.
    """

    last_step: int | None = None
    lines: list[Line] = field(default_factory=list)
    is_owed: bool = False

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"step": self.last_step, "lines": self.lines, "owed": self.is_owed}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Takes up what a checkpoint kept."""
        self.last_step, self.lines, self.is_owed = state["step"], list(state["lines"]), state["owed"]


class Evaluation:
    """The loop's edge: who evaluates when it is due, and that all ranks learn what follows.

    Args:
        section: The recipe's `evaluate`.
        sets: What to evaluate on, by name.
        evaluable: The model as training left it, and its loss.
        metrics: The metrics, on the ranks that evaluate.
        tracking: Where the lines go.
        best: The best so far.
        history: What evaluations have said so far.
        seed: The run's.
        stopping: Whether this process was asked to stop.
        folder: The run's, for word of what hangs.
        made: Told of each evaluation: the step, and its seconds.
        judged: Told of each evaluation, by what gives the value of a metric that decides.
        look: Gives what sees the batches of a set, with the weights as they are.
        at: Gives where a step stands in its run.
        after: Called when the validation sets are measured; its numbers stand in the first line.
    """

    def __init__(
        self,
        section: schema.Evaluate,
        sets: Mapping[str, EvaluationLoader],
        evaluable: Evaluable,
        metrics: Sequence[Metric],
        tracking: Tracking,
        best: BestTracker,
        *,
        history: History | None = None,
        seed: int = 0,
        stopping: Callable[[], bool] = lambda: False,
        folder: Path | None = None,
        made: Callable[[int, float], None] = lambda step, seconds: None,
        judged: Callable[[Callable[[schema.Best], float]], None] = lambda deciding: None,
        look: Look = unlooked,
        at: Callable[[int], At] = At,
        after: After | None = None,
    ):
        self.section, self.sets, self.evaluable, self.metrics = section, sets, evaluable, metrics
        self.tracking, self.best, self.history = tracking, best, history if history is not None else History()
        self.seed, self.stopping, self.folder = seed, stopping, folder
        self.made, self.judged, self.look, self.at = made, judged, look, at
        self.after = after
        self.improved = False

    @property
    def goes_on(self) -> bool:
        """Whether early stopping lets training continue."""
        return self.best.is_patient

    @property
    def last_step(self) -> int | None:
        """Optimizer steps completed at the last evaluation."""
        return self.history.last_step

    @property
    def is_owed(self) -> bool:
        """Whether one was begun and left, since this process was asked to stop."""
        return self.history.is_owed

    @property
    def lines(self) -> list[Line]:
        """Those of the last evaluation."""
        return self.history.lines

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
        self.history.is_owed = lines is None
        if lines is None:
            return False
        self.history.lines, self.history.last_step = lines, step
        if self.section.best is not None:
            self.improved = self.best.see(step, self._deciding(self.section.best))
        self.judged(self._deciding)
        return True

    def measured(
        self,
        sets: Mapping[str, EvaluationLoader],
        split: str,
        step: int,
        epoch: float,
        *,
        of_training: bool = True,
    ) -> list[Line] | None:
        """One line for each set, told to all ranks; None where one that evaluates was asked to stop.

        Args:
            sets: What to evaluate on, by name.
            split: What they are for.
            step: Optimizer steps that made the weights.
            epoch: Passes over the data that did.
            of_training: Whether the weights are those of training, of which the optimizer may have two kinds.
        """
        began = time.perf_counter()
        after = self.after if split == "validation" else None
        results = self._found(sets, split, step, of_training, after)
        lines = None
        if results is not None:
            lines = [self._line(name, split, step, epoch, scores) for name, scores in results.items()]
        for line in lines or ():
            self.tracking.log(line)
        self.made(step, time.perf_counter() - began)
        return lines

    def _found(
        self,
        sets: Mapping[str, EvaluationLoader],
        split: str,
        step: int,
        of_training: bool,
        after: After | None,
    ) -> dict[str, Scores] | None:
        """Scores by set, with the average of the weights and with these; every rank goes to eval mode and back.

        What is called after an evaluation finds what its forward passes have left.
        """
        subject = self.evaluable
        measure = self._by_all if self.is_shared else self._by_first
        results: dict[str, Scores] = {name: {} for name in sets}
        for prefix, weights in self._weights():
            optimizer = subject.optimizer if of_training and not prefix else None  # an average is what it is
            remembers = after.owner if after is not None else None
            with weights, evaluating(subject.model.bare, subject.objective, optimizer, but=remembers):
                scores = measure(sets, split, step, not prefix)
                for name, values in (scores or {}).items():
                    results[name] = {**{prefix + key: value for key, value in values.items()}, **results[name]}
                if after is not None and scores is not None and not prefix:
                    next(iter(results.values())).update(after(self.at(step), results, self._coordinator.first_alone))
            if subject.model.sharding is not None:
                subject.model.sharding.reshard()
            if scores is None:
                return None
        return results

    @property
    def is_shared(self) -> bool:
        """Whether every rank evaluates a share."""
        return (self.section.ranks == "all" or self.is_sharded) and self.evaluable.device.world.size > 1

    @property
    def is_sharded(self) -> bool:
        """Whether no rank has the whole model: then all compute every batch together."""
        return self.evaluable.model.sharding is not None

    def _by_first(
        self, sets: Mapping[str, EvaluationLoader], split: str, step: int, seen: bool
    ) -> dict[str, Scores] | None:
        """Rank 0 evaluates; the others wait, and no collective of the main group is pending meanwhile."""

        def measure() -> dict[str, Scores] | None:
            try:
                return {name: self._scores(loader, name, split, step, seen) for name, loader in sets.items()}
            except StopRequested:
                return None

        # the others are more patient than rank 0's own watch: then it is rank 0 that says where it stands
        patience = None if self._patience is None else self._patience + _LENIENCE
        scores: dict[str, Scores] | None = self._coordinator.first_alone(measure, patience)
        return scores

    def _by_all(
        self, sets: Mapping[str, EvaluationLoader], split: str, step: int, seen: bool
    ) -> dict[str, Scores] | None:
        """Every rank evaluates its share; sums, counts and the metrics' states are put together, never means."""
        self._share_buffers()
        results = {}
        for name, loader in sets.items():
            scores = self._together(loader, name, split, step, seen)
            if scores is None:
                return None
            results[name] = scores
        told: dict[str, Scores] = self._coordinator.from_first(lambda: results)
        return told

    def _together(self, loader: EvaluationLoader, name: str, split: str, step: int, seen: bool) -> Scores | None:
        """What all ranks find on a set, each on its share; None where one was asked to stop."""
        world = self.evaluable.device.world
        if self.is_sharded:
            return self._in_step(loader, name, split, step, seen)
        tallies = []

        def share() -> bytes:
            try:
                with self._coordinator.alone():  # shares have different numbers of batches
                    tallies.append(self._tally(loader, name, split, step, seen, world.rank, world.size))
            except StopRequested:
                return b""
            return packed(tallies[0].state())

        states = self._coordinator.everywhere(share)
        if not all(states):
            return None
        tally = tallies[0]
        tally.join([unpacked(state) for state in states])
        _check_counted(tally, loader)
        return tally.scores()

    def _in_step(self, loader: EvaluationLoader, name: str, split: str, step: int, seen: bool) -> Scores | None:
        """The same where no rank has the whole model: an error ends its rank at once, and with it the others."""
        world = self.evaluable.device.world
        try:
            tally = self._tally(loader, name, split, step, seen, world.rank, world.size)
        except StopRequested:
            return None
        tally.join([unpacked(state) for state in self._coordinator.gather(packed(tally.state()))])
        _check_counted(tally, loader)
        return tally.scores()

    def _scores(self, loader: EvaluationLoader, name: str, split: str, step: int, seen: bool) -> Scores:
        """What rank 0 finds on a set."""
        tally = self._tally(loader, name, split, step, seen)
        _check_counted(tally, loader)
        return tally.scores()

    def _tally(
        self, loader: EvaluationLoader, name: str, split: str, step: int, seen: bool, rank: int = 0, size: int = 1
    ) -> Tally:
        progress = BatchProgress(f"{split} {name}".strip(), -(-loader.num_batches() // size))
        device = self.evaluable.device.torch_device
        batches = loader.batches(rank, size)
        if self.is_sharded:
            batches = in_step(loader, self._coordinator, self.stopping)
        patience = Patience(self._patience, "evaluate.timeout", self.evaluable.device.world, self.folder, step)
        with patience.watching(progress):
            return evaluate(
                self.evaluable.model.bare,
                batches,
                self.evaluable.objective,
                [metric for metric in self.metrics if metric.is_for(name)],
                device,
                heartbeat=partial(self._beat, progress, split, step),
                seen=self.look(split, name) if seen else unseen,
                at=self.at(step),
                seed=self.seed,
                rank=rank,
                transform=loader.reading.on_device,
            )

    def _beat(self, progress: BatchProgress, split: str, step: int, done: int) -> None:
        progress.advance(done)
        self.tracking.evaluating(done, progress.total, split)
        self._coordinator.beat(done, progress.total)
        faults.point("evaluation.batch", step)
        if not self.is_sharded and (self.stopping() or self._coordinator.is_asked_to_stop):
            raise StopRequested

    def _weights(self) -> Iterator[tuple[str, AbstractContextManager[None]]]:
        """The weights to evaluate with, each with what stands before the names of its scores; training's come last."""
        if self.evaluable.average is not None:
            yield f"{self.evaluable.average.kind}/", self.evaluable.average.in_place()
        yield "", nullcontext()

    def _share_buffers(self) -> None:
        """Makes every rank's buffers rank 0's for this evaluation, as DDP does before a forward."""
        losses = [loss for loss in self.evaluable.objective.brought.values() if isinstance(loss, nn.Module)]
        modules = (self.evaluable.model.bare, *losses)
        self._coordinator.share_all([buffer for module in modules for buffer in module.buffers()])

    def _line(self, name: str, split: str, step: int, epoch: float, scores: Scores) -> Line:
        label = {"name": name} if name else {}
        return {"step": step, "epoch": round(epoch, 6), "split": split, **label, **scores}

    @property
    def _coordinator(self) -> Coordinator:
        return self.evaluable.device.coordinator

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
