"""What a script of your own may import under `launcher run`: the sampler, checkpoints, the stop request.

    from launcher.scripting import StepSampler, checkpoints, reached, run_dir, stop_requested

`recipes/gan/train.py` uses all of them.
"""

from __future__ import annotations

from pathlib import Path

from launcher import checkpoints
from launcher.data.sampler import StepSampler
from launcher.world import signals
from launcher.world.progress import reached
from launcher.world.world import World

__all__ = ["StepSampler", "checkpoints", "reached", "run_dir", "stop_requested"]


def stop_requested() -> bool:
    """Whether this process was asked to stop: then save, and end.

    From the first call on SIGTERM, Ctrl-C and SIGUSR2 no longer end the process; a second Ctrl-C does. With several
    processes all must decide alike: agree on it with an all-reduce, as the signal reaches them at different steps.
    """
    signals.listen()
    return signals.stop_requested()


def run_dir() -> Path:
    """The run's folder, the same for all processes; the working directory without `launcher run`."""
    return Path(World.from_environ().run_dir or ".")
