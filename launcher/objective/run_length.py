"""4: objective. How long a run is, and where a step stands in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from launcher.recipe import schema
from launcher.recipe.build import SAMPLES
from launcher.recipe.duration import Duration


class At(NamedTuple):
    """Where a step stands in its run; a user's step function gets it.

    Attributes:
        step: Optimizer steps completed before this one.
        epoch: The pass over the data, from 0.
        fraction: How much of the run is done, 0 to 1; 0 where its length is a time.
    """

    step: int = 0
    epoch: int = 0
    fraction: float = 0.0


@dataclass(frozen=True)
class RunLength:
    """How long the run is.

    Attributes:
        steps_per_epoch: Optimizer steps of one pass over the data.
        total_steps: The run's length; None where it is a time.
        seconds: The run's length in time, else None.
        samples_per_epoch: Samples of one pass over the data.
    """

    steps_per_epoch: int
    total_steps: int | None
    seconds: float | None = None
    samples_per_epoch: int = 0

    @staticmethod
    def of(section: schema.Train, steps_per_epoch: int, samples_per_epoch: int) -> RunLength:
        """The length that the recipe's `train` states."""
        total = section.steps if section.epochs is None else section.epochs * steps_per_epoch
        return RunLength(steps_per_epoch, total, section.time.amount if section.time else None, samples_per_epoch)

    def steps_of(self, duration: Duration) -> int:
        """How many steps a duration is, at least one.

        Raises:
            ValueError: It is a time, or a share of a run without a number of steps.
        """
        return duration.in_steps(self.steps_per_epoch, self.total_steps, self.samples_per_epoch)

    @property
    def computed(self) -> dict[str, int]:
        """What a recipe may refer to: `train.steps_per_epoch`, and `train.steps` where it is known.

        Beside it, what durations are counted by.
        """
        steps = {} if self.total_steps is None else {"train.steps": self.total_steps}
        return {"train.steps_per_epoch": self.steps_per_epoch, **steps, SAMPLES: self.samples_per_epoch}

    @property
    def last(self) -> At:
        """Where the last step stands; the first where the run's length is a time."""
        return self.at(max(0, (self.total_steps or 1) - 1))

    def epoch(self, step: int) -> float:
        """Passes over the data completed after `step` steps."""
        return step / self.steps_per_epoch

    def at(self, step: int) -> At:
        """Where a step stands, for a user's step function."""
        return At(step, step // self.steps_per_epoch, step / self.total_steps if self.total_steps else 0.0)
