"""The recipes that are shipped: each learns what it says it learns, and opens with the command that runs it."""

from __future__ import annotations

import json
import math
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from places import FIT_HERE, ROOT, SHIPPED
from tiers import rounds
from worlds import Trained, in_world, result_of, train, train_here

from launcher.cli.main import main
from launcher.recipe.load import load_recipe

RECIPES = ROOT / "recipes"


def test_your_own_loop_and_the_recipe_have_equal_losses(tmp_path: Path) -> None:
    loop = RECIPES / "custom_model" / "your_train.py"
    script = (
        f"import json, sys; sys.path.insert(0, {str(loop.parent)!r}); import your_train; "
        "json.dump(your_train.main(), open('losses.json', 'w'))"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, check=True)
    trained = train(tmp_path / "run", "track.every=1 steps", recipe=RECIPES / "custom_model" / "recipe.yaml")
    losses = json.loads((tmp_path / "losses.json").read_text())
    assert len(losses) == 640
    assert trained.column("loss") == pytest.approx(losses, abs=1e-6)  # the fused AdamW rounds otherwise than the loop's
    by_hand = torch.load(tmp_path / "model_weights.pth", weights_only=True)
    assert {name: value.shape for name, value in by_hand.items()} == {n: v.shape for n, v in trained.weights.items()}


@rounds(
    "recipe, epochs, accuracy",
    plain=[("digits_mlp", 6, 0.9), ("digits_cnn", 3, 0.9)],
    long=[("digits_mlp", 30, 0.97), ("digits_cnn", 20, 0.98)],
)
def test_digits_are_told_apart(tmp_path: Path, recipe: str, epochs: int, accuracy: float) -> None:
    trained = train(tmp_path / "run", f"train.epochs={epochs}", recipe=RECIPES / f"{recipe}.yaml")
    assert trained.column("accuracy", "test")[0] >= accuracy


@rounds("steps, off", plain=[(150, 0.5)], long=[(2000, 0.1)])
def test_the_generator_finds_the_circle(tmp_path: Path, steps: int, off: float) -> None:
    """0.56 from it before training."""
    recipe = RECIPES / "gan" / "recipe.yaml"
    trained = train(tmp_path / "run", f"train.steps={steps}", f"evaluate.every={steps} steps", recipe=recipe)
    assert trained.column("off", "validation")[-1] < off
    assert len(list((tmp_path / "run" / "figures").iterdir())) == 1


def test_the_regression_explains_the_data(tmp_path: Path) -> None:
    trained = train(tmp_path / "run", recipe=RECIPES / "tabular_regression.yaml")
    assert trained.column("r2", "test")[0] > 0.4


SHORT = ("train.steps=100", "evaluate.every=50 steps", "evaluate.limit=5 batches", "model.layers=2", "model.width=64")


@pytest.mark.timeout(900)
@rounds("changes, least", plain=[(SHORT, 4.0)], long=[(("evaluate.every=1000 steps",), 2.2)])
def test_the_gpt_learns_python_s_own_source(tmp_path: Path, changes: tuple[str, ...], least: float) -> None:
    trained = train(tmp_path / "run", *changes, recipe=RECIPES / "text_gpt.yaml", timeout=850)
    first, last = trained.column("loss", "validation")
    assert last < first < 4.0
    assert last < least


# the large one, small; without the compiler, and without half precision, which rounds by more than is told apart
SMALL = (
    *("model.layers=3", "model.heads=2", "model.width=16", "define.context=16", "scheduler._warmup_=1 steps"),
    *("device.compile=false", "device.precision=no", "data.global_batch_size=8", "data.micro_batch_size=1"),
    *("train.steps=4", "track.every=1 steps", "evaluate.every=2 steps", "evaluate.limit=2 batches"),
    "evaluate.batch_size=4",
)


@rounds("size", plain=[2], long=[4])
def test_the_large_gpt_is_the_same_run_on_two_and_four_processes_that_share_it(
    tmp_path: Path, size: int, large_gpt: Trained
) -> None:
    run = train(tmp_path / "run", *SMALL, recipe=RECIPES / "text_gpt_large.yaml", size=size)
    assert run.column("loss") == pytest.approx(large_gpt.column("loss"), rel=1e-5)
    assert run.column("loss", "validation") == pytest.approx(large_gpt.column("loss", "validation"), rel=1e-5)
    assert run.distance(large_gpt) < 1e-5


@pytest.fixture(scope="module")
def large_gpt(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(tmp_path_factory.mktemp("large") / "run", *SMALL, recipe=RECIPES / "text_gpt_large.yaml")


@rounds("changes", plain=[["model.layers=8"]], long=[[]])
def test_the_large_gpt_fits_eight_gpus(capsys: pytest.CaptureFixture[str], changes: list[str]) -> None:
    arguments = ["--processes", "8", "--memory", "--gpu", "80GB"]
    assert main(["check", str(RECIPES / "text_gpt_large.yaml"), *changes, *arguments]) == 0
    assert "fits         80GB:" in capsys.readouterr().out


# ---------------------------------------------------------------------- the gallery: what each states is so

FIGURE = re.compile(r"^# Reaches a (validation|test) (\w+) of ([\d.]+)[^(]* \(([\d.]+) ", re.MULTILINE)
GALLERY = {path.parent.name: path for path in SHIPPED if FIGURE.search(path.read_text())}
QUICK = {name: path for name, path in GALLERY.items() if not name.startswith("lora")}  # which pretrain a base first
OFF = {  # others: 0.03
    "digits_diffusion": 0.06,
    "digits_gan": 0.1,
    "digits_vae": 0.4,
    "lora_gpt": 0.1,
    "lora_text": 0.06,
    "time_series": 0.004,
}
SMALLER = {
    "boxes": ["data.train.samples=60", "data.validation.samples=20"],
    "distillation": ["train.step.teacher.epochs=1"],
    "graphs": ["data.train.samples=200"],
    "segmentation": ["data.train.samples=60", "data.validation.samples=20", "data.test.samples=20"],
    "speech_ctc": ["data.train.samples=60", "data.validation.samples=20", "data.test.samples=20"],
}


def stated(name: str) -> tuple[str, str, float, float]:
    """The split, the metric, what a recipe says it reaches there, and the baseline that it names."""
    figure = FIGURE.search(GALLERY[name].read_text())
    assert figure
    return figure[1], figure[2], float(figure[3]), float(figure[4])


OTHERS = {  # that state no figure
    path.parent.name if path.stem == "recipe" else path.stem: path for path in FIT_HERE if path not in GALLERY.values()
}
SMALLER["text_gpt"] = ["model.layers=1", "model.width=32", "define.context=16"]
DRAWN: tuple[str, ...] = (
    "digits_mlp",
    "digits_diffusion",
    "digits_gan",
    "digits_vae",
    "gan",
    "images_mixup",
)  # in each micro-batch
DRAWN += ("tabular_categories", "tabular_regression")  # dropout
OF_WHOLE = ("contrastive_pairs",)  # of what a process has


def few_steps(folder: str, recipes: Mapping[str, Path], *overrides: str) -> None:
    for name, path in recipes.items():
        sys.modules.pop("gan", None)  # two of them have such a file
        short = ["train.steps=3", "track.every=1 steps", "evaluate.every=3 steps", "evaluate.limit=2 batches"]
        own = () if name in OF_WHOLE else overrides
        train_here(f"{folder}/{name}", (*short, *SMALLER.get(name, ()), *own), str(path))


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("short")
    in_world(1, few_steps, str(folder), QUICK | OTHERS)  # all in one process
    return folder


def test_each_of_the_gallery_trains_and_is_measured(short: Path) -> None:
    assert (len(GALLERY), len(QUICK)) == (14, 12)
    for name in QUICK:
        split, metric, _, _ = stated(name)
        trained = result_of(short / name)
        assert len(trained.column("loss")) == 3
        assert isinstance(trained.column(metric, split)[-1], float)


@rounds("every", plain=[2], long=[1])
def test_each_trains_alike_on_two_processes_in_micro_batches(tmp_path: Path, short: Path, every: int) -> None:
    """But where each process draws numbers of its own, or a loss is of a whole batch, as the recipe says."""
    chosen = dict([*(QUICK | OTHERS).items()][::every])
    in_world(2, few_steps, str(tmp_path), chosen, "data.micro_batch_size=8")
    for name in chosen:
        losses, alone = (result_of(folder / name).column("loss") for folder in (tmp_path, short))
        assert len(losses) == 3
        assert (losses == pytest.approx(alone, rel=1e-4)) == (name not in (*DRAWN, *OF_WHOLE)), name
        assert losses == pytest.approx(alone, rel=0.3), name


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", GALLERY)
def test_each_of_the_gallery_reaches_its_figure(tmp_path: Path, name: str) -> None:
    split, metric, reached, baseline = stated(name)
    trained = train(tmp_path / "run", recipe=GALLERY[name], timeout=850)
    off, figure = OFF.get(name, 0.03), trained.column(metric, split)[-1]
    assert figure == pytest.approx(reached, abs=off)
    assert abs(reached - baseline) > 2 * off  # so that what is reached is better than it, by far


# ---------------------------------------------------------------------- their full-size forms

FULL = {
    path.parent.name: shlex.split(command)
    for path in GALLERY.values()
    for command in re.findall(r"^#   launcher train (.*?) *# full size", path.read_text(), re.MULTILINE)
}
A_STEP = ("train.steps=1", "evaluate.every=1 steps", "evaluate.limit=1 batches")
FEW = {  # of what is made when it is opened, and of what two cores would compute for an hour
    "boxes": ["data.train.samples=60", "data.validation.samples=20", "data.global_batch_size=8"],
    "digits_diffusion": ["model.times=20"],  # which an evaluation goes through, a picture at a time
    "graphs": ["data.train.samples=200"],
    "segmentation": ["data.train.samples=40", "data.global_batch_size=4", "evaluate.batch_size=4"],
    "speech_ctc": ["data.train.samples=60"],
}


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", [name for name in FULL if name in QUICK and name != "images_mixup"])
def test_each_full_size_takes_a_step(tmp_path: Path, name: str) -> None:
    """Forward, backward, update, evaluation and saving, of the model as large as it is written."""
    file, *overrides = FULL[name]
    if name == "distillation":
        train(tmp_path / "teacher", "train.steps=1", recipe=RECIPES / "digits_cnn.yaml")
        overrides = [f"train.step.teacher.weights={tmp_path}/teacher/model_weights.pth"]
    few = [*FEW.get(name, ()), *A_STEP]
    said = {override.partition("=")[0] for override in few}
    kept = [override for override in overrides if override.partition("=")[0] not in said]
    trained = train(tmp_path / "run", *kept, *few, recipe=ROOT / file, timeout=1700)
    assert math.isfinite(trained.column("loss")[0])


OWN = [path for recipe in GALLERY.values() for path in recipe.parent.glob("*.py") if "def baseline" in path.read_text()]


@rounds("path", plain=[path for path in OWN if path.stem in ("vae", "characters")], long=OWN)
def test_the_baseline_that_is_named_is_computed(path: Path) -> None:
    *_, digits = stated(path.parent.name)
    assert round(runpy.run_path(str(path))["baseline"](), len(f"{digits}".partition(".")[2])) == digits


def test_every_command_in_a_recipe_is_one() -> None:
    for path in SHIPPED:
        head = path.read_text().split("\nname:")[0]
        for command in re.findall(r"^#   launcher train (.*?)(?:   #.*)?$", head, re.MULTILINE):
            file, *rest = [word for word in shlex.split(command) if word != "--cpu"]
            removed = [rest.pop(rest.index("--remove") + 1) for _ in range(rest.count("--remove"))]
            overrides = [word for word in rest if "=" in word]
            load_recipe(ROOT / file, overrides, removed)
        assert f"launcher train {path.relative_to(ROOT)}" in head
