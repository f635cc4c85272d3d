"""4: objective. Several losses that take turns in a step, each with an optimizer of its own: a GAN's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from launcher.objective.batch import BatchLayout
from launcher.objective.loss import Objective, Term, owner_of
from launcher.objective.reading import Reading


class TurnsObjective(Objective):
    """Step functions by name, each a mean over its own count; what is reported for the step is the sum of their losses.

    Args:
        steps: The functions, in the order in which they are called.
        layout: Unused by them, which get whole batches.
        count: What a batch counts for each of them; None where it is measured.
        every: In every which step each of them is called, by name: the fifth, the tenth, … for 5; in each without.

    Attributes:
        every: The same of all.
    """

    def __init__(
        self,
        steps: Mapping[str, Callable[..., Mapping[str, Any]]],
        layout: BatchLayout,
        count: Callable[[Any], float] | None = None,
        every: Mapping[str, int] | None = None,
    ):
        super().__init__([_term(name, step) for name, step in steps.items()], layout, count=count)
        self.turns = {name: Objective([], layout, step=step, count=count) for name, step in steps.items()}
        self.every = {name: (every or {}).get(name, 1) for name in steps}
        self.step = next(iter(steps.values()))  # whoever asks learns that the loss is the user's own
        self.moves_weights = True

    def evaluated_step(self, model: nn.Module, data: Any, at: Any) -> tuple[list[torch.Tensor], dict[str, Any]]:
        """The loss of each turn, and all that they give besides."""
        results = [turn.stepped(model, data, at, needs_loss=False) for turn in self.turns.values()]
        losses = [result["loss"] for result in results if "loss" in result]
        together = {key: value for result in results for key, value in result.items() if key != "loss"}
        return (losses if len(losses) == len(results) else []), together

    def wrapped_by(self, losses: Mapping[str, nn.Module]) -> Objective:
        """Itself: step functions are no modules that are trained."""
        return self

    def under(self, autocast: Callable[[], AbstractContextManager[Any]] | None) -> None:
        """Has each turn's step function run under autocast."""
        super().under(autocast)
        for turn in self.turns.values():
            turn.under(autocast)

    @property
    def modules(self) -> dict[str, nn.Module]:
        """None."""
        return {}

    @property
    def brought(self) -> dict[str, Any]:
        """The step functions and their count, by key."""
        functions: dict[str, Any] = {f"train.step.{name}": turn.step for name, turn in self.turns.items()}
        functions |= {"train.count": self.count} if self.count else {}
        return {key: owner_of(function) for key, function in (functions | self.others).items()}

    @property
    def readings(self) -> dict[str, Reading | None]:
        """What each turn's loss is a mean over."""
        return {f"train.step.{name}": turn.own for name, turn in self.turns.items()}

    def part(self, key: str) -> tuple[Objective, str]:
        """The turn of a key, as an objective of its own."""
        return self.turns[key.removeprefix("train.step.")], "train.step"

    def read(self, key: str, reading: Reading) -> None:
        """Takes up what a turn's loss is a mean over."""
        super().read(key, reading)
        self.turns[key.removeprefix("train.step.")].own = reading

    def cut(self, *, whole: bool) -> None:
        """Learns whether a step is one forward pass of each turn on one process."""
        super().cut(whole=whole)
        for turn in self.turns.values():
            turn.cut(whole=whole)

    def settle(self) -> None:
        """Before the first count."""
        super().settle()
        for turn in self.turns.values():
            turn.settle()

    def counts(self, batch: Any, samples: int) -> list[float]:
        """What a micro-batch contributes to each turn's count."""
        return [turn.counts(batch, samples)[0] for turn in self.turns.values()]

    def counted_in(self, batch: Any) -> list[Any]:
        """All of a batch, for each turn."""
        return [batch for _ in self.turns]

    def counted(self, batch: Any, samples: int) -> list[float]:
        """The same of any batch, on any device."""
        return [turn.counted(batch, samples)[0] for turn in self.turns.values()]

    def refuse_unforeseen(self, batch: Any, samples: int) -> None:
        """Of each turn."""
        for turn in self.turns.values():
            turn.refuse_unforeseen(batch, samples)

    def scales(self, local: Sequence[float], total: Sequence[float], world_size: int, samples: int) -> list[float]:
        """Factors that make each turn's value a part of the step's mean."""
        counted = zip(self.turns.values(), local, total, strict=True)
        return [turn.scales([own], [all_], world_size, samples)[0] for turn, own, all_ in counted]


def _term(name: str, step: Callable[..., Any]) -> Term:
    return Term(name, step, 1.0, None, place=f"train.step.{name}")
