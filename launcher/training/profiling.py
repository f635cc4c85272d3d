"""`train --profile A:B`: a trace of these steps by torch's profiler, and a table of where a step goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from launcher.training.step import PARTS, Parts
from launcher.training.steps import StepBatch

_LABELS = ("data wait", "forward", "backward", "optimizer")
_WITHIN = {"host to device": ("Memcpy HtoD",), "communication": ("gloo:", "nccl:", "ncclDevKernel")}


P = ParamSpec("P")
R = TypeVar("R")
Steps = Generator[StepBatch, None, None]


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
    """

    first: int
    stop: int
    trace: Path
    say: Callable[[str], None]
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
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
        self.parts = _labelled(PARTS)
        self._profiler = profile(activities=activities)
        self._profiler.__enter__()
        self._began = time.perf_counter()

    def _end(self, number: int) -> None:
        if self._profiler is None:
            return
        profiler, self._profiler = self._profiler, None
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds = time.perf_counter() - self._began
        profiler.__exit__(None, None, None)
        self.parts = PARTS
        for line in table(profiler.key_averages(), seconds, max(1, number - (self._from or 0))):
            self.say(line)
        with suppress(OSError):
            self.trace.parent.mkdir(exist_ok=True)
            profiler.export_chrome_trace(str(self.trace))
            self.say(f"the trace is in {self.trace}: open it in https://ui.perfetto.dev")


def _labelled(parts: Parts) -> Parts:
    """The parts of a step with their names for the profiler, and only while it looks: a name costs microseconds."""
    _, forward, backward, optimizer = _LABELS
    return Parts(
        _named(forward, parts.forward),
        _named(backward, parts.backward),
        _named(optimizer, parts.update),
    )


def _named(label: str, function: Callable[P, R]) -> Callable[P, R]:
    @wraps(function)
    def named(*args: P.args, **kwargs: P.kwargs) -> R:
        with record_function(label):
            return function(*args, **kwargs)

    return named


def table(averages: Any, seconds: float, count: int) -> Iterator[str]:
    """Where a step goes: milliseconds of the host and of the device, and the share of the whole.

    Args:
        averages: The profiler's `key_averages()`.
        seconds: What all of the steps took.
        count: How many they were.
    """
    whole = seconds / count * 1e3
    yield f"{'of a step':<16}{'host ms':>10}{'device ms':>11}{'share':>8}"
    told = 0.0
    for label in _LABELS:
        host, device = _milliseconds(averages, (label,), count)
        told += host
        yield f"{label:<16}{host:>10.3f}{device:>11.3f}{host / whole:>8.0%}"
    rest = max(0.0, whole - told)
    yield f"{'the rest':<16}{rest:>10.3f}{'':>11}{rest / whole:>8.0%}"
    yield f"{'a step':<16}{whole:>10.3f}"
    for label, keys in _WITHIN.items():
        host, device = _milliseconds(averages, keys, count)
        if host or device:
            yield f"{label:<16}{host:>10.3f}{device:>11.3f}  beside the others"


def _milliseconds(averages: Any, keys: tuple[str, ...], count: int) -> tuple[float, float]:
    events = [event for event in averages if str(event.key).startswith(keys)]
    host = sum(event.cpu_time_total for event in events)
    device = sum(event.device_time_total for event in events)
    return host / count / 1e3, device / count / 1e3
