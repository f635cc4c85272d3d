"""5: training. When something is due: by the step, by the clock, or because a rank was asked to stop."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from launcher.device.agreement import NOTHING, Agreement, Requests
from launcher.device.coordination import Coordinator
from launcher.device.kind import Kind
from launcher.objective.run_length import RunLength
from launcher.recipe import schema
from launcher.recipe.duration import Duration


def due(step: int, every: int | None) -> bool:
    """Whether something that happens every so many steps happens after this one."""
    return every is not None and step % every == 0


@dataclass(frozen=True)
class Periods:
    """When what surrounds a step is due: a number of steps, or seconds by rank 0's clock, each None where unused."""

    track_steps: int
    evaluate_steps: int | None
    evaluate_seconds: float | None
    save_steps: int | None
    save_seconds: float | None

    @staticmethod
    def of(evaluate: schema.Evaluate, save: schema.Save, track: schema.Track, length: RunLength) -> Periods:
        """When the recipe wants lines, evaluations and saves."""

        def split(every: Duration) -> tuple[int | None, float | None]:
            if every.unit == "seconds":
                return None, every.amount
            return length.steps_of(every), None

        return Periods(length.steps_of(track.every), *split(evaluate.every), *split(save.every))


class Clocks:
    """What is due by the clock; any rank's request becomes the act of all."""

    def __init__(self, run_length: RunLength, periods: Periods, spent_seconds: float = 0.0):
        self._periods = periods
        now = time.monotonic()
        self._end = None if run_length.seconds is None else now + run_length.seconds - spent_seconds
        self._evaluated = self._saved = now

    def requests(self, stop: bool) -> Requests:
        """What this rank wants to happen after this step."""
        periods = self._periods
        if self._end is None and periods.evaluate_seconds is None and periods.save_seconds is None:
            return Requests(stop) if stop else NOTHING
        now = time.monotonic()
        return Requests(
            stop,
            periods.save_seconds is not None and now - self._saved >= periods.save_seconds,
            periods.evaluate_seconds is not None and now - self._evaluated >= periods.evaluate_seconds,
            self._end is not None and now >= self._end,
        )

    def evaluated(self) -> None:
        """An evaluation has just been made."""
        self._evaluated = time.monotonic()

    def saved(self) -> None:
        """A checkpoint has just been made."""
        self._saved = time.monotonic()


class Due(NamedTuple):
    """What all ranks do after a step."""

    track: bool
    evaluate: bool
    save: bool
    over: bool
    stop: bool


class Triggers:
    """Tells after each step what is due; the same on every rank.

    Args:
        periods: How often.
        length: Of the run, which may be a time.
        coordinator: Through which the ranks agree on what only one of them knows: its clock, a signal.
        stopping: Whether this process was asked to stop.
        spent_seconds: Time trained before this process started.
        kind: The device, which may lie behind.
        until: The step after which this start of the run is to evaluate, save and end; None where that is its end.
    """

    def __init__(
        self,
        periods: Periods,
        length: RunLength,
        coordinator: Coordinator,
        stopping: Callable[[], bool],
        spent_seconds: float,
        kind: Kind | None = None,
        until: int | None = None,
    ):
        self._periods, self._stopping, self._until = periods, stopping, until
        self._agreement = Agreement(coordinator, kind)
        self.clocks = Clocks(length, periods, spent_seconds)

    def after(self, step: int) -> Due:
        """What is due when `step` steps are completed."""
        periods, pauses, every = self._periods, step == self._until, self._periods.evaluate_steps
        agreed = self._agreement.after(step, self.clocks.requests(self._stopping()))
        return Due(
            track=step % periods.track_steps == 0,
            evaluate=agreed.evaluate or pauses or (every is not None and step % every == 0),
            save=agreed.save or (periods.save_steps is not None and step % periods.save_steps == 0),
            over=agreed.over,
            stop=agreed.stop or pauses,
        )

    def close(self) -> None:
        """Waits for what the ranks are still telling each other."""
        self._agreement.close()
