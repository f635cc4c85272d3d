"""The pool: slots that take trials, bring them as far as they are to come, and write down what came of it.

Nothing is decided from what this process remembers: each decision is made from the record, held against the other
participants meanwhile, and written there before anything is started. So a participant that is killed leaves trials
that look taken and are not; the next one sets them free, and each goes on from its checkpoint.
"""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from launcher.errors import LauncherError
from launcher.recipe.caller import setting
from launcher.runs.reading import Run
from launcher.sweep import record as lines
from launcher.sweep.ending import Ending, ending_of
from launcher.sweep.halving import goes_on, is_complete, next_action
from launcher.sweep.record import Parameters, Record, Trial
from launcher.sweep.retention import tidy
from launcher.sweep.room import still_needed
from launcher.sweep.slots import Slot
from launcher.sweep.starter import Ended, Starter, WarmProcessLostError
from launcher.sweep.warm import Order
from launcher.sweep.workers import free_the_lost
from launcher.text import size
from launcher.world.signals import stop_requested

FAILURES_IN_A_ROW = 10
_LOOK_SECONDS = 0.5  # how long a signal, or word of others, waits to be heard
_OTHERS_SECONDS = 2.0  # how often a slot without work looks whether others have made some
_LOST_IN_A_ROW = 3  # processes to start trials from


class Points(Protocol):
    """Who says what a trial is."""

    def propose(self, trial: int) -> Parameters | None:
        """The point of a new trial, from the record as it is known; None is the baseline."""
        ...

    def words(self, trial: Trial) -> Sequence[str]:
        """All changes to the recipe that make a trial of it."""
        ...


@dataclass(frozen=True)
class Work:
    """What a slot is at.

    Attributes:
        slot: Which.
        rung: To which the trial is brought.
        since: When it was started, in unix time.
    """

    slot: Slot
    rung: int
    since: float = field(default_factory=time.time)


def _since(work: Work) -> float:
    """Seconds that a slot has been at something."""
    return round(time.time() - work.since, 3)


@dataclass
class Pool:
    """One participant in a sweep.

    Attributes:
        record: The sweep's.
        points: Says what each trial is.
        slots: Where trials run.
        me: This participant's name.
        starter: Starts trials.
        say: Gets a line for what a person should know.
        show: Told when something has changed.
    """

    record: Record
    points: Points
    slots: Sequence[Slot]
    me: str
    starter: Starter
    say: Callable[[str], None] = print
    show: Callable[[Record], None] = lambda record: None

    def __post_init__(self) -> None:
        self.busy: dict[int, Work] = {}  # by the trial
        self._failures = self._lost = 0  # in a row
        self._is_weighed, self._fault = False, ""
        values = (value for trial in self.record.trials.values() for value in trial.values.values())
        self._is_measured = not all(map(math.isnan, values))  # then another trial without the metric is its own affair
        self._looked = (-1, 0.0)  # lines of the record at the last look for work, and when that was

    def work(self) -> str:
        """Works until there is nothing left to do, or it is to stop.

        Returns:
            `complete`, `stopped` where it was asked to stop, or `spent` where the budget is.

        Raises:
            LauncherError: Ten trials in a row have failed, or the first has no figure by which to compare it.
        """
        tidy(self.record)
        try:
            while (outcome := self._outcome()) is None:
                with self._mourning():
                    self._fill()
                    self._hear()
                self.show(self.record)
            failures = self._failures  # by now: one that ends well while the others stop changes nothing
        finally:
            self._stop_all()
        if outcome == "unmeasured":
            raise LauncherError(self._fault)
        if outcome == "failed":
            raise LauncherError(
                f"{self.record.folder}: {failures} trials in a row have failed, the last of them: "
                f"{self._last_failure()}; `launcher sweep {self.record.folder}` resumes it when that is fixed"
            )
        return outcome

    def _outcome(self) -> str | None:
        """Why the work is over; None while it goes on."""
        if stop_requested():
            return "stopped"
        if self._fault:
            return "unmeasured"
        if self._failures >= FAILURES_IN_A_ROW:
            return "failed"
        is_idle = not self.busy and not self.record.running
        if self._is_spent():
            return "complete" if is_idle and next_action(self.record, beyond=True) is None else "spent"
        if self._looked[0] == self.record.lines and is_idle:
            assert is_complete(self.record)
            return "complete"
        return None

    def _is_spent(self) -> bool:
        """Whether the trials have had all the time that they may take."""
        if self.record.seconds is None or self._seconds() < self.record.seconds:
            return False
        with self.record.locked():
            free_the_lost(self.record, self.me)  # they are at nothing any more, however long ago they took it
        return self._seconds() >= self.record.seconds

    def _seconds(self) -> float:
        """What all trials have taken, those that somebody is at included."""
        now = time.time()
        trials = self.record.trials.values()
        began = [trial.since for trial in trials if trial.taken is not None and trial.since is not None]
        return sum(trial.seconds for trial in trials) + sum(max(0.0, now - since) for since in began)

    # ------------------------------------------------------------------ taking work

    def _fill(self) -> None:
        """Gives each free slot something to do, if there is."""
        taken = {work.slot.number for work in self.busy.values()}
        free = [slot for slot in self.slots if slot.number not in taken]
        self.record.refresh()
        if not free or (self._looked[0] == self.record.lines and time.monotonic() < self._looked[1] + _OTHERS_SECONDS):
            return
        is_beyond = self.record.seconds is not None
        if not self.starter.is_ready and next_action(self.record, beyond=is_beyond) is not None:
            return  # what it imports is no trial's time
        with self.record.locked():
            free_the_lost(self.record, self.me)
            for slot in free:
                action = next_action(self.record, beyond=is_beyond)
                if action is None:
                    break
                news = [lines.taken(action.trial, action.rung, self.me)]
                if action.is_new:
                    news.insert(0, lines.proposal(action.trial, self.points.propose(action.trial)))
                self.record.append(*news)
                self.busy[action.trial] = Work(slot, action.rung)
        self._looked = (self.record.lines, time.monotonic())
        for number, work in list(self.busy.items()):
            if number not in self.starter.running:
                self._start(number, work)

    def _start(self, number: int, work: Work) -> None:
        """Starts a trial's process."""
        folder = self.record.folder_of(number)
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        settings = self.record.settings
        order = Order(
            number=number,
            arguments=self._arguments(number, work.rung),
            output=str(self._output(number)),
            environment={**os.environ, **work.slot.environment},
            is_fresh=settings.processes > 1,
        )
        self.starter.start(order)

    def _arguments(self, number: int, rung: int) -> list[str]:
        """The command line of a trial's process."""
        settings = self.record.settings
        flags = ["--quiet", "--run-dir", str(self.record.folder_of(number).absolute())]
        flags += ["--processes", str(settings.processes), "--nodes", "1", "--max-restarts", "0"]
        flags += ["--cpu"] * settings.cpu
        if (steps := self._steps(rung)) is not None:
            flags += ["--until", f"{steps} steps"]
        flags += [word for key in settings.remove for word in ("--remove", key)]
        flags += [word for package in settings.allow for word in ("--allow", package)]
        words = [*self.points.words(self.record.trials[number]), *settings.how]
        return ["train", settings.recipe, *words, *flags]

    def _steps(self, rung: int) -> int | None:
        """Where a rung lies; None is a run's own end."""
        settings = self.record.settings
        return None if rung >= settings.last_rung else settings.rungs[rung]

    def _output(self, number: int) -> Path:
        """What a trial's process prints, of which all that a run says stands in its own log too."""
        return self.record.folder_of(number).absolute() / "logs" / "start.log"

    # ------------------------------------------------------------------ what came of it

    def _hear(self) -> None:
        """Waits a while for ends of trials, and writes down what they mean."""
        for end in self.starter.ended(_LOOK_SECONDS):
            self._lost = 0
            self._take(end)

    @contextmanager
    def _mourning(self) -> Iterator[None]:
        """Should the process die that trials are started from, and they with it, there is a new one afterwards."""
        try:
            yield
        except WarmProcessLostError as error:
            self._lost += 1
            if self._lost >= _LOST_IN_A_ROW:
                raise
            self.say(f"{error}, and with it the trials that ran; they resume from their checkpoints")
            with self.record.locked():
                self.record.append(
                    *(lines.released(number, str(error), _since(work)) for number, work in self.busy.items())
                )
            self.busy.clear()
            self.starter.renew()

    def _take(self, end: Ended) -> None:
        """One trial's process has ended."""
        work = self.busy.pop(end.number)
        folder = self.record.folder_of(end.number)
        ending = ending_of(folder, end.code, self._steps(work.rung), self._output(end.number), work.since)
        if ending.kind == "reached":
            ending = self._compared(folder, self._measured(end.number, ending))
        with self.record.locked():
            self.record.append(self._line(end.number, work, ending))
            if ending.kind == "reached" and not stop_requested():
                rung = goes_on(self.record, end.number)
                if rung is not None:  # it is certain to go on: it stays where it is
                    self.record.append(lines.taken(end.number, rung, self.me))
                    self.busy[end.number] = Work(work.slot, rung)
        if ending.kind == "reached" and not self._is_weighed:
            self._weigh(end.number)
        if end.number in self.busy:
            self._start(end.number, self.busy[end.number])
        elif self.record.trials[end.number].is_over:
            tidy(self.record)

    def _measured(self, number: int, ending: Ending) -> Ending:
        """The ending of a trial, which has come to no rung where no evaluation has the metric as a number.

        So until one of them has: a sweep whose figures are none would remove all weights but the first one's.
        """
        metric, folder = self.record.settings.metric, self.record.folder_of(number)
        fault = None if self._is_measured else metric.missing_in(folder)
        if fault is None:
            self._is_measured = True
            return ending
        self._fault = (
            f"{self.record.folder}: trials are compared by {metric.name}, and of trial {number} it is {fault}; begin "
            f"another sweep with {setting('metric', 'KEY:min')} or {setting('metric', 'KEY:max')}"
        )
        return Ending("stopped", ending.step)

    def _compared(self, folder: Path, ending: Ending) -> Ending:
        """The ending of a trial that can be compared: under halving one whose run is as long as the others'."""
        rungs, steps = self.record.settings.rungs, Run(folder).total_steps
        if not rungs or steps == rungs[-1] or ending.kind != "reached":
            return ending
        message = f"its run has {steps} steps, and trials are compared on their way to {rungs[-1]}; fix train.steps"
        return Ending("failed", ending.step, message)

    def _weigh(self, number: int) -> None:
        """Says so where the disk will be full, as far as the first trial to come to a rung tells."""
        self._is_weighed = True
        with suppress(OSError):
            needed, free = still_needed(self.record, number)
            if needed > free:
                self.say(
                    f"{self.record.folder}: the sweep needs about {size(needed)} more, and {size(free)} are free; a "
                    "trial whose checkpoint does not fit fails"
                )

    def _line(self, number: int, work: Work, ending: Ending) -> dict[str, object]:
        """What the record says of an ending."""
        seconds, trial = _since(work), self.record.trials[number]
        if ending.kind == "stopped":
            return lines.released(number, "it was asked to stop, and has saved", seconds)
        if ending.kind == "reached":
            self._failures = 0
            best = self.record.settings.metric.best_until(self.record.folder_of(number), ending.step)
            value = float("nan") if best is None else best[1]
            return lines.rung(number, work.rung, value, ending.step, seconds)
        is_final = not ending.is_machine or bool(trial.failures)  # what comes again is not the machine's
        self._failures += is_final
        rest = "it counts as the worst" if is_final else "the machine may be at fault: it is tried again"
        self.say(f"trial {number}: {ending.message}; {rest}")
        return lines.failure(number, ending.message, is_final, seconds)

    def _last_failure(self) -> str:
        return next((trial.failures[-1] for trial in reversed(self.record.trials.values()) if trial.failures), "")

    # ------------------------------------------------------------------ the end

    def _stop_all(self) -> None:
        """Has all trials that run save and leave, and waits for that."""
        unstarted = [number for number in self.busy if number not in self.starter.running]
        with self.record.locked():  # where something was wrong before their processes were there
            self.record.append(*(lines.released(number, "it was not started") for number in unstarted))
        for number in unstarted:
            del self.busy[number]
        with self._mourning():
            for number in self.busy:
                self.starter.signal(number, signal.SIGTERM)
            while self.busy:
                self._hear()
