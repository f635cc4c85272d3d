"""Torch's fused kernel of SGD with momentum, where some parameters of a group get their first gradient later.

The kernel makes what it keeps of all of them in one step, and ends with an error where some have it and others not:
after `train.freeze` until a step, or with a part of the model that the first steps did not use.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.optim import Optimizer


@contextmanager
def unfused_where_new(optimizer: Optimizer) -> Iterator[None]:
    """Has torch step groups of both kinds without that kernel, which comes to the same but for rounding."""
    mixed = [] if _all_known(optimizer) else [group for group in optimizer.param_groups if _is_mixed(group, optimizer)]
    for group in mixed:
        group["fused"] = False
    try:
        yield
    finally:
        for group in mixed:
            group["fused"] = True


def _all_known(optimizer: Optimizer) -> bool:
    """Whether every parameter has been stepped, so that none is looked at."""
    return len(optimizer.state) == sum(len(group["params"]) for group in optimizer.param_groups)


def _is_mixed(group: dict[str, Any], optimizer: Optimizer) -> bool:
    if not group["fused"] or not group["momentum"]:
        return False
    stepped = [parameter for parameter in group["params"] if parameter.grad is not None]
    kept = {optimizer.state.get(parameter, {}).get("momentum_buffer") is not None for parameter in stepped}
    return len(kept) == 2
