"""`launcher verify-resume`: the proof that a recipe can be stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from worlds import TINY, Command, Launched

from launcher.cli.main import main


def verify(*arguments: str, folder: Path, recipe: Path = TINY, device: str = "--cpu") -> Launched:
    command = ("verify-resume", str(recipe), device, "--steps", "5", "--kill-at", "3", *arguments)
    return Command(folder, *command).wait(280)


def test_verify_resume_proves_it_and_tells_no_tracker(tmp_path: Path) -> None:
    recipe = tmp_path / "tracked.yaml"  # by trackers that are not installed: with them nothing could be trained
    recipe.write_text(f"base: {TINY}\ntrack: {{comet_ml: {{project_name: mine}}}}\n")
    project = tmp_path / "pyproject.toml"
    project.write_text(f"[tool.launcher]\nbases = ['{TINY.parent}']\ncode = ['{TINY.parent}']\n")
    done = verify("model.dropout=0.3", "track.clearml={}", folder=tmp_path, recipe=recipe)
    assert done.code == 0, done.screen
    assert "what is left of it is the checkpoint of step 2\n" in done.screen
    assert "bit-equal: the weights after 5 steps do not depend on having been killed" in done.screen
    assert {path for path in tmp_path.iterdir() if path.suffix != ".screen"} == {recipe, project}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_verify_resume_proves_it_on_a_gpu(tmp_path: Path) -> None:
    done = verify("model.dropout=0.3", folder=tmp_path, device="device.deterministic=true")
    assert done.code == 0, done.screen
    assert "bit-equal: the weights after 5 steps do not depend on having been killed" in done.screen


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
    assert done.code == 1
    assert "the loss of step 1 differs first" in done.screen
    assert "look for randomness that no seed reaches" in done.screen
