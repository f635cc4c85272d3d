"""A GPT of 1.5 billion parameters beside the loop written by hand: python large.py [--cpu]; a line of JSON each."""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import launcher
from launcher.models import GPT
from launcher.runs.reading import Run

HERE = Path(__file__).parent
STEPS, WARM = 20, 6
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}  # dense bf16, as their maker states it


class EnoughError(Exception):
    """All was measured."""


class Tokens:
    """Random tokens; notes when each batch is read, and ends a run at the last where that is asked for."""

    ends = False

    def __init__(self, vocab: int, context: int, batches: int, batch: int):
        self.tokens = torch.randint(vocab, (batches * batch, context + 1), generator=torch.Generator().manual_seed(0))
        self.times: list[float] = []

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> Any:
        row = self.tokens[index]
        return row[:-1], row[1:]

    def get_batch(self, indices: torch.Tensor) -> Any:
        """Many at once."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())
        if self.ends and len(self.times) == STEPS:
            raise EnoughError
        rows = self.tokens[indices]
        return rows[:, :-1], rows[:, 1:]


def typical(times: list[float]) -> float:
    """Seconds of a step: the median, the first ones aside."""
    return statistics.median(later - earlier for earlier, later in zip(times[WARM:], times[WARM + 1 :], strict=False))


def by_hand(model: nn.Module, data: Tokens, batch: int, device: str) -> None:
    """The loop of nanoGPT, with pinned batches and a fused optimizer."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    for step in range(STEPS):
        rows = torch.arange(step * batch, (step + 1) * batch)
        inputs, targets = data.get_batch(rows)
        if device == "cuda":
            inputs, targets = (part.pin_memory().to(device, non_blocking=True) for part in (inputs, targets))
        with torch.autocast(device, torch.bfloat16):
            logits = model(inputs)
            loss = F.cross_entropy(logits.movedim(1, -1).reshape(-1, logits.shape[1]), targets.reshape(-1))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def ours(model: nn.Module, data: Tokens, batch: int, cpu: bool, compiled: bool) -> float:
    """The same as a run; gives the seconds for which it paused for its checkpoint.

    The compiled one ends before it would keep one: its model is the same, and 18 GB take a while to be written.
    """
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        said = [
            *(f"data.global_batch_size={batch}", f"train.steps={STEPS}", "device.precision=bf16"),
            *("optimizer.lr=1e-4", "data.shuffle=false", f"device.compile={str(compiled).lower()}", "save.keep=1"),
        ]
        data.ends = compiled
        with contextlib.suppress(EnoughError):
            launcher.train(HERE / "steps.yaml", *said, run_dir=folder, cpu=cpu, output="quiet", train=data, model=model)
        return max((float(event.get("stall", 0.0)) for event in Run(Path(folder)).events), default=0.0)


def main() -> int:
    """Each in turn, with the memory of the one before given back."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cpu", action="store_true")
    cpu = parser.parse_args().cpu
    device = "cpu" if cpu else "cuda"
    layers, heads, width, context, vocab, batch = (2, 2, 32, 16, 64, 2) if cpu else (48, 25, 1600, 1024, 50_304, 8)
    hand: dict[str, float] = {}
    for name in ("by hand", "ours", "ours, compiled")[: 2 if cpu else 3]:
        torch.manual_seed(0)
        with torch.device(device):
            model = GPT(vocab, context, layers=layers, heads=heads, width=width)
        data, stall = Tokens(vocab, context, STEPS, batch), 0.0
        if not cpu:
            torch.cuda.reset_peak_memory_stats()
        if name == "by hand":
            by_hand(model, data, batch, device)
        else:
            stall = ours(model, data, batch, cpu, name.endswith("compiled"))
        numbers = sum(weight.numel() for weight in model.parameters())
        found: dict[str, Any] = {"name": name, "step_seconds": typical(data.times), "stall_seconds": stall}
        if not cpu:
            found["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
            peak = next((flops for card, flops in PEAKS.items() if card in torch.cuda.get_device_name()), None)
            attention = 12 * layers * width * context
            found["mfu"] = peak and batch * context * (6 * numbers + attention) / found["step_seconds"] / peak
        hand = hand or found
        is_as_fast = name == "by hand" or cpu or found["step_seconds"] <= 1.01 * hand["step_seconds"]
        is_as_small = name == "by hand" or cpu or found["peak_gib"] <= 1.01 * hand["peak_gib"]
        gigabytes = 12 * numbers / 1e9
        found |= {"stall_per_gb": stall / gigabytes, "ok": bool(is_as_fast and is_as_small)}
        print(json.dumps(found), flush=True)
        del model
        gc.collect()
    return 0


if __name__ == "__main__":
    sys.exit(main())
