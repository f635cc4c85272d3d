"""5: training. Keeps gradients that are not finite out of everything that is kept."""

from __future__ import annotations

from typing import Any

import torch

from launcher import internals
from launcher.errors import LauncherError
from launcher.objective.several import Optimizers

_raise_flag = internals.finite_check()
SKIPS_IN_A_ROW = 20  # after so many updates without a finite gradient a run is not training any more


class NonFiniteError(LauncherError):
    """A step's gradients are not finite."""


class NonFiniteGuard:
    """Keeps gradients that are not finite out of everything that is kept.

    One flag a step (6 µs for any optimizer). On a CPU it is read before the update. On a GPU reading would make
    the host wait: with `non_finite: stop` the flag stays up after the first bad step, the device counts the
    steps since, and the count is read before anything is saved or evaluated.

    Args:
        optimizer: Of whose parameters the gradients are.
        scaler: The gradient scaler under fp16, else None.
        device: Where the gradients are.
        skips: Whether a step without finite gradients is skipped; else it ends the run.
    """

    def __init__(self, optimizer: Optimizers, scaler: Any, device: torch.device, skips: bool):
        self._optimizer, self._scaler, self._skips = optimizer, scaler, skips
        self._read_now = device.type == "cpu" or skips
        self._one = torch.ones((), device=device, dtype=torch.float32)
        self._found = torch.zeros((), device=device, dtype=torch.float32)  # torch's kernel takes no other
        self._since_bad = torch.zeros((), device=device, dtype=torch.float32)  # steps, the first bad one included
        self._last_step = -1
        self._are_plain = True  # until torch's kernel refuses some: sparse or complex ones
        self.skipped_in_a_row = 0
        self.skipped = 0
        self._told = 0

    def allows(self, step: int) -> bool:
        """Whether the update of this step may be made.

        Raises:
            NonFiniteError: It may not, and the recipe says stop; or too many were skipped.
        """
        if self._scaler is not None:
            return True  # the gradient scaler skips by itself; `scaled_step` counts
        gradients = [
            parameter.grad
            for group in self._optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        self._look_at(gradients)
        if not self._read_now:
            self._since_bad.add_(self._found)
            self._last_step = step
            return True
        if not self._found.item():
            self.skipped_in_a_row = 0
            return True
        if not self._skips:
            raise _not_finite(step)
        self._found.zero_()
        self._skip(step)
        return False

    def _look_at(self, gradients: list[torch.Tensor]) -> None:
        """Raises the flag if one is not finite; nothing is changed, as the scale is 1."""
        if self._are_plain:
            try:
                _raise_flag(gradients, self._found, self._one)
                return
            except RuntimeError:
                self._are_plain = False
        numbers = [_numbers(gradient) for gradient in gradients]
        _raise_flag(numbers, self._found, self._one)

    def scaled_step(self, step: int) -> None:
        """fp16: the scaler unscales, skips on overflow and adapts."""
        scaler = self._scaler
        before = scaler.get_scale()
        scaler.step(self._optimizer)
        scaler.update()
        if scaler.get_scale() < before:
            self._skip(step)
        else:
            self.skipped_in_a_row = 0

    def _skip(self, step: int) -> None:
        self.skipped += 1
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row >= SKIPS_IN_A_ROW:
            raise NonFiniteError(
                f"step {step}: the gradients of {SKIPS_IN_A_ROW} steps in a row were not finite; "
                "lower optimizer.lr, or set train.clip_grad_norm"
            )

    def news(self) -> str | None:
        """What was skipped since this was asked last; not under fp16, which skips while it finds its scale."""
        skipped, self._told = self.skipped - self._told, self.skipped
        if not skipped or self._scaler is not None:
            return None
        return f"{skipped} update{'s' * (skipped > 1)} skipped: gradients were not finite ({self.skipped} so far)"

    def check(self) -> None:
        """Before anything is kept: raises if a step since the start was bad.

        Raises:
            NonFiniteError: Names the first bad step.
        """
        if not self._read_now and (steps := int(self._since_bad)):
            raise _not_finite(self._last_step - steps + 1)


def _numbers(gradient: torch.Tensor) -> torch.Tensor:
    """What a gradient holds, dense and real."""
    if gradient.layout is torch.sparse_coo:
        gradient = gradient.coalesce().values()
    elif gradient.layout is not torch.strided:
        gradient = gradient.values()
    gradient = gradient.contiguous()  # torch's kernel writes to it, and an expanded one overlaps itself
    return torch.view_as_real(gradient.resolve_conj()) if gradient.is_complex() else gradient


def _not_finite(step: int) -> NonFiniteError:
    return NonFiniteError(
        f"step {step}: a gradient is not finite (NaN or infinity), and the update was not kept; lower optimizer.lr, "
        "set train.clip_grad_norm, look at the batch with --debug, or say train.non_finite: skip"
    )
