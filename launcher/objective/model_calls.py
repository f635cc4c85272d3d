"""Calls model and loss together, on batches that are collated again."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from launcher.data.parts import changed
from launcher.data.transfer import moved
from launcher.internals import has_storage
from launcher.objective.batch import arguments
from launcher.objective.calls import (
    HOST,
    RANDOM,
    Caller,
    alike,
    calm,
    copied,
    device_of,
    in_host,
    is_large,
    number_of,
    seed_all,
    told,
)
from launcher.objective.drawn import Draws, held
from launcher.objective.pieces import Put, cast, classes_among, put_into
from launcher.objective.reading import TOLERANCE, Hints, Reading, Where, candidates, is_mask, tensors_in
from launcher.objective.subject import Found, Samples, Subject
from launcher.objective.verdict import Trial, Verdict


def model_trials(
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
    if (fault := caller.settle(batches)) is not None:
        return fault
    classes = classes_among([subject.parts(by_union[7]) for by_union in batches])
    trials, shaken, injected = list(findings.trials), list[Trial](), list(findings.injected)
    counted: list[dict[int, dict[Reading, float]]] = [{} for _ in groups]  # of the batches as they are, whatever shakes
    for amount in caller.amounts:
        with caller.shaken(amount):
            for group, (pieces, by_union) in enumerate(zip(groups, batches, strict=True)):
                plain = _model_trial(caller, by_union, pieces, hints, group, classes, counted=counted[group])
                (shaken if amount else trials).extend(plain)
                if caller.may_change and (amount or not caller.is_double):
                    for change, put in _changes(subject, by_union, pieces, rows=amount < 0.2):
                        injected += _model_trial(caller, change, pieces, hints, group, classes, put, counted={})
    if caller.is_double or all(trial.is_flat for trial in trials):
        trials += shaken
    else:
        injected += shaken  # in single precision they choose among what fits, and refute nothing
    tolerance = max(findings.tolerance, TOLERANCE[torch.float64 if caller.is_double else torch.float32])
    tried = findings.tried if caller.may_change or subject.outputs is not None else None
    return Found(trials, injected, tolerance, tried, draws=findings.draws or caller.draws)


def as_one(subject: Subject) -> Subject:
    """Model and loss in one call: a loss that takes gradients through its outputs needs what made them."""
    outputs_of, targets_of = subject.outputs, subject.targets or subject.parts
    assert outputs_of is not None

    def value(model: nn.Module, batch: Any) -> Any:
        args, kwargs = arguments(outputs_of(model, batch), targets_of(batch))
        return copied(subject.function)(*args, **kwargs)

    return Subject(parts=subject.parts, value=value)


def _numbers(pieces: Sequence[Sequence[int]], union: int) -> list[int]:
    return [number for bit, piece in enumerate(pieces) if union >> bit & 1 for number in piece]


class _ModelCaller:
    """Calls model and loss together.

    Attributes:
        is_double: Whether it calls a copy in double precision.
    """

    def __init__(self, subject: Subject, twin: nn.Module):
        self._subject, self._model, self.fault = subject, twin, ""
        self._device = device_of(twin)
        self._is_live = is_large(twin)  # the run's own model, which stays as it is
        self._double = twin if self._is_live else copied(twin)
        self.is_double = self._double is not twin
        self._has_worked = False  # in double precision: what fails later fails for what it is given
        self._trains = False
        if self.is_double:
            self._double.cpu().double()
        self._caller = Caller(subject.function) if subject.outputs is not None else None
        self._draws: list[Draws] = []  # of each group, where it draws

    @property
    def may_change(self) -> bool:
        """Whether it may be given numbers that nobody has seen: on a GPU, one out of range would end the process."""
        return self.is_double or self._device == HOST

    @property
    def amounts(self) -> Sequence[float]:
        """How far its weights are shaken: only a copy's; in single precision by more than rounding hides."""
        has_copy = self._double is not self._model
        return (0.0, 0.1, 0.3) if self.is_double else (0.0, 0.3, 3.0) if has_copy else (0.0,)

    @property
    def draws(self) -> bool:
        """Whether it draws, and is called with the same numbers for a piece in every union."""
        return bool(self._draws)

    def settle(self, batches: Sequence[Mapping[int, Any]]) -> Verdict | None:
        """Chooses the mode to measure in: training's, unless what it draws there cannot be held; says why none will do.

        A model that only gives outputs is in eval mode: how they are made does not matter to what a loss is.
        """
        fault = None
        for mode in ("train", "eval") if self._caller is None and not self._is_live else ("eval",):
            self._switch(mode)
            first, second = (self.value(batches[0][7], seed) for seed in (0, 1))
            if first is None:
                fault = fault or Verdict(None, "failed", self.fault or "it gave no number")
            elif alike(first, second) or self._holds(batches):
                return None
            else:
                fault = Verdict(None, "random", RANDOM)
        return fault

    def _holds(self, batches: Sequence[Mapping[int, Any]]) -> bool:
        """Whether what it draws can be held, in every group."""

        def value(by_union: Mapping[int, Any], union: int, seed: int = 0) -> float | None:
            return self.value(by_union[union], seed)

        self._draws = held([functools.partial(value, by_union) for by_union in batches], range(1, 8))
        return self.draws

    def drawing(self, group: int, union: int) -> AbstractContextManager[None]:
        """Has it draw what a union of a group's pieces draws."""
        return self._draws[group].of(union) if self._draws else nullcontext()

    def _switch(self, mode: str) -> None:
        if not self._is_live:
            self._trains = mode == "train"
            for model in (self._model, self._double):
                calm(getattr(model, mode)())
            self.is_double = self._double is not self._model
            self._has_worked = False

    def value(self, batch: Any, seed: int = 0) -> float | None:
        """The loss of a batch, in double precision where the model knows it."""
        if self.is_double:
            value = self._try(self._double, cast(batch, torch.float64), seed)
            if value is not None or self._has_worked:
                self._has_worked = True
                return value
            self.is_double = False
        return self._try(self._model, moved(batch, self._device), seed)

    def _try(self, model: nn.Module, batch: Any, seed: int) -> float | None:
        seed_all(seed)
        subject, batch = self._subject, changed(batch, torch.clone)
        kept = [_Held(module) for module in model.modules()] if self._trains else []
        try:
            return self._value(subject, model, batch, seed)
        except Exception as error:
            self.fault = told(error)
            return None
        finally:
            for part in kept:
                part.put_back()

    def _value(self, subject: Subject, model: nn.Module, batch: Any, seed: int) -> float | None:
        with torch.enable_grad():  # a step function may call autograd itself
            if self._caller is None or subject.outputs is None:
                return number_of(subject.value(model, batch)) if subject.value is not None else None
            targets_of = subject.targets or subject.parts
            parts = changed((subject.outputs(model, batch), targets_of(batch)), in_host)
            outputs, targets = cast(parts, self._caller.dtype)
            return self._caller.value(outputs, targets, seed)

    @contextmanager
    def shaken(self, amount: float) -> Iterator[None]:
        """With other weights for a while: a head of zeros tells nothing."""
        if not amount:
            yield
            return
        generator, model = torch.Generator().manual_seed(3), self._double if self.is_double else self._model
        kept = [(weight, weight.detach().clone()) for weight in model.parameters() if weight.is_floating_point()]
        for parameter, before in kept:
            noise = torch.randn(before.shape, generator=generator, dtype=before.dtype).to(before.device)
            parameter.add_(noise * amount * (before.abs().mean() + 0.1))
        try:
            yield
        finally:
            for parameter, before in kept:
                parameter.copy_(before)


class _Held:
    """A module's own parameters and buffers: in train mode a forward may move them, as a teacher's or a queue."""

    def __init__(self, module: nn.Module):
        self._module = module
        own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        self._kept = [(name, tensor, tensor.detach().clone()) for name, tensor in own if has_storage(tensor)]

    @torch.no_grad()
    def put_back(self) -> None:
        for name, tensor, before in self._kept:
            if getattr(self._module, name, None) is not tensor:
                setattr(self._module, name, tensor)
            if tensor.shape != before.shape:
                tensor.data = before
            elif not torch.equal(tensor, before):
                tensor.copy_(before)


def _model_trial(
    caller: _ModelCaller,
    batches: Mapping[int, Any],
    pieces: Sequence[Sequence[int]],
    hints: Hints,
    group: int,
    classes: Sequence[float],
    put: Put | None = None,
    *,
    counted: dict[int, dict[Reading, float]],
) -> list[Trial]:
    values, counts = {}, {}
    for union, batch in batches.items():
        with caller.drawing(group, union):
            value = caller.value(batch)
        if value is None or not math.isfinite(value):
            return []
        if union not in counted:
            parts = caller._subject.parts(batch)
            counted[union] = candidates(parts, len(_numbers(pieces, union)), hints, classes)
        values[union], counts[union] = value, counted[union]
    return [Trial(values, counts, group, put)]


def _changes(
    subject: Subject, batches: Mapping[int, Any], pieces: Sequence[Sequence[int]], *, rows: bool
) -> Iterator[tuple[dict[int, Any], Put | None]]:
    """The same batches with places of labels or masks that do not count, alike in every union; and what is new.

    Args:
        subject: Says what is counted.
        batches: By union.
        pieces: The numbers of their samples.
        rows: Whether to try samples of which nothing counts, too.
    """
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
        put = put_into(where, tensor, value)
        for by_rows in (False, True) if rows and tensor.dim() > 1 and tensor.shape[1:].numel() > 1 else (False,):
            with_put = {
                union: _with_holes(subject, batch, where, _numbers(pieces, union), value, firsts, by_rows=by_rows)
                for union, batch in batches.items()
            }
            if all(with_put[union] is not batch for union, batch in batches.items()):  # no item of one sample's
                yield with_put, None if by_rows else put


def _with_holes(
    subject: Subject,
    batch: Any,
    where: Where,
    numbers: Sequence[int],
    value: int,
    kept: Container[int],
    *,
    by_rows: bool,
) -> Any:
    """A batch in which some places of one tensor, or whole rows, hold a value, the same of a sample in every batch."""
    tensor = dict(tensors_in(subject.parts(batch))).get(where)
    if tensor is None or not tensor.dim() or len(tensor) != len(numbers):  # a list is as long as there are samples
        return batch
    holes = torch.zeros(tensor.shape, dtype=torch.bool)
    for row, number in enumerate(numbers):
        generator = torch.Generator().manual_seed(number)
        if by_rows:
            holes[row] = number not in kept and bool(torch.rand((), generator=generator) < 0.6)
            continue
        flat = torch.rand(4096, generator=generator)[: holes[row].numel()] < 0.5
        flat[: 2 if tensor.dim() > 1 else number in kept] = False  # something counts in every piece
        holes[row].view(-1)[: len(flat)] = flat
    holed = torch.where(holes.to(tensor.device), torch.full_like(tensor, value), tensor)
    return changed(batch, lambda part: holed if part is tensor else part)
