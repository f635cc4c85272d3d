"""The weights of a run whose model no process holds whole, in another file: gathered tensor by tensor, and compared."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import nn

from launcher.checkpoints.compare import Batch, agreed, apart, outputs
from launcher.checkpoints.saved_run import Saved, evaluated_on, fill
from launcher.checkpoints.streamed import save_streamed, tied
from launcher.checkpoints.weights import stored_weights
from launcher.data.transfer import moved
from launcher.device.device import open_device, use_cpu
from launcher.model.build import build_model
from launcher.model.sharding import Shards
from launcher.recipe.build import Builder
from launcher.world.files import atomic_write
from launcher.world.world import World


def export_sharded(saved: Saved, target: Path, builder: Builder, batch: Batch, world: World, cpu: bool) -> str:
    """Writes `.pth` or `.safetensors`, whole or not at all, and reads it again into the same rows.

    Args:
        saved: The weights and their recipe.
        target: The file, which rank 0 writes and all read.
        builder: Of that recipe.
        batch: What the model is called with, the same on all ranks.
        world: The processes, several.
        cpu: Whether to stay on the CPU.

    Returns:
        How the outputs agreed, in words.

    Raises:
        UsageError: The weights do not fit the recipe's model, or the file cannot hold them.
        LauncherError: What was written gives other outputs.
    """
    recipe = saved.recipe
    section = evaluated_on(recipe.device, world, use_cpu(world, cpu))
    with open_device(section, world, cpu=cpu, launch=recipe.launch) as device:
        coordinator = device.coordinator
        model = build_model(builder, recipe.model, section, device, seed=recipe.seed, shares=False)
        shards = model.shards({})
        assert shards is not None
        fill(model, saved, shards)
        module, batch = model.bare.eval(), Batch(*moved((batch.args, dict(batch.kwargs)), device.torch_device))
        before, weights = outputs(module, batch), shards.module_state(module)
        with atomic_write(target, parents=False) if world.is_first else nullcontext(target) as part:
            written = Path(coordinator.from_first(lambda: str(part)))
            save_streamed(written, weights, shards.mesh)
            coordinator.from_first(lambda: None)  # until it is there
            _read_back(shards, module, written, tied(weights))
            found = torch.tensor([apart(before, outputs(module, batch))], dtype=torch.float64)
            return agreed(float(coordinator.max(found).result()))


def _read_back(shards: Shards, module: nn.Module, path: Path, second: Mapping[str, str]) -> None:
    """Takes this process's rows of a file, which is mapped no longer than that; of tied tensors it may have one."""
    state = stored_weights(path)
    shards.load_module(module, {**{name: state[kept] for name, kept in second.items()}, **state})
