"""Numbers in the data that are not finite: which sample they are of, where a step or a rehearsal has failed."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

import torch

from launcher.data.loaders import MicroBatch
from launcher.data.subsets import numbered_in_whole
from launcher.objective.reading import tensors_in
from launcher.training.nonfinite import NonFiniteError
from launcher.training.state import TrainState
from launcher.training.steps import StepBatch
from launcher.world import context

_WAITED = "Expected to have finished reduction in the prior iteration"  # DDP's words
_WORDS = {"nan": "NaN", "inf": "infinity", "-inf": "-infinity"}


def about_data(error: NonFiniteError, state: TrainState, step: StepBatch, done: int) -> NonFiniteError:
    """The error of a step; where its data are the cause, one that says so."""
    for number, batch in enumerate(step.batches):
        if fault := _of_batch(batch):
            row, what = fault
            sample = "a sample"
            with suppress(Exception):  # a stream's have no numbers, and a collate may make rows of its own
                index = int(state.data.train.sampler.shares(done)[number].indices[row])
                sample = f"sample {numbered_in_whole(state.data.train.dataset, index)[1]:,}"
            return NonFiniteError(f"step {done}: data.train: {sample} has {what}; correct it, or leave it out")
    return error


def without_gradient(error: Exception) -> str | None:
    """What a step says for whose gradients DDP waits since the step before; None of other errors."""
    if not isinstance(error, RuntimeError) or _WAITED not in str(error):
        return None
    places = re.search(r"did not receive grad for rank \d+: ([\d ]+)", str(error))
    known = context.run.parameters
    names = [known[int(place)] for place in places[1].split() if int(place) < len(known)] if places else []
    shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "") if names else "some parameters"
    return (
        f"got no gradient of {shown}, for which the other processes wait; use them in every step, freeze them, or set "
        "device.ddp.find_unused_parameters: true"
    )


def not_finite_in(data: Any) -> str:
    """What of a batch is not finite, to be said behind a message; empty where all is."""
    fault = _of_batch(MicroBatch(data, 0))
    return f"; the batch has {fault[1]}" if fault else ""


def _of_batch(batch: MicroBatch) -> tuple[int, str] | None:
    """The row of the first number that is not finite, and the number with the part of the batch that it is in."""
    for where, tensor in tensors_in(batch.data):
        if not (tensor.is_floating_point() and tensor.layout is torch.strided and tensor.dim()):
            continue
        bad = (~torch.isfinite(tensor)).nonzero()
        if len(bad):
            value = str(float(tensor[tuple(bad[0].tolist())]))
            place = ".".join(map(str, where))
            return int(bad[0][0]), f"{_WORDS.get(value, value)}{f' in part {place}' if place else ''}"
    return None
