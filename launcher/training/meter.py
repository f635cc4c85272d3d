"""5: training. The numbers of the steps between two lines of metrics.jsonl."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch

from launcher.device.coordination import Pending
from launcher.device.kind import OnItsWay
from launcher.errors import LauncherError
from launcher.objective.turns import TurnsObjective
from launcher.training.state import TrainState
from launcher.training.step import StepResult
from launcher.training.steps import StepBatch

_SAME = "give the same ones in each step (nan where there is no value)"


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
        self._began = self._kind.timer()
        self._result: StepResult | None = None
        self._is_counted = True  # whether anything counts in that step
        self._names: list[str] | None = None if state.objective.logs_scalars else []
        is_in_turns = isinstance(state.objective, TurnsObjective)
        self._gathered: dict[str, torch.Tensor] | None = {} if is_in_turns else None  # each turn's last, since a line
        self._agreed: dict[tuple[str, ...], list[str]] = {}
        self._copied: deque[_Copied] = deque()
        self._reduced: deque[tuple[dict[str, Any], float, Sequence[str], Pending]] = deque()

    def add(self, result: StepResult, step: StepBatch, waited: float) -> None:
        """Takes one step in; `waited` seconds of it were spent waiting for data."""
        for loss, factor in result.losses:
            self._loss.add_(loss, alpha=factor * step.weight)
        self._weight += step.weight
        self._samples += step.samples
        self._waited += waited
        self._result, self._is_counted = result, step.weight > 0
        if self._gathered is not None:
            names = list(result.scalars[0])
            self._gathered |= zip(names, self._scalars(result, self._alike(result, names)), strict=True)

    def cut(self, step: int, epoch: float, rates: Mapping[str, float]) -> list[dict[str, Any]]:
        """Starts the line of these steps, with their learning rates; returns the lines that are ready by now."""
        if self._result is None:
            return []
        now, ended = time.perf_counter(), self._kind.timer()
        line: dict[str, Any] = {
            "step": step,
            "epoch": round(epoch, 6),
            "split": "train",
            "loss": None,
            **rates,
        }
        if self._result.grad_norm is not None:
            line["grad_norm"] = None
        line.update(_pace(now - self._since, self._samples, self._waited))
        scalars = self._line_scalars(self._result)
        line.update(dict.fromkeys(scalars))
        norm = self._result.grad_norm
        norm = (norm if norm is not None else self._loss).to(self._kind.wide)
        counts = [count.to(self._kind.wide) for count in self._state.update.counts]
        numbers = torch.stack([self._loss, norm, *scalars.values(), *counts])
        if (peak := self._kind.peak_memory()) is not None:
            line["gpu_memory"] = peak
        ready = self._advance()
        pace = partial(_pace_of_device, self._began, ended, self._samples, self._waited) if ended is not None else dict
        self._copied.append(_Copied(line, self._kind.to_host(numbers), self._weight, pace, [*scalars]))
        self._loss.zero_()
        self._weight, self._samples, self._waited, self._since, self._result = 0.0, 0, 0.0, now, None
        self._began = ended
        if self._kind.is_host:
            self._reduce()
            if self._reduced[-1][-1].work is None:  # one process, or memory that all share: nothing to wait for
                ready += self._read()
        return ready

    def _line_scalars(self, result: StepResult) -> dict[str, torch.Tensor]:
        """This rank's parts of what a line says besides the loss, in rank 0's order.

        Of turns that are not taken in each step the last since the line before: nothing of one that was not taken.
        """
        if self._gathered is None:
            if self._names is None:
                self._names = self._coordinator.from_first(lambda: list(result.scalars[0]))
            names = self._alike(result, self._names)
            return dict(zip(names, self._scalars(result, names), strict=True))
        gathered, self._gathered = self._gathered, {}
        turns = tuple(name for name in gathered if name.startswith("loss/"))  # which steps they are, all know
        if turns not in self._agreed:
            self._agreed[turns] = self._coordinator.from_first(lambda: list(gathered))
        names = self._agreed[turns]
        if gathered.keys() != set(names):
            raise LauncherError(f"train.step: gave {_listed(gathered)} to log, and rank 0 {_listed(names)}; {_SAME}")
        return {name: gathered[name] for name in names}

    def _alike(self, result: StepResult, names: list[str]) -> list[str]:
        """The names of what is logged: the same of every micro-batch, so that the ranks can add it up without asking.

        Raises:
            LauncherError: They are not.
        """
        for strange in (scalars for scalars in result.scalars if scalars.keys() != set(names)):
            mismatch = f"gave {_listed(strange)} to log, and rank 0 first {', '.join(names) or 'none'}"
            raise LauncherError(f"train.step: {mismatch}; {_SAME}")
        return names

    def _scalars(self, result: StepResult, names: Sequence[str]) -> Iterator[torch.Tensor]:
        """This rank's parts of their means, times the world size, on the device."""
        for name in names:
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
            line, on_its_way, weight, pace, names = self._copied.popleft()
            numbers = on_its_way.here().double()  # begun a line ago: there is nothing left to wait for
            line.update(pace())
            known = 2 + len(names)
            _, norm, *rest = numbers.tolist()
            if counts := rest[known - 2 :]:
                self._state.update.take(counts, line["step"] - 1)
            # a mean over nothing is not a number
            means = torch.cat([numbers[:1] / (weight or float("nan")), numbers[2:known]])
            self._reduced.append((line, norm, names, self._coordinator.sum(means / self._coordinator.world_size)))

    def _read(self) -> list[dict[str, Any]]:
        lines = []
        while self._reduced:
            line, norm, names, pending = self._reduced.popleft()
            line["loss"], *scalars = pending.result().tolist()
            line.update(zip(names, scalars, strict=True))
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
        self._since, self._began = time.perf_counter(), self._kind.timer()


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "no scalars"


class _Copied(NamedTuple):
    """A line whose numbers are on their way, and how fast it was, known when they are there."""

    line: dict[str, Any]
    numbers: OnItsWay
    weight: float
    pace: Callable[[], Mapping[str, float]]
    names: Sequence[str]  # of what it says besides


def _pace(seconds: float, samples: int, waited: float) -> dict[str, float]:
    seconds = max(seconds, 1e-9)
    return {
        "samples_per_second": round(samples / seconds, 2),
        "data_wait": round(min(waited / seconds, 1.0), 4),
        "seconds": round(seconds, 4),
    }


def _pace_of_device(began: Any, ended: Any, samples: int, waited: float) -> dict[str, float]:
    """By its own clock: the host runs ahead of it at first, by seconds, and would tell of its own pace."""
    return _pace(began.elapsed_time(ended) / 1e3, samples, waited)


def _on(mean: torch.Tensor, value: Any) -> torch.Tensor:
    """A number where a mean is, in its precision; one that is there already is not waited for."""
    if isinstance(value, torch.Tensor) and value.device == mean.device:
        return value.to(mean.dtype).reshape(())
    return torch.full_like(mean, float(value))  # copying would make a GPU wait
