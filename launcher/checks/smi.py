"""What NVIDIA's driver says of its GPUs through nvidia-smi: no context is opened on any of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_FIELDS = ("index", "uuid", "name", "memory.free", "memory.total", "compute_mode", "driver_version")
QUERY = ("nvidia-smi", f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader,nounits")


@dataclass(frozen=True)
class Card:
    """A GPU.

    Attributes:
        index: Its number on the machine, in the order of the bus.
        uuid: Its own number.
        name: Its model.
        free: MiB of memory.
        total: MiB of memory.
        mode: `Default`, or who else may use it: `Exclusive_Process`, `Prohibited`.
        driver: The driver's version.
    """

    index: str
    uuid: str
    name: str
    free: float
    total: float
    mode: str
    driver: str


def cards(output: str | None) -> list[Card]:
    """The GPUs of the machine, from what the query prints; those of which it says nothing are left out."""
    rows = [[part.strip() for part in line.split(",")] for line in (output or "").splitlines()]
    return [
        Card(index, uuid, name, _number(free), _number(total), mode, driver)
        for index, uuid, name, free, total, mode, driver in (row for row in rows if len(row) == len(_FIELDS))
    ]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:  # [N/A], where memory is the host's
        return 0.0


def visible(cards: Sequence[Card], names: Sequence[str] | None) -> list[Card]:
    """Those that this process may use.

    Args:
        cards: All.
        names: Numbers, or UUIDs, of which a beginning is enough; a slice of one (MIG) is told by no card. None is all.
    """
    if names is None or any(name.startswith("MIG") for name in names):
        return list(cards)
    return [card for name in names for card in cards if card.index == name or card.uuid.startswith(name)]
