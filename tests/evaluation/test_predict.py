"""`launcher predict RUN PATH`: what people have, read as the run read what it was trained on."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from worlds import in_world

import launcher
from launcher.cli.main import main

DARK, LIGHT = (20, 10, 10), (240, 250, 245)
ROWS = [(x / 10, 1 - x / 7, "far" if x > 14 else "near") for x in range(30)]
ONE_THREAD = {"launch": {"threads": 1}, "optimizer": {"_target_": "SGD", "lr": 0.5}}


def picture(path: Path, colour: tuple[int, int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 5), colour).save(path)


def table(path: Path) -> str:
    lines = ["id,x,y,kind", *(f"r{number},{x},{y},{kind}" for number, (x, y, kind) in enumerate(ROWS))]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Runs of pictures, a table, quantities of one, a text and pairs of numbers, each trained for a moment."""
    folder = tmp_path_factory.mktemp("runs")
    for number in range(4):
        picture(folder / f"photos/train/night/{number}.png", DARK)
        picture(folder / f"photos/train/day/{number}.png", LIGHT)
    (folder / "text.txt").write_text("the cat sat on the mat\n" * 30)
    photos = {"_target_": "ImageFolder", "root": str(folder / "photos/train"), "size": 4}
    rows = {"_target_": "Table", "path": table(folder / "rows.csv"), "features": ["x", "y"], "scale": True}
    text = {"_target_": "TextFile", "path": str(folder / "text.txt"), "context": 8}
    picture_layers = [{"_target_": "Flatten"}, {"_target_": "Linear", "in_features": 48, "out_features": 2}]
    gpt = {"_target_": "launcher.models.GPT", "context": 8, "layers": 1, "heads": 2, "width": 16}
    recipes: dict[str, dict[str, Any]] = {
        "pictures": {
            "data": {"train": photos, "global_batch_size": 4},
            "model": {"_target_": "Sequential", "_args_": picture_layers},
        },
        "table": {
            "data": {"train": {**rows, "target": "kind"}, "validation": "20% of train", "global_batch_size": 10},
            "model": {"_target_": "Linear", "in_features": 2, "out_features": 2},
        },
        "text": {
            "data": {"train": text, "global_batch_size": 50},
            "model": {"vocab_size": "${data.train.vocab_size}", **gpt},
            "optimizer": {"_target_": "AdamW", "lr": 0.02},
        },
        "digits": {
            "data": {"train": {"_target_": "Digits"}, "global_batch_size": 500},
            "model": {"_target_": "launcher.models.MLP", "inputs": 64, "hidden": [4], "outputs": 10},
        },
    }
    ready = SimpleNamespace(folder=folder)
    for name, recipe in recipes.items():
        recipe = {**ONE_THREAD, "loss": {"_target_": "CrossEntropyLoss"}, "train": {"steps": 40}, **recipe}
        launcher.train({"name": name, **recipe}, cpu=True, run_dir=folder / name, output="quiet")
        setattr(ready, name, str(folder / name))
    return ready


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    if path.suffix == ".csv":
        return list(csv.DictReader(io.StringIO(path.read_text())))
    return list(pytest.importorskip("pyarrow.parquet").read_table(path).to_pylist())


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_a_flat_folder_of_pictures(runs: Any, tmp_path: Path, suffix: str) -> None:
    picture(tmp_path / "new/b.png", DARK)
    picture(tmp_path / "new/a.JPG", LIGHT)
    picture(tmp_path / "new/deeper/c.png", DARK)
    (tmp_path / "new/notes.txt").write_text("not a picture")
    target = tmp_path / f"out.{suffix}"
    assert main(["predict", runs.pictures, str(tmp_path / "new"), "--cpu", "--to", str(target)]) == 0
    rows = read(target)
    assert [(row["file"], row["class"]) for row in rows] == [
        *(("a.JPG", "day"), ("b.png", "night"), ("deeper/c.png", "night"))
    ]
    assert [int(row["prediction"]) for row in rows] == [0, 1, 1]
    assert all(float(row["probability"]) > 0.5 for row in rows)
    if suffix != "parquet":  # numbers as float32 has them: no more digits than it takes to read them back
        assert not re.search(r"\d\.?\d{10,}", target.read_text())
        confident = torch.tensor(float(rows[0]["probability"]))
        assert float(str(confident.numpy())) == float(rows[0]["probability"])
    if suffix == "csv":  # a cell for each number, by the class's name
        assert float(rows[0]["output_day"]) > float(rows[0]["output_night"])
    else:
        assert rows[0]["output"][0] > rows[0]["output"][1]


def test_names_of_classes_are_the_run_s_when_its_pictures_are_gone(runs: Any, tmp_path: Path) -> None:
    train = runs.folder / "photos/train"
    picture(tmp_path / "new/dark.png", DARK)
    train.rename(runs.folder / "gone")
    try:
        target = tmp_path / "out.jsonl"
        assert main(["predict", runs.pictures, str(tmp_path / "new"), "--cpu", "--to", str(target)]) == 0
        assert [(row["file"], row["class"]) for row in read(target)] == [("dark.png", "night")]
    finally:
        (runs.folder / "gone").rename(train)


def test_one_picture_and_pictures_that_json_lines_name(
    runs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(tmp_path / "dark.png", DARK)
    picture(tmp_path / "light.png", LIGHT)
    monkeypatch.chdir(tmp_path)
    assert main(["predict", runs.pictures, "dark.png", "--cpu", "--to", "-"]) == 0
    assert [(row["file"], row["class"]) for row in map(json.loads, capsys.readouterr().out.splitlines())] == [
        ("dark.png", "night")
    ]
    (tmp_path / "list.jsonl").write_text('"light.png"\n\n{"file": "dark.png", "of": "yesterday"}\n')
    monkeypatch.chdir(tmp_path)  # a command becomes one of the run's directory
    assert main(["predict", runs.pictures, "list.jsonl", "--cpu", "--to", "-"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["file"], row["class"]) for row in rows] == [("light.png", "day"), ("dark.png", "night")]
    (tmp_path / "list.jsonl").write_text('"light.png"\n"gone.png"\n')
    monkeypatch.chdir(tmp_path)
    assert main(["predict", runs.pictures, "list.jsonl", "--cpu", "--to", "-"]) == 0
    assert f"skipped: gone.png: there is no such file in {tmp_path}\n" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "parquet"])
def test_a_table_without_its_target(runs: Any, tmp_path: Path, form: str) -> None:
    given = [(f"n{number}", y, x) for number, (x, y, _) in enumerate(ROWS[::3])]  # in another order, with a name
    path = tmp_path / f"new.{form}"
    if form == "parquet":
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(
            pyarrow.table(dict(zip(("id", "y", "x"), map(list, zip(*given, strict=True)), strict=True))), path
        )
    elif form == "jsonl":
        path.write_text("".join(json.dumps({"id": name, "y": y, "x": x}) + "\n" for name, y, x in given))
    else:
        mark = "," if form == "csv" else "\t"
        path.write_text("".join(mark.join(map(str, row)) + "\n" for row in [("id", "y", "x"), *given]))
    assert main(["predict", runs.table, str(path), "--cpu", "--to", str(tmp_path / "out.jsonl")]) == 0
    rows = read(tmp_path / "out.jsonl")
    assert [row["id"] for row in rows] == [name for name, _, _ in given]
    assert [row["class"] for row in rows] == [kind for _, _, kind in ROWS[::3]]  # scaled as in training


def test_a_table_with_its_target_keeps_it_beside(runs: Any, tmp_path: Path) -> None:
    assert main(["predict", runs.table, str(runs.folder / "rows.csv"), "--cpu", "--to", str(tmp_path / "o.csv")]) == 0
    rows = read(tmp_path / "o.csv")
    assert list(rows[0]) == ["index", "id", "kind", "class", "prediction", "probability", "output_far", "output_near"]
    assert sum(row["kind"] == row["class"] for row in rows) >= 28


def test_of_each_line_of_a_text_the_next_character(runs: Any, tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("the cat sat on th\n\nthe ca\n")
    assert main(["predict", runs.text, str(tmp_path / "lines.txt"), "--cpu", "--to", str(tmp_path / "o.jsonl")]) == 0
    rows = read(tmp_path / "o.jsonl")
    assert [(row["line"], row["text"], row["class"]) for row in rows] == [
        *((1, "the cat sat on th", "e"), (3, "the ca", "t"))
    ]
    assert len(rows[0]["output"]) == len(set("the cat sat on the mat\n"))


def piped(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))


INPUT = [number / 64 for number in range(64)]


@pytest.mark.parametrize("row", [INPUT, {"picture": INPUT}, [[INPUT[at : at + 8] for at in range(0, 64, 8)]]])
def test_json_lines_on_standard_input(
    runs: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], row: Any
) -> None:
    piped(monkeypatch, json.dumps(row) + "\n" + json.dumps([0] * 64) + "\n")
    assert main(["predict", runs.digits, "-", "--cpu"]) == 0
    printed = capsys.readouterr()
    rows = [json.loads(line) for line in printed.out.splitlines()]
    model = launcher.load(runs.digits, cpu=True)
    with torch.no_grad():
        expected = model(torch.tensor([INPUT, [0.0] * 64]).reshape(2, 1, 8, 8))
    assert torch.allclose(torch.tensor([row["output"] for row in rows]), expected, atol=1e-6)
    assert re.fullmatch(r"standard output: 2 outputs of \S*digits/model_weights.pth\n", printed.err)


# a run, what it is given, and what is wrong, in a line that names no file of ours
PIPED_WRONG = {
    "nothing": ("digits", "", "standard input is empty; write a JSON value on each line"),
    "a blank line": ("pictures", "\n", "standard input is empty; write a JSON value on each line"),
    "a name without quotes": ("pictures", "a.png\n", "standard input: line 1 is not JSON: "),
    "a number for a picture": ("pictures", "7\n", 'standard input: line 1 is not text; write "…" or {"file": "…"}'),
    "no such picture": ("pictures", '"a.png"\n', "standard input: there is no picture at a.png (looked from "),
    "no JSON for a table": ("table", '{"x": 1, "y": 2}\nfoo\n', "standard input: line 2 is not JSON: Expecting value"),
    "a list for a table": ("table", "[1, 2]\n", 'standard input: line 1 is not an object; write each row as in {"age"'),
    "a column too few": ("table", '{"x": 1}\n', "standard input has no column 'y'; it has: x"),
    "words for a number": ("table", '{"x": 1, "y": 2}\n{"x": 1, "y": "b"}\n', "standard input"),
    "a text for a number": ("table", '{"x": 1, "y": "b"}\n', "standard input: column 'y' has 'b' for a number"),
    "nothing for a number": ("table", '{"x": 1, "y": null}\n', "column 'y' has nothing for a number in row 1"),
    "a letter nobody knows": ("text", '"zoo"\n', "standard input: line 1 has 'z', which the text of"),
    "another shape": ("digits", "[1, 2, 3]\n", "standard input: line 1: 3 numbers of shape [3]; a"),
}  # fmt: skip


@pytest.mark.parametrize("case", PIPED_WRONG)
def test_what_is_wrong_on_standard_input_is_said_of_it(
    runs: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    run, text, words = PIPED_WRONG[case]
    piped(monkeypatch, text)
    assert main(["predict", getattr(runs, run), "-", "--cpu"]) in (1, 2)
    printed = capsys.readouterr()
    assert words in printed.err
    assert printed.err.count("\n") == 1
    assert "standard-input.jsonl" not in printed.err
    assert "launcher_tmp" not in printed.err
    assert "data.test" not in printed.err
    assert not printed.out


def test_text_and_rows_of_a_table_on_standard_input(
    runs: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    piped(monkeypatch, '{"text": "the cat s"}\n')
    assert main(["predict", runs.text, "-", "--cpu"]) == 0
    assert json.loads(capsys.readouterr().out)["class"] == "a"
    piped(monkeypatch, '{"x": 2.5, "y": -2.5}\n{"y": 0.9, "x": 0.1}\n')
    assert main(["predict", runs.table, "-", "--cpu"]) == 0
    assert [json.loads(line)["class"] for line in capsys.readouterr().out.splitlines()] == ["far", "near"]


def some(runs: Any, folder: Path, kind: str) -> Path:
    """Seven of what a run may be asked about."""
    if kind == "pictures":
        for number in range(7):
            picture(folder / f"{number}.png", LIGHT if number % 3 else DARK)
        return folder
    path = folder / ("rows.csv" if kind == "table" else "lines.txt")
    lines = ["the cat sat on the mat"[: 3 + 2 * number] for number in range(7)]
    path.write_text("\n".join(["x,y", "1,2", "0,3", "2,2", "1,1", "3,0", "2,1", "0,0"] if kind == "table" else lines))
    return path


@pytest.mark.parametrize(("kind", "size"), [("pictures", 2), ("table", 2), ("text", 3)])
def test_several_that_share_the_model_write_what_one_does(runs: Any, tmp_path: Path, kind: str, size: int) -> None:
    (tmp_path / "new").mkdir()
    path = some(runs, tmp_path / "new", kind)
    words = ["predict", getattr(runs, kind), str(path), "--cpu", "--to"]
    assert main([*words, str(tmp_path / "one.jsonl")]) == 0
    batches = ["device.sharding=full", "evaluate.batch_size=2"]
    assert in_world(size, main, [*words, str(tmp_path / "several.jsonl"), *batches]) == [0] * size
    one, several = read(tmp_path / "one.jsonl"), read(tmp_path / "several.jsonl")
    for row, expected in zip(several, one, strict=True):
        for name in ("output", "probability"):
            assert row.pop(name) == pytest.approx(expected.pop(name), abs=1e-5)
        assert row == expected


# a run, what there is (a file's name and its text), and the line that says why it is nothing
REFUSED = {
    "nothing there": ("pictures", "missing", None, "there is no such file or folder"),
    "a folder without pictures": ("pictures", "empty", None, "no pictures in it (.bmp, .gif"),
    "a picture that is none": ("pictures", "fake.png", "no", "this picture cannot be read"),
    "a table that lacks a feature": ("table", "new.csv", "id,x\n1,2\n", "has no column 'y'; it has: id, x"),
    "a letter nobody has seen": ("text", "new.txt", "the\nzoo\n", "new.txt: line 2 has 'z', which the text of the"),
    "a text without a line": ("text", "new.txt", "\n\n", "no line in it has a character"),
    "no JSON": ("digits", "new.jsonl", "[0,\n[1]\n", "new.jsonl: line 1 is not JSON"),
    "rows of another shape": ("digits", "new.jsonl", "[[1, 2], [3, 4]]\n", "line 1: 4 numbers of shape [2, 2]; a"),
    "rows of unequal length": ("digits", "new.jsonl", "[[1, 2], [3]]\n", "new.jsonl: line 1: "),
    "data that take no path": ("digits", "new.csv", "1\n", "Digits has no argument for a path"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_said_in_a_line(
    runs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    run, name, text, words = REFUSED[case]
    (tmp_path / "empty").mkdir()
    if text is not None:
        (tmp_path / name).write_text(text)
    target = tmp_path / "out.jsonl"
    assert main(["predict", getattr(runs, run), str(tmp_path / name), "--cpu", "--to", str(target)]) in (1, 2)
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not target.exists()


OWN = """
import pathlib, torch
from torch.utils.data import Dataset
class Lines(Dataset):
    classes = ("short", "long")
    def __init__(self, words_file):
        self.words = pathlib.Path(words_file).read_text().split()
    def __len__(self): return len(self.words)
    def __getitem__(self, index):
        return torch.tensor([float(len(self.words[index]))]), int(len(self.words[index]) > 4)
    def row_of(self, index): return {"word": self.words[index]}
"""


def test_a_data_set_of_ones_own_reads_the_path_in_its_way(tmp_path: Path) -> None:
    (tmp_path / "own_words.py").write_text(OWN)
    (tmp_path / "words.txt").write_text("a tree shelters cat elephants be " * 3)
    (tmp_path / "new.txt").write_text("butterflies ox")
    recipe = tmp_path / "words.yaml"
    recipe.write_text(
        f"data: {{train: {{_target_: own_words.py:Lines, words_file: {tmp_path}/words.txt}}, global_batch_size: 6}}\n"
        "model: {_target_: Linear, in_features: 1, out_features: 2}\nloss: {_target_: CrossEntropyLoss}\n"
        "optimizer: {_target_: SGD, lr: 0.2}\ntrain: {steps: 90}\nlaunch: {threads: 1}\n"
    )
    launcher.train(recipe, cpu=True, run_dir=tmp_path / "run", output="quiet")
    out = tmp_path / "out.csv"
    assert main(["predict", str(tmp_path / "run"), str(tmp_path / "new.txt"), "--cpu", "--to", str(out)]) == 0
    assert [(row["word"], row["class"]) for row in read(out)] == [("butterflies", "long"), ("ox", "short")]


CARRIED = """
from torch import nn


class Carried(nn.Linear):
    def forward(self, x, hidden): return super().forward(x + hidden)


def step(model, batch, at): return {"loss": (model(batch[0], 0.5) - batch[1]).square().mean()}
"""


def test_a_model_that_only_its_step_can_call_is_refused_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "carried.py").write_text(CARRIED)
    (tmp_path / "carried.yaml").write_text(
        f"data: {{train: {{_target_: Table, path: {table(tmp_path / 'rows.csv')}, features: [x], target: [y]}}}}\n"
        "model: {_target_: carried.py:Carried, in_features: 1, out_features: 1}\noptimizer: {_target_: SGD}\n"
        "train: {steps: 1, step: carried.py:step}\nlaunch: {threads: 1}\n"
    )
    recipe, run = str(tmp_path / "carried.yaml"), str(tmp_path / "run")
    launcher.train(recipe, "data.global_batch_size=4", cpu=True, run_dir=run, output="quiet")
    capsys.readouterr()
    command = ["predict", run, str(tmp_path / "rows.csv"), "--cpu", "--to", str(tmp_path / "o.csv")]
    assert main(command) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "missing 1 required positional argument: 'hidden': train.step calls the model in its own way" in error
    assert main([*command, "batch.inputs=[0, {_value_: 0.5}]"]) == 0


def test_yes_or_no_and_quantities(tmp_path: Path) -> None:
    path = table(tmp_path / "rows.csv")
    data = {"_target_": "Table", "path": path, "features": ["x"], "target": ["y"], "scale": True}
    recipe: dict[str, Any] = {"data": {"train": data, "global_batch_size": 10}, "train": {"steps": 60}, **ONE_THREAD}
    recipe["model"] = {"_target_": "Linear", "in_features": 1, "out_features": 1}
    for loss in ("MSELoss", "BCEWithLogitsLoss"):
        if loss == "BCEWithLogitsLoss":
            rows = "\n".join(f"{x},{float(x > 1.4)}" for x, _, _ in ROWS)
            (tmp_path / "rows.csv").write_text(f"x,y\n{rows}\n")
        run = tmp_path / loss
        launcher.train({"name": "one", "loss": {"_target_": loss}, **recipe}, cpu=True, run_dir=run, output="quiet")
        assert main(["predict", str(run), path, "--cpu", "--to", str(run / "o.csv")]) == 0
    quantities, decided = read(tmp_path / "MSELoss/o.csv"), read(tmp_path / "BCEWithLogitsLoss/o.csv")
    assert all(abs(float(row["output"]) - float(row["y"])) < 0.1 for row in quantities)
    assert sum(int(row["prediction"]) == float(row["y"]) for row in decided) >= 28
    assert all(0.5 <= float(row["probability"]) <= 1 for row in decided)


def test_only_one_path(runs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", runs.pictures, "a.png", "b.png", "--cpu"]) == 2
    assert capsys.readouterr().err == "a.png, b.png: one path at a time; put files into one folder\n"
