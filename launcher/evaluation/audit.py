"""Whether a loss still is what it was found to be, tried on a real batch where model and loss are one.

Losses of outputs and targets are tried on what the model gave (`Objective.audit`). Here the model, or the recipe's step
function, is called again: on a batch, and on its halves. Nothing of that is left behind.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from launcher.data.parts import changed
from launcher.errors import LauncherError
from launcher.evaluation.modes import own_randomness
from launcher.evaluation.unmoved import Unmoved
from launcher.internals import batch_norms, dropouts
from launcher.model.kinds import is_sharded
from launcher.objective.drawn import HALVES, of_halves
from launcher.objective.halves import off_by, rows_of
from launcher.objective.loss import Objective
from launcher.objective.pieces import NotJoinedError, narrowed_parts
from launcher.objective.reading import TOLERANCE
from launcher.objective.run_length import At
from launcher.text import shapes
from launcher.world.cleanup import afterwards
from launcher.world.failure import is_of_device
from launcher.world.screen import unseen

_COARSE = 2e-3  # of half precision, before what is not rounding is told (20 times that)


def audit_own(model: nn.Module, objective: Objective, batch: Any, samples: int, at: At) -> None:
    """Tries on a real batch whether the loss that a model or a step function brings still is what it was found to be.

    Those that take turns are each tried, with the weights that all of them find.

    Args:
        model: The bare module.
        objective: Has what the loss was found to be.
        batch: On the model's device.
        samples: How many there are.
        at: Where training stands.

    Raises:
        LauncherError: It is not.
    """
    if is_sharded(model):  # to call it once more takes all ranks, whose batches differ
        return
    for key in objective.readings:
        _audit(key, model, objective.part(key)[0], batch, samples, at)


def _audit(key: str, model: nn.Module, objective: Objective, batch: Any, samples: int, at: At) -> None:
    reading = objective.own
    if reading is None or samples < 2 or reading.kind == "batch" or reading.found in ("stated", "trusted"):
        return
    rows = rows_of(batch, reading, samples)  # a collate may have left some out
    half = rows // 2
    try:
        parts = [narrowed_parts(batch, rows, *ends) for ends in ((0, rows), (0, half), (half, rows))]
    except NotJoinedError:
        return
    counts = [1.0] * 3
    if reading.is_mean:
        sizes = (rows, half, rows - half)
        counts = [reading.weight(reading.count(part, size)) for part, size in zip(parts, sizes, strict=True)]
    try:
        values = _values(model, objective, parts, at)
    except Exception as error:  # called otherwise than in a step
        if is_of_device(error):  # which says the same from now on, wherever it is asked
            raise
        return
    off = off_by(values, counts, reading.is_mean, _tolerance(model)) if values else None
    if off is not None:
        raise LauncherError(
            f"{key}: is not {reading.words} on this batch ({shapes(batch)}): its halves put "
            f"together are {off:.1g} off; fix the loss, or name what it counts as train.count"
        )


def _values(model: nn.Module, objective: Objective, parts: list[Any], at: At) -> list[float | None]:
    """The loss of the whole and of its halves; none where it draws what cannot be held."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))

    def value(part: Any, seed: int = 0) -> float:
        part = changed(part, torch.clone)  # which it may change in place
        unmoved = Unmoved.of_run(model, objective)
        with (
            own_randomness(seed, 0, device),
            unseen(),
            torch.enable_grad(),  # a loss may call autograd itself
            afterwards(unmoved.put_back),
        ):
            if objective.step is not None:
                return float(objective.stepped(model, part, at)["loss"].detach())
            args, kwargs = objective.layout.inputs(part)
            return float(objective.layout.loss(model(*args, **kwargs)).detach())

    with _calm(model):
        whole = value(parts[0])
        if whole != value(parts[0], seed=1):
            return of_halves(lambda union, seed=0: value(parts[HALVES.index(union)], seed))
        return [whole, *map(value, parts[1:])]


@contextmanager
def _calm(model: nn.Module) -> Iterator[None]:
    """Without dropout, and with BatchNorm's running means: in the mode that the model is in otherwise.

    Gradients that a step function may make are not kept.
    """
    without = [parameter for parameter in model.parameters() if parameter.grad is None]
    modules = [module for module in model.modules() if isinstance(module, (*dropouts(), *batch_norms()))]
    modes = [module.training for module in modules]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module, training in zip(modules, modes, strict=True):
            module.training = training
        for parameter in without:
            parameter.grad = None


def _tolerance(model: nn.Module) -> float:
    dtype = next((parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()), torch.float32)
    return TOLERANCE.get(dtype, _COARSE)
