"""Which parts of a batch the model gets, and which parts of its result the loss and the metrics get."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from launcher.errors import LauncherError
from launcher.internals import with_own_hooks
from launcher.recipe import schema
from launcher.text import shapes

Picks = Sequence[int | str] | Mapping[str, int | str]  # positions or keys, or the same by name of an argument


class Evaluated(NamedTuple):
    """A batch that a model was evaluated on.

    Attributes:
        result: What the model, or a step function, gave.
        data: The batch.
        outputs: What `batch.outputs` names of the result.
        targets: What `batch.targets` names of the batch.
    """

    result: Any
    data: Any
    outputs: tuple[Any, ...]
    targets: tuple[Any, ...]


class BatchLayout:
    """The recipe's `batch` section, applied.

    Args:
        section: Positions, keys or paths of inputs and targets, and of the model's outputs.
        adapt: The function of `batch.adapt`, where there is one.
    """

    def __init__(self, section: schema.Batch, adapt: Callable[..., Any] | None = None):
        self.section, self.adapt = section, adapt
        self.is_whole = section.inputs == "whole"
        # a batch passed whole has its targets in it, unless the recipe names them
        self._targets = [] if self.is_whole and "targets" not in section.model_fields_set else section.targets
        self.summed: tuple[str, ...] | None = None  # of a mapping of losses that a model gives: known from the first
        self._plain = section.inputs == [0] and section.targets == [1]

    def split(self, batch: Any) -> tuple[Sequence[Any], Mapping[str, Any], tuple[Any, ...]]:
        """Positional inputs, inputs by name, and targets of a batch.

        Raises:
            LauncherError: The batch has no such part; the message names what it has.
        """
        if self._plain and type(batch) in (tuple, list) and len(batch) == 2:
            return (batch[0],), {}, (batch[1],)
        return *self.inputs(batch), tuple(self._part(batch, key) for key in self._targets)

    def inputs(self, batch: Any) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """Positional inputs and inputs by name; the batch needs no targets."""
        inputs = self.section.inputs
        if isinstance(inputs, str):
            return (batch,), {}
        if isinstance(inputs, dict):
            return (), {name: self._part(batch, key) for name, key in inputs.items()}
        return tuple(self._part(batch, key) for key in inputs), {}

    def targets(self, batch: Any) -> tuple[Any, ...]:
        """What the loss gets after the outputs."""
        return self.split(batch)[2]

    def outputs(self, result: Any) -> tuple[Any, ...]:
        """What the loss gets first: the whole result, or the parts that `batch.outputs` names."""
        keys = self.section.outputs
        if keys is None:
            return (result,)
        return tuple(_pick(result, key, "batch.outputs", "the model's result") for key in keys)

    def adapted(self, outputs: tuple[Any, ...], targets: tuple[Any, ...]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Outputs and targets as metrics get them: through `batch.adapt`.

        It gives as many targets as it gets, or one output and fewer targets, where one of them was a mask.

        Raises:
            LauncherError: It gives no targets.
        """
        if self.adapt is None:
            return outputs, targets
        shaped = _shaped(self.adapt, (*outputs, *targets))
        cut = max(1, len(shaped) - len(targets))
        if len(shaped) < min(2, 1 + len(targets)):
            counted = f"{len(outputs)} outputs and {len(targets)} targets"
            raise LauncherError(f"batch.adapt: gave {shapes(shaped)} for {counted}; return outputs, then targets")
        return shaped[:cut], shaped[cut:]

    def brings_loss(self, result: Any) -> bool:
        """Whether a model's result has its loss in it: in eval mode detectors, say, give their boxes alone."""
        key = self.section.loss
        if key is None and isinstance(result, torch.Tensor):
            return result.numel() == 1
        if key is None and isinstance(result, Mapping) and "loss" not in result:
            return _are_losses(result)
        part = _at(result, "loss" if key is None else key)
        return part is not _NOTHING and part is not None

    def loss(self, result: Any) -> torch.Tensor:
        """The loss that the model returned itself.

        At `batch.loss` of its result; else the result where it is one number, its `loss`, or the sum of a mapping of
        losses: of those that have a gradient.
        """
        key = self.section.loss
        if key is None and isinstance(result, torch.Tensor):
            return one_number(result, "loss: model")
        if key is None and isinstance(result, Mapping) and "loss" not in result and _are_losses(result):
            return torch.stack([one_number(result[name], f"loss: model: {name}") for name in self._added(result)]).sum()
        return one_number(
            _pick(result, "loss" if key is None else key, "batch.loss", "the model's result"), "loss: model"
        )

    def _added(self, result: Mapping[str, Any]) -> Sequence[str]:
        """Which of a mapping of losses are added: an evaluation, which has no gradients, adds what a step has added."""
        if self.summed is None and (names := losses_among(result)):
            self.summed = tuple(names)
        return [name for name in self.summed or result if name in result]

    def picked_outputs(self, result: Any, wanted: Picks) -> Any:
        """What `_outputs_` of a loss names: by position, or by the names of its arguments."""
        return _picked(result, wanted, "_outputs_", "the model's result")

    def picked_targets(self, batch: Any, wanted: Picks) -> Any:
        """What `_targets_` of a loss names, of the whole batch."""
        return _picked(batch, wanted, "_targets_", "a batch")

    def _part(self, batch: Any, key: schema.Input) -> Any:
        if type(key) is not int and type(key) is not str:
            return key["_value_"] if isinstance(key, Mapping) else key  # a constant
        if isinstance(batch, torch.Tensor) and key == 0:
            return batch  # a data set of bare tensors
        return _pick(batch, key, "batch", "a batch")


class Adapted:
    """A loss behind `batch.adapt`.

    Attributes:
        function: The loss.
        adapt: What its arguments go through.
    """

    def __init__(self, function: Callable[..., Any], adapt: Callable[..., Any]):
        self.function, self.adapt = function, adapt

    def __call__(self, *args: Any) -> Any:
        """The loss of outputs and targets as they are shaped."""
        return self.function(*_shaped(self.adapt, args))


def behind(function: Callable[..., Any], adapt: Callable[..., Any]) -> Callable[..., Any]:
    """A loss that gets its outputs and targets through `batch.adapt`; the one that was passed in stays as it is."""
    if not isinstance(function, nn.Module):
        return Adapted(function, adapt)
    function = with_own_hooks(function)
    function.register_forward_pre_hook(lambda module, args: _shaped(adapt, args))
    return function


def _shaped(adapt: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, ...]:
    shaped = adapt(*args)
    return shaped if isinstance(shaped, tuple) else (shaped,)


_NOTHING = object()


def arguments(outputs: Any, targets: Any) -> tuple[list[Any], dict[str, Any]]:
    """What a loss is called with: outputs, then targets, by position or, where they are mappings, by name."""
    both = (outputs, targets)
    args = [part for side in both if not isinstance(side, Mapping) for part in side]
    return args, {key: part for side in both if isinstance(side, Mapping) for key, part in side.items()}


WHOLE = ("loss", "total_loss", "total")  # what a loss is called that is the sum of others already


def losses_among(given: Mapping[str, Any]) -> list[str]:
    """Which of several numbers are losses to be added: one of such a name alone, else all that have a gradient.

    So is a zero beside them that is called a loss: as of a batch in which there is nothing to find.
    """
    whole = next((name for name in WHOLE if given.get(name) is not None), None)
    if whole is not None:
        return [whole]
    trained = {name for name, value in given.items() if has_gradient(value)}
    return [name for name, value in given.items() if name in trained or (trained and _is_no_loss_yet(name, value))]


def _is_no_loss_yet(name: Any, value: Any) -> bool:
    is_one = isinstance(value, torch.Tensor) and value.numel() == 1
    return is_one and "loss" in str(name).lower() and bool(value == 0)


def has_gradient(value: Any) -> bool:
    """Whether a number can be trained by."""
    return isinstance(value, torch.Tensor) and value.requires_grad


def _are_losses(result: Mapping[str, Any]) -> bool:
    return bool(result) and all(isinstance(value, torch.Tensor) and value.numel() == 1 for value in result.values())


def _picked(thing: Any, wanted: Picks, section: str, what: str) -> Any:
    if isinstance(wanted, Mapping):
        return {name: _pick(thing, key, section, what) for name, key in wanted.items()}
    return tuple(_pick(thing, key, section, what) for key in wanted)


def _pick(thing: Any, key: int | str, section: str, what: str) -> Any:
    if type(key) is int and key == 0 and isinstance(thing, torch.Tensor):
        return thing  # which is its own only part
    part = _at(thing, key)
    if part is _NOTHING:
        place, inner, rest = _as_far_as_there(thing, key)
        what = f"{place!r} of {what}" if place else what
        remedy = "name its parts in 'batch'"
        if section == "batch" and key == 1 and (isinstance(thing, torch.Tensor) or len(thing) == 1):
            remedy = "a sample is (input, target) unless 'batch' names other parts: give the data set targets"
        if section == "batch.loss" and isinstance(inner, tuple):
            remedy = f"say where in it the loss stands, as in batch.loss: {len(inner) - 1}"
        raise LauncherError(f"{section}: {what} has no {rest!r}; it is {_described(inner)}; {remedy}")
    return part


def _at(thing: Any, key: int | str) -> Any:
    """A part by its key, or by a path of keys with dots between; `_NOTHING` where there is none."""
    part = _inside(thing, key)
    if part is not _NOTHING or not isinstance(key, str):
        return part
    cuts = (place for place, letter in enumerate(key) if letter == ".")  # a key may have dots of its own
    ways = (_at(inner, key[cut + 1 :]) for cut in cuts if (inner := _inside(thing, key[:cut])) is not _NOTHING)
    return next((candidate for candidate in ways if candidate is not _NOTHING), _NOTHING)


def has_part(thing: Any, key: int | str) -> bool:
    """Whether something has a part by its key, its position or a path."""
    return _at(thing, key) is not _NOTHING


def at(thing: Any, key: int | str) -> Any:
    """That part, which is there."""
    return _at(thing, key)


def _inside(thing: Any, key: int | str) -> Any:
    """A part by position, key, field or attribute; digits in a path are positions."""
    if isinstance(thing, Mapping) and key in thing:
        return thing[key]
    if isinstance(key, str) and key.removeprefix("-").isdigit():
        return _inside(thing, int(key))
    if isinstance(key, int):
        is_there = isinstance(thing, tuple | list) and -len(thing) <= key < len(thing)
        return thing[key] if is_there else _NOTHING
    if isinstance(thing, tuple | list):
        return getattr(thing, key) if key in getattr(thing, "_fields", ()) else _NOTHING
    return _NOTHING if isinstance(thing, dict | torch.Tensor) else getattr(thing, key, _NOTHING)


def _as_far_as_there(thing: Any, key: int | str) -> tuple[str, Any, int | str]:
    """How far a path that leads nowhere can be followed: that far, what is there, and the step that is missing."""
    steps = key.split(".") if isinstance(key, str) else []
    for number, step in enumerate(steps):
        inner = _inside(thing, step)
        if inner is _NOTHING:
            return ".".join(steps[:number]), thing, step if number else key
        thing = inner
    return "", thing, key


def _described(thing: Any) -> str:
    if isinstance(thing, Mapping):
        return f"a mapping with {', '.join(map(repr, thing))}"
    if hasattr(thing, "_fields"):
        return f"a {type(thing).__name__} with {', '.join(map(repr, thing._fields))}"
    if isinstance(thing, tuple | list):
        return f"a {type(thing).__name__} of {len(thing)}"
    if named := [name for name in getattr(thing, "__dict__", {}) if not name.startswith("_")]:
        return f"a {type(thing).__name__} with {', '.join(map(repr, named[:12]))}"
    return f"a {type(thing).__name__}"


def one_number(loss: Any, key: str) -> torch.Tensor:
    """A loss as a real scalar, whatever its shape.

    Args:
        loss: What somebody's function gave.
        key: Where the recipe names it.

    Raises:
        LauncherError: It is not a tensor, holds several numbers, or a complex one.
    """
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        raise LauncherError(f"{key}: gave {shapes(loss)}; a step needs one number: take the mean in the loss")
    if loss.is_complex():
        raise LauncherError(f"{key}: gave {shapes(loss)}; a step needs a real number: take .abs() or .real in the loss")
    return loss if loss.ndim == 0 else loss.reshape(())
