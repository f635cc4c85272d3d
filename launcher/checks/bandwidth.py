"""How fast the ranks add up numbers: one process of `launcher doctor`, `python -m launcher.checks.bandwidth`."""

from __future__ import annotations

import json
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist

from launcher.device.kind import count, found, kind_of, make_current
from launcher.launch.postmortem import watched
from launcher.scripting import run_dir
from launcher.world.world import World

RESULT_FILE = "bandwidth.json"
NUM_BYTES = 32 * 2**20
_ROUNDS = 5


def measure(world: World) -> dict[str, float | str]:
    """All-reduces a small and a large tensor, and takes the fastest of some rounds.

    Args:
        world: The processes; the group is made and left here.

    Returns:
        `latency` in seconds, of four bytes; `bandwidth` in bytes a second and rank, as NCCL's tests count it ("bus
        bandwidth": the bytes that a ring moves over each link, 2 (n - 1) / n times the tensor's size).
    """
    there = None if world.wants_cpu else found()
    device = torch.device("cpu") if there is None else torch.device(there.type, world.local_rank % count())
    make_current(device)
    backend = dist.get_default_backend_for_device(device)
    bound = None if there is None else device  # else a barrier guesses, and says so on the screen
    dist.init_process_group(backend, timeout=timedelta(seconds=60), device_id=bound)
    try:
        latency = _fastest(torch.zeros(1, device=device))
        large = _fastest(torch.zeros(NUM_BYTES // 4, device=device))
    finally:
        dist.destroy_process_group()
    share = 2 * (world.size - 1) / world.size
    return {"backend": backend, "latency": latency, "bandwidth": share * NUM_BYTES / large}


def _fastest(numbers: torch.Tensor) -> float:
    seconds = []
    for _ in range(_ROUNDS + 1):
        dist.barrier()
        began = time.perf_counter()
        dist.all_reduce(numbers)
        kind_of(numbers.device).synchronize()
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])  # the first one makes the connections


def main() -> int:
    """Measures; rank 0 leaves the result in the run's folder."""
    world = World.from_environ()
    with watched(world, "launcher doctor"):
        result = measure(world)
        if world.is_first:
            (run_dir() / RESULT_FILE).write_text(json.dumps(result), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
