"""Losses and metrics that speak with the other ranks: an evaluation is of one rank, and nobody is waited for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from places import ROOT
from worlds import train

from launcher.cli.main import main

RECIPE = ROOT / "tests" / "brought" / "parts" / "brought.yaml"
# with 17 samples in batches of 4 one share has a batch more than the other
OVER_ALL = (
    "loss={_target_: losses.py:OverAll}",
    "data.validation={_target_: sets.py:Reg, size: 17}",
    "evaluate={every: 2 steps, batch_size: 4, metrics: {far: {_ref_: losses.py:far_of_all}}}",
)


@pytest.mark.parametrize("ranks", ["first", "all"])
def test_an_evaluation_is_one_process_s(tmp_path: Path, ranks: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(tmp_path / "run", *OVER_ALL, f"evaluate.ranks={ranks}", size=2, recipe=RECIPE)
    line = next(line for line in reversed(run.lines) if line["split"] == "validation")
    assert main(["evaluate", str(run.folder), "--json", "--cpu"]) == 0
    (alone,) = (json.loads(text) for text in capsys.readouterr().out.splitlines() if text.startswith("{"))
    assert line["step"] == alone["step"] == 6
    assert (line["loss"], line["far"]) == pytest.approx((alone["loss"], alone["far"]), rel=1e-6)
