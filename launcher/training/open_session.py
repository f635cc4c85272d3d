"""A run in progress: its folder, and what surrounds the loop: tracking, evaluation, saving, stopping."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from launcher.checkpoints import format as checkpoints
from launcher.checkpoints.format import Checkpoint, Snapshot
from launcher.checkpoints.saving import Saving
from launcher.data.load import Data
from launcher.data.sampler import describe_shares
from launcher.evaluation.best import BestTracker, deciding_set
from launcher.evaluation.evaluation import Evaluation, unlooked
from launcher.evaluation.predictions import shown_of
from launcher.recipe.build import Builder
from launcher.recipe.schema import Recipe
from launcher.recipe.show import resolved
from launcher.runs import folder as runs
from launcher.runs.identity import digest
from launcher.runs.logs import copied_to, log_of, settle
from launcher.runs.options import Options
from launcher.runs.record import NoRecord, Record
from launcher.runs.tracking.tracking import NoTracking, Tracking, open_tracking
from launcher.training.plan import plan_of
from launcher.training.profiling import NoProfiling, Profiling
from launcher.training.resume import Finished, Opening, ResumePoint
from launcher.training.session import Session
from launcher.training.state import RunLength, TrainState
from launcher.training.step import warm_up
from launcher.training.triggers import Periods
from launcher.world import progress
from launcher.world.context import remembered
from launcher.world.failure import Notes
from launcher.world.signals import stop_requested
from launcher.world.watchdog import Watch
from launcher.world.world import World

if TYPE_CHECKING:
    from launcher.evaluation.metrics import Metric


@contextmanager
def open_session(
    builder: Builder, train_state: TrainState, data: Data, run_length: RunLength, options: Options
) -> Iterator[Session]:
    """Makes the run's folder or goes on in it, loads the state, starts tracking, prints the plan.

    Only rank 0 touches the folder; the others learn from it. At the end `status.json` says how it went.

    Raises:
        Finished: The run is.
        UsageError: Another process holds the folder, or the recipe is not the run's.
    """
    recipe, world, coordinator = builder.recipe, train_state.device.world, train_state.device.coordinator
    with ExitStack() as stack:
        known = stack.enter_context(remembered())
        if world.size > 2:
            # DDP settles the order of its buckets in its first backward; then a resumed run sums as this one
            warm_up(train_state, data)
        opening = Opening(recipe, train_state.device, data, run_length, options, stack)
        start = ResumePoint(**coordinator.from_first(lambda: asdict(opening.open())))
        if start.finished:
            raise Finished(start.finished, Path(start.folder), train_state.model.bare)
        if start.threads is not None:
            torch.set_num_threads(start.threads)
        if start.readers is not None:
            data.read_by(start.readers)
        judge = BestTracker(recipe.evaluate.best, recipe.evaluate.early_stop)
        restored = _restore(start, train_state, judge, opening.checkpoint, run_length)
        folder = known.folder = Path(start.folder)
        known.steps_per_epoch = run_length.steps_per_epoch
        known.shares = describe_shares(data.train.sampler, world.size)
        known.parameters = [name for name, one in train_state.model.bare.named_parameters() if one.requires_grad]
        _tell(folder, train_state, data, run_length, stack)
        record = stack.enter_context(_record(folder, world, run_length, restored.step))
        session = _session(builder, train_state, data, run_length, opening, folder, restored, judge, record)
        tracking = session.tracking
        if restored.step:
            record.event("redone", restored.step, **asdict(tracking.redone))
        try:
            tracking.start(plan_of(recipe, data, train_state, run_length, folder, restored.step, start.notes))
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


def _tell(folder: Path, train_state: TrainState, data: Data, run_length: RunLength, stack: ExitStack) -> None:
    """Lets others see this process: its log, what its failure would have to say, and the report at the end."""
    world = train_state.device.world
    if world.is_first:
        stack.callback(_report, folder)  # when it is known how the run ended
    if not settle(log_of(folder, world.rank)):  # nobody has kept this process's output so far
        stack.enter_context(copied_to(log_of(folder, world.rank)))
    if world.is_first and world.supervisor is not None:
        described = describe_shares(data.train.sampler, world.size)
        Notes(folder).describe(run_length.steps_per_epoch, {"batch": described})


def _session(
    builder: Builder,
    train_state: TrainState,
    data: Data,
    run_length: RunLength,
    opening: Opening,
    folder: Path,
    restored: _Restored,
    judge: BestTracker,
    record: Record,
) -> Session:
    """The parts of a session, each told of the others that it must know."""
    recipe, world, options = builder.recipe, train_state.device.world, opening.options
    tracking: Tracking = NoTracking()
    if world.is_first:
        tracking = _open_tracking(recipe, data, options, folder, run_length, restored, world.deadline)
    metrics = _built_metrics(builder) if world.is_first or recipe.evaluate.ranks == "all" else []
    shown = shown_of(train_state.objective, data)
    evaluation = Evaluation(
        section=recipe.evaluate,
        sets=data.validation,
        train_state=train_state,
        metrics=metrics,
        tracking=tracking,
        judge=judge,
        stopping=stop_requested,
        folder=folder,
        made=record.evaluated,
        judged=train_state.schedule.evaluated,
        look=shown.look if shown is not None else unlooked,
    )
    if restored.evaluation is not None:
        evaluation.load(restored.evaluation)
    saving = Saving(
        section=recipe.save,
        folder=folder / "checkpoints",
        is_first=world.is_first,
        judge=judge,
        warn=tracking.warn,
        capture=_Capture(train_state, data, run_length, opening, evaluation, record, restored.seconds),
        saved=record.saved,
        last_step=restored.saved,
    )
    profiling = NoProfiling()
    if options.profile is not None:
        first, stop = options.profile
        trace = folder / "profile" / f"rank-{world.rank}.json.gz"
        profiling = Profiling(first, stop, trace, tracking.message)
    return Session(
        folder=folder,
        tracking=tracking,
        evaluation=evaluation,
        saving=saving,
        periods=periods_of(recipe, run_length),
        record=record,
        seed=recipe.seed,
        profiling=profiling,
        start=restored.step,
        seconds_before=restored.seconds,
        shown=shown,
    )


def _built_metrics(builder: Builder) -> list[Metric]:
    if not builder.recipe.evaluate.metrics:
        return []  # and torchmetrics, up to a second of imports, stays where it is
    from launcher.evaluation.metrics import build_metrics

    return build_metrics(builder)


@contextmanager
def _record(folder: Path, world: World, run_length: RunLength, step: int) -> Iterator[Record]:
    """The record of this start; a run that raises has failed."""
    record = Record(folder, world, step, run_length.total_steps, run_length.epoch) if world.is_first else NoRecord()
    try:
        yield record
    except BaseException as error:
        record.end("failed", error="".join(traceback.format_exception_only(error)).strip())
        raise


def _report(folder: Path) -> None:
    from launcher.runs.report.page import write_report  # with its templates: not what a first step should wait for

    if wrong := write_report(folder):
        print(wrong, file=sys.stderr)


def _open_tracking(
    recipe: Recipe,
    data: Data,
    options: Options,
    folder: Path,
    run_length: RunLength,
    restored: _Restored,
    deadline: float | None,
) -> Tracking:
    best = recipe.evaluate.best
    evaluated = restored.evaluation["step"] if restored.evaluation is not None else None
    return open_tracking(
        run_dir=folder,
        total_steps=run_length.total_steps,
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


def periods_of(recipe: Recipe, run_length: RunLength) -> Periods:
    """When the recipe wants lines, evaluations and saves, in steps or in seconds."""

    def split(said: Any) -> tuple[int | None, float | None]:
        if said.unit == "seconds":
            return None, said.amount
        return said.in_steps(run_length.steps_per_epoch, run_length.total_steps), None

    evaluate_steps, evaluate_seconds = split(recipe.evaluate.every)
    save_steps, save_seconds = split(recipe.save.every)
    track_steps = int(recipe.track.every.amount)
    return Periods(track_steps, evaluate_steps, evaluate_seconds, save_steps, save_seconds)


# ---------------------------------------------------------------------- state


@dataclass(frozen=True)
class _Capture:
    """Gives what a checkpoint is made of, after any number of steps."""

    train_state: TrainState
    data: Data
    run_length: RunLength
    opening: Opening
    evaluation: Evaluation
    record: Record
    seconds_before: float
    began: float = field(default_factory=time.monotonic)

    def __call__(self, step: int) -> Snapshot:
        training = {
            **self.train_state.training_state(),
            "judge": self.evaluation.judge.state(),
            "evaluation": self.evaluation.state(),
            "seconds": self.seconds_before + time.monotonic() - self.began,
        }
        manifest = self._manifest(step)
        self.record.reached(step)
        return Snapshot(self.train_state.model.state_dict(), training, manifest)

    def _manifest(self, step: int) -> dict[str, Any]:
        data, device = self.data, self.train_state.device
        return {
            "step": step,
            "epoch": self.run_length.epoch(step),
            "samples": data.samples_before(step),
            "world": device.world.size,
            "threads": device.threads,
            "readers": data.readers,
            "global_batch_size": data.train.sampler.global_batch_size,
            "recipe": self.opening.identity,
            "recipe_sha256": digest(self.opening.identity),
            "data": self.opening.data_print,
            "versions": runs.versions(),
            "saved": time.time(),
        }


@dataclass(frozen=True)
class _Restored:
    step: int = 0
    seconds: float = 0.0
    evaluation: Mapping[str, Any] | None = None
    saved: int | None = None  # the step of the checkpoint


def _restore(
    start: ResumePoint, train_state: TrainState, judge: BestTracker, found: Checkpoint | None, run_length: RunLength
) -> _Restored:
    """Takes up the state of the checkpoint that this start goes on from."""
    if start.checkpoint is None:
        return _Restored()
    if found is None:  # rank 0 has read and hashed it already
        found = checkpoints.awaited(Path(start.folder) / "checkpoints" / start.checkpoint)
    training = found.training()
    train_state.load(found.weights(), training, found.step, start.changed)
    judge.load(training["judge"])
    return _Restored(found.step, float(training["seconds"]), training["evaluation"], saved=found.step)


# ---------------------------------------------------------------------- after the loop
