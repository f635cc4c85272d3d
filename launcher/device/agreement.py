"""What the ranks agree on between steps: to stop, to save, to evaluate."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from launcher.device.coordination import Coordinator, Pending
from launcher.device.kind import Kind, Mark


@dataclass(frozen=True)
class Requests:
    """What a rank requests after this step.

    Attributes:
        stop: Save and leave: somebody asked for it.
        save: Save and continue.
        evaluate: Evaluate and continue.
        over: The run's time is over: it is finished.
    """

    stop: bool = False
    save: bool = False
    evaluate: bool = False
    over: bool = False


NOTHING = Requests()  # as after nearly every step: made once


class Agreement:
    """Turns one rank's request into an act of all ranks after the same step.

    Every `period` steps the requests are put into one asynchronous MAX all-reduce, which is read at the next
    such step; the period follows the pace of training and is agreed in the same message.

    A host launches steps long before a device has made them, so that its clock says nothing of their pace, and what is
    agreed on may lie minutes behind in the device's queue. So at each such step the device must have come to the one
    before: it has a whole period of steps to train meanwhile. And a period is at most twice the one before.

    Args:
        coordinator: The side channel.
        kind: The device whose steps they are.
        seconds: About how long a request may wait.
    """

    def __init__(self, coordinator: Coordinator, kind: Kind | None = None, seconds: float = 0.5):
        self._coordinator = coordinator
        self._kind = kind if kind is not None and not kind.is_host else None
        self._seconds = seconds
        self._mark: Mark | None = None
        self._period = 1
        self._pending: Pending | None = None
        self._next = 0
        self._asked_at = (0, time.monotonic())

    def after(self, step: int, requests: Requests) -> Requests:
        """What all ranks do after this step; the same answer everywhere."""
        is_alone = self._coordinator.world_size == 1
        if is_alone and self._kind is None:
            return requests
        if step < self._next:
            return requests if is_alone else NOTHING
        self._keep_up()
        pace = self._pace(step)
        numbers: list[float] = [requests.stop, requests.save, requests.evaluate, requests.over, pace]
        if is_alone:
            *agreed, period = numbers
        else:
            *agreed, period = self._pending.result().tolist() if self._pending is not None else (0, 0, 0, 0, 1)
            self._pending = self._coordinator.max(torch.tensor(numbers, dtype=torch.float64))
        self._period = min(int(period), 2 * self._period)
        self._next = step + self._period
        return Requests(*map(bool, agreed))

    def _keep_up(self) -> None:
        """Waits until the device has come to the step at which this was called last."""
        if self._kind is not None:
            if self._mark is not None:
                self._mark.synchronize()
            self._mark = self._kind.mark()

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
