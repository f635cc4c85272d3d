"""5: training. One loop for every world; `train_step()` is one optimizer step."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from launcher.data.load import Data
from launcher.data.transfer import on_device
from launcher.device.agreement import Agreement
from launcher.evaluation.evaluation import Evaluation
from launcher.runs.tracking.tracking import Tracking
from launcher.training.meter import Meter
from launcher.training.nonfinite import Guard
from launcher.training.state import Horizon, Trainable
from launcher.training.step import counted_steps, seed_step, timed, train_step
from launcher.training.triggers import Clocks, Periods, due
from launcher.world import context, faults, progress

if TYPE_CHECKING:
    from launcher.training.session import Session

# ---------------------------------------------------------------------- one step


# ---------------------------------------------------------------------- the stream of steps


# ---------------------------------------------------------------------- numbers of the run


# ---------------------------------------------------------------------- the loop


def train(trainable: Trainable, data: Data, horizon: Horizon, session: Session) -> tuple[str, int]:
    """Trains to the horizon, or until it is told to stop.

    Args:
        trainable: What a step changes.
        data: This rank's batches.
        horizon: How long.
        session: Where to start, and what to do when something is due.

    Returns:
        `finished` or `preempted`, and the number of steps completed.
    """
    device, coordinator = trainable.device, trainable.device.coordinator
    rank, is_gpu = device.world.rank, device.is_gpu
    evaluation, saving, periods, done = session.evaluation, session.saving, session.periods, session.start
    known = context.run
    known.step = done
    meter, agreement = Meter(trainable, coordinator), Agreement(coordinator)
    clocks = Clocks(horizon, periods, session.seconds_before)
    in_host = counted_steps(data, trainable.objective, coordinator, done, horizon.total_steps)
    steps = session.profiling.over(on_device(in_host, device.torch_device), done)
    settle = partial(_settle, meter, trainable, session.tracking, horizon)
    trainable.model.wrapped.train()
    state, rate = "finished", trainable.schedule.rate
    if _evaluation_is_owed(evaluation, periods, done):
        if not evaluation.run(done, horizon.epoch(done)):
            known.step = None
            return "preempted", done
        if evaluation.improved:
            saving.save(done)
    for step, waited in timed(steps) if evaluation.goes_on else ():
        seed_step(session.seed, done, rank, is_gpu)
        rate = trainable.schedule.rate
        stepped = train_step(trainable, step, horizon.at(done), session.profiling.parts)
        done += 1
        known.step = done
        progress.reached(done)
        trainable.schedule.advance(done)
        meter.add(stepped, step, waited)
        faults.point("step", done, session.folder)
        saving.check()
        if due(done, periods.track_steps):
            _track(meter.cut(done, horizon.epoch(done), rate), trainable.guard, session.tracking, done)
        agreed = agreement.after(done, clocks.wishes(session.stopping()))
        if due(done, periods.evaluate_steps) or agreed.evaluate:
            settle(done, rate)
            if not evaluation.run(done, horizon.epoch(done)):
                state = "preempted"
                break
            clocks.evaluated()
            if evaluation.improved:
                saving.save(done)
            meter.restart_clock()
        if due(done, periods.save_steps) or agreed.save:
            settle(done, rate)
            saving.save(done)
            clocks.saved()
            meter.restart_clock()
        if agreed.over or not evaluation.goes_on:
            break
        if agreed.stop:
            state = "preempted"
            break
    if not evaluation.goes_on:
        session.tracking.message(f"step {done}: stopped early: {evaluation.judge.in_words}")
    steps.close()
    agreement.close()
    settle(done, rate)
    saving.save(done)
    if state == "finished" and evaluation.last_step != done and not evaluation.run(done, horizon.epoch(done)):
        state = "preempted"
    known.step = None
    return state, done


def _evaluation_is_owed(evaluation: Evaluation, periods: Periods, done: int) -> bool:
    """Before the first step where the recipe says so; after a resume, the one that the stop came before."""
    if evaluation.last_step == done:
        return False
    return evaluation.section.first if done == 0 else evaluation.is_owed or due(done, periods.evaluate_steps)


def _track(lines: Sequence[dict[str, Any]], guard: Guard, tracking: Tracking, step: int) -> None:
    for line in lines:
        tracking.log(line)
    if skipped := guard.news():
        tracking.warn(f"step {step}: {skipped}")
    tracking.progress(step)


def _settle(meter: Meter, trainable: Trainable, tracking: Tracking, horizon: Horizon, step: int, rate: float) -> None:
    """Before anything is kept: no bad step is behind us, and all lines are written."""
    trainable.guard.check()
    _track(meter.cut(step, horizon.epoch(step), rate) + meter.flush(), trainable.guard, tracking, step)
