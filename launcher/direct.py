"""What torch computes in a step, called without the Python around it where nobody uses that.

After a forward and a backward pass that Python is cold in a core's caches: around a small step it takes longer than
what it surrounds. The results are the same, bit for bit. What somebody does use (hooks of an optimizer, a profiler that
looks on, a method that somebody has replaced) is called as ever. `scripts/benchmark` measures what it is worth.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import optimizer as hooks

_run_backward = torch.autograd.Variable._execution_engine.run_backward  # type: ignore[attr-defined]  # untyped


def backward(value: torch.Tensor, factor: torch.Tensor) -> None:
    """Adds the gradients of `value * factor`: `torch.autograd.backward` less its checks of what it is given (21 µs).

    Args:
        value: A scalar; where it is anything else, torch checks and says so.
        factor: A scalar of the same type, on the same device.
    """
    if type(value) is torch.Tensor and value.ndim == 0:
        _run_backward((value,), (factor,), False, False, (), allow_unreachable=True, accumulate_grad=True)
    else:
        torch.autograd.backward(value, factor)


class Direct:
    """An optimizer's step without the profiler's range and the hooks around it (21 µs), and a short `zero_grad` (9 µs).

    Args:
        optimizer: Any; one that has methods of its own keeps them.
    """

    def __init__(self, optimizer: torch.optim.Optimizer):
        self.optimizer = optimizer
        self._step = _inner_step(optimizer)
        self._parameters = [one for group in optimizer.param_groups for one in group["params"]]
        self._clears_as_torch = type(optimizer).zero_grad is torch.optim.Optimizer.zero_grad

    def step(self) -> None:
        """As `optimizer.step()`."""
        optimizer = self.optimizer
        if self._step is None or _is_looked_at(optimizer):
            optimizer.step()
        else:
            self._step(optimizer)
            optimizer._opt_called = True  # type: ignore[attr-defined]  # for a scheduler, which asks once

    def clear_gradients(self) -> None:
        """As `optimizer.zero_grad()`."""
        if self._clears_as_torch:
            for parameter in self._parameters:
                parameter.grad = None
        else:
            self.optimizer.zero_grad(set_to_none=True)


_AROUND = torch.optim.Optimizer.profile_hook_step(lambda: None).__code__  # what torch wraps every step in


def _inner_step(optimizer: torch.optim.Optimizer) -> Callable[[torch.optim.Optimizer], Any] | None:
    """The class's step inside of torch's wrapper; None where this optimizer's is another."""
    step: Any = optimizer.step
    # a scheduler wraps it once more, to see whether the optimizer steps first
    function = step.__wrapped__ if hasattr(step, "_wrapped_by_lr_sched") else getattr(step, "__func__", None)
    is_torchs = function is type(optimizer).step and function.__code__ is _AROUND
    return function.__wrapped__ if is_torchs else None  # type: ignore[no-any-return]


def _is_looked_at(optimizer: torch.optim.Optimizer) -> bool:
    return bool(
        optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or hooks._global_optimizer_pre_hooks
        or hooks._global_optimizer_post_hooks
        or torch.autograd.profiler._is_profiler_enabled
    )
