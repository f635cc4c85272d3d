"""Room on the disk: what is estimated before the start is what trials write, and what cannot fit is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from places import ROOT, TINY
from simulated import settings

import launcher
from launcher.checks.stored import Stored, stored
from launcher.cli.main import main
from launcher.errors import EXIT_USAGE
from launcher.recipe.build import Builder
from launcher.recipe.load import load_recipe
from launcher.sweep.begin import Asked, sought
from launcher.sweep.record import create
from launcher.sweep.room import Each, at_once, still_needed

RECIPE = str(ROOT / "recipes" / "digits_mlp.yaml")
VALIDATED = "data.validation={_target_: parts.py:WholeNumbers, size: 23, seed: 2}"
MUCH = 64 * 1024  # bytes that files have beside their tensors


WAYS = TINY.parent / "ways.py"


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("optimizer={_target_: SGD, lr: 0.1}", "train.ema=0.9"),
        ("optimizer={_target_: Adafactor, lr: 0.01}", "train.freeze={layers.1.*: always}"),
        ("optimizer={_target_: SGD, lr: 0.1, momentum: 0.9}", "save.average_last=2", "save.every=1 steps"),
        (f"optimizer={{_target_: '{WAYS}:Sam', lr: 0.05, _closure_: true}}",),
        (f"optimizer={{_target_: '{WAYS}:Lookahead', optimizer: {{_target_: Adam, lr: 0.02}}}}",),
    ],
    ids=["AdamW", "an average", "Adafactor, frozen", "the mean of the last", "one inside SAM", "one inside Lookahead"],
)
def test_a_checkpoint_is_as_large_as_it_is_said_to_be(tmp_path: Path, words: tuple[str, ...]) -> None:
    run = launcher.train(RECIPE, "train.steps=2", *words, cpu=True, run_dir=tmp_path / "run", output="quiet").folder
    recipe = load_recipe(RECIPE, ["train.steps=2", *words])
    told = stored(recipe, Builder(recipe, ()))
    for checkpoint in (run / "checkpoints").glob("step-*"):
        written = sum(file.stat().st_size for file in checkpoint.iterdir())
        assert told.checkpoint <= written <= told.checkpoint + MUCH
    weights = sum(file.stat().st_size for file in run.glob("model_weights*.pth"))
    assert told.weights <= weights <= told.weights + MUCH


def test_a_model_too_large_to_be_built_is_counted_without_memory() -> None:
    read = load_recipe(RECIPE, ["model.hidden=[4096, 4096]", "optimizer={_target_: SGD, lr: 0.1, momentum: 0.9}"])
    weights = 4 * (65 * 4096 + 4097 * 4096 + 4097 * 10)
    assert stored(read, Builder(read, ())) == Stored(2 * weights, weights)


def test_what_a_sweep_holds_at_most_follows_from_what_it_keeps() -> None:
    each = Each(checkpoint=100, weights=30)
    grid, halving = settings(trials=12, slots=2), settings(trials=12, slots=2, method="halving", rungs=(5, 10))
    assert at_once(replace(grid, keep="all"), 12, each) == 12 * 130 + 2 * 100
    assert at_once(halving, 12, each) == 12 * 100 + 30 + 2 * 100, "all but the best may lie paused"
    assert at_once(grid, 12, each) == (2 + 2) * 130 + 2 * 100
    assert at_once(grid, 500, each) == at_once(grid, 12, each)
    assert at_once(replace(grid, slots=8), 3, each) == 3 * 130 + 3 * 100
    assert at_once(replace(grid, keep="all"), 12, replace(each, kept=2)) == 12 * 230 + 2 * 100


def test_the_smallest_and_the_mean_of_a_spaces_models_are_told(tmp_path: Path) -> None:
    def estimate(*words: str) -> tuple[int, int]:
        room = sought(Asked(RECIPE, words=words, parallel=2, method="grid", keep="all", cpu=True)).room
        return room.least, room.likely

    small = estimate("model.hidden=[32],[32, 32]", "optimizer.lr=1e-3,1e-2")
    both = estimate("model.hidden=[32],[1024, 1024]", "optimizer.lr=1e-3,1e-2")
    assert both[0] < 2 * small[0]
    assert both[1] > 10 * both[0]


def test_what_plainly_does_not_fit_is_refused_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    huge = ("model.hidden=[32768, 32768]", "--trials", "1000000", "--keep", "all")
    for words in (huge, (*huge, "--run-dir", "sweeps/lr")):
        assert (
            main(["sweep", RECIPE, "optimizer.lr=1e-4..1e-2:log", "--method", "random", "--cpu", *words]) == EXIT_USAGE
        )
        said = capsys.readouterr().err
        assert said.startswith(f"{tmp_path}: the sweep needs at least ")
        assert "are free; write fewer --trials, or leave out --keep all, or a --run-dir on another disk" in said
        assert said.count("\n") == 1
        assert not list(tmp_path.iterdir())


def test_what_cannot_be_built_without_values_is_told_and_not_refused(tmp_path: Path) -> None:
    for name in ("tiny.yaml", "parts.py"):
        (tmp_path / name).write_text((TINY.parent / name).read_text(encoding="utf-8"), encoding="utf-8")
    with (tmp_path / "parts.py").open("a", encoding="utf-8") as file:
        file.write("\n\nclass Elsewhere(Net):\n    def __init__(self):\n        raise OSError('only on a GPU')\n")
    words = (VALIDATED, "model={_target_: parts.py:Elsewhere}", "optimizer.lr=1e-3,1e-2")
    new = sought(Asked(str(tmp_path / "tiny.yaml"), words=words, cpu=True))
    said = new.room.line(tmp_path)
    assert said.startswith("what a checkpoint takes shows in the first trial: ")
    assert "OSError: only on a GPU" in said
    new.room.check(tmp_path, new.settings)


def test_what_is_still_needed_is_measured_by_the_first_trial(tmp_path: Path) -> None:
    record = create(tmp_path / "sweep", settings(trials=4, slots=2, keep="all"))
    checkpoint = record.folder_of(0) / "checkpoints" / "step-00000010"
    checkpoint.mkdir(parents=True)
    (checkpoint / "weights.pth").write_bytes(b"0" * 1000)
    (checkpoint / "training.pt").write_bytes(b"0" * 2000)
    (record.folder_of(0) / "model_weights.pth").write_bytes(b"0" * 1000)
    assert still_needed(record, 0)[0] == 4 * 4000 + 2 * 3000, "none is proposed: nothing is held yet"
