"""A run's weights in other forms, and the proof that a recipe can be stopped."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from recipes.parts import Net
from worlds import TINY, killed

import launcher
from launcher.cli import main
from launcher.export import export


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, started as `launcher train` does."""
    folder = tmp_path_factory.mktemp("export") / "run"
    assert main(["train", str(TINY), "launch.threads=1", "--cpu", "--quiet", "--run-dir", str(folder)]) == 0
    return folder


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt2"])
def test_what_is_exported_gives_the_same_outputs(
    tmp_path: Path, run: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = run / "checkpoints" / "step-00000012" if suffix == ".pth" else run
    target = tmp_path / f"model{suffix}"
    assert main(["export", str(source), "--to", str(target)]) == 0
    said = capsys.readouterr().out
    assert "outputs on a real batch are bit-equal" in said
    inputs = torch.randn(4, 6, dtype=torch.float64)
    net = Net()
    net.load_state_dict(torch.load(run / "model_weights.pth", weights_only=True))
    again = Net()
    if suffix == ".pt2":
        assert "it takes batches of any size" in said
        for size in (1, 2, 5):
            inputs = torch.randn(size, 6, dtype=torch.float64)
            torch.testing.assert_close(torch.export.load(target).module()(inputs), net.eval()(inputs))
        return
    if suffix == ".pth":
        again.load_state_dict(torch.load(target, weights_only=True))
    else:
        from safetensors.torch import load_file

        again.load_state_dict(load_file(target))
    assert torch.equal(again.eval()(inputs), net.eval()(inputs))


def test_a_program_for_one_size_of_batch_is_said_to_be_one(tmp_path: Path) -> None:
    assert (
        main(
            [
                "train",
                str(TINY),
                "model={_target_: parts.py:Paired}",
                "--cpu",
                "--quiet",
                "--run-dir",
                str(tmp_path / "run"),
            ]
        )
        == 0
    )
    assert "takes batches of 2 samples only" in export(tmp_path / "run", tmp_path / "model.pt2")
    assert torch.export.load(tmp_path / "model.pt2") is not None


def test_what_cannot_be_exported_is_said(tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = {
        (str(run), "model.onnx"): "the suffix says the form; one of: .safetensors, .pth, .pt2",
        (str(run / "model_weights.pth"), "model.pth"): "exists; it is left as it is",
        (str(run), "nowhere/new.pth"): "there is no folder",
        (str(tmp_path), "new.pth"): "neither a run's folder nor a checkpoint in one",
    }
    (tmp_path / "model.pth").write_text("mine")
    for (source, name), message in cases.items():
        assert main(["export", source, "--to", str(tmp_path / name)]) == 2
        assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pth"]


def test_a_run_that_is_not_finished_is_exported_from_its_newest_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = ["train", str(TINY), "launch.threads=1", "save={every: 2 steps, background: false}", "--cpu", "--quiet"]
    assert killed(1, _main, [*arguments, "--run-dir", str(folder)], "kill@step:5")
    assert "step-00000004 as pth" in export(folder, tmp_path / "model.pth")


def _main(arguments: list[str], faults: str) -> int:
    os.environ["LAUNCHER_FAULTS"] = faults
    return main(arguments)


def verify(
    *arguments: str, folder: Path, recipe: Path = TINY, device: str = "--cpu"
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "launcher", "verify-resume", str(recipe), device, "--steps", "5", "--kill-at", "3"]
    environment = {**os.environ, "PYTHONPATH": str(Path(launcher.__file__).parent.parent)}
    return subprocess.run(
        [*command, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=280
    )


def test_verify_resume_proves_it_and_tells_no_tracker(tmp_path: Path) -> None:
    # by trackers that are not installed: with them nothing could be trained
    done = verify("model.dropout=0.3", "track.clearml={}", "track.comet_ml.project_name=mine", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "what is left of it is the checkpoint of step 2\n" in done.stdout
    assert "bit-equal: the weights after 5 steps do not depend on having been killed" in done.stdout
    assert not list(tmp_path.iterdir())


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
