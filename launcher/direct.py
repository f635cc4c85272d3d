"""What torch computes in a step, called without the Python around it where nobody uses that.

After a forward and a backward pass that Python is cold in a core's caches: around a small step it takes longer than
what it surrounds. The results are the same, bit for bit. What somebody does use (hooks of an optimizer, a profiler that
looks on, a method that was put in) is called as ever, and so is everything where a torch has other names inside.
"""

from __future__ import annotations

from collections.abc import Callable
from types import CodeType
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim import optimizer as wrappers

_run: Callable[..., Any] | None = getattr(torch.autograd.graph, "_engine_run_backward", None)


def backward(value: torch.Tensor, factor: float) -> None:
    """Adds the gradients of `value * factor`: `torch.autograd.backward` less its look at the arguments (20 µs).

    Args:
        value: A real scalar.
        factor: Multiplying the loss instead would cost two operations.
    """
    # new each time: a gradient may become a view of it, and then be written to
    root = torch.full_like(value, factor)
    if _run is not None and type(value) is torch.Tensor:
        _run((value,), (root,), False, False, (), allow_unreachable=True, accumulate_grad=True)
    else:
        torch.autograd.backward(value, root)


class Direct:
    """An optimizer without the profiler's ranges and the hooks around its methods (21 µs a step, and 9 to clear).

    Args:
        optimizer: Any.
    """

    def __init__(self, optimizer: Optimizer):
        self.optimizer = optimizer
        self._look()

    def _look(self) -> None:
        """Finds what may be called; again whenever somebody has put in a step, as a scheduler does."""
        self._own, self._class_step = vars(self.optimizer).get("step"), type(self.optimizer).step
        self._step = _innermost_step(self.optimizer)

    def step(self) -> None:
        """As `optimizer.step()`."""
        optimizer = self.optimizer
        if vars(optimizer).get("step") is not self._own or type(optimizer).step is not self._class_step:
            self._look()
        if self._step is None or _is_looked_at(optimizer):
            optimizer.step()
        else:
            self._step(optimizer)
            optimizer._opt_called = True  # type: ignore[attr-defined]  # what a scheduler's own wrapper notes

    def clear_gradients(self) -> None:
        """As `optimizer.zero_grad()`."""
        if getattr(self.optimizer.zero_grad, "__func__", None) is _ZERO_GRAD:
            for group in self.optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None
        else:
            self.optimizer.zero_grad(set_to_none=True)


_ZERO_GRAD = Optimizer.zero_grad


def lay_out_gradients(optimizer: Optimizer) -> None:
    """Gives gradients the strides of their parameters where a fused kernel steps them.

    It goes through memory: a gradient that a hook has expanded or transposed would be read wrongly, on a CPU without a
    word.
    """
    for group in optimizer.param_groups:
        if group.get("fused"):
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is not None and gradient.stride() != parameter.stride():
                    parameter.grad = _laid_out(gradient, parameter)


def lay_out_state(optimizer: Optimizer) -> None:
    """The same of what an optimizer keeps: a checkpoint may be of a model with another memory format."""
    for parameter, kept in optimizer.state.items():
        for name, value in kept.items():
            is_like_it = isinstance(value, torch.Tensor) and value.shape == parameter.shape
            if is_like_it and value.stride() != parameter.stride():
                kept[name] = _laid_out(value, parameter)


def _laid_out(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A copy with the strides of another tensor of its shape."""
    return torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)


def _made_by(decorator: str, place: Any) -> CodeType | None:
    """The code of what one of torch's decorators makes of a function; None where torch has no such decorator."""
    found = getattr(place, decorator, None)
    return getattr(found(lambda: None), "__code__", None) if found is not None else None


# What torch wraps a step in: a profiler's range and hooks, and within them the switch of autograd.
_LOOKED_AT = _made_by("profile_hook_step", Optimizer)
_SWITCHED = _made_by("_use_grad_for_differentiable", wrappers)


def _innermost_step(optimizer: Optimizer) -> Callable[[Optimizer], Any] | None:
    """The step of the optimizer's class, without what torch wraps it in; None where it is wrapped in something else."""
    step: Any = optimizer.step
    is_scheduled = hasattr(step, "_wrapped_by_lr_sched")  # once more, to see whether the optimizer steps first
    function: Any = step.__wrapped__ if is_scheduled else getattr(step, "__func__", None)
    outer: Any = type(optimizer).step
    if function is not outer or _LOOKED_AT is None or getattr(outer, "__code__", None) is not _LOOKED_AT:
        return None
    inner = outer.__wrapped__
    is_switched = getattr(inner, "__code__", inner) is _SWITCHED and not optimizer.defaults["differentiable"]
    plain: Callable[[Optimizer], Any] = _without_autograd(inner.__wrapped__) if is_switched else inner
    return plain


def _without_autograd(function: Callable[[Optimizer], Any]) -> Callable[[Optimizer], Any]:
    def step(optimizer: Optimizer) -> None:
        with torch.no_grad():
            function(optimizer)

    return step


def _is_looked_at(optimizer: Optimizer) -> bool:
    return bool(
        optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or wrappers._global_optimizer_pre_hooks
        or wrappers._global_optimizer_post_hooks
        or torch.autograd.profiler._is_profiler_enabled
    )
