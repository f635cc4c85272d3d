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

from launcher.coordination import Coordinator
from launcher.data import load_data
from launcher.device import open_device
from launcher.launch.world import World
from launcher.model import build_model
from launcher.recipe.components import Workshop
from launcher.recipe.load import load_recipe
from launcher.training import Meter, Step, Stepped, build_trainable

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
    workshop = Workshop(load_recipe(TINY, ["launch.threads=1", "train.step=parts.py:step"]))
    data = load_data(workshop, world)
    with open_device(workshop.recipe, world, cpu=True) as device:
        trainable, _ = build_trainable(workshop, build_model(workshop, device), device, data)
        meter, lines = Meter(trainable, Coordinator(world.rank, size)), []
        for number, ranks in enumerate(drawn(seed, size), 1):
            meter.add(*taken(ranks, world.rank, norm=number), waited=0.0)
            if number in cuts(seed):
                lines += meter.cut(number, number / 8, rate=0.1 / number)
                assert meter.cut(number, number / 8, rate=9.0) == []  # nothing since
        return lines + meter.flush()


def taken(ranks: list[list[Part]], rank: int, norm: float) -> tuple[Stepped, Step]:
    """One step as the loop hands it over."""
    total, own = sum(part.count for parts in ranks for part in parts), ranks[rank]
    factors = [part.count * len(ranks) / total if total else 0.0 for part in own]
    parts = [(torch.tensor(part.loss, dtype=torch.float64), factor) for part, factor in zip(own, factors, strict=True)]
    logged: list[Mapping[str, Any]] = [{"one": part.logged, "two": torch.tensor(2 * part.logged)} for part in own]
    return Stepped(parts, torch.tensor(norm), logged), Step([], [], total, 16)


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
