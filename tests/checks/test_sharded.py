"""What cannot be sharded is refused by `launcher check`, with what to do, and not at a world's first step."""

from __future__ import annotations

import pytest
from places import SUPPORT

from launcher.checks.rehearsal import rehearse
from launcher.errors import LauncherError
from launcher.recipe.build import Builder
from launcher.recipe.load import load_recipe
from launcher.world.world import World

RECIPE = SUPPORT / "recipes" / "sharded.yaml"
SMALL = ("data.test=null", "evaluate.metrics={}", "device.sharding=full")


def checked(*overrides: str) -> dict[str, str]:
    """The plan for two processes."""
    recipe = load_recipe(RECIPE, [*SMALL, *overrides])
    builder = Builder(recipe)
    builder.check()
    return dict(rehearse(recipe, builder, World(size=2, local_size=2), lambda stage, text: None).plan)


def test_the_plan_says_what_is_sharded_and_who_evaluates() -> None:
    plan = checked()
    assert plan["model"].endswith("sharded over 2 processes: 3 × Block, the rest as one")
    assert "by all 2 ranks" in plan["evaluate"]
    assert checked("device.shard=[blocks.1, side]")["model"].endswith("1 × Block, 1 × Linear, the rest as one")


@pytest.mark.parametrize(
    "override",
    [
        "train.step=sharded.py:step",
        "model._target_=sharded.py:Again",
        "loss={_target_: sharded.py:Scaled}",
        "optimizer={_target_: sharded.py:Lamb}",
        "optimizer={_target_: Rprop}",
    ],
)
def test_what_can_be_sharded_is_let_through(override: str) -> None:
    assert "sharded over 2 processes" in checked(override)["model"]


REFUSED = {
    "model._target_=sharded_wrong.py:Scalar": "'temperature' has no dimension, .* give it the shape",
    "model._target_=sharded_wrong.py:Hollow": "'nothing' has no entries, .* make it a buffer",
    "model._target_=sharded_wrong.py:Peeping": "those of a block outside of its own, .* a module around both",
    "model._target_=sharded_wrong.py:Opaque": "'blocks.0' gives _Held, .* have it return tensors, or lists, mappings",
    "model._target_=sharded_wrong.py:Views": "'blocks.0' gives a view of a tensor, .* changed in place, .* as .clone",
    "model._target_=sharded_wrong.py:TiedApart": "are one parameter, .* name blocks that do not part them",
    "model._target_=sharded_wrong.py:Clamping": "'norm.weight' is changed in forward, .* as F.normalize",
    "model._target_=sharded_wrong.py:Replacing": "'norm.weight' is changed in forward",
    "model._target_=sharded_wrong.py:Slopes": r"through the block 'blocks.2' are themselves .*\(create_graph=True\)",
    "model._target_=sharded_wrong.py:Sparse": "'more' has sparse gradients, .* sparse=False",
    "model._target_=sharded_wrong.py:Bounded": "'tokens' changes its weight in forward .*; remove max_norm",
    "model._target_=sharded_wrong.py:Sparing": "got no gradient of these samples, .*find_unused_parameters: true",
    "model._target_=sharded_wrong.py:Routed": "'blocks.1' is not called for these samples, .* the module around it",
    "train.step=sharded_wrong.py:penalty": "used outside of the model's forward, .* call the model itself",
    "train.step=sharded_wrong.py:by_parts": "used outside of the model's forward, .* call the model itself",
    "optimizer={_target_: LBFGS}": "LBFGS calls the loss itself, .* use AdamW",
    "optimizer={_target_: Adafactor}": "Adafactor does not step sharded parameters .* use Adam, AdamW",
    "device.shard=[nothing.*]": "device.shard: no module is named like 'nothing",
}


@pytest.mark.parametrize("override", REFUSED)
def test_what_cannot_be_sharded_is_refused_with_what_to_do(override: str) -> None:
    with pytest.raises(LauncherError, match=REFUSED[override]):
        checked(override)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("evaluate.ranks=first", "evaluate.ranks: .* say all, or remove it"),
        ("device.precision=fp16", "device.precision: .* say bf16"),
        ("device.channels_last=true", "device.channels_last: .* remove one of the two"),
        ("device.sync_batchnorm=true", "device.sync_batchnorm: .* remove one of the two"),
        ("device.ddp.bucket_cap_mb=10", "device.ddp.bucket_cap_mb: .* remove it"),
    ],
)
def test_keys_that_do_not_go_together(override: str, said: str) -> None:
    with pytest.raises(LauncherError, match=said):
        load_recipe(RECIPE, [*SMALL, override])


@pytest.mark.parametrize("override", ["device.shard=[blocks.*]", "device.reduce=bf16"])
def test_keys_of_sharding_without_it(override: str) -> None:
    with pytest.raises(LauncherError, match=r"say device\.sharding, or remove it"):
        load_recipe(RECIPE, [override])
