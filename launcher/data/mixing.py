"""Batches mixed with themselves on the device: mixup and cutmix, for `data.on_device`.

What they draw is seeded with the step, as all that a step draws: the same after a resume.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot


class _Mixing:
    """Replaces inputs and classes of a batch; what else it holds stays.

    Args:
        classes: How many there are; targets become a probability for each.
        alpha: Both parameters of the Beta distribution that says how much of a sample is left.
        input: Where in a batch the inputs stand: position or key.
        target: Where the classes stand.

    Raises:
        ValueError: `alpha` is not above 0.
    """

    def __init__(self, classes: int, alpha: float, input: int | str = 0, target: int | str = 1):  # its name
        if alpha <= 0:
            raise ValueError("alpha must be above 0")
        self.classes, self.alpha, self.input, self.target = classes, alpha, input, target

    def __call__(self, batch: Any) -> Any:
        """The batch with each sample mixed with another one of it."""
        inputs, targets = batch[self.input], batch[self.target]
        order = torch.randperm(len(inputs), device=inputs.device)
        left = float(torch.distributions.Beta(self.alpha, self.alpha).sample())
        mixed, left = self._mixed(inputs, order, left)
        wanted = one_hot(targets, self.classes) if not targets.is_floating_point() else targets
        wanted = wanted.to(mixed.dtype if mixed.is_floating_point() else torch.float32)
        return _with(batch, {self.input: mixed, self.target: wanted * left + wanted[order] * (1 - left)})

    def _mixed(self, inputs: Tensor, order: Tensor, left: float) -> tuple[Tensor, float]:
        """Inputs mixed with those in this order, and how much of each is left."""
        raise NotImplementedError


class Mixup(_Mixing):
    """Weighted means of two samples and of their classes (Zhang et al., *mixup*, ICLR 2018)."""

    def __init__(self, classes: int, alpha: float = 0.2, input: int | str = 0, target: int | str = 1):
        super().__init__(classes, alpha, input, target)

    def _mixed(self, inputs: Tensor, order: Tensor, left: float) -> tuple[Tensor, float]:
        return inputs * left + inputs[order] * (1 - left), left


class CutMix(_Mixing):
    """A rectangle of another picture in each, the classes by area (Yun et al., *CutMix*, ICCV 2019)."""

    def __init__(self, classes: int, alpha: float = 1.0, input: int | str = 0, target: int | str = 1):
        super().__init__(classes, alpha, input, target)

    def _mixed(self, inputs: Tensor, order: Tensor, left: float) -> tuple[Tensor, float]:
        height, width = inputs.shape[-2:]
        side = (1 - left) ** 0.5
        centre = torch.rand(2).tolist()
        top, bottom = _side(centre[0], side, height)
        start, stop = _side(centre[1], side, width)
        mixed = inputs.clone()
        mixed[..., top:bottom, start:stop] = inputs[order][..., top:bottom, start:stop]
        return mixed, 1 - (bottom - top) * (stop - start) / (height * width)


def _side(centre: float, side: float, size: int) -> tuple[int, int]:
    """Where a rectangle begins and ends, within the picture."""
    middle, half = int(centre * size), int(side * size / 2)
    return max(0, middle - half), min(size, middle + half)


def _with(batch: Any, parts: Mapping[Any, Any]) -> Any:
    """The batch with other parts."""
    if isinstance(batch, Mapping):
        return {**batch, **parts}
    changed = list(batch)
    for place, part in parts.items():
        changed[place] = part
    return type(batch)(*changed) if hasattr(batch, "_fields") else type(batch)(changed)
