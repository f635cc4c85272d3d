"""A piece of memory that the ranks of one machine share, and the way they take turns in it."""

from __future__ import annotations

import fcntl
import mmap
import os
import time
from typing import BinaryIO

import torch
import torch.distributed as dist
from torch.distributed import GradBucket  # type: ignore[attr-defined]  # as documented
from torch.nn.parallel import DistributedDataParallel

from launcher.errors import PeerError
from launcher.world import patience, progress
from launcher.world.world import World

MOST_RANKS = 8  # each reads the slots of all: with more, gloo's ring is as fast for large buckets
SLOT_BYTES = 2**20
_APART = 64  # bytes between what two ranks say: no two in one cache line
_SPIN_SECONDS = 0.002  # a rank that is late by more is slept for
_LONGEST_SLEEP_SECONDS = 0.005


def size_for(world: World) -> int:
    """Bytes of the memory that these ranks share."""
    return mmap.PAGESIZE + 2 * world.size * SLOT_BYTES


class Memory:
    """Two slots for each rank: in one of them others may still read what it wrote before.

    Args:
        file: Of all ranks; each has locked the byte of its own number.
        world: This process among the others.
        timeout_seconds: How long a rank's gradients may be waited for.
    """

    def __init__(self, file: BinaryIO, world: World, timeout_seconds: float):
        self._file, self._rank, self.size, self.timeout_seconds = file, world.rank, world.size, timeout_seconds
        self._others = [rank for rank in range(world.size) if rank != world.rank]
        memory = mmap.mmap(file.fileno(), size_for(world))
        counters = memoryview(memory)[: mmap.PAGESIZE].cast("q")
        # by rank: how often it has written, and how many bytes into each of its slots
        self._times, *self._bytes = (counters[first :: _APART // 8] for first in range(3))
        self._slots = torch.frombuffer(memory, dtype=torch.uint8, offset=mmap.PAGESIZE).view(2, world.size, SLOT_BYTES)
        self._views: dict[tuple[int, int, torch.dtype], list[torch.Tensor]] = {}
        self._now = 0

    def serve(self, module: DistributedDataParallel) -> None:
        """Averages the gradients of a module from now on, which can have no other communication hook then."""
        # torch looks at a hook's annotations, and does not take words for them
        module.register_comm_hook(self, lambda memory, bucket: _averaged(memory, bucket))

    def add_up(self, numbers: torch.Tensor, timeout_seconds: float | None = None) -> None:
        """Makes numbers in one dimension the sum over the ranks, in place, piece by piece.

        Args:
            numbers: Of the same length and type on every rank.
            timeout_seconds: How long a rank may be waited for; None for ever, which counts as progress.

        Raises:
            PeerError: A rank has ended.
            RuntimeError: A rank was waited for too long (in gloo's words), or has other numbers.
        """
        for piece in numbers.split(SLOT_BYTES // numbers.element_size()):
            self._now += 1
            slots, sizes = self._slots_of(piece), self._bytes[self._now % 2]
            slots[self._rank].copy_(piece)
            sizes[self._rank] = piece.nbytes
            self._times[self._rank] = self._now
            for rank in self._others:
                if self._times[rank] < self._now:
                    self._wait_for(rank, timeout_seconds)
                if sizes[rank] != piece.nbytes:
                    raise RuntimeError(self._differing(rank, sizes))
            torch.add(slots[0], slots[1], out=piece)
            for slot in slots[2:]:
                piece.add_(slot)

    def _slots_of(self, piece: torch.Tensor) -> list[torch.Tensor]:
        """Of all ranks, those that are written to now, as long as a piece is."""
        key = self._now % 2, piece.numel(), piece.dtype
        if key not in self._views:
            self._views[key] = [slot[: piece.nbytes].view(piece.dtype) for slot in self._slots[self._now % 2]]
        return self._views[key]

    def _wait_for(self, rank: int, timeout_seconds: float | None) -> None:
        began = time.monotonic()
        while self._times[rank] < self._now:
            waited = time.monotonic() - began
            if waited < _SPIN_SECONDS:
                os.sched_yield()
                continue
            if self._has_ended(rank) and self._times[rank] < self._now:
                raise PeerError(f"rank {rank} ended while this rank waited for it")
            if timeout_seconds is None:
                progress.beat()  # the rank that is waited for may stall, not this one
            elif waited > timeout_seconds:
                raise RuntimeError(f"Timed out waiting {timeout_seconds * 1000:.0f}ms for the gradients of rank {rank}")
            time.sleep(min(waited / 50, _LONGEST_SLEEP_SECONDS))  # what it may come too late by: 2 %

    def _has_ended(self, rank: int) -> bool:
        """Whether a rank's lock is free, as it is when its process has ended."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, rank)
        except OSError:
            return False
        return True

    def _differing(self, rank: int, sizes: memoryview) -> str:
        return (
            f"rank {rank} has gradients of {sizes[rank]:,} bytes where rank {self._rank} has {sizes[self._rank]:,}: "
            "every rank must compute the same parts of the model in the same order"
        )


def _averaged(memory: Memory, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
    numbers = bucket.buffer()
    if numbers.layout is not torch.strided:
        return _averaged_sparse(numbers, memory.size)
    numbers.div_(memory.size)  # first, as DDP does over gloo: the sum of float16 might be too large
    memory.add_up(numbers, patience.limit(memory.timeout_seconds))
    return _done(numbers)


def serve_sparse(module: DistributedDataParallel) -> None:
    """Averages the gradients of a module some of which are sparse, where ranks share no memory."""
    module.register_comm_hook(None, lambda _, bucket: _averaged_apart(bucket))


def _averaged_apart(bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
    numbers, size = bucket.buffer(), dist.get_world_size()
    if numbers.layout is not torch.strided:
        return _averaged_sparse(numbers, size)
    summed = dist.all_reduce(numbers.div_(size), async_op=True).get_future()
    averaged: torch.futures.Future[torch.Tensor] = summed.then(lambda future: future.value()[0])
    return averaged


def _averaged_sparse(numbers: torch.Tensor, size: int) -> torch.futures.Future[torch.Tensor]:
    """Their mean over the ranks, in a tensor of its own.

    DDP itself divides in place, and the values of a sparse gradient may be a view of what autograd still hands on: of
    two embeddings that are multiplied, the gradients came out halved on two processes.
    """
    mean = numbers / size
    dist.all_reduce(mean)
    return _done(mean)


def _done(numbers: torch.Tensor) -> torch.futures.Future[torch.Tensor]:
    done = torch.futures.Future[torch.Tensor]()
    done.set_result(numbers)
    return done
