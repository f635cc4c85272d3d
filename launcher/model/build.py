"""3: model. Build it, place it, compile it, and say what it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy

from launcher.data.seeds import seed_everything
from launcher.device import lazy_compiler
from launcher.device.device import Device
from launcher.device.memory import serve_sparse
from launcher.errors import LauncherError
from launcher.internals import has_storage, hidden_from_ddp, parts_of
from launcher.model.adapt import Base, Built, built, load_own, own_state
from launcher.model.bfloat16 import hold_in_bfloat16
from launcher.model.compiled import WITH_GRAPHS, compile_blocks, compiled_in, keep_compiled
from launcher.model.construction import construct
from launcher.model.kinds import class_of
from launcher.model.recompute import recompute
from launcher.model.sharding import Sharding, Shards, UnfitError, put_weights
from launcher.recipe import schema
from launcher.recipe.build import Builder
from launcher.recipe.component import Component
from launcher.recipe.generated_code import check_names
from launcher.text import printable, size, words_of
from launcher.world.waiting import Wait, guarded


@dataclass(frozen=True)
class Model:
    """One module, seen two ways.

    Attributes:
        bare: The module as its class made it: what is evaluated and saved.
        wrapped: What training calls: `bare` under DDP, autocast and compilation, as the run needs.
        notes: What was chosen by the program, for the plan.
        base: What of an adapted model is neither trained nor saved.
        sharding: How it is sharded, where it is.
        has_graphs: Whether what is called is made of CUDA graphs, which must know where a step begins.
    """

    bare: nn.Module
    wrapped: nn.Module
    notes: tuple[str, ...] = ()
    base: Base | None = None
    sharding: Sharding | None = None
    has_graphs: bool = False

    def state_dict(self) -> dict[str, Any]:
        """The unwrapped weights, without a frozen base: no `module.`, no `_orig_mod.`."""
        return own_state(self.bare, self.base)

    def load_state_dict(self, weights: Mapping[str, Any]) -> None:
        """Takes up what was saved; the base may be missing there.

        Raises:
            RuntimeError: It is of another model.
        """
        load_own(self.bare, self.base, weights)

    def shards(self, losses: Mapping[str, nn.Module]) -> Shards | None:
        """What this process holds of it and of losses by their keys, where they are sharded."""
        if self.sharding is None:
            return None
        return Shards(self.sharding, {"": self.bare, **{f"{key}.": loss for key, loss in losses.items()}})

    def base_sha256(self) -> str:
        """The hash of its base; empty where it has none."""
        return Built(self.bare, self.base).base_sha256()

    def describe(self) -> str:
        """Class, parameters and their size, for the plan."""
        parameters = list(self.bare.parameters())
        total = sum(parameter.numel() for parameter in parameters)
        trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
        num_bytes = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
        frozen = f", {trained:,} of them trained" if trained != total else ""
        shared = f"; {self.sharding.describe()}" if self.sharding is not None else ""
        return f"{class_of(self.bare).__name__}, {total:,} parameters{frozen}, {size(num_bytes)}{shared}"


@dataclass(frozen=True)
class Start:
    """Weights that a model starts from.

    Attributes:
        weights: Those that fit it, by name.
        note: What they are, for the plan.
    """

    weights: Mapping[str, Any]
    note: str


def build_model(
    builder: Builder,
    component: Component,
    section: schema.Device,
    device: Device,
    *,
    seed: int,
    start: Callable[[Built, bool], Start] | None = None,
    freeze: Callable[[nn.Module], None] = lambda module: None,
    shares: bool = True,
) -> Model:
    """Builds the recipe's model with the run's seed, the same on every rank, and wraps it for this world.

    Args:
        builder: Builds the component.
        component: The recipe's `model`.
        section: The recipe's `device`: what wraps the model.
        device: Where it goes.
        seed: The run's.
        start: Finds the weights to start from for a module, which may be ones in files where it is sharded.
        freeze: Freezes what is never trained.
        shares: Whether DDP goes around it; not where it goes around a step function that calls it.

    Raises:
        RecipeError: What came out is not a module, or has nothing to train.
    """
    seed_everything(seed)
    shared = construct(builder, component, seed) if is_asked(section, device) else None
    made = built(builder, component) if shared is None else shared.made
    bare: Any = made.module  # of which torch's stubs do not know all that it takes
    if any(is_lazy(parameter) for parameter in bare.parameters()):
        message = "has lazy modules, whose sizes are not known yet: give them sizes, or pass a batch through it once"
        raise builder.wrong("model", message)
    freeze(bare)
    if untrainable := unfit_to_train(bare):
        raise builder.wrong("model", untrainable)
    lay_out_buffers(bare)
    started = None if start is None else start(made, shared is not None)
    notes = [] if started is None else [started.note]
    if started is not None and shared is None:
        try:
            bare.load_state_dict(started.weights, strict=False)
        except RuntimeError as error:  # of a sparse tensor, say, whose name and shape fit
            raise LauncherError(f"train.start_from: {printable(words_of(error).splitlines()[-1].strip())}") from error
    if made.base is not None:
        notes.append(
            f"_adapt_: checkpoints hold {len(made.state_dict())} tensors; the base is read again at each start"
        )
    if section.sync_batchnorm:
        bare = nn.SyncBatchNorm.convert_sync_batchnorm(bare)
    if section.channels_last:
        bare = bare.to(memory_format=torch.channels_last)
    notes += _changed(builder, bare, section, component, device)
    if device.world.size > 1 and (unfit := unfit_for_several(bare)):
        raise builder.wrong("model", unfit)
    if shared is None:
        has_graphs = section.compile in WITH_GRAPHS
        wrapped = wrap(bare, device, section, shares=shares)
        return Model(bare, wrapped, tuple(notes), made.base, has_graphs=has_graphs)
    if fault := unfit_for_sharding(made, section):
        raise builder.wrong(*fault)
    sharding = Sharding(section, device)
    try:
        sharding.shard(bare)
    except UnfitError as error:
        raise builder.wrong(error.key, str(error)) from error
    shared.fill(sharding.mesh, device.torch_device)
    if started is not None:
        put_weights(bare, started.weights, sharding.mesh)
    return Model(bare, under_autocast(bare, device), (*notes, shared.note), made.base, sharding)


def unfit_to_train(module: nn.Module) -> str | None:
    """Why nobody would know what of a module is to be trained; None where it is known."""
    trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    if not trained:
        return "no parameter requires a gradient: there is nothing to train"
    if type(module).parameters is nn.Module.parameters:
        return None
    given = {id(parameter) for parameter in module.parameters()}
    left_out = [name for name, parameter in trained.items() if id(parameter) not in given]
    if not left_out:
        return None
    return (
        f"its own parameters() leaves out {len(left_out)} of {len(trained)} that require gradients, as "
        f"'{left_out[0]}', and all of these are trained; if they are not to be, set requires_grad_(False), or say "
        f"train.freeze: {{{left_out[0]}: always}}"
    )


@torch.no_grad()
def lay_out_buffers(module: nn.Module) -> None:
    """Gives expanded buffers memory of their own: nothing can be written to them, by DDP, a checkpoint or anybody.

    And those of one row or column, as a transposed row, the strides that their shape has: DDP fails to send others.
    """
    for part in module.modules():
        for name, buffer in part.named_buffers(recurse=False, remove_duplicate=False):
            if not has_storage(buffer):
                continue
            if any(is_expanded(*dim) for dim in zip(buffer.shape, buffer.stride(), strict=True)):
                setattr(part, name, buffer.contiguous())
            elif buffer.is_contiguous() and (plain := buffer.flatten().view(buffer.shape)).stride() != buffer.stride():
                setattr(part, name, plain)  # in the same memory


def is_expanded(size: int, stride: int) -> bool:
    """Whether all entries along a dimension are one in memory."""
    return size > 1 and stride == 0


def unfit_for_sharding(made: Built, section: schema.Device) -> tuple[str, str] | None:
    """Where the recipe asks for something that a sharded model cannot have, and why; None where it does not."""
    if section.compile and not compiled_in(made.module):
        return "device.compile", "the model has no repeated blocks, and is not compiled in parts; say false"
    for name, value in made.state_dict().items():
        if isinstance(value, torch.Tensor) and not has_storage(value):
            message = f"the buffer '{name}' is sparse, quantized or wrapped, which no sharded model has"
            return "device.sharding", f"{message}; register it with persistent=False, or build it in forward"
    return None


def unfit_for_several(module: nn.Module) -> str | None:
    """What of a module processes cannot send each other, and what to do; None where there is nothing."""
    for name, buffer in module.named_buffers():
        if not all(map(has_storage, parts_of(buffer))):
            return f"the buffer '{name}' is quantized, which processes cannot send each other; build it in forward"
    return None


def shard_loss(builder: Builder, sharding: Sharding, key: str, loss: nn.Module) -> None:
    """Shards a loss with parameters, as the model is.

    Raises:
        RecipeError: It cannot be.
    """
    try:
        sharding.shard_loss(loss)
    except UnfitError as error:
        raise builder.wrong(key, str(error)) from error


def is_asked(section: schema.Device, device: Device) -> bool:
    """Whether the model is sharded: asked for, and there are several processes, or a group of one that tries it."""
    return section.sharding != "none" and (device.world.size > 1 or dist.is_initialized())


def under_autocast(module: nn.Module, device: Device) -> nn.Module:
    """A sharded module, which is on its device, under autocast where the run has that; it stays what it is."""
    prepared: nn.Module = device.accelerator.prepare_model(module, device_placement=False, evaluation_mode=True)
    return prepared


def _changed(
    builder: Builder, bare: nn.Module, section: schema.Device, component: Component, device: Device
) -> Iterator[str]:
    """Changes how the module and its blocks are called, and not what they are; gives what the plan says of it."""
    if section.compile:
        check_names(bare)
        if by_block := compile_blocks(bare, section.compile):
            yield by_block
        if kept := keep_compiled(repr(component), device.name):
            yield f"what is compiled is kept in {kept}"
    if section.recompute:
        yield recompute(builder, bare, section.recompute)
    if section.precision == "bf16-true":
        yield hold_in_bfloat16(builder, bare)


def wrap(module: nn.Module, device: Device, section: schema.Device, *, shares: bool = True) -> nn.Module:
    """The module under what Accelerate adds (device, autocast, DDP), compiled where asked and its blocks are not."""
    bare = module.to(device.torch_device)
    wait = Wait("the other ranks to build their model", section.timeout.amount, "device.timeout", why="")
    # said, and not left to Accelerate to find out: its looking imports torch.distributed.tensor, a tenth of a start
    wrapped: nn.Module = device.accelerator.prepare_model(bare, device_placement=False, evaluation_mode=True)
    if shares and device.world.size > 1:
        with guarded(wait, device.world):
            wrapped = _shared(wrapped, device)
    if section.compile and not compiled_in(bare):
        check_names(bare)
        mode = section.compile if isinstance(section.compile, str) else "default"
        wrapped = torch.compile(wrapped, mode=mode)  # type: ignore[assignment]  # it is an OptimizedModule
    return wrapped


def _share_sparse(names: Sequence[str], wrapped: Any, inputs: Any) -> None:
    """Makes these buffers rank 0's before a forward, whenever DDP does so with those that it can send."""
    if wrapped.require_forward_param_sync and wrapped.broadcast_buffers:  # by the name that every torch has
        for part in (part for name in names for part in parts_of(wrapped.module.get_buffer(name))):
            dist.broadcast(part.detach(), src=0)


def wrap_step(step: nn.Module, device: Device) -> nn.Module:
    """A module whose forward is a whole step, under DDP where there are several processes.

    Nothing else goes around it: it enters autocast itself (`Objective.stepped`), and the model is compiled already.
    """
    if device.world.size == 1:
        return step
    return _shared(step, device)


def _shared(module: nn.Module, device: Device) -> DistributedDataParallel:
    """DDP around a module, which stays where it is: Accelerate would name the device of this rank's local number.

    Where each process sees one GPU, its own, there is none of that number; and DDP that is told a device builds again
    what goes into the model, by calling its class. Gradients go through memory that ranks share, where there is such.
    """
    handler = device.accelerator.ddp_handler
    sparse = [name for name, buffer in module.named_buffers() if not has_storage(buffer)]
    with lazy_compiler.ddp(), hidden_from_ddp(module, sparse) if sparse else nullcontext():
        wrapped = DistributedDataParallel(module, **(handler.to_kwargs() if handler is not None else {}))
    if sparse:
        wrapped.register_forward_pre_hook(partial(_share_sparse, sparse))
    if device.coordinator.memory is not None:
        device.coordinator.memory.serve(wrapped)
    elif any(getattr(part, "sparse", False) is True for part in module.modules()):  # torch's embeddings
        serve_sparse(wrapped)
    return wrapped
