"""What people bring more rarely: what has nothing to count is left out, and a forward moves weights."""

from __future__ import annotations

from functools import partial
from typing import Any

import losses
import nets
import rarer
import sets
import torch
from torch import Tensor, nn

from tests.brought.case import case
from tests.brought.of_losses import of_three, per_sample

three = nets.three

# ---------------------------------------------------------------------- losses that leave out what has nothing

later: dict[str, Any] = {"size": 88, "first": 64}  # none of the samples that are measured has nothing
case("samples without a mask", model=three, data=rarer.Absent, loss=rarer.dice_of_present)
case(
    "samples without a mask, later",
    model=three,
    data=partial(rarer.Absent, **later),
    loss=rarer.dice_of_present,
    steps=12,
)
whole: dict[str, Any] = {"model": rarer.planes, "loss": rarer.dice_of_present_planes}
case("planes without a mask", data=partial(rarer.Absent, kind="planes"), **whole)
case("planes without a mask, later", data=partial(rarer.Absent, kind="planes", **later), steps=12, **whole)
places: dict[str, Any] = {"model": partial(nets.Scores, classes=1, squeezed=True), "forward": of_three}
masks = ("batch.targets=[1, 2]",)
case("rows without a mask", *masks, data=rarer.AbsentRows, loss=rarer.rows_let_through, **places)
case(
    "rows without a mask, later",
    *masks,
    data=partial(rarer.AbsentRows, **later),
    loss=rarer.rows_let_through,
    steps=12,
    **places,
)
labels: dict[str, Any] = {"model": partial(nets.Scores, last=True), "data": rarer.Unlabelled}
case("rows without a label", loss=rarer.by_labelled_rows, **labels)
case("tokens by the rows that have a label", loss=rarer.by_conversation, **labels)
case(
    "no object in the first samples",
    "batch={inputs: [0], targets: [1, 2], outputs: [0, 1]}",
    model=rarer.Found,
    data=rarer.Objects,
    loss=rarer.boxes_of_present,
    forward=lambda model, batch, loss: loss(*model(batch[0]), *batch[1:]),
    worlds=(1,),
    pieces=False,
    refused=2,
)

# ---------------------------------------------------------------------- counts of other kinds

case("a count of all ranks", loss=losses.OverAll, worlds=(1, 2))
for kind in ("array", "list", "mapping"):
    case(f"class weights: {kind}", model=three, data=sets.Cls, loss=partial(rarer.Weighing, kind=kind))
weighed: dict[str, Any] = {**places, "data": rarer.Importance}
case("a mask that weighs", *masks, loss=losses.masked, **weighed)
speech: dict[str, Any] = {"model": rarer.ByTime, "data": rarer.Words, "collate": rarer.in_a_row}
speech |= {"forward": lambda model, batch, loss: loss(model(batch[0]), *batch[1:])}
letters = ("batch={inputs: [0], targets: [1, 2, 3]}",)
case("letters in a row", *letters, loss=nn.CTCLoss, **speech)
case(
    "letters in a row, a sum",
    *letters,
    loss=partial(nn.CTCLoss, reduction="sum"),
    optimizer=partial(torch.optim.SGD, lr=0.001),
    score=per_sample(speech["forward"]),
    **speech,
)
case("targets of their own in a list", model=three, data=rarer.Boxes, collate=rarer.beside, loss=rarer.mean_of_images)
case(
    "a measure among the losses",
    "loss=model",
    "batch={inputs: [0, 1], targets: []}",
    model=rarer.Measures,
    data=sets.Cls,
    loss=None,
    forward=lambda model, batch, _: sum(list(model(*batch).values())[:2]),
)

# ---------------------------------------------------------------------- weights that a forward moves


def of_views(model: nn.Module, batch: Any, _: Any) -> Tensor:
    """The model's own loss of two views."""
    value: Tensor = model(*batch)
    return value


for way in ("in place", "data", "exchanged"):
    case(
        f"a teacher that follows in forward: {way}",
        "loss=model",
        "batch={inputs: [0, 1], targets: []}",
        model=partial(rarer.Bootstrapped, way=way),
        data=sets.Views,
        loss=None,
        forward=of_views,
        pieces=False,
    )
case("an average that follows in forward", model=rarer.Taught, pieces=False)
case("weights held small in forward", model=rarer.Held)
case(
    "a loss with the model's head",
    'loss={_target_: "rarer.py:OfHead", head: "${model.head}"}',
    model=rarer.Headed,
    data=sets.Cls,
    loss=None,
    forward=lambda model, batch, _: nn.functional.cross_entropy(model.head(model(batch[0])), batch[1]),
)
