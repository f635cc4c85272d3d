"""What the ranks tell each other besides gradients, on a gloo group of its own.

The main group's clock never runs while ranks wait here: waiting is an asynchronous operation that is polled,
so it may take hours, signal handlers run meanwhile, and a peer's death raises at once.
"""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from launcher import internals
from launcher.device.keepalive import open_files, watch_connection
from launcher.errors import EXIT_FAILED, LauncherError, PeerError
from launcher.recipe.raised import last_lines
from launcher.world import progress
from launcher.world.patience import FOREVER
from launcher.world.signals import stop_requested

if TYPE_CHECKING:
    from launcher.device.memory import Memory

POLL_SECONDS = 0.05
_BEAT_SECONDS = 1.0
_UNREACHABLE = re.compile("Connection timed out|No route to host|Network is unreachable")
_RESULT, _ERROR, _PROGRESS = range(3)  # what rank 0 sends in `from_first`
_STOP = "launcher/stop"  # in the process group's store: a rank that waits was asked to stop
_DONE = b"="  # before what a rank sends in `everywhere`, unless it failed


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

    Args:
        rank: This process.
        world_size: How many there are.
        timeout_seconds: When a rank that cannot be reached any more is abandoned; None leaves it to the kernel. A rank
            that lives may take as long as it likes.
        group: Where they speak, where it is open already; None opens one.
        memory: What all ranks share, where there is such: sums are made in it.
    """

    def __init__(
        self,
        rank: int,
        world_size: int,
        timeout_seconds: float | None = None,
        *,
        group: Any = None,
        memory: Memory | None = None,
    ):
        self.rank = rank
        self.world_size = world_size
        self._is_awaited = False  # this is rank 0, and the others wait for it
        self._has_passed_on = False  # this is another, and has told rank 0 that it was asked to stop
        self._beat: tuple[torch.Tensor, Any] | None = None
        self._next_beat = 0.0
        self.is_asked_to_stop = False  # rank 0, by a rank that waits for it; known once a second
        self.memory = memory
        self.timeout_seconds = timeout_seconds if timeout_seconds is not None else FOREVER.total_seconds()
        self._group = group
        self._alone: Any = None  # a group of this rank, where it was needed
        self._told: Any = _store() if world_size > 1 else None  # where who is asked to stop says so
        if world_size > 1 and group is None:
            before = open_files()
            self._group = dist.new_group(backend="gloo", timeout=FOREVER)
            self._broadcast(torch.zeros(1))  # from here on all connections are there
            if timeout_seconds is not None:
                for descriptor in open_files() - before:
                    watch_connection(descriptor, timeout_seconds)

    @property
    def store(self) -> Any:
        """What all ranks can write to and look into without waiting for one another."""
        return _store()

    def sharing(self, memory: Memory | None) -> Coordinator:
        """The same side channel, for ranks that have found memory which all of them share."""
        return Coordinator(self.rank, self.world_size, self.timeout_seconds, group=self._group, memory=memory)

    def sum(self, numbers: torch.Tensor) -> Pending:
        """Starts adding float64 CPU `numbers` in one dimension over the ranks, in place."""
        if self.memory is None:
            return self._reduce(numbers, dist.ReduceOp.SUM)
        self.memory.add_up(numbers)  # done sooner than over gloo begun
        return Pending(numbers)

    def max(self, numbers: torch.Tensor) -> Pending:
        """Starts taking the maximum of float64 CPU `numbers` over the ranks, in place."""
        return self._reduce(numbers, dist.ReduceOp.MAX)

    def _reduce(self, numbers: torch.Tensor, operation: Any) -> Pending:
        if self._group is None:
            return Pending(numbers)
        return Pending(numbers, dist.all_reduce(numbers, operation, group=self._group, async_op=True))

    def from_first(self, function: Callable[[], Any], patience: float | None = None) -> Any:
        """Runs `function` on rank 0 while the others wait; all return its result (what JSON can carry).

        Args:
            function: May call `beat` to say how far it is.
            patience: Seconds that the others wait for a sign of rank 0; None for ever. Its death they notice at once.

        Raises:
            PeerError: On the other ranks, when rank 0's function raised, rank 0 ended, or gave no sign.
        """
        if self._group is None:
            return function()
        if self.rank > 0:
            return self._receive(patience)
        self._is_awaited, self._next_beat = True, 0.0
        try:
            result = function()
        except BaseException as error:
            self._send(_ERROR, _failure(error))
            raise
        self._send(_RESULT, result)
        return result

    def first_alone(self, function: Callable[[], Any], patience: float | None = None) -> Any:
        """The same for somebody's code, which would wait for ever where it speaks with the other ranks."""

        def called() -> Any:
            with self.alone():
                return function()

        return self.from_first(called, patience)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """This rank is a world of its own: what is asked of the group of all is answered as in one process."""
        if self._group is None:
            yield
            return
        if self._alone is None:  # over gloo, which has no part in how NCCL splits its groups
            self._alone = dist.new_group([dist.get_rank()], FOREVER, "gloo", use_local_synchronization=True)
        everyone, dist.group.WORLD = dist.group.WORLD, self._alone
        try:
            yield
        finally:
            dist.group.WORLD = everyone

    def beat(self, done: int, total: int) -> None:
        """Reports progress of this rank; in `from_first` once a second to those that wait, never waiting for them."""
        progress.beat()
        now = time.monotonic()
        if not self._is_awaited or now < self._next_beat:
            return
        if self._beat is not None:
            if not self._beat[1].is_completed():
                return
            self._beat[1].wait()  # raises where somebody who waits is gone
        self._next_beat = now + _BEAT_SECONDS
        with suppress(RuntimeError):  # a store that is gone is no reason to fail
            self.is_asked_to_stop = self.is_asked_to_stop or bool(self._told.check([_STOP]))
        header = torch.tensor([_PROGRESS, done, total])
        self._beat = header, dist.broadcast(header, src=0, group=self._group, async_op=True)

    def everywhere(self, function: Callable[[], bytes]) -> list[bytes]:
        """Runs `function` on every rank; all return what all of them returned, in the order of the ranks.

        Raises:
            PeerError: On the ranks whose function did not raise, when another's did.
        """
        try:
            result = _DONE + function()
        except BaseException as error:
            self.gather(json.dumps(_failure(error)).encode())
            raise
        results = self.gather(result)
        for rank, message in enumerate(results):
            if not message.startswith(_DONE):
                failure = json.loads(message)
                raise PeerError(f"rank {rank} failed: {failure['error']}", failure["exit_code"])
        return [message.removeprefix(_DONE) for message in results]

    def gather(self, message: bytes) -> list[bytes]:
        """Every rank's bytes, in the order of the ranks, on every rank."""
        if self._group is None:
            return [message]
        lengths = self._all_gather(torch.tensor([len(message)]))
        padded = message.ljust(max(1, int(max(lengths))), b"\0")
        gathered = self._all_gather(torch.frombuffer(bytearray(padded), dtype=torch.uint8))
        return [bytes(buffer[: int(length)].numpy()) for buffer, length in zip(gathered, lengths, strict=True)]

    def share(self, tensor: torch.Tensor) -> None:
        """Makes a tensor on any device rank 0's, in place."""
        if self._group is not None:
            for part in internals.parts_of(tensor.detach()):
                host = part.cpu().contiguous()
                self._broadcast(host)
                if self.rank > 0:
                    part.copy_(host)

    def share_all(self, tensors: Sequence[torch.Tensor]) -> None:
        """Makes tensors on any device rank 0's, in place: all of a type in one message."""
        if self._group is None:
            return
        kinds: dict[tuple[torch.dtype, torch.device], list[torch.Tensor]] = {}
        for part in (part for tensor in tensors for part in internals.parts_of(tensor.detach())):
            kinds.setdefault((part.dtype, part.device), []).append(part)
        for alike in kinds.values():
            together = torch.cat([tensor.reshape(-1) for tensor in alike])
            self.share(together)
            if self.rank > 0:
                for tensor, part in zip(alike, together.split([tensor.numel() for tensor in alike]), strict=True):
                    tensor.copy_(part.view(tensor.shape))

    def _broadcast(self, tensor: torch.Tensor) -> None:
        _wait(dist.broadcast(tensor, src=0, group=self._group, async_op=True))

    def _all_gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        gathered = [torch.empty_like(tensor) for _ in range(self.world_size)]
        _wait(dist.all_gather(gathered, tensor, group=self._group, async_op=True))
        return gathered

    def _send(self, kind: int, message: Any) -> None:
        self._is_awaited = False
        if self._beat is not None:
            _wait(self._beat[1])
            self._beat = None
        payload = torch.frombuffer(bytearray(json.dumps(message).encode()), dtype=torch.uint8)
        self._broadcast(torch.tensor([kind, payload.numel(), 0]))
        self._broadcast(payload)

    def _pass_on(self) -> None:
        """Lets rank 0 know that this rank, which waits for it, was asked to stop."""
        if stop_requested() and not self._has_passed_on:
            self._has_passed_on = True
            with suppress(RuntimeError):
                self._told.set(_STOP, "")

    def _receive(self, patience: float | None) -> Any:
        where = ""
        while True:
            header = torch.zeros(3, dtype=torch.int64)
            try:
                _wait(dist.broadcast(header, src=0, group=self._group, async_op=True), patience, self._pass_on)
            except TimeoutError:
                raise PeerError(f"rank 0 gave no sign for {patience:g} seconds{where}") from None
            except RuntimeError as error:  # gloo's: the connection is gone
                what = "ended"
                if lost := _UNREACHABLE.search(str(error)):
                    what = f"cannot be reached any more ({lost[0]})"
                raise PeerError(f"rank 0 {what} while this rank waited for it{where}") from error
            kind, size, total = header.tolist()
            if kind != _PROGRESS:
                break
            where = f", evaluating {size}/{total}"
        payload = torch.zeros(size, dtype=torch.uint8)
        self._broadcast(payload)
        message = json.loads(bytes(payload.numpy()))
        if kind == _ERROR:
            raise PeerError(f"rank 0 failed: {message['error']}", message["exit_code"])
        return message


def packed(tensors: Any) -> bytes:
    """Tensors, and lists and mappings of them, as bytes for `gather`."""
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    return buffer.getvalue()


def unpacked(message: bytes) -> Any:
    """What `packed` made bytes of."""
    return torch.load(io.BytesIO(message), weights_only=True)


def _failure(error: BaseException) -> dict[str, Any]:
    exit_code = error.exit_code if isinstance(error, LauncherError) else EXIT_FAILED
    return {"error": last_lines(error), "exit_code": exit_code}


def _store() -> Any:
    """What all ranks can write to and look into without waiting for one another: each attempt has its own."""
    return internals.default_store()


def _wait(work: Any, patience: float | None = None, meanwhile: Callable[[], None] = lambda: None) -> None:
    began = time.monotonic()
    while not work.is_completed():
        meanwhile()
        waited = time.monotonic() - began
        if patience is not None and waited > patience:
            raise TimeoutError
        if waited > 0.002:  # most work is done by now: do not sleep for it
            progress.beat()  # the rank that is waited for may stall, not this one
            time.sleep(min(POLL_SECONDS, waited / 4))
    work.wait()  # raises what went wrong
