"""The kind of device: the one place that asks torch for a device's streams, events, generators, memory and name.

Written against `torch.accelerator` and the module that torch has for each kind, so that CUDA, ROCm, XPU and MPS are one
path; a CPU is a kind on which all of that is nothing.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from launcher.world.cleanup import afterwards

_FOR_ALL = 1  # cudaHostRegisterPortable: whichever of its contexts copies
KINDS = ("cuda", "xpu", "mps")  # that this program trains on; ROCm's GPUs call themselves cuda


class Mark(Protocol):
    """A place in what a device was told to do."""

    def synchronize(self) -> None:
        """Waits until the device has come there."""
        ...


def _nothing() -> None:
    """What puts back where nothing was kept."""


class _Passed:
    """The mark of a device that does at once what it is told."""

    def synchronize(self) -> None:
        """There is nothing to wait for."""


@dataclass(frozen=True)
class OnItsWay:
    """A tensor on its way to host memory.

    Attributes:
        tensor: Rubbish until the mark is passed.
        mark: Behind the copy.
    """

    tensor: torch.Tensor
    mark: Mark

    def here(self) -> torch.Tensor:
        """The tensor, waited for."""
        self.mark.synchronize()
        return self.tensor


class Kind:
    """What an accelerator can do, by the module that torch has for it.

    Args:
        device: One device.
        module: `torch.cuda`, `torch.xpu`, `torch.mps`; None is torch's own answer.
    """

    is_host = False

    def __init__(self, device: torch.device, module: Any = None):
        self.device = device
        self._module = _module_of(device) if module is None else module

    @property
    def name(self) -> str:
        """What the device calls itself."""
        named = getattr(self._module, "get_device_name", None)
        return str(named(self.device)) if named is not None else self.device.type.upper()

    @property
    def uuid(self) -> str:
        """What tells this device from all others; empty where nothing does."""
        properties = getattr(self._module, "get_device_properties", None)
        return str(getattr(properties(self.device), "uuid", "")) if properties is not None else ""

    @property
    def wide(self) -> torch.dtype:
        """What sums are kept in: float64 where the device has it."""
        return torch.float64 if _has_float64(self.device) else torch.float32

    # ------------------------------------------------------------------ time

    def mark(self) -> Mark:
        """A mark behind all that this process has told the device so far."""
        event: Mark = self._module.Event()
        event.record()  # type: ignore[attr-defined]  # an event
        return event

    def timer(self) -> Any:
        """An event behind all that was told so far, with the device's time; None where it has no clock."""
        event = self._module.Event(enable_timing=True)
        event.record()
        return event

    def synchronize(self) -> None:
        """Waits until the device has done all that it was told."""
        self._module.synchronize()

    def to_host(self, tensor: torch.Tensor) -> OnItsWay:
        """Begins to copy a tensor to host memory; nobody waits."""
        return OnItsWay(tensor.to("cpu", non_blocking=True), self.mark())

    def aside(self) -> Aside | None:
        """A stream beside the one that computes; None where the device has no other."""
        return Aside(self._module, self.device) if hasattr(self._module, "Stream") else None

    # ------------------------------------------------------------------ randomness

    def seed(self, value: int) -> None:
        """Seeds the device's generator."""
        self._module.manual_seed(value)

    def generator_kept(self) -> Callable[[], None]:
        """Keeps the state of the device's generator; gives what puts it back."""
        where = () if self.device.type == "mps" else (self.device,)  # which has one, and asks for no device
        state = self._module.get_rng_state(*where)
        return lambda: self._module.set_rng_state(state, *where)

    def generator_restored(self) -> AbstractContextManager[None]:
        """Puts the device's generator back where it was."""
        return afterwards(self.generator_kept())

    # ------------------------------------------------------------------ memory

    def peak_memory(self) -> int | None:
        """Bytes in use at most since the start of this process; None where nobody counts them."""
        peak = getattr(self._module, "max_memory_allocated", None)
        return int(peak(self.device)) if peak is not None else None

    def give_back(self) -> None:
        """Gives memory that nobody holds any more back to the device."""
        gc.collect()
        if (empty := getattr(self._module, "empty_cache", None)) is not None:
            empty()

    def pinned(self, num_bytes: int) -> torch.Tensor:
        """So many bytes of host memory to which the device copies at full speed; plain ones where there are no such."""
        runtime = self._module.cudart() if hasattr(self._module, "cudart") else None
        if hasattr(runtime, "cudaHostRegister"):
            return self._locked(runtime, np.empty(num_bytes, dtype=np.uint8))
        try:
            return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)
        except RuntimeError:  # the machine grants no more of it
            return torch.empty(num_bytes, dtype=torch.uint8)

    def _locked(self, runtime: Any, memory: NDArray[np.uint8]) -> torch.Tensor:
        """Memory page-locked as it is: torch would take the next power of two, and keep it for good."""
        if int(runtime.cudaHostRegister(memory.ctypes.data, memory.nbytes, _FOR_ALL)) == 0:
            # with the last tensor that lies in it
            weakref.finalize(memory, runtime.cudaHostUnregister, memory.ctypes.data).atexit = False
        else:
            with suppress(RuntimeError):  # torch would tell of it in the next kernel that somebody starts
                torch.zeros((), device=self.device)
        return torch.from_numpy(memory)


def _module_of(device: torch.device) -> Any:
    try:
        return torch.get_device_module(device)
    except RuntimeError:  # torch has none for it: no streams, no events
        return object()


class Host(Kind):
    """A CPU: it does at once what it is told, and its generator is everybody's."""

    is_host = True
    wide = torch.float64
    name = "CPU"
    uuid = ""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"), module=torch.cpu)

    def mark(self) -> Mark:
        """Passed already."""
        return _PASSED

    def timer(self) -> Any:
        """None: the host's clock says it."""
        return None

    def synchronize(self) -> None:
        """There is nothing to wait for."""

    def aside(self) -> None:
        """There is one stream."""

    def seed(self, value: int) -> None:
        """It has no generator of its own."""

    def generator_kept(self) -> Callable[[], None]:
        """It has no generator of its own."""
        return _nothing

    def generator_restored(self) -> AbstractContextManager[None]:
        """It has no generator of its own."""
        return nullcontext()

    def peak_memory(self) -> None:
        """The system knows."""

    def pinned(self, num_bytes: int) -> torch.Tensor:
        """Plain memory: the device reads it as it is."""
        return torch.empty(num_bytes, dtype=torch.uint8)


class Aside:
    """A stream beside the one that computes.

    What is begun on it waits for all that was told before, and for nothing that is told later.
    """

    def __init__(self, module: Any, device: torch.device):
        self._module, self._device = module, device
        self._stream = module.Stream(device)

    @contextmanager
    def after_computing(self) -> Iterator[None]:
        """What is begun inside stands on this stream, behind what was told the computing one so far."""
        self._stream.wait_stream(self._module.current_stream(self._device))
        with self._module.stream(self._stream):
            yield

    def mark(self) -> Any:
        """A mark behind all that stands on this stream."""
        return self._stream.record_event()

    def timer(self) -> Any:
        """The same, with the device's time."""
        return self._stream.record_event(self._module.Event(enable_timing=True))

    def before_computing(self, mark: Any) -> None:
        """What the computing stream is told from now on waits for a mark of this one; the host does not."""
        self._module.current_stream(self._device).wait_event(mark)


_PASSED = _Passed()
_HOST = Host()


def kind_of(device: torch.device) -> Kind:
    """What a device can do."""
    return _HOST if device.type == "cpu" else _accelerator(device)


@cache
def _accelerator(device: torch.device) -> Kind:
    return Kind(device)


@cache
def _has_float64(device: torch.device) -> bool:
    """Tried, not inferred: Apple's GPUs have none, and some of Intel's."""
    try:
        torch.zeros((), dtype=torch.float64, device=device).add_(1.0)
    except (RuntimeError, TypeError):
        return False
    return True


def found() -> torch.device | None:
    """The accelerator that this torch can use on this machine; no context is opened on it."""
    device = torch.accelerator.current_accelerator(check_available=True)
    return device if device is not None and device.type in KINDS else None


def count() -> int:
    """How many of them this process may use."""
    return torch.accelerator.device_count() if found() is not None else 0


def pins() -> bool:
    """Whether copies to the accelerator are sooner, and nobody waits for them, from page-locked memory."""
    device = found()
    return device is not None and device.type != "mps"  # whose memory is the host's


def in_use() -> Kind:
    """The accelerator that this process computes on by now; the CPU where it has not begun to."""
    device = torch.accelerator.current_accelerator()
    if device is None or device.type not in KINDS:
        return _HOST
    begun = getattr(torch.get_device_module(device), "is_initialized", lambda: True)
    return kind_of(torch.device(device.type, torch.accelerator.current_device_index())) if begun() else _HOST


def names_in_use() -> list[str]:
    """What the accelerators call themselves that this process may use; none where it has not begun to."""
    if (kind := in_use()).is_host:
        return []
    return [kind_of(torch.device(kind.device.type, number)).name for number in range(count())]


def make_current(device: torch.device) -> None:
    """Makes a device the one on which this process's streams and events are made."""
    if device.type != "cpu" and device.index is not None:
        torch.accelerator.set_device_index(device.index)
