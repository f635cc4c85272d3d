"""A run in progress: its folder, and what surrounds the loop: tracking, evaluation, saving, stopping."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher import checkpoints
from launcher.checkpoints import Checkpoint, Saving, save_weights
from launcher.data import Data
from launcher.evaluation import Evaluation, Judge, build_metrics
from launcher.launch.signals import listening, stop_requested
from launcher.plan import plan_of
from launcher.recipe.components import Workshop
from launcher.recipe.schema import Recipe
from launcher.recipe.show import render, resolved
from launcher.runs import folder as runs
from launcher.runs.logs import copied_to
from launcher.tracking import Line, NoTracking, Tracking, open_tracking
from launcher.training import Horizon, Periods, Trainable, warm_up


@dataclass(frozen=True)
class Options:
    """What the command line decides about one run.

    Attributes:
        cpu: Stay on the CPU though there may be a GPU.
        run_dir: The run's folder, resumed if it holds a checkpoint; None chooses a new one.
        allow: Further packages that the recipe may name.
        output: What the terminal shows: `auto`, `quiet` or `json`.
        command: The command line, for the record.
    """

    cpu: bool = False
    run_dir: str | None = None
    allow: tuple[str, ...] = ()
    output: str = "auto"
    command: tuple[str, ...] = ()


@dataclass
class Session:
    """What the loop and the phases after it need besides the model.

    Attributes:
        folder: The run's folder.
        tracking: Where lines go; does nothing on ranks other than 0.
        evaluation: What to do when an evaluation is due.
        saving: What to do when a save is due.
        periods: When they are.
        stopping: Whether this process was asked to stop.
        seed: The recipe's.
        start: Steps made before this process started.
        spent_seconds: Time trained before this process started.
    """

    folder: Path
    tracking: Tracking
    evaluation: Evaluation
    saving: Saving
    periods: Periods
    stopping: Callable[[], bool]
    seed: int
    start: int = 0
    spent_seconds: float = 0.0
    _began: float = field(default_factory=time.monotonic)

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
    """
    recipe, world = workshop.recipe, trainable.device.world
    if world.size > 2:
        # DDP settles the order of its buckets in its first backward; with it settled, a resumed run sums as this one
        warm_up(trainable, data)
    folder = _open_folder(recipe, options, trainable)
    judge = Judge(recipe.evaluate.best, recipe.evaluate.early_stop)
    start, spent = _restore(trainable, judge, folder)
    with (
        listening(),
        copied_to(folder / "logs" / f"rank-{world.rank}.log"),
        _status(folder, world.is_first, world.size) as status,
    ):
        tracking = _open_tracking(recipe, options, folder, horizon, start) if world.is_first else NoTracking()
        metrics = build_metrics(workshop, trainable.device.torch_device) if world.is_first else {}
        saving = Saving(recipe.save, folder / "checkpoints", world.is_first, judge, tracking.message)
        evaluation = Evaluation(recipe.evaluate, data.validation, trainable, metrics, tracking, judge)
        periods = periods_of(recipe, horizon)
        session = Session(
            folder,
            tracking,
            evaluation,
            saving,
            periods,
            stop_requested,
            recipe.seed,
            start,
            spent_seconds=spent,
        )
        saving.capture = lambda step: _capture(session, trainable, data, horizon, step)
        try:
            tracking.start(plan_of(recipe, data, trainable, horizon, folder, start))
            yield session
            status.update(state=saving.outcome, step=saving.last_step)
        except BaseException:
            tracking.close("failed", evaluation.lines)
            raise
        tracking.close(saving.outcome, evaluation.lines)


def _open_folder(recipe: Recipe, options: Options, trainable: Trainable) -> Path:
    world, coordinator = trainable.device.world, trainable.device.coordinator

    def made() -> str:
        folder = runs.choose(recipe.name, options.run_dir or world.run_dir).absolute()
        runs.create(folder, recipe.document.text, render(recipe), runs.environment(options.command))
        return str(folder)

    return Path(coordinator.from_first(made))


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


@contextmanager
def _status(folder: Path, is_first: bool, world_size: int) -> Iterator[dict[str, Any]]:
    """`status.json`: running, and at the end finished, preempted or failed."""
    status: dict[str, Any] = {
        "state": "running",
        "world": world_size,
        "host": platform.node(),
        "started": time.time(),
    }
    if not is_first:
        yield status
        return
    path = folder / "status.json"
    runs.write_json(path, status)
    try:
        yield status
    except BaseException:
        runs.write_json(path, {**status, "state": "failed", "ended": time.time()})
        raise
    runs.write_json(path, {**status, "ended": time.time()})


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
    session: Session, trainable: Trainable, data: Data, horizon: Horizon, step: int
) -> tuple[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]]:
    """Weights, training state and manifest after `step` steps."""
    world = trainable.device.world
    training = {
        **trainable.training_state(),
        "judge": session.evaluation.judge.state(),
        "seconds": session.seconds,
    }
    manifest = {
        "step": step,
        "epoch": horizon.epoch(step),
        "samples": data.samples_before(step),
        "world": world.size,
        "threads": trainable.device.threads,
        "global_batch_size": data.train.sampler.global_batch_size,
        "saved": time.time(),
    }
    return trainable.model.state_dict(), training, manifest


def _restore(trainable: Trainable, judge: Judge, folder: Path) -> tuple[int, float]:
    """Loads the newest checkpoint of the folder, if there is one; gives its step and the seconds trained."""
    found: Checkpoint | None = None

    def newest() -> str | None:
        nonlocal found
        found = checkpoints.newest(folder / "checkpoints", print)
        return found.folder.name if found else None

    name = trainable.device.coordinator.from_first(newest)
    if name is None:
        return 0, 0.0
    found = found or checkpoints.verify(folder / "checkpoints" / name)  # rank 0 has read and hashed it already
    training = found.training()
    trainable.load(found.weights(), training)
    judge.load(training["judge"])
    return found.step, float(training["seconds"])


# ---------------------------------------------------------------------- after the loop


def evaluate_at_end(
    session: Session, trainable: Trainable, data: Data, horizon: Horizon, state: str, step: int
) -> list[Line]:
    """Evaluates `data.test` once, with the best weights where there is a best, else the last.

    Returns:
        The last validation lines and the test lines.
    """
    evaluation = session.evaluation
    if state != "finished" or not data.test:
        return list(evaluation.lines)
    best = evaluation.judge.step
    with _weights_of(session, trainable, best if best != step else None):
        shown = step if best is None else best
        lines = trainable.device.coordinator.from_first(
            lambda: evaluation.measure(data.test, "test", shown, horizon.epoch(shown))
        )
    for line in lines:
        session.tracking.log(line)
    return [*evaluation.lines, *lines]


@contextmanager
def _weights_of(session: Session, trainable: Trainable, step: int | None) -> Iterator[None]:
    """Rank 0's bare model with the weights of a checkpoint, for a while."""
    if step is None or not trainable.device.world.is_first:
        yield
        return
    bare = trainable.model.bare
    kept = {name: value.detach().clone() for name, value in bare.state_dict().items()}
    bare.load_state_dict(checkpoints.verify(session.saving.folder / checkpoints.name_of(step)).weights())
    try:
        yield
    finally:
        bare.load_state_dict(kept)


def save_at_end(session: Session, trainable: Trainable, state: str, step: int) -> None:
    """Writes the last checkpoint, and `model_weights.pth` where the run is finished."""
    session.saving.finish(step, state)
    if state != "finished" or not trainable.device.world.is_first:
        return
    weights = trainable.model.state_dict()
    best = session.evaluation.judge.step
    if session.saving.section.final == "best" and best is not None:
        weights = checkpoints.verify(session.saving.folder / checkpoints.name_of(best)).weights()
    save_weights(session.folder / runs.WEIGHTS_FILE, weights)
