"""Whatever samples, models and steps are like: each form is written and compared, or one line says why not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from places import SUPPORT

from launcher.checkpoints.export import export
from launcher.checkpoints.saved_run import find_saved
from launcher.cli.main import main
from launcher.errors import LauncherError


def samples(kind: str) -> dict[str, Any]:
    return {"_target_": "exported.py:Samples", "kind": kind}


def model(name: str, kind: str = "rows", **recipe: Any) -> dict[str, Any]:
    """A recipe, with sections changed."""
    return {
        "data": {"train": samples(kind), "global_batch_size": 4, "workers": 0, **recipe.pop("data", {})},
        "model": {"_target_": f"exported.py:{name}"},
        "loss": {"_target_": "CrossEntropyLoss"},
        "optimizer": {"_target_": "SGD", "lr": 0.01},
        "train": {"steps": 1, **recipe.pop("train", {})},
        "launch": {"threads": 1},
        **recipe,
    }


def step(name: str, of: str = "Net", kind: str = "rows", **recipe: Any) -> dict[str, Any]:
    return {**model(of, kind, train={"step": f"exported.py:{name}"}, **recipe), "loss": None}


OF_X = {"inputs": [1], "targets": [2]}
ANY = "it takes batches of any size"
PARTS = "and train.step calls parts of Gan alone (generator, critic); name one of them, --part generator, or say"
LOSS_OF_OBJECT: dict[str, Any] = {
    "data": {"collate": "exported.py:as_object"},
    "batch": {"inputs": "whole"},
    "loss": "model",
}
CASES: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "a step that calls the model by name": (step("by_name"), {"pt2": ANY, "onnx": ANY}),
    "a step over single tensors": (step("by_name", kind="tensors"), {"pt2": ANY}),
    "a step that changes the model": (
        model("Net", train={"step": {"_target_": "exported.py:Counting"}}),
        {"pt2": ANY},
    ),
    "a step that calls parts": (
        step("turn", "Gan", "tensors"),
        {"pth": "outputs on a real batch are bit-equal", "pt2": f"!{PARTS}", "onnx": f"!{PARTS}"},
    ),
    "a step that fails": (
        step("only_trains"),
        {
            "pth": "its tensors are bit-equal, and no outputs were compared: train.step fails in eval mode",
            "pt2": "!AssertionError: not for an evaluation; say in batch.inputs what Net's forward gets of a batch",
        },
    ),
    "a step that fails, and inputs": (step("only_trains", batch={"inputs": ["x"]}), {"pt2": ANY}),
    "inputs that are none": (
        step("only_trains", batch={"inputs": ["y"]}),
        {"pth": "no outputs were compared", "pt2": "!Net cannot be called with int64 [2]: RuntimeError: mat1"},
    ),
    "a step that calls nothing": (step("functional"), {"onnx": "!train.step calls neither the model nor a part of it"}),
    "a model with its loss, by name": (
        model("Labelled", loss="model", batch={"inputs": {"x": "x", "labels": "y"}, "targets": []}),
        {"pt2": ANY, "onnx": ANY},
    ),
    "a model with its loss, by position": (
        model("Labelled", "triples", loss="model", batch={"inputs": [1, 2], "targets": [2]}),
        {"pt2": ANY, "onnx": ANY},
    ),
    "nested paths": (
        model("Both", "nested", batch={"inputs": {"left": "seen.left", "right": "seen.right"}, "targets": ["y"]}),
        {"pt2": ANY, "onnx": ANY},
    ),
    "whole batches": (
        model("OfObject", **LOSS_OF_OBJECT),
        {"pth": "bit-equal", "pt2": "!OfObject gets a SimpleNamespace; name its tensors in batch.inputs"},
    ),
    "whole numbers, two heads and batch.adapt": (
        model("Words", "words", batch={"adapt": "exported.py:shaped"}),
        {"pt2": ANY, "onnx": ANY},
    ),
    "an object of a class": (
        model("InClass", "triples", batch=OF_X, loss="exported.py:first_head"),
        {"pth": "bit-equal", "pt2": "!Found <class 'exported.Heads'> in output, which is not a known type; export the"},
    ),
    "a change on the device": (model("Net", "bytes", data={"on_device": "exported.py:as_floats"}), {"pt2": ANY}),
    "a stream": (model("Net", data={"train": {"_target_": "exported.py:Stream"}}), {"pt2": ANY}),
    "a stream that is read once": (
        model("Net", data={"train": {"_target_": "exported.py:Stream", "once": True}}),
        {"pt2": "it takes batches of any size"},
    ),
    "inputs that are changed": (model("InPlace", "triples", batch=OF_X), {"pth": "bit-equal", "onnx": ANY}),
    "complex numbers": (
        model("Complex", "triples", batch=OF_X, loss="exported.py:size_of"),
        {"pt2": ANY, "onnx": "!Complex gets or gives complex numbers, which ONNX does not have"},
    ),
    "noise": (
        model("Noisy", "triples", batch=OF_X),
        {"pth": "bit-equal", "pt2": ANY, "onnx": "!Noisy draws random numbers in eval mode too, and onnxruntime draws"},
    ),
    "a constant": (
        model("Net", "triples", batch={"inputs": {"x": 1, "twice": True}, "targets": [2]}),
        {"pt2": ANY, "onnx": ANY},
    ),
    "double precision": (
        model("Pictures", "pictures"),
        {
            "pt2": ANY,
            "onnx": "!NotImplemented: Could not find an implementation for Conv(11) node with name 'node_conv2d'; it "
            "has few operations for float64: train in float32, or write --to model.pt2",
        },
    ),
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with the parts that recipes name."""
    (tmp_path / "exported.py").write_text((SUPPORT / "recipes" / "exported.py").read_text())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def trained(recipe: dict[str, Any]) -> Path:
    """A run of a recipe."""
    name = recipe.get("name", "run")
    Path(f"{name}.yaml").write_text(json.dumps(recipe))
    assert main(["train", f"{name}.yaml", "--cpu", "--quiet", "--run-dir", name]) == 0
    return Path(name).absolute()


@pytest.mark.parametrize("case", CASES)
def test_each_kind_is_exported_or_refused_in_a_line(place: Path, case: str) -> None:
    recipe, forms = CASES[case]
    run = trained(recipe)
    for form, expected in forms.items():
        target = place / f"model.{form}"
        if not expected.startswith("!"):
            assert expected in export(find_saved(run), target)
            continue
        with pytest.raises(LauncherError) as caught:
            export(find_saved(run), target)
        assert expected[1:] in str(caught.value)
        assert "\n" not in str(caught.value)
        assert not target.exists()


def test_a_set_that_can_be_read_is_read(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The training set may be gone, and so may all of them where weights are written."""
    two = {"validation": samples("rows"), "test": {**samples("rows"), "samples": 3}}
    run = trained(model("Net", "rows", data=two, batch={"inputs": ["x"], "targets": ["y"]}))
    monkeypatch.setenv("NO_SAMPLES", "8 rows")
    capfd.readouterr()
    assert main(["export", str(run), "--to", "model.pt2"]) == 0
    assert ANY in capfd.readouterr().out
    monkeypatch.setenv("NO_SAMPLES", "all")
    whole = export(find_saved(run), place / "model.safetensors")
    assert "its tensors are bit-equal, and no outputs were compared: what is written" in whole
    with pytest.raises(LauncherError, match=r"no set can be read: .*there is no rows\.bin.*data\.test"):
        export(find_saved(run), place / "model.onnx")


def test_a_part_alone_is_what_it_is_called_with(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A GAN's generator, which a step calls; and a layer of a model, which its forward calls."""
    run = trained(step("turn", "Gan", "tensors"))
    for form in ("pt2", "onnx"):
        assert f"as {form}, its generator alone" in export(find_saved(run), place / f"model.{form}", part="generator")
    noise, weights = torch.randn(5, 2), torch.load(run / "model_weights.pth", weights_only=True)
    made = torch.export.load("model.pt2").module()(noise)
    torch.testing.assert_close(made, noise @ weights["generator.weight"].T + weights["generator.bias"])
    refused = {
        ("new.pt2", "generater"): "--part: Gan has no 'generater'; did you mean 'generator'? It has: generator, critic",
        ("new.pth", "critic"): "--part critic: is for .pt2 and .onnx, without --merge",
    }
    for (name, part), message in refused.items():
        assert main(["export", str(run), "--to", name, "--part", part]) == 2
        assert message in capsys.readouterr().err
    words = trained({**model("Words", "words", batch={"adapt": "exported.py:shaped"}), "name": "words"})
    assert ANY in export(find_saved(words), place / "head.pt2", part="head")
    assert not (place / "new.pt2").exists()


def test_what_only_a_step_calls_is_saved_for_from_pretrained(place: Path) -> None:
    run = trained(step("turn", "Published", "tensors"))
    saved, kept = torch.load(run / "pretrained" / "weights.pth"), torch.load(run / "model_weights.pth")
    assert all(torch.equal(saved[name], value) for name, value in kept.items())


def test_a_model_that_cannot_be_traced_is_refused_in_a_line(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Its values decide what it does; the tracer prints the graph that it has so far."""
    run = trained(model("Deciding", "triples", batch=OF_X))
    capfd.readouterr()
    for form, exporter in (("pt2", "torch.export"), ("onnx", "ONNX")):
        assert main(["export", str(run), "--to", f"model.{form}"]) == 1
        said = capfd.readouterr().err.strip()
        assert said.startswith(f"{exporter}: Deciding cannot be traced: GuardOnDataDependentSymNode: ")
        assert "\n" not in said


def test_nothing_of_an_exporter_reaches_the_screen(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """One that fails on the way, and one of which torch warns, say no more than a line."""
    layers = {"_target_": "exported.py:Recurrent"}
    run = trained({**model("Net", "words"), "model": layers})
    capfd.readouterr()
    for form in ("pt2", "onnx"):
        assert main(["export", str(run), "--to", f"model.{form}"]) == 0
    told = capfd.readouterr()
    assert told.err == ""
    lines = [line for line in told.out.splitlines() if not line.startswith("own code")]
    assert [line.partition(": ")[0].rpartition(".")[2] for line in lines] == ["pt2", "onnx"]


def test_a_model_that_asks_for_a_size_is_not_changed_by_being_watched(place: Path) -> None:
    """What a step does to the model is done to a copy: the weights that are written are the run's."""
    run = trained(CASES["a step that changes the model"][0])
    export(find_saved(run), place / "model.pth")
    written, kept = (torch.load(path, weights_only=True) for path in ("model.pth", run / "model_weights.pth"))
    assert torch.equal(written["layer.weight"], kept["layer.weight"])
    assert written["layer.weight"].abs().max() > 0
