"""A saved run's model once more: where an adapter was trained, over the base that it was trained on."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from launcher.checkpoints.weights import start_from
from launcher.model.adapt import OPTION, Built, built_anew
from launcher.model.bfloat16 import held_for_a_while
from launcher.model.build import Start
from launcher.recipe.build import Builder
from launcher.recipe.schema import Recipe

Starts = Callable[[Built, bool], Start]


def starts(builder: Builder, recipe: Recipe) -> Starts | None:
    """What finds the weights of `train.start_from` for a module; None where the recipe names none."""
    source = recipe.train.start_from
    return None if source is None else partial(start_from, path=builder.folder / Path(source).expanduser())


def base_of(builder: Builder, recipe: Recipe) -> Starts | None:
    """The same for a model whose weights are saved: only an adapter's base is not among them."""
    return starts(builder, recipe) if OPTION in recipe.model.options else None


def with_base(model: Built, builder: Builder, recipe: Recipe) -> Built:
    """A model whose adapter's base is the one that training began with.

    Raises:
        LauncherError: What the recipe's `train.start_from` names is gone.
    """
    start = base_of(builder, recipe)
    if start is not None:
        model.module.load_state_dict(start(model, False).weights, strict=False)
    if model.base is not None and recipe.device.precision == "bf16-true":
        with held_for_a_while(model.module):
            pass  # its adapter was trained on what bfloat16 leaves of it
    return model


def rebuilt(builder: Builder, recipe: Recipe) -> Built:
    """Another model of the recipe, with the weights that training began with, but for those that a run has saved.

    Raises:
        LauncherError: As above.
    """
    return with_base(built_anew(builder, recipe.model, recipe.seed), builder, recipe)
