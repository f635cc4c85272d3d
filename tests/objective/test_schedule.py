"""The learning rate by step: that of torch's own scheduler in a plain loop, behind a linear ramp."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch.optim import lr_scheduler

from launcher.objective.schedule import Schedule
from launcher.recipe.schema import Best

RATES = (0.1, 0.003)  # of two groups
SCHEDULERS: dict[str, Callable[[Any], Any] | None] = {
    "none": None,
    "cosine": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, T_max=9, eta_min=1e-4),
    "steps": lambda optimizer: lr_scheduler.StepLR(optimizer, step_size=3, gamma=0.5),
    "milestones": lambda optimizer: lr_scheduler.MultiStepLR(optimizer, milestones=[2, 7], gamma=0.1),
    "exponential": lambda optimizer: lr_scheduler.ExponentialLR(optimizer, gamma=0.9),
    "restarts": lambda optimizer: lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=4),
    "function": lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step)),
    "chained": lambda optimizer: lr_scheduler.SequentialLR(
        optimizer,
        [lr_scheduler.ConstantLR(optimizer, 0.5, 3), lr_scheduler.PolynomialLR(optimizer, 6)],
        milestones=[4],
    ),
}
pytestmark = pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*", "ignore:The epoch parameter")


def optimizer_of(rates: Sequence[Any] = RATES) -> torch.optim.Optimizer:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates]
    return torch.optim.SGD(groups, lr=1.0)


def rates_of(optimizer: torch.optim.Optimizer) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]


def by_torch(name: str, warmup: int, every: int, steps: int) -> list[list[float]]:
    """The rates of each step: a ramp by hand, then torch's loop as its documentation has it."""
    optimizer, made = optimizer_of(), SCHEDULERS[name]
    scheduler = made(optimizer) if made is not None else None
    full = rates_of(optimizer)
    rates = [[rate * (step + 1) / (warmup + 1) for rate in full] for step in range(warmup)]
    for step in range(steps - warmup):
        rates.append(rates_of(optimizer))
        optimizer.step()
        if scheduler is not None and (step + 1) % every == 0:
            scheduler.step()
    return rates[:steps]


def ours(name: str, warmup: int, every: int, rates: Sequence[Any] = RATES) -> Schedule:
    optimizer, made = optimizer_of(rates), SCHEDULERS[name]
    return Schedule(optimizer, made(optimizer) if made is not None else None, warmup, every)


@pytest.mark.parametrize("name", SCHEDULERS)
@given(warmup=st.integers(0, 6), every=st.integers(1, 4))
def test_each_step_has_the_rate_of_torchs_own_loop_behind_the_ramp(name: str, warmup: int, every: int) -> None:
    schedule, found = ours(name, warmup, every), []
    for step in range(1, 26):
        found.append(rates_of(schedule.optimizer))
        assert schedule.rate == found[-1][0]
        schedule.optimizer.step()
        schedule.advance(step)
    expected = by_torch(name, warmup, every, 25)
    assert found == [pytest.approx(rates, rel=1e-12) for rates in expected]


@pytest.mark.parametrize("name", SCHEDULERS)
@given(warmup=st.integers(0, 6), every=st.integers(1, 4), start=st.integers(0, 20))
def test_a_schedule_that_is_gone_through_again_stands_where_it_stood(
    name: str, warmup: int, every: int, start: int
) -> None:
    schedule, found = ours(name, warmup, every), []
    schedule.replay(start)
    for step in range(start + 1, 26):
        found.append(rates_of(schedule.optimizer))
        schedule.optimizer.step()
        schedule.advance(step)
    assert found == [pytest.approx(rates, rel=1e-12) for rates in by_torch(name, warmup, every, 25)[start:]]


@pytest.mark.parametrize("warmup", [1, 2, 5])
def test_the_ramp_is_the_one_that_torchs_linear_and_sequential_schedulers_make(warmup: int) -> None:
    optimizer = optimizer_of()
    ramp = lr_scheduler.LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
    cosine = lr_scheduler.CosineAnnealingLR(optimizer, T_max=9, eta_min=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own two call each other in a way that it warns of
        both = lr_scheduler.SequentialLR(optimizer, [ramp, cosine], milestones=[warmup])
        schedule = ours("cosine", warmup, 1)
        for step in range(1, warmup + 10):
            assert rates_of(schedule.optimizer) == pytest.approx(rates_of(optimizer), rel=1e-9)
            for one in (optimizer, schedule.optimizer):
                one.step()
            both.step()
            schedule.advance(step)


def test_a_rate_that_is_a_tensor_is_written_in_place() -> None:
    tensors = [torch.tensor(rate, dtype=torch.float64) for rate in RATES]
    schedule = ours("cosine", 3, 1, tensors)
    for step, expected in enumerate(by_torch("cosine", 3, 1, 12), 1):
        assert [float(one) for one in tensors] == pytest.approx(expected, rel=1e-9)
        schedule.optimizer.step()
        schedule.advance(step)


@given(
    values=st.lists(st.floats(0, 1), min_size=1, max_size=12),
    warmup=st.integers(0, 3),
    mode=st.sampled_from(["min", "max"]),
)
def test_a_plateau_steps_with_evaluations_alone(values: list[float], warmup: int, mode: Any) -> None:
    expected, optimizer = optimizer_of(), optimizer_of()
    torchs, own = (
        lr_scheduler.ReduceLROnPlateau(one, mode=mode, factor=0.5, patience=1) for one in (expected, optimizer)
    )
    best = Best(metric="loss", mode=mode)
    schedule = Schedule(optimizer, own, warmup, monitor=best)
    for step in range(1, warmup + 1):
        schedule.advance(step)
    for step, value in enumerate(values, warmup + 1):
        schedule.advance(step)  # changes nothing
        schedule.evaluated(dict.fromkeys([best], value).__getitem__)
        torchs.step(value)
        assert rates_of(optimizer) == rates_of(expected)


def test_the_plan_says_what_a_schedule_is() -> None:
    def described(scheduler: Callable[[Any], Any] | None, **options: Any) -> str:
        optimizer = optimizer_of()
        made = scheduler(optimizer) if scheduler is not None else None
        return Schedule(optimizer, made, last_step=100, **options).describe()

    assert described(None) == ""
    assert described(None, warmup_steps=1) == "a warm-up of 1 step, then constant"
    assert described(SCHEDULERS["cosine"]) == "CosineAnnealingLR, over 100 steps"
    longer = described(SCHEDULERS["steps"], warmup_steps=10, every_steps=5)
    assert longer == "StepLR, over 90 steps, moves on every 5 steps, after a warm-up of 10 steps"
    plateau = described(lr_scheduler.ReduceLROnPlateau, monitor=Best(metric="accuracy", mode="max"))
    assert plateau == "ReduceLROnPlateau, follows accuracy (max) at each evaluation"
