"""`model._adapt_`: only the adapter is trained, checkpointed and resumed, and over the base that it was trained on."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from recipes.adapted import Single
from recipes.parts import Net
from worlds import TINY, result_of, train_in_process

import launcher
from launcher.checkpoints.export import export
from launcher.checkpoints.saved_run import Saved, find_saved
from launcher.cli.main import main
from launcher.errors import LauncherError, RecipeError, UsageError
from launcher.recipe.build import Builder
from launcher.recipe.load import load_recipe

LORA = "{_target_: peft.LoraConfig, r: 2, target_modules: [layers.0]}"
FROM_FILE = f"model={{_target_: adapted.py:read, _adapt_: {LORA}}}"
STEPS = "train={steps: 4}"
TRAIN = ("train", str(TINY), "launch.threads=1", "--cpu", "--quiet")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return result_of(folder).weights


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Weights in a file, which models read."""
    path = tmp_path / "base.pth"
    monkeypatch.setenv("BASE_WEIGHTS", str(path))
    torch.manual_seed(7)
    torch.save(Net().state_dict(), path)
    return path


def saved(run: Path, *overrides: str) -> Saved:
    """What a run of the tiny recipe has left."""
    return find_saved(run, str(TINY), overrides)


def test_checkpoints_hold_the_adapter_and_the_hash_of_its_base(tmp_path: Path, base: Path) -> None:
    train_in_process(tmp_path / "run", FROM_FILE, STEPS)
    adapter = {"base_model.model.layers.0.lora_A.default.weight", "base_model.model.layers.0.lora_B.default.weight"}
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000004"
    assert set(torch.load(checkpoint / "weights.pth", weights_only=True)) == adapter
    assert set(weights(tmp_path / "run")) == adapter
    assert len(json.loads((checkpoint / "manifest.json").read_text())["base"]) == 64


def test_a_run_goes_on_over_its_own_base_alone(tmp_path: Path, base: Path) -> None:
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    six = "train={steps: 6}"
    train_in_process(straight, FROM_FILE, six)
    train_in_process(stopped, FROM_FILE, six, "save.every=4 steps", "save.keep=5")
    for name in ("model_weights.pth", "status.json"):
        (stopped / name).unlink()
    last = stopped / "checkpoints" / "step-00000006"
    last.rename(tmp_path / "gone")
    kept = base.read_bytes()
    torch.save(Net().state_dict(), base)
    with pytest.raises(LauncherError, match=r"was trained on a base of sha256 .*; bring back the weights"):
        train_in_process(stopped, FROM_FILE, six, "save.every=4 steps", "save.keep=5")
    base.write_bytes(kept)
    train_in_process(stopped, FROM_FILE, six, "save.every=4 steps", "save.keep=5")
    assert weights(straight).keys() == weights(stopped).keys()
    for name, value in weights(straight).items():
        assert torch.equal(value, weights(stopped)[name]), name


def test_what_is_merged_gives_what_the_adapted_model_gives(tmp_path: Path, base: Path) -> None:
    run = train_in_process(tmp_path / "run", FROM_FILE, STEPS)
    said = export(saved(tmp_path / "run", FROM_FILE), tmp_path / "merged.pth", merge=True)
    assert "its adapter merged" in said
    inputs = torch.randn(4, 6, dtype=torch.float64)
    net = Net()
    net.load_state_dict(torch.load(tmp_path / "merged.pth", weights_only=True))
    torch.testing.assert_close(net(inputs), run.model.eval()(inputs))
    assert not torch.equal(net.state_dict()["layers.0.weight"], torch.load(base, weights_only=True)["layers.0.weight"])
    export(saved(tmp_path / "run", FROM_FILE), tmp_path / "adapter.safetensors")
    from safetensors.torch import load_file

    assert all("lora_" in name for name in load_file(tmp_path / "adapter.safetensors"))
    torch.save(Net().state_dict(), base)
    with pytest.raises(UsageError, match="was trained on a base of sha256"):
        export(saved(tmp_path / "run", FROM_FILE), tmp_path / "other.pth")


def test_the_folder_of_an_adapter_is_peft_s(tmp_path: Path, base: Path) -> None:
    import peft

    run = train_in_process(tmp_path / "run", FROM_FILE, STEPS)
    net = Net()
    net.load_state_dict(torch.load(base, weights_only=True))
    again = peft.PeftModel.from_pretrained(net, str(tmp_path / "run" / "pretrained"))
    inputs = torch.randn(4, 6, dtype=torch.float64)
    assert torch.equal(again.eval()(inputs), run.model.eval()(inputs))


def test_a_function_adapts_too(tmp_path: Path) -> None:
    adapt = "{_target_: adapted.py:shifted, _partial_: true, scale: 2.0}"
    run = train_in_process(tmp_path / "run", f"model={{_target_: parts.py:Net, _adapt_: {adapt}}}", STEPS)
    assert set(weights(tmp_path / "run")) == {"shift"}
    assert run.model.scale == 2.0
    last = train_in_process(
        tmp_path / "last", "model={_target_: parts.py:Net, _adapt_: {_ref_: adapted.py:last_alone}}", STEPS
    )
    assert set(weights(tmp_path / "last")) == {"layers.3.weight", "layers.3.bias"}
    net = copy.deepcopy(last.model)
    net.layers[3].bias.data.zero_()
    launcher.load(tmp_path / "last", model=net)
    assert torch.equal(net.layers[3].bias, last.model.layers[3].bias)
    net.layers[0].bias.data += 1
    with pytest.raises(UsageError, match="and the model that you pass has"):
        launcher.load(tmp_path / "last", model=net)


def test_the_weights_that_a_base_starts_from_keep_their_names(tmp_path: Path) -> None:
    train_in_process(tmp_path / "first", STEPS)
    model = f"model={{_target_: parts.py:Net, _adapt_: {LORA}}}"
    start = f"train={{steps: 1, start_from: '{tmp_path}/first'}}"
    run = train_in_process(tmp_path / "second", model, start)
    state = run.model.state_dict()
    assert torch.equal(
        state["base_model.model.layers.0.base_layer.weight"], weights(tmp_path / "first")["layers.0.weight"]
    )


@pytest.mark.parametrize("precision", ["no", "bf16-true"])
def test_a_base_that_training_started_from_is_under_the_adapter_in_every_command(
    tmp_path: Path, precision: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a run that is finished, of one of its checkpoints, and of one that goes on; and where the base is gone."""
    net = "{_target_: adapted.py:Single}" if precision != "no" else "{_target_: parts.py:Net}"
    held = f"device.precision={precision}"
    assert main([*TRAIN, held, f"model={net}", STEPS, "--run-dir", str(tmp_path / "first")]) == 0
    over = f"train={{steps: 4, start_from: '{tmp_path}/first'}}"
    sets = "data.validation={_target_: 'parts.py:WholeNumbers'}"
    adapted = f"model={net[:-1]}, _adapt_: {LORA}}}"
    run = tmp_path / "run"
    told = [held, adapted, over, sets, "save.every=2 steps"]
    assert main([*TRAIN, *told, "--run-dir", str(run)]) == 0
    trained = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    checkpoint = str(run / "checkpoints" / "step-00000002")
    capsys.readouterr()

    assert main(["evaluate", str(run), "--json", "--cpu"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["loss"] == trained["loss"]
    assert main(["predict", str(run), "--data", "validation", "--to", str(tmp_path / "p.jsonl"), "--cpu"]) == 0
    for source in (str(run), checkpoint):
        for name, flags in (("a.safetensors", []), ("a.pt2", []), ("m.pth", ["--merge"])):
            (tmp_path / name).unlink(missing_ok=True)
            assert main(["export", source, "--to", str(tmp_path / name), *flags]) == 0, capsys.readouterr().err
    assert (run / "pretrained" / "adapter_config.json").exists()
    assert "not be saved" not in capsys.readouterr().err
    model = launcher.load(run, cpu=True)
    inputs = torch.randn(4, 6, dtype=torch.float64 if precision == "no" else torch.float32)
    assert main(["export", str(run), "--to", str(tmp_path / "whole.pth"), "--merge"]) == 0
    plain = Net() if precision == "no" else Single()
    plain.load_state_dict(torch.load(tmp_path / "whole.pth", weights_only=True))
    near = 1e-9 if precision == "no" else 0.02
    torch.testing.assert_close(plain(inputs), model(inputs), rtol=near, atol=near)
    base = torch.load(tmp_path / "first" / "model_weights.pth", weights_only=True)
    assert torch.equal(plain.state_dict()["layers.3.weight"], base["layers.3.weight"].to(inputs.dtype))
    shutil.rmtree(run / "checkpoints" / "step-00000004")
    for name in ("model_weights.pth", "status.json"):
        (run / name).unlink()
    assert main(["resume", str(run)]) == 0, capsys.readouterr().err
    again = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert again["loss"] == trained["loss"]

    base["layers.0.bias"] += 1
    torch.save(base, tmp_path / "first" / "model_weights.pth")
    commands = [["evaluate", str(run)], ["predict", str(run), "--data", "validation", "--to", "-"]]
    commands.append(["export", str(run), "--to", str(tmp_path / "new.pth")])
    for gone, message in ((False, "its adapter was trained on a base of sha256"), (True, "there are no weights at")):
        if gone:
            shutil.rmtree(tmp_path / "first")
        for command in commands:
            capsys.readouterr()
            assert main(command) == 2, command
            (line,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("own code")]
            assert message in line


@pytest.mark.parametrize(
    ("adapt", "message"),
    [
        ("{_ref_: adapted.py:nothing}", "froze nothing of the model"),
        ("{_target_: parts.py:Net}", "model._adapt_: TypeError: linear"),
        ("{_ref_: adapted.py:text}", "model._adapt_: gave a str; return the adapted module, or nothing"),
        (
            "{_target_: peft.LoraConfig, target_modules: [nowhere]}",
            "model._adapt_: NoMatchingPeftModuleError: Target modules",
        ),
        (
            "{_target_: peft.LoraConfig, target_modules: [layers.0], init_lora_weights: pissa}",
            "init_lora_weights: pissa changes the base, which is read again at each start; use true",
        ),
    ],
)
def test_what_adapts_nothing_is_refused(tmp_path: Path, adapt: str, message: str) -> None:
    with pytest.raises(LauncherError, match=message):
        train_in_process(tmp_path / "run", f"model={{_target_: parts.py:Net, _adapt_: {adapt}}}", STEPS)


@pytest.mark.parametrize(
    ("adapt", "message"),
    [
        ("3", "must be {_target_: peft.LoraConfig, …}, or {_ref_: my.py:adapt}"),
        (
            "{_target_: peft.LoraConfig, megatron_core: antigravity}",
            "a recipe may not write 'megatron_core' here, only:",
        ),
        ("{_target_: peft.LoraConfig, auto_mapping: {parent_library: os}}", "may not write 'auto_mapping' here"),
        ("{_target_: peft.LoraConfig, corda_config: {cache_file: x.pt}}", "may not write 'corda_config' here"),
        ("{_target_: peft.LoraConfig, _partial_: true, megatron_core: os}", "which are judged here: call it with"),
        ("{_ref_: peft.LoraConfig}", "which are judged here: call it with _target_"),
        ("{_target_: peft.LoraConfig.from_pretrained, _args_: [x]}", "which a recipe may not name"),
        (
            "{_target_: peft.PromptTuningConfig, tokenizer_kwargs: {trust_remote_code: true}}",
            "here, only: num_attention_heads",
        ),
    ],
)
def test_what_an_adapter_may_not_be(adapt: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Builder(load_recipe(TINY, [f"model._adapt_={adapt}"])).check()
    assert message in str(caught.value)


def test_of_a_model_the_optimizer_sees_the_adapted_one(tmp_path: Path) -> None:
    model = f"model={{_target_: parts.py:Net, _adapt_: {LORA}}}"
    optimizer = "optimizer={_target_: adapted.py:of_model, model: '${model}'}"
    run: Any = train_in_process(tmp_path / "run", model, optimizer, STEPS, "scheduler=null")
    assert any(float(value.abs().max()) for name, value in run.model.state_dict().items() if "lora_B" in name)
