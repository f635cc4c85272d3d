"""Host memory for copies of a run's state, kept from one checkpoint to the next.

Page-locked, so that a GPU copies at full speed beside the host, and taken once: to lock gigabytes takes longer than to
fill them. Each storage is a part of it with a beginning and an end of its own, or `torch.save` would write all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from launcher.checkpoints.format import Snapshot, copied_into, tensors_in
from launcher.device.kind import Aside, Kind, kind_of
from launcher.internals import has_storage, storage_id

_ALIGNED = 512  # bytes: where a part may begin


@dataclass(frozen=True)
class Copy:
    """A snapshot on its way to host memory.

    Attributes:
        snapshot: Rubbish until `arrived` was called.
        arrived: Waits for it; gives the seconds for which the device waited, None where the host did.
    """

    snapshot: Snapshot
    arrived: Callable[[], float | None]


class Arena:
    """The memory, and the stream on which a device copies into it.

    Only one copy is in it at a time: whoever takes the next one has done with the last.

    Args:
        kind: The device that copies; None finds it by the tensors.
    """

    def __init__(self, kind: Kind | None = None) -> None:
        self._kind = kind
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._asides: dict[torch.device, Aside | None] = {}

    @property
    def num_bytes(self) -> int:
        """What it holds already."""
        return self._memory.numel()

    def copy(self, snapshot: Snapshot) -> Copy:
        """Begins to copy; what the device is told from now on waits for that, and the host does not."""
        kind = self._kind or next((kind_of(tensor.device) for tensor in _on_devices(snapshot)), None)
        if kind is None:
            return Copy(snapshot.copied(), lambda: None)
        if kind.device not in self._asides:
            self._asides[kind.device] = kind.aside()
        aside = self._asides[kind.device]
        parts = self._parts(snapshot, kind)
        if aside is None:
            copied = _copied(snapshot, parts)
            return Copy(copied, lambda: kind.synchronize())
        with aside.after_computing():
            before = aside.timer()
            copied = _copied(snapshot, parts)
            after = aside.timer()
        aside.before_computing(after)

        def arrived() -> float:
            after.synchronize()
            return float(before.elapsed_time(after)) / 1e3

        return Copy(copied, arrived)

    def _parts(self, snapshot: Snapshot, kind: Kind) -> Mapping[int, torch.UntypedStorage]:
        """A part of the memory for each storage of the snapshot, by its number."""
        sizes = {
            storage_id(tensor.untyped_storage()): tensor.untyped_storage().nbytes()
            for tensor in tensors_in(snapshot.contents)
            if has_storage(tensor)
        }
        wanted = sum(map(_aligned, sizes.values()))
        if self.num_bytes < wanted:
            self._memory = torch.empty(0, dtype=torch.uint8)  # given back before more is taken
            self._memory = kind.pinned(wanted)
        parts, start, memory = {}, 0, self._memory.numpy()
        for number, size in sizes.items():
            parts[number] = torch.from_numpy(memory[start : start + size]).untyped_storage()
            start += _aligned(size)
        return parts


def _on_devices(snapshot: Snapshot) -> Iterator[torch.Tensor]:
    return (tensor for tensor in tensors_in(snapshot.contents) if tensor.device.type != "cpu")


def _aligned(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED


def _copied(snapshot: Snapshot, parts: Mapping[int, torch.UntypedStorage]) -> Snapshot:
    state: Any = [snapshot.weights, snapshot.training, snapshot.evaluated]
    weights, training, evaluated = copied_into(state, parts)
    return Snapshot(weights, training, snapshot.manifest, evaluated)
