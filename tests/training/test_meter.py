"""The numbers of metrics.jsonl are means over the ranks, steps and micro-batches, weighted by what each counts."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from places import TINY
from worlds import in_world

from launcher.device.device import open_device
from launcher.recipe.build import Builder
from launcher.recipe.load import load_recipe
from launcher.training.build import build_run_model, build_run_state, open_run_data
from launcher.training.meter import Meter
from launcher.training.step import StepResult
from launcher.training.steps import StepBatch
from launcher.world.world import World

STEPS = 40


@dataclass
class Part:
    """One micro-batch of one rank.

    Attributes:
        count: What it counts; nothing in a stand-in.
        loss: Its mean over what it counts.
        logged: What a step function logs of it.
    """

    count: float
    loss: float
    logged: float


def drawn(seed: int, size: int) -> list[list[list[Part]]]:
    """By step, rank and micro-batch: the same on every rank."""
    draw = random.Random(seed)
    several = [draw.randint(1, 3) for _ in range(STEPS)]

    def part() -> Part:
        return Part(draw.choice([0, 1, 2.5, 7]), draw.uniform(-2, 5), draw.uniform(-1, 1))

    return [[[part() for _ in range(number)] for _ in range(size)] for number in several]


def cuts(seed: int) -> list[int]:
    """The steps after which there is a line."""
    return sorted({*random.Random(seed).sample(range(1, STEPS), 9), STEPS})


def lines_of(seed: int, size: int) -> list[dict[str, Any]]:
    """What the meter makes of them, as one rank of a real world."""
    world = World.from_environ()
    recipe = load_recipe(TINY, ["launch.threads=1", "train.step=parts.py:step"])
    builder = Builder(recipe)
    data = open_run_data(recipe, builder, world)
    with open_device(recipe.device, world, cpu=True, launch=recipe.launch) as device:
        state = build_run_state(recipe, builder, build_run_model(recipe, builder, device), device, data)
        meter, lines = Meter(state), []
        for number, ranks in enumerate(drawn(seed, size), 1):
            meter.add(*taken(ranks, world.rank, norm=number), waited=0.0)
            if number in cuts(seed):
                lines += meter.cut(number, number / 8, {"lr": 0.1 / number})
                assert meter.cut(number, number / 8, {"lr": 9.0}) == []  # nothing since
        return lines + meter.flush()


def taken(ranks: list[list[Part]], rank: int, norm: float) -> tuple[StepResult, StepBatch]:
    """One step as the loop hands it over."""
    total, own = sum(part.count for parts in ranks for part in parts), ranks[rank]
    factors = [part.count * len(ranks) / total if total else 0.0 for part in own]
    parts = [(torch.tensor(part.loss, dtype=torch.float64), factor) for part, factor in zip(own, factors, strict=True)]
    logged: list[Mapping[str, Any]] = [{"one": part.logged, "two": torch.tensor(2 * part.logged)} for part in own]
    return StepResult(parts, torch.tensor(norm), logged), StepBatch([], [], total, 16)


def mean(parts: list[Part], key: str) -> float:
    weight = sum(part.count for part in parts)
    return sum(part.count * float(getattr(part, key)) for part in parts) / weight if weight else float("nan")


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_line_has_the_means_over_all_that_counts(size: int) -> None:
    for seed in (0, 1):
        steps, ends = drawn(seed, size), cuts(seed)
        for lines in in_world(size, lines_of, seed, size):
            assert [line["step"] for line in lines] == ends
            for start, line in zip([0, *ends], lines, strict=False):
                gathered = [part for ranks in steps[start : line["step"]] for parts in ranks for part in parts]
                last = [part for parts in steps[line["step"] - 1] for part in parts]
                assert line["loss"] == pytest.approx(mean(gathered, "loss"), abs=1e-9, nan_ok=True)
                assert line["one"] == pytest.approx(mean(last, "logged"), abs=1e-6, nan_ok=True)
                assert line["two"] == pytest.approx(2 * mean(last, "logged"), abs=1e-6, nan_ok=True)
                assert (line["grad_norm"], line["lr"]) == (line["step"], 0.1 / line["step"])
                assert line["epoch"] == line["step"] / 8
                assert line["samples_per_second"] > line["data_wait"] == 0
