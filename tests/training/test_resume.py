"""Stopped anywhere, by anything, a run ends with the weights of one that was not."""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recipes.parts import WholeNumbers, weights_of
from tiers import rounds
from worlds import (
    TINY,
    Trained,
    assert_whole,
    in_world,
    killed,
    result_of,
    train,
    train_here,
    train_in_process,
)

from launcher.checkpoints import format as checkpoints
from launcher.data.load import Data
from launcher.errors import LauncherError, UsageError
from launcher.recipe.build import Builder
from launcher.recipe.duration import Duration
from launcher.recipe.load import load_recipe
from launcher.recipe.schema import Recipe
from launcher.run import Result
from launcher.run import run as launch
from launcher.runs.lock import holder, locked
from launcher.runs.options import Options
from launcher.runs.tracking.tracking import read_metrics
from launcher.training.build import open_run_data
from launcher.training.resume import Finished
from launcher.world.world import World

ByRanks = Callable[[int], Trained]
VALIDATION = "data.validation={_target_: parts.py:WholeNumbers, size: 23, seed: 2}"
# all that could make two runs differ: dropout, augmentation in workers, accumulation, evaluation and best
HARD = (
    "model.dropout=0.3",
    "data={train: {_target_: parts.py:Noisy}, global_batch_size: 16, workers: 1}",
    VALIDATION,
    "evaluate={every: 3 steps, best: {metric: loss, mode: min}}",
    "save={every: 2 steps, keep: 2}",
)


def opened(recipe: Recipe) -> Data:
    return open_run_data(recipe, Builder(recipe), World())


def hard(size: int) -> tuple[str, ...]:
    return (*HARD, f"data.micro_batch_size={-(-16 // (2 * size))}")  # two micro-batches a step


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> ByRanks:
    """The run that nothing happened to, by its number of ranks: made once, where it is asked for."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return cache(lambda size: train(folder / str(size), *hard(size), size=size))


def assert_same(run: Path, expected: Trained) -> None:
    found = result_of(run)
    assert found.distance(expected) == 0
    for split in ("train", "validation"):
        assert found.column("step", split) == expected.column("step", split)
        assert found.column("loss", split) == expected.column("loss", split)


def is_finished(run: Path) -> bool:
    """Whether a run, which may have been killed before it said anything, came to its end."""
    status = run / "status.json"
    return status.exists() and json.loads(status.read_text())["state"] == "finished"


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
# where one rank waits for the other, and a half of a checkpoint or of the weights
OF_TWO = (
    *("checkpoint.begin:2", "checkpoint.write/training.pt:2", "checkpoint.renamed:2", "evaluation.batch:3"),
    *("checkpoint.prune", "step:9#{last}", "evaluation.batch:12", "weights.rename"),
)


@rounds("size, points", plain=[(1, POINTS[::2]), (2, OF_TWO)], long=[(1, POINTS), (2, POINTS), (3, POINTS)])
def test_killed_at_every_write_sync_and_rename(
    tmp_path: Path, size: int, points: tuple[str, ...], undisturbed: ByRanks
) -> None:
    run = tmp_path / "run"
    background = ["save.background=false", "save.background=true"]
    for number, point in enumerate(points):
        changes = (*hard(size), background[number % 2])
        assert killed(size, train_here, str(run), changes, str(TINY), (), f"kill@{point.format(last=size - 1)}")
        assert_whole(run)
    train(run, *hard(size), size=size)
    assert_same(run, undisturbed(size))


@rounds("size", plain=[2], long=[1])
def test_paused_at_a_step_and_resumed(tmp_path: Path, size: int, undisturbed: ByRanks) -> None:
    run = tmp_path / "run"
    for until, step in (("25%", 3), ("4 steps", 4), ("1 steps", 4), ("1 epochs", 4), ("2 epochs", 8)):
        assert set(in_world(size, train_here, str(run), hard(size), str(TINY), (), None, until)) == {"stopped"}
        assert json.loads((run / "status.json").read_text())["step"] == step
        evaluated = [line["step"] for line in read_metrics(run / "metrics.jsonl") if line["split"] == "validation"]
        assert evaluated[-1] == step, "a pause comes after an evaluation"
        assert (run / "checkpoints" / checkpoints.name_of(step)).is_dir()
        assert not (run / "model_weights.pth").exists()
    in_world(size, train_here, str(run), hard(size), str(TINY), (), None, "500 steps")  # beyond its end
    ended, expected = result_of(run), undisturbed(size)
    assert ended.distance(expected) == 0
    assert ended.column("loss") == expected.column("loss")


def test_no_pause_in_a_run_without_such_a_length(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--until: '25%' is not a number of steps in this run"):
        train_in_process(tmp_path / "run", "train.time=1 minute", "scheduler=null", until=Duration.parse("25%"))
    assert not (tmp_path / "run").exists()


@rounds("size, storm", plain=[(1, 5), (2, 5)], long=[(1, 20), (2, 20), (3, 20)])
def test_killed_at_random_moments(tmp_path: Path, size: int, storm: int, undisturbed: ByRanks) -> None:
    run, moments = tmp_path / "run", random.Random(size)
    slowly = (*hard(size), "data.train={_target_: parts.py:Noisy, seconds: 0.01}", "save.every=1 steps")
    kills = 0
    while kills < storm:
        if killed(size, train_here, str(run), slowly, after=moments.uniform(0.1, 0.9) * (1 + size / 4)):
            assert_whole(run)
            kills += 1
        else:  # it was finished sooner: the next one
            assert_same(run, undisturbed(size))
            run = run.with_name(f"{run.name}+")
    if not is_finished(run):  # the last kill may have come too late
        train(run, *slowly, size=size)
    assert_same(run, undisturbed(size))


@rounds("size", plain=[2], long=[1])
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
    losses = [
        checkpoints.verify(folder / "checkpoints" / "step-00000012").training()["loss"]
        for folder in (run, straight.folder)
    ]
    scales = [loss["scale"] for loss in losses]
    assert scales[0] == scales[1] != 1


def test_worlds_may_change_between_starts(tmp_path: Path) -> None:
    changes = ("train.epochs=4", "save={every: 1 steps, keep: 100}")
    expected = train(tmp_path / "straight", *changes)
    run = tmp_path / "run"
    for size, step in ((1, 4), (2, 8), (4, 12)):
        assert killed(size, train_here, str(run), changes, str(TINY), (), f"kill@step:{step}")
    assert train(run, *changes).distance(expected) < 1e-9


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
        LauncherError, match=r"data\.weights: .*weights\.npy is not a \.npy or \.npz file; write it with np\.save"
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


def test_a_run_whose_checkpoints_were_removed_is_never_begun_again(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train_in_process(run)
    shutil.rmtree(run / "checkpoints")
    before = (run / "metrics.jsonl").read_bytes()
    for until in (None, Duration.parse("5 steps")):
        with pytest.raises(Finished, match="this run is finished, after 12 steps"):
            train_in_process(run, until=until)
    (run / "model_weights.pth").unlink()
    with pytest.raises(UsageError, match="removed after step 12: there is nothing to resume from"):
        train_in_process(run)
    assert (run / "metrics.jsonl").read_bytes() == before


def test_a_stopped_run_whose_checkpoints_were_removed_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert killed(1, train_here, str(run), ("save.every=2 steps",), str(TINY), (), "kill@step:5")
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(UsageError, match="its checkpoints were removed after step"):
        train_in_process(run, "save.every=2 steps")


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
    assert states == ["stopped"]
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
    assert "died without releasing the run; taking it over" in (run / "logs" / "rank-0.log").read_text()
    elsewhere = {"host": "elsewhere", "pid": 1, "namespace": "another", "since": 0}
    (run / "lock.json").write_text(json.dumps(elsewhere))
    assert holder(run) is not None  # touched just now
    os.utime(run / "lock.json", (time.time() - 100, time.time() - 100))
    assert holder(run) is None


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


@rounds(
    "size, rank, moment",
    plain=[(1, 0, "start"), (1, 0, "checkpoint.write:4"), (2, 0, "evaluation.batch:3"), (2, 1, "step:5")],
    long=[
        *((1, 0, moment) for moment in ("step:5", "evaluation.batch:3")),
        *((2, 0, moment) for moment in ("start", "step:5", "checkpoint.write:4")),
        (2, 1, "start"),
    ],
)
def test_asked_to_stop_at_any_moment_all_ranks_save_the_same_step(
    tmp_path: Path, size: int, rank: int, moment: str, undisturbed: ByRanks
) -> None:
    run = tmp_path / "run"
    slowly = (*hard(size), "data.train={_target_: parts.py:Noisy, seconds: 0.01}")
    # twice: a second SIGTERM is the same request
    states = in_world(size, train_here, str(run), slowly, str(TINY), (), f"term@{moment}#{rank} term@{moment}#{rank}")
    assert set(states) == {"stopped"}
    status = json.loads((run / "status.json").read_text())
    assert status["state"] == "stopped"
    assert (run / "checkpoints" / f"step-{status['step']:08d}").is_dir()
    train(run, *slowly, size=size)
    assert_same(run, undisturbed(size))


def test_a_rank_that_waits_for_an_evaluation_can_be_asked_to_stop(tmp_path: Path, undisturbed: ByRanks) -> None:
    run = tmp_path / "run"
    slow = ("data.validation={_target_: parts.py:Slow, seconds: 4}", "evaluate.batch_size=1")
    states = in_world(2, train_here, str(run), (*hard(2), *slow), str(TINY), (), "term@step:3#1")
    assert states == ["stopped", "stopped"]
    assert json.loads((run / "status.json").read_text())["step"] == 3  # it was left, not made to its end
    assert not [line for line in read_metrics(run / "metrics.jsonl") if line["split"] == "validation"]
    train(run, *hard(2), size=2)
    assert_same(run, undisturbed(2))


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
