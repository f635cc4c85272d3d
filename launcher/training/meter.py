"""5: training. The numbers of the steps between two lines of metrics.jsonl."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from launcher.device.coordination import Pending
from launcher.device.kind import OnItsWay
from launcher.errors import LauncherError
from launcher.training.state import TrainState
from launcher.training.step import StepResult
from launcher.training.steps import StepBatch


class Meter:
    """Gathers the numbers of the steps between two lines of metrics.jsonl, without making a GPU wait.

    The loss is the count-weighted mean over the steps and ranks since the line before; a step function's scalars are
    the mean over the ranks and micro-batches of the last step, weighted likewise. What a line needs is copied from
    the device when the line is due, and read when the next one is.
    """

    def __init__(self, state: TrainState):
        self._state = state
        self._coordinator = state.device.coordinator
        device = state.device.torch_device
        self._kind = state.device.kind
        self._loss = torch.zeros((), dtype=self._kind.wide, device=device)
        self._weight = 0.0
        self._samples = 0
        self._waited = 0.0
        self._since = time.perf_counter()
        self._result: StepResult | None = None
        self._is_counted = True  # whether anything counts in that step
        self._names: list[str] | None = None if state.objective.logs_scalars else []
        self._copied: deque[tuple[dict[str, Any], OnItsWay, float]] = deque()
        self._reduced: deque[tuple[dict[str, Any], float, Pending]] = deque()

    def add(self, result: StepResult, step: StepBatch, waited: float) -> None:
        """Takes one step in; `waited` seconds of it were spent waiting for data."""
        for loss, factor in result.losses:
            self._loss.add_(loss, alpha=factor * step.weight)
        self._weight += step.weight
        self._samples += step.samples
        self._waited += waited
        self._result, self._is_counted = result, step.weight > 0

    def cut(self, step: int, epoch: float, rates: Mapping[str, float]) -> list[dict[str, Any]]:
        """Starts the line of these steps, with their learning rates; returns the lines that are ready by now."""
        if self._result is None:
            return []
        now = time.perf_counter()
        seconds = max(now - self._since, 1e-9)
        line: dict[str, Any] = {
            "step": step,
            "epoch": round(epoch, 6),
            "split": "train",
            "loss": None,
            **rates,
        }
        if self._result.grad_norm is not None:
            line["grad_norm"] = None
        line["samples_per_second"] = round(self._samples / seconds, 2)
        line["data_wait"] = round(self._waited / seconds, 4)
        line["seconds"] = round(seconds, 4)
        line.update(dict.fromkeys(self._scalar_names(self._result)))
        norm = self._result.grad_norm
        norm = (norm if norm is not None else self._loss).to(self._kind.wide)
        counts = [count.to(self._kind.wide) for count in self._state.update.counts]
        numbers = torch.stack([self._loss, norm, *self._scalars(self._result), *counts])
        if (peak := self._kind.peak_memory()) is not None:
            line["gpu_memory"] = peak
        ready = self._advance()
        self._copied.append((line, self._kind.to_host(numbers), self._weight))
        self._loss.zero_()
        self._weight, self._samples, self._waited, self._since, self._result = 0.0, 0, 0.0, now, None
        if self._kind.is_host:
            self._reduce()
            if self._reduced[-1][-1].work is None:  # one process, or memory that all share: nothing to wait for
                ready += self._read()
        return ready

    def _scalar_names(self, result: StepResult) -> Sequence[str]:
        """What the step function logs: the same in every step, so that the ranks can add it up without asking.

        Raises:
            LauncherError: It is not.
        """
        if self._names is None:
            self._names = self._coordinator.from_first(lambda: list(result.scalars[0]))
        names: list[str] = self._names
        for strange in (scalars for scalars in result.scalars if scalars.keys() != set(names)):
            mismatch = (
                f"gave {', '.join(strange) or 'no scalars'} to log, and rank 0 first {', '.join(names) or 'none'}"
            )
            raise LauncherError(
                f"train.step: {mismatch}; give the same ones in each step (nan where there is no value)"
            )
        return names

    def _scalars(self, result: StepResult) -> Iterator[torch.Tensor]:
        """This rank's parts of their means, times the world size, on the device."""
        for name in self._names or ():
            mean = self._loss.new_full((), 0.0 if self._is_counted else float("nan"))
            for logged, (_, factor) in zip(result.scalars, result.losses, strict=True):
                if factor:  # a stand-in's number is not part of it
                    mean = mean + _on(mean, logged[name]) * factor
            yield mean

    def _advance(self) -> list[dict[str, Any]]:
        ready = self._read()
        self._reduce()
        return ready

    def _reduce(self) -> None:
        """Lines whose numbers are in host memory by now are added over the ranks."""
        while self._copied:
            line, copied, weight = self._copied.popleft()
            numbers = copied.here().double()  # begun a line ago: there is nothing left to wait for
            known = 2 + len(self._names or ())
            _, norm, *rest = numbers.tolist()
            if counts := rest[known - 2 :]:
                self._state.update.take(counts, line["step"] - 1)
            # a mean over nothing is not a number
            means = torch.cat([numbers[:1] / (weight or float("nan")), numbers[2:known]])
            self._reduced.append((line, norm, self._coordinator.sum(means / self._coordinator.world_size)))

    def _read(self) -> list[dict[str, Any]]:
        lines = []
        while self._reduced:
            line, norm, pending = self._reduced.popleft()
            line["loss"], *scalars = pending.result().tolist()
            line.update(zip(self._names or (), scalars, strict=True))
            if "grad_norm" in line:
                line["grad_norm"] = norm
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


def _on(mean: torch.Tensor, value: Any) -> torch.Tensor:
    """A number where a mean is, in its precision; one that is there already is not waited for."""
    if isinstance(value, torch.Tensor) and value.device == mean.device:
        return value.to(mean.dtype).reshape(())
    return torch.full_like(mean, float(value))  # copying would make a GPU wait
