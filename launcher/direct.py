"""What torch computes in a step, called without the Python around it where nobody uses that.

After a forward and a backward pass that Python is cold in a core's caches: around a small step it takes longer than
what it surrounds. The results are the same, bit for bit. What somebody does use (hooks of an optimizer, a profiler that
looks on, a method of an optimizer's own) is called as ever.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim import optimizer as wrappers

_run_backward = torch.autograd.Variable._execution_engine.run_backward


def backward(value: torch.Tensor, factor: torch.Tensor) -> None:
    """Adds the gradients of `value * factor`: `torch.autograd.backward` less its look at the arguments (21 µs).

    Args:
        value: A scalar; where it is anything else, torch looks and says so.
        factor: A scalar of the same type, on the same device.
    """
    if type(value) is torch.Tensor and value.ndim == 0:
        _run_backward((value,), (factor,), False, False, (), allow_unreachable=True, accumulate_grad=True)
    else:
        torch.autograd.backward(value, factor)


class Direct:
    """An optimizer without the profiler's ranges and the hooks around its methods (21 µs a step, and 9 to clear).

    Args:
        optimizer: Any.
    """

    def __init__(self, optimizer: Optimizer):
        self.optimizer = optimizer
        self._step = _innermost_step(optimizer)
        self._parameters = [one for group in optimizer.param_groups for one in group["params"]]
        self._clears_as_torch = type(optimizer).zero_grad is Optimizer.zero_grad

    def step(self) -> None:
        """As `optimizer.step()`."""
        optimizer = self.optimizer
        if self._step is None or _is_looked_at(optimizer):
            optimizer.step()
        else:
            self._step(optimizer)
            optimizer._opt_called = True  # type: ignore[attr-defined]  # what a scheduler's own wrapper notes

    def clear_gradients(self) -> None:
        """As `optimizer.zero_grad()`."""
        if self._clears_as_torch:
            for parameter in self._parameters:
                parameter.grad = None
        else:
            self.optimizer.zero_grad(set_to_none=True)


# What torch wraps a step in: a profiler's range and hooks, and within them the switch of autograd.
_LOOKED_AT = Optimizer.profile_hook_step(lambda: None).__code__
_SWITCHED = wrappers._use_grad_for_differentiable(lambda: None).__code__


def _innermost_step(optimizer: Optimizer) -> Callable[[Optimizer], Any] | None:
    """The step of the optimizer's class, without what torch wraps it in; None where it is wrapped in something else."""
    step: Any = optimizer.step
    is_scheduled = hasattr(step, "_wrapped_by_lr_sched")  # once more, to see whether the optimizer steps first
    function: Any = step.__wrapped__ if is_scheduled else getattr(step, "__func__", None)
    outer: Any = type(optimizer).step
    if function is not outer or getattr(outer, "__code__", None) is not _LOOKED_AT:
        return None
    inner = outer.__wrapped__
    is_switched = getattr(inner, "__code__", None) is _SWITCHED and not optimizer.defaults["differentiable"]
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


# ---------------------------------------------------------------------- without the compiler


def _spare_the_compiler() -> None:
    """Lets optimizers be made and saved without importing `torch._dynamo`, which takes as long as torch itself.

    torch keeps these methods from being compiled, and imports its compiler to say so. Where nobody has imported it,
    nothing is being compiled.
    """
    for name in ("add_param_group", "state_dict", "load_state_dict", "zero_grad"):
        method = getattr(Optimizer, name)
        function = getattr(method, "__wrapped__", None)
        if function is not None and not hasattr(function, _CACHED):
            setattr(function, _CACHED, _uncompiled(method, function))


_CACHED = "__dynamo_disable"  # where torch keeps what its compiler has made of a function


def _uncompiled(method: Callable[..., Any], function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        if "torch._dynamo" not in sys.modules:
            return function(*args, **kwargs)
        delattr(function, _CACHED)
        return method(*args, **kwargs)  # torch goes its own way from here on

    return call


_spare_the_compiler()
