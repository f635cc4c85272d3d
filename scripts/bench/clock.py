"""The stopwatch of the benchmark: a model that notes when its training forward was called.

Every contestant trains the same module, so that the time from one call to another holds all that a loop does around a
step, whatever it is made of, and nothing is measured by a contestant itself.
"""

from __future__ import annotations

import json
import os
import resource
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn


class Clocked(nn.Module):
    """A module under the stopwatch.

    The variable `BENCH_CLOCK` says what to note, as JSON: `file`, `began` (when the process was started, unix
    seconds), `marks` (the two training calls to measure between) and `probes` (the calls before which the loss of a
    fixed batch is taken). Without it nothing is noted.

    Args:
        net: The module.
        loss: Its loss.
        probe: The fixed batch: inputs and targets.
    """

    def __init__(self, net: nn.Module, loss: nn.Module, probe: tuple[torch.Tensor, torch.Tensor]) -> None:
        super().__init__()
        self.net = net
        self._probed = (loss, probe)
        said = json.loads(os.environ.get("BENCH_CLOCK", "null"))
        is_first = os.environ.get("RANK", "0") == "0"
        self._asked: dict[str, Any] | None = said if is_first else None
        self._probes = set(said["probes"]) if self._asked else set()
        self._acts = {*self._probes, *said["marks"], 1} if self._asked else set()
        self._calls = 0
        self._found: dict[str, Any] = {"probes": {}, "marks": [], "cpu": []}

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """What the module gives; a few of the calls are noted."""
        if self.training:
            self._calls += 1
            if self._calls in self._acts:
                self._act(inputs[0].device)
        outputs: torch.Tensor = self.net(*inputs)
        return outputs

    def _act(self, device: torch.device) -> None:
        assert self._asked is not None
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        now = time.perf_counter()
        if self._calls == 1:
            self._found["first_step"] = time.time() - self._asked["began"]
        if self._calls in self._asked["marks"]:
            self._found["marks"].append(now)
            self._found["cpu"].append(time.process_time())
        if self._calls in self._probes:
            self._found["probes"][self._calls] = self._probe(device)
        if self._calls == max(self._acts):
            self._found["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            if device.type == "cuda":
                self._found["peak_gpu_bytes"] = torch.cuda.max_memory_allocated(device)
                self._idle = GpuIdle(device)
                self._acts.add(self._calls + GpuIdle.STEPS)
                self._asked["last"] = self._calls + GpuIdle.STEPS
            self._write()
        elif self._calls == self._asked.get("last"):
            self._found["gpu_idle"] = self._idle.share()
            self._write()

    def _write(self) -> None:
        assert self._asked is not None
        Path(self._asked["file"]).write_text(json.dumps(self._found), encoding="utf-8")

    @torch.no_grad()
    def _probe(self, device: torch.device) -> float:
        loss, (inputs, targets) = self._probed
        self.net.eval()
        outputs = self.net(inputs.to(device))
        self.net.train()
        return float(loss(outputs.float(), targets.to(device)))


class GpuIdle:
    """For which share of a few steps no kernel ran, by torch's profiler."""

    STEPS = 20

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
        self._profiler.start()
        self._began = time.perf_counter()

    def share(self) -> float:
        """Of the time since this was made."""
        torch.cuda.synchronize(self._device)
        seconds = time.perf_counter() - self._began
        self._profiler.stop()
        spans = sorted(
            (event.time_range.start, event.time_range.end)
            for event in self._profiler.events() or []
            if event.device_type == torch.autograd.DeviceType.CUDA
        )
        busy, reached = 0.0, float("-inf")
        for start, end in spans:
            busy += max(0.0, end - max(start, reached))
            reached = max(reached, end)
        return max(0.0, 1 - busy / 1e6 / seconds)
