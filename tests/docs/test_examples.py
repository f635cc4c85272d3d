"""What the pages tell the reader to type works: commands run in one folder of finished runs, recipes are checked.

A block that cannot be run here says why in a comment above its fence: `<!-- not run: needs a cluster -->`.
"""

from __future__ import annotations

import shutil
import tomllib
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
import yaml
from pages import DOCS, PAGES, REASONS, Code, blocks, commands, spans
from PIL import Image
from places import ROOT

import launcher
from launcher.cli.main import main, parser
from launcher.recipe.build import Builder
from launcher.recipe.load import load_recipe
from launcher.recipe.schema import Recipe
from launcher.world.site import Site

SHELLS = ("", "sh", "shell", "bash", "console")
OWN_CODE = Path(__file__).with_name("own_code")
RECIPES = [block for page in PAGES if page.name != "agents.md" for block in blocks(page, "yaml")]
SHELL = [block for page in PAGES for block in blocks(page) if block.language in SHELLS and commands(block)]
STANDS_FOR = {"R": "my.yaml", "OTHER": "digits_cnn.yaml", "RUN": "runs/digits/first", "WEIGHTS.pth": "weights.pth"}
EXAMPLES = ("steps",)  # commands that somebody might add
# what a recipe needs besides the piece of one that a page shows
REST: dict[str, dict[str, Any]] = {
    "data": {
        "train": {"_target_": "launcher.datasets.Digits", "split": "train"},
        "validation": {"_target_": "launcher.datasets.Digits", "split": "validation"},
        "global_batch_size": 64,
    },
    "model": {"_target_": "launcher.models.MLP", "inputs": 64, "hidden": [8], "outputs": 10},
    "loss": {"_target_": "CrossEntropyLoss"},
    "optimizer": {"_target_": "AdamW", "lr": 0.001},
    "train": {"epochs": 1},
}


REST_OF_A_RUN = {name: REST[name] for name in ("loss", "optimizer", "train")} | {"launch": {"threads": 1}}


def _things_people_have() -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Pictures, a table and a text, made here; a run's name, its data set and its model for each."""
    for path, shade in (("garden/rose/1.png", 40), ("garden/tulip/2.png", 200), ("photos/3.png", 90)):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (shade, shade, shade)).save(path)
    layers = [{"_target_": "Flatten"}, {"_target_": "Linear", "in_features": 192, "out_features": 2}]
    yield (
        "flowers",
        {"_target_": "ImageFolder", "root": "garden", "size": 8},
        {"_target_": "Sequential", "_args_": layers},
    )
    Path("old.csv").write_text("rooms,area,kind\n1,20,flat\n4,90,house\n2,60,flat\n5,140,house\n")
    Path("new.csv").write_text("rooms,area\n3,70\n")
    linear = {"_target_": "Linear", "in_features": 2, "out_features": 2}
    yield "prices", {"_target_": "Table", "path": "old.csv", "target": "kind", "scale": True}, linear
    Path("poems.txt").write_text("so much depends upon a red wheel barrow\n" * 4)
    Path("lines.txt").write_text("so much depends\n")
    gpt = {"_target_": "launcher.models.GPT", "context": 8, "layers": 1, "heads": 1, "width": 8}
    text = {"_target_": "TextFile", "path": "poems.txt", "context": 8}
    yield "poems", text, {**gpt, "vocab_size": "${data.train.vocab_size}"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the reader works: the README's recipe, code of their own, and runs that are over."""
    place = tmp_path_factory.mktemp("reader")
    shutil.copytree(OWN_CODE, place, dirs_exist_ok=True)
    shutil.copytree(ROOT / "recipes" / "gan", place, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.yaml"))
    shutil.copytree(ROOT / "recipes" / "custom_model", place, dirs_exist_ok=True)
    (place / "pyproject.toml").touch()  # a project of its own
    (place / "site.yaml").touch()  # and not the machine's site file
    (place / "my.yaml").write_text(next(blocks(ROOT / "README.md", "yaml")).text, encoding="utf-8")
    short = ["--cpu", "--quiet", "launch.threads=1", "train.epochs=1"]
    with chdir(place), pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAUNCHER_SITE", str(place / "site.yaml"))
        assert main(["copy", "digits_cnn"]) == 0
        assert main(["train", "my.yaml", "--run-dir", "runs/digits/first", *short]) == 0
        assert main(["train", "digits_cnn.yaml", "--run-dir", "runs/a", *short]) == 0
        for name, data, model in _things_people_have():
            recipe = {"name": name, "data": {"train": data, "global_batch_size": 4}, "model": model, **REST_OF_A_RUN}
            launcher.train(recipe, cpu=True, output="quiet")
        shutil.copy("runs/digits/first/model_weights.pth", "weights.pth")
        yield place


def _name(block: Code) -> str:
    return str(block)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_is_not_run_says_why(page: Path) -> None:
    assert {block.not_run for block in blocks(page)} - {"", *REASONS} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_within_sentences_exist(page: Path) -> None:
    known = parser().parsers
    for span in spans(page):
        _, name, *words = span.split()
        if name in EXAMPLES or name.startswith("-"):
            continue
        assert name in {*known, "help"}, span
        ends = [words.index(end) for end in ("--", "run") if end in words]  # what follows is another program's
        flags = [word.partition("=")[0] for word in words[: min(ends, default=None)] if word.startswith("-")]
        assert name == "help" or {*flags} <= {*known[name].flags()}, span


@pytest.mark.parametrize("block", [block for block in SHELL if not block.not_run], ids=_name)
def test_commands_run(folder: Path, block: Code, capsys: pytest.CaptureFixture[str]) -> None:
    for program, *words in commands(block):
        assert program == "launcher", f"{block}: only `launcher` is run here; say why not: <!-- not run: … -->"
        arguments = [STANDS_FOR.get(word, word) for word in words]
        if arguments[0] == "train":
            arguments.append("train.epochs=1")
        code = main(arguments)
        assert code == 0, f"{block}: launcher {' '.join(arguments)}: {capsys.readouterr().err}"


@pytest.mark.parametrize("block", [block for block in RECIPES if not block.not_run], ids=_name)
def test_recipes_are_right(folder: Path, block: Code) -> None:
    stated = yaml.safe_load(block.text) or {}
    if not stated.keys() <= Recipe.model_fields.keys():
        Site.model_validate(stated)
        return
    rest = {name: section for name, section in REST.items() if name not in stated or name in ("data", "train")}
    if "batch_sampler" in stated.get("data", {}):
        rest["data"] = {key: value for key, value in REST["data"].items() if key != "global_batch_size"}
    if "step" in stated.get("train", {}):
        rest.pop("loss", None)
    (folder / "rest.yaml").write_text(yaml.safe_dump(rest), encoding="utf-8")
    (folder / "piece.yaml").write_text(f"base: rest.yaml\n{block.text}", encoding="utf-8")
    Builder(load_recipe(folder / "piece.yaml"), ()).check()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_other_code_can_be_read(page: Path) -> None:
    for block in blocks(page, "python"):
        compile(block.text, str(block), "exec")
    for block in blocks(page, "toml"):
        tomllib.loads(block.text)


def test_every_page_of_a_task_is_looked_at() -> None:
    assert len(SHELL) > 10
    assert len(RECIPES) > 20
    assert {block.page for block in RECIPES} <= {*PAGES}
    assert set(DOCS) <= set(PAGES)
