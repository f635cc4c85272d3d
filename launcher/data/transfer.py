"""Batches to the GPU, one step ahead: the copy of the next runs while the GPU computes on this one."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import torch

from launcher.data.loaders import MicroBatch
from launcher.data.parts import changed
from launcher.device.kind import Aside, kind_of


class HasBatches(Protocol):
    """A step of this rank."""

    @property
    def batches(self) -> Sequence[MicroBatch]:
        """Its micro-batches, in host memory until they are moved."""
        ...


S = TypeVar("S", bound=HasBatches)


Steps = Generator[S, None, None]


def on_device(steps: Steps[S], device: torch.device) -> Steps[S]:
    """The same steps with their micro-batches on `device`.

    Where the device has a second stream, the next step is read, and its copy begun on that, before this one is handed
    out. Otherwise each step is moved when it is asked for, which for a CPU means nothing at all.

    Args:
        steps: In host memory; page-locked, or each copy waits for the GPU. Closed when this is.
        device: Where to.
    """
    kind = kind_of(device)
    if kind.is_host:
        return steps
    copies = kind.aside()
    return _in_turn(steps, device) if copies is None else _one_ahead(steps, device, copies)


@dataclass(slots=True)
class _Single:
    """A batch of an evaluation, as a step of one."""

    original: MicroBatch
    batches: Sequence[MicroBatch]


def with_copies(batches: Iterable[MicroBatch], device: torch.device) -> Iterator[tuple[MicroBatch, Any]]:
    """Batches in host memory, each with what it holds on `device`, copied ahead as those of training are."""
    if kind_of(device).is_host:
        for batch in batches:
            yield batch, batch.data
        return
    singles = (_Single(batch, [replace(batch)]) for batch in batches)
    with closing(on_device(singles, device)) as steps:
        for step in steps:
            yield step.original, step.batches[0].data


def _in_turn(steps: Steps[S], device: torch.device) -> Steps[S]:
    with closing(steps):
        for step in steps:
            yield _moved(step, device)


def _one_ahead(steps: Steps[S], device: torch.device, copies: Aside) -> Steps[S]:
    """The order on the device is: compute k, then compute k + 1 beside copy k + 2.

    The computing stream waits for the copy that it needs, and for no other. The copying stream waits for all that
    was launched before it copies on: memory that a finished step has given back is not overwritten while the GPU
    still reads it, whatever the batch is made of, and no tensor has to be told of the other stream.
    """
    waiting: tuple[S, Any] | None = None
    with closing(steps):
        for step in steps:
            with copies.after_computing():
                begun = _moved(step, device), copies.mark()
            if waiting is not None:
                yield _arrived(*waiting, copies)
            waiting = begun
        if waiting is not None:
            yield _arrived(*waiting, copies)


def _moved(step: S, device: torch.device) -> S:
    for batch in step.batches:
        batch.data = moved(batch.data, device)
    return step


def moved(value: Any, device: torch.device) -> Any:
    """What a batch is made of, on a device: tensors of any layout, and whatever holds some.

    What has a `to` of its own knows best.
    """

    def to_device(part: Any) -> Any:
        return part.to(device, non_blocking=True) if isinstance(part, torch.Tensor) else _moved_itself(part, device)

    return changed(value, to_device, lambda part: isinstance(part, torch.Tensor) or callable(getattr(part, "to", None)))


def _moved_itself(value: Any, device: torch.device) -> Any:
    """By its own `to`, which may know nothing of `non_blocking`, or give nothing back where it moved itself."""
    try:
        result = value.to(device, non_blocking=True)
    except TypeError:
        result = value.to(device)
    return value if result is None else result


def _arrived(step: S, copied: Any, copies: Aside) -> S:
    copies.before_computing(copied)
    return step
