"""How much memory something needs, as the system counts it."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

_MMAP_THRESHOLD = -3  # as malloc.h has it


def give_back() -> None:
    """Has what is freed from now on given back to the system at once: else holes count as memory that is used."""
    ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 2**16)


def peak_of(work: Callable[[], object]) -> int:
    """Bytes that this process's memory grows by, at most, meanwhile."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak from now on
    before = _in_memory("VmRSS")
    kept = work()
    peak = _in_memory("VmHWM") - before
    del kept
    return peak


def _in_memory(kind: str) -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[kind].split()[0]) * 1024
