"""Models and losses that take gradients themselves when they are called: forces of an energy, residuals of an equation.

Where nobody trains, a model is called without a graph, which is faster. One that takes gradients cannot be: it is found
out at the first call that fails since there are none, and from then on called with a graph, of which nothing is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

import torch
from torch import nn

from launcher.data.parts import changed
from launcher.data.seeds import randomness_kept
from launcher.device.kind import in_use
from launcher.internals import has_storage
from launcher.model.kinds import is_sharded
from launcher.model.sharding import take_apart
from launcher.text import words_of

_T = TypeVar("_T")
_HAS_NONE = (  # what torch says where there is no graph
    "does not require grad",
    "on a tensor that doesn't require grad",
    "can't retain_grad on Tensor that has requires_grad=False",
    "appears to not have been used in the graph",
)


def wants_gradients(error: BaseException) -> bool:
    """Whether a call has failed because there was no graph to take gradients of."""
    return isinstance(error, RuntimeError) and any(words in words_of(error) for words in _HAS_NONE)


class OwnGradients:
    """Whether a model, or its loss, takes gradients itself.

    Attributes:
        are_taken: Known from a call that failed without.
        are_left: Whether such a call has left some in the model's parameters, by backward(); they are dropped.
        are_cleared: Whether it has forgotten those that were there, by zero_grad().
    """

    def __init__(self) -> None:
        self.are_taken = self.are_left = self.are_cleared = False
        self._has_worked = False  # without

    def call(self, model: nn.Module | None, function: Callable[[], _T]) -> _T:
        """What a function gives that calls a model, without a graph.

        Where it fails since there are no gradients it is called again, with the same random numbers.

        Args:
            model: In whose parameters no gradient is left.
            function: Calls it; tensors of what it gives are detached.
        """
        if not self.are_taken:
            back = None if self._has_worked else _generators_kept()
            try:
                with torch.no_grad():
                    given = function()
                self._has_worked = True
                return given
            except RuntimeError as error:
                if not wants_gradients(error):
                    raise
            if back is not None:
                back()
            if model is not None and is_sharded(model):
                take_apart(model)
        with torch.enable_grad(), self._nothing_left(model):
            detached: _T = changed(function(), torch.Tensor.detach, _has_graph)
        self.are_taken = True
        return detached

    def mode(self) -> AbstractContextManager[Any]:
        """For code of somebody's that may call the model."""
        return torch.enable_grad() if self.are_taken else torch.no_grad()

    @contextmanager
    def _nothing_left(self, model: nn.Module | None) -> Iterator[None]:
        own = model.parameters() if model is not None else ()
        without = [parameter for parameter in own if parameter.grad is None]
        probe = next((one for one in without if one.is_floating_point() and has_storage(one)), None)
        if probe is not None:
            probe.grad = torch.ones_like(probe)  # which stays there, unless somebody clears or adds
        try:
            yield
        finally:
            if probe is not None:
                now = probe.grad
                self.are_cleared |= now is None or not bool(now.any())
                if now is not None and bool((now == 1).all()):
                    probe.grad = None
            self.are_left |= any(parameter.grad is not None for parameter in without)
            for parameter in without:
                parameter.grad = None


def _generators_kept() -> Callable[[], None]:
    host, device = randomness_kept(), in_use().generator_kept()

    def back() -> None:
        host()
        device()

    return back


def _has_graph(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.requires_grad
