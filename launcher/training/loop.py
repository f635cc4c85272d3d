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
from launcher.training.nonfinite import NonFiniteGuard
from launcher.training.state import RunLength, TrainState
from launcher.training.step import counted_steps, seed_step, timed, train_step
from launcher.training.triggers import Clocks, Periods, due
from launcher.world import context, faults, progress

if TYPE_CHECKING:
    from launcher.training.session import Session

# ---------------------------------------------------------------------- one step


# ---------------------------------------------------------------------- the stream of steps


# ---------------------------------------------------------------------- numbers of the run


# ---------------------------------------------------------------------- the loop


def train(train_state: TrainState, data: Data, run_length: RunLength, session: Session) -> tuple[str, int]:
    """Trains for the run's length, or until it is told to stop.

    Args:
        train_state: What a step changes.
        data: This rank's batches.
        run_length: How long.
        session: Where to start, and what to do when something is due.

    Returns:
        `finished` or `preempted`, and the number of steps completed.
    """
    device, coordinator = train_state.device, train_state.device.coordinator
    rank, is_gpu = device.world.rank, device.is_gpu
    evaluation, saving, periods, done = session.evaluation, session.saving, session.periods, session.start
    known = context.run
    known.step = done
    meter, agreement = Meter(train_state, coordinator), Agreement(coordinator)
    clocks = Clocks(run_length, periods, session.seconds_before)
    in_host = counted_steps(data, train_state.objective, coordinator, done, run_length.total_steps)
    steps = session.profiling.over(on_device(in_host, device.torch_device), done)
    settle = partial(_settle, meter, train_state, session.tracking, run_length)
    train_state.model.wrapped.train()
    state, rate = "finished", train_state.schedule.rate
    if _evaluation_is_owed(evaluation, periods, done):
        if not evaluation.run(done, run_length.epoch(done)):
            known.step = None
            return "preempted", done
        if evaluation.improved:
            saving.save(done)
    for step, waited in timed(steps) if evaluation.goes_on else ():
        seed_step(session.seed, done, rank, is_gpu)
        rate = train_state.schedule.rate
        stepped = train_step(train_state, step, run_length.at(done), session.profiling.parts)
        done += 1
        known.step = done
        progress.reached(done)
        train_state.schedule.advance(done)
        meter.add(stepped, step, waited)
        faults.point("step", done, session.folder)
        saving.check()
        if due(done, periods.track_steps):
            _track(meter.cut(done, run_length.epoch(done), rate), train_state.guard, session.tracking, done)
        agreed = agreement.after(done, clocks.wishes(session.stopping()))
        if due(done, periods.evaluate_steps) or agreed.evaluate:
            settle(done, rate)
            if not evaluation.run(done, run_length.epoch(done)):
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
    if state == "finished" and evaluation.last_step != done and not evaluation.run(done, run_length.epoch(done)):
        state = "preempted"
    known.step = None
    return state, done


def _evaluation_is_owed(evaluation: Evaluation, periods: Periods, done: int) -> bool:
    """Before the first step where the recipe says so; after a resume, the one that the stop came before."""
    if evaluation.last_step == done:
        return False
    return evaluation.section.first if done == 0 else evaluation.is_owed or due(done, periods.evaluate_steps)


def _track(lines: Sequence[dict[str, Any]], guard: NonFiniteGuard, tracking: Tracking, step: int) -> None:
    for line in lines:
        tracking.log(line)
    if skipped := guard.news():
        tracking.warn(f"step {step}: {skipped}")
    tracking.progress(step)


def _settle(
    meter: Meter, train_state: TrainState, tracking: Tracking, run_length: RunLength, step: int, rate: float
) -> None:
    """Before anything is kept: no bad step is behind us, and all lines are written."""
    train_state.guard.check()
    _track(meter.cut(step, run_length.epoch(step), rate) + meter.flush(), train_state.guard, tracking, step)
