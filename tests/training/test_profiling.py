"""Profiled steps train as others do."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest
import torch
from worlds import TINY

from launcher.cli.main import main
from launcher.errors import EXIT_DONE


def test_profiled_steps_leave_a_trace_and_a_table_and_train_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["train", str(TINY), "launch.threads=1", "--cpu", "--run-dir"]
    assert main([*arguments, "plain"]) == EXIT_DONE
    assert main([*arguments, "profiled", "--profile", "3:6"]) == EXIT_DONE
    shown = capsys.readouterr().out
    for label in ("data wait", "forward", "backward", "optimizer", "the rest"):
        assert re.search(rf"^{label} +[\d.]+ +[\d.]* +\d+%", shown, re.MULTILINE), shown
    with gzip.open(tmp_path / "profiled" / "profile" / "rank-0.json.gz") as file:
        events = [event.get("name") for event in json.load(file)["traceEvents"]]
    assert events.count("forward") == 3
    one, other = (
        torch.load(tmp_path / name / "model_weights.pth", weights_only=True) for name in ("plain", "profiled")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)
