"""`save.format: safetensors`: files that the Hub's libraries read, and everything here that reads a run's weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from places import SUPPORT
from safetensors.torch import load_file
from worlds import TINY, killed, train, train_here, train_in_process

import launcher
from launcher.checkpoints.export import export
from launcher.checkpoints.safe_files import save_safetensors
from launcher.checkpoints.saved_run import find_saved
from launcher.checkpoints.weights import find_weights, read_weights
from launcher.errors import LauncherError, RecipeError
from launcher.evaluation.offline import evaluate_saved
from launcher.runs.folder import weights_files
from launcher.training.resume import Finished
from launcher.world.world import World

SAFE = "save.format=safetensors"
STEPS = "train={steps: 4}"
MEASURED = "data.validation={_target_: parts.py:WholeNumbers}"


def state() -> dict[str, torch.Tensor]:
    """Of several types and layouts, two names of one tensor, two of one memory."""
    torch.manual_seed(0)
    table, shared = torch.randn(40, 30), torch.randn(12)
    return {
        "table": table,
        "head": table,
        "flags": torch.tensor([True, False, True]),
        "turned": torch.randn(6, 5).t(),
        "half": torch.randn(7, 3).bfloat16(),
        "number": torch.tensor(3),
        "none": torch.empty(0, 2),
        "all": shared,
        "some": shared[2:7],
        "double": torch.randn(11, 20, dtype=torch.float64),
    }


@pytest.mark.parametrize("most", [10**9, 3000])
def test_the_packages_read_what_was_written(tmp_path: Path, most: int) -> None:
    weights = state()
    save_safetensors(tmp_path, "model", weights, most=most)
    files = weights_files(tmp_path)
    if most == 3000:
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        assert [path.name for path in files] == [
            "model.safetensors.index.json",
            *dict.fromkeys(index["weight_map"].values()),
        ]
        assert index["metadata"]["head"] == "table"
        assert index["metadata"]["total_size"] == sum(v.nbytes for name, v in weights.items() if name != "head")
        assert index["weight_map"].keys() == weights.keys() - {"head"}
    else:
        assert [path.name for path in files] == ["model.safetensors"]
    parts = [path for path in files if path.suffix == ".safetensors"]
    found = {name: value for path in parts for name, value in load_file(path).items()}
    assert found.keys() == weights.keys() - {"head"}
    again = read_weights(find_weights(tmp_path))
    assert again["head"] is again["table"]
    for name, value in weights.items():
        assert again[name].dtype == value.dtype
        assert torch.equal(again[name], value)
        assert name == "head" or torch.equal(found[name], value)


def test_everything_that_reads_a_run_finds_its_weights(tmp_path: Path) -> None:
    averaged = (STEPS, MEASURED, "train.ema=0.5", "save.average_last=2", "save.every=1 steps")
    trained = train_in_process(tmp_path / "run", SAFE, *averaged)
    run = tmp_path / "run"
    names = ["model.safetensors", "model_ema.safetensors", "model_mean.safetensors"]
    assert sorted(path.name for path in run.glob("model*")) == names
    train_in_process(tmp_path / "pth", *averaged)
    for name, old in zip(names, ("model_weights", "model_weights_ema", "model_weights_mean"), strict=True):
        expected = torch.load(tmp_path / "pth" / f"{old}.pth", weights_only=True)
        assert all(torch.equal(value, expected[key]) for key, value in load_file(run / name).items())
    saved = find_saved(run, str(TINY), [SAFE, *averaged])
    assert saved.at[0] == 4
    assert saved.averaged() is not None
    assert saved.losses().keys() == find_saved(tmp_path / "pth", str(TINY)).losses().keys()
    lines = evaluate_saved(saved, World(), None, cpu=True)
    assert lines == evaluate_saved(find_saved(tmp_path / "pth", str(TINY), averaged), World(), None, cpu=True)
    assert "bit-equal" in export(saved, tmp_path / "again.pth")
    with pytest.raises(Finished, match=r"this run is finished, after 4 steps; its weights are in .*model\.safetensors"):
        train_in_process(run, SAFE, *averaged)
    for source in (run, run / "model.safetensors"):
        started = train_in_process(
            tmp_path / f"from-{source.name}", STEPS, f"train.start_from={source}", "optimizer.lr=0.0"
        )
        for name, value in trained.model.state_dict().items():
            assert torch.equal(started.model.state_dict()[name], value), name


def test_a_longer_run_leaves_no_other_form(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train_in_process(run, STEPS)
    longer = ("train={steps: 6}", "train.start_from=null")
    train_in_process(run, *longer, SAFE, allow_changes=("train.steps",))
    assert [path.name for path in run.glob("model*")] == ["model.safetensors"]
    train_in_process(run, "train={steps: 8}", allow_changes=("train.steps",))
    assert [path.name for path in run.glob("model*")] == ["model_weights.pth"]


def test_from_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments: Any = (str(TINY), SAFE, "launch.threads=1", STEPS, MEASURED)
    result = launcher.train(*arguments, cpu=True, run_dir="run", output="quiet")
    again = launcher.train(*arguments, cpu=True, run_dir="run", output="quiet")
    loaded = launcher.load("run", cpu=True)
    expected = load_file("run/model.safetensors")
    for model in (result.model, again.model, loaded):
        assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert result.evaluate(cpu=True) == again.evaluate(cpu=True)


def test_a_sharded_run_writes_the_same(tmp_path: Path) -> None:
    recipe = SUPPORT / "recipes" / "sharded.yaml"
    changes = ("device.sharding=full", "data.micro_batch_size=2", "train.steps=6")
    assert killed(2, train_here, str(tmp_path / "safe"), (*changes, SAFE), str(recipe), (), "kill@weights.write#0")
    safe = train(tmp_path / "safe", *changes, SAFE, size=2, recipe=recipe)
    pth = train(tmp_path / "pth", *changes, size=2, recipe=recipe)
    assert safe.distance(pth) == 0
    assert safe.weights["head.weight"] is safe.weights["tokens.weight"]
    assert not list((tmp_path / "safe").glob(".model*"))
    averaged = load_file(tmp_path / "safe" / "model_ema.safetensors")
    expected = torch.load(tmp_path / "pth" / "model_weights_ema.pth", weights_only=True)
    assert averaged.keys() == expected.keys() - {"head.weight"}
    assert all(torch.equal(value, expected[name]) for name, value in averaged.items())


def test_what_safetensors_cannot_hold_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"save\.format: safetensors holds tensors only, and '.*_extra_state'"):
        train_in_process(tmp_path / "run", SAFE, STEPS, "model={_target_: kept.py:Extra}")
    with pytest.raises(LauncherError, match="safetensors has no complex128, which 'x' is; say pth"):
        save_safetensors(tmp_path, "model", {"x": torch.zeros(2, dtype=torch.complex128)})
    assert not (tmp_path / "run").exists()
    assert not list(tmp_path.glob("model*"))
