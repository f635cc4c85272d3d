"""Calls a loss of outputs and targets, and leaves nothing behind.

Nothing that training uses is touched: models and losses are copied, the random generators are put back.
"""

from __future__ import annotations

import copy
import functools
import itertools
import math
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from launcher.data.parts import changed
from launcher.data.seeds import randomness_restored
from launcher.device.kind import in_use
from launcher.errors import LauncherError
from launcher.internals import batch_norms, dropouts
from launcher.model.own_gradients import OwnGradients, wants_gradients
from launcher.objective.batch import arguments
from launcher.objective.drawn import Draws, held
from launcher.objective.pieces import (
    Joined,
    Put,
    Tree,
    are_classes,
    cast,
    classes_among,
    classes_in,
    draws,
    injections,
    tried_in,
)
from launcher.objective.reading import TOLERANCE, Hints, Reading, candidates, tensors_in
from launcher.objective.subject import Found
from launcher.objective.verdict import Trial, Verdict
from launcher.text import words_of
from launcher.world.screen import unseen

HOST = torch.device("cpu")
RANDOM = "its value on the same batch differs from call to call"
LARGE = 10_000_000  # numbers in the outputs: above, less is tried
_DESCENT = 12  # steps
_LARGE_MODEL = 256 * 2**20  # bytes of parameters: above, it is not copied


@contextmanager
def undisturbed() -> Iterator[None]:
    """Puts all generators back, and keeps warnings about pieces for those who run the whole."""
    generator = in_use().generator_restored()
    with warnings.catch_warnings(), randomness_restored(True), generator, torch.no_grad(), unseen():
        warnings.simplefilter("ignore")
        yield


def seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    in_use().seed(seed)


@contextmanager
def twin_of(model: nn.Module) -> Iterator[nn.Module]:
    """A copy in eval mode; of a large model, or one that cannot be copied, itself, with its modes and buffers kept."""
    twin = model if is_large(model) else copied(model)
    if twin is not model:
        twin.eval()
        yield twin
        return
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    for module, _ in modes:
        module.training = False
    try:
        yield model
    finally:
        for module, training in modes:
            module.training = training
        for buffer, before in buffers:
            buffer.copy_(before)


def copied(thing: Any, shared: Sequence[torch.Tensor] = ()) -> Any:
    """A copy that may be called at will, but for the tensors that it shares; itself where it cannot be copied."""
    try:
        return copy.deepcopy(thing, {id(tensor): tensor for tensor in shared})
    except Exception:
        return thing


def calm(module: nn.Module) -> nn.Module:
    """The module without what is random, or of the whole batch, in train mode."""
    for part in module.modules():
        if isinstance(part, (*dropouts(), *batch_norms())):
            part.eval()
    return module


def is_large(model: nn.Module) -> bool:
    """Whether a model is called itself, since a copy would take too much memory."""
    return sum(parameter.nbytes for parameter in model.parameters()) > _LARGE_MODEL


def device_of(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), HOST)


def told(error: Exception) -> str:
    if isinstance(error, LauncherError):
        return " ".join(words_of(error).split())[:240]
    return f"{type(error).__name__}: {' '.join(words_of(error).split())[:120]}"


def number_of(value: Any) -> float | None:
    """A loss as a number: one tensor, or a mapping of them, added up; None where it is neither."""
    if isinstance(value, Mapping):
        numbers = [number_of(loss) for loss in value.values()]
        return None if not numbers or None in numbers else sum(number for number in numbers if number is not None)
    if isinstance(value, int | float):
        return float(value)
    return float(value.detach()) if isinstance(value, torch.Tensor) and value.numel() == 1 else None


def alike(first: float, second: float | None) -> bool:
    """Whether two values of a loss are the same, NaN like NaN."""
    return first == second or (math.isnan(first) and second is not None and math.isnan(second))


def in_host(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu()


class Caller:
    """Calls a loss, each time a fresh copy without dropout, each time with the same randomness.

    It is in the mode that it is in where it is called: training's in a measurement, an evaluation's in its audit.

    Args:
        function: The loss.
        dtype: Of what it is called with; None leaves it.
        device: Where it is called.
    """

    def __init__(self, function: Any, dtype: torch.dtype | None = torch.float64, device: torch.device = HOST):
        self.dtype, self._device = dtype, device
        self._classes: list[float] = []
        self._counts: dict[
            tuple[int, int] | None, dict[Reading, float]
        ] = {}  # by group and union, of targets as they are
        self._draws: list[Draws] = []  # of each group, where it draws
        self.fault = ""
        self.wants_graph = False  # of its outputs: it takes gradients through them
        self._own, self._gradients = function, OwnGradients()
        self._function = self._prepared()

    def _prepared(self) -> Any:
        function = copied(self._own)
        if isinstance(function, nn.Module) and function is not self._own:
            function = calm(function.to(self._device))
            if self.dtype is not None:
                function = function.to(self.dtype)
        return function

    def value(self, outputs: Tree, targets: Tree, seed: int = 0) -> float | None:
        """The loss, or None where it has none."""
        shared = list(self._function.parameters()) if isinstance(self._function, nn.Module) else []
        function = copied(self._function, shared)
        args, kwargs = arguments(*changed((outputs, targets), torch.clone))  # which it may change in place
        seed_all(seed)
        module = function if isinstance(function, nn.Module) else None
        try:
            return self._gradients.call(module, lambda: number_of(function(*args, **kwargs)))
        except Exception as error:
            self.fault, self.wants_graph = told(error), wants_gradients(error)
            return None

    def trials(self, joined: Sequence[Joined], hints: Hints) -> Found | Verdict:
        """Trials of everything, on every group; a verdict where nothing can be tried."""
        is_large = sum(tensor.numel() for _, tensor in tensors_in(joined[0].outputs)) > LARGE
        if is_large:
            self._take(None)
        first, second = self._twice(joined[0])
        if first is None and self.dtype is not None:  # it does not know double precision
            self._take(None)
            first, second = self._twice(joined[0])
        if first is None:
            return Verdict(None, "failed", self.fault or "it gave no number")
        if not alike(first, second) and not self._holds(joined):
            return Verdict(None, "random", RANDOM)
        trials: list[Trial] = []
        injected: list[Trial] = []
        self._classes = classes_among([batch.targets for batch in joined])
        self._counts = {}
        for group, batch in enumerate(joined[: 1 if is_large else None]):
            for draw in itertools.islice(draws(batch), 3 if is_large else None):
                trials += self._trial(batch, draw, batch.targets, hints, group)
            if not is_large:
                for outputs in self._trained(batch) if group == 0 else ():
                    trials += self._trial(batch, outputs, batch.targets, hints, group)
                for outputs, targets, put in injections(batch, hints, marks=group == 0):
                    injected += self._trial(batch, outputs, targets, hints, group, put)
        exact = TOLERANCE[torch.float64 if self.dtype is not None else torch.float32]
        tried = frozenset() if is_large else tried_in(joined[0], hints)
        return Found(trials, injected, exact, tried, draws=self.draws)

    def _trained(self, joined: Joined) -> Iterator[Tree]:
        """The outputs on their way down the loss, as training moves them: where it is small it may be another mean."""
        outputs, leaves = _with_leaves(joined, self.dtype)
        first = None
        for number in range(_DESCENT):
            with self._drawing(0, 7):
                value, slopes = self._slopes(outputs, cast(joined.targets, self.dtype), leaves)
            first = value if first is None else first
            steep = sum(float(slope.square().sum()) for slope in slopes)
            if not (math.isfinite(steep) and steep) or abs(value) < 1e-3 * abs(first):
                return
            for leaf, slope in zip(leaves, slopes, strict=True):
                leaf.sub_(slope, alpha=0.5 * abs(value) / steep)  # half of Polyak's step
            if number % 3 == 2:
                yield outputs

    def _slopes(self, outputs: Tree, targets: Tree, leaves: Sequence[torch.Tensor]) -> tuple[float, list[torch.Tensor]]:
        """The loss and its gradients; none where it has none."""
        function = copied(self._function)
        seed_all(0)
        try:
            with torch.enable_grad():
                followed = [leaf.detach().requires_grad_() for leaf in leaves]
                by_leaf = {id(leaf): one.clone() for leaf, one in zip(leaves, followed, strict=True)}
                args, kwargs = arguments(
                    changed(outputs, lambda leaf: by_leaf.get(id(leaf), leaf)), changed(targets, torch.clone)
                )
                value = function(*args, **kwargs)
                slopes = torch.autograd.grad(value.sum(), followed, allow_unused=True)
            return float(value), [
                torch.zeros_like(leaf) if slope is None else slope for leaf, slope in zip(leaves, slopes, strict=True)
            ]
        except Exception:  # no gradient reaches the outputs, or it gives something else than a tensor
            return 0.0, []

    def _take(self, dtype: torch.dtype | None) -> None:
        self.dtype = dtype
        self._function = self._prepared()

    def _twice(self, joined: Joined) -> tuple[float | None, float | None]:
        """The value of the whole with two seeds."""
        outputs, targets = cast((joined.outputs, joined.targets), self.dtype)
        return self.value(outputs, targets, 0), self.value(outputs, targets, 1)

    @property
    def draws(self) -> bool:
        """Whether it draws, and was called with the same numbers for a piece in every union."""
        return bool(self._draws)

    def _holds(self, joined: Sequence[Joined]) -> bool:
        """Whether what it draws can be held, in every group."""

        def value(batch: Joined, union: int, seed: int = 0) -> float | None:
            outputs, targets = cast(batch.union(batch.outputs, batch.targets, union)[:2], self.dtype)
            return self.value(outputs, targets, seed)

        self._draws = held([functools.partial(value, batch) for batch in joined], range(1, 8))
        return self.draws

    def _drawing(self, group: int, union: int) -> AbstractContextManager[None]:
        return self._draws[group].of(union) if self._draws else nullcontext()

    def with_floor(self, joined: Joined, reading: Reading, tolerance: float) -> Reading | None:
        """The reading with what the loss divides by at least where nothing counts; None where no number gives it.

        Where it has no value then, it may still have a part in that of others.
        """
        first = joined.numbers[0]
        empty = {"present": math.nan, "told": math.nan, "mask": 0, "outside": 1, "positive": 0}
        empty |= dict.fromkeys(("kept", "filled", "planes", "unlike"), reading.ignored)
        tensor = dict(tensors_in(joined.targets)).get(reading.where)
        if reading.kind not in empty or tensor is None or not tensor.dim() or len(tensor) != sum(joined.numbers):
            return reading
        if reading.kind == "kept" and not are_classes(tensor, joined.outputs):
            return reading
        emptied = tensor.clone()
        emptied[:first] = empty[reading.kind]
        targets = changed(joined.targets, lambda target: emptied if target is tensor else target)
        unions = [joined.union(joined.outputs, targets, pieces)[:2] for pieces in (1, 2, 3)]
        values = []
        for pieces, union in enumerate(unions, start=1):
            with self._drawing(0, pieces):
                values.append(self.value(*cast(union, self.dtype)))
        nothing, some, both = (math.nan if value is None else value for value in values)
        count = reading.count(unions[1][1], joined.numbers[1])
        if not (math.isfinite(some) and math.isfinite(both)) or count <= 0 or reading.beside:
            return reading
        near = 10 * tolerance * (max(abs(number) for number in (nothing, some, both) if math.isfinite(number)) or 1.0)
        if not math.isfinite(nothing):
            return replace(reading, needs=abs(both - some) > near)
        fits = (floor for floor in (0.0, 1.0) if abs(both - some - floor * nothing / count) <= near)
        floor = next(fits, None)
        return None if floor is None else replace(reading, floor=floor)

    def _trial(
        self, joined: Joined, outputs: Tree, targets: Tree, hints: Hints, group: int, put: Put | None = None
    ) -> list[Trial]:
        values, counts = {}, {}
        for union in range(1, 8):
            own, those, samples = joined.union(outputs, targets, union)
            with self._drawing(group, union):
                value = self.value(cast(own, self.dtype), cast(those, self.dtype))
            if value is not None and math.isfinite(value):  # where nothing counts there is no mean
                place = (group, union) if targets is joined.targets else None
                if place is None or place not in self._counts:
                    classes = (*self._classes, *classes_in(own))
                    self._counts[place] = candidates(those, samples, hints, classes)
                values[union], counts[union] = value, self._counts[place]
        trial = Trial(values, counts, group, put)
        return [trial] if any(trial.splits()) else []


def _with_leaves(joined: Joined, dtype: torch.dtype | None) -> tuple[Tree, list[torch.Tensor]]:
    """The outputs with a copy of each of their tensors, and those copies."""
    leaves: list[torch.Tensor] = []

    def leaf(tensor: torch.Tensor, _: int) -> torch.Tensor:
        leaves.append(tensor.detach().to(dtype or tensor.dtype, copy=True))
        return leaves[-1]

    return joined.over_outputs(leaf), leaves
