"""`train --profile A:B`: a trace of these steps by torch's profiler, and a table of where a step goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]  # as its profiler's events have it
from torch.profiler import ProfilerActivity, profile, record_function

from launcher.device.kind import Kind, kind_of
from launcher.training.step import PARTS, Parts
from launcher.training.steps import StepBatch

_LABELS = ("data wait", "forward", "backward", "optimizer")
_WITHIN = {"host to device": ("Memcpy HtoD",), "communication": ("gloo:", "nccl", "rccl")}


P = ParamSpec("P")
R = TypeVar("R")
Steps = Generator[StepBatch, None, None]
Timers = list[tuple[str, Any, Any]]  # a label, and the events of the device before and behind it


class NoProfiling:
    """What a run has that nobody profiles: the same signature, and nothing is done.

    Attributes:
        parts: What a step is made of now.
    """

    parts: Parts = PARTS

    def over(self, steps: Steps, start: int) -> Steps:
        """The same steps."""
        return steps


@dataclass
class Profiling(NoProfiling):
    """Profiles some steps of a run.

    Attributes:
        first: The first of them, counted from 0 over the whole run.
        stop: The first one after them.
        trace: The file that the trace goes to, for chrome://tracing or ui.perfetto.dev.
        say: Gets the table, a line at a time.
        kind: The device of the steps.
    """

    first: int
    stop: int
    trace: Path
    say: Callable[[str], None]
    kind: Kind = field(default_factory=lambda: kind_of(torch.device("cpu")))
    _timers: Timers = field(default_factory=list)
    _profiler: Any = None
    _began: float = 0.0
    _from: int | None = None

    def over(self, steps: Steps, start: int) -> Steps:
        """The same steps; while it is their turn they are profiled.

        Args:
            steps: In the order of the run.
            start: The number of the first one.
        """
        number = start
        try:
            while True:
                if number == self.first or (number == start and self.first < start < self.stop):
                    self._begin(number)
                if number == self.stop:
                    self._end(number)
                with record_function(_LABELS[0]) if self._profiler is not None else nullcontext():
                    step = next(steps, None)
                if step is None:
                    return
                yield step
                number += 1
        finally:
            self._end(number)
            if self._from is None:
                asked = f"--profile {self.first}:{self.stop}"
                self.say(f"{asked}: nothing is profiled, this start made the steps from {start:,} to {number:,}")
            steps.close()

    def _begin(self, number: int) -> None:
        self._from = number
        own = None if self.kind.is_host else getattr(ProfilerActivity, self.kind.device.type.upper(), None)
        self.parts = _labelled(PARTS, self.kind, self._timers)
        self.kind.synchronize()  # what was launched before is not part of these steps
        self._profiler = profile(activities=[ProfilerActivity.CPU, *([own] if own is not None else [])])
        self._profiler.__enter__()
        self._began = time.perf_counter()

    def _end(self, number: int) -> None:
        if self._profiler is None:
            return
        profiler, self._profiler = self._profiler, None
        self.kind.synchronize()
        seconds = time.perf_counter() - self._began
        profiler.__exit__(None, None, None)
        self.parts = PARTS
        events = profiler.events() or []
        for line in table(events, device_times(self._timers), seconds, max(1, number - (self._from or 0))):
            self.say(line)
        with suppress(OSError):
            self.trace.parent.mkdir(exist_ok=True)
            profiler.export_chrome_trace(str(self.trace))
            self.say(f"the trace is in {self.trace}: open it in https://ui.perfetto.dev")


def _labelled(parts: Parts, kind: Kind, timers: Timers) -> Parts:
    """The parts of a step with their names for the profiler, and only while it looks: a name costs microseconds."""
    _, forward, backward, optimizer = _LABELS
    return Parts(
        _named(forward, parts.forward, kind, timers),
        _named(backward, parts.backward, kind, timers),
        _named(optimizer, parts.update, kind, timers),
    )


def _named(label: str, function: Callable[P, R], kind: Kind, timers: Timers) -> Callable[P, R]:
    """A part between two events of the device: its kernels are told to it by other threads too, under other names."""

    @wraps(function)
    def named(*args: P.args, **kwargs: P.kwargs) -> R:
        with record_function(label):
            before = kind.timer()
            result = function(*args, **kwargs)
            timers.append((label, before, kind.timer()))
            return result

    return named


def device_times(timers: Timers) -> Mapping[str, float]:
    """The device's milliseconds between the events of each label; nothing where the host is the device."""
    times: dict[str, float] = {}
    for label, before, after in timers:
        if before is not None:
            times[label] = times.get(label, 0.0) + before.elapsed_time(after)
    return times


def table(events: Iterable[Any], on_device: Mapping[str, float], seconds: float, count: int) -> Iterator[str]:
    """Where a step goes: milliseconds of the host and of the device, and the share of the whole.

    Args:
        events: The profiler's `events()`.
        on_device: The device's milliseconds in all steps, by label.
        seconds: What all of the steps took.
        count: How many they were.
    """
    whole, events = seconds / count * 1e3, list(events)
    yield f"{'of a step':<16}{'host ms':>10}{'device ms':>11}{'share':>8}"
    told = 0.0
    for label in _LABELS:
        host = _on_host(events, (label,), count)
        told += host
        device = f"{on_device[label] / count:.3f}" if label in on_device else ""
        yield f"{label:<16}{host:>10.3f}{device:>11}{host / whole:>8.0%}"
    rest = max(0.0, whole - told)
    yield f"{'the rest':<16}{rest:>10.3f}{'':>11}{rest / whole:>8.0%}"
    yield f"{'a step':<16}{whole:>10.3f}"
    for label, keys in _WITHIN.items():
        host, kernels = _on_host(events, keys, count), _in_kernels(events, keys, count)
        if host or kernels:
            yield f"{label:<16}{host:>10.3f}{kernels:>11.3f}  beside the others"


def _on_host(events: Iterable[Any], keys: tuple[str, ...], count: int) -> float:
    own = (event for event in events if event.device_type == DeviceType.CPU and str(event.name).startswith(keys))
    return float(sum(event.cpu_time_total for event in own)) / count / 1e3


def _in_kernels(events: Iterable[Any], keys: tuple[str, ...], count: int) -> float:
    """Of the device's own events: those of the host repeat what they have launched, and so do annotations of ranges."""
    own = (
        event
        for event in events
        if event.device_type != DeviceType.CPU
        and not getattr(event, "is_user_annotation", False)
        and str(event.name).startswith(keys)
    )
    return float(sum(event.device_time_total for event in own)) / count / 1e3
