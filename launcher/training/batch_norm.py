"""BatchNorm has no variance over one sample: known before the first step, and not at the end of the first epoch."""

from __future__ import annotations

from torch import nn

from launcher.internals import batch_norms
from launcher.objective.calls import copied
from launcher.recipe import schema
from launcher.training.state import TrainState
from launcher.world.world import World


def takes_means(model: nn.Module) -> bool:
    """Whether a model has a BatchNorm that takes means of batches: its own train() may leave all in eval mode."""
    has_norm = any(isinstance(module, batch_norms()) for module in model.modules())
    if not has_norm or all(type(module).train is nn.Module.train for module in model.modules()):
        return has_norm
    twin = copied(model)
    if twin is model:  # nobody can copy it
        return True
    twin.train()
    return any(isinstance(module, batch_norms()) and module.training for module in twin.modules())


def too_few_for_batch_norm(
    state: TrainState, section: schema.Device, world: World
) -> tuple[tuple[str, ...], str] | None:
    """Where some process would have a single sample: the recipe's key, and what is wrong; None where none would.

    Args:
        state: The model and the data.
        section: The recipe's `device`.
        world: The processes that share a batch.
    """
    sampler, total = state.data.train.sampler, state.length.total_steps
    if section.sync_batchnorm or not takes_means(state.model.bare):
        return None
    last = sampler.steps_per_epoch - 1 if total is None else min(total, sampler.steps_per_epoch) - 1
    fewest = {step: sampler.batch_size(step) // world.size // sampler.accumulation(step) for step in (0, last)}
    wrong = next((step for step, samples in fewest.items() if samples < 2), None)
    if wrong is None:
        return None
    what = f"step {wrong + 1} of an epoch has {sampler.batch_size(wrong)} samples"
    few = f"BatchNorm needs two samples at a time, and {what} on {world.size} processes"
    parts = sampler.accumulation(wrong)
    few += f" in {parts} parts each" if parts > 1 else ""
    remedy = "set data.drop_last: true" if wrong else "use fewer processes, a larger batch, or a larger micro-batch"
    return ("data", "drop_last" if wrong else "global_batch_size"), f"{few}: some get fewer; {remedy}"
