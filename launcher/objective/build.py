"""4: objective. The recipe's loss, or the step functions that stand for it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from launcher.objective.batch import BatchLayout, behind
from launcher.objective.class_last import class_last
from launcher.objective.known import known, reduction_of, summing, sums_itself
from launcher.objective.loss import Objective, Term
from launcher.objective.order import check_order, names_given
from launcher.objective.reading import Reading
from launcher.objective.turns import TurnsObjective
from launcher.recipe import schema
from launcher.recipe.build import Builder
from launcher.recipe.component import Component
from launcher.recipe.component_syntax import number_of_steps
from launcher.text import shapes

_OF_STEP = ("model", "batch", "at")  # what a step function is called with


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
        RecipeError: A loss gives a number for each entry, or its arguments would not be what they are called.
    """
    layout = BatchLayout(batch, builder.build(batch.adapt) if batch.adapt else None)
    count = build_function(builder, train.count, "batch") if train.count else None
    if isinstance(train.step, Component):
        return Objective([], layout, step=build_function(builder, train.step, *_OF_STEP), count=count)
    if train.step is not None:
        steps = {name: build_function(builder, part, *_OF_STEP) for name, part in train.step.items()}
        every = {name: number_of_steps(part.options.get("_every_", 1)) or 1 for name, part in train.step.items()}
        return TurnsObjective(steps, layout, count=count, every=every)
    if isinstance(section, str):  # `model`: it brings its own
        return Objective([], layout, count=count)
    named = {"": section} if isinstance(section, Component) else section or {}
    terms = [_term(builder, name, component, layout) for name, component in named.items()]
    if count is not None and all(term.reading is not None or term.per is not None for term in terms):
        known_already = next((term.reading for term in terms if term.reading is not None), None)
        why = f"it is {known_already}" if known_already is not None else "_per_ says what it is a mean over"
        raise builder.wrong(("train", "count"), f"no loss asks for it: {why}; remove train.count")
    return Objective(terms, layout, count=count)


def build_function(builder: Builder, component: Component, *arguments: str) -> Any:
    """A function of the user's.

    Args:
        builder: Builds it.
        component: Names it.
        *arguments: What it is called with, by place.

    Raises:
        RecipeError: It cannot be called so.
    """
    function = builder.build(component)
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # nobody knows
        return function
    try:
        signature.bind(*arguments)
    except TypeError:
        message = f"{component.target} takes {_shown(signature)}, and is called with ({', '.join(arguments)})"
        raise builder.wrong(component.path, message) from None
    return function


def _shown(signature: inspect.Signature) -> str:
    """The parameters without their types."""
    bare = [one.replace(annotation=inspect.Parameter.empty) for one in signature.parameters.values()]
    return str(signature.replace(parameters=bare, return_annotation=inspect.Signature.empty))


def _term(builder: Builder, name: str, component: Component, layout: BatchLayout) -> Term:
    batch = layout.section
    function = builder.build(component)
    if isinstance(function, type):
        function = function()
    if not callable(function):
        message = f"{component.target} gave {shapes(function)}, and no loss: it can be called with what is written, so "
        message += f"it is taken to be what makes one; write {{_ref_: {component.target}}} for the function itself"
        raise builder.wrong(component.path, message)
    options = component.options
    per, weight = options.get("_per_"), float(options.get("_weight_", 1.0))
    outputs, targets = options.get("_outputs_"), options.get("_targets_")
    given_outputs = (batch.outputs or [0]) if outputs is None else outputs
    given_targets = batch.targets if targets is None else targets
    reading = known(function, names_given(function, given_outputs, given_targets)) if given_targets else None
    if reading is not None and isinstance(targets, Mapping):
        reading = replace(reading, where=("target",))  # torch's name for it
    if reading is not None:
        _check_reduction(builder, component, function)
    is_adapted = layout.adapt is not None and outputs is None and targets is None
    if not is_adapted:
        check_order(builder, component, function, given_outputs, given_targets)
    if reading is not None and per is not None and (per == "sum") != (reading.kind == "sum") and per != "batch":
        message = f"_per_: {per} is not what it is: {reading.words} ({reading.why}); remove _per_, or say its reduction"
        raise builder.wrong(component.path, message)
    if per == "batch":
        reading = Reading("batch", found="stated")
    if is_adapted and layout.adapt is not None:  # what torch counts are not the targets of a batch: it is measured
        function = behind(function, layout.adapt)
        return Term(name, function, weight, per, reading if per == "batch" else None)
    sums = reading is not None and reading.kind in ("kept", "weights") and sums_itself(function)
    return Term(name, class_last(summing(function) if sums else function), weight, per, reading, sums, outputs, targets)


def _check_reduction(builder: Builder, component: Component, function: Any) -> None:
    """Refuses a loss of torch's that is not a number.

    Raises:
        RecipeError: It gives one for each entry.
    """
    if reduction_of(function) != "none":
        return
    message = "'none' is not allowed: it gives a number for each entry, and a step needs one; remove it, or say sum"
    raise builder.wrong((*component.path, "reduction"), message)
