"""From a folder that `from_pretrained` loads to another: texts in a file, an adapter, its merge, and what it says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from launcher.cli.main import main
from launcher.recipe.remote_paths import reached
from recipes import texts

LINES = [{"question": f"w{row} w{row % 3}", "kind": row % 2, "answer": f"w{row % 3}"} for row in range(10)]
FOLDER = {"pretrained_model_name_or_path": "base"}
TOKENIZE = {"_target_": "launcher.datasets.Tokenize", "tokenizer": "${define.tokenizer}", "text": "question"}
RECIPE: dict[str, Any] = {
    "name": "texts",
    "define": {
        "tokenizer": {"_target_": "transformers.AutoTokenizer.from_pretrained", **FOLDER},
        "tokenize": {**TOKENIZE, "end": True},
    },
    "data": {
        "train": {"_target_": "HubDataset", "path": "lines.jsonl", "transform": "${define.tokenize}"},
        "global_batch_size": 4,
        "workers": 0,
        "collate": {
            "_target_": "transformers.DataCollatorForTokenClassification",
            "tokenizer": "${define.tokenizer}",
        },
    },
    "batch": {
        "inputs": {"input_ids": "input_ids", "attention_mask": "attention_mask", "labels": "labels"},
        "targets": [],
    },
    "model": {
        "_target_": "transformers.AutoModelForCausalLM.from_pretrained",
        **FOLDER,
        "_adapt_": {"_target_": "peft.LoraConfig", "r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"},
    },
    "loss": "model",
    "optimizer": {"_target_": "AdamW", "lr": 0.1},
    "train": {"steps": 3},
    "launch": {"threads": 1},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A base of pretrained weights with its tokenizer, texts, and a run that has adapted it; the working directory."""
    import transformers

    place = tmp_path_factory.mktemp("pretrained")
    sizes: Any = {"vocab_size": 12, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "pad_token_id": 0, "eos_token_id": 1}
    torch.manual_seed(1)
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).save_pretrained(place / "base")
    texts.tokenizer().save_pretrained(place / "base")
    (place / "lines.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in LINES))
    (place / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert main(["train", "recipe.yaml", "--cpu", "--quiet", "--run-dir", "run"]) == 0
        yield place


def logits(model: Any) -> torch.Tensor:
    """What a model says of a few tokens."""
    with torch.no_grad():
        result: torch.Tensor = model.eval()(input_ids=torch.tensor([[2, 3, 4]])).logits
    return result


def adapted(folder: Path) -> Any:
    """The base with the run's adapter, as a stranger loads it."""
    import peft
    import transformers

    base = transformers.AutoModelForCausalLM.from_pretrained(folder / "base")
    return peft.PeftModel.from_pretrained(base, str(folder / "run" / "pretrained"))


def test_a_run_leaves_its_adapter_and_its_tokenizer(folder: Path) -> None:
    import transformers

    base = transformers.AutoModelForCausalLM.from_pretrained(folder / "base")
    assert not torch.allclose(logits(adapted(folder)), logits(base))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "run" / "pretrained")
    assert tokenizer("w0 w1")["input_ids"] == [2, 3]
    assert set(torch.load(folder / "run" / "model_weights.pth", weights_only=True)) == {
        f"base_model.model.model.layers.0.self_attn.q_proj.lora_{part}.default.weight" for part in "AB"
    }


def test_what_is_merged_is_a_plain_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import transformers

    assert main(["export", "run", "--to", "merged", "--as", "transformers", "--merge"]) == 0
    said = capsys.readouterr().out
    assert "as transformers, its adapter merged" in said
    assert "; beside it" in said
    merged = transformers.AutoModelForCausalLM.from_pretrained(folder / "merged")
    assert type(merged).__name__ == "LlamaForCausalLM"
    torch.testing.assert_close(logits(merged), logits(adapted(folder)))
    assert main(["export", "run", "--to", "adapter", "--as", "transformers"]) == 0
    assert (folder / "adapter" / "adapter_config.json").exists()


def test_an_onnx_program_takes_any_length(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import onnxruntime

    assert main(["export", "run", "--to", "model.onnx", "--merge"]) == 0
    assert "takes batches of any size" in capsys.readouterr().out
    session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
    assert {value.name for value in session.get_inputs()} == {"input_ids", "attention_mask"}
    tokens = torch.tensor([[2, 3, 4]])
    (said, *_) = session.run(None, {"input_ids": tokens.numpy(), "attention_mask": torch.ones_like(tokens).numpy()})
    torch.testing.assert_close(torch.from_numpy(said), logits(adapted(folder)))


def test_another_base_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import transformers

    kept = {path: path.read_bytes() for path in (folder / "base").iterdir()}
    other = transformers.AutoModelForCausalLM.from_pretrained(folder / "base")
    with torch.no_grad():
        other.lm_head.weight.add_(1)
    other.save_pretrained(folder / "base")
    try:
        assert main(["export", "run", "--to", "other.pth"]) == 2
        assert "its adapter was trained on a base of sha256" in capsys.readouterr().err
    finally:
        for path, content in kept.items():
            path.write_bytes(content)


def test_classes_of_texts_and_translations_are_tokenized(folder: Path) -> None:
    import launcher.datasets as datasets

    tokenizer = texts.tokenizer()
    of_class = datasets.Tokenize(tokenizer, "question", label="kind", max_length=1)
    assert of_class(LINES[4]) == {"input_ids": [6], "attention_mask": [1], "labels": 0}
    translated = datasets.Tokenize(tokenizer, "question", target="answer")
    assert translated(LINES[4])["labels"] == [3]
    ended = datasets.Tokenize(tokenizer, "question", end=True, max_length=2)
    assert ended(LINES[4])["labels"] == [6, 1]
    pair = datasets.Tokenize(tokenizer, ["question", "answer"], label="kind")
    assert pair(LINES[4])["input_ids"] == [6, 3, 3]
    with pytest.raises(KeyError, match="a row has no 'text'; it has: question, kind, answer"):
        datasets.Tokenize(tokenizer)(LINES[0])
    with pytest.raises(ValueError, match="name one of them"):
        datasets.Tokenize(tokenizer, label="kind", target="answer")


def test_pictures_are_prepared_as_their_model_s_processor_does() -> None:
    import transformers
    from PIL import Image

    import launcher.datasets as datasets

    processor: Any = transformers.ViTImageProcessorPil(size={"height": 8, "width": 8})
    picture = Image.linear_gradient("L").resize((20, 10))
    prepared = datasets.Preprocess(processor)(picture)
    assert torch.equal(prepared, processor(picture.convert("RGB"), return_tensors="pt")["pixel_values"][0])
    assert prepared.shape == (3, 8, 8)
    with pytest.raises(ValueError, match="training: only timm's models come with an augmentation"):
        datasets.Preprocess(processor, training=True)
    with pytest.raises(ValueError, match="neither a model of timm nor weights of torchvision"):
        datasets.Preprocess("hf-hub:someone/else")


def test_a_folder_of_this_machine_asks_no_server(folder: Path) -> None:
    import transformers

    load = transformers.AutoModelForCausalLM.from_pretrained
    for here in ("base", "./base", str(folder / "base")):
        assert reached(load, {"pretrained_model_name_or_path": here}) is None
    assert reached(load, {"pretrained_model_name_or_path": "owner/base"}) == "huggingface.co"


def test_packages_draw_no_bars_into_a_file_and_warn_once(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What transformers says of a base that lacks a head is said by the first rank alone."""
    classifies = (
        "model={_target_: transformers.AutoModelForSequenceClassification.from_pretrained, "
        "pretrained_model_name_or_path: base, num_labels: 2}",
        "data.train.transform={_target_: launcher.datasets.Tokenize, tokenizer: '${define.tokenizer}', text: question, "
        "label: kind}",
        "data.collate={_target_: transformers.DataCollatorWithPadding, tokenizer: '${define.tokenizer}'}",
    )
    shared = ("--cpu", "--quiet", "--processes", "2", "--remove", "model._adapt_", "train.steps=1")
    assert main(["train", "recipe.yaml", *shared, *classifies, "--run-dir", "classifies"]) == 0
    said = capfd.readouterr().err
    assert said.count("score.weight") == 1
    assert "it/s]" not in said


def test_a_sharded_model_is_saved_whole_and_in_its_type(folder: Path) -> None:
    import transformers

    shared = ("--cpu", "--quiet", "--processes", "2", "device.sharding=full", "--remove", "model._adapt_")
    half = ("device.precision=bf16-true", "model.dtype=float32")
    assert main(["train", "recipe.yaml", *shared, *half, "--run-dir", "shared"]) == 0
    trained = transformers.AutoModelForCausalLM.from_pretrained(folder / "shared/pretrained")
    weights = torch.load(folder / "shared/model_weights.pth", weights_only=True)
    assert {value.dtype for value in trained.state_dict().values()} == {torch.bfloat16}
    assert all(torch.equal(value, weights[name]) for name, value in trained.state_dict().items())


def test_a_prompt_beside_the_base_is_saved_and_cannot_be_merged(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = "{_target_: peft.PromptTuningConfig, task_type: CAUSAL_LM, num_virtual_tokens: 2}"
    changes = ("train.steps=1", f"model._adapt_={prompt}")
    assert main(["train", "recipe.yaml", "--cpu", "--quiet", "--run-dir", "prompted", *changes]) == 0
    assert (folder / "prompted" / "pretrained" / "adapter_config.json").exists()
    assert main(["export", "prompted", "--to", "plain", "--as", "transformers", "--merge"]) == 2
    assert "the run's adapter is none that peft can put into weights" in capsys.readouterr().err
