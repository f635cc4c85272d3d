"""5: training. How a step's gradients become new weights: one object, chosen when the run is built."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from launcher.training import fast_step
from launcher.training.nonfinite import NonFiniteGuard


class Update(Protocol):
    """What the step calls between its last backward and the schedule."""

    def __call__(self, step: int) -> torch.Tensor | None:
        """Updates the weights and clears the gradients; the norm of the gradients where they are clipped."""
        ...

    def clear_gradients(self) -> None:
        """Forgets the gradients and their memory."""
        ...

    def check(self) -> None:
        """Before anything is kept: raises if a step since the start was bad."""
        ...

    @property
    def counts(self) -> Sequence[torch.Tensor]:
        """What the device counts of steps that were not finite, to be read with the next line."""
        ...

    def take(self, counts: list[float], last_step: int) -> None:
        """Learns what the device had counted after a step."""
        ...

    def news(self) -> str | None:
        """What was skipped since this was asked last."""
        ...


class OneOptimizer:
    """One optimizer, one update a step.

    Args:
        optimizer: Not prepared by Accelerate: it is stepped here.
        device: Where the gradients are.
        scaler: Scales losses and gradients under fp16, else None.
        clip_grad_norm: Largest norm of all gradients together, or None.
        skip_non_finite: Whether a step without finite gradients is skipped; else it ends the run.
        updated: Called after each update that was made, for averages of the weights.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        *,
        scaler: Any = None,
        clip_grad_norm: float | None = None,
        skip_non_finite: bool = False,
        updated: Callable[[], None] | None = None,
    ):
        self.optimizer, self.scaler = optimizer, scaler
        self.guard = NonFiniteGuard(optimizer, scaler, device, skip_non_finite, must_know=updated is not None)
        self._fast = fast_step.FastStep(optimizer)
        self._clip_grad_norm = clip_grad_norm
        self._updated = updated

    @property
    def parameters(self) -> list[torch.Tensor]:
        """All that the optimizer trains; a step function may have added some."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def __call__(self, step: int) -> torch.Tensor | None:
        """Clips, checks, steps the optimizer, clears the gradients.

        Args:
            step: Optimizer steps completed before this one.

        Returns:
            The norm of all gradients before clipping, where they are clipped.

        Raises:
            NonFiniteError: A gradient is not finite, and the recipe says stop.
        """
        norm = None
        fast_step.lay_out_gradients(self.optimizer)
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        if self._clip_grad_norm is not None:
            norm = nn.utils.clip_grad_norm_(self.parameters, self._clip_grad_norm)
        if self.scaler is not None:
            is_updated = self.guard.scaled_step(step)
        elif is_updated := self.guard.allows(step):
            self._fast.step()
        if is_updated and self._updated is not None:
            self._updated()
        self._fast.clear_gradients()
        return norm

    def clear_gradients(self) -> None:
        """Forgets the gradients and their memory."""
        self._fast.clear_gradients()

    def check(self) -> None:
        """Before anything is kept: raises if a step since the start was bad.

        Raises:
            NonFiniteError: Names the first bad step.
        """
        self.guard.check()

    @property
    def counts(self) -> Sequence[torch.Tensor]:
        """What the device counts of steps that were not finite, to be read with the next line; nothing on a CPU."""
        return list(self.guard.counts) if self.guard.is_read_later else []

    def take(self, counts: list[float], last_step: int) -> None:
        """Learns what the device had counted after a step.

        Raises:
            NonFiniteError: Names the first bad step.
        """
        self.guard.take(counts, last_step)

    def news(self) -> str | None:
        """What was skipped since this was asked last, in words."""
        return self.guard.news()
