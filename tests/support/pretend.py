"""A pretend accelerator: what torch carries for devices of one's own, with tensors that have shapes and no numbers.

A run's own code goes through it as on a GPU; what a host would have to wait for is counted. Nothing is computed, and
torch is another one afterwards: in a process of its own (`in_world(1, …)`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from places import TINY
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from launcher.data.parts import changed
from launcher.data.transfer import on_device
from launcher.device.coordination import Coordinator
from launcher.device.device import Device
from launcher.recipe.build import Builder
from launcher.recipe.load import load_recipe
from launcher.training.build import build_run_model, build_run_state, open_run_data
from launcher.training.state import TrainState
from launcher.training.steps import StepBatch, counted_steps
from launcher.world.world import World

DEVICE = torch.device("privateuseone:0")
_READS = ("nonzero", "masked_select", "equal", "is_nonzero")
_VIEWS = ("view", "t", "transpose", "permute", "expand", "detach", "select", "slice", "unsqueeze", "squeeze", "alias")


class Backend:
    """What `torch.cuda` is to CUDA, as far as anybody asks; it notes what it is asked."""

    fake: Callable[[torch.Tensor], torch.Tensor]

    def __init__(self) -> None:
        self.log: list[str] = []
        self.Event = self.Stream = lambda *_, **__: Stream(self.log)

    def is_available(self) -> bool:
        return True

    is_initialized = is_available

    def _is_in_bad_fork(self) -> bool:
        return False

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def current_stream(self, device: Any) -> Stream:
        return Stream(self.log)

    def stream(self, stream: Any) -> Any:
        return nullcontext()

    def synchronize(self) -> None:
        self.log.append("synchronize")

    def manual_seed(self, seed: int) -> None:
        self.log.append("seed")

    manual_seed_all = manual_seed

    def get_rng_state(self, device: Any) -> str:
        return "state"

    def set_rng_state(self, state: str, device: Any) -> None:
        self.log.append(f"{state} back")

    def max_memory_allocated(self, device: Any) -> int:
        return 4_711


class Stream:
    """A stream and an event: everything is done at once, and the log says who waited."""

    def __init__(self, log: list[str]):
        self.log = log

    def record(self) -> None:
        pass

    def record_event(self, event: Any = None) -> Stream:
        return self

    def wait_stream(self, stream: Stream) -> None:
        pass

    wait_event = wait_stream

    def synchronize(self) -> None:
        self.log.append("event")

    def elapsed_time(self, event: Stream) -> float:
        return 2.0


class Operations(TorchDispatchMode):
    """Counts a step's operations on the device, and what makes the host wait; what is read then is zero."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch left its types out
        self.waits: Counter[str] = Counter()
        self.launches: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        tensors = [part for part in (*args, *kwargs.values()) if isinstance(part, torch.Tensor)]
        lists = [part[0] for part in args if isinstance(part, list) and part and isinstance(part[0], torch.Tensor)]
        on_device = any(tensor.device.type == DEVICE.type for tensor in (*tensors, *lists))
        if name == "_local_scalar_dense":
            self.waits["read"] += on_device
            return 0.0 if args[0].is_floating_point() else 0
        if on_device and name in _READS:
            self.waits[name] += 1
        if on_device and name in ("_to_copy", "copy_", "_copy_from") and not self._is_late(name, args, kwargs):
            self.waits["copy to the host"] += 1
        if on_device and name not in _VIEWS:
            self.launches[name] += 1
        return func(*args, **kwargs)

    @staticmethod
    def _is_late(name: str, args: Any, kwargs: Any) -> bool:
        """Whether a copy goes to the device, stays on it, or is not waited for."""
        if name == "_to_copy":
            source, target = args[0].device, torch.device(kwargs.get("device") or args[0].device)
        else:
            target, source = args[0].device, args[1].device
        goes_home = source.type == DEVICE.type and target.type == "cpu"
        return not goes_home or bool(kwargs.get("non_blocking")) or (name == "copy_" and True in args[2:])


@contextmanager
def pretended() -> Iterator[Backend]:
    """Makes tensors fake, and lets there be such a device."""
    backend = Backend()
    _setup_privateuseone_for_python_backend("pretend", backend_module=backend)
    mode, moved = FakeTensorMode(allow_non_fake_inputs=True), nn.Module.to

    def to(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        if DEVICE not in args:
            return moved(module, *args, **kwargs)
        with mode:
            return _made_fake(module)

    nn.Module.to = to  # type: ignore[assignment, method-assign]  # torch exchanges no real tensor for a fake one
    backend.fake = mode.from_tensor
    with mode:
        yield backend


def _made_fake(module: nn.Module) -> nn.Module:
    """The module with parameters and buffers on the device; those that are one stay one."""
    made: dict[int, torch.Tensor] = {}
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None and id(weight) not in made:
                fake = torch.empty(weight.shape, dtype=weight.dtype, device=DEVICE)
                made[id(weight)] = nn.Parameter(fake, requires_grad=weight.requires_grad)
            part._parameters[name] = made[id(weight)] if weight is not None else None  # type: ignore[assignment]
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=DEVICE)
    return module


def state_on_it(*overrides: str, recipe: Any = TINY, scaler: Any = None) -> TrainState:
    """A run's state on the device, built by the run's own code."""
    read = load_recipe(recipe, ["launch.threads=1", "data.workers=0", *overrides])
    builder, world = Builder(read), World()
    accelerator: Any = SimpleNamespace(
        device=DEVICE,
        scaler=scaler,
        mixed_precision=read.device.precision,
        native_amp=False,
        prepare_model=lambda model, **_: model,
    )
    device = Device(accelerator, world, Coordinator(0, 1))
    with unset_fake_temporarily():
        data, model = open_run_data(read, builder, world), build_run_model(read, builder, device)
    return build_run_state(read, builder, model, device, data)


def steps_of(state: TrainState, number: int, backend: Backend) -> Generator[StepBatch, None, None]:
    """The first steps of a run, with numbers, in host memory; they arrive on the device as those of training do."""
    with unset_fake_temporarily():
        read = list(counted_steps(state, 0, number))

    def again() -> Generator[StepBatch, None, None]:
        for step in read:
            for batch in step.batches:
                batch.data = changed(batch.data, backend.fake)
            yield step

    return on_device(again(), DEVICE)
