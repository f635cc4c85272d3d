"""What the ranks tell each other besides gradients, on a gloo group of its own.

The main group's clock never runs while ranks wait here: waiting is an asynchronous operation that is polled,
so it may take hours, signal handlers run meanwhile, and a peer's death raises at once.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from launcher.errors import EXIT_FAILED, LauncherError

POLL_SECONDS = 0.05
_FOREVER = timedelta(days=365)


class PeerError(LauncherError):
    """Another rank failed in what this one was waiting for.

    Args:
        message: What it said.
        exit_code: What it ends with: this rank does too.
    """

    def __init__(self, message: str, exit_code: int = EXIT_FAILED):
        super().__init__(message)
        self.exit_code = exit_code


@dataclass
class Pending:
    """Numbers on their way: `result()` waits for them."""

    numbers: torch.Tensor
    work: Any = None

    def result(self) -> torch.Tensor:
        """The reduced numbers, waited for by polling."""
        if self.work is not None:
            _wait(self.work)
            self.work = None
        return self.numbers


class Coordinator:
    """The ranks' side channel; with one process everything is immediate.

    Every rank must make the same calls in the same order.
    """

    def __init__(self, rank: int, world_size: int):
        self.rank = rank
        self.world_size = world_size
        self._group = dist.new_group(backend="gloo", timeout=_FOREVER) if world_size > 1 else None

    def sum(self, numbers: torch.Tensor) -> Pending:
        """Starts adding float64 CPU `numbers` over the ranks, in place."""
        return self._reduce(numbers, dist.ReduceOp.SUM)

    def max(self, numbers: torch.Tensor) -> Pending:
        """Starts taking the maximum of float64 CPU `numbers` over the ranks, in place."""
        return self._reduce(numbers, dist.ReduceOp.MAX)

    def _reduce(self, numbers: torch.Tensor, operation: Any) -> Pending:
        if self._group is None:
            return Pending(numbers)
        return Pending(numbers, dist.all_reduce(numbers, operation, group=self._group, async_op=True))

    def from_first(self, function: Callable[[], Any]) -> Any:
        """Runs `function` on rank 0 while the others wait; all return its result (what JSON can carry).

        Raises:
            PeerError: On the other ranks, when rank 0's function raised; it carries rank 0's traceback.
        """
        if self._group is None:
            return function()
        if self.rank == 0:
            try:
                message = {"result": function()}
            except BaseException as error:
                exit_code = error.exit_code if isinstance(error, LauncherError) else EXIT_FAILED
                self._send({"error": "".join(traceback.format_exception_only(error)).strip(), "exit_code": exit_code})
                raise
            self._send(message)
            return message["result"]
        message = self._receive()
        if "error" in message:
            raise PeerError(f"rank 0 failed: {message['error']}", message["exit_code"])
        return message["result"]

    def _send(self, message: dict[str, Any]) -> None:
        payload = torch.frombuffer(bytearray(json.dumps(message).encode()), dtype=torch.uint8)
        self._broadcast(torch.tensor([payload.numel()]))
        self._broadcast(payload)

    def _receive(self) -> dict[str, Any]:
        length = torch.zeros(1, dtype=torch.int64)
        self._broadcast(length)
        payload = torch.zeros(int(length), dtype=torch.uint8)
        self._broadcast(payload)
        message: dict[str, Any] = json.loads(bytes(payload.tolist()))
        return message

    def _broadcast(self, tensor: torch.Tensor) -> None:
        _wait(dist.broadcast(tensor, src=0, group=self._group, async_op=True))


def _wait(work: Any) -> None:
    deadline = time.monotonic() + 0.002  # most work is done by now: do not sleep for it
    while not work.is_completed():
        if time.monotonic() > deadline:
            time.sleep(POLL_SECONDS)
    work.wait()  # raises what went wrong


@dataclass
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
            return Requests()
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
