"""6: evaluation. Batches for processes that compute every one together, since none of them has the whole model."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import replace

import torch

from launcher.data.loaders import EvaluationLoader, MicroBatch
from launcher.device.coordination import Coordinator


class StopRequested(Exception):  # noqa: N818  # not an error
    """A process was asked to stop in the middle of an evaluation."""


def in_step(
    loader: EvaluationLoader,
    coordinator: Coordinator,
    stopping: Callable[[], bool] = lambda: False,
    *,
    in_rounds: bool = False,
) -> Iterator[MicroBatch]:
    """This rank's batches, and stand-ins in which nothing counts while others still have some.

    Args:
        loader: Of the set.
        coordinator: The ranks' side channel: before each batch they agree that there is one, and that nobody stops.
        stopping: Whether this process was asked to stop.
        in_rounds: Whether the first batches of all ranks follow one another in the set, and so do their second.

    Raises:
        StopRequested: On all ranks, after the same batch.
    """
    rank, size = coordinator.rank, coordinator.world_size
    own = iter(loader.batches_in_rounds(rank, size) if in_rounds else loader.batches(rank, size))
    spare = None
    try:
        while True:
            batch = next(own, None)
            is_wanted, stops = _agreed(coordinator, batch is not None, stopping())
            if stops:
                raise StopRequested
            if not is_wanted:
                return
            if batch is not None:
                spare = replace(batch, samples=0)
            elif spare is None:
                spare = replace(loader.first_batch(), samples=0)
            yield batch or spare
    finally:
        if isinstance(own, Generator):
            own.close()


def _agreed(coordinator: Coordinator, has_one: bool, stops: bool) -> tuple[bool, bool]:
    wanted, stop = coordinator.max(torch.tensor([has_one, stops], dtype=torch.float64)).result().tolist()
    return bool(wanted), bool(stop)
