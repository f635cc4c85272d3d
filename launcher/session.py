"""A run in progress: its folder, and what surrounds the loop: tracking, evaluation, saving, stopping."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from launcher import checkpoints
from launcher.checkpoints import Checkpoint, Saving, Snapshot, save_weights
from launcher.data import Data
from launcher.evaluation import Evaluation
from launcher.judge import Judge, deciding_set
from launcher.launch import progress
from launcher.launch.failure import Notes
from launcher.launch.signals import stop_requested
from launcher.launch.stalls import Watch
from launcher.launch.world import World
from launcher.loss_settle import settle_losses, steps_of
from launcher.opening import Finished, Opening, Options, Start
from launcher.plan import describe_shares, plan_of
from launcher.predictions import Shown, shown_of, write_predictions
from launcher.profiling import Profiling, Steps, unprofiled
from launcher.recipe.components import Workshop
from launcher.recipe.schema import Recipe
from launcher.recipe.show import resolved
from launcher.runs import folder as runs
from launcher.runs.essence import digest
from launcher.runs.logs import copied_to, log_of, settle
from launcher.runs.predictions import PREDICTIONS_FILE
from launcher.runs.record import NoRecord, Record
from launcher.tracking import Line, NoTracking, Tracking, open_tracking
from launcher.training import Horizon, Periods, Trainable, warm_up

if TYPE_CHECKING:
    from launcher.measures import Measure


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
        profiled: What looks at the steps on their way.
        start: Steps made before this process started.
        spent_seconds: Time trained before this process started.
        shown: The predictions that the report shows, where it is a classifier's.
    """

    folder: Path
    tracking: Tracking
    evaluation: Evaluation
    saving: Saving
    periods: Periods
    record: Record
    seed: int
    profiled: Callable[[Steps, int], Steps] = unprofiled
    start: int = 0
    spent_seconds: float = 0.0
    shown: Shown | None = None
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
    with ExitStack() as stack:
        opening = Opening(recipe, trainable.device, data, horizon, options, stack)
        start = Start(**coordinator.from_first(lambda: asdict(opening.open())))
        if start.finished:
            raise Finished(start.finished, Path(start.folder), trainable.model.bare)
        if start.threads is not None:
            torch.set_num_threads(start.threads)
        if start.readers is not None:
            data.read_by(start.readers)
        settle_losses(
            trainable.objective,
            trainable.model.bare,
            data.train,
            steps_of(data, world),
            coordinator,
            recipe.document,
            _kept_readings(start),
        )
        if world.size > 2:
            # DDP settles the order of its buckets in its first backward: settled, a resumed run sums as this one
            warm_up(trainable, data)
        judge = Judge(recipe.evaluate.best, recipe.evaluate.early_stop)
        restored = _restore(start, trainable, judge, opening.checkpoint, horizon)
        folder = Path(start.folder)
        _tell(folder, trainable, data, horizon, stack)
        record = stack.enter_context(_record(folder, world, horizon, restored.step))
        session = _session(workshop, trainable, data, horizon, options, folder, restored, judge, record)
        session.saving.last_step = restored.step if start.checkpoint is not None else None
        session.saving.capture = lambda step: _capture(session, trainable, data, horizon, step, opening)
        tracking = session.tracking
        if restored.step:
            record.event("redone", restored.step, **asdict(tracking.redone))
        try:
            tracking.start(plan_of(recipe, data, trainable, horizon, folder, restored.step, start.notes))
            for warning in start.warnings:
                tracking.warn(warning)
            record.event("train", restored.step)
            progress.running()
            if recipe.launch.stall is not None:
                stops = recipe.launch.on_stall == "stop"
                stack.enter_context(Watch(recipe.launch.stall.amount, stops, folder, world).watching())
            yield session
        except BaseException:
            session.saving.close()  # while its news can be shown still
            tracking.close("failed", session.evaluation.lines)
            raise
        tracking.close(record.state, session.evaluation.lines)


def _kept_readings(start: Start) -> Mapping[str, Any]:
    """What the checkpoint says of the losses, unless what it was measured on has changed since."""
    of_losses = ("loss", "batch", "model", "train.step", "train.count", "data")
    changed = any(f"{key}.".startswith(f"{part}.") for key in start.changed for part in of_losses)
    return {} if changed else start.loss


def _tell(folder: Path, trainable: Trainable, data: Data, horizon: Horizon, stack: ExitStack) -> None:
    """Lets others see this process: its log, what its failure would have to say, and the report at the end."""
    world = trainable.device.world
    if world.is_first:
        stack.callback(_report, folder)  # when it is known how the run ended
    if not settle(log_of(folder, world.rank)):  # nobody has kept this process's output so far
        stack.enter_context(copied_to(log_of(folder, world.rank)))
    if world.is_first and world.supervisor is not None:
        described = describe_shares(data.train.sampler, world.size)
        Notes(folder).describe(horizon.steps_per_epoch, {"batch": described})


def _session(
    workshop: Workshop,
    trainable: Trainable,
    data: Data,
    horizon: Horizon,
    options: Options,
    folder: Path,
    restored: _Restored,
    judge: Judge,
    record: Record,
) -> Session:
    """The parts of a session, each told of the others that it must know."""
    recipe, world = workshop.recipe, trainable.device.world
    tracking: Tracking = NoTracking()
    if world.is_first:
        tracking = _open_tracking(recipe, data, options, folder, horizon, restored, world.deadline)
    measures = _measures(workshop) if world.is_first or recipe.evaluate.ranks == "all" else []
    saving = Saving(recipe.save, folder / "checkpoints", world.is_first, judge, tracking.warn)
    evaluation = Evaluation(
        *(recipe.evaluate, data.validation, trainable, measures, tracking, judge, stop_requested, folder)
    )
    if restored.evaluation is not None:
        evaluation.load(restored.evaluation)
    saving.saved, evaluation.made = record.saved, record.evaluated
    evaluation.judged = trainable.schedule.evaluated
    shown = shown_of(trainable.objective, data)
    if shown is not None:
        evaluation.look = shown.look
    profiled: Callable[[Steps, int], Steps] = unprofiled
    if options.profile is not None:
        trace = folder / "profile" / f"rank-{world.rank}.json.gz"
        profiled = Profiling(*options.profile, trace, tracking.message).over
    return Session(
        *(folder, tracking, evaluation, saving, periods_of(recipe, horizon), record, recipe.seed, profiled),
        *(restored.step, restored.seconds, shown),
    )


def _measures(workshop: Workshop) -> list[Measure]:
    if not workshop.recipe.evaluate.metrics:
        return []  # and torchmetrics, up to a second of imports, stays where it is
    from launcher.measures import build_measures

    return build_measures(workshop)


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
    from launcher.runs.report import write_report  # with its templates: not what a first step should wait for

    if wrong := write_report(folder):
        print(wrong, file=sys.stderr)


def _open_tracking(
    recipe: Recipe,
    data: Data,
    options: Options,
    folder: Path,
    horizon: Horizon,
    restored: _Restored,
    deadline: float | None,
) -> Tracking:
    best = recipe.evaluate.best
    evaluated = restored.evaluation["step"] if restored.evaluation is not None else None
    return open_tracking(
        run_dir=folder,
        total_steps=horizon.total_steps,
        start_step=restored.step,
        evaluated=-1 if evaluated is None else evaluated,
        trackers=recipe.track.trackers,
        run_name=recipe.name,
        config=resolved(recipe),
        best=(best.metric, best.mode) if best else None,
        decides=deciding_set(best, data.validation) or "",
        output=options.output,  # type: ignore[arg-type]  # argparse allows these words only
        deadline=deadline,
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
        "readers": data.readers,
        "global_batch_size": data.train.sampler.global_batch_size,
        "recipe": opening.essence,
        "recipe_sha256": digest(opening.essence),
        "data": opening.data_print,
        "versions": runs.versions(),
        "saved": time.time(),
        "loss": trainable.objective.manifest(),
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
        found = checkpoints.awaited(Path(start.folder) / "checkpoints" / start.checkpoint)
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
        _write_predictions(session, trainable, state)
        return state, list(evaluation.lines)
    session.saving.wait()
    best = evaluation.judge.step
    with _weights_of(session, trainable, best if best != step else None) as shown:
        shown = step if shown is None else shown
        session.tracking.message(f"test: with the {'best' if shown == best else 'last'} weights, of step {shown:,}")
        lines = evaluation.measured(data.test, "test", shown, horizon.epoch(shown))
    if lines is None:
        return "preempted", []
    _write_predictions(session, trainable, state)
    return state, [*evaluation.lines, *lines]


def _write_predictions(session: Session, trainable: Trainable, state: str) -> None:
    if session.shown is None or state != "finished":
        return
    columns = session.shown.predictions.columns(trainable.device.coordinator)
    if not trainable.device.world.is_first or columns is None:
        return
    try:
        write_predictions(session.folder / PREDICTIONS_FILE, columns, session.shown.loader)
    except Exception as error:  # a disk, somebody's data set: nobody asked for it, and the weights are yet to come
        session.tracking.warn(f"{PREDICTIONS_FILE}: {error!r}; the report shows no mistakes")


@contextmanager
def _weights_of(session: Session, trainable: Trainable, step: int | None) -> Iterator[int | None]:
    """The weights of a checkpoint in the bare model, for a while; gives its step, None for the last ones.

    Rank 0 reads them, and tells them to the other ranks where these evaluate too.
    """
    coordinator, bare, average = trainable.device.coordinator, trainable.model.bare, trainable.average
    checkpoint = _best_checkpoint(session, step) if coordinator.rank == 0 else None
    if not coordinator.from_first(lambda: checkpoint is not None):
        yield None
        return
    kept = checkpoints.copied([bare.state_dict(), average.state() if average else None])
    if checkpoint is not None:
        bare.load_state_dict(checkpoint.weights())
        if average is not None:
            average.load(checkpoint.training()["average"])
    if session.evaluation.is_shared:
        for tensor in checkpoints.tensors_in([bare.state_dict(), average.state() if average else None]):
            coordinator.share(tensor)
    try:
        yield step
    finally:
        bare.load_state_dict(kept[0])
        if average is not None:
            average.load(kept[1])


def _best_checkpoint(session: Session, step: int | None) -> Checkpoint | None:
    """The checkpoint of a step; None, said, where it is damaged: the last weights are still there."""
    if step is None:
        return None
    try:
        return checkpoints.verify(session.saving.folder / checkpoints.name_of(step))
    except checkpoints.DamagedError as error:
        session.tracking.warn(f"the best checkpoint cannot be used ({error}); the last weights are")
        return None


def save_at_end(session: Session, trainable: Trainable, state: str, step: int) -> None:
    """Finishes the last checkpoint, and writes `model_weights.pth` where the run is finished.

    Beside it stand the averaged weights of the same step, where the recipe has an average. The other ranks wait for
    rank 0: one that left earlier would end it under an elastic agent or srun.
    """

    def saved() -> None:
        session.saving.wait()
        if said := session.saving.describe():
            session.tracking.message(said)
        made = None
        if state == "finished":
            wanted = session.evaluation.judge.step if session.saving.section.final == "best" else None
            best = _best_checkpoint(session, wanted if wanted != step else None)
            made = best.step if best else step
            weights = best.weights() if best else trainable.model.state_dict()
            save_weights(session.folder / runs.WEIGHTS_FILE, weights)
            if trainable.average is not None:
                average = best.training()["average"] if best else trainable.average.state()
                save_weights(session.folder / runs.AVERAGED_FILE, {**weights, **average["parameters"]})
        session.record.end(state, step, made)

    trainable.device.coordinator.from_first(saved)
