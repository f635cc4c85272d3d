"""`evaluate.generate`: metrics get the texts that a model makes, over a whole set and over all ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from places import SUPPORT
from worlds import Trained, in_world, result_of, train_here

from launcher.cli.main import main
from launcher.errors import LauncherError, RecipeError
from launcher.recipe.build import Builder
from launcher.recipe.load import load_recipe
from launcher.run import run
from launcher.runs.options import Options
from launcher.world.world import World
from recipes import texts

RECIPE = SUPPORT / "recipes" / "texts.yaml"
CAUSAL = (
    "define.config={_target_: transformers.LlamaConfig, vocab_size: 12, hidden_size: 16, intermediate_size: 16, "
    "num_hidden_layers: 1, num_attention_heads: 2, pad_token_id: 0, eos_token_id: 1}",
    "model={_target_: transformers.AutoModelForCausalLM.from_config, config: '${define.config}'}",
    "batch.inputs={input_ids: whole, labels: whole_labels}",
)
LONGEST = "evaluate.metrics.longest={_target_: texts.py:longest, _input_: text}"
PROMPTS = "evaluate.generate={max_new_tokens: 3, targets: answer, inputs: {input_ids: input_ids, attention_mask: mask}}"


def trained(folder: Path, *overrides: str) -> Any:
    """Trains in this process; gives what `launcher.run.run` gives."""
    return run(load_recipe(RECIPE, overrides), World(), Options(cpu=True, run_dir=str(folder), output="quiet"))


def by_hand(model: Any, rows: list[dict[str, Any]], new_tokens: int, causal: bool = False) -> list[str]:
    """What a model says, one text at a time."""
    said = []
    for row in rows:
        given = {"input_ids": row["input_ids"][None], "attention_mask": row["mask"][None]}
        tokens = model.generate(**given, max_new_tokens=new_tokens)
        said.append(texts.tokenizer().decode(tokens[0, 4 if causal else 0 :], skip_special_tokens=True))
    return said


def rouge(said: list[str], wanted: list[str]) -> float:
    from torchmetrics.text import ROUGEScore

    metric = ROUGEScore(rouge_keys=("rouge1",))
    metric.update(said, wanted)
    return float(metric.compute()["rouge1_fmeasure"])


def validation() -> tuple[list[dict[str, Any]], list[str]]:
    """The rows that are evaluated, and what should be said to them."""
    data = texts.Echoes(size=10)
    rows = [data[index] for index in range(len(data))]
    return rows, [row["answer"] for row in rows]


def test_a_translator_s_texts_are_those_of_its_generate(tmp_path: Path) -> None:
    result = trained(tmp_path / "run", "train={steps: 60}", "evaluate.every=60 steps")
    rows, wanted = validation()
    said = by_hand(result.model.eval(), rows, 5)
    (line,) = result.scores
    assert line["rouge/rouge1_fmeasure"] == pytest.approx(rouge(said, wanted))
    assert line["exact"] == pytest.approx(texts.equal(said, wanted))
    assert any(said)


def test_a_causal_model_goes_on_from_prompts_alone(tmp_path: Path) -> None:
    result = trained(tmp_path / "run", *CAUSAL, PROMPTS, LONGEST)
    rows, wanted = validation()
    said = by_hand(result.model.eval(), rows, 3, causal=True)
    (line,) = result.scores
    assert line["rouge/rouge1_fmeasure"] == pytest.approx(rouge(said, wanted))
    assert line["longest"] <= 3.0
    with pytest.raises(LauncherError, match="LlamaForCausalLM continues what it is given; say where a batch has"):
        trained(tmp_path / "whole", *CAUSAL)


def test_all_ranks_evaluate_what_one_does(tmp_path: Path) -> None:
    every = ("evaluate.ranks=all",)
    in_world(2, train_here, str(tmp_path / "two"), every, str(RECIPE))
    trained(tmp_path / "one")
    one, two = (last_line(result_of(tmp_path / name)) for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name in [name for name in one if name.partition("/")[0] in ("rouge", "exact", "loss")]:
        assert one[name] == pytest.approx(two[name], rel=1e-4), name


def last_line(result: Trained) -> Any:
    return [line for line in result.lines if line["split"] == "validation"][-1]


def test_the_folder_has_the_tokenizer_and_gives_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import transformers

    result = trained(tmp_path / "run")
    folder = tmp_path / "run" / "pretrained"
    again = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder)
    tokens = texts.Echoes()[0]["input_ids"][None]
    labels = torch.tensor([[2, 1]])
    with torch.no_grad():
        assert torch.equal(again(tokens, labels=labels).logits, result.model.eval()(tokens, labels=labels).logits)
    assert transformers.AutoTokenizer.from_pretrained(folder).decode([2, 3]) == "w0 w1"
    none = trained(tmp_path / "none", "save.pretrained=false")
    assert not (none.folder / "pretrained").exists()
    exported = tmp_path / "folder"
    said = main(["export", str(tmp_path / "run" / "model_weights.pth"), "--to", str(exported), "--as", "transformers"])
    assert said == 2  # a run from Python's own call has no command to resume it
    assert "name their recipe: --recipe FILE" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("evaluate.generate=null",), "text is what evaluate.generate makes; state it, as in"),
        (("evaluate.generate.custom_generate=x/y",), "unknown key"),
        (("evaluate.generate.max_new_tokens=0",), "greater than 0"),
        (("evaluate.generate.trust_remote_code=true",), "unknown key"),
    ],
)
def test_what_is_said_wrongly(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Builder(load_recipe(RECIPE, overrides)).check()
    assert message in str(caught.value)


def test_texts_that_nothing_measures_are_not_made() -> None:
    with pytest.raises(RecipeError, match="no metric has its texts; write _input_: text beside one, or remove it"):
        load_recipe(RECIPE, (), ("evaluate.metrics",))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("define.tokenizer={_target_: texts.py:Echoes}",),
            "needs the tokenizer that makes texts of tokens",
        ),
        (("define.other={_target_: texts.py:tokenizer}",), "there are: tokenizer, other; write define"),
        (("evaluate.generate.targets=nowhere",), "a batch has no 'nowhere'"),
        (("evaluate.generate.num_beams=3", "evaluate.generate.targets=mask.nowhere"), "has no 'nowhere'"),
    ],
)
def test_what_cannot_be_generated_is_said(tmp_path: Path, overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(LauncherError) as caught:
        trained(tmp_path / "run", *overrides)
    assert message in str(caught.value)
