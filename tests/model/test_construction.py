"""A sharded model is built by each process with the numbers of the whole one, and without holding it."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from memory import give_back, peak_of
from places import SUPPORT
from tiers import rounds
from worlds import in_world

from launcher.data.seeds import seed_everything
from launcher.device.device import open_device
from launcher.model.build import Model
from launcher.recipe.build import Builder
from launcher.recipe.load import load_recipe
from launcher.recipe.schema import Recipe
from launcher.training.build import build_run_model
from launcher.world.world import World

SHARDED = str(SUPPORT / "recipes" / "sharded.yaml")
CHOSEN = "model={{_target_: sharded.py:Chosen, width: {0}, layers: 9}}"


def read(*overrides: str) -> Recipe:
    return load_recipe(SHARDED, ["device.sharding=full", "launch.threads=1", *overrides])


def layers_of(width: int) -> str:
    """Nine of them."""
    hidden = [width] * 8
    return f"model={{_target_: launcher.models.MLP, inputs: {width}, hidden: {hidden}, outputs: {width}}}"


def rows_here(*overrides: str) -> dict[str, Any]:
    """What this rank has of a model."""
    recipe = read(*overrides)
    with open_device(recipe.device, World.from_environ(), cpu=True) as device:
        model = build_run_model(recipe, Builder(recipe), device)
        return {
            "rows": {name: rows_of(held) for name, held in model.bare.named_parameters()},
            "buffers": {name: held.float().numpy() for name, held in model.bare.named_buffers()},
            "generator": torch.get_rng_state().numpy(),
            "note": model.notes[-1],
            "plan": model.describe(),
        }


def rows_of(parameter: Any) -> Any:
    local: torch.Tensor = parameter.detach().to_local()
    return local.float().numpy() if local.dtype == torch.bfloat16 else local.numpy()


@pytest.mark.parametrize(
    ("overrides", "note"),
    [
        ((), "built without a whole copy: a process holds at most "),
        (("device.precision=bf16-true", "device.recompute=true", "model.dtype=float32"), "built without a whole copy"),
        ((CHOSEN.format(7),), "built whole on each process, and then sharded: .* .its constructor reads values."),
    ],
)
def test_each_rank_has_its_rows_of_the_model_that_one_process_builds(overrides: tuple[str, ...], note: str) -> None:
    recipe = read(*overrides)
    seed_everything(recipe.seed)
    whole = Builder(recipe).build(recipe.model)
    state, half = torch.get_rng_state(), "device.precision=bf16-true" in overrides
    ranks = in_world(3, rows_here, *overrides)
    for name, parameter in whole.named_parameters():
        together = torch.cat([torch.from_numpy(rank["rows"][name]) for rank in ranks])
        assert torch.equal(together, parameter.detach().bfloat16().float() if half else parameter.detach()), name
    for rank in ranks:
        assert Model(whole, whole).describe().partition(",")[0] == rank["plan"].partition(",")[0]
        assert torch.equal(torch.from_numpy(rank["generator"]), state)
        assert re.search(note, rank["note"])
        for name, buffer in whole.named_buffers():
            assert half or torch.equal(torch.from_numpy(rank["buffers"][name]), buffer.float())


def peak_here(small: str, large: str) -> int:
    """Bytes that this rank's memory grew by, at most, while it built the large model."""
    recipe = read(small)
    give_back()
    with open_device(recipe.device, World.from_environ(), cpu=True) as device:
        build_run_model(recipe, Builder(recipe), device)  # imports
        recipe = read(large)
        return peak_of(lambda: build_run_model(recipe, Builder(recipe), device))


@rounds("size, width", plain=[(4, 1024)], long=[(2, 1024), (2, 3200), (4, 3200)])
def test_no_rank_holds_a_whole_copy(size: int, width: int) -> None:
    layer = (width + 1) * width * 4
    total = 9 * layer
    for peak in in_world(size, peak_here, layers_of(8), layers_of(width)):
        # its rows, the tensor that is drawn, one more where memory was not given back yet, and a little beside
        assert total / size <= peak < total / size + 2 * layer + 4 * 2**20
    for peak in in_world(2, peak_here, CHOSEN.format(8), CHOSEN.format(width)):
        assert peak > total
