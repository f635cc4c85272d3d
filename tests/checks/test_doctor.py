"""`launcher doctor`: whether a machine is fit."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from worlds import Command

from launcher.checks.doctor import BROKEN, WARNING, findings


def test_the_doctor_finds_this_machine_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = {one.what: one for one in findings()}
    assert {"python", "GPU", "CPUs", "disk", "open files", "clock", "SLURM", "accelerate"} <= found.keys()
    assert [one for one in found.values() if one.level == BROKEN] == []


def test_the_doctor_lets_the_ranks_talk(tmp_path: Path) -> None:
    done = Command(tmp_path, "doctor", "--cpu", "--processes", "2").wait()
    assert done.code == 0, done.screen
    line = r"^(ok|warning) +all-reduce +2 processes, gloo: [\d.]+ GB/s a rank, \d+ µs"
    assert re.search(line, done.screen, re.MULTILINE), done.screen
    assert done.left == []


def test_a_silent_controller_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sbatch").write_text("#!/bin/sh\necho slurm 24.05.2\n")
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    (found,) = (one for one in findings() if one.what == "SLURM")
    assert (found.level, found.text.partition(";")[0]) == (
        WARNING,
        "slurm 24.05.2 is here, and no controller answers",
    )
