"""A classifier is what has class numbers and scores of them, whatever its loss; its predictions in every form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch
from PIL import Image
from places import RECIPES

from launcher.cli.main import main
from launcher.evaluation.outputs import score_classes

RECIPE = str(RECIPES / "waves.yaml")


def trained(run: Path, *overrides: str, recipe: str = RECIPE) -> str:
    assert main(["train", recipe, "--cpu", "--run-dir", str(run), "launch.threads=1", *overrides]) == 0
    return str(run)


@pytest.fixture(scope="module")
def focal(tmp_path_factory: pytest.TempPathFactory) -> str:
    return trained(tmp_path_factory.mktemp("focal") / "run")


def test_a_loss_of_ones_own_on_class_numbers_is_a_classifier_s(focal: str, tmp_path: Path) -> None:
    table = pyarrow.parquet.read_table(Path(focal) / "predictions.parquet")
    assert {"index", "target", "prediction", "probability", "loss"} <= set(table.column_names)
    assert len(table) == 10
    assert main(["predict", focal, "--cpu", "--to", str(tmp_path / "out.jsonl")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["prediction"] for row in rows] == table.column("prediction").to_pylist()


def test_a_loss_of_ones_own_on_quantities_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = "model={_target_: Linear, in_features: 4, out_features: 1}"
    run = trained(tmp_path / "run", model, "loss={_ref_: waves.py:squares}")
    assert not (tmp_path / "run" / "predictions.parquet").exists()
    assert "no confusion matrix and no mistakes: its outputs, float32 [8, 1], are no scores" in capsys.readouterr().out
    assert main(["predict", run, "--cpu", "--to", str(tmp_path / "out.jsonl")]) == 0
    assert "prediction" not in (tmp_path / "out.jsonl").read_text()


@pytest.mark.parametrize(
    ("outputs", "targets", "are"),
    [
        (torch.zeros(3, 4), torch.tensor([0, 3, 1]), True),
        (torch.zeros(3, 4), torch.tensor([0, 4, 1]), False),  # more classes than scores
        (torch.zeros(3, 4), torch.tensor([0, -1, 1]), False),  # 1 and -1 are no numbers of classes
        (torch.zeros(3, 4), torch.tensor([0.0, 1.0, 1.0]), False),
        (torch.zeros(3, 1), torch.tensor([0, 0, 0]), False),
        (torch.zeros(3, 2, 5), torch.tensor([0, 1, 0]), False),
    ],
)
def test_scores_are_told_by_shape_and_by_the_highest_class(
    outputs: torch.Tensor, targets: torch.Tensor, are: bool
) -> None:
    assert score_classes(outputs, targets) is are


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_the_suffix_says_how_predictions_are_written(focal: str, tmp_path: Path, suffix: str) -> None:
    target = tmp_path / f"out{suffix}"
    assert main(["evaluate", focal, "--cpu", "--predictions", str(target)]) == 0
    if suffix == ".parquet":
        assert len(pyarrow.parquet.read_table(target)) == 10
    elif suffix == ".csv":
        header, *rows = target.read_text().splitlines()
        assert (header, len(rows)) == ("index,target,prediction,probability,loss", 10)
    else:
        assert json.loads(target.read_text().splitlines()[3])["index"] == 3


def test_another_suffix_is_refused(focal: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("out.xlsx", "out", "-"):
        assert main(["evaluate", focal, "--cpu", "--predictions", str(tmp_path / name)]) == 2
        assert "--predictions" in (said := capsys.readouterr().err)
        assert "one of: .csv, .jsonl, .parquet" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "row", ["[[0.1, 0.2]]", "[0.1, 0.2]", '{"x": [1, 2, 3, 4, 5]}', "[[[1, 2, 3, 4]], [[5, 6, 7, 8]]]"]
)
def test_a_row_of_another_shape_is_told_in_a_line(
    focal: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], row: str
) -> None:
    (tmp_path / "rows.jsonl").write_text(f"[1, 2, 3, 4]\n\n{row}\n")
    assert main(["predict", focal, str(tmp_path / "rows.jsonl"), "--cpu", "--to", "-"]) != 0
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert "rows.jsonl: line 3" in line
    assert "a sample of the training has" in line


def pictures(folder: Path, names: list[str], broken: tuple[str, ...] = ()) -> None:
    for name in (*names, *broken):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 6), (100, 50, len(name))).save(folder / name)
    for name in broken:
        (folder / name).write_bytes(b"no picture")


def test_predictions_of_pictures_have_their_files_and_broken_ones_are_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures(tmp_path / "photos", [f"{kind}/{number}.png" for kind in ("cat", "dog") for number in range(5)])
    recipe: dict[str, Any] = {
        "data": {
            "train": {"_target_": "ImageFolder", "root": str(tmp_path / "photos"), "size": 4},
            "validation": "40% of train",
            "global_batch_size": 3,
        },
        "model": {
            "_target_": "Sequential",
            "_args_": [{"_target_": "Flatten"}, {"_target_": "Linear", "in_features": 48, "out_features": 2}],
        },
        "loss": {"_target_": "CrossEntropyLoss"},
        "optimizer": {"_target_": "SGD", "lr": 0.1},
        "train": {"epochs": 1},
    }
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    run = trained(tmp_path / "run", recipe=str(tmp_path / "r.yaml"))
    table = pyarrow.parquet.read_table(tmp_path / "run" / "predictions.parquet")
    assert {Path(file).suffix for file in table.column("file").to_pylist()} == {".png"}
    assert all((tmp_path / "photos" / file).is_file() for file in table.column("file").to_pylist())
    pictures(tmp_path / "new", ["a.png"], broken=("b.png",))
    assert main(["predict", run, str(tmp_path / "new"), "--cpu", "--to", str(tmp_path / "out.csv")]) == 0
    printed = capsys.readouterr()
    assert "1 output of" in printed.out
    assert "skipped: 1 picture" in printed.out
    assert printed.err.strip() == "skipped: b.png: this picture cannot be read"
    pictures(tmp_path / "all", [], broken=("b.png",))
    assert main(["predict", run, str(tmp_path / "all"), "--cpu", "--to", str(tmp_path / "all.csv")]) == 2
    pictures(tmp_path / "photos", [], broken=("cat/0.png", "cat/1.png", "cat/2.png", "cat/3.png", "cat/4.png"))
    with pytest.raises(SystemExit):
        main(["train", str(tmp_path / "r.yaml"), "--cpu", "--run-dir", str(tmp_path / "broken")])
    assert "or set data.train.corrupt=skip" in capsys.readouterr().err
