"""What the ranks agree on between steps: to stop, to save, to evaluate."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from launcher.device.coordination import Coordinator, Pending


@dataclass(frozen=True)
class Requests:
    """What a rank wishes to do after this step.

    Attributes:
        stop: Save and leave: somebody asked for it.
        save: Save and go on.
        evaluate: Evaluate and go on.
        over: The run's time is over: it is finished.
    """

    stop: bool = False
    save: bool = False
    evaluate: bool = False
    over: bool = False


NOTHING = Requests()  # as after nearly every step: made once


class Agreement:
    """Turns one rank's wish into an act of all ranks after the same step.

    Every `period` steps the wishes are put into one asynchronous MAX all-reduce, which is read at the next
    such step; the period follows the pace of training and is agreed in the same message.

    Args:
        coordinator: The side channel.
        seconds: About how long a wish may wait.
    """

    def __init__(self, coordinator: Coordinator, seconds: float = 0.5):
        self._coordinator = coordinator
        self._seconds = seconds
        self._pending: Pending | None = None
        self._next = 0
        self._asked_at = (0, time.monotonic())

    def after(self, step: int, wishes: Requests) -> Requests:
        """What all ranks do after this step; the same answer everywhere."""
        if self._coordinator.world_size == 1:
            return wishes
        if step < self._next:
            return NOTHING
        *agreed, period = self._pending.result().tolist() if self._pending is not None else (0, 0, 0, 0, 1)
        numbers = [wishes.stop, wishes.save, wishes.evaluate, wishes.over, self._pace(step)]
        self._pending = self._coordinator.max(torch.tensor(numbers, dtype=torch.float64))
        self._next = step + int(period)
        return Requests(*map(bool, agreed))

    def _pace(self, step: int) -> int:
        """Steps that take about `seconds`."""
        before, then = self._asked_at
        now = time.monotonic()
        self._asked_at = (step, now)
        per_step = (now - then) / max(1, step - before)
        return max(1, min(1000, int(self._seconds / max(per_step, 1e-6))))

    def close(self) -> None:
        """Reads what is still under way, so that no rank leaves with an operation pending."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None
