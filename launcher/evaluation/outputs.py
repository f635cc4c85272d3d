"""How a model's raw output is read: where its classes are, and what it says of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from launcher.text import shapes


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


def check_alike(batches: Sequence[torch.Tensor], otherwise: str = "") -> None:
    """Refuses batches that cannot be put together along their first dimension.

    Args:
        batches: In their order.
        otherwise: What can be done instead of padding.

    Raises:
        ValueError: There are such.
    """
    first = batches[0] if batches else None
    other = next((batch for batch in batches if first is not None and batch.shape[1:] != first.shape[1:]), None)
    if first is not None and other is not None:
        raise ValueError(
            f"all batches are put together, and {shapes(first)} and {shapes(other)} do not fit together; pad all "
            f"samples to one length{otherwise}"
        )
