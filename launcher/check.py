"""The rehearsal behind `launcher check`: a run's seven phases on two samples, on the CPU, in float32.

Everything is the run's own code: the data sets are opened, and two samples go through forward, loss, backward, an
optimizer step, evaluation and a checkpoint that is written and read back. The world that the run is meant for, be it
of 4,096 processes, is arithmetic.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from launcher import checkpoints
from launcher.batch import shapes
from launcher.checkpoints import Snapshot, plain
from launcher.data import Data, load_data
from launcher.device import open_device, seed_everything
from launcher.doubts import doubts_of
from launcher.errors import LauncherError, Problem, RecipeError, UsageError
from launcher.evaluation import AVERAGED, evaluate
from launcher.judge import deciding_set, value_of
from launcher.launch.world import World
from launcher.measures import build_measures
from launcher.model import Model, build_model
from launcher.objective import INDEPENDENT
from launcher.plan import Plan, plan_of
from launcher.recipe.components import BuildError, Workshop
from launcher.recipe.document import Path as RecipePath
from launcher.recipe.document import dotted, printable
from launcher.recipe.duration import Duration
from launcher.recipe.generated_code import check_names
from launcher.recipe.schema import Recipe
from launcher.recipe.targets import told
from launcher.runs.words import size
from launcher.training import Horizon, Step, Trainable, backward, build_trainable, counted_steps, forward, update

SAMPLES = 2
_MANIFEST = {"step": 1}
Say = Callable[[str, str], None]  # a stage and what came of it


@dataclass(frozen=True)
class Checked:
    """What is known of a run that can be made.

    Attributes:
        plan: As the run would print it, for the world asked for.
        doubts: What is allowed and looks like a slip.
    """

    plan: Plan
    doubts: Sequence[str]


def rehearse(workshop: Workshop, world: World, say: Say) -> Checked:
    """The rest: data, and one step on two samples.

    Args:
        workshop: Whose components were checked.
        world: The processes that the run is meant for.
        say: Told of each stage when it is done.

    Raises:
        LauncherError: What the run would end with, and what it would end with later.
    """
    recipe = workshop.recipe
    seed_everything(recipe.seed)
    with warnings.catch_warnings(), _stage(recipe, ("data",), "opening the data"):
        warnings.simplefilter("ignore")
        data = load_data(workshop, world)
    say("data", _sizes(data))
    small = workshop.for_recipe(_small(recipe))
    with warnings.catch_warnings(), open_device(small.recipe, World(), cpu=True) as device:
        warnings.simplefilter("ignore")
        model = build_model(small, device)
        say("model", model.describe())
        if recipe.device.compile:
            with _stage(recipe, ("model",), ""):
                check_names(model.bare)
        trainable, horizon = build_trainable(small, model, device, data)
        _check_batch_norm(recipe, model, data, world, horizon)
        _check_schedule(recipe, trainable, horizon)
        samples = load_data(small, World())
        warned = _rehearse_step(recipe, trainable, samples, horizon, world, say)
        _rehearse_evaluation(small, trainable, samples, say)
        _rehearse_checkpoint(recipe, trainable, say)
        elsewhere = replace(trainable, device=replace(device, world=world, notes=()))
        plan = plan_of(recipe, data, elsewhere, horizon, Path(), 0, list(_notes(recipe, data, world)))
        return Checked(_for_the_world(plan, recipe), [*warned, *doubts_of(recipe, trainable, horizon)])


def _small(recipe: Recipe) -> Recipe:
    """The recipe for two samples on a CPU; what is learned from is the same."""
    section = recipe.data
    data = {"global_batch_size": SAMPLES, "micro_batch_size": None, "workers": 0, "drop_last": False}
    device = {"precision": "no", "compile": False, "sync_batchnorm": False, "deterministic": False}
    limits = {"limit": Duration(1, "batches", "1 batch"), "batch_size": SAMPLES, "ranks": "first"}
    return recipe.model_copy(
        update={
            "data": section.model_copy(update=data),
            "device": recipe.device.model_copy(update=device),
            "evaluate": recipe.evaluate.model_copy(update=limits),
        }
    )


def _sizes(data: Data) -> str:
    sets = [(f"validation {name}".strip(), one) for name, one in data.validation.items()]
    sets += [(f"test {name}".strip(), one) for name, one in data.test.items()]
    return ", ".join([data.describe(), *(f"{name} {one.num_samples():,}" for name, one in sets)])


def _notes(recipe: Recipe, data: Data, world: World) -> Iterator[str]:
    """What this machine could not do, and what processes have nothing to do."""
    section, sampler = recipe.device, data.train.sampler
    last = sampler.batch_size(sampler.steps_per_epoch - 1)
    if last < world.size:
        idle = world.size - last
        those = f"{idle} processes have" if idle > 1 else "1 process has"
        yield f"the last step of an epoch has {last} sample{'s' * (last > 1)}: {those} nothing to do in it"
    asked = {"precision fp16": section.precision == "fp16", "sync_batchnorm": section.sync_batchnorm}
    for what, wanted in asked.items():
        if wanted and not torch.cuda.is_available():
            yield f"device: {what} needs a GPU, which this machine has not"


def _for_the_world(plan: Plan, recipe: Recipe) -> Plan:
    """The plan without what only the machine of the run can say."""
    precision = "the model's own" if recipe.device.precision == "no" else recipe.device.precision
    said = {"device": f"precision {precision}; rehearsed on this machine's CPU in float32"}
    return [(label, said.get(label, text)) for label, text in plan if label != "folder"]


# ---------------------------------------------------------------------- errors of somebody else's code


@contextmanager
def _stage(recipe: Recipe, path: RecipePath, doing: str, seen: Callable[[], str] = str) -> Iterator[None]:
    """Turns what goes wrong inside into a problem of this part of the recipe.

    Args:
        recipe: Knows where the part stands.
        path: The part.
        doing: What is being done; empty where the part says it.
        seen: What the code had been given, in words.
    """
    try:
        yield
    except (RecipeError, BuildError, UsageError):
        raise
    except LauncherError as error:  # names its key itself
        key = tuple(str(error).partition(":")[0].split("."))
        where = recipe.document.origin(key if key[0] in type(recipe).model_fields else path)
        raise RecipeError([Problem(str(where), "", printable(str(error)))]) from error
    except Exception as error:
        message = ": ".join(part for part in (doing, told(error)) if part)
        raise RecipeError([_problem(recipe, path, f"{message}{seen()}")]) from error


def _problem(recipe: Recipe, path: RecipePath, message: str) -> Problem:
    return Problem(str(recipe.document.origin(path)), dotted(path), printable(message))


# ---------------------------------------------------------------------- the stages


def _rehearse_step(
    recipe: Recipe, trainable: Trainable, samples: Data, horizon: Horizon, world: World, say: Say
) -> list[str]:
    """Two samples forward, their loss, backward, and one update; gives what was warned of on the way to the loss."""
    with _stage(recipe, ("data", "train"), "reading two samples"):
        step = next(counted_steps(samples, trainable.objective, trainable.device.coordinator, 0, 1))
    batch = step.batches[0].data
    say("batch", f"{step.batches[0].samples} samples: {shapes(batch)}")
    trainable.model.wrapped.train()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loss = _rehearse_forward(recipe, trainable, step, horizon, say)
    with _stage(recipe, ("loss",), "backward"):
        backward(trainable, *loss)
    _check_gradients(recipe, trainable, world, say)
    with _stage(recipe, ("optimizer",), "the optimizer's step"):
        update(trainable, 0)
        trainable.schedule.advance(1)
    say("step", f"{type(trainable.optimizer).__name__}, learning rate {trainable.schedule.rate:.3g}")
    texts = [" ".join(str(one.message).split()) for one in caught if issubclass(one.category, UserWarning)]
    return [f"the model or its loss warns: {text}" for text in dict.fromkeys(texts)]


def _rehearse_forward(
    recipe: Recipe, trainable: Trainable, step: Step, horizon: Horizon, say: Say
) -> tuple[torch.Tensor, float]:
    gave: list[Any] = []
    hook = trainable.model.bare.register_forward_hook(lambda module, args, result: gave.append(result))
    batch = step.batches[0].data

    def seen() -> str:
        given = f"; the model gave {shapes(gave[-1])}" if gave else ""
        return f"; the batch was {shapes(batch)}{given}"

    path: RecipePath = ("train", "step") if recipe.train.step is not None else ("model",)
    try:
        with _stage(recipe, path, "forward", seen):
            if recipe.train.step is None:
                _forward_alone(trainable, batch)
        with _stage(recipe, ("loss",) if path == ("model",) else path, "", seen):
            value, factor, _ = forward(trainable, step.batches[0], step.scales[0], horizon.at(0))
    finally:
        hook.remove()
    if gave:
        say("forward", shapes(gave[-1]))
    _check_loss(recipe, value)
    say("loss", f"{float(value.detach()) * factor:.4g}")
    return value, factor


def _forward_alone(trainable: Trainable, batch: Any) -> None:
    """The model without the loss, so that a mistake is told of the right one."""
    args, kwargs, _ = trainable.objective.layout.split(batch)
    with torch.no_grad():
        trainable.model.wrapped(*args, **kwargs)


def _check_loss(recipe: Recipe, value: torch.Tensor) -> None:
    path: RecipePath = ("train", "step") if recipe.train.step is not None else ("loss",)
    if not value.requires_grad:
        raise RecipeError([_problem(recipe, path, INDEPENDENT)])
    if not torch.isfinite(value).all():
        message = f"is {float(value):g} on the first two samples; look at them, at the model's output, and at the loss"
        raise RecipeError([_problem(recipe, path, message)])


def _check_gradients(recipe: Recipe, trainable: Trainable, world: World, say: Say) -> None:
    """DDP waits for a gradient of every parameter."""
    wanted = [(name, one) for name, one in trainable.model.bare.named_parameters() if one.requires_grad]
    without = [name for name, one in wanted if one.grad is None]
    section = recipe.device.ddp
    shown = ", ".join(without[:3]) + (", …" if len(without) > 3 else "")
    if without and world.size > 1 and not (section.find_unused_parameters or section.static_graph):
        message = (
            f"{len(without)} of its parameters got no gradient ({shown}), for which {world.size} processes would wait; "
            "use them in forward, freeze them, or say device.ddp.find_unused_parameters: true"
        )
        raise RecipeError([_problem(recipe, ("model",), message)])
    rest = f"; {len(without)} without: {shown}" if without else ""
    say("backward", f"{len(wanted) - len(without)} of {len(wanted)} parameter tensors got a gradient{rest}")


def _check_batch_norm(recipe: Recipe, model: Model, data: Data, world: World, horizon: Horizon) -> None:
    """BatchNorm has no variance over one sample."""
    sampler, total = data.train.sampler, horizon.total_steps
    has_norm = any(isinstance(one, _BatchNorm) for one in model.bare.modules())
    if not has_norm or recipe.device.sync_batchnorm:
        return
    last = sampler.steps_per_epoch - 1 if total is None else min(total, sampler.steps_per_epoch) - 1
    fewest = {step: sampler.batch_size(step) // world.size // sampler.accumulation(step) for step in (0, last)}
    wrong = next((step for step, samples in fewest.items() if samples < 2), None)
    if wrong is None:
        return
    what = f"step {wrong + 1} of an epoch has {sampler.batch_size(wrong)} samples"
    few = f"BatchNorm needs two samples at a time, and {what} on {world.size} processes"
    parts = sampler.accumulation(wrong)
    few += f" in {parts} parts each" if parts > 1 else ""
    remedy = "say data.drop_last: true" if wrong else "use fewer processes, a larger batch, or a larger micro-batch"
    path = ("data", "drop_last") if wrong else ("data", "global_batch_size")
    raise RecipeError([_problem(recipe, path, f"{few}: some get fewer; {remedy}")])


def _check_schedule(recipe: Recipe, trainable: Trainable, horizon: Horizon) -> None:
    """OneCycleLR raises an error at the first step beyond its length."""
    total, schedule = horizon.total_steps, trainable.schedule
    length = getattr(schedule.scheduler, "total_steps", None)
    if isinstance(length, int) and total is not None and total - schedule.warmup_steps > length * schedule.every_steps:
        name = type(schedule.scheduler).__name__
        message = f"{name} ends with an error after {length:,} steps, and the run has {total:,}; say total_steps: 100%"
        raise RecipeError([_problem(recipe, ("scheduler",), message)])


def _rehearse_evaluation(workshop: Workshop, trainable: Trainable, samples: Data, say: Say) -> None:
    recipe, device = workshop.recipe, trainable.device.torch_device
    sets = {**{("validation", name): one for name, one in samples.validation.items()}}
    sets |= {("test", name): one for name, one in samples.test.items()}
    measures = build_measures(workshop) if sets else []
    best = recipe.evaluate.best
    deciding = deciding_set(best, samples.validation)
    for (split, name), loader in sets.items():
        path = ("data", split, name) if name else ("data", split)
        with _stage(recipe, path, "evaluating two samples"):
            used = [one for one in measures if one.is_for(name)]
            scores = evaluate(trainable.model.bare, loader.batches(), trainable.objective, used, device).scores()
        if (split, name) == ("validation", deciding):
            _check_best(recipe, scores)
        say(
            "evaluation",
            f"{' '.join((split, name)).strip()}: {', '.join(f'{k} {_short(v)}' for k, v in scores.items())}",
        )
    if not sets:
        say("evaluation", "none: the recipe has neither data.validation nor data.test")


def _check_best(recipe: Recipe, scores: Mapping[str, Any]) -> None:
    best = recipe.evaluate.best
    if best is None:
        return
    if recipe.train.ema is not None:
        scores = {**scores, **{AVERAGED + key: value for key, value in scores.items()}}
    with _stage(recipe, ("evaluate", "best", "metric"), ""):
        value_of(best, scores)


def _short(value: Any) -> str:
    return (
        f"{value:.4g}" if isinstance(value, int | float) else shapes(value) if not isinstance(value, list) else "a list"
    )


def _rehearse_checkpoint(recipe: Recipe, trainable: Trainable, say: Say) -> None:
    """What is saved must come back the same, and be readable without running code."""
    before = Snapshot(trainable.model.state_dict(), trainable.training_state(), _MANIFEST).copied()
    with tempfile.TemporaryDirectory(prefix="launcher-check-") as folder, _stage(recipe, ("model",), "its checkpoint"):
        found = checkpoints.verify(checkpoints.save(Path(folder) / "checkpoints", before))
        trainable.load(found.weights(), found.training(), found.step)
    after = Snapshot(trainable.model.state_dict(), trainable.training_state(), _MANIFEST)
    for path, was, now in (
        (("model",), before.weights, after.weights),
        (("optimizer",), before.training, after.training),
    ):
        if not same(plain(was), plain(now)):
            message = "does not come back from a checkpoint as it was saved; look at its state_dict and load_state_dict"
            raise RecipeError([_problem(recipe, path, message)])
    say("checkpoint", f"{size(before.num_bytes)} written, read back, and equal")


def same(one: Any, other: Any) -> bool:
    """Whether two states are equal to the bit, tensors and containers alike."""
    if isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor):
        tensors = isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)
        return tensors and one.dtype == other.dtype and torch.equal(_bits(one), _bits(other))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other) or (one != one and other != other)


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor in which NaN equals NaN."""
    return tensor.nan_to_num(nan=1.5e33) if tensor.is_floating_point() else tensor
