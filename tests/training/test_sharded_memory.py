"""What each process of a sharded run holds, at most, while it starts, saves, gathers and resumes; and what it reads."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from memory import give_back, peak_of
from places import SUPPORT
from tiers import rounds
from worlds import in_world

from launcher.checkpoints import format as checkpoints
from launcher.checkpoints.safe_files import save_safetensors
from launcher.checkpoints.streamed import save_streamed
from launcher.checkpoints.together import SavingTogether, Voices
from launcher.device.device import open_device
from launcher.evaluation.best import BestTracker
from launcher.recipe.build import Builder
from launcher.recipe.load import load_recipe
from launcher.training.build import build_run_model, build_run_state, open_run_data
from launcher.training.contents import Contents
from launcher.training.state import TrainState
from launcher.world.world import World

RECIPE = str(SUPPORT / "recipes" / "sharded.yaml")
LAYERS = 9
SOURCES = ("model_weights.pth", "model.safetensors", "checkpoints/step-00000002")


def layers_of(width: int) -> str:
    """The override that gives so many layers."""
    hidden = [width] * (LAYERS - 1)
    return f"model={{_target_: launcher.models.MLP, inputs: {width}, hidden: {hidden}, outputs: {width}}}"


class Peaks:
    """By how much the memory of this process grew, at most, by what it did."""

    def __init__(self) -> None:
        self.found: dict[str, int] = {}

    def of(self, what: str, act: Callable[[], Any]) -> Any:
        """Does it."""
        results: list[Any] = []
        self.found[what] = peak_of(lambda: results.append(act()))
        return results[0]


def opened(stack: ExitStack, *overrides: str) -> TrainState:
    """A run's state, before its first step."""
    changes = ["device.sharding=full", "launch.threads=1", "optimizer={_target_: AdamW, lr: 0.01}", "train.ema=null"]
    recipe = load_recipe(RECIPE, [*changes, *overrides])
    builder, world = Builder(recipe), World.from_environ()
    data = open_run_data(recipe, builder, world)
    device = stack.enter_context(open_device(recipe.device, world, cpu=True))
    model = build_run_model(recipe, builder, device)
    return build_run_state(recipe, builder, model, device, data)


def contents_of(state: TrainState) -> Contents:
    return Contents(state, {}, "", BestTracker(None, None))


def stepped(state: TrainState) -> None:
    """With a state of its optimizer."""
    assert state.shards is not None
    for number, shard in enumerate(state.shards.named.values(), start=1):
        shard.local.grad = torch.full_like(shard.local, 1.0 / number)
    optimizer: Any = state.optimizer
    optimizer.step()
    state.update.clear_gradients()


def saving_of(state: TrainState, contents: Contents, folder: Path, background: bool) -> SavingTogether:
    recipe = load_recipe(RECIPE, [f"save.background={'true' if background else 'false'}"])
    coordinator, world = state.device.coordinator, state.device.world
    assert state.shards is not None
    return SavingTogether(
        Voices(coordinator.store, world.rank, world.size, 60.0),
        state.shards.mesh.writes,
        section=recipe.save,
        folder=folder,
        is_first=world.is_first,
        capture=contents.capture,
        warn=print,
    )


def used_here(folder: str, width: int) -> tuple[dict[str, int], int]:
    """What each act took, and the bytes that were read to resume."""
    give_back()
    measured(Path(folder) / "small", 8)  # imports
    return measured(Path(folder) / "large", width)


def measured(run: Path, width: int) -> tuple[dict[str, int], int]:
    peaks, layers = Peaks(), layers_of(width)
    with ExitStack() as stack:
        state = peaks.of("build", lambda: opened(stack, layers))
        coordinator, mesh = state.device.coordinator, state.shards.mesh
        coordinator.from_first(lambda: run.mkdir(parents=True))
        stepped(state)
        contents = contents_of(state)
        for step, background in enumerate((False, True), start=1):
            saving = saving_of(state, contents, run / "checkpoints", background)
            peaks.of("save beside training" if background else "save", partial(saved, saving, step))
        del saving
        weights = contents.model.state_dict()
        peaks.of("gather pth", partial(save_streamed, run / "model_weights.pth", weights, mesh))
        peaks.of("gather safetensors", partial(save_safetensors, run, "model", weights, mesh))
        coordinator.from_first(lambda: None)
    del state, contents, weights
    with ExitStack() as stack:
        again = opened(stack, layers)
        resumed = contents_of(again)
        checkpoint = checkpoints.awaited(run / "checkpoints" / checkpoints.name_of(2))
        peaks.of("resume", partial(resumed.restore, checkpoint))
    read = resumed.read.num_bytes
    del again, resumed
    for source in SOURCES:
        with ExitStack() as stack:
            start = f"train.start_from={run / source}"
            peaks.of(f"start from {source}", partial(opened, stack, layers, start))
    return peaks.found, read


def saved(saving: SavingTogether, step: int) -> None:
    saving.save(step)
    saving.wait()


@rounds("size, width", plain=[(4, 1024)], long=[(2, 1024), (4, 3400)])
def test_no_process_holds_a_whole_copy(tmp_path: Path, size: int, width: int) -> None:
    layer = (width + 1) * width * 4
    weights = LAYERS * layer
    share, little = weights / size, 3 * layer + 4 * 2**20
    for rank, (peaks, read) in enumerate(in_world(size, used_here, str(tmp_path), width, timeout=400)):
        assert peaks["build"] < share + little
        assert all(peaks[f"start from {source}"] < share + little for source in SOURCES)
        assert peaks["save"] < little
        assert peaks["save beside training"] < 3 * share + little  # a copy of its rows, and of what is kept beside them
        at_the_end = little + layer + 16 * 2**20 if rank == 0 else little  # a tensor, and what brings it
        assert max(peaks["gather pth"], peaks["gather safetensors"]) < at_the_end
        assert peaks["resume"] < 3 * share + little
        assert 3 * share <= read <= 1.05 * 3 * share
