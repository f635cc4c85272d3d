"""6: evaluation. From training to evaluating and back, as people's classes expect it, and nothing else moves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from launcher.data.seeds import randomness_restored, seed_generators
from launcher.device.kind import kind_of
from launcher.evaluation.unmoved import Unmoved
from launcher.objective.loss import Objective
from launcher.world.cleanup import afterwards

_EVALUATING = 6  # what a seed is for: no step's and no sample's


def has_modes(optimizer: Any) -> bool:
    """Whether an optimizer keeps weights for training and others for evaluating, as schedule-free ones do."""
    return all(callable(getattr(optimizer, name, None)) for name in ("train", "eval"))


def start_training(model: nn.Module, optimizer: Any) -> None:
    """Puts the model into train mode before the first step, and an optimizer that has one."""
    model.train()
    if has_modes(optimizer):
        optimizer.train()


@contextmanager
def evaluating(model: nn.Module, objective: Objective, optimizer: Any = None, but: Any = None) -> Iterator[None]:
    """Eval mode for a while, by the `eval()` and `train()` of the root module, the losses and the optimizer.

    Classes change their own weights in these (a low-rank layer folds itself in), so every rank calls them at the same
    steps, whoever evaluates. Between the two nothing is kept of what happens; afterwards each module is in the mode it
    was in: a frozen one stays frozen.

    Args:
        model: The bare module.
        objective: Its losses and step function, which may be modules and may have a state.
        optimizer: The run's, where the weights are those of training.
        but: What may remember something of it.
    """
    modules = _roots(model, objective)
    modes = [(submodule, submodule.training) for root in modules for submodule in root.modules()]
    trained = [root for root in modules if root.training]
    switched: list[Any] = [*modules, *([optimizer] if has_modes(optimizer) else [])]
    for part in switched:
        part.eval()
    unmoved = Unmoved.of_run(model, objective, but=but)

    def train_again() -> None:
        unmoved.put_back()
        for part in (*trained, *switched[len(modules) :]):
            part.train()
        for module, training in modes:
            module.training = training

    with afterwards(train_again):
        yield


def _roots(model: nn.Module, objective: Objective) -> list[nn.Module]:
    """The model, and what else is a module and no part of it."""
    inside = {id(submodule) for submodule in model.modules()}
    return [
        model,
        *(
            candidate
            for candidate in objective.brought.values()
            if isinstance(candidate, nn.Module) and id(candidate) not in inside
        ),
    ]


@contextmanager
def own_randomness(seed: int, rank: int, device: torch.device) -> Iterator[None]:
    """Randomness of an evaluation's own, the same each time; afterwards all generators continue where they were."""
    kind = kind_of(device)
    with randomness_restored(needed=True), kind.generator_restored():
        seed_generators(seed, _EVALUATING, rank, kind=kind)
        yield


@contextmanager
def weights_of_evaluation(optimizer: Any) -> Iterator[None]:
    """An optimizer's weights for evaluating in their place for a while; then those of training, to the bit."""
    parameters = [weight for group in optimizer.param_groups for weight in group["params"]]
    kept = [weight.detach().clone() for weight in parameters]
    optimizer.eval()

    @torch.no_grad()
    def train_again() -> None:
        optimizer.train()
        for parameter, value in zip(parameters, kept, strict=True):
            parameter.copy_(value)

    with afterwards(train_again):
        yield
