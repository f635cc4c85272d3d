"""Signals at random moments, and a start after each: in the end the run to which nothing happened, and nothing left."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from places import RECIPES
from storm import Storm
from tiers import rounds
from worlds import Trained, result_of

PARTS = {
    "rows": "data.train={_target_: parts.py:Noisy}",
    "a stream": "data.train={_target_: parts.py:Cut}",
}
RECIPE = (
    *("model={_target_: parts.py:InAStorm}", "data.validation={_target_: parts.py:Numbers, seed: 2}"),
    *("data.workers=2", "data.drop_last=true", "evaluate={every: 20 steps, ranks: all}", "launch.threads=1"),
    *("train.steps=60", "train.ema=0.9", "save={every: 3 steps, keep: 2}"),
)


def arguments(data: str, size: int) -> tuple[str, ...]:
    restarts = ("--max-restarts=2",) if size > 1 else ()
    flags = ("--cpu", "--quiet", f"--processes={size}", *restarts)
    return ("train", "tiny.yaml", *flags, *RECIPE, PARTS[data])


@rounds(
    "data, size, signals",
    plain=[("rows", 1, 14), ("a stream", 2, 4)],
    long=[("a stream", 1, 60), ("rows", 2, 80), ("a stream", 3, 80)],
)
def test_whatever_signals_come_the_end_is_the_same_and_nothing_is_left(
    tmp_path: Path, data: str, size: int, signals: int
) -> None:
    if os.geteuid() != 0:
        pytest.skip("shared memory of one's own needs root")
    for name in ("tiny.yaml", "parts.py"):
        shutil.copy(RECIPES / name, tmp_path)
    words = arguments(data, size)
    storm = Storm(tmp_path, words, seed=signals, patience=0.7 if size == 1 else 3.0)
    undisturbed = storm.undisturbed()
    for run in storm.run(signals):
        assert_same(result_of(run), undisturbed, storm)
        assert not [path for path in run.rglob("*") if path.name.startswith(".") or path.suffix == ".tmp"]
    assert len(storm.sent) >= signals
    assert len({sent.split()[0] for sent in storm.sent}) >= min(6, signals // 3), storm.sent
    assert not storm.left()
    storm.temporary.rmdir()


def assert_same(run: Trained, other: Trained, storm: Storm) -> None:
    assert run.distance(other) == 0, storm.sent
    averages = [torch.load(one.folder / "model_weights_ema.pth", weights_only=True) for one in (run, other)]
    assert all(torch.equal(value, averages[1][name]) for name, value in averages[0].items())
    for split in ("train", "validation"):
        assert run.column("loss", split) == other.column("loss", split)
