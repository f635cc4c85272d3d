"""What keeps something in itself beside every state_dict, or changes what it is given."""

from __future__ import annotations

from functools import partial
from typing import Any

import keeping
import nets
import torch
from torch import Tensor, nn

from tests.brought.case import case

whole: dict[str, Any] = {"pieces": False}  # what is counted is forward passes
alone: dict[str, Any] = {"pieces": False, "worlds": (1,)}

# ---------------------------------------------------------------------- in attributes

case("a counter of forward passes", model=keeping.Counting, **whole)
for kind in ("torch", "python", "numpy"):
    case(f"a generator of its own: {kind}", model=partial(keeping.Drawing, kind=kind), **whole)
case("a state from batch to batch", model=keeping.Recurrent, **alone)
case("values of every kind", model=keeping.OfEveryKind, **whole)
case("a temperature that falls", model=keeping.Tempered, after=keeping.cooled)
case("a dropout that rises", model=keeping.Dropping, after=keeping.raised, **alone)
case("a momentum of BatchNorm that falls", model=keeping.Normed, after=keeping.slowed, **alone)
case("a teacher in a list", model=keeping.Hiding, after=keeping.followed)
for by in ("parameter", "id", "place"):
    case(f"own optimizer: moments by {by}", optimizer=partial(keeping.Inside, lr=0.05, by=by))
case("own optimizer: noise", optimizer=partial(keeping.Langevin, lr=0.1))

# ---------------------------------------------------------------------- of odd form

case("buffers expanded, and twice", model=keeping.Expanded)
case("a buffer in the memory of the weights", model=keeping.Aliased)
case("train() that returns nothing", model=keeping.Silent)
case("a buffer that is None before the first forward", model=keeping.Slopes)
case("a tuple without a length", model=keeping.Described)
case("parameters() of the head alone", model=keeping.HeadAlone, worlds=(), refused=1)

# ---------------------------------------------------------------------- that change what they are given


def stepped(model: nn.Module, batch: Any, function: Any) -> Tensor:
    """What a step function gives."""
    value: Tensor = function(model, batch)["loss"]
    return value


def with_graph(model: nn.Module, batch: Any, function: Any) -> Tensor:
    """The same in an evaluation, of one that takes gradients."""
    with torch.enable_grad():
        value = stepped(model, batch, function)
    model.zero_grad()
    return value.detach()


for step in (keeping.changing, keeping.emptying):
    case(f"a step that is {step.__name__}", f"train.step=keeping.py:{step.__name__}", loss=step, forward=stepped)
case("targets changed in place", loss=keeping.of_shifted)
case(
    "a second term from the fourth step on",
    "train.step={_target_: keeping.py:Curriculum}",
    loss=keeping.Curriculum,
    forward=stepped,
    **whole,
)
own: dict[str, Any] = {"model": nets.Deep, "loss": keeping.and_cleared, "forward": stepped, "score": with_graph}
case("a step that clears its gradients", "train.step=keeping.py:and_cleared", pieces=False, **own)
pieces = ("train.step=keeping.py:and_cleared", "data.micro_batch_size=2")
case("a step that clears its gradients, in pieces", *pieces, worlds=(), refused=1, **own)
case("a step that leaves gradients", "train.step=keeping.py:by_backward", worlds=(), refused=1, model=nets.Deep)
case("a step of two arguments", "train.step=keeping.py:of_two", worlds=(), refused=2, loss=None)
