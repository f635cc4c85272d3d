"""5: training. The randomness of a step: arithmetic, never stored."""

from __future__ import annotations

import torch

from launcher.data.permutation import mix


class StepSeeds:
    """Seeds torch's generators for a step, a function of seed, step and rank.

    `default_generator.manual_seed` costs 1.5 µs, `torch.manual_seed` 247.

    Args:
        seed: The run's.
        rank: This process's.
        on_gpu: Whether the device has generators of its own.
    """

    def __init__(self, seed: int, rank: int, on_gpu: bool):
        self._seed, self._rank, self._on_gpu = seed, rank, on_gpu

    def __call__(self, step: int) -> None:
        """Seeds for the step after `step` completed ones."""
        value = mix(self._seed, step, self._rank) & 0x7FFFFFFFFFFFFFFF
        torch.default_generator.manual_seed(value)
        if self._on_gpu:
            torch.cuda.manual_seed(value)
