"""The order of a loss's arguments: told from their names alone, before anything lands where it is not meant."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from launcher.objective.batch import Picks
from launcher.recipe.build import Builder
from launcher.recipe.component import Component


def order_fault(function: Any, outputs: Picks, targets: Picks) -> str | None:
    """Why outputs and targets, one after the other, cannot be this function's arguments in order, and what to write.

    Names alone tell: a target that would land on `var`, or an output on `target`, is refused, never trained on.

    Args:
        function: The loss, or a function that measures.
        outputs: Which parts of the model's result it gets, or the same by name.
        targets: Which parts of a batch it gets after them, likewise.

    Returns:
        The words; None where they can.
    """
    names = _parameters(function)
    if (
        not names
        and (by_name := _by_name_alone(function))
        and not all(isinstance(one, Mapping) for one in (outputs, targets))
    ):
        remedy = _remedy(by_name, _keys(outputs), _keys(targets))
        return f"takes ({', '.join(by_name)}) by name alone; say which is which: {remedy}"
    wrong = _wrong(names, outputs, targets)
    if not wrong:
        return None
    remedy = _remedy(names, _keys(outputs), _keys(targets))
    return f"takes ({', '.join(names)}), and '{wrong[0]}' would not get what is meant; say which is which: {remedy}"


def check_order(builder: Builder, component: Component, function: Any, outputs: Picks, targets: Picks) -> None:
    """Refuses outputs and targets that would stand where a function takes something else.

    Raises:
        RecipeError: They would.
    """
    if fault := order_fault(function, outputs, targets):
        raise builder.wrong(component.path, f"{component.target} {fault}")


def names_given(function: Any, outputs: Picks, targets: Picks) -> list[str]:
    """The names of the arguments that outputs and targets are, as far as they are known."""
    by_place = sum(len(side) for side in (outputs, targets) if not isinstance(side, Mapping))
    by_name = [name for side in (outputs, targets) if isinstance(side, Mapping) for name in side]
    return [*_parameters(function)[:by_place], *by_name]


def _parameters(function: Any) -> list[str]:
    """What may be passed by its place; empty where that cannot be known."""
    called = type(function).forward if isinstance(function, nn.Module) else function
    try:
        parameters = list(inspect.signature(called).parameters.values())
    except (TypeError, ValueError):
        return []
    names = [
        parameter.name
        for parameter in parameters
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    return names[1:] if isinstance(function, nn.Module) else names


def _by_name_alone(function: Any) -> list[str]:
    """What must be passed by its name, where nothing is passed by its place."""
    called = type(function).forward if isinstance(function, nn.Module) else function
    try:
        parameters = list(inspect.signature(called).parameters.values())[isinstance(function, nn.Module) :]
    except (TypeError, ValueError):
        return []
    is_alone = all(parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_KEYWORD) for parameter in parameters)
    needed = [one.name for one in parameters if one.kind is one.KEYWORD_ONLY and one.default is one.empty]
    return needed if is_alone else []


def _wrong(names: Sequence[str], outputs: Picks, targets: Picks) -> list[str]:
    """The arguments that would get something else than they are called."""
    by_name = {name for side in (outputs, targets) if isinstance(side, Mapping) for name in side}
    if by_name:  # nothing may get two values
        by_place = sum(len(side) for side in (outputs, targets) if not isinstance(side, Mapping))
        return [name for name in names[:by_place] if name in by_name]
    if not outputs or not targets:
        return []
    given = names[: len(outputs) + len(targets)]
    if len(outputs) == 1:  # one of each: refused only where both say it
        is_turned = bool(given) and _is_target(given[0]) and any(map(_is_output, given[1:]))
        return list(given[:1]) if is_turned else []
    wrong = [name for name in given[:1] if name.lower() in _TARGETS - _ANY]
    wrong += [name for name in given[1 : len(outputs)] if name.lower() in _TARGETS]
    return wrong + [name for name in given[len(outputs) :] if name.lower() in _OUTPUTS]


def _remedy(names: Sequence[str], outputs: Sequence[Any], targets: Sequence[Any]) -> str:
    """The likeliest reading of the names, to be written out and looked at."""
    given = names[: len(outputs) + len(targets)]
    for_targets = [name for name in given[1:] if name.lower() in _TARGETS][: len(targets)]
    for_outputs = [name for name in names if name not in for_targets]
    if len(outputs) == 1:
        likely = [name for name in given if _is_output(name)] or [name for name in given if not _is_target(name)]
        for_outputs, for_targets = likely, [name for name in given if name not in likely[:1]]
    taken, meant = (
        ", ".join(f"{name}: {part}" for name, part in zip(side, parts, strict=False))
        for side, parts in ((for_outputs, outputs), (for_targets, targets))
    )
    return f"_outputs_: {{{taken}}}, _targets_: {{{meant}}}"


def _keys(picks: Picks) -> list[Any]:
    return list(picks.values() if isinstance(picks, Mapping) else picks)


def _is_target(name: str) -> bool:
    return bool(_SAYS_TARGET.search(name.lower()))


def _is_output(name: str) -> bool:
    return bool(_SAYS_OUTPUT.search(name.lower()))


_TARGETS = {"target", "targets", "label", "labels", "y_true", "truth", "ground_truth", "gt", "tgt", "y", "x", "t"}
_ANY = {"x", "y", "t"}  # which an output is called as well, where it comes first
_OUTPUTS = {"var", "variance", "logvar", "log_var", "mu", "mean", "sigma", "std", "logits", "input", "pred", "output"}
_SAYS_TARGET = re.compile(
    r"(^|_)(y?true|truth|targets?|labels?|gt|tgt|actuals?|observed|references?|refs?|expected|wanted)(_|$)"
)
_SAYS_OUTPUT = re.compile(
    r"(^|_)(y?preds?|predicted|predictions?|y?hat|scores?|probs?|proba|logits?|outputs?|estimates?|est|forecasts?"
    r"|hypothes[ie]s|said|input)(_|$)"
)
