"""`launcher show`: every value with its origin, as YAML that reads back to the same recipe, and what differs."""

from __future__ import annotations

import shutil
from pathlib import Path

import projects
import pytest
from places import REAL, SHIPPED

from launcher.cli.main import main
from launcher.recipe.load import load_recipe
from launcher.recipe.places import Problems
from launcher.recipe.show import quoted, render, resolved, scalar
from launcher.recipe.yaml import parse

READABLE = [*SHIPPED, *(path for path in sorted(REAL.glob("*.yaml")) if path.stem != "gan")]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def show(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    code = main(["show", *map(str, arguments)])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


# ---------------------------------------------------------------------- reading back


@pytest.mark.parametrize("path", READABLE, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_what_is_shown_reads_back_to_the_same_recipe(tmp_path: Path, path: Path) -> None:
    shutil.copytree(path.parent, tmp_path / "copy", ignore=shutil.ignore_patterns("runs", "__pycache__"))
    recipe = load_recipe(tmp_path / "copy" / path.name)
    again = tmp_path / "copy" / "shown.yaml"
    again.write_text(render(recipe), encoding="utf-8")
    assert resolved(load_recipe(again)) == resolved(recipe)


@pytest.mark.parametrize(
    "text",
    [
        "${x}",
        "$${x}",
        "a ${b} $c",
        "no",
        "On",
        "null",
        "true",
        "1e-3",
        "12:30:00",
        "",
        " x ",
        "a: b",
        "# x",
        "- x",
        "*x",
        "a\nb\t",
        "\\",
        '"',
        "'",
        "\x1b[0m",
        "\x7f",
        "\x85",
        "\u2028",
        "\ufeff",
        "é",
        "名前",
        "😀",
        "x" * 200,
        "@x",
        "%x",
        "~",
    ],
)
def test_every_text_reads_back(tmp_path: Path, text: str) -> None:
    recipe = load_recipe(projects.make(tmp_path / "project"), [f"define={{x: {quoted(text.replace('${', '$${'))}}}"])
    assert recipe.define["x"] == text
    again = tmp_path / "project" / "shown.yaml"
    again.write_text(render(recipe), encoding="utf-8")
    assert load_recipe(again).define["x"] == text


@pytest.mark.parametrize("value", [0, -5, 10**40, 1e-3, 1e22, 0.1, -0.0, float("inf"), True, None, [], {}])
def test_every_value_reads_back(tmp_path: Path, value: object) -> None:
    node = parse(f"x: {scalar(value)}", "x.yaml", tmp_path, Problems())
    assert node is not None
    found = node.find("x")
    assert found is not None
    assert found[1].value == value
    assert type(found[1].value) is type(value)


def test_a_file_that_a_base_names_is_still_found(tmp_path: Path) -> None:
    base = projects.make(tmp_path / "project" / "bases")
    recipe = tmp_path / "project" / "mine.yaml"
    recipe.write_text(f"base: bases/{base.name}\nname: mine\n")
    shown = render(load_recipe(recipe))
    assert "_target_: bases/parts.py:Net" in shown
    (tmp_path / "project" / "shown.yaml").write_text(shown)
    again = load_recipe(tmp_path / "project" / "shown.yaml")
    assert again.model.target == "bases/parts.py:Net"


def test_a_tracker_without_settings_stays(tmp_path: Path) -> None:
    recipe = load_recipe(projects.make(tmp_path / "project"), ["track={tensorboard: null}"])
    assert resolved(recipe)["track"]["tensorboard"] == {}


# ---------------------------------------------------------------------- origins


def test_every_value_says_where_it_comes_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = projects.make(tmp_path / "project")
    recipe = base.parent / "mine.yaml"
    recipe.write_text("base: recipe.yaml\ntrain: {epochs: 7}\n")
    code, out, err = show(capsys, recipe, "optimizer.lr=0.5")
    assert (code, err) == (0, "")
    origins = {
        line.partition(":")[0].strip(): line.rpartition("  # ")[2] for line in out.splitlines() if "  # " in line
    }
    assert origins["epochs"] == f"{recipe}:2:17"
    assert origins["lr"] == "override 'optimizer.lr=0.5'"
    assert origins["shuffle"] == "default"
    assert origins["global_batch_size"].startswith(f"{base}:3:")
    assert "\x1b" not in out


@pytest.mark.parametrize(
    ("word", "refusal"),
    [
        ("seed=-1", "seed: -1 is not a number of at least 0"),
        ("data.workers=100000", "data.workers: 100000 is not a number of at most 1024"),
    ],
)
def test_a_bad_recipe_is_not_shown(word: str, refusal: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = show(capsys, projects.make(tmp_path / "project"), word)
    assert (code, out) == (2, "")
    assert refusal in err


# ---------------------------------------------------------------------- differences, and runs


def test_differences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = projects.make(tmp_path / "project")
    other = recipe.parent / "other.yaml"
    other.write_text("base: recipe.yaml\noptimizer: {lr: 0.5, momentum: 0.9}\n")
    code, out, _ = show(capsys, recipe, "--diff", other)
    assert code == 0
    assert out.splitlines() == [
        "optimizer.lr:",
        f"  - 0.1  # {recipe}:6:32",
        f"  + 0.5  # {other}:2:17",
        "optimizer.momentum:",
        f"  + 0.9  # {other}:2:32",
    ]
    assert show(capsys, recipe, "--diff", recipe)[1] == f"{recipe} and {recipe} say the same\n"


def test_a_run_s_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = projects.make(tmp_path / "project")
    run = tmp_path / "run"
    run.mkdir()
    (run / "resolved.yaml").write_text(render(load_recipe(recipe, ["optimizer.lr=0.5"])), encoding="utf-8")
    code, out, _ = show(capsys, run)
    assert code == 0
    assert "# override 'optimizer.lr=0.5'" in out
    assert [line.rstrip() for line in out.splitlines()] == (run / "resolved.yaml").read_text().splitlines()
    code, out, _ = show(capsys, recipe, "--diff", run)
    assert out.splitlines()[0] == "optimizer.lr:"
    assert out.splitlines()[2] == "  + 0.5  # override 'optimizer.lr=0.5'"
    assert show(capsys, run, "--diff", run)[1] == f"{run} and {run} say the same\n"
    code, _, err = show(capsys, run, "seed=3")
    assert (code, "a run's recipe cannot be changed" in err) == (2, True)
