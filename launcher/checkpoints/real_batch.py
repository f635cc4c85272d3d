"""A real batch, and what the model gets of it: on that, what is exported is compared with what it was made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from launcher.checkpoints.compare import Batch, outputs, own_copy
from launcher.checkpoints.saved_run import Saved
from launcher.data.load import EvaluationLoader, Part, TrainLoader, evaluation_parts, load_data, load_evaluation
from launcher.data.subsets import class_names
from launcher.data.transfer import moved
from launcher.errors import LauncherError
from launcher.model.kinds import class_of
from launcher.model.own_gradients import OwnGradients
from launcher.objective.batch import BatchLayout
from launcher.objective.build import build_objective
from launcher.objective.loss import Objective
from launcher.objective.run_length import At
from launcher.recipe import schema
from launcher.recipe.build import Builder
from launcher.recipe.schema import Recipe
from launcher.world.world import World

SAMPLES = 2  # of the batch that is tried
_ANSWERS = ("labels",)  # by which names models get them
_OTHERS = ([0, 1, 0], [0])  # other sizes, by the numbers of their samples
Loader = TrainLoader | EvaluationLoader
Calls = Callable[[Any], Batch]  # what a model gets of a batch


def real_batch(
    saved: Saved,
    builder: Builder,
    watched: Callable[[], nn.Module],
    *,
    part: str = "",
    device: torch.device | None = None,
) -> Batch:
    """What a model gets of two samples, and of others; of the training set, or of another where that cannot be read.

    It is what `batch.inputs` names. A step function calls the model itself: where the recipe names no inputs, the step
    is run as in an evaluation, to see what it calls the model, or parts of it, with. What one part of a model gets is
    seen in the same way.

    Args:
        saved: The recipe, and where its training stood.
        builder: Of that recipe.
        watched: Gives the model that is called to see that.
        part: The name of the part that is meant; empty for the model.
        device: Where that is; None is the CPU.

    Raises:
        LauncherError: No set can be read, or nothing is called.
    """
    recipe = saved.recipe
    loader, data = _opened(saved, builder)
    calls: Calls = partial(_named, BatchLayout(recipe.batch))
    steps = calls_itself(recipe)
    if steps or part:
        act = _step(saved, builder) if steps else partial(_forward, calls)
        calls = partial(_observed, act, watched(), part)
    change = partial(_changed, loader.reading.on_device, device or torch.device("cpu"))
    others, rows = [], loader.num_readable()
    for numbers in _OTHERS if rows else ():
        with suppress(Exception):  # a loss that compares samples has nothing to do with one
            others.append(calls(change(loader.batch_of([min(number, rows - 1) for number in numbers]))))
    return replace(calls(change(data)), classes=saved.classes() or class_names(loader.dataset), others=others)


def _opened(saved: Saved, builder: Builder) -> tuple[Loader, Any]:
    """The first set that can be read, and a batch of it."""
    faults = []
    for name, opens in _sets(saved, builder):
        try:
            with builder.undone_on_error():
                loader: Loader = opens()
                rows = min(SAMPLES, loader.num_readable())
                if rows or isinstance(loader, EvaluationLoader):
                    return loader, loader.batch_of(range(rows))
                return loader, next(iter(loader.steps(0, 1)))[0].data  # a stream that can be read only once
        except Exception as error:  # of whatever kind: data sets are users'
            words = " ".join(str(error).split())[:300]
            faults.append(words if name in words else f"{name}: {words}")
    raise LauncherError(f"what is written is compared on a real batch, and no set can be read: {'; '.join(faults)}")


def _sets(saved: Saved, builder: Builder) -> Iterator[tuple[str, Callable[[], Loader]]]:
    """How each of the recipe's sets is opened, the training set first."""
    section = saved.recipe.data.model_copy(update={"workers": 0, "micro_batch_size": SAMPLES})
    yield "data.train", partial(_training, saved.recipe, builder, section)
    for part in evaluation_parts(section):
        yield ".".join(("data", *filter(None, part))), partial(_evaluation, saved.recipe, builder, section, part)


def _training(recipe: Recipe, builder: Builder, section: schema.Data) -> Loader:
    alone = section.model_copy(update={"validation": None, "test": None, "weights": None})  # nothing else is opened
    options: dict[str, Any] = {"evaluate": recipe.evaluate, "train": recipe.train, "seed": recipe.seed}
    return load_data(builder, alone, World(), **options, trains=False).train


def _evaluation(recipe: Recipe, builder: Builder, section: schema.Data, part: Part) -> Loader:
    sets = load_evaluation(builder, section, World(), [part], evaluate=recipe.evaluate, seed=recipe.seed)
    return sets[part]


def _changed(change: Callable[[Any], Any] | None, device: torch.device, data: Any) -> Any:
    """A batch on a device, through what `data.on_device` names."""
    data = moved(data, device)
    return data if change is None else change(data)


def _named(layout: BatchLayout, data: Any) -> Batch:
    """What `batch.inputs` names."""
    args, kwargs = layout.inputs(data)
    inputs, targets = layout.section.inputs, layout.section.targets
    items = inputs.items() if isinstance(inputs, Mapping) else enumerate(inputs) if isinstance(inputs, list) else ()
    answers = [place for place, key in items if place in _ANSWERS or key in targets]
    return Batch(tuple(args), dict(kwargs), answers=answers)


Step = Callable[[nn.Module, Any], object]


def _step(saved: Saved, builder: Builder) -> Step:
    """The step function, called as in an evaluation at the end of training."""
    recipe, (step, epoch) = saved.recipe, saved.at
    objective = build_objective(builder, recipe.loss, recipe.batch, recipe.train)
    at = At(step, math.floor(epoch + 1e-6), 1.0)
    return lambda model, data: objective.evaluated_step(model, data, at)


def called_by_step(objective: Objective, model: nn.Module, data: Any, at: At) -> Batch:
    """What a step function calls a model with, or the parts of it that it calls, as in an evaluation.

    Args:
        objective: Has the step function.
        model: In eval mode.
        data: A batch, on its device.
        at: Where training stands.

    Raises:
        LauncherError: It fails, or calls nothing.
    """
    return _observed(lambda model, data: objective.evaluated_step(model, data, at), model, "", data)


def calls_itself(recipe: Recipe) -> bool:
    """Whether a recipe's step function alone knows what the model gets."""
    return recipe.train.step is not None and "inputs" not in recipe.batch.model_fields_set


def _forward(calls: Calls, model: nn.Module, data: Any) -> object:
    """Calls the model with what `batch.inputs` names."""
    return outputs(model, calls(data))


def _observed(step: Step, model: nn.Module, part: str, data: Any) -> Batch:
    """What a step function calls the model with, or the part of it that is meant; else those parts that it calls.

    Raises:
        LauncherError: It fails, or calls nothing.
    """
    remedy = f"say in batch.inputs what {class_of(model).__name__}'s forward gets of a batch"
    act, seen = partial(step, model, own_copy(data)), model.get_submodule(part)
    try:
        calls = OwnGradients().call(model, partial(_calls, act, seen))
    except Exception as error:
        words = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise LauncherError(f"train.step fails in eval mode, so its calls are not seen: {words}; {remedy}") from error
    if part and "" not in calls:
        raise LauncherError(f"--part {part}: it is not called in eval mode; name a part that is, with a forward")
    if not calls:
        raise LauncherError(f"train.step calls neither the model nor a part of it in eval mode; {remedy}")
    return calls[""] if "" in calls else Batch((), {}, parts=calls)


def _calls(act: Callable[[], object], model: nn.Module) -> Mapping[str, Batch]:
    """What a model, or parts of it, are called with from outside while something is done: each the first time."""
    calls: dict[str, Batch] = {}
    inside: list[str] = []

    def enter(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not inside and name not in calls:
            calls[name] = Batch(own_copy(args), own_copy(kwargs), answers=_ANSWERS)
        inside.append(name)

    def leave(*_: object) -> None:
        inside.pop()

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            for handle in (
                module.register_forward_pre_hook(partial(enter, name), with_kwargs=True),
                module.register_forward_hook(leave, always_call=True),
            ):
                hooks.callback(handle.remove)
        act()
    return calls
