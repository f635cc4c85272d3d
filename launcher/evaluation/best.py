"""Which evaluation was the best, and when it is time to stop."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from launcher.errors import LauncherError
from launcher.recipe import schema
from launcher.recipe.line_keys import LINE_KEYS
from launcher.text import counted


def value_of(best: schema.Best, scores: Mapping[str, Any]) -> float:
    """The metric that decides, among an evaluation's scores or in its line.

    Raises:
        LauncherError: It is not one number.
    """
    if best.metric not in scores and best.metric == "loss":
        known = ", ".join(name for name in scores if name not in LINE_KEYS)
        raise LauncherError(f"evaluate.best.metric: no loss is given in eval mode; name one of: {known}")
    if best.metric not in scores:
        names = ", ".join(name for name in scores if name == "loss" or name not in LINE_KEYS)
        raise LauncherError(f"evaluate.best.metric: '{best.metric}' gives several numbers; name one of: {names}")
    value = scores[best.metric]
    if not isinstance(value, int | float):
        raise LauncherError(
            f"evaluate.best.metric: '{best.metric}' gives a list, and only one number can be the best; average it "
            "(average: macro)"
        )
    return float(value)


def deciding_set(best: schema.Best | None, names: Iterable[str]) -> str | None:
    """The validation set whose metric decides: the one that is named, else the first; None where there is none."""
    return best.of if best is not None and best.of is not None else next(iter(names), None)


@dataclass
class BestTracker:
    """Keeps the best evaluation, and says when it is time to stop.

    Attributes:
        best: The recipe's `evaluate.best`.
        early_stop: The recipe's `evaluate.early_stop`.
        value: The best value so far, None before the first that is a number.
        step: When it was.
        since: Evaluations since the last improvement of more than `min_delta`.
        reference: What such an improvement is measured from: many that are too small must not add up to none.
    """

    best: schema.Best | None
    early_stop: schema.EarlyStop | None = None
    value: float | None = None
    step: int | None = None
    since: int = 0
    reference: float | None = None

    def see(self, step: int, value: float) -> bool:
        """Takes an evaluation's value in; whether it is the best so far. What is not finite never is."""
        delta = self.early_stop.min_delta if self.early_stop else 0.0
        if self._improves(value, self.reference, delta):
            self.reference, self.since = value, 0
        else:
            self.since += 1
        if is_best := self._improves(value, self.value):
            self.value, self.step = value, step
        return is_best

    def _improves(self, value: float, on: float | None, delta: float = 0.0) -> bool:
        if self.best is None or not math.isfinite(value):
            return False
        if on is None:
            return True
        return value > on + delta if self.best.mode == "max" else value < on - delta

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        kept = {"value": self.value, "step": self.step, "since": self.since, "reference": self.reference}
        return {**kept, "by": self._by}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Takes up what a checkpoint kept, if it was judged by the same metric."""
        if state["by"] == self._by:
            self.value, self.step = state["value"], state["step"]
            self.since, self.reference = state["since"], state["reference"]

    @property
    def _by(self) -> list[Any] | None:
        return [self.best.metric, self.best.mode, self.best.of] if self.best is not None else None

    @property
    def is_patient(self) -> bool:
        """Whether training may continue."""
        return self.early_stop is None or self.since < self.early_stop.patience

    @property
    def in_words(self) -> str:
        """Why training may not continue."""
        assert self.best is not None
        best = (
            f"its best, {self.value:.4g}, is of step {self.step:,}"
            if self.value is not None
            else "it was never a number"
        )
        return f"{self.best.metric} has not improved for {counted(self.since, 'evaluation')}; {best}"
