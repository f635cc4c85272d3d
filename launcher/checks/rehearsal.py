"""The rehearsal behind `launcher check`: a run's seven phases on two samples, on the CPU, in the model's own precision.

Everything is the run's own code: the data sets are opened, and two samples go through forward, loss, backward, an
optimizer step, evaluation and a checkpoint that is written and read back. The world that the run is meant for, be it
of 4,096 processes, is arithmetic.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from launcher.checkpoints import format as checkpoints
from launcher.checkpoints.format import plain
from launcher.checkpoints.sameness import same
from launcher.checks.certainty import Finding, findings_of
from launcher.checks.misfits import layers_left, remedy_of_evaluation, remedy_of_loss, remedy_of_model
from launcher.checks.schedule import doubts_of
from launcher.checks.sharded import rehearse_sharded
from launcher.data.getitems import sample_of
from launcher.data.load import Data
from launcher.data.parts import changed
from launcher.data.repeatable import drawn_validation
from launcher.data.seeds import randomness_restored, seed_everything
from launcher.data.subsets import innermost, is_stream
from launcher.data.transfer import on_device
from launcher.device.device import open_device, use_cpu
from launcher.device.kind import found
from launcher.errors import LauncherError, Problem, RecipeError, UsageError
from launcher.evaluation.best import BestTracker, deciding_set, value_of
from launcher.evaluation.evaluate import evaluate
from launcher.evaluation.evaluation import metrics_of
from launcher.evaluation.modes import evaluating, start_training
from launcher.evaluation.unmoved import Unmoved
from launcher.model.adapt import built_anew
from launcher.model.build import unfit_for_several
from launcher.model.recompute import never_called, recomputed_in
from launcher.objective.loss import INDEPENDENT, NothingCountsError
from launcher.objective.schedule import Schedule, Schedules
from launcher.objective.settle import settle_losses
from launcher.objective.several import each
from launcher.recipe.build import Builder, BuildError
from launcher.recipe.component import Component
from launcher.recipe.duration import Duration
from launcher.recipe.generated_code import check_names
from launcher.recipe.places import Path as RecipePath
from launcher.recipe.places import dotted
from launcher.recipe.schema import Recipe
from launcher.recipe.targets import told
from launcher.text import printable, shapes, size
from launcher.training.bad_batch import not_finite_in
from launcher.training.batch_norm import too_few_for_batch_norm
from launcher.training.build import build_run_model, build_run_state, check_graphs, open_run_data
from launcher.training.contents import Contents
from launcher.training.cut import as_it_was, dependence_of
from launcher.training.plan import Plan, plan_of
from launcher.training.proof import Proof
from launcher.training.state import TrainState
from launcher.training.step import backward, forward
from launcher.training.steps import StepBatch, counted_steps
from launcher.training.ways import Turns
from launcher.world.temporary import temporary_folder
from launcher.world.world import World

SAMPLES = 2
_MORE = 16  # where two give no number
Say = Callable[[str, str], None]  # a stage and what came of it


@dataclass(frozen=True)
class Checked:
    """What is known of a run that can be made.

    Attributes:
        plan: As the run would print it, for the world asked for.
        doubts: What is allowed and looks like a slip.
        findings: What was known, what was measured, and what was taken on trust.
    """

    plan: Plan
    doubts: Sequence[str]
    findings: Sequence[Finding]


def rehearse(recipe: Recipe, builder: Builder, world: World, say: Say, *, on_gpu: bool = False) -> Checked:
    """The rest: data, and one step on two samples.

    Args:
        recipe: The recipe.
        builder: Its components, checked.
        world: The processes that the run is meant for.
        say: Told of each stage when it is done.
        on_gpu: Whether it is rehearsed on this machine's GPU, in the recipe's precision: some kernels need it.

    Raises:
        LauncherError: What the run would end with, and what it would end with later.
    """
    if on_gpu and use_cpu(World(), cpu=False):
        raise UsageError("--gpu: torch sees no GPU on this machine; omit --gpu to rehearse on the CPU")
    seed_everything(recipe.seed)
    with warnings.catch_warnings(), _stage(recipe, ("data",), "opening the data"):
        warnings.simplefilter("ignore")
        data = open_run_data(recipe, builder, world)
        _read_last(data)
    say("data", data.describe())
    check_graphs(builder, recipe.device, data)
    small = _small(recipe, on_gpu)
    builder = builder.for_recipe(small)
    with warnings.catch_warnings(), open_device(small.device, World(), cpu=not on_gpu) as device:
        warnings.simplefilter("ignore")
        model = build_run_model(small, builder, device)
        say("model", model.describe())
        if recipe.device.compile:
            with _stage(recipe, ("model",), ""):
                check_names(model.bare)
        if world.size > 1 and (unfit := unfit_for_several(model.bare)):
            raise RecipeError([_problem(recipe, ("model",), unfit)])
        state = build_run_state(small, builder, model, device, data)
        if few := too_few_for_batch_norm(state, recipe.device, world):
            raise RecipeError([_problem(recipe, *few)])
        _check_schedule(recipe, state)
        with _stage(recipe, ("loss",), "measuring what it is a mean over"):
            try:
                with as_it_was(state):
                    settle_losses(
                        builder,
                        state.objective,
                        model.bare,
                        data,
                        device.coordinator,
                        end=state.length.last,
                        processes=world.size,
                    )
            except LauncherError:
                raise
            except Exception:  # of somebody's model or loss, with one sample or with all: a step says whose it is
                _rehearse_first_step(recipe, small, builder, state, world, say)
                raise
            depends, drawn = dependence_of(state), drawn_validation(data)
        on_two, warned = _rehearse_first_step(recipe, small, builder, state, world, say)
        shared = _rehearse_sharded(recipe, small, builder, on_two, world, say)
        _rehearse_evaluation(small, builder, on_two, say)
        _rehearse_checkpoint(recipe, builder, on_two, say)
        elsewhere = replace(state, device=replace(device, world=world, notes=()))
        plan = plan_of(recipe, elsewhere, Path(), 0, [*_notes(recipe, data, world), *([drawn] if drawn else [])])
        doubts = [*warned, *_of_sizes(recipe, data), *doubts_of(recipe, state)]
        where = device.name if on_gpu else f"this machine's CPU in {_dtypes(model.bare)}"
        return Checked(_for_the_world(plan, recipe, where, shared), doubts, findings_of(recipe, state, world, depends))


def _of_sizes(recipe: Recipe, data: Data) -> Iterator[str]:
    """A global batch that no step fills."""
    batch, size = recipe.data.global_batch_size, data.train.sampler.dataset_size
    if batch is not None and not is_stream(data.train.dataset) and batch > size:
        yield f"data.global_batch_size: {batch:,} is more than the {size:,} training samples; each step reads them all"


def _read_last(data: Data) -> None:
    """Reads the last training sample, which is not there where `__len__` says too much."""
    dataset = innermost(data.train.dataset)
    if is_stream(dataset) or not len(dataset):
        return
    size = len(dataset)
    try:
        with randomness_restored(needed=True):
            sample_of(dataset, size - 1)
    except IndexError as error:
        message = f"data.train: sample {size - 1:,} of {size:,}: IndexError: {error}; does its __len__ say too much?"
        raise LauncherError(message) from error
    except Exception:  # one that cannot be read alone, or not by number: its batches tell
        return


def _small(recipe: Recipe, on_gpu: bool = False) -> Recipe:
    """The recipe for two samples, on a CPU in float32; what is learned from is the same."""
    section = recipe.data
    data = {"global_batch_size": SAMPLES, "micro_batch_size": None, "workers": 0, "drop_last": False}
    data["batch_sampler"] = None  # which is judged by its arguments
    device: dict[str, Any] = {"compile": False, "sync_batchnorm": False, "sharding": "none"}
    if not on_gpu:
        precision = recipe.device.precision
        device |= {"precision": precision if precision == "bf16-true" else "no", "deterministic": False}
    limits = {"limit": Duration(2, "batches", "2 batches"), "batch_size": SAMPLES, "ranks": "first"}
    return recipe.model_copy(
        update={
            "data": section.model_copy(update=data),
            "device": recipe.device.model_copy(update=device),
            "evaluate": recipe.evaluate.model_copy(update=limits),
        }
    )


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
        if wanted and found() is None:
            yield f"device: {what} needs a GPU, which this machine has not"


def _dtypes(model: nn.Module) -> str:
    """What a model's parameters are held in."""
    kinds = dict.fromkeys(str(parameter.dtype).removeprefix("torch.") for parameter in model.parameters())
    return " and ".join(kinds)


def _rehearse_sharded(
    recipe: Recipe, small: Recipe, builder: Builder, on_two: TrainState, world: World, say: Say
) -> str:
    """The same step of a sharded model, where the run has that; gives what the plan says of it."""
    section = recipe.device
    if section.sharding == "none" or world.size == 1:
        return ""
    sharded = small.model_copy(update={"device": small.device.model_copy(update={"sharding": section.sharding})})
    with _stage(recipe, ("device", "sharding"), "a sharded step"):
        blocks, construction = rehearse_sharded(sharded, builder.keeping("data").for_recipe(sharded), on_two)
    say("sharded", f"{blocks}; its gradients are those of the whole model")
    say("built", construction)
    is_hybrid = section.sharding == "hybrid" and world.nodes > 1
    where = f"the {world.size // world.nodes} processes of each node" if is_hybrid else f"{world.size} processes"
    return f"; sharded over {where}: {blocks}"


def _for_the_world(plan: Plan, recipe: Recipe, where: str, shared: str) -> Plan:
    """The plan without what only the machine of the run can say."""
    precision = "the model's own" if recipe.device.precision == "no" else recipe.device.precision
    replacements = {"device": f"precision {precision}; rehearsed on {where}"}
    added = {"model": shared}
    return [(label, replacements.get(label, text) + added.get(label, "")) for label, text in plan if label != "folder"]


# ---------------------------------------------------------------------- errors of somebody else's code


@contextmanager
def _stage(
    recipe: Recipe, path: RecipePath, doing: str, seen: Callable[[Exception], str] = lambda error: ""
) -> Iterator[None]:
    """Turns what goes wrong inside into a problem of this part of the recipe.

    Args:
        recipe: Knows where the part stands.
        path: The part.
        doing: What is being done; empty where the part says it.
        seen: What the code had been given, and what to do about the error, in words.
    """
    try:
        yield
    except (RecipeError, BuildError, UsageError):
        raise
    except LauncherError as error:  # names its key itself
        key = tuple(str(error).partition(":")[0].split("."))
        where = recipe.document.origin(key if key[0] in type(recipe).model_fields else path)
        kind = _NotFiniteError if isinstance(error, NothingCountsError) else RecipeError
        raise kind([Problem(str(where), "", printable(str(error)))]) from error
    except Exception as error:
        message = ": ".join(part for part in (doing, told(error)) if part)
        raise RecipeError([_problem(recipe, path, f"{message.rstrip('.')}{seen(error)}")]) from error


def _problem(recipe: Recipe, path: RecipePath, message: str) -> Problem:
    return Problem(str(recipe.document.origin(path)), dotted(path), printable(message))


# ---------------------------------------------------------------------- the stages


class _NotFiniteError(RecipeError):
    """A loss that is not finite, or no mean: of pictures without an object, say, nothing may count in the first two."""


def _rehearse_first_step(
    recipe: Recipe, small: Recipe, builder: Builder, state: TrainState, world: World, say: Say
) -> tuple[TrainState, list[str]]:
    """A step on two samples, or on more where these give no number; gives the state that made it, and its warnings."""
    on_two = replace(state, data=open_run_data(small, builder, World()))
    kept = Unmoved.of_run(state.model.bare, state.objective, weights=state.objective.step is not None)
    try:
        return on_two, _rehearse_step(recipe, on_two, world, say)
    except _NotFiniteError:
        size = min(state.data.train.sampler.batch_size(0), _MORE)
        if size <= SAMPLES:
            raise
        kept.put_back()
        section = small.data.model_copy(update={"global_batch_size": size})
        more = small.model_copy(update={"data": section})
        on_more = replace(state, data=open_run_data(more, builder, World()))
        with suppress(_NotFiniteError):
            return on_more, _rehearse_step(recipe, on_more, world, say)
        raise


def _rehearse_step(recipe: Recipe, train_state: TrainState, world: World, say: Say) -> list[str]:
    """Two samples forward, their loss, backward, and one update; gives what was warned of on the way to the loss."""
    with _stage(recipe, ("data", "train"), "reading two samples"):
        step = next(on_device(counted_steps(train_state, 0, 1), train_state.device.torch_device))
    batch = step.batches[0].data
    say("batch", f"{step.batches[0].samples} samples: {shapes(batch)}")
    start_training(train_state.model.wrapped, train_state.optimizer)
    with warnings.catch_warnings(record=True) as caught, ExitStack() as stack:
        warnings.simplefilter("always")
        idle = stack.enter_context(never_called(train_state.model.bare))
        in_turns = isinstance(train_state.update, Turns)
        number = train_state.update.first_whole if isinstance(train_state.update, Turns) else 0
        if not in_turns:
            loss = _rehearse_forward(recipe, train_state, step, say)
            with _stage(recipe, ("loss",), "backward"):
                backward(train_state, *loss)
            _check_gradients(recipe, train_state, world, say)
            train_state.update.clear_gradients()
        doing = "a step in turns" if in_turns else "the optimizer's step"
        with _stage(recipe, ("train", "step") if in_turns else ("optimizer",), doing), _closures_explained():
            result = train_state.take_step(train_state, step, train_state.length.at(number))
        if in_turns:
            say("loss", ", ".join(f"{name} {float(value):.4g}" for name, value in result.scalars[0].items()))
    kinds = ", ".join(type(one).__name__ for one in each(train_state.optimizer).values())
    rates = ", ".join(f"{rate:.3g}" for rate in dict.fromkeys(train_state.schedule.rates.values()))
    say("step", f"{kinds}, learning rate {rates}")
    texts = [" ".join(str(warning.message).split()) for warning in caught if issubclass(warning.category, UserWarning)]
    return [*_idle_blocks(recipe, train_state, idle), *_warnings(texts)]


def _warnings(texts: Sequence[str]) -> list[str]:
    return [f"the model or its loss warns: {text}" for text in dict.fromkeys(texts)]


def _idle_blocks(recipe: Recipe, train_state: TrainState, idle: Collection[str]) -> list[str]:
    """What to ask of blocks that were to be computed again, and that the step has not called."""
    if not idle:
        return []
    shown = ", ".join(list(idle)[:3]) + (", …" if len(idle) > 3 else "")
    if len(idle) == len(recomputed_in(train_state.model.bare)):
        message = f"the step calls none of these blocks ({shown}) by its forward: nothing can be computed again"
        raise RecipeError([_problem(recipe, ("device", "recompute"), f"{message}; name those that it calls")])
    return [f"device.recompute: the step did not call {shown}: is it another method of these that the model calls?"]


@contextmanager
def _closures_explained() -> Iterator[None]:
    """An optimizer that misses its closure says so in words of its own."""
    try:
        yield
    except LauncherError:
        raise
    except Exception as error:
        if "closure" not in str(error).lower():
            raise
        message = f"optimizer: {told(error)}; it calls the loss itself: write _closure_: true beside its _target_"
        raise LauncherError(message) from error


def _rehearse_forward(recipe: Recipe, train_state: TrainState, step: StepBatch, say: Say) -> tuple[torch.Tensor, float]:
    gave: list[Any] = []
    left: list[tuple[BaseException, nn.Module]] = []
    hook = train_state.model.bare.register_forward_hook(lambda module, args, result: gave.append(result))
    batch = step.batches[0].data

    def of_model(error: Exception) -> str:
        layer = next((module for raised, module in left if raised is error), None)
        remedy = remedy_of_model(error, layer, train_state.model.bare, batch) if recipe.train.step is None else ""
        return f"; the batch was {shapes(batch)}{remedy}{_way_to_the_model(recipe, batch)}"

    def of_loss(error: Exception) -> str:
        given = f"; the model gave {shapes(gave[-1])}" if gave else ""
        return f"; the batch was {shapes(batch)}{given}{_way_to_the_loss(recipe, train_state, batch, gave, error)}"

    path: RecipePath = ("train", "step") if recipe.train.step is not None else ("model",)
    try:
        with _stage(recipe, path, "forward", of_model):
            if recipe.train.step is None:
                with layers_left() as left:
                    _forward_alone(train_state, changed(batch, torch.clone))
        with _stage(recipe, ("loss",) if path == ("model",) else path, "", of_loss):
            micro_batch = replace(step.batches[0], data=changed(batch, torch.clone))  # the step reads it, too
            value, factor, _ = forward(train_state, micro_batch, step.scales[0], train_state.length.at(0))
    finally:
        hook.remove()
    if gave:
        say("forward", shapes(gave[-1]))
    _check_loss(recipe, value, batch)
    say("loss", f"{float(value.detach()) * factor:.4g}")
    return value, factor


def _way_to_the_model(recipe: Recipe, batch: Any) -> str:
    """Which of many parts a model gets, where the recipe does not say it."""
    is_said = "inputs" in recipe.batch.model_fields_set or recipe.train.step is not None
    if is_said or not isinstance(batch, tuple | list) or len(batch) < 3:
        return ""
    return f"; the model gets the first alone: batch.inputs: {list(range(len(batch) - 1))} gives it more"


def _way_to_the_loss(recipe: Recipe, train_state: TrainState, batch: Any, gave: Sequence[Any], error: Exception) -> str:
    """What of a recipe is between a model and its loss, where it may be that which is missing."""
    if not gave or recipe.train.step is not None or recipe.loss == "model" or recipe.batch.adapt is not None:
        return ""
    if isinstance(gave[-1], tuple | list) and len(gave[-1]) > 1 and recipe.batch.outputs is None:
        parts = list(range(len(gave[-1])))
        return f"; the loss gets that as one: batch.outputs: {parts} gives it one by one, [0] the first alone"
    targets = train_state.objective.layout.targets(batch)
    loss = re.split("[.:]", recipe.loss.target)[-1] if isinstance(recipe.loss, Component) else "the loss"
    remedy = remedy_of_loss(error, loss, gave[-1], targets[0] if len(targets) == 1 else None)
    return remedy or "; a function named as batch.adapt can shape outputs and targets for it"


def _forward_alone(train_state: TrainState, batch: Any) -> None:
    """The model without the loss, so that a mistake is told of the right one."""
    objective = train_state.objective
    args, kwargs = objective.layout.inputs(batch)
    objective.own_gradients.call(train_state.model.bare, partial(train_state.model.wrapped, *args, **kwargs))


def _check_loss(recipe: Recipe, value: torch.Tensor, batch: Any) -> None:
    path: RecipePath = ("train", "step") if recipe.train.step is not None else ("loss",)
    if not value.requires_grad:
        raise RecipeError([_problem(recipe, path, INDEPENDENT)])
    if not torch.isfinite(value).all():
        inside = not_finite_in(batch) or "; look at them, at the model's output, and at the loss"
        message = f"is {float(value):g} on the first two samples{inside}"
        raise _NotFiniteError([_problem(recipe, path, message)])


def _check_gradients(recipe: Recipe, train_state: TrainState, world: World, say: Say) -> None:
    """DDP waits for a gradient of every parameter."""
    wanted = [
        (name, parameter) for name, parameter in train_state.model.bare.named_parameters() if parameter.requires_grad
    ]
    without = [name for name, parameter in wanted if parameter.grad is None]
    section = recipe.device.ddp
    shown = ", ".join(without[:3]) + (", …" if len(without) > 3 else "")
    is_shared_by_ddp = world.size > 1 and recipe.device.sharding == "none"
    if without and is_shared_by_ddp and not (section.find_unused_parameters or section.static_graph):
        message = (
            f"{len(without)} of its parameters got no gradient ({shown}), for which {world.size} processes would wait; "
            "use them in forward, freeze them, or set device.ddp.find_unused_parameters: true"
        )
        raise RecipeError([_problem(recipe, ("model",), message)])
    rest = f"; {len(without)} without: {shown}" if without else ""
    say("backward", f"{len(wanted) - len(without)} of {len(wanted)} parameter tensors got a gradient{rest}")


def _check_schedule(recipe: Recipe, train_state: TrainState) -> None:
    """OneCycleLR raises an error at the first step beyond its length."""
    schedules = train_state.schedule
    for schedule in schedules.named.values() if isinstance(schedules, Schedules) else [schedules]:
        _check_length(recipe, schedule, train_state.length.total_steps)


def _check_length(recipe: Recipe, schedule: Schedule, total: int | None) -> None:
    length = getattr(schedule.scheduler, "total_steps", None)
    if isinstance(length, int) and total is not None and total - schedule.warmup_steps > length * schedule.every_steps:
        name = type(schedule.scheduler).__name__
        message = f"{name} ends with an error after {length:,} steps, and the run has {total:,}; say total_steps: 100%"
        raise RecipeError([_problem(recipe, ("scheduler",), message)])


def _rehearse_evaluation(recipe: Recipe, builder: Builder, train_state: TrainState, say: Say) -> None:
    samples, device = train_state.data, train_state.device.torch_device
    sets = {("validation", name): evaluation_loader for name, evaluation_loader in samples.validation.items()}
    sets |= {("test", name): evaluation_loader for name, evaluation_loader in samples.test.items()}
    metrics = metrics_of(builder, recipe.evaluate, recipe.batch) if sets else []
    best = recipe.evaluate.best
    deciding = deciding_set(best, samples.validation)
    for (split, name), loader in sets.items():
        path = ("data", split, name) if name else ("data", split)
        with _stage(recipe, path, "evaluating two batches of two samples", remedy_of_evaluation):
            used = [metric for metric in metrics if metric.is_for(name)]
            model, objective = train_state.model.bare, train_state.objective
            with evaluating(model, objective, train_state.optimizer):
                change = loader.reading.on_device
                tally = evaluate(model, loader.batches(), objective, used, device, seed=recipe.seed, transform=change)
            scores = tally.scores()
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
    for kind, average in (("ema", recipe.train.ema), ("swa", recipe.train.swa)):
        scores = {**scores, **({f"{kind}/{key}": value for key, value in scores.items()} if average else {})}
    with _stage(recipe, ("evaluate", "best", "metric"), ""):
        value_of(best, scores)


def _short(value: Any) -> str:
    return (
        f"{value:.4g}" if isinstance(value, int | float) else shapes(value) if not isinstance(value, list) else "a list"
    )


def _rehearse_checkpoint(recipe: Recipe, builder: Builder, train_state: TrainState, say: Say) -> None:
    """What is saved must come back the same, and be readable without running code."""
    contents = Contents(train_state, {}, "", BestTracker(None))
    before, proof = (
        contents.capture(1).copied(),
        Proof(contents.optimizer, train_state.shapes, partial(built_anew, builder, recipe.model)),
    )
    with _stage(recipe, ("optimizer",), ""):
        proof.before(before)
    with temporary_folder() as folder, _stage(recipe, ("model",), "its checkpoint"):
        checkpoint = checkpoints.verify(checkpoints.save(folder / "checkpoints", before))
        proof.after(before, checkpoint)
        contents.restore(checkpoint)
    after = contents.capture(1).copied()
    for path, was, now in (
        (("model",), before.weights, after.weights),
        (("optimizer",), _lasting(before.training), _lasting(after.training)),
    ):
        if not same(plain(was), plain(now)):
            message = "does not come back from a checkpoint as it was saved; look at its state_dict and load_state_dict"
            raise RecipeError([_problem(recipe, path, message)])
    say("checkpoint", f"{size(before.num_bytes)} written, read back, and equal")


def _lasting(training: Mapping[str, Any]) -> dict[str, Any]:
    """What time alone does not change."""
    return {name: state for name, state in training.items() if name != "seconds"}
