"""By which number the trials of a sweep are compared, and what it was in a run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.errors import LauncherError, UsageError
from launcher.recipe.build import Builder
from launcher.recipe.caller import setting
from launcher.recipe.component import Component
from launcher.recipe.line_keys import LINE_KEYS
from launcher.recipe.schema import Recipe
from launcher.runs.direction import MODES, bare, direction, question
from launcher.runs.metrics import METRICS_FILE, read_evaluations
from launcher.text import hint

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
        """A number that is the smaller, the better the value is; what is not a finite number comes last."""
        return math.inf if value is None or not math.isfinite(value) else value if self.mode == "min" else -value

    def values(self, run: Path) -> Iterator[tuple[int, float]]:
        """Each evaluation of a run, oldest first: the step, and the number; NaN where it is none."""
        for line in read_evaluations(run / METRICS_FILE, "validation"):
            if line.get("name", "") == self.of and self.key in line:
                yield int(line.get("step", 0)), _number(line[self.key])

    def missing_in(self, run: Path) -> str | None:
        """What the run's evaluations give in place of it; None where one of them gives it as a number, or as NaN."""
        lines = [line for line in read_evaluations(run / METRICS_FILE, "validation") if line.get("name", "") == self.of]
        if any(_is_number(line.get(self.key)) for line in lines):
            return None
        if any(self.key in line for line in lines):
            return "a list, and only one number can be compared; average it (average: macro)"
        numbers = [key for line in lines[-1:] for key in line if key == "loss" or key not in LINE_KEYS]
        keys = [key for key in numbers if _is_number(lines[-1][key])]
        return f"none; there {'are' if len(keys) > 1 else 'is'} {', '.join(keys) or 'no number'}"

    def best_until(self, run: Path, step: int | None = None) -> tuple[int, float] | None:
        """The best evaluation of a run, none after a step counted: a function of the run's own curve alone.

        Returns:
            Its step and value, NaN where no evaluation gave a number; None where there was no evaluation.
        """
        seen = [(at, value) for at, value in self.values(run) if step is None or at <= step]
        return min(seen, key=lambda entry: (self.rank(entry[1]), entry[0]), default=None)


def metric_of(recipe: Recipe, text: str | None, builder: Builder) -> Metric:
    """The metric that was asked for, or the recipe's `evaluate.best`, or the loss.

    Args:
        recipe: What is to be trained.
        text: `validation/accuracy:max`, `validation/clean/accuracy`, `accuracy`.
        builder: The recipe's, for what metrics say of themselves.

    Raises:
        UsageError: It is none, no validation set of the recipe has it, or nothing tells whether more of it is better.
    """
    sets, best = _sets(recipe), recipe.evaluate.best
    decides = (best.of if best else None) or sets[0]
    if text is None:
        metric = Metric(best.metric, best.mode, decides) if best else Metric("loss", "min", decides)
        check_metric(metric, recipe, "evaluate.best")
        return metric
    key, mode, of = _parsed(text, sets)
    if fault := _fault(key, of or decides, recipe):
        raise UsageError(f"{setting('metric', text)}: {fault}")
    known = mode or direction(key, (best.metric, best.mode) if best else None, _modes(key, recipe, builder))
    if known is None:
        raise UsageError(question(setting("metric", text), text))
    return Metric(key, known, of or decides)


def check_metric(metric: Metric, recipe: Recipe, place: str) -> None:
    """Looks whether another point of a space has the metric by which points are compared.

    Raises:
        UsageError: It does not.
    """
    if recipe.data.validation is None or metric.of not in _sets(recipe):
        fault = "there is no such validation set"
    elif (fault := _fault(metric.key, metric.of, recipe) or "") == "":
        return
    raise UsageError(f"{place}: trials are compared by {metric.name}; {fault}")


def _parsed(text: str, sets: Sequence[str]) -> tuple[str, str, str]:
    """The key, the mode and the set of `validation/clean/accuracy:max`; what is not said is empty."""
    name, colon, mode = text.partition(":")
    places = name.split("/")
    if not all(places) or (colon and mode not in MODES):
        raise UsageError(f"{setting('metric', text)}: is not a metric; {_FORM}")
    if places[0] in ("train", "test"):
        raise UsageError(f"{setting('metric', text)}: '{places[0]}' must not choose between trials; {_FORM}")
    if places[0] == "validation":
        places = places[1:]
    of = places.pop(0) if len(places) > 1 and places[0] in sets else ""
    if not places:
        raise UsageError(f"{setting('metric', text)}: is not a metric; {_FORM}")
    return "/".join(places), mode, of


def _number(value: Any) -> float:
    return float(value) if _is_number(value) else math.nan


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _sets(recipe: Recipe) -> list[str]:
    """The names of the validation sets; an unnamed one's is empty."""
    stated = recipe.data.validation
    if stated is None:
        raise UsageError(
            "data.validation: trials are compared by it, and the recipe has none; write 'validation: 10% of train'"
        )
    return list(stated) if isinstance(stated, dict) else [""]


def _component(key: str, recipe: Recipe) -> tuple[str, Component | None]:
    """The metric of the recipe that gives a number, or the collection that it is one of."""
    names = (bare(key), bare(key).partition("/")[0])
    return next(
        ((name, recipe.evaluate.metrics[name]) for name in names if name in recipe.evaluate.metrics), ("", None)
    )


def _fault(key: str, of: str, recipe: Recipe) -> str | None:
    """Why no evaluation of this recipe gives such a number, as far as that is known before one is made."""
    metrics = recipe.evaluate.metrics
    _, component = _component(key, recipe)
    is_there = bare(key) == key or getattr(recipe.train, key.partition("/")[0]) is not None
    if component is not None and is_there:
        return _no_number(of, component)
    is_open = recipe.train.step is not None or recipe.evaluate.after is not None
    if is_there and (bare(key) == "loss" or is_open):
        return None
    listed = ", ".join(f"validation/{name}" for name in ("loss", *metrics))
    rest = f"there are {listed}; or add it under evaluate.metrics"
    return f"no validation set has it{hint(key, ('loss', *metrics), rest)}"


def _no_number(of: str, component: Component) -> str | None:
    """Why a metric of the recipe does not give one number on this set."""
    sets = component.options.get("_sets_")
    if sets is not None and of not in sets:
        return f"it is measured on {', '.join(sets)}, and trials are compared by '{of}'; write validation/SET/METRIC"
    if "average" in component.kwargs and component.kwargs["average"] in (None, "none"):
        return "it gives a list, and only one number can be compared; average it (average: macro)"
    return None


def _modes(key: str, recipe: Recipe, builder: Builder) -> Mapping[str, str]:
    """What a metric's class says of more or less; the metric is made where its class alone does not tell."""
    name, component = _component(key, recipe)
    if component is None:
        return {}
    with suppress(LauncherError):
        is_more = getattr(builder.resolve(component), "higher_is_better", None)
        if isinstance(is_more, bool):
            return {name: "max" if is_more else "min"}
        from launcher.evaluation.metrics import modes_of  # with torchmetrics

        return modes_of(name, builder.build(component))
    return {}
