"""Where trials run at the same time: this machine's GPUs, or processes on its CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from launcher.errors import UsageError
from launcher.recipe.caller import setting
from launcher.sweep.reserved import Reservation, reserve
from launcher.world import gpus
from launcher.world.world import usable_cpus

_MOST_ON_CPU = 8  # without being asked: the memory of more trials is not known to be there


@dataclass(frozen=True)
class Slot:
    """Room for one trial.

    Attributes:
        number: From 0.
        gpus: What it may use, by number, UUID or MIG name; none on a CPU.
        held: What keeps other sweeps off these, as long as there is such a slot.
    """

    number: int
    gpus: tuple[str, ...] = ()
    held: tuple[Reservation, ...] = field(default=(), compare=False, repr=False)

    @property
    def environment(self) -> Mapping[str, str]:
        """The variables of a trial there."""
        return {gpus.variable(): ",".join(self.gpus)} if self.gpus else {}


def slots_here(parallel: int | None, processes: int, cpu: bool) -> list[Slot]:
    """The slots of this machine; GPUs on which another sweep works are left to it, unless it is said how many slots.

    Args:
        parallel: How many; None for what there is.
        processes: Of each trial, each with a GPU of its own where there are some.
        cpu: Whether trials stay on the CPU even if there is a GPU.

    Raises:
        UsageError: A trial wants more GPUs than there are, or than other sweeps leave.
    """
    names = [] if cpu else _gpus_here()
    held = reserve(names)
    free = [name for name in names if name in held]
    if parallel is not None or len(free) == len(names):
        slots = slots_of(parallel, processes, names)
    elif len(free) < processes:
        raise UsageError(
            f"other sweeps on this machine work on {len(names) - len(free)} of {_counted(len(names))}, and a trial "
            f"wants {processes}; wait for them, or write {setting('parallel', max(1, len(names) // processes))} to "
            "share"
        )
    else:
        slots = slots_of(None, processes, free)
    return [replace(slot, held=tuple(held[name] for name in slot.gpus if name in held)) for slot in slots]


def slots_of(parallel: int | None, processes: int, names: Sequence[str]) -> list[Slot]:
    """The same of a machine with GPUs of these names; without any, of its CPU.

    Raises:
        UsageError: A trial wants more GPUs than there are.
    """
    if not names:
        number = parallel or max(1, min(_MOST_ON_CPU, usable_cpus() // processes))
        return [Slot(place) for place in range(number)]
    most = 1 if gpus.is_slice(names[0]) else len(names)  # CUDA shows a process one slice of all that it may use
    if processes > most:
        shows = "slices of GPUs, of which a process sees one" if most < len(names) else _counted(len(names))
        raise UsageError(
            f"{setting('processes_per_run', processes)}: this machine shows {shows}; use "
            f"{setting('processes_per_run', most)}, or {setting('cpu', True)}"
        )
    groups = [tuple(names[first : first + processes]) for first in range(0, len(names) - processes + 1, processes)]
    # more slots than GPUs share them
    return [Slot(place, groups[place % len(groups)]) for place in range(parallel or len(groups))]


def _gpus_here() -> list[str]:
    """The GPUs that trials may use, by the name that the variable knows which limits them."""
    from launcher.device.kind import count  # with torch; trials are not forked from this process

    number, named = count(), gpus.visible()
    if named is None:
        return [str(place) for place in range(number)]
    return named if number and gpus.is_slice(named[0]) else named[:number]


def _counted(number: int) -> str:
    return f"{number} GPU{'s' * (number > 1)}"


def described(slots: Sequence[Slot], processes: int) -> str:
    """How many trials run at a time, and on what, in words."""
    at_a_time = f"{len(slots)} at a time"
    devices = {name for slot in slots for name in slot.gpus}
    if not devices:
        return at_a_time
    shared = ", which they share" if len(slots) * processes > len(devices) else ""
    return f"{at_a_time} on {_counted(len(devices))}{shared}"


def threads_of_each(slots: int, processes: int) -> int:
    """CPU threads of a trial's process: its share of the CPUs."""
    return max(1, usable_cpus() // (slots * processes))
