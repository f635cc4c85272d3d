"""A run's weights in other forms."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from recipes.parts import Net
from worlds import TINY, killed

from launcher.checkpoints.export import export
from launcher.checkpoints.saved_run import find_saved
from launcher.cli.main import main


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, started as `launcher train` does."""
    folder = tmp_path_factory.mktemp("export") / "run"
    assert main(["train", str(TINY), "launch.threads=1", "--cpu", "--quiet", "--run-dir", str(folder)]) == 0
    return folder


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt2", ".onnx"])
def test_what_is_exported_gives_the_same_outputs(
    tmp_path: Path, run: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = run / "checkpoints" / "step-00000012" if suffix == ".pth" else run
    target = tmp_path / f"model{suffix}"
    assert main(["export", str(source), "--to", str(target)]) == 0
    said = capsys.readouterr().out
    assert (
        "outputs on a real batch are within" if suffix == ".onnx" else "outputs on a real batch are bit-equal"
    ) in said
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
    if suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(target, providers=["CPUExecutionProvider"])
        (given,) = session.get_inputs()
        assert given.shape[1] == 6  # which is all that the model takes
        assert not isinstance(given.shape[0], int)
        (outputs,) = session.run(None, {"input_0": inputs.numpy()})
        torch.testing.assert_close(torch.from_numpy(outputs), net.eval()(inputs).detach())
        return
    assert target.stat().st_mode & 0o777 == (run / "resolved.yaml").stat().st_mode & 0o777
    if suffix == ".pth":
        again.load_state_dict(torch.load(target, weights_only=True))
    else:
        from safetensors.torch import load_file

        again.load_state_dict(load_file(target))
    assert torch.equal(again.eval()(inputs), net.eval()(inputs))


def test_a_form_by_name_goes_into_a_folder(tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run), "--to", str(tmp_path / "out"), "--as", "safetensors"]) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.safetensors"]
    refused = {
        ("out", "safetensors"): "model.safetensors: exists already; name another file, or remove it",
        ("other", "bin"): "--as bin: there is no such form; one of: transformers, safetensors, pth, pt2, onnx",
        ("other", "transformers"): "Net has no save_pretrained and from_pretrained, as transformers' models have",
    }
    for (folder, form), message in refused.items():
        assert main(["export", str(run), "--to", str(tmp_path / folder), "--as", form]) != 0
        assert message in capsys.readouterr().err
    assert main(["export", str(run), "--to", str(tmp_path / "merged.pth"), "--merge"]) == 2
    assert "--merge: the run's model has no adapter of peft's" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


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
    assert "takes batches of 2 samples only" in export(find_saved(tmp_path / "run"), tmp_path / "model.pt2")
    assert torch.export.load(tmp_path / "model.pt2") is not None


def test_what_cannot_be_exported_is_said(tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = {
        (str(run), "model.bin"): "the suffix sets the format; one of: .safetensors, .pth, .pt2, .onnx; or a "
        "folder with",
        (str(run / "model_weights.pth"), "model.pth"): "exists already",
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
    assert "step-00000004 as pth" in export(find_saved(folder), tmp_path / "model.pth")


def _main(arguments: list[str], faults: str) -> int:
    os.environ["LAUNCHER_FAULTS"] = faults
    return main(arguments)


def test_an_onnx_program_has_the_names_of_classes_and_no_free_channels(tmp_path: Path) -> None:
    import json

    import onnxruntime
    from PIL import Image

    for number, kind in enumerate(("cat", "dog", "cat", "dog")):
        (tmp_path / "photos" / kind).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (9 * number, 0, 0)).save(tmp_path / "photos" / kind / f"{number}.png")
    layers = [
        {"_target_": "Conv2d", "in_channels": 3, "out_channels": 2, "kernel_size": 3},
        {"_target_": "AdaptiveAvgPool2d", "output_size": 1},
        {"_target_": "Flatten"},
    ]
    recipe = {
        "data": {
            "train": {"_target_": "ImageFolder", "root": str(tmp_path / "photos"), "size": 8},
            "global_batch_size": 2,
        },
        "model": {"_target_": "Sequential", "_args_": layers},
        "loss": {"_target_": "CrossEntropyLoss"},
        "optimizer": {"_target_": "SGD", "lr": 0.1},
        "train": {"steps": 1},
    }
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    run = str(tmp_path / "run")
    assert main(["train", str(tmp_path / "r.yaml"), "--cpu", "--quiet", "--run-dir", run]) == 0
    assert main(["export", run, "--to", str(tmp_path / "model.onnx")]) == 0
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == ["cat", "dog"]
    batch, channels, *sides = session.get_inputs()[0].shape
    assert channels == 3
    assert not any(isinstance(size, int) for size in (batch, *sides))
