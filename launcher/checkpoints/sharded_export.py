"""The weights of a run whose model no process holds whole, in another file: gathered tensor by tensor, and compared."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import torch

from launcher.checkpoints.compare import Batch, agreed, apart, outputs
from launcher.checkpoints.real_batch import real_batch
from launcher.checkpoints.rebuilt import base_of
from launcher.checkpoints.safe_files import export_safetensors
from launcher.checkpoints.saved_run import Saved, evaluated_on, fill
from launcher.checkpoints.streamed import save_streamed
from launcher.checkpoints.weights import stored_weights
from launcher.data.transfer import moved
from launcher.device.device import open_device, use_cpu
from launcher.model.build import build_model
from launcher.model.tensor_files import SUFFIX
from launcher.recipe.build import Builder
from launcher.world.files import atomic_write
from launcher.world.world import World


def export_sharded(saved: Saved, target: Path, builder: Builder, world: World, cpu: bool) -> str:
    """Writes `.pth` or `.safetensors`, whole or not at all, and reads it again into the same rows.

    Args:
        saved: The weights and their recipe.
        target: The file, which rank 0 writes and all read.
        builder: Of that recipe.
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
        start = base_of(builder, recipe)
        model = build_model(builder, recipe.model, section, device, seed=recipe.seed, start=start, shares=False)
        shards = model.shards({})
        assert shards is not None
        module = model.bare.eval()
        batch = real_batch(saved, builder, lambda: module, device=device.torch_device)  # the same on all ranks
        fill(model, saved, shards)
        module, batch = model.bare.eval(), Batch(*moved((batch.args, dict(batch.kwargs)), device.torch_device))
        before, weights = outputs(module, batch), shards.module_state(module)
        with atomic_write(target, parents=False) if world.is_first else nullcontext(target) as part:
            written = Path(coordinator.from_first(lambda: str(part)))
            write = export_safetensors if target.suffix == SUFFIX else save_streamed
            write(written, weights, shards.mesh)
            coordinator.from_first(lambda: None)  # until it is there
            shards.load_module(module, stored_weights(written))
            found = torch.tensor([apart(before, outputs(module, batch))], dtype=torch.float64)
            return agreed(float(coordinator.max(found).result()))
