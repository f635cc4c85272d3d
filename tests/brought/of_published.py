"""Losses as papers and repositories publish them."""

from __future__ import annotations

from functools import partial
from typing import Any

import layers
import nets
import published
import sets

from tests.brought.case import case
from tests.brought.of_losses import of_three

three = nets.three


def given(kind: str, **more: Any) -> Any:
    """Makes rows of a kind."""
    return partial(published.Given, kind=kind, **more)


later: dict[str, Any] = {"size": 88, "first": 64}  # none of the samples that are measured lacks anything
targets = ("batch.targets=[1, 2]",)
rows: dict[str, Any] = {"model": partial(nets.Scores, classes=1, squeezed=True), "forward": of_three}
tokens: dict[str, Any] = {"model": partial(nets.Scores, last=True), "forward": of_three}

# ---------------------------------------------------------------------- what counts

case("a mask of what is padded", *targets, data=given("padded"), loss=published.outside, **rows)
case("a mask of what is padded, in numbers", *targets, data=given("padded, in numbers"), loss=published.outside, **rows)
case("tokens but for the padded ones", *targets, data=given("padded tokens"), loss=published.next_outside, **tokens)
case("lengths less one", *targets, data=given("lengths"), loss=published.of_differences, **rows)
for kind in ("yes or no, or unknown", "yes or no in whole numbers"):
    case(f"{kind}, later", model=three, data=given(kind, **later), loss=published.of_known, steps=12)
case(
    "distances that are missing later",
    model=three,
    data=given("distances", **later),
    loss=published.above_zero,
    steps=12,
)
case("what is above zero", model=three, data=given("both signs"), loss=published.above_zero)
classes: dict[str, Any] = {"model": three, "data": given("classes")}
case("class weights of a part", loss=published.Inside, **classes)
case("class weights of a part, one ignored", loss=partial(published.Inside, index=1), **classes)
case("class weights in the file", loss=published.beside, **classes)
case("complex numbers", model=published.Complex, data=given("complex"), loss=published.of_complex)
case("survival in intervals", *targets, model=three, data=given("lives"), loss=published.hazard, forward=of_three)
case("one of two domains", *targets, model=three, data=given("domains"), loss=published.of_source, forward=of_three)
rewarded = ("batch.targets=[1, 2, 3]",)
case("rewards by answers", *rewarded, data=given("rewarded"), loss=published.by_answers, **tokens)
case("rewards by tokens", *rewarded, data=given("rewarded"), loss=published.by_tokens, **tokens)

# ---------------------------------------------------------------------- of the whole batch

whole: dict[str, Any] = {"worlds": (), "refused": 2}
case("flooded late", loss=published.flooded, **whole)
pictures = partial(layers.convolutions, masks=True)
case("the hard pixels", model=pictures, data=given("pictures"), loss=published.hard_pixels, **whole)
case("by difficulty", loss=published.by_difficulty, **classes, **whole)
case("two tokens ahead", model=tokens["model"], data=sets.Dense, loss=published.tokens_ahead, **whole)
