"""Whether a run fits its GPUs (`launcher check --memory`): a step traced with tensors that have no memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from accelerate.utils import convert_to_fp32
from torch import nn
from torch.nn import functional
from torch.optim import Optimizer

from launcher import internals
from launcher.checkpoints.format import tensors_in
from launcher.checks.footprint import Footprint, Tracker
from launcher.data.load import Data
from launcher.data.parts import changed
from launcher.errors import LauncherError
from launcher.internals import parts_of, storage_id
from launcher.model.adapt import built
from launcher.model.bfloat16 import hold_in_bfloat16
from launcher.model.blocks import blocks_of
from launcher.model.recompute import Recomputed, recompute, recomputed_in
from launcher.objective.batch import one_number
from launcher.objective.build import build_objective
from launcher.objective.entries import added
from launcher.objective.optimizer import build_optimizer, calls_the_loss, named_parameters
from launcher.objective.run_length import At
from launcher.objective.several import each
from launcher.objective.turns import TurnsObjective
from launcher.recipe.build import Builder
from launcher.recipe.schema import Recipe
from launcher.training.freezing import freeze_for_good
from launcher.training.inner_optimizers import all_inside
from launcher.world.world import World

_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Traced:
    """What a process of a run holds at the worst moment of a step.

    Attributes:
        footprint: By what it is for.
        samples: Of a micro-batch.
        pieces: Micro-batches of a step.
    """

    footprint: Footprint
    samples: int
    pieces: int


def trace(
    recipe: Recipe, builder: Builder, data: Data, world: World, *, micro_batch: int | None = None, on_gpu: bool = False
) -> Traced:
    """Makes two steps of a run without memory: no GPU is needed, and no room for the model.

    Args:
        recipe: The recipe.
        builder: Its components, of which the data sets are built.
        data: They, cut for the first process of that world.
        world: The processes that the run is meant for.
        micro_batch: The most samples in one forward pass, in place of the recipe's.
        on_gpu: Whether it will run on GPUs, whose attention keeps no matrix where dropout is asked for.

    Raises:
        LauncherError: It cannot be traced; the message says why.
    """
    shares = [share.samples for share in data.train.sampler.shares(0)]
    samples = min(max(shares), micro_batch or max(shares))
    pieces = -(-sum(shares) // samples)
    batch = data.train.batch_of(range(min(samples, data.train.num_readable())))
    mode, _ = internals.fake_tensors()
    fake, tracker = mode(allow_non_fake_inputs=True), Tracker()
    try:
        with ExitStack() as stack:
            stack.enter_context(_fused_attention() if on_gpu else nullcontext())
            run = _Run(recipe, builder.keeping("data"), world, fake, tracker)
            stack.enter_context(fake)
            stack.enter_context(tracker.following())
            run.steps(changed(batch, fake.from_tensor), min(2, pieces), data)
    except LauncherError:
        raise
    except Exception as error:  # anybody's code, called with tensors that have no values
        words = " ".join(str(error).split())[:160]
        message = f"--memory: a step cannot be traced without values: {type(error).__name__}: {words}"
        raise LauncherError(f"{message}; try it on the GPU itself, with data.micro_batch_size: auto") from error
    return Traced(tracker.worst, samples, pieces)


class _Run:
    """Model, loss and optimizer of a run without memory, and what each process has of them.

    Args:
        recipe: The recipe.
        builder: Builds them.
        world: The processes.
        fake: In which tensors have no memory.
        tracker: Follows them.
    """

    def __init__(self, recipe: Recipe, builder: Builder, world: World, fake: Any, tracker: Tracker):
        self.recipe, self.tracker, self.world = recipe, tracker, world
        self.model = without_memory(recipe, builder, fake)
        freeze_for_good(recipe.train.freeze, named_parameters(self.model, {}))
        with fake:
            self.objective = build_objective(builder, recipe.loss, recipe.batch, recipe.train)
        if (half := _HALF.get(recipe.device.precision.removesuffix("-true"))) is not None:
            self.objective.under(partial(torch.autocast, "cpu", half))
        if isinstance(self.objective, TurnsObjective):
            raise LauncherError("--memory: optimizers that take turns are not traced; try a step on the GPU itself")
        self.optimizer = build_optimizer(builder, recipe.optimizer, self.model, self.objective.modules)
        self.parameters = [*named_parameters(self.model, self.objective.modules).values()]
        self.shared_by = shared_by(recipe, world)
        self.exchange = _Exchange(self.model, recipe, tracker) if self.shared_by > 1 else None
        self._settle()

    def _settle(self) -> None:
        """Says what is there from the start."""
        standing, rows = self.tracker.standing, self.shared_by
        trained = [parameter for parameter in self.parameters if parameter.requires_grad]
        for parameter in self.parameters:
            self.tracker.hold(parameter, "parameters", rows)
        for buffer in self.model.buffers():
            self.tracker.hold(buffer, "parameters")
        if (kept := averaged(self.recipe, trained)) > 0:
            standing["averages"] = -(-kept // rows)
        is_ddp = self.world.size > 1 and rows == 1
        if is_ddp:  # its buckets, in which the gradients are, are never given back
            standing["gradients"] = sum(parameter.nbytes for parameter in trained)
        for optimizer in each(self.optimizer).values():
            self._kept_by(optimizer)
        for parameter in trained:
            parameter.register_post_accumulate_grad_hook(lambda held: self._has_gradient(held, is_ddp))

    def _has_gradient(self, parameter: torch.Tensor, is_ddp: bool) -> None:
        assert parameter.grad is not None
        self.tracker.hold(parameter.grad, "" if is_ddp else "gradients", self.shared_by)
        if is_ddp:
            self.tracker.look()

    def steps(self, batch: Any, pieces: int, data: Data) -> None:
        """Two steps: what the optimizer keeps is there from the second on."""
        self.model.train()
        make_gradients = partial(self._make_gradients, batch, pieces, data)
        for _ in range(2):
            make_gradients()
            with self.tracker.doing("update", self.shared_by):
                self._update(make_gradients)

    @torch.enable_grad()
    def _make_gradients(self, batch: Any, pieces: int, data: Data) -> torch.Tensor:
        """Forward and backward of all micro-batches; gives the last one's loss, as a closure does."""
        for optimizer in each(self.optimizer).values():
            optimizer.zero_grad()
        for _ in range(pieces):
            with self.tracker.doing("forward"):
                loss = self._loss(batch, data)
            with self.tracker.doing("backward"):
                loss.backward()
            loss = loss.detach()
        if self.exchange is not None:
            self.exchange.over()
        return loss

    def _loss(self, batch: Any, data: Data) -> torch.Tensor:
        objective, layout = self.objective, self.objective.layout
        if (change := data.train.reading.on_device) is not None:
            batch = change(batch)
        if objective.step is not None:
            loss: torch.Tensor = objective.stepped(self.model, batch, At())["loss"]
            return loss
        args, kwargs = layout.inputs(batch)
        result = self.model(*args, **kwargs)
        if not objective.terms:
            return layout.loss(result)
        given = [(term.key, term.given(term.call, layout, result, batch)) for term in objective.terms]
        return torch.stack([one_number(added(value), key) for key, value in given]).sum()

    def _update(self, make_gradients: Callable[[], torch.Tensor]) -> None:
        trained = [parameter for parameter in self.parameters if parameter.grad is not None]
        if (norm := self.recipe.train.clip_grad_norm) is not None:
            nn.utils.clip_grad_norm_(trained, norm)
        closure: Any = (make_gradients,) if calls_the_loss(self.optimizer, self.recipe.optimizer) else ()
        for optimizer in each(self.optimizer).values():
            optimizer.step(*closure)
            self._kept_by(optimizer)
            optimizer.zero_grad()

    def _kept_by(self, optimizer: Optimizer) -> None:
        """What an optimizer, and one inside it as SAM and Lookahead have one, keeps of its own."""
        parameters = {storage_id(parameter.untyped_storage()) for parameter in self.parameters}
        for keeper in (optimizer, *all_inside(optimizer)):
            held = {key: value for key, value in vars(keeper).items() if key != "param_groups"}
            for tensor in (part for whole in tensors_in(held) for part in parts_of(whole)):
                if storage_id(tensor.untyped_storage()) not in parameters:
                    self.tracker.hold(tensor, "optimizer", self.shared_by)
        self.tracker.look()


class _Exchange:
    """What processes that share a model put together of it for a while, as torch's `fully_shard` does.

    The rest of the model is together from its forward to the end of its backward, and so are its gradients; a block
    while it is called, beside the one that comes next, and in its backward with its gradients.

    Args:
        model: The model.
        recipe: Says which blocks.
        tracker: Is told.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, tracker: Tracker):
        self._tracker = tracker
        blocks = blocks_of(model, recipe.device.shard).modules.values()
        sizes = [sum(parameter.nbytes for parameter in block.parameters()) for block in blocks]
        self._rest = sum(parameter.nbytes for parameter in model.parameters()) - sum(sizes)
        self._sent = 0
        model.register_forward_pre_hook(lambda *_: self._put_together(0))
        for block, size in zip(blocks, sizes, strict=True):
            block.register_forward_pre_hook(lambda *_, size=size: self._put_together(size))
            block.register_forward_hook(lambda *_: self._put_together(0))
            block.register_full_backward_pre_hook(lambda *_, size=size: self._go_back(size))
            block.register_full_backward_hook(lambda *_: self._go_back(0))

    def _put_together(self, size: int) -> None:
        self._tracker.communication = self._rest + 2 * size
        self._tracker.look()

    def _go_back(self, size: int) -> None:
        """A block's backward: from the second on, the gradients of the one before are still on their way."""
        self._tracker.communication = 2 * self._rest + 3 * size + 2 * self._sent
        self._tracker.look()
        self._sent = size or self._sent

    def over(self) -> None:
        """The step's backward passes are made."""
        self._tracker.communication = self._sent = 0


def shared_by(recipe: Recipe, world: World) -> int:
    """Between how many processes each parameter is divided."""
    return {"none": 1, "full": world.size, "hybrid": world.size // world.nodes}[recipe.device.sharding]


# ---------------------------------------------------------------------- a model without memory


def averaged(recipe: Recipe, trained: Iterable[torch.Tensor]) -> int:
    """Bytes of the average of some parameters, where the recipe asks for one."""
    if recipe.train.ema is None and recipe.train.swa is None:
        return 0
    return sum(parameter.numel() * max(4, parameter.element_size()) for parameter in trained)


def without_memory(recipe: Recipe, builder: Builder, fake: Any, *, may_hold: bool = True) -> nn.Module:
    """The model as training calls it, with tensors that have no memory.

    Args:
        recipe: The recipe.
        builder: Builds it.
        fake: The mode in which tensors have no memory.
        may_hold: Whether one whose constructor reads values may have memory meanwhile.

    Raises:
        Exception: Whatever its constructor raises.
    """
    section, module = recipe.device, _without_values(recipe, builder, fake, may_hold)
    with fake:
        _give_up_memory(module)
        if section.recompute:
            recompute(builder, module, section.recompute)
            for block in recomputed_in(module).values():
                cast("Recomputed", block.forward).keeps_buffers = False  # which have no values
        if section.precision == "bf16-true":
            hold_in_bfloat16(builder, module)
        if (half := _HALF.get(section.precision)) is not None:
            module.forward = _under_autocast(module.forward, half)
    return module


def _without_values(recipe: Recipe, builder: Builder, fake: Any, may_hold: bool) -> nn.Module:
    """Built with tensors that have no memory; with memory where its constructor reads values."""
    try:
        with fake:
            return built(builder.keeping("data"), recipe.model).module
    except Exception:  # anybody's constructor
        with suppress(Exception) if may_hold else nullcontext(), torch.device("meta"):
            return built(builder.keeping("data"), recipe.model).module
    return built(builder, recipe.model).module


def _give_up_memory(model: nn.Module) -> None:
    """Puts tensors of the same shapes and types without memory in place of all; those that were one stay one."""
    _, fake_type = internals.fake_tensors()
    others: dict[int, torch.Tensor] = {}
    for part in model.modules():
        for name, held in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)):
            if isinstance(held, fake_type):
                continue
            if id(held) not in others:
                empty = torch.empty_strided(held.size(), held.stride(), dtype=held.dtype)
                is_parameter = isinstance(held, nn.Parameter)
                others[id(held)] = nn.Parameter(empty, held.requires_grad) if is_parameter else empty
            setattr(part, name, others[id(held)])


def _under_autocast(forward: Callable[..., Any], dtype: torch.dtype) -> Callable[..., Any]:
    """A forward as Accelerate has it: under autocast, with results in float32."""

    def call(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast("cpu", dtype):
            result = forward(*args, **kwargs)
        return convert_to_fp32(result)

    return call


@contextmanager
def _fused_attention() -> Iterator[None]:
    """Has attention with dropout keep no matrix, as a GPU's kernels do: a CPU's know no dropout."""
    attention = functional.scaled_dot_product_attention

    def without_dropout(*args: Any, **kwargs: Any) -> torch.Tensor:
        args, kwargs = (*args[:4], 0.0, *args[5:]) if len(args) > 4 else args, {**kwargs, "dropout_p": 0.0}
        if len(args) > 4:
            del kwargs["dropout_p"]
        return attention(*args, **kwargs)

    functional.scaled_dot_product_attention = without_dropout
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = attention
