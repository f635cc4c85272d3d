"""`launcher verify-resume`: the proof that a recipe can be stopped."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from worlds import TINY

import launcher
from launcher.cli.main import main


def verify(
    *arguments: str, folder: Path, recipe: Path = TINY, device: str = "--cpu"
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "launcher", "verify-resume", str(recipe), device, "--steps", "5", "--kill-at", "3"]
    environment = {**os.environ, "PYTHONPATH": str(Path(launcher.__file__).parent.parent)}
    return subprocess.run(
        [*command, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=280
    )


def test_verify_resume_proves_it_and_tells_no_tracker(tmp_path: Path) -> None:
    recipe = tmp_path / "tracked.yaml"  # by trackers that are not installed: with them nothing could be trained
    recipe.write_text(f"base: {TINY}\ntrack: {{comet_ml: {{project_name: mine}}}}\n")
    project = tmp_path / "pyproject.toml"
    project.write_text(f"[tool.launcher]\nbases = ['{TINY.parent}']\ncode = ['{TINY.parent}']\n")
    done = verify("model.dropout=0.3", "track.clearml={}", folder=tmp_path, recipe=recipe)
    assert done.returncode == 0, done.stderr
    assert "what is left of it is the checkpoint of step 2\n" in done.stdout
    assert "bit-equal: the weights after 5 steps do not depend on having been killed" in done.stdout
    assert {*tmp_path.iterdir()} == {recipe, project}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_verify_resume_proves_it_on_a_gpu(tmp_path: Path) -> None:
    done = verify("model.dropout=0.3", folder=tmp_path, device="device.deterministic=true")
    assert done.returncode == 0, done.stderr
    assert "bit-equal: the weights after 5 steps do not depend on having been killed" in done.stdout


def test_a_kill_that_would_prove_nothing_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    cases = {
        ("--kill-at", "1"): "--kill-at 1: nothing is saved before the first step has ended",
        ("--kill-at", "20"): "--kill-at 20: the training has 20 steps; kill before its end",
        ("--steps", "2"): "--steps 2: use 3 or more",
    }
    for arguments, message in cases.items():
        assert main(["verify-resume", str(TINY), "--cpu", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_verify_resume_says_what_differs_first(tmp_path: Path) -> None:
    done = verify("data.train={_target_: parts.py:Unseeded}", folder=tmp_path)
    assert done.returncode == 1
    assert "the loss of step 1 differs first" in done.stdout
    assert "look for randomness that no seed reaches" in done.stdout
