"""Which evaluation is the best, and how long none has been better, against a look back over all of them."""

from __future__ import annotations

import json
import math
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from launcher.errors import LauncherError
from launcher.evaluation.best import BestTracker, deciding_set, value_of
from launcher.recipe import schema

NUMBERS = st.integers(-4, 4).map(float) | st.floats() | st.just(math.nan)
MODES = st.sampled_from(["min", "max"])


def best_by_looking_back(mode: str, values: list[float]) -> int | None:
    """The first of the best values that are finite."""
    sign = 1 if mode == "max" else -1
    numbers = [(sign * value, -place) for place, value in enumerate(values) if math.isfinite(value)]
    return -max(numbers)[1] if numbers else None


@given(MODES, st.lists(NUMBERS, max_size=12))
def test_the_best_is_the_first_of_the_best_numbers(mode: Any, values: list[float]) -> None:
    tracker = BestTracker(schema.Best(metric="it", mode=mode))
    for place, value in enumerate(values):
        before = best_by_looking_back(mode, values[:place])
        best = best_by_looking_back(mode, values[: place + 1])
        assert tracker.see(place, value) == (best != before)
        assert tracker.step == best
        assert tracker.value == (None if best is None else values[best])
        assert tracker.since == (place + 1 if best is None else place - best)


def waits_by_looking_back(mode: str, values: list[float], delta: float) -> int:
    """How many evaluations ago one was better, by more than `delta`, than the one that was so before it."""
    better = [place for place, value in enumerate(values) if not math.isnan(value)][:1]
    for place in range(better[0] + 1 if better else len(values), len(values)):
        gain = values[place] - values[better[-1]]
        if (gain if mode == "max" else -gain) > delta:
            better.append(place)
    return len(values) - 1 - better[-1] if better else len(values)


@given(MODES, st.lists(st.integers(-40, 40) | st.just(math.nan), max_size=16), st.integers(0, 9), st.integers(1, 4))
def test_patience_counts_from_the_last_gain_that_was_large_enough(
    mode: Any, values: list[float], delta: int, patience: int
) -> None:
    early_stop = schema.EarlyStop(patience=patience, min_delta=float(delta))
    tracker = BestTracker(schema.Best(metric="it", mode=mode), early_stop)
    for place, value in enumerate(values):
        tracker.see(place, value)
        assert tracker.since == waits_by_looking_back(mode, values[: place + 1], delta)
        assert tracker.is_patient == (tracker.since < patience)


@given(MODES, st.lists(NUMBERS, min_size=1, max_size=12), st.integers(0, 11))
def test_a_stop_between_two_evaluations_changes_nothing(mode: Any, values: list[float], stop: int) -> None:
    best, early_stop = schema.Best(metric="it", mode=mode), schema.EarlyStop(patience=2, min_delta=0.5)
    straight, stopped = BestTracker(best, early_stop), BestTracker(best, early_stop)
    for place, value in enumerate(values):
        if place == stop:
            after = BestTracker(best, early_stop)
            after.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
            stopped = after
        assert straight.see(place, value) == stopped.see(place, value)
        assert repr(straight.state_dict()) == repr(stopped.state_dict())


@pytest.mark.parametrize(
    ("mode", "values", "bests", "since"),
    [
        ("max", [0.1, 0.3, 0.2, math.nan, 0.3], [0, 1], [0, 0, 1, 2, 3]),
        ("min", [math.nan, 0.9, math.inf, -math.inf], [1], [1, 0, 1, 2]),
        ("max", [math.inf, 0.9, -math.inf, 1.0], [1, 3], [1, 0, 1, 0]),
        # gains that are each too small add up: measured from the last that was large enough
        ("max", [0.50, 0.51, 0.52, 0.53, 0.54, 0.55], [0, 1, 2, 3, 4, 5], [0, 1, 2, 0, 1, 2]),
        ("min", [0.50, 0.49, 0.48, 0.485, 0.47], [0, 1, 2, 4], [0, 1, 2, 3, 0]),
    ],
)
def test_the_best_and_when_to_stop(mode: Any, values: list[float], bests: list[int], since: list[int]) -> None:
    tracker = BestTracker(schema.Best(metric="it", mode=mode), schema.EarlyStop(patience=9, min_delta=0.025))
    found, waited = [], []
    for step, value in enumerate(values):
        if tracker.see(step, value):
            found.append(step)
        waited.append(tracker.since)
    assert (found, tracker.step, waited) == (bests, bests[-1], since)


def test_what_another_metric_found_best_is_forgotten() -> None:
    kept = BestTracker(schema.Best(metric="loss", mode="min"), step=4, value=0.5, reference=0.5, since=1).state_dict()
    for other in (
        schema.Best(metric="accuracy", mode="min"),
        schema.Best(metric="loss", mode="max"),
        schema.Best(metric="loss", mode="min", of="near"),
    ):
        tracker = BestTracker(other)
        tracker.load_state_dict(kept)
        assert (tracker.step, tracker.value, tracker.since) == (None, None, 0)


def test_without_a_metric_nothing_is_the_best() -> None:
    tracker = BestTracker(None)
    assert not any(tracker.see(step, 1.0 / (step + 1)) for step in range(3))
    assert tracker.step is None
    assert tracker.is_patient


def test_the_set_and_the_number_that_decide() -> None:
    said, unsaid = schema.Best(metric="it", mode="min", of="far"), schema.Best(metric="it", mode="min")
    assert deciding_set(said, ["near", "far"]) == "far"
    assert deciding_set(unsaid, ["near", "far"]) == deciding_set(None, ["near", "far"]) == "near"
    assert deciding_set(None, []) is None
    assert value_of(unsaid, {"it": 2}) == 2.0
    with pytest.raises(LauncherError, match=r"'it' gives a list, .* average it"):
        value_of(unsaid, {"it": [1.0, 2.0]})
    with pytest.raises(LauncherError, match=r"'it' gives several numbers; name one of: loss, it/a, it/b"):
        value_of(unsaid, {"step": 3, "loss": 1.0, "it/a": 1.0, "it/b": 2.0})
