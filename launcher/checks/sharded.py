"""A sharded step behind `launcher check`: the run's own code in a group of one process, beside the same step unsharded.

What torch says of a model that it cannot shard comes at the first forward, in its own words and on all processes at
once; some of it is said by nobody, and gives other gradients. Here it is met before.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from launcher import internals
from launcher.data.transfer import on_device
from launcher.errors import LauncherError
from launcher.evaluation.modes import start_training
from launcher.evaluation.unmoved import Unmoved
from launcher.model.sharding import ShardedPart, UnfitError, fitting_blocks
from launcher.objective.settle import take_up
from launcher.objective.several import each
from launcher.recipe import schema
from launcher.recipe.build import Builder
from launcher.recipe.schema import Recipe
from launcher.recipe.targets import told
from launcher.text import shapes
from launcher.training.build import build_run_model, build_run_state
from launcher.training.state import TrainState
from launcher.training.step import backward, forward
from launcher.training.steps import StepBatch, counted_steps

_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}  # of a gradient's largest entry; else 5 %


def rehearse_sharded(recipe: Recipe, builder: Builder, whole: TrainState) -> tuple[str, str]:
    """Makes the step that an unsharded model has made, sharded; gives what is sharded, and how it was built.

    Args:
        recipe: For two samples, and sharded.
        builder: Its components.
        whole: The unsharded model on the same samples; it is not changed.

    Raises:
        LauncherError: It cannot be sharded, or gives other gradients.
    """
    step = next(on_device(counted_steps(whole, 0, 1), whole.device.torch_device))
    with _fitting(builder):
        expected = _gradients(whole, step, recipe.device)
    with warnings.catch_warnings(), _group_of_one():
        model = build_run_model(recipe, builder, whole.device)
        state = replace(build_run_state(recipe, builder, model, whole.device, whole.data), seeds=whole.seeds)
        take_up(state.objective, whole.objective.manifest())
        assert model.sharding is not None
        assert state.shards is not None
        ShardedPart(model.bare, state.shards, model.base).load_state_dict(whole.model.state_dict())
        for key, loss in state.losses.items():
            own = whole.objective.modules[key]
            ShardedPart(loss, state.shards).load_state_dict(own.state_dict())
        _compare(expected, _sharded_gradients(state, step))
        _check_all_used(whole.model.bare, expected, recipe.device)
        _step(state, step)
        return model.sharding.described, model.notes[-1]


@contextmanager
def _fitting(builder: Builder) -> Iterator[None]:
    try:
        yield
    except UnfitError as error:
        raise builder.wrong(error.key, str(error)) from error


@contextmanager
def _group_of_one() -> Iterator[None]:
    if dist.is_initialized():
        yield
        return
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())  # type: ignore[attr-defined]  # as documented
    try:
        yield
    finally:
        dist.destroy_process_group()


def _sharded_gradients(state: TrainState, step: StepBatch) -> dict[str, torch.Tensor]:
    """Of the sharded model.

    Raises:
        LauncherError: It cannot be called so; with what to do.
    """
    start_training(state.model.wrapped, state.optimizer)
    shards = state.shards
    assert shards is not None
    try:
        _pass(state, step)
    except LauncherError:
        raise
    except Exception as error:
        raise LauncherError(f"device.sharding: {_explained(error)}") from error
    shards.collect()
    names = {id(shard.local): name for name, shard in shards.named.items()}
    gradients = {names[id(rows)]: rows.grad.clone() for rows in shards.with_gradients if rows.grad is not None}
    state.update.clear_gradients()
    return gradients


def _gradients(state: TrainState, step: StepBatch, section: schema.Device) -> dict[str, torch.Tensor]:
    """Of the whole model, which is left as it was."""
    start_training(state.model.wrapped, state.optimizer)
    unmoved = Unmoved.of_run(state.model.bare, state.objective, weights=False)
    with _blocks_looked_at(state.model.bare, section), _weights_looked_at(state):
        _pass(state, step)
    named = dict(state.model.bare.named_parameters())
    gradients = {name: one.grad.clone() for name, one in named.items() if one.grad is not None}
    state.update.clear_gradients()
    unmoved.put_back()
    return gradients


def _pass(state: TrainState, step: StepBatch) -> None:
    state.seeds(0)
    value, factor, _ = forward(state, step.batches[0], step.scales[0], state.length.at(0))
    backward(state, value, factor)


def _explained(error: Exception) -> str:
    """What torch says of it, and what to do."""
    text = told(error)
    if "mixed torch.Tensor and DTensor" in text:
        return (
            "parameters are used outside of the model's forward, or those of a block outside of its own, where they "
            "are not together: in a step function or loss call the model itself, and none of its parts or methods; in "
            f"a model name a module around both in device.shard ({text})"
        )
    return f"the sharded model cannot be called: {text}"


@contextmanager
def _blocks_looked_at(model: nn.Module, section: schema.Device) -> Iterator[None]:
    """Refuses blocks that are not called, give no tensor, or views that are changed, and graphs of gradients.

    Each way a block would not be together in backward, which reads memory that is given back: it may end the process.

    Raises:
        LauncherError: There is one.
    """
    given: list[tuple[str, torch.Tensor, int]] = []
    called: set[str] = set()
    with_graph: list[str] = []

    def note(name: str, gradient: torch.Tensor) -> None:
        if torch.is_grad_enabled():  # as backward has it where it makes a graph of the gradients
            with_graph.append(name)

    def look(name: str, module: nn.Module, args: Any, result: Any) -> None:
        called.add(name)
        tensors = list(_tensors(result))
        if not tensors:
            raise LauncherError(
                f"device.sharding: the block '{name}' gives {shapes(result)}, in which torch finds no tensor: have it "
                "return tensors, or lists, mappings or dataclasses of them"
            )
        given.extend((name, tensor, internals.changes_of(tensor)) for tensor in tensors if internals.is_view(tensor))
        hooks.extend(tensor.register_hook(partial(note, name)) for tensor in tensors if tensor.requires_grad)

    blocks = fitting_blocks(model, section).modules
    hooks: list[Any] = [block.register_forward_hook(partial(look, name)) for name, block in blocks.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    if with_graph:
        raise LauncherError(
            f"device.sharding: gradients that pass through the block '{with_graph[0]}' are themselves differentiated "
            "(create_graph=True), and its weights would not be there by then; say device.sharding: none"
        )
    if uncalled := [name for name in blocks if name not in called]:
        raise LauncherError(
            f"device.sharding: the block '{uncalled[0]}' is not called for these samples, and processes that do not "
            "call the same blocks would mix them up: name blocks in device.shard that each batch calls, as the module "
            "around it"
        )
    changed = [name for name, tensor, changes in given if internals.changes_of(tensor) != changes]
    if changed:
        raise LauncherError(
            f"device.sharding: the block '{changed[0]}' gives a view of a tensor, which is then changed in place, and "
            "gradients would be wrong: have it return a tensor of its own, as .clone() makes one"
        )


@contextmanager
def _weights_looked_at(state: TrainState) -> Iterator[None]:
    """Refuses forwards that write to parameters: it would be to what is put together, and lost with it.

    Raises:
        LauncherError: One does.
    """
    modules = [state.model.bare, *state.objective.modules.values()]
    named = [(name, one) for module in modules for name, one in module.named_parameters()]
    names = {_place(one): name for name, one in named}
    inside: list[nn.Module] = []
    written: list[str] = []

    def follow(operation: Any, args: Any, kwargs: Any) -> Any:
        if inside:
            changed = [*internals.aliased_arguments(operation, args, changed=True), kwargs.get("out")]
            places = [_place(one) for one in _tensors(changed)]
            written.extend(names[place] for place in places if place in names)
        return operation(*args, **kwargs)

    def enter(module: nn.Module, args: Any) -> None:
        inside.append(module)

    def leave(module: nn.Module, args: Any, result: Any) -> None:
        inside.pop()
        written.extend(name for name, one in named if _place(one) not in names)  # .data = …

    hooks = [module.register_forward_pre_hook(enter, prepend=True) for module in modules]
    hooks += [module.register_forward_hook(leave) for module in modules]
    try:
        with internals.operations_through(follow):
            yield
    finally:
        for hook in hooks:
            hook.remove()
    if written:
        raise LauncherError(
            f"device.sharding: '{written[0]}' is changed in forward, where a process has it for a moment only: the "
            "change would be lost; compute with what it would be, as F.normalize(weight) gives it, and leave the "
            "parameter as it is"
        )


def _place(tensor: torch.Tensor) -> int:
    """Of a tensor's memory; 0 where it has none of its own, as a sparse one."""
    return internals.storage_id(tensor.untyped_storage()) if internals.has_storage(tensor) else 0


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
        return
    parts: Any = ()
    if isinstance(value, Mapping):
        parts = value.values()
    elif isinstance(value, list | tuple):
        parts = value
    elif is_dataclass(value) and not isinstance(value, type):
        parts = [getattr(value, part.name) for part in fields(value)]
    for part in parts:
        yield from _tensors(part)


def _compare(whole: dict[str, torch.Tensor], sharded: dict[str, torch.Tensor]) -> None:
    for name, expected in whole.items():
        largest = float(expected.abs().max()) if expected.numel() else 0.0
        found = sharded.get(name)
        if found is None and not largest:
            continue
        off = float((found - expected).abs().max()) if found is not None and expected.numel() else largest
        if off > _TOLERANCE.get(expected.dtype, 0.05) * max(largest, 1e-6):
            raise LauncherError(
                f"device.sharding: the gradient of '{name}' is {off / max(largest, 1e-30):.1g} of its size off what it "
                "is unsharded: does a forward change or keep parameters, or a hook on a parameter its gradient? Look "
                "there, or say device.sharding: none"
            )


def _check_all_used(model: nn.Module, gradients: Mapping[str, torch.Tensor], section: schema.Device) -> None:
    unused = [name for name, one in model.named_parameters() if one.requires_grad and name not in gradients]
    if unused and not section.ddp.find_unused_parameters:
        raise LauncherError(
            f"device.sharding: '{unused[0]}' got no gradient of these samples, and gradients would be mixed up where "
            "processes leave out different parameters; use it in forward, freeze it, or set "
            "device.ddp.find_unused_parameters: true"
        )


def _step(state: TrainState, step: StepBatch) -> None:
    """An update.

    Raises:
        LauncherError: The optimizer cannot make it, or keeps what cannot be saved by rows.
    """
    kinds = ", ".join(type(one).__name__ for one in each(state.optimizer).values())
    remedy = "use Adam, AdamW, SGD, Adagrad, RMSprop, NAdam, RAdam, Adamax, Adadelta, ASGD, Rprop or Muon"
    try:
        state.take_step(state, step, state.length.at(0))
    except LauncherError:
        raise
    except Exception as error:
        raise LauncherError(f"optimizer: {kinds} does not step sharded parameters ({told(error)}); {remedy}") from error
    for optimizer in each(state.optimizer).values():
        for parameter, entries in optimizer.state.items():
            _check_entries(parameter, entries, kinds, remedy)


def _check_entries(parameter: Any, entries: Any, kinds: str, remedy: str) -> None:
    with suppress(AttributeError):
        strange = [
            name
            for name, value in entries.items()
            if hasattr(value, "to_local") and tuple(value.shape) != tuple(parameter.shape)
        ]
        if strange:
            raise LauncherError(
                f"optimizer: {kinds} keeps '{strange[0]}' of another shape than its parameter, which cannot be saved "
                f"by rows; {remedy}"
            )
