"""GPUs that one user's sweeps on one machine leave to each other: a file each, locked as long as its holder lives."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Sequence

from launcher.checks import smi
from launcher.datasets.files import temporary_folder
from launcher.runs.folder import output_of
from launcher.world.world import World


class Reservation:
    """A GPU that is held as long as this object is there.

    Args:
        descriptor: Of its locked file.
    """

    def __init__(self, descriptor: int):
        self._descriptor = descriptor

    def __del__(self) -> None:
        os.close(self._descriptor)


def reserve(names: Sequence[str]) -> dict[str, Reservation]:
    """Holds those of some GPUs that no other sweep holds.

    Args:
        names: As they stand in the variable that limits a process: numbers, UUIDs, names of slices.
    """
    cards = smi.cards(output_of(*smi.QUERY)) if names else []
    held = {name: _lock(_key(name, cards)) for name in names}
    return {name: Reservation(descriptor) for name, descriptor in held.items() if descriptor is not None}


def _key(name: str, cards: Sequence[smi.Card]) -> str:
    """The same for all processes that see this GPU; behind a job's control groups, 0 is another one for each job."""
    known = [] if name.startswith("MIG") else smi.visible(cards, [name])
    return known[0].uuid if known else f"{World.from_environ().job or ''} {name}"


def _lock(key: str) -> int | None:
    path = temporary_folder() / f"gpu-{hashlib.sha256(key.encode()).hexdigest()[:24]}.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
