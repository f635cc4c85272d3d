"""Reading a recipe: strict YAML, bases, overrides, references, and what is said of every mistake in them.

The bad recipes are files in `bad_recipes/reading`: `NAME.yaml`, the command line in `NAME.args` where there is one,
and what a user is told in `NAME.txt`.
"""

from __future__ import annotations

import math
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import hypothesis.strategies as st
import projects
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from places import SUPPORT
from pydantic import BaseModel

from launcher.errors import EXIT_USAGE, Problem, RecipeError
from launcher.recipe.bases import read_document
from launcher.recipe.build import Builder, BuildError
from launcher.recipe.component_syntax import OPTIONS
from launcher.recipe.expressions import Expression, ExpressionError
from launcher.recipe.load import load_recipe
from launcher.recipe.places import MAX_PROBLEMS, Path, dotted
from launcher.recipe.references import COMPUTED
from launcher.recipe.scalars import plain_scalar
from launcher.recipe.schema import Recipe, model_in
from launcher.recipe.tree import MAX_BYTES, MAX_DEPTH, Document

BAD_RECIPES = SUPPORT / "bad_recipes" / "reading"


def read(folder: pathlib.Path, text: str | bytes, *overrides: str, remove: tuple[str, ...] = ()) -> Document:
    """Read a recipe of this text, as the file `recipe.yaml` of a folder."""
    recipe = folder / "recipe.yaml"
    recipe.write_bytes(text if isinstance(text, bytes) else text.encode())
    return document_of(recipe, overrides, remove)


def document_of(recipe: pathlib.Path | str, overrides: Sequence[str] = (), remove: Sequence[str] = ()) -> Document:
    """Return a recipe as read; refuse one with mistakes."""
    document, problems = read_document(recipe, overrides, remove)
    if document is None or problems:
        raise RecipeError(problems)
    return document


def complaint(folder: pathlib.Path, text: str | bytes, *overrides: str) -> str:
    """Return what is said of a bad recipe, without the path of its file."""
    with pytest.raises(RecipeError) as caught:
        read(folder, text, *overrides)
    return str(caught.value).replace(f"{folder}{os.sep}", "")


# --- bad recipes, and what is said of them


@pytest.mark.parametrize("name", sorted(path.stem for path in BAD_RECIPES.glob("*.yaml")))
def test_bad_recipe(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(BAD_RECIPES)
    monkeypatch.setenv("TEST_WORD", "word")
    monkeypatch.delenv("NOT_THERE", raising=False)
    arguments = pathlib.Path(f"{name}.args")
    lines = arguments.read_text(encoding="utf-8").splitlines() if arguments.exists() else []
    remove = [line.removeprefix("--remove ") for line in lines if line.startswith("--remove ")]
    overrides = [line for line in lines if not line.startswith("--remove ")]
    with pytest.raises(RecipeError) as caught:
        document_of(f"{name}.yaml", overrides, remove)
    assert f"{caught.value}\n" == pathlib.Path(f"{name}.txt").read_text(encoding="utf-8")
    assert caught.value.exit_code == EXIT_USAGE


def test_every_expectation_has_its_recipe() -> None:
    named = {path.stem for path in BAD_RECIPES.iterdir() if path.suffix in (".txt", ".args")}
    assert named <= {path.stem for path in BAD_RECIPES.glob("*.yaml")}


def test_missing_file_names_the_nearest(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "digits_cnn.yaml").write_text("name: x")
    monkeypatch.chdir(tmp_path)
    expected = {
        "recipes/digits_cn.yaml": "does not exist; did you mean 'recipes/digits_cnn.yaml'?",
        "recipes/x": "does not exist; the recipes there are digits_cnn.yaml",
        "elsewhere/x.yaml": "does not exist; there is no folder 'elsewhere'",
        "recipes": "is a folder; name a recipe in it: digits_cnn.yaml",
        "recipes/digits_cnn.yaml/x.yaml": "does not exist; there is no folder 'recipes/digits_cnn.yaml'",
        "x" * 300: "cannot be read: file name too long",
        "a\0b": "cannot be read: embedded null byte",
    }
    for path, message in expected.items():
        with pytest.raises(RecipeError) as caught:
            document_of(path)
        assert str(caught.value) == f"{path}: {message}".replace("\0", "\\x00")


def test_only_regular_files_are_read(tmp_path: pathlib.Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")  # opening it would wait for ever
    with pytest.raises(RecipeError, match=r"pipe\.yaml: is not a regular file"):
        document_of(tmp_path / "pipe.yaml")


def test_a_folder_that_is_gone(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(RecipeError, match="the working directory no longer exists"):
        document_of("x.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: " + "[" * 3000, f"recipe.yaml:1:35: {dotted(('a', *[0] * 31))}: more than {MAX_DEPTH} levels"),
        ("a: " + "[" * 3000 + "]" * 3000, f"more than {MAX_DEPTH} levels"),
        ("- " * 3000, f"more than {MAX_DEPTH} levels"),
        ("# " + "x" * 10_000_000, f"recipe.yaml: is larger than {MAX_BYTES // 1024} KiB"),
        ("a: [" + "x, " * 6000 + "]", "recipe.yaml:1:15002: a[4999]: more than 5,000 keys and values"),
        ("".join(f"k{i}: ${{nope}}\n" for i in range(200)), f"only the first {MAX_PROBLEMS} mistakes are shown"),
    ],
    ids=["brackets", "closed-brackets", "dashes", "10-MB", "values", "mistakes"],
)
def test_bounds(tmp_path: pathlib.Path, text: str, message: str) -> None:
    assert message in complaint(tmp_path, text)


def test_bases_share_one_bound(tmp_path: pathlib.Path) -> None:
    (tmp_path / "base.yaml").write_text("# " + "x" * (MAX_BYTES - 100))
    said = complaint(tmp_path, "base: base.yaml\n# " + "x" * 200)
    assert said == "recipe.yaml:1:7: base: 'base.yaml' is larger than 64 KiB with what builds on it"
    for number in range(30):
        (tmp_path / f"{number}.yaml").write_text(f"base: {number + 1}.yaml")
    assert complaint(tmp_path, "base: 0.yaml").endswith("more than 20 recipes build on each other")


# --- YAML 1.2


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        ("+12", 12),
        ("-12", -12),
        ("007", 7),
        ("0o17", 15),
        ("0xff", 255),
        (".5", 0.5),
        ("5.", 5.0),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        *[(word, word) for word in ("no", "on", "Off", "yes", "y", "tRue", "12:30:00", "2024-01-01", "1_000")],
        *[(word, word) for word in ("1e-3x", "0b11", "0o8", "+0xf", "-.nan", "1e", "e5", ".", "-", "+", "inf", "nan")],
    ],
)
def test_words_and_numbers(text: str, value: Any) -> None:
    result = plain_scalar(text)
    assert result == value
    assert type(result) is type(value)


def test_not_a_number() -> None:
    number = plain_scalar(".nan")
    assert isinstance(number, float)
    assert math.isnan(number)


def test_shapes(tmp_path: pathlib.Path) -> None:
    text = """
define: &all
  quoted: ["1", '1e-3', "no", "\\x1b"]
  block: |
    one
    two
  folded: >-
    one
    two
  flow: {a: my_model.py:Net, time: 02:00:00, url: http://host/x, empty: , "k":v}
  names: {0: zero, 1: one}
  plain: $(pwd) $HOME ${name} # a comment
name: x
copy: *all
"""
    values = read(tmp_path, text).values
    assert values["define"] == {
        "quoted": ["1", "1e-3", "no", "\x1b"],
        "block": "one\ntwo\n",
        "folded": "one two",
        "flow": {"a": "my_model.py:Net", "time": "02:00:00", "url": "http://host/x", "empty": None, "k": "v"},
        "names": {0: "zero", 1: "one"},
        "plain": "$(pwd) $HOME x",
    }
    assert values["copy"] == values["define"]


@pytest.mark.parametrize(
    "text", [b"\xef\xbb\xbfname: x\nseed: 1\n", b"name: x\r\nseed: 1\r\n", b"--- \nname: x\nseed: 1"]
)
def test_marks_breaks_and_document_start(tmp_path: pathlib.Path, text: bytes) -> None:
    document = read(tmp_path, text)
    assert document.values == {"name": "x", "seed": 1}
    assert document.origin(("seed",)).column == 7


def test_names_in_any_script(tmp_path: pathlib.Path) -> None:
    document = read(tmp_path, "define: {größe: 3, 名前: x}\nname: ${define.名前}-${define.größe}\n")
    assert document.values["name"] == "x-3"


# --- where every value was said


def test_origins(tmp_path: pathlib.Path) -> None:
    (tmp_path / "bases").mkdir()
    (tmp_path / "bases" / "common.yaml").write_text("seed: 0\noptimizer:\n  _target_: AdamW\n  betas: [0.9, 0.95]\n")
    document = read(
        tmp_path,
        "base: bases/common.yaml\noptimizer:\n  lr: ${define.lr}\ndefine: {lr: 1e-3}\n",
        "optimizer.betas[1]=0.99",
        "train.epochs=3",
    )
    recipe, base = f"{tmp_path}/recipe.yaml", f"{tmp_path}/bases/common.yaml"
    assert {dotted(path): str(origin) for path, origin in document.origins.items()} == {
        "": f"{recipe}:1:1",
        "seed": f"{base}:1:7",
        "optimizer": f"{recipe}:3:3",
        "optimizer._target_": f"{base}:3:13",
        "optimizer.betas": f"{base}:4:10",
        "optimizer.betas[0]": f"{base}:4:11",
        "optimizer.betas[1]": "override 'optimizer.betas[1]=0.99'",
        "optimizer.lr": f"{recipe}:3:7",
        "define": f"{recipe}:4:9",
        "define.lr": f"{recipe}:4:14",
        "train": "override 'train.epochs=3'",
        "train.epochs": "override 'train.epochs=3'",
    }
    assert str(document.key_origin(("optimizer", "betas"))) == f"{base}:4:3"
    assert str(document.key_origin(("optimizer", "betas", 0))) == f"{base}:4:11"
    assert str(document.origin(("optimizer", "eps", "x"))) == f"{recipe}:3:3"
    assert document.files == (tmp_path / "recipe.yaml", tmp_path / "bases" / "common.yaml")
    assert document.folder == tmp_path
    assert document.text.startswith("base: bases/common.yaml\n")


def test_folders_are_those_of_the_target(tmp_path: pathlib.Path) -> None:
    (tmp_path / "bases").mkdir()
    base = "model: {_target_: net.py:Net, inner: {_target_: net.py:Inner}}\ntrain: {step: task.py:step}\n"
    (tmp_path / "bases" / "common.yaml").write_text(base)
    document = read(tmp_path, "base: bases/common.yaml\nmodel: {width: 3}\nloss: {_target_: loss.py:Loss}\n")
    assert document.folders["model",] == tmp_path / "bases"
    assert document.folders["model", "inner"] == tmp_path / "bases"
    assert document.folders["train", "step"] == tmp_path / "bases"
    assert document.folders["loss",] == tmp_path
    moved = read(tmp_path, "base: bases/common.yaml\n", "model._target_=mine.py:Net")
    assert moved.folders["model",] == tmp_path
    assert moved.folders["model", "inner"] == tmp_path / "bases"


# --- bases


def test_bases_merge_mappings_and_replace_the_rest(tmp_path: pathlib.Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "a.yaml").write_text("data: {x: [1, 2], y: {z: 1}, size: 3}\nname: a\n")
    (tmp_path / "far" / "b.yaml").write_text("base: a.yaml\ndata: {x: [3], y: {w: 2}}\nscheduler: {_target_: A}\n")
    document = read(tmp_path, "base: far/b.yaml\ndata: {size: null}\nscheduler: null\n")
    assert document.values == {
        "data": {"x": [3], "y": {"z": 1, "w": 2}, "size": None},
        "name": "a",
        "scheduler": None,
    }


def test_a_target_replaces_the_component(tmp_path: pathlib.Path) -> None:
    (tmp_path / "base.yaml").write_text("optimizer: {_target_: AdamW, lr: 1e-3, betas: [0.9, 0.95]}\n")
    base = "base: base.yaml\n"
    assert read(tmp_path, f"{base}optimizer: {{_target_: SGD, lr: 1}}").values["optimizer"] == {
        "_target_": "SGD",
        "lr": 1,
    }
    merged = {"_target_": "AdamW", "lr": 1, "betas": [0.9, 0.95]}
    assert read(tmp_path, f"{base}optimizer: {{lr: 1}}").values["optimizer"] == merged
    assert read(tmp_path, base, "optimizer={_target_: SGD}").values["optimizer"] == {"_target_": "SGD"}
    assert read(tmp_path, base, "optimizer={lr: 1}").values["optimizer"] == merged


@pytest.mark.parametrize("length", ["epochs: 3", "steps: 100", "time: 10 minutes"])
def test_one_length_of_training_replaces_another(tmp_path: pathlib.Path, length: str) -> None:
    (tmp_path / "base.yaml").write_text("train: {epochs: 20, clip_grad_norm: 1.0}\n")
    key, value = length.split(": ")
    expected = {"clip_grad_norm": 1.0, key: plain_scalar(value)}
    assert read(tmp_path, f"base: base.yaml\ntrain: {{{length}}}").values["train"] == expected
    assert read(tmp_path, "base: base.yaml", f"train.{key}={value}").values["train"] == expected
    assert read(tmp_path, "base: base.yaml", f"train={{{length}}}").values["train"] == expected


def test_two_lengths_in_one_place_stay_two(tmp_path: pathlib.Path) -> None:
    assert read(tmp_path, "train: {epochs: 3, steps: 100}").values["train"] == {"epochs": 3, "steps": 100}
    (tmp_path / "base.yaml").write_text("train: {epochs: 3}")
    stated = read(tmp_path, "base: base.yaml\ntrain: {steps: null}").values["train"]
    assert stated == {"epochs": 3, "steps": None}


# --- overrides


@pytest.mark.parametrize(
    ("override", "values"),
    [
        ("a.b=1e-3", {"a": {"b": 1e-3, "c": [1, 2]}}),
        ("a.b=x=y", {"a": {"b": "x=y", "c": [1, 2]}}),
        ("a.b=null", {"a": {"b": None, "c": [1, 2]}}),
        ("a.b=''", {"a": {"b": "", "c": [1, 2]}}),
        ('a.b="#1 # 2"', {"a": {"b": "#1 # 2", "c": [1, 2]}}),
        ("a.b=no", {"a": {"b": "no", "c": [1, 2]}}),
        ("a.b=-5", {"a": {"b": -5, "c": [1, 2]}}),
        ("a.b=my_model.py:Net", {"a": {"b": "my_model.py:Net", "c": [1, 2]}}),
        ("a.b=${a.c}", {"a": {"b": [1, 2], "c": [1, 2]}}),
        ("a.c=[3]", {"a": {"b": 0, "c": [3]}}),
        ("a.c.0=3", {"a": {"b": 0, "c": [3, 2]}}),
        ("a.c[1]=3", {"a": {"b": 0, "c": [1, 3]}}),
        ("a={d: 4}", {"a": {"b": 0, "c": [1, 2], "d": 4}}),
        ("a.d.e=4", {"a": {"b": 0, "c": [1, 2], "d": {"e": 4}}}),
        ("x.y.z=4", {"a": {"b": 0, "c": [1, 2]}, "x": {"y": {"z": 4}}}),
    ],
)
def test_override(tmp_path: pathlib.Path, override: str, values: dict[str, Any]) -> None:
    document = read(tmp_path, "a: {b: 0, c: [1, 2]}", override)
    assert document.values == values
    assert set(document.origins) == set(paths_of(values))


def test_overrides_apply_in_order_and_after_removals(tmp_path: pathlib.Path) -> None:
    text = "a: {b: {c: 1, d: 2}}\nscheduler: null\n"
    assert read(tmp_path, text, "a.b.c=3", "a.b.c=4").values["a"] == {"b": {"c": 4, "d": 2}}
    assert read(tmp_path, text, "a.b.e=3", remove=("a.b",)).values["a"] == {"b": {"e": 3}}
    assert read(tmp_path, text, "scheduler._target_=StepLR").values["scheduler"] == {"_target_": "StepLR"}
    assert read(tmp_path, "a: [1, 2, 3]", remove=("a[1]",)).values == {"a": [1, 3]}


def test_keys_that_are_numbers(tmp_path: pathlib.Path) -> None:
    text = "model: {_target_: Net, names: {0: zero, 1: one}}\nname: ${model.names.1}\n"
    values = read(tmp_path, text, "model.names.0=nil").values
    assert values["model"]["names"] == {0: "nil", 1: "one"}
    assert values["name"] == "one"
    for change in ("model={_target_: Net, names: {0: nil, 1: one}}", "model.names={0: nil, 1: one}"):
        assert read(tmp_path, text, change).values == values, "where it stands counts, not where it is written"


# --- references

KNOWN = """
define:
  word: fast
  number: 6
  rate: 0.5
  flag: true
  none: null
  list: [10, 20, {x: 30}]
  options: {width: 3, depth: "${define.number}"}
  dtype: {_ref_: torch.float32}
"""


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${define.word}", "fast"),
        ("${ define.number }", 6),
        ("${define.flag}", True),
        ("${define.none}", None),
        ("${define.list}", [10, 20, {"x": 30}]),
        ("${define.list.0}", 10),
        ("${define.list[2].x}", 30),
        ("${define.options}", {"width": 3, "depth": 6}),
        ("${define.options.depth}", 6),
        ("${define.dtype}", {"_ref_": "torch.float32"}),
        ("runs/${define.word}-${define.number}-${define.rate}-${define.flag}", "runs/fast-6-0.5-true"),
        ("${define.number * 2 + 1}", 13),
        ("${1 + define.number * 2}", 13),
        ("${(1 + define.number) * 2}", 14),
        ("${define.number / 4}", 1.5),
        ("${define.number // 4}", 1),
        ("${-define.number - -1}", -5),
        ("${2 - 1 - 1}", 0),
        ("${8 / 2 / 2}", 2.0),
        ("${1e-3 * 2}", 2e-3),
        ("${5}", 5),
        ("x${define.number * 2}y", "x12y"),
        ("$${define.word}", "${define.word}"),
        ("$${a} ${define.word}", "${a} fast"),
        ("$(date) $word $", "$(date) $word $"),
    ],
)
def test_reference(tmp_path: pathlib.Path, text: str, value: Any) -> None:
    result = read(tmp_path, f"{KNOWN}\nresult: {text!r}\n").values["result"]
    assert result == value
    assert type(result) is type(value)


LATER = """
define:
  tokenizer: {_target_: Tokenizer, size_of_context: 8, inner: {_target_: Inner, width: 4}}
  alias: ${define.tokenizer}
  parts: {a: {_target_: A}, b: [{_target_: B}], c: 3}
  dtype: {_ref_: torch.float32}
data: {train: {_target_: Digits}, validation: 10% of train}
train: {epochs: 3}
scheduler: {_target_: StepLR, steps: 3}
"""


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("${define.tokenizer}", ["define.tokenizer"]),
        ("${define.alias}", ["define.tokenizer"]),
        ("${define.alias.vocab_size}", ["define.tokenizer.vocab_size"]),
        ("${define.alias.vocab.size}", ["define.tokenizer.vocab.size"]),
        ("${define.tokenizer.inner}", ["define.tokenizer.inner"]),
        ("${define.tokenizer.inner.depth}", ["define.tokenizer.inner.depth"]),
        ("${define.dtype.itemsize}", ["define.dtype.itemsize"]),
        ("${data.train.size}", ["data.train.size"]),
        ("${data.validation.size}", ["data.validation.size"]),
        ("${define.parts.b.size}", ["define.parts.b.size"]),
        ("${train.steps}", ["train.steps"]),
        ("${scheduler.steps - train.steps_per_epoch}", ["scheduler.steps", "train.steps_per_epoch"]),
        ("${scheduler.steps // 2 + scheduler.steps}", ["scheduler.steps"]),
        ("x-${train.steps}-${define.parts.c}", ["train.steps"]),
    ],
)
def test_what_only_the_run_knows(tmp_path: pathlib.Path, text: str, names: list[str]) -> None:
    result = read(tmp_path, f"{LATER}\nresult: {text!r}\n").values["result"]
    assert isinstance(result, Expression)
    assert (result.text, list(result.names)) == (text, names)
    assert result.origin.line == 11


def test_written_arguments_of_a_component_are_known(tmp_path: pathlib.Path) -> None:
    text = f"{LATER}\na: ${{define.alias.size_of_context}}\nb: ${{define.tokenizer.inner.width * 2}}\n"
    values = read(tmp_path, text).values
    assert (values["a"], values["b"]) == (8, 8)


def test_a_copied_mapping_refers_to_its_components(tmp_path: pathlib.Path) -> None:
    parts = read(tmp_path, f"{LATER}\nresult: ${{define.parts}}\n").values["result"]
    assert parts["c"] == 3
    assert parts["a"].names == ("define.parts.a",)
    assert parts["b"][0].names == ("define.parts.b.0",)


def test_what_was_escaped_stays_so(tmp_path: pathlib.Path) -> None:
    text = "a: {text: '$${x}', inner: {text: '$${x}', list: [1]}}\nb: ${a}\nc: ${b.inner.size}\nd: ${b.inner.text}\n"
    values = read(tmp_path, text).values
    assert values["b"] == {"text": "${x}", "inner": {"text": "${x}", "list": [1]}}
    assert values["c"].names == ("b.inner.size",)
    assert values["d"] == "${x}"


def test_stated_steps_are_known(tmp_path: pathlib.Path) -> None:
    values = read(tmp_path, "train: {steps: 100}\na: ${train.steps // 4}\nb: ${train.steps_per_epoch}\n").values
    assert values["a"] == 25
    assert isinstance(values["b"], Expression)
    assert isinstance(read(tmp_path, "train: {steps: null}\na: ${train.steps}\n").values["a"], Expression)


def test_expressions_compose(tmp_path: pathlib.Path) -> None:
    text = "a: ${train.steps // 2}\nb: ${a + c}\nc: 5\nd: total ${b}, ${define.t.size}\ndefine: {t: {_target_: T}}\n"
    values = read(tmp_path, text).values
    assert values["b"].names == ("train.steps",)
    assert values["b"].evaluate({"train.steps": 10}.__getitem__) == 10
    assert values["d"].evaluate({"train.steps": 10, "define.t.size": 3}.__getitem__) == "total 10, 3"


@pytest.mark.parametrize(
    ("text", "value", "message"),
    [
        ("${train.steps / (train.steps - 3)}", 3, "3 / 0 divides by zero"),
        ("${train.steps + 1}", "many", "'many' is not a number"),
        ("${train.steps + 1}", None, "null is not a number"),
        ("${train.steps + 1}", object(), "an object of type object is not a number"),
        ("${train.steps * train.steps}", 10**200, "the result of '*' is too large a number"),
        (
            "${train.steps} steps",
            [1],
            "'train.steps' is a list, and cannot be inside a text; of what is built only numbers can",
        ),
        (
            "${train.steps} steps",
            "many",
            "'train.steps' is a text, and cannot be inside a text; of what is built only numbers can",
        ),
    ],
)
def test_expressions_that_come_to_nothing(tmp_path: pathlib.Path, text: str, value: Any, message: str) -> None:
    expression = read(tmp_path, f"name: x\na: {text}\n").values["a"]
    with pytest.raises(ExpressionError) as caught:
        expression.evaluate(lambda name: value)
    assert str(caught.value) == f"{tmp_path}/recipe.yaml:2:4: {text}: {message}"
    assert caught.value.exit_code == EXIT_USAGE


def test_one_object_is_handed_through(tmp_path: pathlib.Path) -> None:
    thing = object()
    expression = read(tmp_path, "define: {t: {_target_: T}}\nmodel: {_target_: M, t: '${define.t}'}\n").values["model"][
        "t"
    ]
    assert expression.evaluate({"define.t": thing}.__getitem__) is thing


def test_environment_in_paths(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_SCRATCH", "/scratch/me")
    monkeypatch.setenv("TEST_WORD", "${define.x}")
    text = (
        "a: ${env.TEST_SCRATCH}\nb: data/${env.TEST_WORD}.txt\nc: ${env.TEST_SCRATCH}/${train.steps}\ndefine: {x: 1}\n"
    )
    document = read(tmp_path, text)
    assert document.values["a"] == "/scratch/me"
    assert document.values["b"] == "data/${define.x}.txt"
    assert document.values["c"].evaluate(lambda name: 3) == "/scratch/me/3"
    assert document.env == {"TEST_SCRATCH": "/scratch/me", "TEST_WORD": "${define.x}"}


def test_no_secret_is_echoed(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "hunter2")
    assert "hunter2" not in complaint(tmp_path, "a: ${env.MY_API_KEY}/x\n", "track.wandb.api_key=[hunter2")


def test_files_overrides_and_references_are_reported_together(tmp_path: pathlib.Path) -> None:
    said = complaint(tmp_path, "seed: 0\nseed: 1\na: ${b}\n", "x.y=", "seed.z=3").splitlines()
    assert [line.split(": ")[0] for line in said] == [
        "recipe.yaml:2:1",
        "override 'x.y='",
        "override 'seed.z=3'",
        "recipe.yaml:3:4",
    ]


def test_reading_imports_neither_torch_nor_pydantic() -> None:
    code = "import sys, launcher.recipe.bases; print(sorted({'torch', 'pydantic', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


# --- anything else: no text, whatever it is, ends in anything but a document or a RecipeError

TOKENS = [
    *(
        "a",
        "b",
        "a.b",
        "1",
        "0",
        "1e3",
        ".inf",
        "0x1f",
        "null",
        "true",
        "~",
        "é",
        "名",
        "\ufeff",
        "\u2028",
        "\x00",
        "\ud800",
    ),
    *(": ", ":", "- ", "[", "]", "{", "}", ",", ", ", "?", "#", " #", " ", "'", '"', "|\n", ">\n", "\n", "\n  ", "\t"),
    *("&x ", "*x", "!t ", "<<: ", "---\n", "...\n", "%", "@", "`", "\\U", "\\", "=", ".", "[0]"),
    *("${", "}", "$${", "${a}", "${a.b}", "${b.c}", "${train.steps}", "${a + 1}", "${b.size}", "${env.HOME}/x"),
    *("+", "-", "*", "/", "//", "(", ")", "a: ", "b: ", "  c: ", "base: ", "recipe.yaml", "_target_: "),
]
texts = st.lists(st.sampled_from(TOKENS), max_size=40).map("".join)
words = st.sampled_from(["a", "b", "c", "_target_", "size", "train", "steps", "define", "data", "scheduler"])
names = st.lists(words | st.integers(0, 2).map(str), min_size=1, max_size=4).map(".".join)
references = st.lists(names | st.sampled_from(["+", "-", "*", "//", "1", "0", "(", ")"]), min_size=1, max_size=4).map(
    lambda parts: f"${{{' '.join(parts)}}}"
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | words | references | texts
trees = st.dictionaries(
    words,
    st.recursive(
        scalars | st.lists(references, max_size=3).map("".join),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=4),
        max_leaves=25,
    ),
    max_size=6,
)
recipes = (
    texts.map(lambda text: text.encode(errors="replace"))
    | st.text(max_size=60).map(lambda text: text.encode())
    | st.binary(max_size=60)
    | trees.map(lambda tree: yaml.safe_dump(tree, allow_unicode=True).encode(errors="replace"))
)
overrides = st.builds("{}={}".format, names, texts | references) | texts


def paths_of(value: Any, path: Path = ()) -> Iterator[Path]:
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in items:
        yield from paths_of(child, (*path, key))


def check_any_recipe(folder: pathlib.Path, text: bytes, changes: list[str], remove: list[str]) -> None:
    """Hold that a recipe is read, or refused in printable lines, and that all which is read has its place."""
    problems: Sequence[Problem] = ()
    document = None
    try:
        document = read(folder, text, *changes, remove=tuple(remove))
        load_recipe(folder / "recipe.yaml", changes, remove)
    except RecipeError as error:
        problems = [] if document else error.problems
    assert bool(problems) != bool(document)
    assert all(str(problem).isprintable() for problem in problems)
    if document:
        check_places(document)


def check_places(document: Document) -> None:
    assert set(document.origins) == set(paths_of(document.values))
    assert set(document.folders) == set(document.origins)
    assert set(document.keys) == {path for path in document.origins if path and not under_list(document, path)}


def under_list(document: Document, path: Path) -> bool:
    value: Any = document.values
    for key in path[:-1]:
        value = value[key]
    return isinstance(value, list)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=recipes, changes=st.lists(overrides, max_size=2), remove=st.lists(names, max_size=1))
def test_any_recipe(tmp_path: pathlib.Path, text: bytes, changes: list[str], remove: list[str]) -> None:
    check_any_recipe(tmp_path, text, changes, remove)


# Recipes of the sections and keys that there are, with good and bad values in them, for what follows the reading.
LENGTHS = ["1 epoch", "5 steps", "5%", "2 hours", "50 batches", "0 steps", "9" * 400 + " steps", "10% of train"]
TARGETS = ["SGD", "torch.nn.Linear", "OneCycleLR", "a.py:Net", "ReduceLROnPlateau", "", "\0.py:x"]
TARGETS.append("n" * 300 + ".py:Net")
OURS = [key for options in OPTIONS.values() for key in options]
plain: st.SearchStrategy[Any] = st.sampled_from(
    [
        *(None, True, 0, 1, -1, 16, 1e-3, float("inf"), "best", "loss", "model", "mean", *LENGTHS, *TARGETS),
        *("${train.steps}", "${scheduler.steps * 2}", "${define.a}"),
    ]
)
values: st.SearchStrategy[Any] = st.deferred(
    lambda: plain | components | st.lists(plain, max_size=2) | st.dictionaries(words, plain, max_size=2)
)
arguments = st.sampled_from(["_args_", "_partial_", "lr", "metric", *OURS])
components: st.SearchStrategy[Any] = st.builds(
    lambda key, target, rest: {key: target, **rest},
    st.sampled_from(["_target_", "_target_", "_ref_"]),
    st.sampled_from(TARGETS) | plain,
    st.dictionaries(arguments, values, max_size=3),
)


def fields(model: type[BaseModel]) -> st.SearchStrategy[dict[str, Any]]:
    """Some of a section's keys, each with a value of its own sections' or any other."""
    inner = {
        name: fields(section) | values if (section := model_in(field.annotation)) else values
        for name, field in model.model_fields.items()
        if name != "base"
    }
    return st.fixed_dictionaries({}, optional={**inner, "a": values})


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(tree=fields(Recipe), changes=st.lists(overrides, max_size=1))
@example(tree={"sweep": None}, changes=[])  # a section that may be missing, beside others that are wrong
def test_any_recipe_of_known_sections(tmp_path: pathlib.Path, tree: dict[str, Any], changes: list[str]) -> None:
    check_loads_or_refuses(tmp_path, tree, changes)


def check_loads_or_refuses(folder: pathlib.Path, tree: dict[str, Any], changes: list[str]) -> None:
    """Hold that a recipe is loaded, or refused in printable lines that name nothing of the libraries inside."""
    good: dict[str, Any] = {
        "data": {"train": {"_target_": "TextFile"}, "global_batch_size": 16},
        **{name: {"_target_": "Linear"} for name in ("model", "loss", "optimizer")},
        "train": {"epochs": 3},
    }
    recipe = folder / "recipe.yaml"
    for text in (tree, {**good, **tree}):
        recipe.write_text(yaml.safe_dump(text, allow_unicode=True), encoding="utf-8")
        problems: Sequence[Problem] = ()
        try:
            load_recipe(recipe, changes)
        except RecipeError as error:
            problems = error.problems
        assert len(problems) <= MAX_PROBLEMS + 1
        assert all(str(problem).isprintable() and "union[" not in str(problem) for problem in problems)


def test_computed_names() -> None:
    assert {"train.steps", "train.steps_per_epoch", "scheduler.steps"} == COMPUTED


def test_of_a_file_that_lies_beside_the_recipe_that_is_said(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Code is looked for beside the recipe, and data where the command is given."""
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    elsewhere.mkdir()
    recipe = load_recipe(
        projects.make(project, own="def read(path):\n    return open(path)\n"),
        ["data.train={_target_: own.py:read, path: notes.txt}"],
    )
    (project / "notes.txt").write_text("…", encoding="utf-8")
    monkeypatch.chdir(elsewhere)
    with pytest.raises(BuildError, match=rf"paths begin in the working directory.* there is {project}/notes\.txt"):
        Builder(recipe).build(recipe.data.train)
    (project / "notes.txt").unlink()
    with pytest.raises(
        BuildError, match=r"No such file or directory: 'notes\.txt' \(.*own\.py:2: return open\(path\)\)$"
    ):
        Builder(recipe).build(recipe.data.train)
