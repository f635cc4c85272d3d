"""5: training. When something is due: by the step, or by the clock."""

from __future__ import annotations

import time
from dataclasses import dataclass

from launcher.device.agreement import Requests
from launcher.training.state import RunLength


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


class Clocks:
    """What is due by the clock; any rank's wish becomes the act of all."""

    def __init__(self, run_length: RunLength, periods: Periods, spent_seconds: float = 0.0):
        self._periods = periods
        now = time.monotonic()
        self._end = None if run_length.seconds is None else now + run_length.seconds - spent_seconds
        self._evaluated = self._saved = now

    def wishes(self, stop: bool) -> Requests:
        """What this rank wants to happen after this step."""
        periods = self._periods
        if self._end is None and periods.evaluate_seconds is None and periods.save_seconds is None:
            return Requests(stop)
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
