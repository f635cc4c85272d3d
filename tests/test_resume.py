"""Stopped anywhere, by anything, a run ends with the weights of one that was not."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recipes.parts import Net, WholeNumbers, weights_of
from torch import nn
from worlds import TINY, Command, Trained, in_world, killed, result_of, train, train_here

from launcher.checkpoints import format as checkpoints
from launcher.data.load import Data
from launcher.errors import LauncherError, UsageError
from launcher.recipe.build import Builder
from launcher.recipe.load import load_recipe
from launcher.recipe.schema import Recipe
from launcher.run import Result
from launcher.run import run as launch
from launcher.runs.lock import holder, locked
from launcher.runs.options import Options
from launcher.runs.tracking.tracking import read_metrics
from launcher.training.build import open_run_data
from launcher.training.resume import Finished
from launcher.world.faults import Fault
from launcher.world.world import World

VALIDATION = "data.validation={_target_: parts.py:WholeNumbers, size: 23, seed: 2}"
# all that could make two runs differ: dropout, augmentation in workers, accumulation, evaluation and best
HARD = (
    "model.dropout=0.3",
    "data={train: {_target_: parts.py:Noisy}, global_batch_size: 16, workers: 1}",
    VALIDATION,
    "evaluate={every: 3 steps, best: {metric: loss, mode: min}}",
    "save={every: 2 steps, keep: 2}",
)


def hard(size: int) -> tuple[str, ...]:
    return (*HARD, f"data.micro_batch_size={-(-16 // (2 * size))}")  # two micro-batches a step


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Trained]:
    folder = tmp_path_factory.mktemp("undisturbed")
    return {size: train(folder / str(size), *hard(size), size=size) for size in (1, 2, 3)}


def opened(recipe: Recipe) -> Data:
    return open_run_data(recipe, Builder(recipe), World())


def assert_same(run: Path, expected: Trained) -> None:
    found = result_of(run)
    assert found.distance(expected) == 0
    for split in ("train", "validation"):
        assert found.column("step", split) == expected.column("step", split)
        assert found.column("loss", split) == expected.column("loss", split)


def assert_whole(run: Path) -> None:
    """Whatever is visible verifies."""
    for path in (run / "checkpoints").glob("step-*"):
        checkpoints.verify(path)
    if (run / "model_weights.pth").exists():
        Net().load_state_dict(torch.load(run / "model_weights.pth", weights_only=True))


POINTS = (
    "step:1",
    "checkpoint.begin:2",
    *(
        f"checkpoint.{moment}/{file}:2"
        for file in ("weights.pth", "training.pt", "manifest.json")
        for moment in ("write", "sync")
    ),
    "checkpoint.rename:2",
    "checkpoint.renamed:2",
    "evaluation.batch:3",
    "checkpoint.renamed:6",
    "checkpoint.prune",
    "status.write:8",
    "step:9#{last}",
    "evaluation.batch:12",
    "weights.write",
    "weights.sync",
    "weights.rename",
)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_killed_at_every_write_sync_and_rename(tmp_path: Path, size: int, undisturbed: dict[int, Trained]) -> None:
    run = tmp_path / "run"
    background = ["save.background=false", "save.background=true"]
    for number, point in enumerate(POINTS):
        changes = (*hard(size), background[number % 2])
        assert killed(size, train_here, str(run), changes, str(TINY), (), f"kill@{point.format(last=size - 1)}")
        assert_whole(run)
    train(run, *hard(size), size=size)
    assert_same(run, undisturbed[size])


@pytest.mark.parametrize("size", [1, 2, 3])
def test_killed_at_random_moments(tmp_path: Path, size: int, undisturbed: dict[int, Trained]) -> None:
    run, moments = tmp_path / "run", random.Random(size)
    slowly = (*hard(size), "data.train={_target_: parts.py:Noisy, seconds: 0.01}", "save.every=1 steps")
    kills = 0
    while kills < 20:
        if killed(size, train_here, str(run), slowly, after=moments.uniform(0.1, 0.9) * (1 + size / 4)):
            assert_whole(run)
            kills += 1
        else:  # it was finished sooner: the next one
            assert_same(run, undisturbed[size])
            run = run.with_name(f"{run.name}+")
    if json.loads((run / "status.json").read_text())["state"] != "finished":  # the last one may have come too late
        train(run, *slowly, size=size)
    assert_same(run, undisturbed[size])


@pytest.mark.parametrize("size", [1, 2])
def test_a_plateau_and_a_loss_with_parameters_go_on(tmp_path: Path, size: int) -> None:
    plateau = "scheduler={_target_: ReduceLROnPlateau, factor: 0.5, patience: 0, threshold: 0.5}"
    changes = (*hard(size), plateau, "loss={_target_: parts.py:Scaled}")
    straight, run = train(tmp_path / "straight", *changes, size=size), tmp_path / "run"
    assert len(set(straight.column("lr"))) > 2
    for step in (5, 10):
        assert killed(size, train_here, str(run), changes, str(TINY), (), f"kill@step:{step}")
    train(run, *changes, size=size)
    assert_same(run, straight)
    assert result_of(run).column("lr") == straight.column("lr")
    losses = [checkpoints.verify(folder / NEWEST).training()["loss"] for folder in (run, straight.folder)]
    scales = [loss["scale"] for loss in losses]
    assert scales[0] == scales[1] != 1


def test_worlds_may_change_between_starts(tmp_path: Path) -> None:
    changes = ("train.epochs=4", "save={every: 1 steps, keep: 100}")
    expected = train(tmp_path / "straight", *changes)
    run = tmp_path / "run"
    for size, step in ((1, 4), (2, 8), (4, 12)):
        assert killed(size, train_here, str(run), changes, str(TINY), (), f"kill@step:{step}")
    assert train(run, *changes).distance(expected) < 1e-9


def test_a_checkpoint_says_what_it_is(tmp_path: Path) -> None:
    train(tmp_path / "run", "data.micro_batch_size=8", size=2)
    manifest = checkpoints.verify(tmp_path / "run/checkpoints/step-00000012").manifest
    expected = {"format": 3, "step": 12, "epoch": 3.0, "samples": 150, "world": 2, "threads": 1}
    assert expected.items() <= manifest.items()
    assert manifest["global_batch_size"] == 16
    assert manifest["recipe"]["optimizer.lr"] == "0.01"
    assert not {"data.micro_batch_size", "data.workers", "name"} & set(manifest["recipe"])
    assert manifest["data"].startswith("WholeNumbers, 50 samples, ")
    assert {"torch", "accelerate"} <= set(manifest["versions"])


class Tied(nn.Module):
    """Two names, one weight, stored transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(3, 3)
        self.two = nn.Linear(3, 3)
        self.two.weight = self.one.weight
        self.register_buffer("image", torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last))


def test_a_copy_of_the_state_shares_what_was_shared() -> None:
    model = Tied()
    snapshot = checkpoints.Snapshot(model.state_dict(), {"list": [model.one.bias]}, {"step": 1})
    copy = snapshot.copied()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for value in model.state_dict().values():
            value.zero_()
    for name, value in copy.weights.items():
        assert torch.equal(value, before[name])
        assert value.stride() == before[name].stride()
    assert copy.weights["one.weight"].data_ptr() == copy.weights["two.weight"].data_ptr()
    assert copy.training["list"][0].data_ptr() == copy.weights["one.bias"].data_ptr()
    assert snapshot.num_bytes == copy.num_bytes == 4 * (9 + 3 + 3 + 96)


NEWEST = "checkpoints/step-00000012"


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def lie(path: Path, **said: Any) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, **said}))


def empty(path: Path) -> None:
    for file in path.iterdir():
        file.unlink()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a flipped byte in the weights": lambda path: flip(path / "weights.pth"),
    "a flipped byte in the state": lambda path: flip(path / "training.pt"),
    "a flipped byte in the manifest": lambda path: (path / "manifest.json").write_bytes(
        b"#" + (path / "manifest.json").read_bytes()[1:]
    ),
    "a truncated file": lambda path: os.truncate(path / "weights.pth", 100),
    "an empty folder": empty,
    "a missing file": lambda path: (path / "training.pt").unlink(),
    "a manifest that lies": lambda path: lie(path, step=11),
}


def test_a_manifest_that_was_changed_anywhere_is_damaged(tmp_path: Path, saved: Trained) -> None:
    path = shutil.copytree(saved.folder / NEWEST, tmp_path / "step-00000012")
    whole = (path / "manifest.json").read_bytes()
    manifest = checkpoints.verify(path).manifest
    lies = {"threads": 2, "recipe": {**manifest["recipe"], "optimizer.lr": "0.02"}, "data": "other", "world": 3}
    files = {**manifest["files"], "weights.pth": {**manifest["files"]["weights.pth"], "more": 1}}
    for key, value in {**lies, "files": files}.items():
        (path / "manifest.json").write_bytes(whole)
        lie(path, **{key: value})
        with pytest.raises(checkpoints.DamagedError, match="its manifest is not what was written"):
            checkpoints.verify(path)
    for place in range(0, len(whole), 7):
        changed = bytearray(whole)
        changed[place] ^= 1
        (path / "manifest.json").write_bytes(changed)
        with pytest.raises(checkpoints.DamagedError):
            checkpoints.verify(path)
    (path / "manifest.json").write_bytes(whole)
    checkpoints.verify(path)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(tmp_path_factory.mktemp("saved") / "run", "save={every: 2 steps, keep: 3}")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(
    tmp_path: Path, saved: Trained, damage: str, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(saved.folder, run)
    (run / "model_weights.pth").unlink()
    (run / "checkpoints" / "holiday").mkdir()
    DAMAGES[damage](run / NEWEST)
    again = train(run, "save={every: 2 steps, keep: 3}")
    assert again.distance(saved) == 0
    assert len(list((run / "checkpoints").glob(".corrupt-step-00000012-*"))) == 1
    assert (run / "checkpoints" / "holiday").is_dir()
    assert "set aside" in (run / "logs" / "rank-0.log").read_text()


def test_when_all_are_damaged_nothing_starts_again_at_0(tmp_path: Path, saved: Trained) -> None:
    run = tmp_path / "run"
    shutil.copytree(saved.folder, run)
    for path in (run / "checkpoints").glob("step-*"):
        flip(path / "weights.pth")
    for _ in range(2):
        with pytest.raises(LauncherError, match=r"all checkpoints in .* are damaged; look at its \.corrupt-… folders"):
            train_in_process(run)


class Hostile:
    """What a hostile pickle would run."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))


def test_a_checkpoint_that_another_node_shows_late_is_waited_for(tmp_path: Path, saved: Trained) -> None:
    source = max((saved.folder / "checkpoints").glob("step-*"))
    late = tmp_path / "checkpoints" / source.name
    late.mkdir(parents=True)
    arrival = threading.Timer(0.3, shutil.copytree, (source, late), {"dirs_exist_ok": True})
    arrival.start()
    assert checkpoints.awaited(late).step == checkpoints.verify(source).step
    arrival.join()
    (late / "weights.pth").write_bytes(b"")
    with pytest.raises(checkpoints.DamagedError, match="0 bytes"):
        checkpoints.awaited(late, patience_seconds=0)


@pytest.mark.parametrize("name", ["weights.pth", "training.pt"])
def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path, saved: Trained, name: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(saved.folder, run)
    (run / "model_weights.pth").unlink()
    for path in (run / "checkpoints").glob("step-*"):
        torch.save({"x": Hostile(tmp_path / "PWNED")}, path / name)
        content = (path / name).read_bytes()
        manifest = json.loads((path / "manifest.json").read_text())
        manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        (path / "manifest.json").write_text(json.dumps(checkpoints.sealed(manifest)))
    with pytest.raises(LauncherError, match="refused"):
        train_in_process(run)
    assert not (tmp_path / "PWNED").exists()


def train_in_process(run: Path, *overrides: str, **options: Any) -> Result:
    recipe = load_recipe(TINY, ["launch.threads=1", *overrides])
    return launch(recipe, World(), Options(cpu=True, run_dir=str(run), output="quiet", **options))


def test_draws_by_weight_go_on_bit_for_bit_from_a_function_or_a_file(tmp_path: Path) -> None:
    weights, run = tmp_path / "weights.npy", tmp_path / "run"
    np.save(weights, weights_of(WholeNumbers()))
    changes = ("data.validation=20% of train", "save.every=2 steps")
    straight = train(tmp_path / "straight", *changes, "data.weights=parts.py:weights_of")
    by_file = (*changes, f"data.weights={weights}")
    assert train(tmp_path / "file", *by_file).distance(straight) == 0
    assert killed(1, train_here, str(run), by_file, str(TINY), (), "kill@step:5")
    np.save(weights, np.arange(50))
    with pytest.raises(UsageError, match=r"data\.train\.content: was WholeNumbers, a part, 40 samples, weights \w+,"):
        train_in_process(run, *by_file)
    np.save(weights, weights_of(WholeNumbers()))
    train(run, *by_file)
    assert_same(run, straight)
    np.save(weights, np.arange(40))
    with pytest.raises(LauncherError, match=r"data\.weights: must be 50 finite numbers, .*; got shape \(40,\)"):
        opened(load_recipe(TINY, by_file))
    weights.write_text("nothing of numpy's")
    with pytest.raises(
        LauncherError, match=r"data\.weights: .*weights\.npy cannot be read: .*; write it with numpy\.save"
    ):
        opened(load_recipe(TINY, by_file))
    weights.unlink()
    with pytest.raises(
        LauncherError, match=r"data\.weights: .*weights\.npy cannot be read: No such file or directory;"
    ):
        opened(load_recipe(TINY, by_file))


def test_what_was_changed_is_shown_and_must_be_allowed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert killed(1, train_here, str(run), ("save.every=2 steps",), str(TINY), (), "kill@step:5")
    freely = ["data.micro_batch_size=4", "data.workers=0", "track.every=2 steps", "save.keep=1", "name=other"]
    with pytest.raises(UsageError) as caught:
        train_in_process(run, *freely, "optimizer.lr=0.1", "data.train.size=60")
    text = str(caught.value)
    assert "optimizer.lr: was 0.01, is now 0.1" in text
    assert "data.train.size: was not stated, is now 60" in text
    assert "data.train.content: was WholeNumbers, 50 samples" in text
    assert "--allow-changes optimizer.lr" in text
    train_in_process(run, *freely, "optimizer.lr=0.1", allow_changes=("optimizer",))
    rates = [line["lr"] for line in read_metrics(run / "metrics.jsonl") if line["split"] == "train"]
    expected = train(tmp_path / "other", "optimizer.lr=0.1", "track.every=2 steps").column("lr")
    assert rates[-3:] == pytest.approx(expected[-3:], rel=1e-12)


def test_a_finished_run_says_so_and_may_be_made_longer(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train_in_process(run)
    before = (run / "model_weights.pth").read_bytes()
    with pytest.raises(Finished, match=r"this run is finished, after 12 steps; its weights are in .*model_weights.pth"):
        train_in_process(run)
    assert (run / "model_weights.pth").read_bytes() == before
    with pytest.raises(UsageError, match=r"train\.epochs: was 3, is now 4"):
        train_in_process(run, "train.epochs=4")
    assert train_in_process(run, "train.epochs=4", allow_changes=("train.epochs",)).step == 16


def test_resume_finds_the_newest_unfinished_run_of_the_same_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def start(*overrides: str, resume: bool = True) -> Result:
        recipe = load_recipe(TINY, ["launch.threads=1", *overrides])
        return launch(recipe, World(), Options(cpu=True, resume=resume, output="quiet"))

    first = start()
    assert killed(1, train_here, "runs/tiny/2020-01-01_00-00-00", (), str(TINY), (), "kill@step:5")
    assert killed(1, train_here, "runs/tiny/2020-01-01_00-00-01", ("seed=7",), str(TINY), (), "kill@step:5")
    assert start("track.every=5 steps").folder.name == "2020-01-01_00-00-00"
    new = start()  # nothing unfinished is left of this recipe
    assert new.folder not in (first.folder, tmp_path / "runs/tiny/2020-01-01_00-00-00")
    assert start("seed=7").folder.name == "2020-01-01_00-00-01"


def test_the_best_or_any_step_can_be_gone_on_from(tmp_path: Path) -> None:
    changes = ("save={every: 2 steps, keep: 100, background: false}",)
    straight = train(tmp_path / "straight", *changes)
    run = tmp_path / "run"
    assert killed(1, train_here, str(run), changes, str(TINY), (), "kill@step:9")
    with pytest.raises(UsageError, match=r"--from: there is no '5' in .*; there are the steps 8, 6, 4, 2"):
        train_in_process(run, *changes, start="5")
    with pytest.raises(UsageError, match="no evaluation was the best yet"):
        train_in_process(run, *changes, start="best")
    train_in_process(run, *changes, start="4")
    assert result_of(run).distance(straight) == 0
    assert result_of(run).column("step") == straight.column("step")


def test_the_best_may_be_the_evaluation_before_the_first_step(tmp_path: Path) -> None:
    changes = (
        *("optimizer.lr=5.0", VALIDATION, "save={every: 4 steps, keep: 1, final: best}"),
        "evaluate={every: 3 steps, first: true, best: {metric: loss, mode: min}}",
    )
    straight = train(tmp_path / "straight", *changes)
    losses = dict(zip(straight.column("step", "validation"), straight.column("loss", "validation"), strict=True))
    assert min(losses, key=losses.__getitem__) == 0
    first = checkpoints.verify(straight.folder / "checkpoints" / "step-00000000")
    assert all(torch.equal(straight.weights[name], value) for name, value in first.weights().items())
    run = tmp_path / "run"
    for step in (2, 7):  # from the checkpoint before the first step, and from a later one
        assert killed(1, train_here, str(run), changes, str(TINY), (), f"kill@step:{step}")
    train(run, *changes)
    assert_same(run, straight)


def test_what_follows_the_last_checkpoint_is_logged_once(tmp_path: Path) -> None:
    test = "data.test={_target_: parts.py:WholeNumbers, size: 11, seed: 4}"
    changes = (VALIDATION, test, "evaluate.every=5 steps")
    straight = train(tmp_path / "straight", *changes)
    for point in ("evaluation.batch:12", "weights.write"):
        assert killed(1, train_here, str(tmp_path / "run"), changes, str(TINY), (), f"kill@{point}")
    train(tmp_path / "run", *changes)
    assert_same(tmp_path / "run", straight)
    assert straight.column("step", "validation") == [5, 10, 12]
    assert result_of(tmp_path / "run").column("loss", "test") == straight.column("loss", "test")


def test_an_evaluation_that_was_left_is_made_at_the_next_start(tmp_path: Path) -> None:
    run = tmp_path / "run"
    changes = ("data.train={_target_: parts.py:Noisy, seconds: 0.02}", VALIDATION)
    states = in_world(
        *(1, train_here, str(run), (*changes, "evaluate.every=1 seconds"), str(TINY), ()), "term@evaluation.batch"
    )
    assert states == ["preempted"]
    step = json.loads((run / "status.json").read_text())["step"]
    assert 0 < step < 12
    assert train(run, *changes, "evaluate.every=1 hours").column("step", "validation") == [step, 12]


def test_a_run_has_one_writer(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with locked(run) as note:
        assert note is None
        with pytest.raises(AssertionError, match=rf"is being written by process {os.getpid()} on .*; wait"):
            in_world(1, train_here, str(run))
    train(run)
    assert not (run / "lock.json").exists()


def test_a_lock_of_the_dead_is_taken_over(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert killed(1, train_here, str(run), ("save.every=2 steps",), str(TINY), (), "kill@step:5")
    assert (run / "lock.json").exists()
    train(run, "save.every=2 steps")
    assert "has died without releasing the run; going on in its place" in (run / "logs" / "rank-0.log").read_text()
    elsewhere = {"host": "elsewhere", "pid": 1, "namespace": "another", "since": 0}
    (run / "lock.json").write_text(json.dumps(elsewhere))
    assert holder(run) is not None  # touched just now
    os.utime(run / "lock.json", (time.time() - 100, time.time() - 100))
    assert holder(run) is None


def test_a_failed_write_is_tried_again(tmp_path: Path, saved: Trained) -> None:
    for number, background in enumerate(("true", "false")):
        run, changes = tmp_path / str(number), (f"save={{every: 2 steps, keep: 3, background: {background}}}",)
        faults = "full@checkpoint.sync:4 flip@checkpoint.sync:6 raise@checkpoint.rename:8"
        in_world(1, train_here, str(run), changes, str(TINY), (), faults)
        assert result_of(run).distance(saved) == 0
        assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
            f"step-{step:08d}" for step in (8, 10, 12)
        ]
        log = (run / "logs" / "rank-0.log").read_text()
        assert "No space left on device" in log
        assert "sha256 differs" in log
        assert "RuntimeError: a fault at checkpoint.rename" in log
        assert log.count("trying again in 0.5 s") == 3


ALWAYS_FULL = " ".join(["full@checkpoint.sync:4"] * 3)


@pytest.mark.parametrize("background", ["true", "false"])
def test_a_save_that_keeps_failing_stops_the_run_or_is_said(tmp_path: Path, background: str) -> None:
    changes = (f"save={{every: 2 steps, background: {background}}}",)
    with pytest.raises(AssertionError, match="No space left on device; the checkpoints before it are intact"):
        in_world(1, train_here, str(tmp_path / "stop"), changes, str(TINY), (), ALWAYS_FULL)
    assert [path.name for path in (tmp_path / "stop/checkpoints").glob("step-*")] == ["step-00000002"]
    in_world(1, train_here, str(tmp_path / "warn"), (*changes, "save.on_failure=warn"), str(TINY), (), ALWAYS_FULL)
    assert result_of(tmp_path / "warn").column("step")[-1] == 12


@pytest.mark.parametrize("fault", [" ".join(["raise@checkpoint.rename:12"] * 3), "raise@checkpoint.prune"])
@pytest.mark.parametrize("background", ["true", "false"])
def test_no_save_is_lost_silently_whatever_went_wrong(tmp_path: Path, background: str, fault: str) -> None:
    changes = (f"save={{every: 2 steps, background: {background}}}",)
    with pytest.raises(AssertionError, match=r"saving .*: RuntimeError: a fault at checkpoint\.(rename|prune)"):
        in_world(1, train_here, str(tmp_path / "run"), changes, str(TINY), (), fault)
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "failed"
    assert_whole(tmp_path / "run")


def test_a_huge_data_set_is_gone_on_with_at_once(tmp_path: Path) -> None:
    """The work of a start, counted: at step 10 million as many lines of Python as at step 10."""
    lines = [in_world(1, _lines_to_the_first_batch, start)[0] for start in (10, 10_000_000)]
    assert lines[1] <= lines[0] * 1.5


def _lines_to_the_first_batch(start: int) -> int:
    data = opened(load_recipe(TINY, ["data.train={_target_: parts.py:Huge}"]))
    count = 0

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal count
        count += 1
        return trace

    sys.settrace(trace)
    batch = next(iter(data.train.steps(start, None)))
    sys.settrace(None)
    assert len(batch) == 1
    return count


@pytest.mark.parametrize(
    ("size", "rank", "moment"),
    [
        *((1, 0, moment) for moment in ("start", "step:5", "evaluation.batch:3", "checkpoint.write:4")),
        *((2, 0, moment) for moment in ("start", "step:5", "evaluation.batch:3", "checkpoint.write:4")),
        (2, 1, "step:5"),
        (2, 1, "start"),
    ],
)
def test_asked_to_stop_at_any_moment_all_ranks_save_the_same_step(
    tmp_path: Path, size: int, rank: int, moment: str, undisturbed: dict[int, Trained]
) -> None:
    run = tmp_path / "run"
    slowly = (*hard(size), "data.train={_target_: parts.py:Noisy, seconds: 0.02}")
    # twice: a second SIGTERM is the same request
    states = in_world(size, train_here, str(run), slowly, str(TINY), (), f"term@{moment}#{rank} term@{moment}#{rank}")
    assert set(states) == {"preempted"}
    status = json.loads((run / "status.json").read_text())
    assert status["state"] == "preempted"
    assert (run / "checkpoints" / f"step-{status['step']:08d}").is_dir()
    train(run, *slowly, size=size)
    assert_same(run, undisturbed[size])


def test_a_rank_that_waits_for_an_evaluation_can_be_asked_to_stop(
    tmp_path: Path, undisturbed: dict[int, Trained]
) -> None:
    run = tmp_path / "run"
    slow = ("data.validation={_target_: parts.py:Slow, seconds: 12}", "evaluate.batch_size=1")
    states = in_world(2, train_here, str(run), (*hard(2), *slow), str(TINY), (), "term@step:3#1")
    assert states == ["preempted", "preempted"]
    assert json.loads((run / "status.json").read_text())["step"] == 3  # it was left, not made to its end
    assert not [line for line in read_metrics(run / "metrics.jsonl") if line["split"] == "validation"]
    train(run, *hard(2), size=2)
    assert_same(run, undisturbed[2])


def test_a_folder_that_is_none_one_of_other_things_and_one_that_vanishes(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"--run-dir: .*file/run cannot be written: Not a directory"):
        train_in_process(tmp_path / "file" / "run")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    with pytest.raises(UsageError, match="holds other things; name a new folder, or a run's"):
        train_in_process(tmp_path / "full")
    with pytest.raises(AssertionError, match=r"the run's folder .* is gone"):
        in_world(1, train_here, str(tmp_path / "run"), ("save.every=1 steps",), str(TINY), (), "vanish@step:5")


def test_deterministic_algorithms_are_used_in_the_run_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for wanted in ("true", "false"):
        train_in_process(tmp_path / wanted, f"device.deterministic={wanted}", "train.step=parts.py:witnessed")
        assert not torch.are_deterministic_algorithms_enabled()
        lines = read_metrics(tmp_path / wanted / "metrics.jsonl")
        assert {line["deterministic"] for line in lines} == {float(wanted == "true")}


def mounted(folder: Path, megabytes: int) -> None:
    folder.mkdir(parents=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("mounting a small tmpfs needs root")


def test_a_read_only_file_system_is_said_before_the_start_and_on_the_way(tmp_path: Path) -> None:
    disk = tmp_path / "run" / "checkpoints"
    mounted(disk, 8)
    read_only = ["mount", "-o", "remount,ro", str(disk)]
    try:
        paced = "data.train={_target_: parts.py:Paced, seconds: 0.3}"
        command = Command(
            tmp_path, "train", str(TINY), "--cpu", "--run-dir", "run", "launch.threads=1", "save.every=2 steps", paced
        )
        deadline = time.monotonic() + 60
        while not (disk / "step-00000002").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        while subprocess.run(read_only, capture_output=True, check=False).returncode:  # in the middle of a save
            assert time.monotonic() < deadline
        done = command.wait()
        assert done.code == 1, done.screen
        assert "Read-only file system; the checkpoints before it are intact" in " ".join(done.screen.split())
        assert_whole(tmp_path / "run")
        with pytest.raises(UsageError, match=r"--run-dir: .* cannot be written: Read-only file system"):
            train_in_process(disk / "another")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_fault_that_is_none_is_refused() -> None:
    for text in ("kill", "kill@nowhere", "melt@step", "kill@step:x", "kill@checkpoint.write/", "kill@step:1#"):
        with pytest.raises(UsageError, match="is no fault; write ACTION@POINT"):
            Fault.parse(text)
    assert Fault.parse("kill@checkpoint.write/manifest.json:4#1") == Fault(
        "kill", "checkpoint.write", "manifest.json", 4, 1
    )


def test_a_full_disk_leaves_the_last_checkpoint_intact(tmp_path: Path) -> None:
    mounted(tmp_path / "disk", 8)
    try:
        big = ("model={_target_: parts.py:Wide, width: 30000}", "save={every: 2 steps, keep: 5}")  # 5 MB with AdamW
        with pytest.raises(AssertionError, match=r"\d+\.\d MiB are needed and \d+\.\d MiB are free; make room"):
            in_world(1, train_here, str(tmp_path / "disk" / "run"), big)
        run = tmp_path / "disk" / "run"
        assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000002"]
        checkpoints.verify(run / "checkpoints" / "step-00000002")
        elsewhere = shutil.copytree(run, tmp_path / "elsewhere")
        assert train(elsewhere, *big).distance(train(tmp_path / "straight", *big)) == 0
    finally:
        subprocess.run(["umount", str(tmp_path / "disk")], check=True)


def test_a_run_can_start_from_weights(tmp_path: Path, saved: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    def plan(*overrides: str, source: Path) -> str:
        recipe = load_recipe(TINY, ["launch.threads=1", f"train.start_from={source}", "train={steps: 1}", *overrides])
        launch(recipe, World(), Options(cpu=True, run_dir=str(tmp_path / str(time.time_ns()))))
        return " ".join(capsys.readouterr().out.split())

    unfinished = tmp_path / "unfinished"
    shutil.copytree(saved.folder, unfinished)
    (unfinished / "model_weights.pth").unlink()
    step = ", step 12"
    for source, which in (
        (saved.folder, ""),
        (saved.folder / "model_weights.pth", ""),
        (saved.folder / NEWEST, step),
        (saved.folder / NEWEST / "weights.pth", step),
        (unfinished, step),
    ):
        screen = plan(source=source)
        assert f"started from {source}{which}: 4 of 4 tensors" in screen
        assert "saved 1 checkpoint; training stood still for" in screen
    flip(unfinished / NEWEST / "weights.pth")
    assert f"started from {unfinished}, step 10: 4 of 4 tensors" in plan(source=unfinished)
    with pytest.raises(LauncherError, match=r"train\.start_from: .*weights\.pth: its content is not what was written"):
        plan(source=unfinished / NEWEST)
    wrapped = {f"module.{name}": value for name, value in saved.weights.items()}
    torch.save({**wrapped, "module.head.bias": torch.ones(2)}, tmp_path / "wrapped.pth")
    said = plan("model.norm=true", "data.drop_last=true", source=tmp_path / "wrapped.pth")
    assert "2 of 9 tensors; missing there: layers.1.weight, layers.1.bias, layers.1.running_mean" in said
    assert "of another shape: layers.1.bias, layers.3.weight" not in said
    assert "not in this model: layers.3.weight, layers.3.bias, head.bias" in said
    with pytest.raises(LauncherError, match="there are no weights at"):
        plan(source=tmp_path / "nothing.pth")
    torch.save({"x": torch.ones(1)}, tmp_path / "foreign.pth")
    with pytest.raises(LauncherError, match=r"none of the 1 tensors in .* fits this model; it has layers\.0\.weight"):
        plan(source=tmp_path / "foreign.pth")
    torch.save({"x": Hostile(tmp_path / "PWNED")}, tmp_path / "evil.pth")
    with pytest.raises(LauncherError, match="cannot be read"):
        plan(source=tmp_path / "evil.pth")
    assert not (tmp_path / "PWNED").exists()
