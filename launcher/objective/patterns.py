"""Which parameters a pattern of the recipe means: by name, by shape, or by both, as in `blocks.* dim>=2`."""

from __future__ import annotations

import fnmatch
import operator
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import nn

_COMPARED = {">=": operator.ge, "<=": operator.le, "==": operator.eq, ">": operator.gt, "<": operator.lt}
_SHAPE = re.compile(r"dim(>=|<=|==|>|<)(\d+)")
_SPACES = re.compile(" ?(>=|<=|==|>|<) ?")


def matches(pattern: str, name: str, parameter: torch.Tensor) -> bool:
    """Whether all words of a pattern hold: a name with `*`, or a number of dimensions."""
    return all(_holds(word, name, parameter) for word in _SPACES.sub(r"\1", " ".join(pattern.split())).split())


def _holds(word: str, name: str, parameter: torch.Tensor) -> bool:
    shape = _SHAPE.fullmatch(word)
    if shape is None:
        return fnmatch.fnmatchcase(name, word)
    return bool(_COMPARED[shape[1]](parameter.ndim, int(shape[2])))


def chosen(patterns: Iterable[str], named: Mapping[str, torch.Tensor]) -> dict[str, list[str]]:
    """The names that each pattern has; the first that matches a name has it."""
    left = dict(named)
    found: dict[str, list[str]] = {}
    for pattern in patterns:
        found[pattern] = [name for name, parameter in left.items() if matches(pattern, name, parameter)]
        for name in found[pattern]:
            del left[name]
    return found


def by_first_name(every: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """Each parameter once, by the first of its names."""
    firsts: dict[int, str] = {}
    for name, parameter in every.items():
        firsts.setdefault(id(parameter), name)
    return {name: every[name] for name in firsts.values()}


def is_frozen(pattern: str, every: Mapping[str, nn.Parameter]) -> bool:
    """Whether a pattern names parameters, and all of them are frozen.

    Args:
        pattern: The pattern.
        every: All parameters, by each of their names.
    """
    meant = _meant(pattern, every)
    return bool(meant) and not any(every[name].requires_grad for name in meant)


def no_such(pattern: str, every: Mapping[str, nn.Parameter]) -> str:
    """What to say of a pattern that has no parameter: there is none, or it is frozen, tied, or somebody else's.

    Args:
        pattern: The pattern.
        every: All parameters, by each of their names, the first first.
    """
    meant = _meant(pattern, every)
    if not meant:
        return f"no parameter is named like '{pattern}'; there are: {', '.join(list(every)[:8])}, …"
    firsts = {id(parameter): name for name, parameter in by_first_name(every).items()}
    if tied := next((name for name in meant if firsts[id(every[name])] not in meant), None):
        return f"'{tied}' is '{firsts[id(every[tied])]}': name that"
    if is_frozen(pattern, every):
        return f"'{meant[0]}' is frozen, by train.freeze or by the model itself, like all that '{pattern}' names"
    return f"a pattern before it, or another optimizer, has '{meant[0]}' and all else that '{pattern}' names"


def _meant(pattern: str, every: Mapping[str, nn.Parameter]) -> list[str]:
    return [name for name, parameter in every.items() if matches(pattern, name, parameter)]


# ---------------------------------------------------------------------- layers


def layers_of(model: nn.Module) -> dict[str, int]:
    """The depth of each parameter by its name, from 0 at the input; empty where the model has no stack of layers.

    The layers are what stands in the model's outermost `ModuleList`s and `Sequential`s, in the order of definition.
    What comes before them is layer 0, what comes after them the last one, as for BEiT.
    """
    stacked = list(_stacked(model, ""))
    numbers = {prefix: number for number, prefix in enumerate(stacked, start=1)}
    begun = 0
    layers: dict[str, int] = {}
    for name, _ in model.named_parameters() if stacked else ():
        number = next((numbers[prefix] for prefix in stacked if name.startswith(prefix)), None)
        begun = max(begun, number or 0)
        layers[name] = number if number is not None else begun if begun < len(stacked) else begun + 1
    return layers


def _stacked(module: nn.Module, prefix: str) -> Iterator[str]:
    """The prefixes of the names of each layer's parameters."""
    is_stack = isinstance(module, nn.ModuleList | nn.Sequential)
    for name, child in module.named_children():
        path = f"{prefix}{name}."
        if not is_stack:
            yield from _stacked(child, path)
        elif any(True for _ in child.parameters()):
            yield path


def as_list(patterns: str | Sequence[str]) -> list[str]:
    """One pattern or several, as several."""
    return [patterns] if isinstance(patterns, str) else list(patterns)
