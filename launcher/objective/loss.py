"""4: objective. The loss and what it is a mean over, the optimizer, the learning-rate schedule."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from launcher.data.parts import changed
from launcher.errors import LauncherError
from launcher.model.kinds import class_of, is_sharded
from launcher.model.own_gradients import OwnGradients
from launcher.objective.batch import WHOLE, Adapted, BatchLayout, Picks, arguments, one_number
from launcher.objective.entries import Entry, alone, picked, to_log
from launcher.objective.halves import still_holds
from launcher.objective.reading import Reading, tensors_in
from launcher.text import shapes

Loss = Callable[..., torch.Tensor]

COUNT = "name a function of the batch that counts: train.count"
APART = (
    "give each target a loss of its own, as in loss: {a: {…, _targets_: [1]}, b: {…, _targets_: [2]}}, or use one "
    "process and no data.micro_batch_size"
)
INDEPENDENT = "does not depend on the model: no parameter gets a gradient; look for detach(), argmax() or no_grad()"


class NothingCountsError(LauncherError):
    """Nothing counts in a piece of a batch, whose samples have a part in the loss all the same."""


@dataclass
class Term:
    """One loss of the step's sum, and what it is a mean over.

    Attributes:
        name: Its name in the recipe, empty where there is one loss.
        function: `function(*outputs, *targets)`.
        weight: Its factor in the sum.
        per: What the recipe says that its mean is over: `sample`, `element`, `batch`, `sum`; None leaves it open.
        reading: What it is a mean over; None until it is measured.
        sums: Whether torch's own function is called for a sum over what it counts; else it is called as it is.
        outputs: What of the model's result it gets; None for `batch.outputs`.
        targets: What of a batch it gets; None for `batch.targets`.
        wrapped: What training calls: the function, under DDP where it has parameters of its own.
        place: Where the recipe names it, where that is not in `loss`.
        entry: Which of several numbers that the function gives it is; None where it gives one.
        whole: The loss that gives them, of which this is a part.
    """

    name: str
    function: Loss
    weight: float
    per: str | None
    reading: Reading | None = None
    sums: bool = False
    outputs: Picks | None = None
    targets: Picks | None = None
    wrapped: Loss | None = None
    place: str = ""
    entry: Entry | None = None
    whole: Term | None = None

    def take(self, reading: Reading | None) -> None:
        """Learns what it is a mean over, and so what of a batch is counted: all of it by a count of the user's own."""
        is_users = reading is not None and reading.kind == "user"
        self.reading = reading
        self.counted_of = _all_of if is_users else self.targets_of  # chosen here: it is asked in each step

    @property
    def call(self) -> Loss:
        """What training calls."""
        return self.function if self.wrapped is None else self.wrapped

    @property
    def source(self) -> Term:
        """The loss as the recipe names it: itself, or the one that gives it among others."""
        return self if self.whole is None else self.whole

    @property
    def alone(self) -> Loss:
        """The function, giving this number alone."""
        return alone(self.function, self.entry, self.source.key)

    def split(self, entries: Sequence[Entry]) -> list[Term]:
        """A term for each number that its function gives, of those that are losses."""
        if len(entries) == 1:
            return [replace(self, entry=entries[0], whole=self)]
        named = [(entry, f"{self.name}.{entry}" if self.name else str(entry)) for entry in entries]
        return [replace(self, name=name, place=f"{self.key}.{entry}", entry=entry, whole=self) for entry, name in named]

    def __post_init__(self) -> None:
        self.is_plain = self.outputs is None and self.targets is None and self.entry is None
        self.key = self.place or loss_key(self.name)  # where the recipe names it
        self.take(self.reading)

    @property
    def part(self) -> str:
        """What its own value is called in a line, where there are several."""
        return f"loss/{self.name}"

    @property
    def has_no_mean_of_nothing(self) -> bool:
        """Whether it may be NaN where nothing counts, and need not be called: for one with parameters DDP waits."""
        reading = self.reading
        if reading is None or self.entry is not None or self.wrapped is not None:
            return False
        return not (self.sums or reading.by_samples or reading.floor)

    def outputs_of(self, layout: BatchLayout, result: Any) -> Any:
        """What of a model's result it gets: by position, or by the names of its arguments."""
        return layout.outputs(result) if self.outputs is None else layout.picked_outputs(result, self.outputs)

    def targets_of(self, layout: BatchLayout, batch: Any) -> Any:
        """What of a batch it gets; unless the recipe says what to count, that is what is counted."""
        return layout.split(batch)[2] if self.targets is None else layout.picked_targets(batch, self.targets)

    def value(self, function: Loss, layout: BatchLayout, result: Any, batch: Any) -> torch.Tensor:
        """The loss of a batch."""
        return self.value_in(self.given(function, layout, result, batch))

    def given(self, function: Loss, layout: BatchLayout, result: Any, batch: Any) -> Any:
        """All that its function gives for a batch."""
        args, kwargs = arguments(self.outputs_of(layout, result), self.targets_of(layout, batch))
        return function(*args, **kwargs)

    def value_in(self, given: Any) -> torch.Tensor:
        """Its own number in that."""
        return one_number(picked(given, self.entry, self.source.key), self.key)


def _all_of(layout: BatchLayout, batch: Any) -> Any:
    return batch


def name_of(function: Any) -> str:
    """What to call a loss: its class, or the function's name."""
    if isinstance(function, functools.partial):
        return name_of(function.func)
    if isinstance(function, Adapted):
        return name_of(function.function)
    return (
        class_of(function).__name__
        if isinstance(function, nn.Module)
        else getattr(function, "__name__", type(function).__name__)
    )


def loss_key(name: str) -> str:
    """Where the recipe names a loss: the only one has no name."""
    return f"loss.{name}" if name else "loss"


class Objective:
    """The loss of a step: a weighted sum of terms, each a mean over its own count.

    Args:
        terms: The losses; none where the model or a step function brings its own.
        layout: Which parts of batch and result they get.
        step: The user's own step function, in place of forward and loss.
        count: What a batch counts, for losses of which nothing else says it.
    """

    def __init__(
        self,
        terms: Sequence[Term],
        layout: BatchLayout,
        step: Callable[..., Mapping[str, Any]] | None = None,
        count: Callable[[Any], float] | None = None,
    ):
        self.terms = list(terms)
        self.layout = layout
        self.step = step
        self.count = count
        self.own: Reading | None = None  # of a loss that the model or a step function brings
        # whether every count is known by arithmetic, without reading a batch: the first one decides, in `settle`
        self.counts_samples = False
        self.is_whole = False  # a step is one forward pass on one process: no reading changes its numbers
        self.is_audited = False  # on a batch of training, since the start, or since something was kept
        self.autocast: Callable[[], AbstractContextManager[Any]] | None = None  # what a step function runs under
        self.moves_weights = step is not None  # a step function may, and a forward that was found to
        self.own_gradients = OwnGradients()  # that model or loss takes itself, as is found out
        self.has_exceptions = False  # values that the samples that were measured lack
        self.others: dict[str, Callable[..., Any]] = {}  # functions of the user's that may have a state, by key
        if layout.adapt is not None:
            self.others["batch.adapt"] = layout.adapt

    @property
    def logs_scalars(self) -> bool:
        """Whether a line has numbers besides the loss: a step function's, or the parts of a sum."""
        is_by_name = any(term.entry is not None for term in self.terms) or self.layout.summed is not None
        return self.step is not None or len(self.terms) > 1 or is_by_name

    @property
    def is_brought(self) -> bool:
        """Whether the model or the recipe's own step functions bring the loss: no outputs and targets show it."""
        return self.step is not None or not self.terms

    def wrapped_by(self, losses: Mapping[str, nn.Module]) -> Objective:
        """The same objective, of which training calls these in place of the terms of their names."""
        terms = [replace(term, wrapped=losses.get(term.name)) for term in self.terms]
        wrapped = Objective(terms, self.layout, step=self.step, count=self.count)
        wrapped.others, wrapped.autocast, wrapped.moves_weights = self.others, self.autocast, self.moves_weights
        return wrapped

    @property
    def modules(self) -> dict[str, nn.Module]:
        """Losses that have parameters of their own to train, by name."""
        named = {term.source.name: term.function for term in self.terms}
        return {
            name: function
            for name, function in named.items()
            if isinstance(function, nn.Module) and any(parameter.requires_grad for parameter in function.parameters())
        }

    @property
    def brought(self) -> dict[str, Any]:
        """What may have a state, by key: the losses, the step function and others, behind bound methods."""
        functions: dict[str, Any] = {term.source.key: term.function for term in self.terms}
        functions |= {
            key: function for key, function in (("train.step", self.step), ("train.count", self.count)) if function
        }
        return {key: owner_of(function) for key, function in (functions | self.others).items()}

    @property
    def stateful(self) -> dict[str, Any]:
        """Those of them that have a state to save, by key."""
        return {key: owner for key, owner in self.brought.items() if _has_state(owner)}

    def stepped(self, model: nn.Module, batch: Any, at: Any, *, needs_loss: bool = True) -> dict[str, Any]:
        """What the user's step function gives; in an evaluation it need not give a loss.

        Raises:
            LauncherError: It is not a mapping, has no loss, or one that is not one number.
        """
        assert self.step is not None
        with nullcontext() if self.autocast is None else self.autocast():
            result = self.step(model, batch, at)
        if self.autocast is not None:
            result = changed(result, torch.Tensor.float, _is_half)  # as what the model itself gives: sums would round
        if isinstance(result, torch.Tensor):  # the loss alone, as a training_step of Lightning's may return it
            result = {"loss": result}
        if not needs_loss and isinstance(result, Mapping) and result.get("loss") is None:
            return {key: value for key, value in result.items() if key != "loss"}
        if not isinstance(result, Mapping) or "loss" not in result:
            given = ", ".join(map(repr, result)) or "nothing" if isinstance(result, Mapping) else shapes(result)
            raise LauncherError(f"train.step: gave {given}; return a mapping with the loss, {{'loss': …}}")
        return {**result, "loss": one_number(result["loss"], "train.step")}

    def evaluated_step(self, model: nn.Module, data: Any, at: Any) -> tuple[list[torch.Tensor], dict[str, Any]]:
        """The loss that the step function gives of a batch, in a list of none or one, and what it gives besides."""
        result = self.stepped(model, data, at, needs_loss=False)
        return ([result["loss"]] if "loss" in result else []), result

    def under(self, autocast: Callable[[], AbstractContextManager[Any]] | None) -> None:
        """Has step functions run under autocast, as the whole step of a loop by hand does; None where there is none."""
        self.autocast = autocast

    def to(self, device: torch.device) -> None:
        """Moves the losses: class weights are buffers."""
        for owner in self.brought.values():
            if isinstance(owner, nn.Module) and not is_sharded(owner):  # which is there, and would get other memory
                owner.to(device)

    # ------------------------------------------------------------------ what is counted

    @property
    def readings(self) -> dict[str, Reading | None]:
        """What each term is a mean over, by its key in the recipe."""
        if self.terms:
            return {term.key: term.reading for term in self.terms}
        return {"loss" if self.step is None else "train.step": self.own}

    def cut(self, *, whole: bool) -> None:
        """Learns whether a step is one forward pass on one process: then no reading changes its numbers."""
        self.is_whole = whole

    def part(self, key: str) -> tuple[Objective, str]:
        """The objective that measures a key, and what it calls it."""
        return self, key

    def read(self, key: str, reading: Reading) -> None:
        """Takes up what a term is a mean over."""
        for term in self.terms:
            if term.key == key:
                term.take(reading)
        if not self.terms:
            self.own = reading

    def manifest(self) -> dict[str, Any]:
        """What a checkpoint keeps, so that a resume need not measure again."""
        kept = {key: reading.manifest() for key, reading in self.readings.items() if reading is not None}
        for term in self.terms:
            if term.entry is not None and term.key in kept:
                kept[term.key] |= {"entry": term.entry}
        if not self.terms and self.layout.summed is not None and kept:
            next(iter(kept.values()))["summed"] = list(self.layout.summed)
        return kept

    def split(self, key: str, entries: Sequence[Entry]) -> None:
        """Learns that a loss gives several numbers, and which of them are added up: each is a term of its own."""
        self.terms = [part for term in self.terms for part in (term.split(entries) if term.key == key else [term])]

    def take_entries(self, kept: Mapping[str, Mapping[str, Any]]) -> None:
        """The same from what a checkpoint keeps."""
        for term in list(self.terms):
            own = {key: manifest["entry"] for key, manifest in kept.items() if "entry" in manifest}
            entries = [entry for key, entry in own.items() if key in (term.key, f"{term.key}.{entry}")]
            if entries and term.entry is None:
                self.split(term.key, entries)
        if not self.terms:
            self.layout.summed = next((tuple(one["summed"]) for one in kept.values() if "summed" in one), None)

    def settle(self) -> None:
        """Before the first count: a loss that nobody has measured is taken for a mean over samples."""
        for key, reading in self.readings.items():
            if reading is None:
                self.read(key, Reading("samples", found="trusted", why="it has not been measured"))
        readings = [reading for reading in self.readings.values() if reading is not None]
        self.has_exceptions = any(reading.unless or reading.needs for reading in readings)
        self.counts_samples = all(
            term_reading is not None and term_reading.by_samples for term_reading in self.readings.values()
        )

    def counts(self, batch: Any, samples: int) -> list[float]:
        """What a micro-batch in host memory contributes to each term's count.

        Raises:
            LauncherError: It has a value with which a loss is not what it was found to be.
        """
        if self.has_exceptions and not self.is_whole and samples:
            self.refuse_unforeseen(batch, samples)
        if len(self.terms) == 1 and (reading := self.terms[0].reading) is not None:  # as nearly always: no lists
            parts = None if self.counts_samples else self.terms[0].counted_of(self.layout, batch)
            return [reading.count(parts, samples)]
        return self._counts(self._each_reading, batch, samples, is_looked_at=not self.counts_samples)

    def counted(self, batch: Any, samples: int) -> list[float]:
        """The same of any batch, on any device: counted, also where the training set has shown that all count alike."""
        readings = [reading and reading.of_any_set() for reading in self._each_reading]
        return self._counts(readings, batch, samples, is_looked_at=not self.counts_by_samples)

    @property
    def _each_reading(self) -> list[Reading | None]:
        return [term.reading for term in self.terms] or [self.own]

    def counted_in(self, batch: Any) -> list[Any]:
        """What of a batch is counted, of each term."""
        return [term.counted_of(self.layout, batch) for term in self.terms] or [batch]

    def _counts(
        self, readings: Sequence[Reading | None], batch: Any, samples: int, *, is_looked_at: bool
    ) -> list[float]:
        parts = self.counted_in(batch) if is_looked_at else None
        return [
            reading.count(part, samples) if reading is not None else float(samples)
            for reading, part in zip(readings, parts or [None] * len(readings), strict=True)
        ]

    @property
    def counts_by_samples(self) -> bool:
        """Whether no batch of any set need be looked at to count it."""
        return all(reading is None or reading.of_any_set().by_samples for reading in self._each_reading)

    def check_changed(self, was: Sequence[float], batch: Any, samples: int) -> None:
        """Compares what a batch counts with what was counted of it before it was changed on the device.

        Raises:
            LauncherError: It is another count, and the loss would be divided by the wrong one.
        """
        try:
            now = self.counted(batch, samples)
        except Exception:  # it has another form now: a count of the user's may know the one that is read alone
            return
        if not np.allclose(was, now, rtol=1e-6):
            counts = " → ".join(", ".join(f"{count:g}" for count in counts) for counts in (was, now))
            raise LauncherError(f"data.on_device: changes what the loss counts ({counts}); do that in data.collate")

    def refuse_unforeseen(self, batch: Any, samples: int) -> None:
        """Ends the run where a batch has what no sample had that was measured, and with which a loss is another mean.

        Raises:
            LauncherError: It has, or has nothing that counts where the loss needs something.
        """
        for (key, reading), parts in zip(self.readings.items(), self.counted_in(batch), strict=True):
            if reading is not None and (what := reading.unforeseen(parts)):
                raise LauncherError(f"{key}: a batch has {what}, and with it the loss is not {reading.words}; {APART}")
            if reading is not None and reading.needs and not reading.count(parts, samples):
                raise NothingCountsError(
                    f"{key}: is {reading.words}, and of {samples} samples that a process takes at once nothing counts, "
                    "though they have a part in it; use one process and no data.micro_batch_size, or larger pieces"
                )

    def scales(self, local: Sequence[float], total: Sequence[float], world_size: int, samples: int) -> list[float]:
        """Factors that make each term's value a part of the step's mean.

        DDP averages gradients over the ranks, hence the world size. A sum is divided by the step's count; a
        mean is first weighted by the count it was taken over.

        Args:
            local: This micro-batch's counts, a term each.
            total: The step's counts over all ranks.
            world_size: How many ranks DDP averages over.
            samples: How many samples count; a stand-in contributes nothing.
        """
        if len(self.terms) == 1:
            term = self.terms[0]
            return [term.weight * _scale(term.reading, term.sums, local[0], total[0], world_size, samples)]
        if not self.terms:
            return [_scale(self.own, False, local[0], total[0], world_size, samples)]
        return [
            term.weight * _scale(term.reading, term.sums, own, all_, world_size, samples)
            for term, own, all_ in zip(self.terms, local, total, strict=True)
        ]

    def value(
        self, result: Any, batch: Any, targets: Sequence[Any], scales: Sequence[float]
    ) -> tuple[torch.Tensor, float, Mapping[str, torch.Tensor]]:
        """The terms' values put together: a scalar tensor, a factor still to be applied to it, and the parts of a sum.

        Args:
            result: The model's.
            batch: The whole batch.
            targets: Those of `batch.targets`.
            scales: A factor for each term.
        """
        if len(self.terms) == 1:
            term, scale = self.terms[0], scales[0]
            if scale and term.is_plain:  # as nearly always
                function = term.function if term.wrapped is None else term.wrapped
                return one_number(function(*self.layout.outputs(result), *targets), term.key), scale, {}
            given: dict[str, Any] = {}
            return self._value(term, result, batch, targets, scale, given), scale, self._besides(given)
        given = {}
        parts = {
            term.part: self._value(term, result, batch, targets, scale, given) * scale
            for term, scale in zip(self.terms, scales, strict=True)
        }
        weights = {term.part: term.weight or 1.0 for term in self.terms}
        logged = {name: part.detach() / weights[name] for name, part in parts.items()}
        share = scales[0] / (self.terms[0].weight or 1.0)  # what is logged besides is weighed by the first one's count
        logged |= {name: value * share for name, value in self._besides(given).items()}
        return torch.stack(list(parts.values())).sum(), 1.0, logged

    def _value(
        self, term: Term, result: Any, batch: Any, targets: Sequence[Any], scale: float, given: dict[str, Any]
    ) -> torch.Tensor:
        """The value of a term; `given` gets what a function gave that gives several, which is called once."""
        if scale == 0 and term.has_no_mean_of_nothing:
            return self._of_nothing(term, result)
        if term.is_plain:
            return one_number(term.call(*self.layout.outputs(result), *targets), term.key)
        if term.entry is None:
            return term.value(term.call, self.layout, result, batch)
        if term.source.key not in given:
            given[term.source.key] = term.given(term.call, self.layout, result, batch)
        value = term.value_in(given[term.source.key])
        return self._of_nothing(term, result) if scale == 0 and not value.isfinite() else value

    def _besides(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """What losses gave that give several numbers, and that is only logged."""
        logged: dict[str, Any] = {}
        for key, own in given.items():
            terms = [term for term in self.terms if term.source.key == key]
            prefix = f"{terms[0].source.name}/" if terms[0].source.name else ""
            entries = [term.entry for term in terms if term.entry is not None]
            adds = self.layout.section.loss is None and entries[0] not in WHOLE
            logged |= to_log(own, entries, key, prefix, adds=adds)
        return logged

    def own_parts(self, result: Any) -> dict[str, Any]:
        """What of a mapping of losses that a model gives is logged: those that are added, and what else there is."""
        names = self.layout.summed
        if names is None or not isinstance(result, Mapping):
            return {}
        parts = {f"loss/{name}": result[name].detach() for name in names if len(names) > 1 and name in result}
        return parts | to_log(result, names, "loss: model", "", adds=names[0] not in WHOLE)

    def values(self, result: Any, batch: Any) -> list[torch.Tensor]:
        """The value of each term in an evaluation; a function that gives several is called once."""
        given: dict[str, Any] = {}
        for term in self.terms:
            if term.source.key not in given:
                given[term.source.key] = term.given(term.function, self.layout, result, batch)
        return [term.value_in(given[term.source.key]) for term in self.terms]

    def audit(self, result: Any, batch: Any, samples: int) -> None:
        """Tries on a real batch whether each term still is what it was found to be.

        Raises:
            LauncherError: One is not.
        """
        for term in self.terms:
            reading = term.reading
            if is_sharded(term.function):  # to call it once more takes all ranks, whose batches differ
                continue
            if reading is None or term.sums or reading.found == "stated" or reading.kind == "batch":
                continue
            if self.is_whole and reading.found == "known":  # a slip that broadcasts is a question, and no other number
                continue
            outputs, targets = term.outputs_of(self.layout, result), term.targets_of(self.layout, batch)
            counted = batch if reading.kind == "user" else None
            off = still_holds(term.alone, reading, outputs, targets, samples, counted)
            if off is not None:
                seen = f"outputs {shapes(outputs)}, targets {shapes(targets)}"
                raise LauncherError(
                    f"{term.key}: is not {reading.words} on this batch ({seen}): its halves put together are {off:.1g} "
                    f"off; fix the loss, say _per_: batch, or {COUNT}"
                )

    def keep_weights(self, *, moved: bool) -> None:
        """Has weights put back wherever the model is tried, where a forward was found to move them."""
        self.moves_weights = self.moves_weights or moved

    def mark_audited(self) -> None:
        """Notes that it was tried on a real batch of training what its losses were found to be."""
        self.is_audited = True

    def audit_again(self) -> None:
        """Has that tried on the next one again: what training has moved since may have made it another."""
        self.is_audited = False

    def _of_nothing(self, term: Term, result: Any) -> torch.Tensor:
        """Zero, by way of the outputs: a mean over nothing is NaN, and so is NaN × 0.

        By way of parameters too that the loss was given of the model, as DDP waits for their gradients.
        """
        found = [tensor for _, tensor in tensors_in(term.outputs_of(self.layout, result))]
        if term.wrapped is None and isinstance(owner := owner_of(term.function), nn.Module):
            found += owner.parameters()
        return torch.stack([tensor.sum() for tensor in found if tensor.requires_grad]).sum() * 0.0

    @property
    def besides(self) -> list[float]:
        """What is added to each term's count before an evaluation's sum is divided by it."""
        return [0.0 if reading is None else reading.beside for reading in self._each_reading]

    def weighed(self, values: Sequence[torch.Tensor], counts: Sequence[float]) -> list[torch.Tensor]:
        """Each term's value on a batch as a sum over what it counts: an evaluation adds these up."""
        readings = [(term.reading, term.sums) for term in self.terms] or [(self.own, False)]
        return [
            _weighed(value, count, reading, sums)
            for value, count, (reading, sums) in zip(values, counts, readings, strict=True)
        ]


def _weighed(value: torch.Tensor, count: float, reading: Reading | None, sums: bool) -> torch.Tensor:
    if sums or (reading is not None and reading.kind == "sum"):
        return value
    count = count if reading is None else reading.weight(count)
    return value * count if count else torch.zeros_like(value)  # a mean over nothing is NaN


def owner_of(function: Any) -> Any:
    """Whose state a function's is: the object of a bound method, what a partial calls."""
    if isinstance(function, partial):
        return owner_of(function.func)
    if isinstance(function, Adapted):
        return owner_of(function.function)
    bound = getattr(function, "__self__", None)
    return function if bound is None or isinstance(bound, ModuleType) else bound


def _has_state(thing: Any) -> bool:
    """Whether something gives and takes a state; torch's own losses without parameters keep what they were made of."""
    if isinstance(thing, nn.Module):
        is_torchs = type(thing).__module__.partition(".")[0] in ("torch", "launcher") and not list(thing.parameters())
        return not is_torchs and bool(thing.state_dict())
    return not isinstance(thing, type) and all(hasattr(thing, name) for name in ("state_dict", "load_state_dict"))


def _is_half(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype in (torch.bfloat16, torch.float16)


def _scale(reading: Reading | None, sums: bool, local: float, total: float, world: int, samples: int) -> float:
    if samples == 0:
        return 0.0
    if reading is not None and reading.kind == "batch":
        return 1.0
    if reading is not None and reading.kind == "sum":
        return float(world)
    if reading is not None and (reading.beside or (reading.floor and total > 0)):
        local, total = reading.weight(local), total + reading.beside
    if total == 0:  # every entry of the whole step is ignored: it has no gradient
        return 0.0
    return (1.0 if sums else local) * world / total
