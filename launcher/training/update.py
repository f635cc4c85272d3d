"""5: training. How a step's gradients become new weights: one object, chosen when the run is built."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from launcher.model.sharding import Shards
from launcher.objective.several import Optimizers, each
from launcher.training import fast_step
from launcher.training.freezing import Freezing
from launcher.training.nonfinite import NonFiniteGuard
from launcher.training.sharded_gradients import Clipping, ShardedGradients


class Update(Protocol):
    """What surrounds a step's update, in whatever way it is made."""

    @property
    def scaler(self) -> Any:
        """Scales losses and gradients under fp16, else None."""
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


_NO_CLIPPING = Clipping()


class OneUpdate:
    """One update a step, of one optimizer, or of several that step one after the other.

    Args:
        optimizer: Not prepared by Accelerate: it is stepped here.
        device: Where the gradients are.
        scaler: Scales losses and gradients under fp16, else None.
        clipping: Keeps gradients small.
        skip_non_finite: Whether a step without finite gradients is skipped; else it ends the run.
        updated: Called after each update that was made, with the steps completed before it.
        freezing: What is frozen until a step, or None.
        shards: What this process holds of the parameters, where they are sharded.
        seeds: Has every rank draw the same in the optimizer's step, where it may draw and there are several.
    """

    def __init__(
        self,
        optimizer: Optimizers,
        device: torch.device,
        *,
        scaler: Any = None,
        clipping: Clipping = _NO_CLIPPING,
        skip_non_finite: bool = False,
        updated: Callable[[int], None] | None = None,
        freezing: Freezing | None = None,
        shards: Shards | None = None,
        seeds: Callable[[int], None] | None = None,
    ):
        self.optimizer, self.scaler, self.freezing, self.seeds = optimizer, scaler, freezing, seeds
        self.sharded = None if shards is None else ShardedGradients(shards, clipping)
        self.guard = NonFiniteGuard(
            optimizer, scaler, device, skip_non_finite, must_know=updated is not None, sharded=self.sharded
        )
        self._fast = [fast_step.FastStep(one) for one in each(optimizer).values()]
        self._clipping = None if clipping == _NO_CLIPPING else clipping
        self.updated = updated

    @property
    def parameters(self) -> list[torch.Tensor]:
        """All that the optimizer trains; a step function may have added some."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def __call__(self, step: int) -> torch.Tensor | None:
        """Clips, checks, steps the optimizers, clears the gradients.

        Args:
            step: Optimizer steps completed before this one.

        Returns:
            The norm of all gradients before clipping, where they are clipped.

        Raises:
            NonFiniteError: A gradient is not finite, and the recipe says stop.
        """
        if self.freezing is not None:
            self.freezing.drop(step)
        if self.sharded is not None:
            self.sharded.collect()
        fast_step.lay_out_gradients(self.optimizer)
        if self.scaler is not None:
            norm, is_updated = self._scaled(step)
        else:
            is_updated = self.guard.allows(step)  # before clipping, which makes a number of an infinite entry
            norm = self._clip()
            if self.seeds is not None:
                self.seeds(step)
            for fast in self._fast if is_updated else ():
                fast.step()
        if is_updated and self.updated is not None:
            self.updated(step)
        self.clear_gradients()
        return norm

    def _clip(self) -> torch.Tensor | None:
        """Clips; the norm before, where that is what is kept small."""
        if self._clipping is None:
            return None
        return self._clipping(self.parameters) if self.sharded is None else self.sharded.clip()

    def _scaled(self, step: int) -> tuple[torch.Tensor | None, bool]:
        """The same under fp16: the scaler unscales, and skips by itself."""
        self.scaler.unscale_(self.optimizer)
        norm = self._clipping(self.parameters) if self._clipping is not None else None
        return norm, self.guard.scaled_step(step)

    def ready(self, step: int, *, checks: bool = True) -> torch.Tensor | None:
        """For an optimizer that calls the loss itself: what is done to gradients before it reads them.

        Args:
            step: Optimizer steps completed before this one.
            checks: Whether they have to be finite: at the weights as they are, not where the optimizer tries others.
        """
        if self.freezing is not None:
            self.freezing.drop(step)
        if checks:
            self.guard.allows(step)
        return self._clipping(self.parameters) if self._clipping is not None else None

    def made(self, step: int) -> None:
        """After such an optimizer's step."""
        if self.updated is not None:
            self.updated(step)
        self.clear_gradients()

    def clear_gradients(self) -> None:
        """Forgets the gradients and their memory."""
        for fast in self._fast:
            fast.clear_gradients()
        if self.sharded is not None:
            self.sharded.clear()

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
