"""4: objective. Several optimizers of one run, each with parameters of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer


class Several:
    """Several optimizers by name, for what is done to all of them: they step one after the other.

    Args:
        named: The optimizers, in the order in which they step.
    """

    def __init__(self, named: Mapping[str, Optimizer]):
        self.named = dict(named)
        if any(hasattr(optimizer, "train") and hasattr(optimizer, "eval") for optimizer in named.values()):
            self.train, self.eval = self._train, self._eval  # as a schedule-free one has, for those that have them

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all."""
        return [group for optimizer in self.named.values() for group in optimizer.param_groups]

    def step(self) -> None:
        """Steps each."""
        for optimizer in self.named.values():
            optimizer.step()

    def _train(self) -> None:
        for optimizer in self.named.values():
            getattr(optimizer, "train", str)()

    def _eval(self) -> None:
        for optimizer in self.named.values():
            getattr(optimizer, "eval", str)()


Optimizers = Optimizer | Several


def each(optimizer: Optimizers) -> dict[str, Optimizer]:
    """The optimizers by name; the only one has none."""
    return optimizer.named if isinstance(optimizer, Several) else {"": optimizer}
