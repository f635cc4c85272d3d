"""Variants of a step: python steps.py [--cpu] [NAME …]; a line of JSON each, with its losses, waits and launches."""

from __future__ import annotations

import collections
import json
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from parts import Net, Rows

import launcher
from launcher.runs.tracking.tracking import read_metrics

HERE = Path(__file__).parent
FIRST, LAST = 42, 62  # batches between which it is looked; on a GPU they are read ahead
GRAPHS = "device.compile=reduce-overhead"
VARIANTS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "tf32": ("device.tf32=true",),
    "averaged": ("train.ema=0.99",),
    "accumulated": ("data.micro_batch_size=16",),
    "class weights": ("loss.weight={_target_: torch.tensor, _args_: [[1.0, 2.0]]}",),
    "bf16": ("device.precision=bf16",),
    "skip": ("train.non_finite=skip",),
    "bf16 parameters": ("model.dtype=bfloat16",),
    "dropout": ("model.dropout=0.2",),
    "deterministic": ("device.deterministic=true",),
    "channels last": ("device.channels_last=true",),
    "fp16": ("device.precision=fp16",),
    "compiled": ("device.compile=true",),
    "graphs": (GRAPHS,),
    "graphs, accumulated": (GRAPHS, "data.micro_batch_size=16"),
}
NOT_ON_A_CPU = ("fp16", "compiled", "graphs")
MORE_LAUNCHES = 3  # than by hand: the check of the gradients, and the sums of the loss
WAITS = {"class weights": 0, "fp16": 0, "skip": 0}  # of a step; 0 for all others too
REFUSED = ("graphs, accumulated",)


class Look:
    """Counts, between two batches, what made the host wait and what was launched."""

    def __init__(self, on_gpu: bool):
        self.on_gpu, self.found = on_gpu, dict[str, Any]()
        self._stack: Any = None

    def at(self, batch: int) -> None:
        """Told of each batch that is read."""
        if not self.on_gpu:
            return
        if batch == FIRST:
            self._caught = warnings.catch_warnings(record=True)
            self._warned = self._caught.__enter__()
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            self._profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
            self._profile.__enter__()
            self._began = time.perf_counter()
        elif batch == LAST:
            self.found["step_ms"] = round((time.perf_counter() - self._began) / (LAST - FIRST) * 1e3, 3)
            torch.cuda.set_sync_debug_mode("default")
            self._profile.__exit__(None, None, None)
            self._caught.__exit__(None, None, None)
            waits = (warning for warning in self._warned or () if "synchroniz" in str(warning.message))
            places = (f"{Path(warning.filename).name}:{warning.lineno}" for warning in waits)
            self.found["waits"] = dict(collections.Counter(places))
            names = [event.name for event in self._profile.events() or ()]
            self.found["launches"] = sum("LaunchKernel" in name or "GraphLaunch" in name for name in names) / (
                LAST - FIRST
            )


def tried(name: str, cpu: bool) -> dict[str, Any]:
    """What a variant came to."""
    look = Look(not cpu)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        try:
            launcher.train(
                HERE / "steps.yaml", *VARIANTS[name], run_dir=folder, cpu=cpu, output="quiet", train=Rows(look.at)
            )
            lines = read_metrics(Path(folder) / "metrics.jsonl")
            look.found["losses"] = [line["loss"] for line in lines if line["split"] == "train"]
        except Exception as error:
            look.found["error"] = f"{type(error).__name__}: {str(error)[:200]}"
    return {"name": name, **look.found, "seconds": round(time.perf_counter() - began, 1)}


def judged(found: dict[str, Any], plain: list[float], cpu: bool) -> dict[str, Any]:
    """The same with whether it is as it should be, and why not."""
    name, wrong = found["name"], list[str]()
    if name in REFUSED:
        wrong += [] if "CUDA graphs" in found.get("error", "") else ["it was not refused"]
    elif "error" in found:
        wrong.append(found["error"])
    elif not cpu and "waits" not in found:
        wrong.append(f"it ended before batch {LAST}: nothing was counted")
    elif not cpu:
        wrong += counted_wrongly(found)
    if plain and name in ("tf32",) and "losses" in found:
        found["off"] = distance(found["losses"], plain)  # shown: TF32 rounds
    if plain and name in ("averaged", "accumulated", "skip", "deterministic") and "losses" in found:
        found["off"] = off = distance(found["losses"], plain)
        wrong += [f"its losses are {off:.1g} off plain's"] if off > 1e-5 else []
    return {**found, "ok": not wrong, **({"wrong": wrong} if wrong else {})}


def counted_wrongly(found: dict[str, Any]) -> list[str]:
    """What is wrong with a variant's waits and launches."""
    wrong, waits = list[str](), sum(found["waits"].values())
    if waits > 2 + WAITS.get(found["name"], 0) * (LAST - FIRST):  # two lines of metrics
        wrong.append(f"it waits: {found['waits']}")
    if found["name"] == "plain" and found["launches"] > (most := by_hand() + MORE_LAUNCHES):
        wrong.append(f"a step launches {found['launches']} kernels, and one by hand with {MORE_LAUNCHES} more {most}")
    return wrong


def distance(losses: list[float], others: list[float]) -> float:
    """The largest relative one of two runs."""
    return max(abs(one - other) / abs(other) for one, other in zip(losses, others, strict=True))


def by_hand() -> float:
    """Kernels that the plain step launches as people write it, with a fused optimizer and clipped."""
    look = Look(on_gpu=True)
    rows, model = Rows(look.at), Net().cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    for step in range(LAST):
        inputs, targets = rows.get_batch(torch.arange(64) + 64 * step)
        inputs, targets = (part.pin_memory().cuda(non_blocking=True) for part in (inputs, targets))
        torch.nn.functional.cross_entropy(model(inputs), targets).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    launches: float = look.found["launches"]
    return launches


def main() -> int:
    """Tries them; returns how many are not as they should be."""
    cpu, names = "--cpu" in sys.argv, [word for word in sys.argv[1:] if word != "--cpu"]
    plain: list[float] = []
    bad = 0
    for name in names or VARIANTS:
        if cpu and any(name.startswith(other) for other in NOT_ON_A_CPU) and name not in REFUSED:
            continue
        result = judged(tried(name, cpu), plain, cpu)
        if name == "plain" and "losses" in result:
            plain = result["losses"]
            if not cpu:
                on_cpu = tried("plain", True)["losses"]
                first = max(abs(one - other) / abs(other) for one, other in zip(plain[:2], on_cpu[:2], strict=True))
                result |= {"off_the_cpu": first, "ok": result["ok"] and first < 1e-5}
        bad += not result["ok"]
        print(json.dumps(result), flush=True)
    return min(bad, 1)


if __name__ == "__main__":
    sys.exit(main())
