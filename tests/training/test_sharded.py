"""Sharded runs: the same numbers as on one process, for every way to share a model."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import pytest
from places import SUPPORT
from tiers import rounds
from worlds import Trained, in_world, result_of, train, train_here

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
    size, per_node, own = WAYS[way] if way in WAYS else (1, 1, ())
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


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_share_a_model_trains_the_same(tmp_path: Path, alone: Trained, way: str) -> None:
    run = trained(tmp_path / "run", way)
    assert_equal(run, alone, 1e-9)
    assert list(run.weights) == list(alone.weights)
    assert run.weights["head.weight"].data_ptr() == run.weights["tokens.weight"].data_ptr()
