"""Ways to step: several optimizers, closures, turns, frozen parts, functions after a step: the loops by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from places import RECIPES
from worlds import Trained, in_world, result_of, train_here

from launcher.errors import LauncherError
from recipes import ways

RECIPE = RECIPES / "ways.yaml"


def train(folder: str, name: str, *overrides: str, faults: str | None = None) -> str:
    own = ways.WAYS[name][0]
    remove = ("loss",) if "loss=null" in own else ()
    said = (*(one for one in own if one != "loss=null"), *overrides)
    return train_here(f"{folder}/{name}", said, str(RECIPE), remove, faults)


def train_all(folder: str, *overrides: str) -> None:
    for name in ways.WAYS:
        assert train(folder, name, *overrides) == "finished"


def stop_and_resume_all(folder: str, *overrides: str) -> None:
    for name in ways.WAYS:
        assert train(folder, name, *overrides, faults="term@step:4") == "preempted"
        assert train(folder, name, *overrides, faults="") == "finished"


def losses_of(folder: Path, name: str) -> list[float]:
    return result_of(folder / name).column("loss")


@pytest.mark.parametrize(("size", "overrides"), [(1, ("data.micro_batch_size=3",)), (2, ())])
def test_each_way_is_that_of_a_loop_by_hand(tmp_path: Path, size: int, overrides: tuple[str, ...]) -> None:
    in_world(size, train_all, str(tmp_path), *overrides, timeout=200)
    for name, (_, by_hand) in ways.WAYS.items():
        expected = by_hand()
        assert losses_of(tmp_path, name) == pytest.approx(expected, rel=1e-9), name
        assert expected[-1] != pytest.approx(expected[0], rel=0.01), name  # it learns


@pytest.mark.parametrize("size", [1, 2])
def test_each_way_resumes_bit_for_bit(tmp_path: Path, size: int) -> None:
    in_world(size, train_all, str(tmp_path / "straight"), timeout=200)
    in_world(size, stop_and_resume_all, str(tmp_path / "resumed"), timeout=200)
    for name in ways.WAYS:
        straight, resumed = (result_of(tmp_path / way / name) for way in ("straight", "resumed"))
        assert resumed.column("loss") == straight.column("loss"), name
        assert resumed.distance(straight) == 0, name
