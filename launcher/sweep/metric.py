"""By which number the trials of a sweep are compared, and what it was in a run."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.errors import UsageError
from launcher.recipe.schema import Recipe
from launcher.runs.metrics import METRICS_FILE, read_evaluations
from launcher.text import hint

_LESS_IS_BETTER = re.compile("loss|error|perplexity|distance|^(m[as]p?e|rmse|wer|cer|fid|nll|bpc|bpb)")
_FORM = "write validation/METRIC:max or validation/METRIC:min"


@dataclass(frozen=True)
class Metric:
    """A number of an evaluation, and whether more or less of it is better.

    Attributes:
        key: As it stands in a line of `metrics.jsonl`, as `accuracy`.
        mode: `min` or `max`.
        of: The validation set's name; empty where there is but one.
    """

    key: str
    mode: str
    of: str = ""

    def __str__(self) -> str:
        return f"{self.name}:{self.mode}"

    @property
    def name(self) -> str:
        """As trackers call it: `validation/accuracy`, `validation/clean/accuracy`."""
        return "/".join(part for part in ("validation", self.of, self.key) if part)

    def rank(self, value: float | None) -> float:
        """A number that is the smaller, the better the value is; what is not a number comes last."""
        return math.inf if value is None or math.isnan(value) else value if self.mode == "min" else -value

    def values(self, run: Path) -> Iterator[tuple[int, float]]:
        """Each evaluation of a run, oldest first: the step, and the number; NaN where it is none."""
        for line in read_evaluations(run / METRICS_FILE, "validation"):
            if line.get("name", "") == self.of and self.key in line:
                yield int(line.get("step", 0)), _number(line[self.key])

    def best_until(self, run: Path, step: int | None = None) -> tuple[int, float] | None:
        """The best evaluation of a run, none after a step counted: a function of the run's own curve alone.

        Returns:
            Its step and value, NaN where no evaluation gave a number; None where there was no evaluation.
        """
        seen = [(at, value) for at, value in self.values(run) if step is None or at <= step]
        return min(seen, key=lambda entry: (self.rank(entry[1]), entry[0]), default=None)


def metric_of(recipe: Recipe, text: str | None = None) -> Metric:
    """The metric that was asked for, or the recipe's `evaluate.best`, or the loss.

    Args:
        recipe: What is to be trained.
        text: `validation/accuracy:max`, `validation/clean/accuracy`, `accuracy`.

    Raises:
        UsageError: It is none, or no validation set of the recipe has it.
    """
    sets, best = _sets(recipe), recipe.evaluate.best
    decides = (best.of if best else None) or sets[0]
    if text is None:
        return Metric(best.metric, best.mode, decides) if best else Metric("loss", "min", decides)
    key, mode, of = _parsed(text, sets)
    if text_fault := _fault(key, recipe):
        raise UsageError(f"--metric {text}: {text_fault}")
    if best and not mode and key == best.metric:
        mode = best.mode
    return Metric(key, mode or ("min" if _LESS_IS_BETTER.search(key.lower()) else "max"), of or decides)


def check_metric(metric: Metric, recipe: Recipe, place: str) -> None:
    """Looks whether another point of a space has the metric by which points are compared.

    Raises:
        UsageError: It does not.
    """
    if recipe.data.validation is None or metric.of not in _sets(recipe):
        fault = "has no such validation set"
    elif (fault := _fault(metric.key, recipe) or "") == "":
        return
    raise UsageError(f"{place}: trials are compared by {metric.name}; this one {fault}")


def _parsed(text: str, sets: Sequence[str]) -> tuple[str, str, str]:
    """The key, the mode and the set of `validation/clean/accuracy:max`; what is not said is empty."""
    name, colon, mode = text.partition(":")
    places = name.split("/")
    if not all(places) or (colon and mode not in ("min", "max")):
        raise UsageError(f"--metric {text}: is not a metric; {_FORM}")
    if places[0] in ("train", "test"):
        raise UsageError(f"--metric {text}: '{places[0]}' must not choose between trials; {_FORM}")
    if places[0] == "validation":
        places = places[1:]
    of = places.pop(0) if len(places) > 1 and places[0] in sets else ""
    if not places:
        raise UsageError(f"--metric {text}: is not a metric; {_FORM}")
    return "/".join(places), mode, of


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def _sets(recipe: Recipe) -> list[str]:
    """The names of the validation sets; an unnamed one's is empty."""
    stated = recipe.data.validation
    if stated is None:
        raise UsageError(
            "data.validation: trials are compared by it, and the recipe has none; write 'validation: 10% of train'"
        )
    return list(stated) if isinstance(stated, dict) else [""]


def _fault(key: str, recipe: Recipe) -> str | None:
    """Why no evaluation of this recipe gives such a number, as far as that is known before one is made."""
    known = ["loss", *recipe.evaluate.metrics]
    is_part = key.partition("/")[0] in recipe.evaluate.metrics  # of a collection, whose names are known when it is made
    if key in known or is_part or recipe.train.step is not None or recipe.evaluate.after is not None:
        return None
    listed = ", ".join(f"validation/{name}" for name in known)
    return f"no validation set has it{hint(key, known, f'there are {listed}; or add it under evaluate.metrics')}"
