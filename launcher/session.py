"""A run in progress: its folder, and what surrounds the loop: tracking, evaluation, saving, stopping."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from launcher import checkpoints
from launcher.checkpoints import Checkpoint, Saving, Snapshot, save_weights
from launcher.data import Data
from launcher.evaluation import Evaluation, Judge, build_metrics
from launcher.launch.signals import stop_requested
from launcher.launch.world import World
from launcher.opening import Finished, Opening, Options, Start
from launcher.plan import plan_of
from launcher.recipe.components import Workshop
from launcher.recipe.schema import Recipe
from launcher.recipe.show import resolved
from launcher.runs import folder as runs
from launcher.runs.essence import digest
from launcher.runs.logs import copied_to
from launcher.runs.record import NoRecord, Record
from launcher.runs.report import write_report
from launcher.tracking import Line, NoTracking, Tracking, open_tracking
from launcher.training import Horizon, Periods, Trainable, warm_up


@dataclass
class Session:
    """What the loop and the phases after it need besides the model.

    Attributes:
        folder: The run's folder.
        tracking: Where lines go; does nothing on ranks other than 0.
        evaluation: What to do when an evaluation is due.
        saving: What to do when a save is due.
        periods: When they are.
        record: What the run's folder says of how it stands.
        seed: The recipe's.
        start: Steps made before this process started.
        spent_seconds: Time trained before this process started.
    """

    folder: Path
    tracking: Tracking
    evaluation: Evaluation
    saving: Saving
    periods: Periods
    record: Record
    seed: int
    start: int = 0
    spent_seconds: float = 0.0
    _began: float = field(default_factory=time.monotonic)

    @property
    def stopping(self) -> Callable[[], bool]:
        """Whether this process was asked to stop."""
        return stop_requested

    @property
    def seconds(self) -> float:
        """Time trained so far, over all starts."""
        return self.spent_seconds + time.monotonic() - self._began


@contextmanager
def open_session(
    workshop: Workshop, trainable: Trainable, data: Data, horizon: Horizon, options: Options
) -> Iterator[Session]:
    """Makes the run's folder or goes on in it, loads the state, starts tracking, prints the plan.

    Only rank 0 touches the folder; the others learn from it. At the end `status.json` says how it went.

    Raises:
        Finished: The run is.
        UsageError: Another process holds the folder, or the recipe is not the run's.
    """
    recipe, world, coordinator = workshop.recipe, trainable.device.world, trainable.device.coordinator
    if world.size > 2:
        # DDP settles the order of its buckets in its first backward; with it settled, a resumed run sums as this one
        warm_up(trainable, data)
    with ExitStack() as stack:
        opening = Opening(recipe, trainable.device, data, horizon, options, stack)
        start = Start(**coordinator.from_first(lambda: asdict(opening.open())))
        if start.finished:
            raise Finished(start.finished)
        folder = Path(start.folder)
        if start.threads is not None:
            torch.set_num_threads(start.threads)
        judge = Judge(recipe.evaluate.best, recipe.evaluate.early_stop)
        restored = _restore(start, trainable, judge, opening.checkpoint, horizon)
        if world.is_first:
            stack.callback(_report, folder)  # when it is known how the run ended
        stack.enter_context(copied_to(folder / "logs" / f"rank-{world.rank}.log"))
        record = stack.enter_context(_record(folder, world, horizon, restored.step))
        first = world.is_first
        tracking = _open_tracking(recipe, options, folder, horizon, restored.step) if first else NoTracking()
        metrics = build_metrics(workshop, trainable.device.torch_device) if first else {}
        saving = Saving(recipe.save, folder / "checkpoints", first, judge, tracking.warn)
        evaluation = Evaluation(recipe.evaluate, data.validation, trainable, metrics, tracking, judge, stop_requested)
        if restored.evaluation is not None:
            evaluation.load(restored.evaluation)
        periods = periods_of(recipe, horizon)
        session = Session(
            folder, tracking, evaluation, saving, periods, record, recipe.seed, restored.step, restored.seconds
        )
        saving.last_step = restored.step or None
        saving.capture = lambda step: _capture(session, trainable, data, horizon, step, opening)
        saving.saved, evaluation.made = record.saved, record.evaluated
        if restored.step:
            record.event("redone", restored.step, **asdict(tracking.redone))
        stack.callback(saving.close)
        try:
            tracking.start(plan_of(recipe, data, trainable, horizon, folder, restored.step, start.notes))
            for warning in start.warnings:
                tracking.warn(warning)
            record.event("train", restored.step)
            yield session
        except BaseException:
            tracking.close("failed", evaluation.lines)
            raise
        tracking.close(record.state, evaluation.lines)


@contextmanager
def _record(folder: Path, world: World, horizon: Horizon, step: int) -> Iterator[Record]:
    """The record of this start; a run that raises has failed."""
    record = Record(folder, world, step, horizon.total_steps, horizon.epoch) if world.is_first else NoRecord()
    try:
        yield record
    except BaseException as error:
        record.end("failed", error="".join(traceback.format_exception_only(error)).strip())
        raise


def _report(folder: Path) -> None:
    if wrong := write_report(folder):
        print(wrong, file=sys.stderr)


def _open_tracking(recipe: Recipe, options: Options, folder: Path, horizon: Horizon, start: int) -> Tracking:
    best = recipe.evaluate.best
    return open_tracking(
        run_dir=folder,
        total_steps=horizon.total_steps,
        start_step=start,
        trackers=recipe.track.trackers,
        run_name=recipe.name,
        config=resolved(recipe),
        best=(best.metric, best.mode) if best else None,
        output=options.output,  # type: ignore[arg-type]  # argparse allows these words only
    )


def periods_of(recipe: Recipe, horizon: Horizon) -> Periods:
    """When the recipe wants lines, evaluations and saves, in steps or in seconds."""

    def split(said: Any) -> tuple[int | None, float | None]:
        if said.unit == "seconds":
            return None, said.amount
        return said.in_steps(horizon.steps_per_epoch, horizon.total_steps), None

    evaluate_steps, evaluate_seconds = split(recipe.evaluate.every)
    save_steps, save_seconds = split(recipe.save.every)
    track_steps = int(recipe.track.every.amount)
    return Periods(track_steps, evaluate_steps, evaluate_seconds, save_steps, save_seconds)


# ---------------------------------------------------------------------- state


def _capture(
    session: Session, trainable: Trainable, data: Data, horizon: Horizon, step: int, opening: Opening
) -> Snapshot:
    """What a checkpoint after `step` steps is made of."""
    world = trainable.device.world
    training = {
        **trainable.training_state(),
        "judge": session.evaluation.judge.state(),
        "evaluation": session.evaluation.state(),
        "seconds": session.seconds,
    }
    manifest = {
        "step": step,
        "epoch": horizon.epoch(step),
        "samples": data.samples_before(step),
        "world": world.size,
        "threads": trainable.device.threads,
        "global_batch_size": data.train.sampler.global_batch_size,
        "recipe": opening.essence,
        "recipe_sha256": digest(opening.essence),
        "data": opening.data_print,
        "versions": runs.versions(),
        "saved": time.time(),
    }
    session.record.reached(step)
    return Snapshot(trainable.model.state_dict(), training, manifest)


@dataclass(frozen=True)
class _Restored:
    step: int = 0
    seconds: float = 0.0
    evaluation: Mapping[str, Any] | None = None


def _restore(start: Start, trainable: Trainable, judge: Judge, found: Checkpoint | None, horizon: Horizon) -> _Restored:
    """Takes up the state of the checkpoint that this start goes on from."""
    if start.checkpoint is None:
        return _Restored()
    if found is None:  # rank 0 has read and hashed it already
        found = checkpoints.verify(Path(start.folder) / "checkpoints" / start.checkpoint)
    training = found.training()
    trainable.load(found.weights(), training, found.step, start.changed)
    judge.load(training["judge"])
    return _Restored(found.step, float(training["seconds"]), training["evaluation"])


# ---------------------------------------------------------------------- after the loop


def evaluate_at_end(
    session: Session, trainable: Trainable, data: Data, horizon: Horizon, state: str, step: int
) -> tuple[str, list[Line]]:
    """Evaluates `data.test` once, with the best weights where there is a best, else the last.

    Returns:
        The run's state (`preempted` where it was stopped here), and the last validation lines and the test lines.
    """
    evaluation = session.evaluation
    if state != "finished" or not data.test:
        return state, list(evaluation.lines)
    session.saving.wait()
    best = evaluation.judge.step
    with _weights_of(session, trainable, best if best != step else None) as shown:
        shown = step if shown is None else shown
        lines = evaluation.measured(data.test, "test", shown, horizon.epoch(shown))
    return ("preempted", []) if lines is None else (state, [*evaluation.lines, *lines])


@contextmanager
def _weights_of(session: Session, trainable: Trainable, step: int | None) -> Iterator[int | None]:
    """Rank 0's bare model with the weights of a checkpoint, for a while; gives its step, None for the last ones."""
    weights = _best_weights(session, step) if trainable.device.world.is_first else None
    if weights is None:
        yield None
        return
    bare = trainable.model.bare
    kept = {name: value.detach().clone() for name, value in bare.state_dict().items()}
    bare.load_state_dict(weights)
    try:
        yield step
    finally:
        bare.load_state_dict(kept)


def _best_weights(session: Session, step: int | None) -> dict[str, Any] | None:
    """The weights of a checkpoint; None, said, where it is damaged: the last ones are still there."""
    if step is None:
        return None
    try:
        return checkpoints.verify(session.saving.folder / checkpoints.name_of(step)).weights()
    except checkpoints.DamagedError as error:
        session.tracking.warn(f"the best checkpoint cannot be used ({error}); the last weights are")
        return None


def save_at_end(session: Session, trainable: Trainable, state: str, step: int) -> None:
    """Finishes the last checkpoint, and writes `model_weights.pth` where the run is finished.

    The other ranks wait for rank 0: one that left earlier would end it under an elastic agent or srun.
    """

    def saved() -> None:
        session.saving.wait()
        if state == "finished":
            wanted = session.evaluation.judge.step if session.saving.section.final == "best" else None
            weights = _best_weights(session, wanted if wanted != step else None) or trainable.model.state_dict()
            save_weights(session.folder / runs.WEIGHTS_FILE, weights)
        session.record.end(state, step)

    trainable.device.coordinator.from_first(saved)
