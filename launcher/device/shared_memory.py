"""Gradients of processes on one machine's CPUs, added up in memory that they share.

gloo hands a bucket of gradients to a thread of its own, and that to sockets in several rounds, each of which wakes
threads in both processes: 0.4 to 1.5 ms for a small network on two cores, where a step computes for 0.2. Here every
rank writes its bucket into a slot that all can read, says so by a number, and adds up all slots in the order of the
ranks, so that all have the same sum to the bit: 14 µs for the same bucket.
"""

from __future__ import annotations

import fcntl
import os
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from launcher.device.coordination import Coordinator
from launcher.device.memory import MOST_RANKS, Memory, size_for
from launcher.world.temporary import held_file
from launcher.world.world import World

_MEMORY = Path("/dev/shm")
_ORDERED = ("x86_64", "AMD64")  # CPUs that show others a process's writes in the order in which it made them


@contextmanager
def shared_memory(world: World, coordinator: Coordinator, timeout_seconds: float) -> Iterator[Memory | None]:
    """Memory of all ranks for a while; None where they have none: on several machines, in containers of their own, …

    Args:
        world: This process among the others.
        coordinator: Their side channel.
        timeout_seconds: How long a rank may be waited for.
    """
    if not 1 < world.size == world.local_size <= MOST_RANKS or platform.machine() not in _ORDERED:
        yield None
        return
    with ExitStack() as stack:
        name = coordinator.from_first(lambda: _reserved(size_for(world), stack))
        try:
            file = _opened(name, world.rank) if name is not None else None
            is_open = b"" not in coordinator.gather(b"" if file is None else b"open")
        finally:
            if name is not None and world.is_first:
                os.unlink(name)  # those who have opened it keep it, and nobody else shall
        if file is None:
            yield None
            return
        with file:
            yield Memory(file, world, timeout_seconds) if is_open else None


def _reserved(size: int, stack: ExitStack) -> str | None:
    """A file in memory, or None where there is none, or too little: written to all the same, it would end a process.

    It is held as long as the stack lasts: a process that closes a file loses all its locks of it.
    """
    try:
        path, descriptor = held_file(_MEMORY)
    except OSError:
        return None
    stack.callback(os.close, descriptor)
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError:
        os.unlink(path)
        return None
    return str(path)


def _opened(name: str, rank: int) -> BinaryIO | None:
    """The file with this rank's lock, which is there for as long as its process has it open."""
    try:
        file = open(name, "r+b", buffering=0)  # noqa: SIM115  # it is closed by whoever gets it
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, rank)
    except OSError:
        return None
    return file
