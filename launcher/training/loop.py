"""5: training. One loop for every world; `train_step()` is one optimizer step."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from contextlib import suppress
from typing import Any

from launcher.data.transfer import on_device
from launcher.errors import LauncherError
from launcher.evaluation.modes import start_training
from launcher.training.bad_batch import about_data, without_gradient
from launcher.training.meter import Meter
from launcher.training.nonfinite import NonFiniteError
from launcher.training.parting import Parting
from launcher.training.session import Session
from launcher.training.state import TrainState
from launcher.training.step import StepResult
from launcher.training.steps import FromAnyStep, StepBatch, counted_steps, timed
from launcher.training.triggers import Triggers, due
from launcher.world import context, faults, progress

_AUDIT_STEPS = 100  # at least, between two epochs in whose first step a loss is tried on a real batch


def train(state: TrainState, session: Session) -> tuple[str, int]:
    """Trains for the run's length, or until it is told to stop.

    Args:
        state: What a step reads and changes.
        session: Where to start, and what to do when something is due.

    Returns:
        `finished` or `stopped`, and the number of steps completed.
    """
    known, acts, done = context.run, _Acts(state, session), session.start
    evaluation, triggers, meter = session.evaluation, acts.triggers, acts.meter
    known.step = done
    steps = FromAnyStep(acts.steps_from, done)
    start_training(state.model.wrapped, state.optimizer)
    outcome = "finished"
    if not acts.evaluated_what_is_owed(done) or session.is_paused(done):
        steps.close()
        known.step = None
        return "stopped", done
    for step, waited in timed(steps) if evaluation.goes_on else ():
        acts.rates = state.schedule.rates
        if (result := acts.made(step, done)) is None:
            steps.restart(done)
            continue
        done += 1
        known.step = done
        progress.reached(done)
        meter.add(result, step, waited)
        if acts.parting is not None:
            acts.parting.after(done)
        faults.point("step", done, session.folder)
        session.saving.check()
        wanted = triggers.after(done)
        if wanted.track:
            acts.track(done)
        if wanted.evaluate and not acts.evaluated(done):
            outcome = "stopped"
            break
        if wanted.save:
            acts.save(done)
        if wanted.over or (wanted.evaluate and not evaluation.goes_on):
            break
        if wanted.stop:
            outcome = "stopped"
            break
    steps.close()
    triggers.close()
    outcome = acts.ended(outcome, done)
    known.step = None
    return outcome, done


class _Acts:
    """What happens between two steps.

    Args:
        state: What the steps change.
        session: What surrounds them.
    """

    def __init__(self, state: TrainState, session: Session):
        self.state, self.session = state, session
        self.meter = Meter(state)
        self.rates = state.schedule.rates  # of the step just made
        coordinator = state.device.coordinator
        parameters = [
            parameter for module in (state.model.bare, *state.losses.values()) for parameter in module.parameters()
        ]
        is_alone = coordinator.world_size == 1 or state.shards is not None  # then there is one model
        epoch = state.length.steps_per_epoch
        self.audit_every = epoch * math.ceil(_AUDIT_STEPS / epoch)
        self.parting = None if is_alone else Parting(parameters, coordinator, session.tracking.warn)
        self.triggers = Triggers(
            session.periods,
            state.length,
            coordinator,
            session.stopping,
            session.seconds_before,
            state.device.kind,
            session.until,
        )

    def steps_from(self, done: int) -> Generator[StepBatch, None, None]:
        """What the steps after so many read, where it is computed with."""
        in_host = counted_steps(self.state, done, self.state.length.total_steps)
        return self.session.profiling.over(on_device(in_host, self.state.device.torch_device), done)

    def made(self, step: StepBatch, done: int) -> StepResult | None:
        """Makes a step; None where there was no memory for it, and it is to be made again in smaller pieces."""
        state, session = self.state, self.session
        if done % self.audit_every == 0:  # what begins with an epoch may make a loss another
            state.objective.audit_again()
        try:
            result: StepResult = state.take_step(state, step, state.length.at(done), session.profiling.parts)
            return result
        except NonFiniteError as error:
            raise about_data(error, state, step, done) from error
        except Exception as error:
            if fault := without_gradient(error):
                raise LauncherError(fault) from error
            if state.retry is None or not state.retry.wants(state, error):
                raise
        size = state.retry.recover(state)  # here, where nothing holds what the error has seen
        session.tracking.warn(f"step {done}: out of memory; made again with data.micro_batch_size={size}")
        session.record.event("smaller", done, micro_batch_size=size)
        return None

    def evaluated_what_is_owed(self, done: int) -> bool:
        """Evaluates where that is due before the first step; whether training may continue.

        Before the first of all where the recipe says so; after a resume, what the stop came before.
        """
        evaluation = self.session.evaluation
        if evaluation.last_step == done:
            return True
        is_due = evaluation.is_owed or due(done, self.session.periods.evaluate_steps) or done == self.session.until
        if not (evaluation.section.first if done == 0 else is_due):
            return True
        return self._evaluate(done)

    def track(self, done: int) -> None:
        """Writes a line of metrics."""
        self._write(self.meter.cut(done, self.state.length.epoch(done), self.rates), done)

    def evaluated(self, done: int) -> bool:
        """Evaluates; whether it came to its end."""
        self._settle(done)
        try:
            is_whole = self._evaluate(done)
        except Exception:
            self._rescue(done)
            raise
        if not is_whole:
            return False
        self.state.objective.audit_again()
        self.triggers.clocks.evaluated()
        self.meter.restart_clock()
        return True

    def save(self, done: int) -> None:
        """Writes a checkpoint."""
        self._settle(done)
        self._keep(done)
        self.state.objective.audit_again()
        self.triggers.clocks.saved()
        self.meter.restart_clock()

    def ended(self, outcome: str, done: int) -> str:
        """What is due after the last step: lines, a checkpoint, an evaluation; gives the final outcome."""
        session, evaluation = self.session, self.session.evaluation
        if not evaluation.goes_on:
            session.tracking.message(f"step {done}: stopped early: {evaluation.best.in_words}")
        self._settle(done)
        self._keep(done)
        if outcome == "finished" and evaluation.last_step != done and not self._evaluate(done, save=False):
            return "stopped"
        return outcome

    def _evaluate(self, done: int, save: bool = True) -> bool:
        evaluation = self.session.evaluation
        if not evaluation.run(done, self.state.length.epoch(done)):
            return False
        if evaluation.improved and save:
            self._keep(done)
        return True

    def _rescue(self, done: int) -> None:
        """Keeps the steps before an evaluation that has failed: resumed, the run makes that evaluation first.

        Not where saving takes all processes, some of which may be gone.
        """
        state, session = self.state, self.session
        if state.device.coordinator.world_size > 1 and (state.shards is not None or state.objective.stateful):
            return
        session.evaluation.history.is_owed = True
        with suppress(Exception):  # what has failed is told
            session.saving.save(done, alone=True)
            session.saving.wait()

    def _keep(self, done: int) -> None:
        """Writes a checkpoint, if the ranks are one."""
        if self.parting is not None:
            self.parting.compare(done)
        self.session.saving.save(done)

    def _settle(self, done: int) -> None:
        """Before anything is kept: no bad step is behind us, and all lines are written."""
        self.state.update.check()
        self._write(self.meter.cut(done, self.state.length.epoch(done), self.rates) + self.meter.flush(), done)

    def _write(self, lines: Sequence[dict[str, Any]], done: int) -> None:
        tracking = self.session.tracking
        for line in lines:
            tracking.log(line)
        if skipped := self.state.update.news():
            tracking.warn(f"step {done}: {skipped}")
        if news := self.state.data.train.news():
            tracking.message(f"step {done}: {news}")
        tracking.progress(done)
