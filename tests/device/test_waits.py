"""What a step, a line and an evaluation make the host wait for on a GPU: counted on a pretend one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from places import RECIPES, ROOT, TINY
from pretend import DEVICE, Backend, Operations, pretended, state_on_it, steps_of
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from worlds import in_world

from launcher.checkpoints.compare import apart
from launcher.data.loaders import MicroBatch
from launcher.device import kind
from launcher.device.agreement import Agreement, Requests
from launcher.device.kind import kind_of
from launcher.evaluation.evaluate import evaluate
from launcher.evaluation.metrics import Metric, OverSet
from launcher.evaluation.modes import evaluating
from launcher.evaluation.predictions import Predictions
from launcher.objective.reading import Reading
from launcher.training import nonfinite
from launcher.training.meter import Meter
from launcher.training.parting import Parting
from launcher.training.rank_states import _outline

STEPS = 4  # that are looked at, with one line of metrics among them
ADAMW = "optimizer={_target_: AdamW, lr: 0.1}"
MOMENTUM = "optimizer={_target_: SGD, lr: 0.1, momentum: 0.9}"
SCALED = "device.precision=fp16"
GPT = ("define.context=8", "model.layers=1", "model.heads=2", "model.width=16")
TURNS = (
    "model={_target_: ways.py:Two}",
    "optimizer={critic: {_target_: Adam, lr: 0.1}, generator: {_target_: SGD, lr: 0.1}}",
    "train.step={critic: ways.py:critic, generator: {_ref_: ways.py:generator, _every_: 2}}",
    "loss=model",
)
TABLE: Mapping[str, tuple[float, tuple[str, ...]]] = {  # waits of a step, and what the recipe says
    "plain": (0, ()),
    "clipped": (0, ("train.clip_grad_norm=1.0",)),
    "averaged": (0, ("train.ema=0.9",)),
    "accumulated": (0, ("data.micro_batch_size=4",)),
    "dropout": (0, ("model.dropout=0.2",)),
    "momentum": (0, (MOMENTUM,)),
    "skipping": (0, (ADAMW, "train.non_finite=skip")),
    "skipping, averaged": (1, (ADAMW, "train.non_finite=skip", "train.ema=0.9")),  # it must know at once
    "skipping, momentum": (1, (MOMENTUM, "train.non_finite=skip")),  # whose kernel cannot skip by itself
    "fp16": (0, (ADAMW, SCALED)),
    "fp16, clipped": (0, (ADAMW, SCALED, "train.clip_grad_norm=1.0")),
    "fp16, averaged": (1, (ADAMW, SCALED, "train.ema=0.9")),
    "fp16, momentum": (1, (MOMENTUM, SCALED)),  # the scaler's own
    "bf16 parameters": (0, ("model.half=true",)),
    "mean of the last weights": (0, ("train.swa={start: 1 steps, every: 1 steps}",)),
    "two losses": (0, ("loss={a: {_target_: CrossEntropyLoss}, b: {_target_: CrossEntropyLoss, _weight_: 2}}",)),
    "text_gpt": (0, GPT),
    "in turns": (0, TURNS),
    "by closure": (0, ("optimizer={_target_: ways.py:Sam, _closure_: true}",)),
}
RECIPES_OF = {
    "text_gpt": ROOT / "recipes" / "text_gpt.yaml",
    "in turns": RECIPES / "ways.yaml",
    "by closure": RECIPES / "ways.yaml",
}


class HalfNet(nn.Module):
    """A model whose parameters are bfloat16, as checkpoints of language models are."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.layer = nn.Linear(inputs, outputs, dtype=torch.bfloat16)

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.layer(points.bfloat16()).float()
        return scores


def as_cuda(gradients: Any, found: Any, one: Any) -> None:
    """The kernel that looks for infinities, as CUDA has it."""
    if any(gradient.dtype is torch.bfloat16 for gradient in gradients):
        raise NotImplementedError("\"_amp_foreach_non_finite_check_and_unscale_cuda\" not implemented for 'BFloat16'")
    made(gradients, found, one)


made = nonfinite._raise_flag


def waits_of(name: str, backend: Backend) -> tuple[float, int, int]:
    """Waits of an average step, events that were waited for, and operations of one."""
    _, overrides = TABLE[name]
    own = [word for word in overrides if word != "model.half=true"]
    if own != list(overrides):
        own.append(f"model={{_target_: {__file__}:HalfNet, inputs: 6, outputs: 3}}")
    scaler = torch.amp.GradScaler(DEVICE.type) if SCALED in overrides else None
    state = state_on_it(*own, scaler=scaler, recipe=RECIPES_OF.get(name, TINY))
    meter, looked = Meter(state), Operations()
    for number, step in enumerate(steps_of(state, 2 + STEPS, backend)):
        if number == 2:
            looked.waits.clear()
            looked.launches.clear()
            backend.log.clear()
        with looked:
            meter.add(state.take_step(state, step, state.length.at(number)), step, 0.0)
            if number % 3 == 0:
                meter.cut(number + 1, 0.1, {"lr": 0.1})
    return sum(looked.waits.values()) / STEPS, backend.log.count("event"), sum(looked.launches.values()) // STEPS


def everything() -> dict[str, Any]:
    """All that is looked at, in one process: torch is another one afterwards."""
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    nonfinite._raise_flag = as_cuda
    with pretended() as backend:
        return {
            **{name: waits_of(name, backend) for name in TABLE},
            **{
                look.__name__: look(backend)
                for look in (where_weights_are, evaluated, transformed, compared, agreed, narrow)
            },
        }


@pytest.fixture(scope="module")
def counted() -> dict[str, Any]:
    (found,) = in_world(1, everything)
    return dict(found)


@pytest.mark.parametrize("name", TABLE)
def test_a_step_makes_the_host_wait_for_nothing_that_was_not_asked_for(name: str, counted: Any) -> None:
    waits, events, operations = counted[name]
    assert waits == TABLE[name][0]
    assert events == 1  # that behind the copy of the line before
    assert operations > 0  # it did run there


def where_weights_are(_: Backend) -> str:
    reading = Reading("weights", weights=torch.ones(3, device=DEVICE))
    assert reading.weights is not None
    return reading.weights.device.type


def test_a_loss_s_class_weights_are_counted_in_host_memory(counted: Any) -> None:
    assert counted["where_weights_are"] == "cpu"


# ---------------------------------------------------------------------- evaluations


def evaluated(backend: Backend) -> tuple[dict[str, int], list[str]]:
    """Waits of an evaluation of eight batches with a metric of one's own and predictions, and what the device noted."""
    state = state_on_it()
    metric = Metric("own", OverSet(lambda outputs, targets: 0.0, parts=2))
    predictions, looked = Predictions(state.objective), Operations()
    batches = [batch for step in steps_of(state, 9, backend) for batch in step.batches]
    fake = [
        MicroBatch([backend.fake(torch.zeros(8, 6)), backend.fake(torch.zeros(8, dtype=torch.int64))], 8, 8 * number)
        for number, _ in enumerate(batches)
    ]
    state.objective.read("loss", Reading("samples"))  # numbers that could be counted there are none
    backend.log.clear()
    with evaluating(state.model.bare, state.objective), looked:
        evaluate(state.model.bare, fake, state.objective, [metric], DEVICE, seen=predictions.see)
    return dict(+looked.waits), list(backend.log)


def doubled(batch: Any) -> Any:
    return [batch[0] * 2, batch[1]]


def transformed(backend: Backend) -> dict[str, int]:
    """Waits of an evaluation whose batches are changed on the device, but for what the loss counts."""
    state, looked = state_on_it(), Operations()
    parts = [torch.zeros(8, 6), torch.zeros(8, dtype=torch.int64)]
    batches = [MicroBatch([*map(backend.fake, parts)], 8, 8 * number) for number in range(4)]
    state.objective.read("loss", Reading("positive"))
    with evaluating(state.model.bare, state.objective), looked:
        evaluate(
            state.model.bare, batches, state.objective, [], DEVICE, transform=lambda batch: [batch[0] * 2, batch[1]]
        )
    return dict(+looked.waits)


def test_what_a_change_on_the_device_leaves_alone_is_counted_in_host_memory(counted: Any) -> None:
    assert counted["transformed"] == {}


def test_an_evaluation_collects_on_the_device_and_copies_ahead(counted: Any) -> None:
    waits, log = counted["evaluated"]
    assert waits == {}
    assert log.count("event") == 1  # the first batch, on which a metric of one's own is tried
    assert log.count("seed") == 1  # whoever draws in an evaluation draws the same each time,
    assert log[-1] == "state back"  # and training goes on where it was


# ---------------------------------------------------------------------- ranks that part, wishes, a generator


def compared(backend: Backend) -> tuple[dict[str, int], int]:
    weights = [torch.zeros(4, device=DEVICE)]
    state, looked = state_on_it(), Operations()
    parting = Parting(weights, state.device.coordinator, warn=lambda line: None)
    backend.log.clear()
    with looked:
        for step in range(100, 111):
            parting.after(step)
    return dict(+looked.waits), backend.log.count("event")


def test_comparing_the_ranks_weights_makes_no_step_wait(counted: Any) -> None:
    assert counted["compared"] == ({}, 1)


class Narrow(TorchDispatchMode):
    """Refuses float64 on the device, as Apple's GPUs do."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch left its types out

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ == "_to_copy" and args[0].device.type == "cpu":
            return made  # somebody's data
        for tensor in made if isinstance(made, list | tuple) else [made]:
            if isinstance(tensor, torch.Tensor) and tensor.device == DEVICE and tensor.dtype is torch.float64:
                raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return made


def narrow(backend: Backend) -> str:
    """A run's parts on a device without float64: steps, also by closure and averaged, lines, comparisons, counts."""
    kind._has_float64.cache_clear()
    with Narrow(), Operations():
        assert kind_of(DEVICE).wide is torch.float32
        for said in ((), ("optimizer={_target_: LBFGS, lr: 0.1, _closure_: true}",), ("train.ema=0.9",)):
            state = state_on_it(*said, f"model={{_target_: {__file__}:HalfNet, inputs: 6, outputs: 3}}")
            meter = Meter(state)
            for step in steps_of(state, 2, backend):
                meter.add(state.take_step(state, step, state.length.at(0)), step, 0.0)
                meter.cut(1, 0.1, {"lr": 0.1})
            meter.flush()
        weights = [torch.zeros(4, device=DEVICE, dtype=torch.float32)]
        Parting(weights, state.device.coordinator, warn=lambda line: None).compare(100)
        apart(weights, weights)  # outputs, after a save
        _outline({"moment": weights[0]})  # what an optimizer keeps
        for counts in ("mask", "total"):
            Reading(counts, where=()).count(weights[0], 4)
    kind._has_float64.cache_clear()
    return str(kind_of(DEVICE).wide)


def test_float64_is_used_where_the_device_has_it(counted: Any) -> None:
    assert counted["narrow"] == "torch.float64"


def agreed(backend: Backend) -> int:
    agreement = Agreement(state_on_it().device.coordinator, kind_of(DEVICE))
    backend.log.clear()
    for step in range(1, 9):
        agreement.after(step, Requests())
    return backend.log.count("event")


def test_the_host_waits_for_steps_that_are_a_period_behind(counted: Any) -> None:
    assert 1 <= counted["agreed"] <= 3  # after steps 2, 4 and 8: a period is at most twice the one before


LOOKS = (where_weights_are, evaluated, transformed, compared, agreed, narrow)
