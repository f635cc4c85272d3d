"""How a model's raw output is read: where its classes are, and what it says of them."""

from __future__ import annotations

import torch


def class_dimension(outputs: torch.Tensor, target: torch.Tensor | None) -> int | None:
    """The dimension of the outputs that runs over classes; None where there is one number for each target."""
    if target is None:
        return 1 if outputs.dim() > 1 and outputs.shape[1] > 1 else None
    if outputs.numel() == target.numel():
        return None
    shape = list(outputs.shape)
    return next((d for d in (1, outputs.dim() - 1) if d > 0 and shape[:d] + shape[d + 1 :] == list(target.shape)), 1)


def probabilities(outputs: torch.Tensor, target: torch.Tensor | None) -> torch.Tensor:
    """Softmax over the classes; a sigmoid where there is one number for each target, in the target's shape."""
    over = class_dimension(outputs, target)
    if over is not None:
        return outputs.softmax(dim=over)
    return (outputs if target is None else outputs.reshape(target.shape)).sigmoid()


def classes(outputs: torch.Tensor, target: torch.Tensor | None) -> torch.Tensor:
    """The likeliest class; where there is one number for each target, whether it is above 0."""
    over = class_dimension(outputs, target)
    if over is not None:
        return outputs.argmax(dim=over)
    return ((outputs if target is None else outputs.reshape(target.shape)) > 0).long()


def score_classes(outputs: torch.Tensor, target: torch.Tensor) -> bool:
    """Whether outputs [N, C] are scores of classes of which targets [N] are numbers, as far as both tell."""
    if outputs.dim() != 2 or outputs.shape[1] < 2 or target.shape != outputs.shape[:1] or target.is_floating_point():
        return False
    return bool((target >= 0).all() and (target < outputs.shape[1]).all())
