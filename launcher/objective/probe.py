"""Finds out what a loss is a mean over, by calling it on pieces of a batch and on their unions.

Nothing that training uses is touched: models and losses are copied, the random generators are put back. Every rank
makes the same calls with the same samples, so that a loss that speaks with other ranks is measured too.
"""

from __future__ import annotations

import copy
import itertools
import math
import random
import warnings
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch import nn

from launcher.data.seeds import randomness_restored
from launcher.device.kind import in_use
from launcher.internals import batch_norms, dropouts
from launcher.objective.batch import arguments
from launcher.objective.pieces import (
    Joined,
    NotJoinedError,
    Tree,
    are_classes,
    cast,
    classes_in,
    draws,
    injections,
    mapped,
    narrowed,
    tried_in,
)
from launcher.objective.reading import (
    TOLERANCE,
    Hints,
    Reading,
    Trial,
    Verdict,
    Where,
    candidates,
    decide,
    is_mask,
    tensors_in,
)
from launcher.text import words_of
from launcher.world.screen import unseen

LOOKED_AT = 64  # samples that those of a measurement are chosen from
_SIZES = ((9, (2, 3, 4)), (6, (1, 2, 3)), (3, (1, 1, 1)))  # of the pieces, by how many samples there are
_HOST = torch.device("cpu")
_LARGE = 10_000_000  # numbers in the outputs: above, less is tried
_LARGE_MODEL = 256 * 2**20  # bytes of parameters: above, it is not copied


@dataclass(frozen=True)
class Samples:
    """Where pieces come from.

    Attributes:
        number: How many samples there are.
        batch: The batch of some of them, by their numbers, collated by itself.
        collates: Whether a collate of the user's own makes it, which may pad, or drop samples.
    """

    number: int
    batch: Callable[[Sequence[int]], Any]
    collates: bool = False

    def groups(self, parts: Callable[[Any], Any], hints: Hints) -> list[list[list[int]]]:
        """Two disjoint groups of three pieces, of samples whose counts differ; fewer where there are few samples.

        Args:
            parts: What is counted in a batch.
            hints: Of the loss.
        """
        sizes = next((sizes for least, sizes in _SIZES if self.number >= least), None)
        if sizes is None:
            return []
        order = self._by_counts(parts, hints)
        wanted = sum(sizes)
        if len(order) < 2 * wanted:
            return [_cut(_spread(order, wanted), sizes)]
        return [_cut(_spread(order[first::2], wanted), sizes) for first in (0, 1)]

    def _by_counts(self, parts: Callable[[Any], Any], hints: Hints) -> list[int]:
        """The first samples, those of small counts first."""
        numbers = list(range(min(self.number, LOOKED_AT)))
        try:
            counts = [candidates(parts(self.batch([number])), 1, hints) for number in numbers]
        except Exception:  # a collate that cannot make a batch of one: as they come, then
            return numbers
        common = sorted(set.intersection(*(set(sample_counts) for sample_counts in counts)), key=repr)
        weights = np.random.default_rng(0).uniform(0.5, 1.5, len(common))
        table = np.array([[sample_counts[reading] for reading in common] for sample_counts in counts])
        table = (table - table.mean(0)) / (np.abs(table).max(0) + 1e-12)
        return [numbers[place] for place in np.argsort(table @ weights, kind="stable")]


def _spread(order: Sequence[int], wanted: int) -> list[int]:
    """So many of them, from the least to the most."""
    return [order[round(place)] for place in np.linspace(0, len(order) - 1, wanted)]


def _cut(numbers: Sequence[int], sizes: Sequence[int]) -> list[list[int]]:
    """Pieces of so many, each with one of the largest counts: a piece in which nothing counts has no mean."""
    rest, largest = numbers[: -len(sizes)], numbers[-len(sizes) :]
    ends = list(itertools.accumulate(size - 1 for size in sizes))
    return [[first, *rest[end - size + 1 : end]] for first, end, size in zip(largest, ends, sizes, strict=True)]


# ---------------------------------------------------------------------- what is measured


@dataclass(frozen=True)
class Subject:
    """A loss, as the run will call it.

    Attributes:
        parts: What may be counted in a batch: the targets, or the batch itself.
        outputs: The outputs for a batch, where the loss is a function of outputs and targets.
        function: That function, called with them by position or, where they are mappings, by name.
        value: Else the loss of a batch, with the model that it is given.
    """

    parts: Callable[[Any], Any]
    outputs: Callable[[nn.Module, Any], Any] | None = None
    function: Any = None
    value: Callable[[nn.Module, Any], Any] | None = None


def measure(subject: Subject, model: nn.Module, samples: Samples, hints: Hints) -> Verdict:
    """What a loss is a mean over; what it is called with is copied, and every generator is put back.

    Args:
        subject: The loss.
        model: Tried in eval mode.
        samples: Where batches come from.
        hints: Of the loss.
    """
    with _undisturbed(), _twin(model) as twin:
        groups = samples.groups(subject.parts, hints)
        if not groups:
            return Verdict(None, "failed", "there are too few samples to measure it on")
        joined = _joined(subject, twin, samples, groups) if subject.outputs is not None else None
        findings: Found | Verdict = Found([], [], TOLERANCE[torch.float64])
        caller = Caller(subject.function)
        if joined is not None:
            findings = caller.trials(joined, hints)
        if isinstance(findings, Found) and (joined is None or samples.collates):
            findings = _called(subject, twin, samples, groups, hints, findings)
        if isinstance(findings, Verdict):
            return findings
        verdict = decide(findings.trials, findings.injected, findings.tolerance, findings.tried)
        if verdict.reading is None or joined is None:
            return verdict
        floor = caller.floor(joined[0], verdict.reading, findings.tolerance)
        if floor is None:
            return Verdict(Reading("batch", why=f"not {verdict.reading.words} where a piece has nothing to count"))
        return replace(verdict, reading=replace(verdict.reading, floor=floor))


@dataclass
class Found:
    """Trials so far, how exact they are, and the tensors into which class numbers that do not count were put.

    Those are None where a whole batch is counted and nothing could be put into it.
    """

    trials: list[Trial]
    injected: list[Trial]
    tolerance: float
    tried: frozenset[Where] | None = frozenset()


# ---------------------------------------------------------------------- nothing is left behind


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Puts all generators back, and keeps warnings about pieces for those who run the whole."""
    generator = in_use().generator_restored()
    with warnings.catch_warnings(), randomness_restored(True), generator, torch.no_grad(), unseen():
        warnings.simplefilter("ignore")
        yield


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    in_use().seed(seed)


@contextmanager
def _twin(model: nn.Module) -> Iterator[nn.Module]:
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


def is_large(model: nn.Module) -> bool:
    """Whether a model is called itself, since a copy would take too much memory."""
    return sum(parameter.nbytes for parameter in model.parameters()) > _LARGE_MODEL


def _device_of(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), _HOST)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(words_of(error).split())[:120]}"


def number_of(value: Any) -> float | None:
    """A loss as a number: one tensor, or a mapping of them, added up; None where it is neither."""
    if isinstance(value, Mapping):
        numbers = [number_of(loss) for loss in value.values()]
        return None if not numbers or None in numbers else sum(number for number in numbers if number is not None)
    if isinstance(value, int | float):
        return float(value)
    return float(value.detach()) if isinstance(value, torch.Tensor) and value.numel() == 1 else None


def _joined(
    subject: Subject, twin: nn.Module, samples: Samples, groups: Sequence[Sequence[Sequence[int]]]
) -> list[Joined] | None:
    """Each group's outputs and targets, where they are their pieces side by side."""
    assert subject.outputs is not None
    device, joined = _device_of(twin), []
    for pieces in groups:
        made = []
        for numbers in (*pieces, list(itertools.chain(*pieces))):
            batch = send_to_device(samples.batch(numbers), device)
            _seed(0)
            made.append(mapped((subject.outputs(twin, batch), subject.parts(batch)), _in_host))
        try:
            joined.append(Joined(made[:3], made[3], [len(piece) for piece in pieces]))
        except (NotJoinedError, KeyError, IndexError, TypeError, AttributeError):
            return None
    return joined


def _in_host(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu()


# ---------------------------------------------------------------------- a function of outputs and targets


class Caller:
    """Calls a loss, each time a fresh copy in eval mode, each time with the same randomness.

    Args:
        function: The loss.
        dtype: Of what it is called with; None leaves it.
        device: Where it is called.
    """

    def __init__(self, function: Any, dtype: torch.dtype | None = torch.float64, device: torch.device = _HOST):
        self.dtype, self._device = dtype, device
        self.fault = ""
        self._own = function
        self._function = self._prepared()

    def _prepared(self) -> Any:
        function = copied(self._own)
        if isinstance(function, nn.Module) and function is not self._own:
            function = function.to(self._device).eval()
            if self.dtype is not None:
                function = function.to(self.dtype)
        return function

    def value(self, outputs: Tree, targets: Tree, seed: int = 0) -> float | None:
        """The loss, or None where it has none."""
        shared = list(self._function.parameters()) if isinstance(self._function, nn.Module) else []
        function = copied(self._function, shared)
        args, kwargs = arguments(outputs, targets)
        _seed(seed)
        try:
            return number_of(function(*args, **kwargs))
        except Exception as error:
            self.fault = _told(error)
            return None

    def trials(self, joined: Sequence[Joined], hints: Hints) -> Found | Verdict:
        """Trials of everything, on every group; a verdict where nothing can be tried."""
        is_large = sum(tensor.numel() for _, tensor in tensors_in(joined[0].outputs)) > _LARGE
        if is_large:
            self._take(None)
        first, second = self._twice(joined[0])
        if first is None and self.dtype is not None:  # it does not know double precision
            self._take(None)
            first, second = self._twice(joined[0])
        if first is None:
            return Verdict(None, "failed", self.fault or "it gave no number")
        if first != second and not (math.isnan(first) and second is not None and math.isnan(second)):
            return Verdict(None, "random", "its value on the same batch differs from call to call")
        trials: list[Trial] = []
        injected: list[Trial] = []
        for group, batch in enumerate(joined[: 1 if is_large else None]):
            for draw in itertools.islice(draws(batch), 3 if is_large else None):
                trials += self._trial(batch, draw, batch.targets, hints, group)
            if not is_large:
                for outputs, targets in injections(batch, hints):
                    injected += self._trial(batch, outputs, targets, hints, group)
        exact = TOLERANCE[torch.float64 if self.dtype is not None else torch.float32]
        return Found(trials, injected, exact, frozenset() if is_large else tried_in(joined[0], hints))

    def _take(self, dtype: torch.dtype | None) -> None:
        self.dtype = dtype
        self._function = self._prepared()

    def _twice(self, joined: Joined) -> tuple[float | None, float | None]:
        """The value of the whole with two seeds."""
        outputs, targets = cast((joined.outputs, joined.targets), self.dtype)
        return self.value(outputs, targets, 0), self.value(outputs, targets, 1)

    def floor(self, joined: Joined, reading: Reading, tolerance: float) -> float | None:
        """What the loss divides by at least where nothing counts; None where no such number gives its value."""
        first, empty = joined.numbers[0], {"kept": reading.ignored, "present": math.nan, "mask": 0, "positive": 0}
        tensor = dict(tensors_in(joined.targets)).get(reading.where)
        if reading.kind not in empty or tensor is None or not tensor.dim() or len(tensor) != sum(joined.numbers):
            return 0.0
        if reading.kind == "kept" and not are_classes(tensor, joined.outputs):
            return 0.0
        changed = tensor.clone()
        changed[:first] = empty[reading.kind]
        targets = mapped(joined.targets, lambda target: changed if target is tensor else target)
        unions = [joined.union(joined.outputs, targets, pieces)[:2] for pieces in (1, 2, 3)]
        values = [self.value(*cast(union, self.dtype)) for union in unions]
        numbers = [value for value in values if value is not None and math.isfinite(value)]
        if len(numbers) < 3:
            return 0.0
        nothing, some, both = numbers
        count = reading.count(unions[1][1], joined.numbers[1])
        scale = max(map(abs, numbers)) or 1.0
        fits = (floor for floor in (0.0, 1.0) if abs(both - some - floor * nothing / count) <= 10 * tolerance * scale)
        return next(fits, None) if count > 0 else 0.0

    def _trial(self, joined: Joined, outputs: Tree, targets: Tree, hints: Hints, group: int) -> list[Trial]:
        values, counts = {}, {}
        for union in range(1, 8):
            own, those, samples = joined.union(outputs, targets, union)
            value = self.value(cast(own, self.dtype), cast(those, self.dtype))
            if value is not None and math.isfinite(value):  # where nothing counts there is no mean
                values[union], counts[union] = value, candidates(those, samples, hints, classes_in(own))
        trial = Trial(values, counts, group)
        return [trial] if any(trial.splits()) else []


# ---------------------------------------------------------------------- the model called again


def _called(
    subject: Subject,
    twin: nn.Module,
    samples: Samples,
    groups: Sequence[Sequence[Sequence[int]]],
    hints: Hints,
    findings: Found,
) -> Found | Verdict:
    """Trials on batches collated again: with the model as it is, and with its weights shaken."""
    batches = [{union: samples.batch(_numbers(pieces, union)) for union in range(1, 8)} for pieces in groups]
    caller = _ModelCaller(subject, twin)
    first, second = (caller.value(batches[0][7], seed) for seed in (0, 1))
    if first is None:  # detectors give losses in train mode only
        caller.train()
        first, second = (caller.value(batches[0][7], seed) for seed in (0, 1))
    if first is None:
        return Verdict(None, "failed", caller.fault or "it gave no number")
    if first != second and not (math.isnan(first) and second is not None and math.isnan(second)):
        return Verdict(None, "random", "its value on the same batch differs from call to call")
    trials, injected = list(findings.trials), list(findings.injected)
    for amount in (0.0, 0.1, 0.3) if caller.is_double else (0.0,):  # the run's own weights are not shaken
        with caller.shaken(amount):
            for group, (pieces, by_union) in enumerate(zip(groups, batches, strict=True)):
                trials += _model_trial(caller, by_union, pieces, hints, group)
                if caller.may_change and (amount or not caller.is_double):
                    for change in _changes(subject, by_union, pieces, hints):
                        injected += _model_trial(caller, change, pieces, hints, group)
    tolerance = max(findings.tolerance, TOLERANCE[torch.float64 if caller.is_double else torch.float32])
    tried = findings.tried if caller.may_change or subject.outputs is not None else None
    return Found(trials, injected, tolerance, tried)


def _numbers(pieces: Sequence[Sequence[int]], union: int) -> list[int]:
    return [number for bit, piece in enumerate(pieces) if union >> bit & 1 for number in piece]


class _ModelCaller:
    """Calls model and loss together."""

    def __init__(self, subject: Subject, twin: nn.Module):
        self._subject, self._model, self.fault = subject, twin, ""
        self._device = _device_of(twin)
        self._is_live = is_large(twin)  # the run's own model, which stays as it is
        self._double = twin if self._is_live else copied(twin)
        self.is_double = self._double is not twin
        self._has_worked = False  # in double precision: what fails later fails for what it is given
        if self.is_double:
            self._double.cpu().double()
        self._caller = Caller(subject.function) if subject.outputs is not None else None

    @property
    def may_change(self) -> bool:
        """Whether it may be given numbers that nobody has seen: on a GPU, one out of range would end the process."""
        return self.is_double or self._device == _HOST

    def train(self) -> None:
        """Puts the copies in train mode, but for what is random or of the whole batch there."""
        random_or_whole = (*dropouts(), *batch_norms())
        for model in (self._model, self._double):
            if not self._is_live:
                model.train()
                for module in (module for module in model.modules() if isinstance(module, random_or_whole)):
                    module.eval()
        self.is_double = self._double is not self._model

    def value(self, batch: Any, seed: int = 0) -> float | None:
        """The loss of a batch, in double precision where the model knows it."""
        if self.is_double:
            value = self._try(self._double, cast(batch, torch.float64), seed)
            if value is not None or self._has_worked:
                self._has_worked = True
                return value
            self.is_double = False
        return self._try(self._model, send_to_device(batch, self._device), seed)

    def _try(self, model: nn.Module, batch: Any, seed: int) -> float | None:
        _seed(seed)
        subject, batch = self._subject, mapped(batch, torch.clone)
        try:
            return self._value(subject, model, batch)
        except Exception as error:
            self.fault = _told(error)
            return None

    def _value(self, subject: Subject, model: nn.Module, batch: Any) -> float | None:
        with torch.enable_grad():  # a step function may call autograd itself
            if self._caller is None or subject.outputs is None:
                return number_of(subject.value(model, batch)) if subject.value is not None else None
            outputs, targets = mapped((subject.outputs(model, batch), subject.parts(batch)), _in_host)
            return self._caller.value(*cast((outputs, targets), self._caller.dtype))

    @contextmanager
    def shaken(self, amount: float) -> Iterator[None]:
        """With other weights for a while: a head of zeros tells nothing."""
        if not amount or not self.is_double:
            yield
            return
        generator = torch.Generator().manual_seed(3)
        kept = [(weight, weight.detach().clone()) for weight in self._double.parameters() if weight.is_floating_point()]
        for parameter, before in kept:
            noise = torch.randn(before.shape, generator=generator, dtype=before.dtype).to(before.device)
            parameter.add_(noise * amount * (before.abs().mean() + 0.1))
        try:
            yield
        finally:
            for parameter, before in kept:
                parameter.copy_(before)


def _model_trial(
    caller: _ModelCaller, batches: Mapping[int, Any], pieces: Sequence[Sequence[int]], hints: Hints, group: int
) -> list[Trial]:
    values, counts = {}, {}
    for union, batch in batches.items():
        value = caller.value(batch)
        if value is None or not math.isfinite(value):
            return []
        parts = caller._subject.parts(batch)
        values[union], counts[union] = value, candidates(parts, len(_numbers(pieces, union)), hints)
    return [Trial(values, counts, group)]


def _changes(
    subject: Subject, batches: Mapping[int, Any], pieces: Sequence[Sequence[int]], hints: Hints
) -> Iterator[dict[int, Any]]:
    """The same batches with places of labels or masks that do not count, alike in every union."""
    firsts = {piece[0] for piece in pieces}
    for where, tensor in itertools.islice(tensors_in(subject.parts(batches[7])), 8):
        if not tensor.dim():
            continue
        if is_mask(tensor) and (tensor.dim() > 1 or tensor.dtype == torch.bool):
            value = 0
        elif not tensor.is_floating_point() and tensor.dtype != torch.bool:
            value = -100
        else:
            continue
        yield {
            union: _with_holes(subject, batch, where, _numbers(pieces, union), value, firsts)
            for union, batch in batches.items()
        }


def _with_holes(
    subject: Subject, batch: Any, where: Where, numbers: Sequence[int], value: int, kept: Container[int]
) -> Any:
    """A batch in which some places of one tensor hold a value, the same places of a sample in every batch."""
    tensor = dict(tensors_in(subject.parts(batch))).get(where)
    if tensor is None or not tensor.dim() or len(tensor) != len(numbers):  # a list is as long as there are samples
        return batch
    holes = torch.zeros(tensor.shape, dtype=torch.bool)
    for row, number in enumerate(numbers):
        generator = torch.Generator().manual_seed(number)
        flat = torch.rand(4096, generator=generator)[: holes[row].numel()] < 0.5
        flat[: 2 if tensor.dim() > 1 else number in kept] = False  # something counts in every piece
        holes[row].view(-1)[: len(flat)] = flat
    changed = torch.where(holes.to(tensor.device), torch.full_like(tensor, value), tensor)
    return mapped(batch, lambda part: changed if part is tensor else part)


# ---------------------------------------------------------------------- the audit


def still_holds(function: Any, reading: Reading, outputs: Tree, targets: Tree, samples: int) -> float | None:
    """Whether a real batch is put together from its halves by the reading; how far off it is where it is not.

    Args:
        function: The loss.
        reading: What it is taken for.
        outputs: The model's, for the batch.
        targets: The batch's.
        samples: How many there are.
    """
    rows = _rows_of((outputs, targets), reading, samples)
    try:
        whole = narrowed((outputs, targets), rows, 0, rows)
    except NotJoinedError:
        return None
    if rows < 2:
        return None
    numbers = sum(tensor.numel() for _, tensor in tensors_in(whole))
    is_large = numbers > _LARGE
    kept = max(2, rows * _LARGE // numbers) if is_large else rows
    with _undisturbed():
        ends = ((0, kept), (0, kept // 2), (kept // 2, kept))
        parts = [narrowed(mapped(whole, torch.detach), rows, *limits) for limits in ends]
        parts = parts if is_large else [mapped(part, _in_host) for part in parts]
        caller = Caller(function, None if is_large else torch.float64, _device_in(parts[0]))
        values = [caller.value(*cast(part, caller.dtype)) for part in parts]
        counts = [
            reading.count(part[1], stop - start) if reading.is_mean else 1.0
            for part, (start, stop) in zip(parts, ends, strict=True)
        ]
        return off_by(values, counts, reading.is_mean, TOLERANCE[caller.dtype or torch.float32])


def _rows_of(tree: Tree, reading: Reading, samples: int) -> int:
    """By what a batch is cut in two: its samples, or its rows where these are others, as of graphs."""
    tensors = [tensor for _, tensor in tensors_in(tree) if tensor.dim()]
    firsts = {tensor.shape[0] for tensor in tensors}
    is_of_rows = len(firsts) == 1 and not any(samples in tensor.shape[:2] for tensor in tensors)
    return firsts.pop() if is_of_rows and not reading.by_samples else samples


def _device_in(tree: Tree) -> torch.device:
    return next((tensor.device for _, tensor in tensors_in(tree)), _HOST)


def off_by(values: Sequence[float | None], counts: Sequence[float], is_mean: bool, tolerance: float) -> float | None:
    """How far two halves are from their whole; None where that is rounding, or cannot be determined.

    Args:
        values: Of the whole and of its halves.
        counts: Likewise.
        is_mean: Whether the halves are put together by their counts; else they are added.
        tolerance: Of the largest value; what is above 20 times that is not rounding.
    """
    numbers = [value for value in values if value is not None and math.isfinite(value)]
    if len(numbers) < len(values) or not all(counts):
        return None
    whole, *halves = numbers
    if is_mean:
        together = sum(count * half for count, half in zip(counts[1:], halves, strict=True)) / sum(counts[1:])
    else:
        together = sum(halves)
    off = abs(whole - together) / (max(map(abs, numbers)) or 1.0)
    return off if off > 20 * tolerance else None
