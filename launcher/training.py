"""5: training. One loop for every world; `train_step()` is one optimizer step."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from launcher import direct, faults
from launcher.averages import Average
from launcher.coordination import Agreement, Coordinator, Pending, Requests
from launcher.data import Data, MicroBatch
from launcher.data.permutation import mix
from launcher.data.transfer import on_device
from launcher.device import Device
from launcher.errors import LauncherError
from launcher.evaluation import Evaluation
from launcher.launch import progress
from launcher.model import Model, wrap
from launcher.objective import INDEPENDENT, At, Objective, Schedule, build_objective, build_optimizer, build_schedule
from launcher.recipe.components import Workshop
from launcher.recipe.schema import LINE_KEYS
from launcher.tracking import Tracking

if TYPE_CHECKING:
    from launcher.session import Session

_AS_EVER = nullcontext()
SKIPS_IN_A_ROW = 20  # after so many updates without a finite gradient a run is not training any more


class NonFiniteError(LauncherError):
    """A step's gradients are not finite."""


@dataclass(frozen=True)
class Horizon:
    """How long the run is.

    Attributes:
        steps_per_epoch: Optimizer steps of one pass over the data.
        total_steps: The run's length; None where it is a time.
        seconds: The run's length in time, else None.
    """

    steps_per_epoch: int
    total_steps: int | None
    seconds: float | None = None

    def epoch(self, step: int) -> float:
        """Passes over the data completed after `step` steps."""
        return step / self.steps_per_epoch

    def at(self, step: int) -> At:
        """Where a step stands, for a user's step function."""
        return At(step, step // self.steps_per_epoch, step / self.total_steps if self.total_steps else 0.0)


@dataclass
class Trainable:
    """All that an optimizer step changes, and what it needs.

    Attributes:
        model: The module, bare and wrapped.
        objective: The loss.
        optimizer: Not prepared by Accelerate: it is stepped here.
        schedule: The learning rate by step.
        device: Where to compute.
        losses: Wrapped losses with parameters of their own, by name.
        clip_grad_norm: Largest norm of all gradients together, or None.
        skip_non_finite: Whether a step without finite gradients is skipped; else it ends the run.
        average: Of the model's weights, where the recipe wants one.
    """

    model: Model
    objective: Objective
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    device: Device
    losses: Mapping[str, nn.Module] = field(default_factory=dict)
    clip_grad_norm: float | None = None
    skip_non_finite: bool = False
    average: Average | None = None

    def __post_init__(self) -> None:
        self.direct = direct.Direct(self.optimizer)
        self.guard = Guard(self)
        self.scaler = self.device.accelerator.scaler

    @property
    def parameters(self) -> list[torch.Tensor]:
        """All that the optimizer trains; a step function may have added some."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def training_state(self) -> dict[str, Any]:
        """What a checkpoint keeps besides the weights."""
        scheduler = self.schedule.scheduler
        return {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": scheduler.state_dict() if scheduler is not None else None,
            "scaler": self.scaler.state_dict() if self.scaler is not None else None,
            "losses": {name: loss.state_dict() for name, loss in self.objective.modules.items()},
            "average": self.average.state() if self.average is not None else None,
        }

    def load(
        self, weights: Mapping[str, Any], training: Mapping[str, Any], step: int, changed: Sequence[str] = ()
    ) -> None:
        """Takes up the state of a checkpoint.

        Args:
            weights: The unwrapped state_dict.
            training: What `training_state` gave.
            step: Optimizer steps completed.
            changed: Keys of the recipe that changed since: they win over what the checkpoint says.

        Raises:
            LauncherError: The state is not of this model or optimizer.
        """
        fresh = [{key: one for key, one in group.items() if key != "params"} for group in self.optimizer.param_groups]
        try:
            self.model.bare.load_state_dict(weights)
            self.optimizer.load_state_dict(_stepped_alike(training["optimizer"], fresh))
            direct.lay_out_state(self.optimizer)
            for name, loss in self.objective.modules.items():
                loss.load_state_dict(training["losses"][name])
        except (RuntimeError, ValueError, KeyError) as error:
            raise LauncherError(
                f"the checkpoint does not fit this model or optimizer: {error}; to begin anew with its weights use "
                "train.start_from in a new run"
            ) from error
        if self.average is not None:
            self.average.load(training["average"])
        if self.scaler is not None and training["scaler"] is not None:
            self.scaler.load_state_dict(training["scaler"])
        if any(key.partition(".")[0] in ("optimizer", "scheduler", "train") for key in changed):
            self._change(fresh, changed, step, training["scheduler"])
        elif self.schedule.scheduler is not None:
            self.schedule.scheduler.load_state_dict(training["scheduler"])

    def _change(self, fresh: Sequence[Mapping[str, Any]], changed: Sequence[str], step: int, scheduler: Any) -> None:
        """Lets changed settings of optimizer and schedule win; the schedule is gone through again up to here."""
        named = {key.split(".")[1] for key in changed if key.startswith("optimizer.")}
        if "_groups_" in named:
            named = {key for group in fresh for key in group}
        if not self.schedule.on_evaluation:
            named |= {"lr", "initial_lr"}
        for group, settings in zip(self.optimizer.param_groups, fresh, strict=True):
            group.update({key: settings[key] for key in named if key in settings})
        if self.schedule.on_evaluation:
            self.schedule.scheduler.load_state_dict(scheduler)
        else:
            self.schedule.replay(step)

    def without_sync(self) -> AbstractContextManager[Any]:
        """DDP without its all-reduce: for all but the last micro-batch of a step."""
        stack = ExitStack()
        for module in (getattr(self.model.wrapped, "_orig_mod", self.model.wrapped), *self.losses.values()):
            if isinstance(module, DistributedDataParallel):
                stack.enter_context(module.no_sync())
        return stack


_KERNELS = ("fused", "foreach")


def _stepped_alike(state: Mapping[str, Any], fresh: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """An optimizer's state whose groups step as those of this start: the device or the precision may be another."""
    if len(state["param_groups"]) != len(fresh):
        return dict(state)  # which the optimizer refuses
    groups = [
        {**group, **{key: own[key] for key in _KERNELS if key in own}}
        for group, own in zip(state["param_groups"], fresh, strict=True)
    ]
    return {**state, "param_groups": groups}


class Guard:
    """Keeps gradients that are not finite out of everything that is kept.

    One flag a step (6 µs for any optimizer). On a CPU it is read before the update. On a GPU reading would make
    the host wait: with `non_finite: stop` the flag stays up after the first bad step, the device counts the
    steps since, and the count is read before anything is saved or evaluated.
    """

    def __init__(self, trainable: Trainable):
        self._trainable = trainable
        device = trainable.device.torch_device
        self._read_now = device.type == "cpu" or trainable.skip_non_finite
        self._one = torch.ones((), device=device)
        self._found = torch.zeros((), device=device)
        self._since_bad = torch.zeros((), device=device)  # steps, the first bad one included
        self._last_step = -1
        self._are_plain = True  # until torch's kernel refuses some: sparse or complex ones
        self.skipped_in_a_row = 0
        self.skipped = 0
        self._told = 0

    def allows(self, step: int) -> bool:
        """Whether the update of this step may be made.

        Raises:
            NonFiniteError: It may not, and the recipe says stop; or too many were skipped.
        """
        if self._trainable.scaler is not None:
            return True  # the gradient scaler skips by itself; `scaled_step` counts
        gradients = [p.grad for p in self._trainable.parameters if p.grad is not None]
        self._look_at(gradients)
        if not self._read_now:
            self._since_bad.add_(self._found)
            self._last_step = step
            return True
        if not self._found.item():
            self.skipped_in_a_row = 0
            return True
        if not self._trainable.skip_non_finite:
            raise _not_finite(step)
        self._found.zero_()
        self._skip(step)
        return False

    def _look_at(self, gradients: list[torch.Tensor]) -> None:
        """Raises the flag if one is not finite; nothing is changed, as the scale is 1."""
        if self._are_plain:
            try:
                torch._amp_foreach_non_finite_check_and_unscale_(gradients, self._found, self._one)
                return
            except RuntimeError:
                self._are_plain = False
        numbers = [_numbers(gradient) for gradient in gradients]
        torch._amp_foreach_non_finite_check_and_unscale_(numbers, self._found, self._one)

    def scaled_step(self, step: int) -> None:
        """fp16: the scaler unscales, skips on overflow and adapts."""
        scaler = self._trainable.scaler
        before = scaler.get_scale()
        scaler.step(self._trainable.optimizer)
        scaler.update()
        if scaler.get_scale() < before:
            self._skip(step)
        else:
            self.skipped_in_a_row = 0

    def _skip(self, step: int) -> None:
        self.skipped += 1
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row >= SKIPS_IN_A_ROW:
            raise NonFiniteError(
                f"step {step}: the gradients of {SKIPS_IN_A_ROW} steps in a row were not finite; "
                "lower optimizer.lr, or set train.clip_grad_norm"
            )

    def news(self) -> str | None:
        """What was skipped since this was asked last; not under fp16, which skips while it finds its scale."""
        skipped, self._told = self.skipped - self._told, self.skipped
        if not skipped or self._trainable.scaler is not None:
            return None
        return f"{skipped} update{'s' * (skipped > 1)} skipped: gradients were not finite ({self.skipped} so far)"

    def check(self) -> None:
        """Before anything is kept: raises if a step since the start was bad.

        Raises:
            NonFiniteError: Names the first bad step.
        """
        if not self._read_now and (steps := int(self._since_bad)):
            raise _not_finite(self._last_step - steps + 1)


def _numbers(gradient: torch.Tensor) -> torch.Tensor:
    """What a gradient holds, dense and real."""
    if gradient.layout is torch.sparse_coo:
        gradient = gradient.coalesce().values()
    elif gradient.layout is not torch.strided:
        gradient = gradient.values()
    gradient = gradient.contiguous()  # torch's kernel writes to it, and an expanded one overlaps itself
    return torch.view_as_real(gradient.resolve_conj()) if gradient.is_complex() else gradient


def _not_finite(step: int) -> NonFiniteError:
    return NonFiniteError(
        f"step {step}: a gradient is not finite (NaN or infinity), and the update was not kept; lower optimizer.lr, "
        "set train.clip_grad_norm, look at the batch with --debug, or say train.non_finite: skip"
    )


def build_trainable(workshop: Workshop, model: Model, device: Device, data: Data) -> tuple[Trainable, Horizon]:
    """Loss, optimizer and schedule of the recipe around a model, and how long the run is.

    Args:
        workshop: Builds the components; learns `train.steps` and `train.steps_per_epoch`.
        model: Phase 3's.
        device: Phase 2's.
        data: Phase 1's, which knows how many steps an epoch has.

    Raises:
        RecipeError: One of them does not fit.
    """
    section, recipe = workshop.recipe.train, workshop.recipe
    steps_per_epoch = data.steps_per_epoch
    total = section.steps if section.epochs is None else section.epochs * steps_per_epoch
    horizon = Horizon(steps_per_epoch, total, section.time.amount if section.time else None)
    workshop.computed["train.steps_per_epoch"] = steps_per_epoch
    if total is not None:
        workshop.computed["train.steps"] = total
    objective = build_objective(workshop)
    losses = {name: wrap(module, device, recipe.device) for name, module in objective.modules.items()}
    for term in objective.terms:
        term.wrapped = losses.get(term.name)
    objective.to(device.torch_device)
    optimizer = build_optimizer(workshop, model.bare, objective.modules)
    schedule = build_schedule(workshop, optimizer, steps_per_epoch, total)
    skips = section.non_finite == "skip"
    average = Average(model.bare, section.ema) if section.ema is not None else None
    clip = section.clip_grad_norm
    trainable = Trainable(model, objective, optimizer, schedule, device, losses, clip, skips, average)
    trainable.direct.clear_gradients()  # a model that was handed in may have some, of a trial by hand
    return trainable, horizon


# ---------------------------------------------------------------------- one step


Scales = Sequence[Sequence[float]]


@dataclass(slots=True)
class Step:
    """What one optimizer step reads.

    Attributes:
        batches: This rank's micro-batches.
        scales: For each of them, a factor for each term of the loss.
        weight: The step's count over all ranks.
        samples: The step's samples over all ranks.
    """

    batches: Sequence[MicroBatch]
    scales: Scales
    weight: float
    samples: int


@dataclass(slots=True)
class Stepped:
    """What one optimizer step leaves: numbers still on the device.

    Attributes:
        parts: Of each micro-batch, a loss and the factor that makes it this rank's part of the step's loss,
            times the world size.
        grad_norm: Norm of all gradients before clipping, where clipped.
        scalars: Of each micro-batch, what a user's step function wants logged.
    """

    parts: list[tuple[torch.Tensor, float]]
    grad_norm: torch.Tensor | None
    scalars: list[Mapping[str, Any]]


def train_step(trainable: Trainable, step: Step, at: At) -> Stepped:
    """Forward, loss and backward over the micro-batches, then one update of the weights."""
    parts: list[tuple[torch.Tensor, float]] = []
    scalars: list[Mapping[str, Any]] = []
    last = len(step.batches) - 1
    for number, (batch, scales) in enumerate(zip(step.batches, step.scales, strict=True)):
        with _AS_EVER if number == last else trainable.without_sync():
            value, factor, logged = forward(trainable, batch, scales, at)
            backward(trainable, value, factor)
        # a compiled model may write the next loss where this one is
        parts.append((value.detach() if number == last else value.detach().clone(), factor))
        scalars.append(logged)
    return Stepped(parts, update(trainable, at.step), scalars)


def forward(
    trainable: Trainable, batch: MicroBatch, scales: Sequence[float], at: At
) -> tuple[torch.Tensor, float, Mapping[str, Any]]:
    """The loss of one micro-batch, the factor that makes it a part of the step's mean, and scalars to log."""
    objective, layout = trainable.objective, trainable.objective.layout
    data = batch.data
    if objective.step is not None:
        result = objective.stepped(trainable.model.wrapped, data, at)
        return (
            result.pop("loss"),
            scales[0],
            _scalars({key: one for key, one in result.items() if key not in _NO_SCALARS}),
        )
    if not objective.terms:  # which need no targets
        args, kwargs = layout.inputs(data)
        return layout.loss(trainable.model.wrapped(*args, **kwargs)), scales[0], {}
    args, kwargs, targets = layout.split(data)
    result = trainable.model.wrapped(*args, **kwargs)
    if not objective.is_audited:
        objective.audit(result, data, batch.samples)
    return objective.value(result, data, targets, scales)


_NO_SCALARS = ("outputs", "targets")  # of what a step function gives: they are for the metrics


def _scalars(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a step function wants logged, left on its device.

    Raises:
        LauncherError: One of them is no number, or is called what a line says by itself.
    """
    for name, value in given.items():
        if name in LINE_KEYS:
            raise LauncherError(f"train.step: a line of metrics.jsonl means something else by '{name}'; rename it")
        is_one = value.numel() == 1 if isinstance(value, torch.Tensor) else isinstance(value, int | float | np.number)
        if not is_one:
            raise LauncherError(f"train.step: '{name}' is a {type(value).__name__}; only single numbers can be logged")
    return {name: value.detach() if isinstance(value, torch.Tensor) else value for name, value in given.items()}


def backward(trainable: Trainable, value: torch.Tensor, factor: float) -> None:
    """Adds this micro-batch's gradients, times `factor`.

    Raises:
        LauncherError: There are none.
    """
    if not value.requires_grad:
        raise LauncherError(f"{'loss' if trainable.objective.step is None else 'train.step'}: {INDEPENDENT}")
    if trainable.scaler is not None:
        trainable.scaler.scale(value * factor).backward()
    else:
        direct.backward(value, factor)


def update(trainable: Trainable, step: int) -> torch.Tensor | None:
    """Clips, checks, steps the optimizer, clears the gradients; returns the norm where it clipped."""
    norm = None
    direct.lay_out_gradients(trainable.optimizer)
    if trainable.scaler is not None:
        trainable.scaler.unscale_(trainable.optimizer)
    if trainable.clip_grad_norm is not None:
        norm = nn.utils.clip_grad_norm_(trainable.parameters, trainable.clip_grad_norm)
    if trainable.scaler is not None:
        trainable.guard.scaled_step(step)
        stepped = trainable.guard.skipped_in_a_row == 0
    elif stepped := trainable.guard.allows(step):
        trainable.direct.step()
    if stepped and trainable.average is not None:
        trainable.average.update()
    trainable.direct.clear_gradients()
    return norm


# ---------------------------------------------------------------------- the stream of steps


def counted_steps(
    data: Data, objective: Objective, coordinator: Coordinator, start: int, stop: int | None
) -> Generator[Step, None, None]:
    """This rank's steps with every micro-batch's share of the whole step.

    Shares of samples are arithmetic: the same in every step of one size. Counts that are functions of the batch are
    added over the ranks one step ahead, on the side group, so that no step waits for them.
    """
    stream = data.train.steps(start, stop)
    first = next(stream, None)
    if first is None:
        return
    objective.settle()
    batches = itertools.chain([first], stream)
    sizes = map(data.train.sampler.batch_size, itertools.count(start))
    if objective.counts_samples:
        yield from _by_arithmetic(batches, sizes, objective, coordinator.world_size)
    elif coordinator.world_size == 1:
        yield from _by_counting_alone(batches, sizes, objective)
    else:
        yield from _by_counting(batches, sizes, objective, coordinator)


def _by_arithmetic(
    stream: Iterable[list[MicroBatch]], sizes: Iterator[int], objective: Objective, world: int
) -> Iterator[Step]:
    scales: dict[int, Scales] = {}  # by the size of a step: there are two, the last one of an epoch may be short
    for batches in stream:
        samples = next(sizes)
        if samples not in scales:
            local = [objective.counts(batch.data, batch.samples) for batch in batches]
            scales[samples] = _scales(objective, batches, local, objective.counts(None, samples), world)
        yield Step(batches, scales[samples], float(samples), samples)


def _by_counting_alone(
    stream: Iterable[list[MicroBatch]], sizes: Iterator[int], objective: Objective
) -> Iterator[Step]:
    for batches in stream:
        local = [objective.counts(batch.data, batch.samples) for batch in batches]
        total = local[0] if len(local) == 1 else [sum(one) for one in zip(*local, strict=True)]
        yield Step(batches, _scales(objective, batches, local, total, 1), total[0], next(sizes))


def _by_counting(
    stream: Iterable[list[MicroBatch]], sizes: Iterator[int], objective: Objective, coordinator: Coordinator
) -> Iterator[Step]:
    ahead: deque[tuple[list[MicroBatch], list[list[float]], Pending]] = deque()

    def oldest() -> Step:
        batches, local, pending = ahead.popleft()
        total = pending.result().tolist()
        return Step(batches, _scales(objective, batches, local, total, coordinator.world_size), total[0], next(sizes))

    for batches in stream:
        local = [objective.counts(batch.data, batch.samples) for batch in batches]
        sums = [float(sum(one)) for one in zip(*local, strict=True)]
        ahead.append((batches, local, coordinator.sum(torch.tensor(sums, dtype=torch.float64))))
        if len(ahead) > 1:
            yield oldest()
    while ahead:
        yield oldest()


def _scales(
    objective: Objective,
    batches: Sequence[MicroBatch],
    local: Sequence[Sequence[float]],
    total: Sequence[float],
    world: int,
) -> Scales:
    return [objective.scales(own, total, world, batch.samples) for own, batch in zip(local, batches, strict=True)]


# ---------------------------------------------------------------------- numbers of the run


class Meter:
    """Gathers the numbers of the steps between two lines of metrics.jsonl, without making a GPU wait.

    The loss is the count-weighted mean over the steps and ranks since the line before; a step function's scalars are
    the mean over the ranks and micro-batches of the last step, weighted likewise. What a line needs is copied from
    the device when the line is due, and read when the next one is.
    """

    def __init__(self, trainable: Trainable, coordinator: Coordinator):
        self._trainable = trainable
        self._coordinator = coordinator
        device = trainable.device.torch_device
        self._loss = torch.zeros((), dtype=torch.float64, device=device)
        self._weight = 0.0
        self._samples = 0
        self._waited = 0.0
        self._since = time.perf_counter()
        self._stepped: Stepped | None = None
        self._is_counted = True  # whether anything counts in that step
        self._names: list[str] | None = None if trainable.objective.logs_scalars else []
        self._copied: deque[tuple[dict[str, Any], torch.Tensor, float, Any]] = deque()
        self._reduced: deque[tuple[dict[str, Any], torch.Tensor, Pending]] = deque()

    def add(self, stepped: Stepped, step: Step, waited: float) -> None:
        """Takes one step in; `waited` seconds of it were spent waiting for data."""
        for loss, factor in stepped.parts:
            self._loss.add_(loss, alpha=factor * step.weight)
        self._weight += step.weight
        self._samples += step.samples
        self._waited += waited
        self._stepped, self._is_counted = stepped, step.weight > 0

    def cut(self, step: int, epoch: float, rate: float) -> list[dict[str, Any]]:
        """Starts the line of these steps; returns the lines that are ready by now."""
        if self._stepped is None:
            return []
        now = time.perf_counter()
        seconds = max(now - self._since, 1e-9)
        line: dict[str, Any] = {
            "step": step,
            "epoch": round(epoch, 6),
            "split": "train",
            "loss": None,
            "lr": rate,
        }
        if self._stepped.grad_norm is not None:
            line["grad_norm"] = None
        line["samples_per_second"] = round(self._samples / seconds, 2)
        line["data_wait"] = round(self._waited / seconds, 4)
        line["seconds"] = round(seconds, 4)
        line.update(dict.fromkeys(self._scalar_names(self._stepped)))
        norm = self._stepped.grad_norm
        norm = (norm if norm is not None else self._loss).double()
        numbers = torch.stack([self._loss, norm, *self._scalars(self._stepped)])
        if self._trainable.device.torch_device.type == "cuda":
            line["gpu_memory"] = torch.cuda.max_memory_allocated()
        ready = self._advance()
        copied = numbers.to("cpu", non_blocking=True)
        self._copied.append((line, copied, self._weight, self._mark()))
        self._loss.zero_()
        self._weight, self._samples, self._waited, self._since, self._stepped = 0.0, 0, 0.0, now, None
        if not self._trainable.device.is_gpu:
            self._reduce()
            if self._reduced[-1][-1].work is None:  # one process, or memory that all share: nothing to wait for
                ready += self._read()
        return ready

    def _mark(self) -> Any:
        """An event behind the copy just begun; None where copies are immediate."""
        if self._trainable.device.torch_device.type != "cuda":
            return None
        event = torch.cuda.Event()
        event.record()
        return event

    def _scalar_names(self, stepped: Stepped) -> Sequence[str]:
        """What the step function logs: the same in every step, so that the ranks can add it up without asking.

        Raises:
            LauncherError: It is not.
        """
        if self._names is None:
            self._names = self._coordinator.from_first(lambda: list(stepped.scalars[0]))
        names: list[str] = self._names
        for strange in (one for one in stepped.scalars if one.keys() != set(names)):
            said = f"gave {', '.join(strange) or 'no scalars'} to log, and rank 0 first {', '.join(names) or 'none'}"
            raise LauncherError(f"train.step: {said}; give the same ones in each step (nan where there is no value)")
        return names

    def _scalars(self, stepped: Stepped) -> Iterator[torch.Tensor]:
        """This rank's parts of their means, times the world size, on the device."""
        for name in self._names or ():
            mean = self._loss.new_full((), 0.0 if self._is_counted else float("nan"))
            for logged, (_, factor) in zip(stepped.scalars, stepped.parts, strict=True):
                if factor:  # a stand-in's number is no part of it
                    mean = mean + _on(mean.device, logged[name]) * factor
            yield mean

    def _advance(self) -> list[dict[str, Any]]:
        ready = self._read()
        self._reduce()
        return ready

    def _reduce(self) -> None:
        """Lines whose numbers are in host memory by now are added over the ranks."""
        while self._copied:
            line, numbers, weight, mark = self._copied.popleft()
            if mark is not None:
                mark.synchronize()  # recorded a line ago: there is nothing left to wait for
            # a mean over nothing is not a number
            means = torch.cat([numbers[:1] / (weight or float("nan")), numbers[2:]]) / self._coordinator.world_size
            self._reduced.append((line, numbers, self._coordinator.sum(means)))

    def _read(self) -> list[dict[str, Any]]:
        lines = []
        while self._reduced:
            line, numbers, pending = self._reduced.popleft()
            line["loss"], *scalars = pending.result().tolist()
            line.update(zip(self._names or (), scalars, strict=True))
            if "grad_norm" in line:
                line["grad_norm"] = float(numbers[1])
            lines.append(line)
        return lines

    def flush(self) -> list[dict[str, Any]]:
        """All lines begun, waited for."""
        ready = self._read()
        self._reduce()
        return ready + self._read()

    def restart_clock(self) -> None:
        """What happened since (an evaluation, a save) is not training time."""
        self._since = time.perf_counter()


def _on(device: torch.device, value: Any) -> torch.Tensor:
    """A number on a device, in double precision; one that is there already is not waited for."""
    if isinstance(value, torch.Tensor) and value.device == device:
        return value.double().reshape(())
    return torch.full((), float(value), dtype=torch.float64, device=device)  # copying would make a GPU wait


def seed_step(seed: int, step: int, rank: int, is_gpu: bool) -> None:
    """Seeds torch's generators for one step: randomness is arithmetic, never stored.

    `default_generator.manual_seed` costs 1.5 µs, `torch.manual_seed` 247.
    """
    value = mix(seed, step, rank) & 0x7FFFFFFFFFFFFFFF
    torch.default_generator.manual_seed(value)
    if is_gpu:
        torch.cuda.manual_seed(value)


# ---------------------------------------------------------------------- the loop


def due(step: int, every: int | None) -> bool:
    """Whether something that happens every so many steps happens after this one."""
    return every is not None and step % every == 0


@dataclass(frozen=True)
class Periods:
    """When what surrounds a step is due: a number of steps, or seconds by rank 0's clock, each None where unused."""

    track_steps: int
    evaluate_steps: int | None
    evaluate_seconds: float | None
    save_steps: int | None
    save_seconds: float | None


class Clocks:
    """What is due by the clock; any rank's wish becomes the act of all."""

    def __init__(self, horizon: Horizon, periods: Periods, spent_seconds: float = 0.0):
        self._periods = periods
        now = time.monotonic()
        self._end = None if horizon.seconds is None else now + horizon.seconds - spent_seconds
        self._evaluated = self._saved = now

    def wishes(self, stop: bool) -> Requests:
        """What this rank wants to happen after this step."""
        periods = self._periods
        if self._end is None and periods.evaluate_seconds is None and periods.save_seconds is None:
            return Requests(stop)
        now = time.monotonic()
        return Requests(
            stop,
            periods.save_seconds is not None and now - self._saved >= periods.save_seconds,
            periods.evaluate_seconds is not None and now - self._evaluated >= periods.evaluate_seconds,
            self._end is not None and now >= self._end,
        )

    def evaluated(self) -> None:
        """An evaluation has just been made."""
        self._evaluated = time.monotonic()

    def saved(self) -> None:
        """A checkpoint has just been made."""
        self._saved = time.monotonic()


def train(trainable: Trainable, data: Data, horizon: Horizon, session: Session) -> tuple[str, int]:
    """Trains to the horizon, or until it is told to stop.

    Args:
        trainable: What a step changes.
        data: This rank's batches.
        horizon: How long.
        session: Where to start, and what to do when something is due.

    Returns:
        `finished` or `preempted`, and the number of steps completed.
    """
    device, coordinator = trainable.device, trainable.device.coordinator
    rank, is_gpu = device.world.rank, device.is_gpu
    evaluation, saving, periods, done = session.evaluation, session.saving, session.periods, session.start
    meter, agreement = Meter(trainable, coordinator), Agreement(coordinator)
    clocks = Clocks(horizon, periods, session.spent_seconds)
    in_host = counted_steps(data, trainable.objective, coordinator, done, horizon.total_steps)
    steps = session.profiled(on_device(in_host, device.torch_device), done)
    settle = partial(_settle, meter, trainable, session.tracking, horizon)
    trainable.model.wrapped.train()
    state, rate = "finished", trainable.schedule.rate
    if _evaluation_is_owed(evaluation, periods, done):
        if not evaluation.run(done, horizon.epoch(done)):
            return "preempted", done
        if evaluation.improved:
            saving.save(done)
    for step, waited in timed(steps) if evaluation.goes_on else ():
        seed_step(session.seed, done, rank, is_gpu)
        rate = trainable.schedule.rate
        stepped = train_step(trainable, step, horizon.at(done))
        done += 1
        progress.reached(done)
        trainable.schedule.advance(done)
        meter.add(stepped, step, waited)
        faults.point("step", done, session.folder)
        saving.check()
        if due(done, periods.track_steps):
            _track(meter.cut(done, horizon.epoch(done), rate), trainable.guard, session.tracking, done)
        agreed = agreement.after(done, clocks.wishes(session.stopping()))
        if due(done, periods.evaluate_steps) or agreed.evaluate:
            settle(done, rate)
            if not evaluation.run(done, horizon.epoch(done)):
                state = "preempted"
                break
            clocks.evaluated()
            if evaluation.improved:
                saving.save(done)
            meter.restart_clock()
        if due(done, periods.save_steps) or agreed.save:
            settle(done, rate)
            saving.save(done)
            clocks.saved()
            meter.restart_clock()
        if agreed.over or not evaluation.goes_on:
            break
        if agreed.stop:
            state = "preempted"
            break
    if not evaluation.goes_on:
        session.tracking.message(f"step {done}: stopped early: {evaluation.judge.in_words}")
    steps.close()
    agreement.close()
    settle(done, rate)
    saving.save(done)
    if state == "finished" and evaluation.last_step != done and not evaluation.run(done, horizon.epoch(done)):
        state = "preempted"
    return state, done


def _evaluation_is_owed(evaluation: Evaluation, periods: Periods, done: int) -> bool:
    """Before the first step where the recipe says so; after a resume, the one that the stop came before."""
    if evaluation.last_step == done:
        return False
    return evaluation.section.first if done == 0 else evaluation.is_owed or due(done, periods.evaluate_steps)


def timed(steps: Iterator[Step]) -> Iterator[tuple[Step, float]]:
    """Each step with the seconds that it was waited for."""
    while True:
        before = time.perf_counter()
        step = next(steps, None)
        if step is None:
            return
        yield step, time.perf_counter() - before


def warm_up(trainable: Trainable, data: Data) -> None:
    """One forward and backward whose result is thrown away; buffers are put back."""
    buffers = {name: buffer.clone() for name, buffer in trainable.model.bare.named_buffers()}
    steps = counted_steps(data, trainable.objective, trainable.device.coordinator, 0, 1)
    step = next(on_device(steps, trainable.device.torch_device))
    value, factor, _ = forward(trainable, step.batches[-1], step.scales[-1], At())
    backward(trainable, value, factor)
    trainable.direct.clear_gradients()
    with torch.no_grad():
        for name, buffer in trainable.model.bare.named_buffers():
            buffer.copy_(buffers[name])


def _track(lines: Sequence[dict[str, Any]], guard: Guard, tracking: Tracking, step: int) -> None:
    for line in lines:
        tracking.log(line)
    if skipped := guard.news():
        tracking.warn(f"step {step}: {skipped}")
    tracking.progress(step)


def _settle(meter: Meter, trainable: Trainable, tracking: Tracking, horizon: Horizon, step: int, rate: float) -> None:
    """Before anything is kept: no bad step is behind us, and all lines are written."""
    trainable.guard.check()
    _track(meter.cut(step, horizon.epoch(step), rate) + meter.flush(), trainable.guard, tracking, step)
