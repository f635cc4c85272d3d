"""What many repositories have: small numbers in denominators, losses that change what they get, objects for results."""

from __future__ import annotations

from functools import partial
from typing import Any

import everyday
import nets
import sets
import torch.nn.functional as F

from tests.brought.case import case
from tests.brought.of_losses import of_three

three = nets.three
masks: dict[str, Any] = {"model": partial(nets.Scores, classes=1, squeezed=True), "forward": of_three}
targets = ("batch.targets=[1, 2]",)
some = partial(sets.Masked, kind="some")
case("a small number beside the count", *targets, data=some, loss=everyday.visible, **masks)
case("one beside the count", *targets, data=some, loss=everyday.laplace, **masks)
case(
    "what does not count has a part",  # which a piece without anything that counts would lose
    *targets,
    data=everyday.Lifetimes,
    loss=everyday.survival,
    forward=of_three,
    worlds=(1,),
    pieces=False,
)

case("a loss that rewrites its targets", model=three, data=sets.Cls, loss=everyday.rewriting)
case("a loss that takes its targets apart", model=three, data=everyday.WithMask, loss=everyday.popping)
case(
    "a step that changes its batch",
    "train.step=everyday.py:halving",
    loss=None,
    forward=lambda model, batch, _: F.mse_loss(model(batch[0] * 0.5), batch[1]),
)

case(
    "a loss in a dataclass",
    loss=everyday.in_dataclass,
    forward=lambda model, batch, loss: loss(model(batch[0]), batch[1]).loss,
)
for kind in ("dataclass", "mapping"):
    case(
        f"scores in an object: {kind}",
        model=partial(everyday.Answers, kind=kind),
        data=sets.Cls,
        loss=everyday.of_logits,
    )
case("a distribution", model=partial(everyday.Answers, kind="distribution"), data=sets.Cls, loss=everyday.likelihood)
case("as many outputs as samples", model=everyday.Attending, loss=everyday.with_attention)

case(
    "a loss compiled by torch.jit",
    "loss={_ref_: everyday.py:scripted}",
    loss=None,
    forward=lambda model, batch, _: F.mse_loss(model(batch[0]), batch[1]),
)
case(
    "a loss that is told the model",
    'loss={_target_: "everyday.py:Decaying", model: "${model}"}',
    loss=None,
    forward=lambda model, batch, _: everyday.Decaying(model)(model(batch[0]), batch[1]),
)

case("real numbers that mean nothing", model=three, data=everyday.Unmeasured, loss=everyday.measured)
case("real numbers far below", model=three, data=partial(everyday.Unmeasured, nothing=-999.0), loss=everyday.above)
case("a list with None", model=three, data=everyday.SomeWithout, collate=everyday.listed, loss=everyday.of_those_with)
by_name: dict[str, Any] = {"model": three, "data": sets.Cls}
case(
    "a loss that is called by name",
    "loss={_target_: everyday.py:ByName, _outputs_: {logits: 0}, _targets_: {labels: 1}}",
    loss=None,
    forward=lambda model, batch, _: F.cross_entropy(model(batch[0]), batch[1]),
    **by_name,
)
case("a loss that is called by name, and is not", loss=everyday.ByName, worlds=(), refused=1, **by_name)

case(
    "a tuple that no annotation asks for",
    'model={_target_: "everyday.py:OfTuple", sizes: {_target_: builtins.tuple, _args_: [[4, 1]]}}',
    model=partial(everyday.OfTuple, sizes=(4, 1)),
)
case("a list in its place", model=partial(everyday.OfTuple, sizes=[4, 1]), worlds=(), refused=1)
case("a model that fails", model=everyday.Failing, loss=everyday.squared, worlds=(), refused=2)
case(
    "a model that fails, and returns its loss",
    "loss=model",
    "batch={inputs: [0, 1], targets: []}",
    model=everyday.Failing,
    loss=None,
    worlds=(),
    refused=2,
)
