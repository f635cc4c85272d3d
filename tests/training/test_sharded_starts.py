"""What a sharded run starts from: weights in files, of which each process reads its rows, and bases under adapters."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from places import SUPPORT
from safetensors.torch import save_file
from worlds import Trained, in_world, train, train_here

from launcher.checkpoints.export import export
from launcher.checkpoints.saved_run import find_saved
from launcher.device.device import open_device
from launcher.recipe.build import Builder
from launcher.recipe.load import load_recipe
from launcher.training.build import build_run_model
from launcher.world.world import World

RECIPE = SUPPORT / "recipes" / "sharded.yaml"
MICRO = {1: "data.micro_batch_size=4", 2: "data.micro_batch_size=2"}
FULL = "device.sharding=full"


def trained(folder: Path, *overrides: str, size: int = 1) -> Trained:
    shared = (FULL,) if size > 1 else ()
    return train(folder, MICRO[size], *shared, "train.steps=10", *overrides, size=size, recipe=RECIPE)


def built_here(*cases: Sequence[str]) -> list[tuple[dict[str, Any], str]]:
    """What this process has of the model of each case, by name, and what is said of it."""
    found = []
    for overrides in cases:
        recipe = load_recipe(str(RECIPE), [FULL, "launch.threads=1", *overrides])
        with open_device(recipe.device, World.from_environ(), cpu=True) as device:
            model = build_run_model(recipe, Builder(recipe), device)
        named = dict((*model.bare.named_parameters(), *model.bare.named_buffers()))
        found.append(({name: rows_of(held) for name, held in named.items()}, "; ".join(model.notes)))
    return found


def rows_of(held: Any) -> Any:
    """As NumPy has them."""
    local: torch.Tensor = held.detach()
    return (local.to_local() if hasattr(local, "to_local") else local).double().numpy()


def assert_built_alike(cases: Sequence[Sequence[str]], expected: Sequence[Sequence[str]], says: Sequence[str]) -> None:
    """Two processes have between them, to the bit, what one has."""
    (wholes,), ranks = in_world(1, built_here, *expected), in_world(2, built_here, *cases)
    for place, (whole, _) in enumerate(wholes):
        rows, notes = zip(*(rank[place] for rank in ranks), strict=True)
        assert says[place] in notes[0]
        for name, value in whole.items():
            parts = [torch.from_numpy(part[name]) for part in rows]
            together = parts[0] if parts[0].shape == value.shape else torch.cat(parts)
            assert torch.equal(together, torch.from_numpy(value)), (cases[place], name)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sharded run, in a folder with its weights in other files."""
    folder = tmp_path_factory.mktemp("first")
    weights = trained(folder / "run", size=2).weights
    single = {name: value.float() for name, value in weights.items() if name != "head.weight"}
    save_file(single, folder / "single.safetensors", {"head.weight": "tokens.weight"})
    names = list(single)
    for number, part in enumerate((names[::2], names[1::2])):
        save_file({name: single[name] for name in part}, folder / f"part-{number}.safetensors")
    places = {name: f"part-{number % 2}.safetensors" for number, name in enumerate(names)}
    (folder / "all.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    torch.save(weights, folder / "old.pth", _use_new_zipfile_serialization=False)
    return folder


def test_starts_from_weights_in_files(first: Path) -> None:
    said = {
        "run": "each process reads its rows",
        "run/checkpoints/step-00000010": "step 10: 28 of 28 tensors; each process reads its rows",
        "single.safetensors": "28 of 28 tensors; each process reads its rows",
        "all.safetensors.index.json": "missing there: head.weight; each process reads its rows",
        "old.pth": "each process reads the whole file, ",
    }
    half = ("device.precision=bf16-true", "model.dtype=float32", f"train.start_from={first}/run")
    cases = [*((f"train.start_from={first / source}",) for source in said), half]
    assert_built_alike(cases, cases, [*said.values(), "built without a whole copy"])


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders that transformers has saved: several files, one, and a pickle."""
    import transformers

    place = tmp_path_factory.mktemp("pretrained")
    sizes: Any = {"vocab_size": 17, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "tie_word_embeddings": True, "pad_token_id": 0}
    torch.manual_seed(1)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
    model.save_pretrained(place / "several", max_shard_size="4KB")
    model.model.save_pretrained(place / "inner")
    model.config.save_pretrained(place / "pickle")
    torch.save(model.state_dict(), place / "pickle" / "pytorch_model.bin")
    return place


def test_pretrained_weights_are_read_by_rows(pretrained: Path) -> None:
    def of(kind: str, folder: str, dtype: str = "float64") -> tuple[str, ...]:
        arguments = f"pretrained_model_name_or_path: {pretrained / folder}, dtype: {dtype}"
        return (f"model={{_target_: transformers.{kind}.from_pretrained, {arguments}}}",)

    cases = [
        of("AutoModelForCausalLM", "several"),
        of("AutoModelForCausalLM", "inner", "bfloat16"),
        of("AutoModelForSequenceClassification", "several"),
        of("AutoModelForCausalLM", "pickle"),
    ]
    says = ["a process holds at most ", "beside its rows, and reads its rows of what stands in files"]
    assert_built_alike(cases, cases, [says[1], says[1], says[0], says[1]])


LORA = "model._adapt_={_target_: peft.LoraConfig, r: 3, target_modules: [up, down]}"


def test_an_adapter_over_a_sharded_base(tmp_path: Path, first: Path) -> None:
    overrides = (LORA, f"train.start_from={first}/run", "optimizer={_target_: AdamW, lr: 0.01}", "save.every=2 steps")
    one = trained(tmp_path / "one", *overrides)
    assert {name.rpartition("lora_")[1] or name for name in one.weights} == {"lora_", "base_model.model.seen"}
    run, steps = tmp_path / "two", "train.steps=10"
    faults = ("term@step:2#1", "term@step:6#0")
    assert (
        in_world(2, train_here, str(run), (MICRO[2], FULL, steps, *overrides), str(RECIPE), (), faults[0])[0]
        == "stopped"
    )
    assert in_world(1, train_here, str(run), (MICRO[1], steps, *overrides), str(RECIPE), (), faults[1]) == ["stopped"]
    two = trained(run, *overrides, size=2)
    assert list(two.weights) == list(one.weights)
    assert two.distance(one) < 1e-9
    assert two.column("loss") == pytest.approx(one.column("loss"), abs=1e-9)
    last = "checkpoints/step-00000010/manifest.json"
    manifests = [json.loads((tmp_path / name / last).read_text()) for name in ("one", "two")]
    assert manifests[0]["base"] == manifests[1]["base"]
    assert len(manifests[0]["base"]) == 64


def test_an_adapter_that_was_trained_sharded_is_merged(tmp_path: Path) -> None:
    overrides = (LORA, "optimizer={_target_: AdamW, lr: 0.01}", "save.pretrained=false", "evaluate.metrics={}")
    for size in (1, 2):
        trained(tmp_path / f"{size}", *overrides, size=size)
    said = in_world(1, merged_here, [str(tmp_path / name) for name in ("1", "2")], overrides)[0]
    assert all("its adapter merged" in line and "outputs on a real batch" in line for line in said)
    one, two = (torch.load(tmp_path / name / "merged.pth", weights_only=True) for name in ("1", "2"))
    assert list(one) == list(two)
    assert not any("lora" in name for name in one)
    assert all(torch.allclose(one[name], two[name], atol=1e-9, rtol=0) for name in one)


def merged_here(folders: list[str], overrides: tuple[str, ...]) -> list[str]:
    """Exports the weights of runs with their adapters in them."""
    found = [(Path(folder), find_saved(Path(folder), str(RECIPE), (FULL, *overrides))) for folder in folders]
    return [export(saved, folder / "merged.pth", merge=True, cpu=True) for folder, saved in found]


def test_another_base_is_found_where_it_is_sharded(tmp_path: Path, first: Path) -> None:
    overrides = (LORA, "optimizer={_target_: AdamW, lr: 0.01}", "train.steps=4")
    trained(tmp_path / "run", *overrides, f"train.start_from={first}/run", size=2)
    (tmp_path / "run" / "status.json").unlink()
    with pytest.raises(AssertionError, match="its adapter was trained on a base of sha256"):
        trained(tmp_path / "run", *overrides, f"train.start_from={first}/single.safetensors", size=2)


def test_an_adapter_of_another_type_than_its_base_is_sharded_apart(tmp_path: Path) -> None:
    half = ("model.dtype=bfloat16", "evaluate.metrics={}", "save.pretrained=false", "train.steps=6")
    adapted = (LORA, "optimizer={_target_: AdamW, lr: 0.01}", *half)
    one, two = (trained(tmp_path / f"{size}", *adapted, size=size) for size in (1, 2))
    assert {value.dtype for name, value in two.weights.items() if "lora_" in name} == {torch.float32}
    assert two.column("loss") == pytest.approx(one.column("loss"), rel=1e-2)
    assert two.column("loss")[-1] < two.column("loss")[0]
