"""`launcher data`: what is said of a recipe's data, and the sheet of pictures."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image
from places import RECIPES
from samples import FLOWERS, paint

from launcher.cli.main import main
from launcher.errors import EXIT_DONE, EXIT_FAILED, EXIT_USAGE

SOURCES = RECIPES / "data.yaml"
RECIPE = """
name: mine
data:
  train: {_target_: DATA}
  global_batch_size: 4
model: {_target_: Linear, in_features: 1, out_features: 1}
loss: {_target_: MSELoss}
optimizer: {_target_: SGD, lr: 0.1}
train: {steps: 5}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], train: str, *arguments: str) -> str:
    Path("mine.yaml").write_text(RECIPE.replace("DATA", train))
    assert main(["data", "mine.yaml", "--seconds", "0", *arguments]) == EXIT_DONE
    return capsys.readouterr().out


def test_pictures_are_counted_described_and_put_on_a_sheet(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(12):
        paint(folder / "pets" / "cat" / f"{number}.png", (255, 0, 0), (8, 8))
    for number in range(2):
        paint(folder / "pets" / "dog" / f"{number}.png", (0, 0, 255), (8, 8))
    out = said(capsys, "ImageFolder, root: pets", "data.validation=20% of train", "data.shuffle=false")
    assert re.search(r"train +11  ImageFolder, a part  3 steps of 4 an epoch, the last of 3", out)
    assert re.search(r"validation +3  ImageFolder, a part", out)
    assert re.search(r"0  float32  \[4, 3, 8, 8\]  0 … 1, mean 0.3333, deviation 0.4714  input", out)
    assert re.search(r"1  int64    \[4\] +0 … 0 +target", out)
    assert "classes of train, all 11 samples" in out
    assert re.search(r"cat +\d+ +\d\d\.\d%  █{30}", out)
    assert "mine-data.png: 4 of train, 3 of validation" in out
    with Image.open("mine-data.png") as sheet:
        colours = dict((colour, count) for count, colour in sheet.convert("RGB").getcolors() or [])  # noqa: C402  # turned round
    side = 112  # of a tile: 8 pixels, 14 times as large
    assert colours[(255, 0, 0)] + colours.get((0, 0, 255), 0) == 7 * side * side


def test_a_table_is_shown_in_numbers_with_its_classes_and_advice(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = FLOWERS.splitlines()
    (folder / "flowers.csv").write_text("\n".join([*rows, *[rows[1].replace("5.1", "510")] * 12]))
    out = said(capsys, "Table, path: flowers.csv, target: kind", "data.shuffle=false", "--processes", "2")
    assert "a batch of train, the share of one of 2 processes" in out
    assert re.search(r"setosa +14  87\.5%", out)
    assert re.search(r"0  0  \[5\.1, 1\.4, 2\]\n +1  0\n", out)
    assert "class setosa has 14 times as many samples as versicolor: data.weights" in out
    out = said(capsys, "Table, path: flowers.csv, target: kind", "data.global_batch_size=16")
    assert "input 0 runs from 0 to 510: scale it to about -1 … 1" in out


def test_text_is_shown_as_text(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "text.txt").write_text("hello  world " * 10)
    out = said(capsys, "TextFile, path: text.txt, context: 12", "data.shuffle=false")
    assert "0  0  'hello  world'\n" in out
    assert "classes" not in out


def test_a_stream_is_looked_at_too(capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["data.train={_target_: sources.py:Stream}", "--remove", "data.validation", "--seconds", "0"]
    assert main(["data", str(SOURCES), *overrides]) == EXIT_DONE
    out = capsys.readouterr().out
    assert re.search(r"train  a stream  Stream\n", out)
    assert "a stream in its own order" in out


def test_reading_is_measured_with_each_number_of_workers(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "text.txt").write_text("hello world " * 10)
    out = said(capsys, "TextFile, path: text.txt, context: 4", "--seconds", "0.05")
    assert "reading train alone, whole batches, batches of 4" in out
    assert re.search(r"\n +0 +[\d,.]+ +[\d,]+ +[\d,]+ ms  as the recipe has it\n +1 +[\d,.]+ ", out)
    assert re.search(r"recommended\n(.*\n)*  data\.workers: \d", out)


def test_mistakes_are_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.yaml").write_text(RECIPE.replace("DATA", "ImageFolder, root: pets"))
    assert main(["data", "mine.yaml"]) == EXIT_USAGE
    assert re.fullmatch(r"mine\.yaml:4:10: data\.train: .*no folder at pets \(looked.*\n", capsys.readouterr().err)
    for name in ("a.png", "b.png"):
        paint(folder / "pets" / "cat" / name)
    paint(folder / "pets" / "cat" / "c.png", size=(5, 5))
    assert main(["data", "mine.yaml"]) == EXIT_FAILED
    assert re.match(r"data\.train \(ImageFolder\), rank 0: samples .* do not make a batch: ", capsys.readouterr().err)
