"""4: objective. The loss and what it is a mean over, the optimizer, the learning-rate schedule."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import nn

from launcher.errors import LauncherError
from launcher.objective.batch import BatchLayout, one_number
from launcher.recipe import schema
from launcher.recipe.build import Builder
from launcher.recipe.component import Component
from launcher.text import shapes

Loss = Callable[..., torch.Tensor]

INDEPENDENT = "does not depend on the model: no parameter gets a gradient; look for detach(), argmax() or no_grad()"


@dataclass
class Term:
    """One loss of the step's sum, and its count.

    Attributes:
        name: Its name in the recipe, empty where there is one loss.
        function: `function(*outputs, *targets)`.
        weight: Its factor in the sum.
        per: What its mean is over: `sample`, `element`, `batch`; None until the first batch decides.
        sums: Whether the function gives a sum over what it counts; else it gives a mean.
        wrapped: What training calls: the function, under DDP where it has parameters of its own.
    """

    name: str
    function: Loss
    weight: float
    per: str | None
    sums: bool
    wrapped: Loss | None = None

    @property
    def call(self) -> Loss:
        """What training calls."""
        return self.function if self.wrapped is None else self.wrapped

    @property
    def key(self) -> str:
        """Where the recipe names it."""
        return loss_key(self.name)

    def settle(self, targets: Sequence[Any]) -> None:
        """Decides, from the first targets, what the mean is over where the recipe does not say."""
        if self.per is not None:
            return
        target = targets[0] if targets else None
        classes = isinstance(target, torch.Tensor) and not target.is_floating_point()
        dense = isinstance(target, torch.Tensor) and target.dim() > (1 if classes else 2)
        weighted = getattr(self.function, "weight", None) is not None
        self.per = "element" if self.sums and (weighted or dense) else "sample"

    def count(self, targets: Sequence[Any], samples: int) -> float:
        """What this micro-batch contributes to the count of the step.

        Args:
            targets: In host memory.
            samples: How many samples count; none in a stand-in.
        """
        if self.per != "element" or samples == 0 or not targets:
            return float(samples)
        return _elements(self.function, targets[0])


def _elements(function: Any, target: torch.Tensor) -> float:
    """Entries not ignored; with class weights, their weights, as CrossEntropyLoss divides by."""
    ignore, weight = getattr(function, "ignore_index", None), getattr(function, "weight", None)
    if ignore is None:
        return float(target.numel())
    if target.is_floating_point():  # class probabilities [N, C, …]: torch divides by the number of places
        return target.numel() / target.shape[1]
    kept = target[target != ignore]
    return float(kept.numel()) if weight is None else float(weight.detach().cpu()[kept].double().sum())


def loss_key(name: str) -> str:
    """Where the recipe names a loss: the only one has no name."""
    return f"loss.{name}" if name else "loss"


class Objective:
    """The loss of a step: a weighted sum of terms, each a mean over its own count.

    Args:
        terms: The losses; none where the model or a step function brings its own.
        layout: Which parts of batch and result they get.
        step: The user's own step function, in place of forward and loss.
        count: What a batch counts, with a step function.
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
        self._count = count
        # whether every count is known by arithmetic, without reading a batch: the first one decides, in `settle`
        self.counts_samples = False

    def wrapped_by(self, losses: Mapping[str, nn.Module]) -> Objective:
        """The same objective, of which training calls these in place of the terms of their names."""
        terms = [replace(term, wrapped=losses.get(term.name)) for term in self.terms]
        return Objective(terms, self.layout, step=self.step, count=self._count)

    @property
    def modules(self) -> dict[str, nn.Module]:
        """Losses that have parameters of their own to train, by name."""
        named = {term.name: term.function for term in self.terms}
        return {
            name: one
            for name, one in named.items()
            if isinstance(one, nn.Module) and any(parameter.requires_grad for parameter in one.parameters())
        }

    @property
    def own(self) -> dict[str, Any]:
        """What may have a state, by key: the losses, or the step function and its count, behind bound methods."""
        brought: dict[str, Any] = {term.key: term.function for term in self.terms}
        brought |= {key: one for key, one in (("train.step", self.step), ("train.count", self._count)) if one}
        return {key: _owner(one) for key, one in brought.items()}

    @property
    def stateful(self) -> dict[str, Any]:
        """Those of them that have a state to save, by key."""
        return {key: one for key, one in self.own.items() if _has_state(one)}

    def stepped(self, model: nn.Module, batch: Any, at: Any) -> dict[str, Any]:
        """What the user's step function gives.

        Raises:
            LauncherError: It is no mapping, has no loss, or one that is not one number.
        """
        assert self.step is not None
        result = self.step(model, batch, at)
        if not isinstance(result, Mapping) or "loss" not in result:
            given = ", ".join(map(repr, result)) or "nothing" if isinstance(result, Mapping) else shapes(result)
            raise LauncherError(f"train.step: gave {given}; return a mapping with the loss, {{'loss': …}}")
        return {**result, "loss": one_number(result["loss"], "train.step")}

    def to(self, device: torch.device) -> None:
        """Moves the losses: class weights are buffers."""
        for one in self.own.values():
            if isinstance(one, nn.Module):
                one.to(device)

    @property
    def per_batch(self) -> bool:
        """Whether a term is a function of a whole batch, so that the result depends on the world."""
        return any(term.per == "batch" for term in self.terms)

    def settle(self, batch: Any) -> None:
        """Decides what each mean is over, from the first batch."""
        if self.terms:
            targets = self.layout.targets(batch)
            for term in self.terms:
                term.settle(targets)
        self.counts_samples = self._count is None and all(term.per != "element" for term in self.terms)

    def counts(self, batch: Any, samples: int) -> list[float]:
        """What a micro-batch in host memory contributes to each term's count."""
        if self.counts_samples:
            return [float(samples)] * (len(self.terms) or 1)
        if self._count is not None:
            return [float(self._count(batch)) if samples else 0.0]
        targets = self.layout.targets(batch)
        return [term.count(targets, samples) for term in self.terms]

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
        if not self.terms:
            return [local[0] * world_size / total[0] if total[0] else 0.0]
        return [
            _scale(term, own, all_, world_size, samples)
            for term, own, all_ in zip(self.terms, local, total, strict=True)
        ]

    def value(
        self, outputs: Sequence[Any], targets: Sequence[Any], scales: Sequence[float]
    ) -> tuple[torch.Tensor, float]:
        """The terms' values put together: a scalar tensor, and a factor still to be applied to it."""
        values = [one_number(term.call(*outputs, *targets), term.key) for term in self.terms]
        if len(values) == 1:
            return values[0], scales[0]
        parts = [value * scale for value, scale in zip(values, scales, strict=True)]
        return torch.stack(parts).sum(), 1.0


def _owner(function: Any) -> Any:
    """Whose state a function's is: the object of a bound method, what a partial calls."""
    if isinstance(function, partial):
        return _owner(function.func)
    bound = getattr(function, "__self__", None)
    return function if bound is None or isinstance(bound, ModuleType) else bound


def _has_state(thing: Any) -> bool:
    """Whether something gives and takes a state; torch's own losses without parameters keep what they were made of."""
    if isinstance(thing, nn.Module):
        is_torchs = type(thing).__module__.partition(".")[0] == "torch" and not list(thing.parameters())
        return not is_torchs and bool(thing.state_dict())
    return not isinstance(thing, type) and all(hasattr(thing, name) for name in ("state_dict", "load_state_dict"))


def _scale(term: Term, local: float, total: float, world_size: int, samples: int) -> float:
    if samples == 0:
        return 0.0
    if term.per == "batch":
        return term.weight
    numerator = 1.0 if term.sums else local
    if total == 0:  # every entry of the whole step is ignored: it has no gradient
        return 0.0
    return term.weight * numerator * world_size / total


def build_objective(
    builder: Builder,
    section: Component | Mapping[str, Component] | str | None,
    batch: schema.Batch,
    train: schema.Train,
) -> Objective:
    """The recipe's loss, or the step function that stands for it.

    Args:
        builder: Builds the components.
        section: The recipe's `loss`.
        batch: Which parts of a batch it gets.
        train: Names the step function, where there is one.

    Raises:
        RecipeError: A loss states a reduction, or `_per_: element` where nothing can be counted.
    """
    layout = BatchLayout(batch)
    if train.step is not None:
        count = builder.build(train.count) if train.count else None
        return Objective([], layout, step=builder.build(train.step), count=count)
    if isinstance(section, str):  # `model`: it brings its own
        return Objective([], layout)
    named = {"": section} if isinstance(section, Component) else section or {}
    return Objective([_term(builder, name, one) for name, one in named.items()], layout)


def _term(builder: Builder, name: str, component: Component) -> Term:
    _check_reduction(builder, component, component.kwargs.get("reduction", "mean"))
    function = builder.build(component)
    if isinstance(function, type):
        function = function()
    _check_reduction(builder, component, getattr(function, "reduction", "mean"))
    per = component.options.get("_per_")
    has_reduction = isinstance(function, nn.Module) and getattr(function, "reduction", None) == "mean"
    ignores = has_reduction and hasattr(function, "ignore_index")
    if per is None:
        # a stated ignore_index means that some entries do not count, as torch's own mean has it
        per = "element" if ignores and "ignore_index" in component.kwargs else None if ignores else "sample"
    # A mean over ignored targets only is NaN, and NaN × 0 stays NaN: these losses are summed and divided by our count.
    sums = ignores or (has_reduction and per == "element")
    if sums:
        function = copy.copy(function)  # the one that was handed in stays a mean
        function.reduction = "sum"
    return Term(name, function, float(component.options.get("_weight_", 1.0)), per, sums)


def _check_reduction(builder: Builder, component: Component, reduction: Any) -> None:
    """Refuses a loss that is no mean.

    Raises:
        RecipeError: It sums, or gives a number for each entry.
    """
    if not isinstance(reduction, str) or reduction in ("mean", "batchmean"):
        return
    message = f"'{reduction}' is not allowed: a step's loss is a mean over its count; remove it, and say _per_: element"
    raise builder.wrong((*component.path, "reduction"), message)
