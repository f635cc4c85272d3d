"""Lengths and periods as people say them: `1 epoch`, `500 steps`, `10000 samples`, `10 minutes`, `5%`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

Unit = Literal["epochs", "steps", "samples", "seconds", "percent", "batches"]

_SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}
_PATTERN = re.compile(r"(\d+(?:\.\d+)?)\s*(%|[a-z]+)")
_WORDS: dict[str, tuple[Unit, float]] = {
    "epoch": ("epochs", 1),
    "step": ("steps", 1),
    "sample": ("samples", 1),
    "batch": ("batches", 1),
    "%": ("percent", 1),
    **{word: ("seconds", factor) for word, factor in _SECONDS.items()},
}


def duration_pattern(*units: Unit) -> str:
    """A regular expression, as JSON Schema has them, of these units' words; a reference may replace them."""
    words = [
        re.escape(word) if word == "%" else f"{word}(es|s)?" for word, (unit, _) in _WORDS.items() if unit in units
    ]
    return rf"^\s*\d+(\.\d+)?\s*({'|'.join(words)})\s*$|\$\{{"


@dataclass(frozen=True)
class Duration:
    """An amount of training, of time, or of batches.

    Attributes:
        amount: How many units; time is held in seconds whatever its unit was.
        unit: What is counted.
        text: As the user said it.
    """

    amount: float
    unit: Unit
    text: str

    @staticmethod
    def parse(text: str) -> Duration | None:
        """Reads `1 epoch`, `500 steps`, `64 samples`, `1.5 hours`, `5%`, `50 batches`; anything else gives None."""
        match = _PATTERN.fullmatch(text.strip())
        if match is None:
            return None
        word = match[2] if match[2] in _WORDS else match[2].removesuffix("es" if match[2] == "batches" else "s")
        if word not in _WORDS:
            return None
        unit, factor = _WORDS[word]
        amount = float(match[1]) * factor
        whole = unit in ("steps", "samples", "batches")
        if amount <= 0 or math.isinf(amount) or (whole and amount != int(amount)):
            return None
        return Duration(amount, unit, text.strip())

    def __str__(self) -> str:
        return self.text

    def in_steps(self, steps_per_epoch: int, total_steps: int | None = None, samples_per_epoch: int = 0) -> int:
        """This many optimizer steps, at least one.

        Args:
            steps_per_epoch: Optimizer steps of one pass over the training data.
            total_steps: The run's length, for a percentage of it.
            samples_per_epoch: Samples that these steps read, for a number of them.

        Raises:
            ValueError: Time has no number of steps, and a percentage needs a run_length.
        """
        if self.unit == "steps":
            return int(self.amount)
        if self.unit == "epochs":
            return max(1, round(self.amount * steps_per_epoch))
        if self.unit == "samples" and samples_per_epoch:
            return max(1, round(self.amount * steps_per_epoch / samples_per_epoch))
        if self.unit == "percent" and total_steps is not None:
            return max(1, round(self.amount / 100 * total_steps))
        raise ValueError(f"'{self.text}' is not a number of steps in this run")


def share_of_train(text: str) -> Duration | None:
    """How much `10% of train` is; None where a text says nothing of the kind."""
    share, _, rest = text.partition(" of ")
    duration = Duration.parse(share)
    fits = rest.strip() == "train" and duration is not None and duration.unit == "percent" and duration.amount < 100
    return duration if fits else None
