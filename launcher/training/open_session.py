"""Opening a run: its folder, the state of its checkpoint, and everything that surrounds the loop."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from launcher.checkpoints import format as checkpoints
from launcher.checkpoints.rows import DamagedRowsError
from launcher.checkpoints.saving import Saving
from launcher.checkpoints.together import SavingTogether, Voices
from launcher.data.repeatable import drawn_validation
from launcher.data.sampler import describe_shares
from launcher.device.device import Device
from launcher.errors import UsageError
from launcher.evaluation.after import After
from launcher.evaluation.best import BestTracker, deciding_set
from launcher.evaluation.evaluation import Evaluation, metrics_of, unlooked
from launcher.evaluation.predictions import shown_of
from launcher.model.adapt import built_anew
from launcher.objective.run_length import RunLength
from launcher.objective.settle import settle_losses
from launcher.objective.several import each
from launcher.recipe.build import Builder
from launcher.recipe.raised import last_lines
from launcher.recipe.schema import Recipe
from launcher.recipe.show import resolved
from launcher.runs.logs import copied_to, log_of, settle
from launcher.runs.options import Options
from launcher.runs.record import NoRecord, Record
from launcher.runs.tracking.tracking import NoTracking, Tracking, open_tracking
from launcher.training.batch_norm import too_few_for_batch_norm
from launcher.training.beside import listed
from launcher.training.contents import Contents
from launcher.training.cut import as_it_was, dependence_of
from launcher.training.kept_beside import KeptBeside
from launcher.training.late import Late
from launcher.training.optimizer_state import parameter_names
from launcher.training.plan import plan_of
from launcher.training.pretrained import Pretrained
from launcher.training.profiling import NoProfiling, Profiling
from launcher.training.proof import Proof, try_fresh
from launcher.training.resume import Finished, Opening, ResumePoint
from launcher.training.session import Session
from launcher.training.state import TrainState
from launcher.training.step import warm_up
from launcher.training.triggers import Periods
from launcher.training.ways import Turns
from launcher.world import progress
from launcher.world.context import RunContext, remembered
from launcher.world.notes import Notes
from launcher.world.signals import stop_requested
from launcher.world.watchdog import Watch

_BEFORE_NCCL = 0.8  # of device.timeout


@contextmanager
def open_session(recipe: Recipe, builder: Builder, state: TrainState, options: Options) -> Iterator[Session]:
    """Makes the run's folder or resumes in it, loads the state, starts tracking, prints the plan.

    Only rank 0 touches the folder; the others learn from it. At the end `status.json` says how it went.

    Raises:
        Finished: The run is.
        RecipeError: BatchNorm would see a single sample.
        UsageError: Another process holds the folder, or the recipe is not the run's.
    """
    world, coordinator = state.device.world, state.device.coordinator
    if few := too_few_for_batch_norm(state, recipe.device, world):
        raise builder.wrong(*few)
    until = _until(options, state.length)
    with ExitStack() as stack:
        known = stack.enter_context(remembered())
        opening = Opening(recipe, state, options, stack)
        point = ResumePoint(**coordinator.from_first(lambda: asdict(opening.open())))
        if point.finished:
            raise Finished(point.finished, Path(point.folder), state.model)
        _go_on_alike(point, state)
        state.objective.keep_weights(moved=point.moves_weights)
        with as_it_was(state):
            kept = _kept_readings(point)
            bare, end = state.model.bare, state.length.last
            settle_losses(builder, state.objective, bare, state.data, coordinator, end=end, kept=kept)
        dependences, noted = ([], None) if point.checkpoint else _dependences(recipe, builder, state)
        notes = [*point.notes, *dependences]
        if world.size > 2 and state.shards is None:
            # DDP settles the order of its buckets in its first backward; then a resumed run sums as this one
            warm_up(state, state.update.gradients if isinstance(state.update, Turns) else None)
        contents = Contents(
            state, opening.identity, point.data_print, BestTracker(recipe.evaluate.best, recipe.evaluate.early_stop)
        )
        point, start = _restored(point, opening, contents)
        if contents.lost:
            notes.append(
                f"{listed(contents.lost)}: steps made what a start has not yet, so that it cannot be put back: where a "
                "number depends on it, this resume gives others; make it in __init__"
            )
        _introduce(known, Path(point.folder), state)
        _let_be_seen(Path(point.folder), state, stack)
        record = stack.enter_context(_recorded(Path(point.folder), state, start))
        session = _session(recipe, builder, contents, options, Path(point.folder), start, record, point, until, noted)
        tracking = session.tracking
        if start:
            record.event("redone", start, **asdict(tracking.redone))
        try:
            tracking.start(plan_of(recipe, state, session.folder, start, notes))
            for warning in point.warnings:
                tracking.warn(warning)
            record.event("train", start, better=_better(session.evaluation))
            tracking.await_spoken_to(stop_requested)
            progress.running()
            stall, stops = _stall_seconds(recipe, state.device), recipe.launch.on_stall == "stop"
            patience = recipe.launch.meeting_timeout.amount
            stack.enter_context(Watch(stall, stops, session.folder, world, patience).watching())
            yield session
        except BaseException:
            session.saving.close()  # while its news can be shown still
            if known.step is not None:
                tracking.progress(known.step)  # the step that the failure's report says
            tracking.close("failed", contents.history.lines)
            raise
        tracking.close(record.state, contents.history.lines, session.saving.on_disk)


def _better(evaluation: Evaluation) -> dict[str, str]:
    """Of which metrics more or less is better, for whoever compares runs."""
    return {key: mode for metric in evaluation.metrics for key, mode in metric.modes.items()}


def _until(options: Options, length: RunLength) -> int | None:
    """The step at which this start pauses; None where the run ends before.

    Raises:
        UsageError: The run has no such step.
    """
    if options.until is None:
        return None
    try:
        step = length.steps_of(options.until)
    except ValueError as error:
        raise UsageError(f"--until: {error}; write steps or epochs, as in --until '500 steps'") from error
    return step if length.total_steps is None or step < length.total_steps else None


def _stall_seconds(recipe: Recipe, device: Device) -> float:
    """How long a rank may make no progress; on GPUs less than NCCL waits, which then ends the ranks silently."""
    if recipe.launch.stall is not None:
        return recipe.launch.stall.amount
    return _BEFORE_NCCL * recipe.device.timeout.amount if device.is_gpu and device.world.size > 1 else math.inf


def _go_on_alike(point: ResumePoint, state: TrainState) -> None:
    """Computes and reads with as many threads and readers as the run did."""
    if point.threads is not None:
        torch.set_num_threads(point.threads)
    if point.readers is not None:
        state.data.read_by(point.readers)


def _dependences(recipe: Recipe, builder: Builder, state: TrainState) -> tuple[list[str], frozenset[str] | None]:
    """What a run's numbers depend on beside its recipe, in words, and what a forward changes that nobody keeps.

    Every rank tries the same.

    Raises:
        UnresumableError: A forward makes a state that no fresh model takes up.
    """
    depends = dependence_of(state)
    if depends.grown is not None:
        try_fresh(depends.grown, state.shapes, partial(built_anew, builder, recipe.model))
    drawn = drawn_validation(state.data)
    notes = depends.notes(state.objective, synchronised=recipe.device.sync_batchnorm, is_open=state.retry is not None)
    return [*([drawn] if drawn else []), *notes], depends.noted


def _kept_readings(point: ResumePoint) -> Mapping[str, Any]:
    """What the checkpoint says of the losses, unless what it was measured on has changed since."""
    of_losses = ("loss", "batch", "model", "train.step", "train.count", "data")
    changed = any(f"{key}.".startswith(f"{part}.") for key in point.changed for part in of_losses)
    return {} if changed else point.loss


def _restored(point: ResumePoint, opening: Opening, contents: Contents) -> tuple[ResumePoint, int]:
    """Takes up the checkpoint, or where its rows are damaged the one before; gives where it begins, and steps before.

    Rows are proven when they are read, each by the process that needs it: so all hear whether all are sound.
    """
    coordinator = contents.state.device.coordinator
    while True:
        start, fault = 0, ""
        try:
            start = _restore(point, opening, contents)
        except DamagedRowsError as error:
            fault = str(error)
        faults = [] if point.checkpoint is None else coordinator.gather(fault.encode())
        if not any(faults):
            return point, start
        told = [message.decode() for message in faults if message]
        point = ResumePoint(**coordinator.from_first(partial(_opened_again, opening, told)))


def _opened_again(opening: Opening, faults: Sequence[str]) -> dict[str, Any]:
    return asdict(opening.open_again(faults))


def _restore(point: ResumePoint, opening: Opening, contents: Contents) -> int:
    """Takes up what this start resumes from; gives the steps made before it."""
    if point.checkpoint is None:
        return 0
    checkpoint = opening.checkpoint
    if checkpoint is None:  # rank 0 has read and hashed it already
        folder = Path(point.folder) / "checkpoints" / point.checkpoint
        checkpoint = checkpoints.awaited(folder, is_hashed=contents.state.shards is None)
    contents.restore(checkpoint, point.changed)
    return checkpoint.step


def _introduce(known: RunContext, folder: Path, state: TrainState) -> None:
    """Tells the run's context what its failure would have to say."""
    known.folder = folder
    known.steps_per_epoch = state.length.steps_per_epoch
    known.shares = describe_shares(state.data.train.sampler, state.device.world.size)
    known.parameters = list(state.trained)


def _let_be_seen(folder: Path, state: TrainState, stack: ExitStack) -> None:
    """Lets others see this process: its log, its place among the steps, and the report at the end."""
    world = state.device.world
    if world.is_first:
        stack.callback(_report, folder)  # when it is known how the run ended
    if not settle(log_of(folder, world.rank)):  # nobody has kept this process's output so far
        stack.enter_context(copied_to(log_of(folder, world.rank)))
    if world.is_first and world.supervisor is not None:
        described = describe_shares(state.data.train.sampler, world.size)
        Notes(folder).describe(state.length.steps_per_epoch, {"batch": described})


def _report(folder: Path) -> None:
    from launcher.runs.report.page import write_report  # with its templates: not what a first step should wait for

    if wrong := write_report(folder):
        print(wrong, file=sys.stderr)


@contextmanager
def _recorded(folder: Path, state: TrainState, start: int) -> Iterator[Record]:
    """The record of this start; a run that raises has failed."""
    world, length = state.device.world, state.length
    record = Record(folder, world, start, length.total_steps, length.epoch) if world.is_first else NoRecord()
    try:
        yield record
    except BaseException as error:
        record.end("failed", error=last_lines(error))
        raise


def _session(
    recipe: Recipe,
    builder: Builder,
    contents: Contents,
    options: Options,
    folder: Path,
    start: int,
    record: Record,
    point: ResumePoint,
    until: int | None,
    noted: frozenset[str] | None,
) -> Session:
    """The parts of a session, each told of the others that it must know."""
    state, world = contents.state, contents.state.device.world
    tracking: Tracking = NoTracking()
    if world.is_first:
        tracking = _open_tracking(recipe, builder, contents, options, folder, start)
    shown = shown_of(state.objective, state.data)
    evaluation = Evaluation(
        section=recipe.evaluate,
        sets=state.data.validation,
        evaluable=state,
        metrics=(
            metrics_of(builder, recipe.evaluate, recipe.batch)
            if world.is_first or recipe.evaluate.ranks == "all" or state.shards is not None
            else []
        ),
        tracking=tracking,
        best=contents.best,
        history=contents.history,
        seed=recipe.seed,
        stopping=stop_requested,
        folder=folder,
        made=record.evaluated,
        judged=state.schedule.evaluated,
        look=shown.look if shown is not None else unlooked,
        at=state.length.at,
        after=After(state.model.bare, state.objective, folder, recipe.seed),
    )
    saving = _saving(
        state,
        section=recipe.save,
        folder=folder / "checkpoints",
        is_first=world.is_first,
        capture=contents.capture,
        gather=contents.gather,
        warn=tracking.warn,
        captured=_captured(record, _late(contents, noted, tracking.warn, is_fresh=point.checkpoint is None)),
        saved=record.saved,
        last_step=start if point.checkpoint is not None else None,
        proof=Proof(
            contents.optimizer,
            state.shapes,
            partial(built_anew, builder, recipe.model),
            partial(parameter_names, state.model.bare, state.objective.modules),
        ),
    )
    return Session(
        folder=folder,
        tracking=tracking,
        evaluation=evaluation,
        saving=saving,
        periods=Periods.of(recipe.evaluate, recipe.save, recipe.track, state.length),
        record=record,
        profiling=_profiling(options, folder, state.device, tracking),
        start=start,
        seconds_before=contents.stopwatch.seconds_before,
        until=until,
        shown=shown,
        pretrained=Pretrained.of(recipe, builder, state, folder),
    )


def _late(contents: Contents, noted: frozenset[str] | None, warn: Callable[[str], None], *, is_fresh: bool) -> Late:
    """What names what steps change: a look that a checkpoint is made by serves both."""
    state = contents.state
    things = _looked_at(state, noted) if is_fresh else {}
    if (kept := contents.beside) is not None:
        return Late(lambda: kept.changed, things, warn, noted)
    return Late(KeptBeside(things, state.device.torch_device).look, things, warn, noted)


def _looked_at(state: TrainState, noted: frozenset[str] | None) -> dict[str, Any]:
    """What may keep something in itself: optimizers, the user's own functions, and what a tried forward calls.

    The last only where it is known what each forward changes.
    """
    optimizers = {f"optimizer.{name}" if name else "optimizer": one for name, one in each(state.optimizer).items()}
    brought, others = state.objective.brought, state.objective.others
    own = {key: thing for key, thing in brought.items() if key in others and key != "data.on_device"}
    return optimizers | own | ({} if noted is None else {"model": state.model.bare, **brought})


def _captured(record: Record, late: Late) -> Callable[[int], None]:
    """What is told of each step of which a checkpoint is made."""

    def captured(step: int) -> None:
        record.reached(step)
        late.look()

    return captured


def _saving(state: TrainState, **options: Any) -> Saving:
    """What writes checkpoints: rank 0, or where the model is sharded all processes."""
    if state.shards is None:
        return Saving(**options)
    world, coordinator = state.device.world, state.device.coordinator
    voices = Voices(coordinator.store, world.rank, world.size, coordinator.timeout_seconds)
    return SavingTogether(voices, state.shards.mesh.writes, **options)


def _profiling(options: Options, folder: Path, device: Device, tracking: Tracking) -> NoProfiling:
    if options.profile is None:
        return NoProfiling()
    first, stop = options.profile
    trace = folder / "profile" / f"rank-{device.world.rank}.json.gz"
    return Profiling(first, stop, trace, tracking.message, device.kind)


def _open_tracking(
    recipe: Recipe, builder: Builder, contents: Contents, options: Options, folder: Path, start: int
) -> Tracking:
    best, state, evaluated = recipe.evaluate.best, contents.state, contents.history.last_step
    return open_tracking(
        run_dir=folder,
        total_steps=state.length.total_steps,
        start_step=start,
        evaluated=-1 if evaluated is None else evaluated,
        trackers=recipe.track.trackers,
        run_name=recipe.name,
        config=resolved(recipe),
        own_code=builder.own_folders(),
        best=(best.metric, best.mode) if best else None,
        decides=deciding_set(best, state.data.validation) or "",
        output=options.output,  # type: ignore[arg-type]  # argparse allows these words only
        deadline=state.device.world.deadline,
        from_python="recipe" not in options.how,
    )
