"""Where trials run at the same time: this machine's GPUs, or processes on its CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from launcher.errors import UsageError
from launcher.world import gpus
from launcher.world.world import usable_cpus

_MOST_ON_CPU = 8  # without being asked: the memory of more trials is not known to be there


@dataclass(frozen=True)
class Slot:
    """Room for one trial.

    Attributes:
        number: From 0.
        gpus: What it may use, by number, UUID or MIG name; none on a CPU.
    """

    number: int
    gpus: tuple[str, ...] = ()

    @property
    def environment(self) -> Mapping[str, str]:
        """The variables of a trial there."""
        return {"CUDA_VISIBLE_DEVICES": ",".join(self.gpus)} if self.gpus else {}


def slots_of(parallel: int | None, processes: int, names: list[str]) -> list[Slot]:
    """The slots of this machine.

    Args:
        parallel: How many; None for what there is.
        processes: Of each trial, each with a GPU of its own where there are some.
        names: The GPUs; none stays on the CPU.

    Raises:
        UsageError: A trial wants more GPUs than there are.
    """
    if not names:
        number = parallel or max(1, min(_MOST_ON_CPU, usable_cpus() // processes))
        return [Slot(place) for place in range(number)]
    if processes > len(names):
        raise UsageError(
            f"--processes-per-run {processes}: this machine shows {len(names)} GPU{'s' * (len(names) > 1)}; use "
            f"--processes-per-run {len(names)}, or --cpu"
        )
    groups = [tuple(names[first : first + processes]) for first in range(0, len(names) - processes + 1, processes)]
    # more slots than GPUs share them
    return [Slot(place, groups[place % len(groups)]) for place in range(parallel or len(groups))]


def gpus_here(cpu: bool) -> list[str]:
    """The GPUs that trials may use, by the name that `CUDA_VISIBLE_DEVICES` knows; none where they stay on the CPU."""
    if cpu:
        return []
    from launcher.device.kind import count  # with torch; trials are not forked from this process

    number, named = count(), gpus.visible()
    return named[:number] if named is not None else [str(place) for place in range(number)]


def threads_of_each(slots: int, processes: int) -> int:
    """CPU threads of a trial's process: its share of the CPUs."""
    return max(1, usable_cpus() // (slots * processes))
