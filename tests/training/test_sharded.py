"""Sharded runs: the same numbers as on one process, for every way to share a model."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from places import SUPPORT
from tiers import rounds
from worlds import Trained, in_world, killed, result_of, train, train_here

from launcher.checkpoints import format as checkpoints

RECIPE = SUPPORT / "recipes" / "sharded.yaml"
WAYS = {  # processes, of which so many are on a node, and what the recipe says
    "DDP on 2": (2, 2, ()),
    "full on 2": (2, 2, ("device.sharding=full",)),
    "full on 4": (4, 4, ("device.sharding=full",)),
    "hybrid on 2 nodes of 2": (4, 2, ("device.sharding=hybrid",)),
}


def on_nodes(per_node: int, *arguments: object) -> str:
    """Trains as one rank of a world whose nodes have so many."""
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    os.environ |= {
        "LOCAL_WORLD_SIZE": str(per_node),
        "LOCAL_RANK": str(rank % per_node),
        "GROUP_RANK": str(rank // per_node),
        "GROUP_WORLD_SIZE": str(size // per_node),
    }
    return train_here(*arguments)  # type: ignore[arg-type]


def trained(folder: Path, way: str, *overrides: str) -> Trained:
    """The recipe, trained in one of the ways, in two micro-batches a step."""
    size, per_node, own = WAYS.get(way, (1, 1, ()))
    micro = f"data.micro_batch_size={8 // size // 2}"
    if size == per_node:
        return train(folder, micro, *own, *overrides, size=size, recipe=RECIPE)
    in_world(size, on_nodes, per_node, str(folder), (micro, *own, *overrides), str(RECIPE))
    return result_of(folder)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained(tmp_path_factory.mktemp("alone") / "run", "one process")


def assert_equal(run: Trained, expected: Trained, within: float) -> None:
    """Weights, losses, norms, and the figures of plain and averaged weights."""
    assert run.distance(expected) < within
    for key in ("loss", "grad_norm"):
        assert run.column(key) == pytest.approx(expected.column(key), abs=within)
    for split in ("validation", "test"):
        assert run.column("step", split) == expected.column("step", split)
        for key in ("loss", "ema/loss"):
            assert run.column(key, split) == pytest.approx(expected.column(key, split), abs=within)
        for key in ("perplexity", "ema/perplexity"):  # which torchmetrics adds up in float32
            assert run.column(key, split) == pytest.approx(expected.column(key, split), rel=1e-6)


@pytest.mark.torch_internals
@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_share_a_model_trains_the_same(tmp_path: Path, alone: Trained, way: str) -> None:
    run = trained(tmp_path / "run", way)
    assert_equal(run, alone, 1e-9)
    assert list(run.weights) == list(alone.weights)
    assert run.weights["head.weight"].data_ptr() == run.weights["tokens.weight"].data_ptr()


def stopped(folder: Path, way: str, fault: str, *overrides: str) -> None:
    """The same, asked to stop or killed at a point."""
    size, per_node, own = WAYS.get(way, (1, 1, ()))
    changes = (f"data.micro_batch_size={8 // size // 2}", *own, *overrides)
    if size == 1:
        assert in_world(1, train_here, str(folder), changes, str(RECIPE), (), fault) == ["stopped"]
    else:
        states = in_world(size, on_nodes, per_node, str(folder), changes, str(RECIPE), (), fault)
        assert states == ["stopped"] * size


CHAINS = {
    "shrinks and grows": ("full on 4", "full on 2", "one process", "full on 4"),
    "all ways": ("full on 2", "DDP on 2", "full on 2", "hybrid on 2 nodes of 2", "DDP on 2", "hybrid on 2 nodes of 2"),
}


@rounds("chain", plain=["shrinks and grows"], long=["all ways"])
def test_resumes_on_other_processes_and_shared_otherwise(tmp_path: Path, alone: Trained, chain: str) -> None:
    ways = CHAINS[chain]
    run = tmp_path / "run"
    for step, way in enumerate(ways[:-1], start=1):
        stopped(run, way, f"term@step:{3 * step}#0")
    assert_equal(trained(run, ways[-1]), alone, 1e-9)


def test_asked_to_stop_in_the_middle_of_an_evaluation(tmp_path: Path, alone: Trained) -> None:
    stopped(tmp_path / "run", "full on 2", "term@evaluation.batch:10#1")
    assert_equal(trained(tmp_path / "run", "full on 2"), alone, 1e-9)


POINTS = (
    *("checkpoint.write/rows-00001.bin:5#1", "checkpoint.sync/rows-00000.json:5#0", "checkpoint.rename:5#0"),
    *("checkpoint.renamed:10#0",),
)
MORE = (
    *("checkpoint.begin:5#0", "checkpoint.write/weights.pth:5#0", "checkpoint.write/manifest.json:5#0"),
    *("evaluation.batch:10#1", "checkpoint.sync/rows-00001.json:10#1", "checkpoint.prune#0", "weights.write#0"),
)


@rounds(
    "way, points",
    plain=[("full on 2", POINTS)],
    long=[(way, points) for way in ("full on 2", "full on 4", "hybrid on 2 nodes of 2") for points in (POINTS, MORE)],
)
def test_killed_while_all_write(tmp_path: Path, way: str, points: tuple[str, ...]) -> None:
    shorter = "train.steps=12"
    expected = trained(tmp_path / "expected", way, shorter)
    size, per_node, own = WAYS[way]
    run, micro = tmp_path / "run", f"data.micro_batch_size={8 // size // 2}"
    for number, point in enumerate(points):
        changes = (micro, *own, shorter, "save.keep=1", f"save.background={'true' if number % 2 else 'false'}")
        assert killed(size, on_nodes, per_node, str(run), changes, str(RECIPE), (), f"kill@{point}"), point
        for path in (run / "checkpoints").glob("step-*"):
            checkpoints.verify(path).training()
    result = trained(run, way, shorter)
    assert result.distance(expected) == 0
    for split in ("train", "validation"):
        assert result.column("loss", split) == expected.column("loss", split)


NOT_WRITTEN = (
    *("full@checkpoint.sync/rows-00001.bin:2#1", "flip@checkpoint.sync/rows-00001.bin:4#1"),
    *("flip@checkpoint.sync/rows-00001.json:6#1", "flip@checkpoint.sync/training.pt:8#0"),
    *("flip@checkpoint.sync/manifest.json:10#0", "raise@checkpoint.renamed:12#0"),
)


@rounds("background", plain=["true"], long=["false"])
def test_what_one_could_not_write_is_written_again_by_all(tmp_path: Path, background: str) -> None:
    every = f"save={{every: 2 steps, keep: 9, background: {background}}}"
    changes = ("data.micro_batch_size=4", "device.sharding=full", "train.steps=12", "device.timeout=20 seconds", every)
    in_world(2, train_here, str(tmp_path), changes, str(RECIPE), (), " ".join(NOT_WRITTEN))
    for step in range(2, 13, 2):
        checkpoints.verify(tmp_path / "checkpoints" / checkpoints.name_of(step)).training()
    assert (tmp_path / "logs" / "rank-0.log").read_text().count("trying again in 0.5 s") == len(NOT_WRITTEN)


CASES = {
    "an optimizer that looks at whole parameters": ("optimizer={_target_: sharded.py:Lamb, lr: 0.01}",),
    "a step function, blocks by name": ("train.step=sharded.py:step", "device.shard=[blocks.1, side]"),
    "SGD with momentum, frozen for a while, an average of equal parts": (
        "optimizer={_target_: SGD, lr: 0.03, momentum: 0.9}",
        "train.freeze={'tokens.*': 8 steps}",
        "train.ema=null",
        "train.swa={start: 4 steps, every: 3 steps}",
    ),
    "the best weights": ("evaluate.best={metric: loss, mode: min}", "save.final=best", "optimizer.lr=0.3"),
    "a loss with a parameter, entries clipped": (
        "loss={_target_: sharded.py:Scaled}",
        "train.clip_grad_norm=null",
        "train.clip_grad_value=0.01",
    ),
}


@rounds("case", plain=[*CASES][:3], long=[*CASES][3:])
def test_what_a_recipe_can_say_is_the_same_sharded(tmp_path: Path, case: str) -> None:
    changes = (*CASES[case], "train.steps=12")
    if "whole parameters" in case and torch.__version__ < "2.11":
        with pytest.raises(AssertionError, match=r"sharded.py:Lamb steps whole parameters, and torch 2\.10"):
            trained(tmp_path / "two", "full on 2", *changes)
        return
    one = trained(tmp_path / "one", "one process", *(each for each in changes if not each.startswith("device.shard")))
    stopped(tmp_path / "two", "full on 2", "term@step:7#1", *changes)
    two = trained(tmp_path / "two", "full on 2", *changes)
    assert two.distance(one) < 1e-9
    for key in ("loss", *(("grad_norm",) if "entries" not in case else ())):
        assert two.column(key) == pytest.approx(one.column(key), abs=1e-9)
    for split in ("validation", "test"):
        assert two.column("loss", split) == pytest.approx(one.column("loss", split), abs=1e-9)


def test_float32_losses_agree(tmp_path: Path) -> None:
    changes = ("model.dtype=float32", "train.steps=10")
    one = trained(tmp_path / "one", "one process", *changes)
    two = trained(tmp_path / "two", "full on 2", *changes)
    assert two.column("loss") == pytest.approx(one.column("loss"), rel=1e-5)
    assert two.column("grad_norm") == pytest.approx(one.column("grad_norm"), rel=1e-4)
    assert two.distance(one) < 1e-3


@pytest.mark.parametrize("sharding", ["full", "hybrid"])
def test_gradients_of_different_layers_are_not_added_up(tmp_path: Path, sharding: str) -> None:
    model = ("model._target_=sharded_wrong.py:Sparing", "train.ema=null", "evaluate.metrics={}")
    per_node = 2 if sharding == "full" else 1  # two nodes, each of which has all of it
    changes = (*model, f"device.sharding={sharding}")
    with pytest.raises(AssertionError, match=r"gradients of different parameters in this step, .*find_unused_param"):
        in_world(2, on_nodes, per_node, str(tmp_path / "run"), changes, str(RECIPE))


def test_an_error_in_an_evaluation_of_one_ends_all(tmp_path: Path) -> None:
    changes = ("data.micro_batch_size=4", "device.sharding=full")
    with pytest.raises(AssertionError, match="RuntimeError"):
        in_world(2, train_here, str(tmp_path / "run"), changes, str(RECIPE), (), "raise@evaluation.batch:5#1")
