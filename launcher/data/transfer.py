"""Batches to the GPU, one step ahead: the copy of the next runs while the GPU computes on this one."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from typing import Any, Protocol, TypeVar

import torch
from accelerate.utils import send_to_device

from launcher.data.loaders import MicroBatch


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

    For a CUDA or XPU device the next step is read, and its copy begun on a stream of its own, before this one is
    handed out. Otherwise each step is moved when it is asked for, which for a CPU means nothing at all.

    Args:
        steps: In host memory; page-locked, or each copy waits for the GPU. Closed when this is.
        device: Where to.
    """
    if device.type == "cpu":
        return steps
    if device.type in ("cuda", "xpu"):
        return _one_ahead(steps, device, torch.get_device_module(device))
    return _in_turn(steps, device)


def _in_turn(steps: Steps[S], device: torch.device) -> Steps[S]:
    with closing(steps):
        for step in steps:
            yield _moved(step, device)


def _one_ahead(steps: Steps[S], device: torch.device, module: Any) -> Steps[S]:
    """The order on the device is: compute k, then compute k + 1 beside copy k + 2.

    The computing stream waits for the copy that it needs, and for no other. The copying stream waits for all that
    was launched before it copies on: memory that a finished step has given back is not overwritten while the GPU
    still reads it, whatever the batch is made of, and no tensor has to be told of the other stream.
    """
    copies = module.Stream(device)
    waiting: tuple[S, Any] | None = None
    with closing(steps):
        for step in steps:
            copies.wait_stream(module.current_stream(device))
            with module.stream(copies):
                begun = _moved(step, device), copies.record_event()
            if waiting is not None:
                yield _arrived(*waiting, module.current_stream(device))
            waiting = begun
        if waiting is not None:
            yield _arrived(*waiting, module.current_stream(device))


def _moved(step: S, device: torch.device) -> S:
    for batch in step.batches:
        batch.data = send_to_device(batch.data, device, non_blocking=True)
    return step


def _arrived(step: S, copied: Any, computing: Any) -> S:
    computing.wait_event(copied)
    return step
