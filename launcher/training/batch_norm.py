"""BatchNorm has no variance over one sample: known before the first step, and not at the end of the first epoch."""

from __future__ import annotations

from launcher.internals import batch_norms
from launcher.recipe import schema
from launcher.training.state import TrainState
from launcher.world.world import World


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
    has_norm = any(isinstance(module, batch_norms()) for module in state.model.bare.modules())
    if not has_norm or section.sync_batchnorm:
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
