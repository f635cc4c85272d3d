"""Torch's fused kernel of Adam and AdamW, called without the Python around it.

What gathers, sorts and checks takes as long as the kernel where the model is small (11 of 24 µs, twice that when a
core's caches are cold). Only the usual is done here: what wants anything else is left to torch's own step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import Adam, AdamW, Optimizer

from launcher import internals

Lists = tuple[list[torch.Tensor], ...]
KINDS = (Adam, AdamW)  # no class derived from them: it may do otherwise


class FusedAdam:
    """Steps optimizers of these kinds.

    Raises:
        AttributeError: This torch has no such kernels.
    """

    def __init__(self) -> None:
        self._kernels = internals.adam_kernels()
        self._no_grad = torch.no_grad()  # made once, and entered by nobody else
        self._one = torch.ones((), device="cpu", dtype=torch.float32)

    def step(self, optimizer: Optimizer) -> bool:
        """As the optimizer's own step; False, and nothing is done, where it wants something that is not usual."""
        if getattr(optimizer, "found_inf", None) is not None or getattr(optimizer, "grad_scale", None) is not None:
            return False
        gathered: list[tuple[dict[str, Any], Lists]] = []
        for group in optimizer.param_groups:
            lists = _gathered(group, optimizer.state)
            if lists is None:
                return False
            if lists[0]:
                gathered.append((group, lists))
        with self._no_grad:
            for group, lists in gathered:
                self._step(group, lists)
        return True

    def _step(self, group: Mapping[str, Any], lists: Lists) -> None:
        kernels = self._kernels
        run = kernels.adamw if group["decoupled_weight_decay"] else kernels.adam
        beta1, beta2 = group["betas"]
        for alike, _ in kernels.by_device_and_type(lists, False).values():  # raises where state and gradient are others
            if alike[-1][0].is_cpu:
                kernels.add(alike[-1], self._one, alpha=1.0)  # of a bare 1 it would make a tensor for each
            else:
                kernels.add(alike[-1], 1)
            run(
                *alike,
                amsgrad=group["amsgrad"],
                lr=group["lr"],
                beta1=beta1,
                beta2=beta2,
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=group["maximize"],
                grad_scale=None,
                found_inf=None,
            )


def _gathered(group: Mapping[str, Any], state: Mapping[torch.Tensor, Any]) -> Lists | None:
    """Parameters, gradients, the averages kept of them, and steps; None where something is not usual."""
    if not group["fused"] or group["differentiable"] or group["capturable"]:
        return None
    (beta1, beta2), tensor, is_amsgrad = group["betas"], torch.Tensor, group["amsgrad"]
    if isinstance(group["lr"], tensor) or isinstance(beta1, tensor) or isinstance(beta2, tensor):
        return None
    lists: Lists = ([], [], [], [], [], [])
    parameters, gradients, averages, squares, largest, steps = lists
    for parameter in group["params"]:
        gradient = parameter.grad
        if gradient is None:
            continue
        kept = state[parameter]
        if not kept or gradient.layout is not torch.strided:  # the first step makes what is kept
            return None
        parameters.append(parameter)
        gradients.append(gradient)
        averages.append(kept["exp_avg"])
        squares.append(kept["exp_avg_sq"])
        steps.append(kept["step"])
        if is_amsgrad:
            largest.append(kept["max_exp_avg_sq"])
    return lists
