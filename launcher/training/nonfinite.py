"""5: training. Keeps gradients that are not finite out of everything that is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from launcher import internals
from launcher.errors import LauncherError
from launcher.objective.several import Optimizers, each
from launcher.training.sharded_gradients import values_of

if TYPE_CHECKING:
    from launcher.training.sharded_gradients import ShardedGradients

_raise_flag = internals.finite_check()
SKIPS_IN_A_ROW = 20  # after so many updates without a finite gradient a run is not training any more
_OF_THE_DEVICE = (torch.AcceleratorError, torch.OutOfMemoryError)  # it has failed: no kernel has refused anything


class NonFiniteError(LauncherError):
    """A step's gradients are not finite."""


class NonFiniteGuard:
    """Keeps gradients that are not finite out of everything that is kept.

    One flag a step (6 µs for any optimizer). On a CPU it is read before the update. On a GPU reading would make the
    host wait. With `non_finite: stop` the flag stays up after the first bad step, and the device counts the steps
    since; where updates are skipped, a fused optimizer reads the flag itself, and the device counts the updates that
    it has left out. The counts are read with the next line of metrics, and before anything is saved or evaluated.

    Args:
        optimizer: Of whose parameters the gradients are.
        scaler: The gradient scaler under fp16, else None.
        device: Where the gradients are.
        skips: Whether a step without finite gradients is skipped; else it ends the run.
        must_know: Whether somebody has to know at once that an update was skipped.
        sharded: The gradients, where each process has some rows of them.
    """

    def __init__(
        self,
        optimizer: Optimizers,
        scaler: Any,
        device: torch.device,
        skips: bool,
        must_know: bool = False,
        sharded: ShardedGradients | None = None,
    ):
        self._sharded = sharded
        self._optimizer, self._scaler, self._skips = optimizer, scaler, skips or scaler is not None
        by_itself = all(map(_skips_by_itself, each(optimizer).values()))
        self._read_now = device.type == "cpu" or (self._skips and (must_know or not by_itself))
        self._one = torch.ones((), device=device, dtype=torch.float32)
        self._found = torch.zeros((), device=device, dtype=torch.float32)  # torch's kernel takes no other
        # bad steps: since the first one (it included), or those skipped; and those skipped in a row, now and at most
        self.counts = torch.zeros(3, device=device, dtype=torch.float32)
        self._last_step = -1
        self._are_plain = True  # until torch's kernel refuses some: sparse or complex ones, on a GPU bfloat16
        self._has_stepped = False
        self.skipped_in_a_row = 0
        self.skipped = 0
        self._told = 0
        if scaler is not None:
            for one in each(optimizer).values():
                one.register_step_post_hook(lambda *_: setattr(self, "_has_stepped", True))

    @property
    def is_read_later(self) -> bool:
        """Whether the device counts, and the host reads it with a line of metrics."""
        return not self._read_now

    def allows(self, step: int) -> bool:
        """Whether the update of this step may be made.

        Raises:
            NonFiniteError: It may not, and the recipe says stop; or too many were skipped.
        """
        if self._skips:
            self._found.zero_()
        if self._sharded is not None:
            self._look_at(self._sharded.gradients)
            self._sharded.agree(self._found)
        else:
            gradients = [
                parameter.grad
                for group in self._optimizer.param_groups
                for parameter in group["params"]
                if parameter.grad is not None
            ]
            self._look_at(gradients)
        if not self._read_now:
            self._count(self._found, step)
            if self._skips:
                for optimizer in each(self._optimizer).values():
                    optimizer.found_inf = self._found  # type: ignore[attr-defined]  # which its kernel looks at
            return True
        if not self._found.item():
            self.skipped_in_a_row = 0
            return True
        if not self._skips:
            raise _not_finite(step)
        self._skip(step)
        return False

    def _look_at(self, gradients: list[torch.Tensor]) -> None:
        """Raises the flag if one is not finite; nothing is changed, as the scale is 1."""
        if self._are_plain:
            try:
                _raise_flag(gradients, self._found, self._one)
                return
            except _OF_THE_DEVICE:
                raise
            except RuntimeError:
                self._are_plain = False
        self._look_by_norms([numbers for gradient in gradients if (numbers := _numbers(gradient)).numel()])

    def _look_by_norms(self, numbers: list[torch.Tensor]) -> None:
        """The same by norms, for which there is a kernel of every type on every device."""
        if not numbers:  # of which there is no largest
            return
        largest = nn.utils.get_total_norm(numbers, norm_type=float("inf"))
        self._found.masked_fill_(~torch.isfinite(largest), 1.0)

    def scaled_step(self, step: int) -> bool:
        """fp16: the scaler unscales, skips on overflow and adapts; gives whether the update was made, if that is known.

        Raises:
            NonFiniteError: Too many were skipped.
        """
        scaler = self._scaler
        self._has_stepped = False
        scaler.step(self._optimizer)
        if not self._read_now:
            self._count(internals.overflow(scaler, self._optimizer), step)
        elif internals.reads_overflow(self._optimizer):  # its step was called either way
            self._has_stepped = not internals.overflow(scaler, self._optimizer).item()
        scaler.update()
        if self._has_stepped or not self._read_now:
            self.skipped_in_a_row = 0
            return True
        self._skip(step)
        return False

    def _count(self, found: torch.Tensor, step: int) -> None:
        """On the device."""
        self._last_step = step
        bad, in_a_row, most = self.counts.unbind()
        bad.add_(found)
        if self._skips:
            in_a_row.add_(found).mul_(found)
            torch.maximum(most, in_a_row, out=most)

    def _skip(self, step: int) -> None:
        self.skipped += 1
        self.skipped_in_a_row += 1
        self._check_row(step, self.skipped_in_a_row)

    def _check_row(self, step: int, in_a_row: int) -> None:
        if in_a_row >= SKIPS_IN_A_ROW:
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

    def take(self, counts: list[float], last_step: int) -> None:
        """Learns what the device had counted after a step.

        Raises:
            NonFiniteError: Names the first bad step, or there were too many in a row.
        """
        bad, _, most = map(int, counts)
        if self._skips:
            self.skipped = bad
            self._check_row(last_step, most)
        elif bad:
            raise _not_finite(last_step - bad + 1)

    def check(self) -> None:
        """Before anything is kept: raises if a step since the start was bad.

        Raises:
            NonFiniteError: Names the first bad step.
        """
        if not self._read_now and self._last_step >= 0:
            self.take(self.counts.tolist(), self._last_step)


def _skips_by_itself(optimizer: Any) -> bool:
    """Whether its kernel looks at a flag, and leaves everything as it is where that is up.

    Fused SGD with momentum does not: what it leaves out in its first step is a momentum that is never written.
    """
    return internals.reads_overflow(optimizer) and not any(group.get("momentum") for group in optimizer.param_groups)


def _numbers(gradient: torch.Tensor) -> torch.Tensor:
    """What a gradient holds, dense and real."""
    gradient = values_of(gradient)
    return torch.view_as_real(gradient.resolve_conj()) if gradient.is_complex() else gradient


def _not_finite(step: int) -> NonFiniteError:
    return NonFiniteError(
        f"step {step}: a gradient is not finite (NaN or infinity), and the update was not kept; lower optimizer.lr, "
        "set train.clip_grad_norm, look at the batch with --debug, or set train.non_finite: skip"
    )
