"""Times the same training under several loops, side by side: a table of ratios, a JSON file and a picture."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from launcher.version import DISTRIBUTION, __version__

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE))
PROBED = (1, 11, 21)  # before these steps the loss of a fixed batch is taken
AGREES = 2e-3  # relative: of the losses, in float32, when all see the same batches
AGREES_BF16 = 5e-2
SECONDS_TO_END = 60  # after the last step that is measured
OURS = "launcher"
PEERS = {  # name: package
    "handwritten": "torch",
    "nanogpt": "torch",
    "floor": "torch",
    "accelerate": "accelerate",
    "ignite": "pytorch-ignite",
    "lightning": "lightning",
    "transformers": "transformers",
    "webdataset": "webdataset",
    "litdata": "litdata",
    "streaming": "mosaicml-streaming",
    OURS: DISTRIBUTION,
}
OF_SHARDS = ("webdataset", "litdata", "streaming")  # which read nothing else
WITHOUT_DDP = ("floor", "nanogpt")
IN_FULL = ("handwritten", "lightning", "transformers", OURS)  # those that bring logging, evaluation and checkpoints


@dataclass(frozen=True)
class Round:
    """What is compared: a workload on a number of processes, bare or with all that surrounds a step."""

    workload: str
    processes: int
    full: bool
    workers: int = 0

    @property
    def title(self) -> str:
        """For tables."""
        processes = f"{self.processes} process{'es' * (self.processes > 1)}"
        workers = f", {self.workers} worker{'s' * (self.workers > 1)}" if self.workers else ""
        return f"{self.workload}, {processes}{workers}{', logs, evaluations and checkpoints' if self.full else ''}"


def main() -> int:
    """Runs the rounds; returns 1 where a contestant's losses are not those of the others."""
    from workloads import WORKLOADS

    options = parse_arguments()
    print(", ".join(f"{name} {found}" for name in dict.fromkeys(PEERS.values()) if (found := version_of(name))))
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}\n")
    if absent := missing(options):
        print(f"{', '.join(absent)} are left out; {sys.executable} -m pip install {' '.join(absent)}\n")
    results, agreed = [], True
    fullness = {"both": (False, True), "bare": (False,), "full": (True,)}[options.what]
    rounds = itertools.product(options.workloads, options.processes, fullness, options.workers)
    for workload, processes, full, workers in rounds:
        as_people_have_it = WORKLOADS[workload].with_workers
        if (full and (workload == "cnn" or as_people_have_it)) or (workers and not as_people_have_it):
            continue
        this = Round(workload, processes, full, workers)
        found = measured(this, options)
        table, same = table_of(this, found, options)
        print(table, flush=True)
        agreed &= same
        results.append({"workload": workload, "processes": processes, "full": full, "workers": workers, "found": found})
        keep(results, options)  # after each round: they take minutes
    print(f"figures: {options.json}, picture: {options.png}")
    return 0 if agreed else 1


def missing(options: argparse.Namespace) -> list[str]:
    """Packages of contestants that would take part and are not installed."""
    wanted = [name for name in options.contestants if name not in OF_SHARDS or "shards" in options.workloads]
    return [package for package in dict.fromkeys(PEERS[name] for name in wanted) if version_of(package) is None]


def has_other_batches(this: Round, name: str) -> bool:
    """Whether a contestant's batches are drawn by itself, or dealt out by shards: its losses are its own then."""
    return name == "nanogpt" or (name in OF_SHARDS and (this.processes > 1 or this.workers > 1))


def keep(results: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Writes the figures and the picture of the rounds so far."""
    written = {"versions": {name: version_of(name) for name in PEERS.values()}, "rounds": results}
    Path(options.json).write_text(json.dumps(written, indent=1), encoding="utf-8")
    draw(results, options.png)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    from workloads import ON_A_GPU, WORKLOADS

    parser = argparse.ArgumentParser(
        prog="scripts/benchmark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workloads", nargs="+", choices=list(WORKLOADS), help="(all for a CPU)")
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2], help="(1 2)")
    parser.add_argument(
        "--workers", nargs="+", type=int, default=[0, 1, 2], help="of data that is read by some: rows jpegs … (0 1 2)"
    )
    parser.add_argument("--what", choices=("bare", "full", "both"), default="both")
    parser.add_argument("--contestants", nargs="+", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--repeat", type=int, default=5, help="turns of each (5)")
    parser.add_argument("--gpu", action="store_true", help="on GPUs, with two large models more")
    parser.add_argument("--settings", action="store_true", help="also what single settings of device: do")
    parser.add_argument("--text", help="a text file for gpt (the standard library's source)")
    parser.add_argument("--json", default="benchmark.json")
    parser.add_argument("--png", default="benchmark.png")
    options = parser.parse_args()
    if options.text:
        os.environ["BENCH_TEXT"] = str(Path(options.text).absolute())
    options.workloads = options.workloads or [name for name in WORKLOADS if options.gpu or name not in ON_A_GPU]
    return options


def version_of(package: str) -> str | None:
    """None where it is not installed; this program runs where it lies."""
    try:
        return version(package)
    except PackageNotFoundError:
        return __version__ if package == DISTRIBUTION else None


# ---------------------------------------------------------------------- running


def contestants_of(this: Round, options: argparse.Namespace) -> list[str]:
    """Who takes part in a round."""
    from workloads import WORKLOADS

    names = [name for name in options.contestants if version_of(PEERS[name])]
    if this.full:
        names = [name for name in names if name in IN_FULL]
    if this.processes > 1:
        names = [name for name in names if name not in WITHOUT_DDP]
    if this.workload != "gpt" or options.gpu:
        names = [name for name in names if name != "nanogpt"]
    if this.workload != "shards":
        names = [name for name in names if name not in OF_SHARDS]
    if WORKLOADS[this.workload].with_workers:  # its rows are not in memory
        names = [name for name in names if name != "floor"]
    if options.settings:
        names += [f"{OURS} {setting}" for setting in settings_of(this, options)]
    return names


def settings_of(this: Round, options: argparse.Namespace) -> dict[str, list[str]]:
    """Single settings to look at, by name."""
    found = {"fused off": ["optimizer.fused=false"]}
    if this.processes > 1:
        found["static graph"] = ["device.ddp.static_graph=true"]
    if options.gpu:
        found |= {"compile": ["device.compile=true"], "tf32": ["device.tf32=true"]}
        if this.workload in ("cnn", "resnet"):
            found["channels last"] = ["device.channels_last=true"]
    return found


def measured(this: Round, options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """What each contestant's clock noted: first in the order of the data, then in turns, shuffled."""
    names = contestants_of(this, options)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for turn in range(options.repeat + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            found[name].append(one_run(this, name, options, in_order=turn == 0))
    return found


def one_run(this: Round, name: str, options: argparse.Namespace, in_order: bool) -> dict[str, Any]:
    """One contestant, in a process of its own; in order only for a few steps, whose losses are compared."""
    from workloads import WORKLOADS

    workload = WORKLOADS[this.workload]
    warm, steps = (PROBED[-1], 1) if in_order else (workload.warm, workload.steps)
    if this.full and not in_order:
        steps = max(steps, 500)  # an evaluation and a checkpoint at least
    last = warm + steps + (25 if options.gpu else 5)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        file = Path(folder) / "clock.json"
        clock = {
            "file": str(file),
            "marks": [warm, warm + steps],
            "probes": PROBED if in_order else [],
            "began": time.time(),
        }
        said = {"BENCH_CLOCK": json.dumps(clock), "BENCH_WORKERS": str(this.workers)}
        paths = os.pathsep.join(filter(None, (str(HERE), str(ROOT), os.environ.get("PYTHONPATH"))))
        environment = {**os.environ, **said, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
        if not options.gpu:
            environment |= {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
        command = command_of(this, name, options, in_order, last, folder)
        output = run_to_its_end(command, environment, file)
        if not file.exists():
            raise SystemExit(f"{name} on {this.title} failed:\n{output[-6000:]}")
        noted: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    (start, end), (cpu_start, cpu_end) = noted.pop("marks"), noted.pop("cpu")
    return {**noted, "step_seconds": (end - start) / steps, "step_cpu_seconds": (cpu_end - cpu_start) / steps}


def run_to_its_end(command: list[str], environment: dict[str, str], noted: Path) -> str:
    """What a contestant writes; one that has noted its times and does not end (gloo, at times) is ended."""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        process = subprocess.Popen(command, cwd=HERE, env=environment, stdout=output, stderr=subprocess.STDOUT)
        while process.poll() is None:
            time.sleep(0.1)
            if noted.exists() and time.time() - noted.stat().st_mtime > SECONDS_TO_END:
                process.terminate()  # torchrun ends its processes then, which have sessions of their own
                process.wait()
        output.seek(0)
        return output.read()


def command_of(
    this: Round, name: str, options: argparse.Namespace, in_order: bool, last: int, folder: str
) -> list[str]:
    """How a user starts it."""
    device = "cuda" if options.gpu else "cpu"
    if name.startswith(OURS):
        more = settings_of(this, options)[name.removeprefix(OURS).strip()] if name != OURS else []
        return ours(this, options, in_order, last, folder, more)
    run = ["--standalone", f"--nproc-per-node={this.processes}"]
    started = [sys.executable, *(["-m", "torch.distributed.run", *run] if this.processes > 1 else [])]
    flags = ["--in-order"] * in_order + ["--full"] * this.full
    return [*started, "loops.py", name, this.workload, *flags, "--device", device, "--steps", str(last)]


def ours(
    this: Round, options: argparse.Namespace, in_order: bool, last: int, folder: str, more: list[str]
) -> list[str]:
    """`launcher train`, with the workload said in overrides."""
    from loops import ACT_EVERY, EVALUATION_BATCHES, LOG_EVERY
    from workloads import WORKLOADS

    workload = WORKLOADS[this.workload]
    said = {
        "model._target_": f"workloads.py:{workload.model.__name__}",
        "data.train._target_": target_of(workload.data),
        "data.global_batch_size": workload.batch,
        "data.shuffle": str(not in_order).lower(),
        "optimizer.lr": workload.rate,
        "device.precision": workload.precision,
        "train.steps": last,
    }
    if workload.collate is not None:
        said |= {"data.collate": f"{{_ref_: {target_of(workload.collate)}}}"}
    if workload.with_workers:
        said["data.workers"] = this.workers
    if workload.clip is not None:
        said["train.clip_grad_norm"] = workload.clip
    if this.full:
        said |= {
            "data.validation": f"{{_target_: {target_of(workload.data)}, train: false}}",
            "evaluate.every": f"{ACT_EVERY} steps",
            "evaluate.limit": f"{EVALUATION_BATCHES} batches",
            "save.every": f"{ACT_EVERY} steps",
            "track.every": f"{LOG_EVERY} steps",
        }
    overrides = [f"{key}={value}" for key, value in said.items()] + more
    where = ["--cpu"] * (not options.gpu) + ["--processes", str(this.processes)]
    return [sys.executable, "-m", "launcher", "train", "recipe.yaml", *overrides, *where, "--run-dir", f"{folder}/run"]


def target_of(function: Any) -> str:
    """What a recipe calls it: a file beside it, and a name."""
    return f"{function.__module__}.py:{function.__name__}"


# ---------------------------------------------------------------------- showing


def median(runs: list[dict[str, Any]], key: str) -> float | None:
    """Over the turns, the first aside."""
    values = [run[key] for run in runs[1:] if key in run]
    return statistics.median(values) if values else None


def table_of(this: Round, found: dict[str, list[dict[str, Any]]], options: argparse.Namespace) -> tuple[str, bool]:
    """The round's table, slowest first, and whether all losses agree."""
    by_hand = median(found["handwritten"], "step_seconds") if "handwritten" in found else None
    floor = median(found["floor"], "step_seconds") if "floor" in found else None
    memory_by_hand = median(found["handwritten"], "peak_bytes") if "handwritten" in found else None
    heads = ["", "µs a step", "spread", "× by hand", "× floor", "first step", "memory", "losses"]
    rows, agreed = [], True
    for name in sorted(found, key=lambda name: -(median(found[name], "step_seconds") or 0)):
        runs = found[name]
        seconds = [run["step_seconds"] for run in runs[1:]]
        typical = statistics.median(seconds)
        has_own = has_other_batches(this, name)
        same = has_own or agrees(this, runs[0], found)
        agreed &= same
        rows.append(
            [
                name,
                f"{typical * 1e6:,.0f}",
                f"{min(seconds) * 1e6:,.0f}–{max(seconds) * 1e6:,.0f}",
                f"{typical / by_hand:.2f}" if by_hand else "",
                f"{typical / floor:.2f}" if floor else "",
                f"{median(runs, 'first_step'):.1f} s",
                f"{((median(runs, 'peak_bytes') or 0) - (memory_by_hand or 0)) / 2**20:+,.0f} MiB",
                "its own" if has_own else "agree" if same else "DIFFER",
                *gpu_columns(this, runs, typical, options),
            ]
        )
    if options.gpu:
        heads += ["samples/s", "idle", "MFU"]
    lines = [f"### {this.title}", "", f"| {' | '.join(heads)} |", "|---|" + "---:|" * (len(heads) - 1)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows), ""]), agreed


def agrees(this: Round, run: dict[str, Any], found: dict[str, list[dict[str, Any]]]) -> bool:
    """Whether the losses of the run in order are the others' (their median's)."""
    from workloads import WORKLOADS

    bound = AGREES if WORKLOADS[this.workload].precision == "no" else AGREES_BF16
    for step, loss in run["probes"].items():
        others = (runs[0] for name, runs in found.items() if not has_other_batches(this, name))
        usual = statistics.median(other["probes"][step] for other in others)
        if abs(loss - usual) > bound * abs(usual):
            return False
    return len(run["probes"]) == len(PROBED)


def gpu_columns(this: Round, runs: list[dict[str, Any]], typical: float, options: argparse.Namespace) -> Iterator[str]:
    """Samples a second, the GPU's idle share, and the model's share of the arithmetic that it could do."""
    if not options.gpu:
        return
    from workloads import WORKLOADS

    yield f"{WORKLOADS[this.workload].batch / typical:,.0f}"
    idle = median(runs, "gpu_idle")
    yield "" if idle is None else f"{idle:.0%}"
    yield f"{flops_of(this.workload) / typical / peak_flops(this.processes):.1%}"


def flops_of(name: str) -> float:
    """Of one step, counted by torch: forward, and twice that backward."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from workloads import WORKLOADS

    workload = WORKLOADS[name]
    data = workload.data()
    inputs = torch.stack([data[index][0] for index in range(2)])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        workload.model().net(inputs)
    return 3.0 * counter.get_total_flops() / 2 * workload.batch


def peak_flops(processes: int) -> float:
    """Dense bf16 of the GPUs, as their makers state it."""
    import torch

    known = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40": 181e12, "4090": 165e12, "V100": 125e12, "T4": 65e12}
    name = torch.cuda.get_device_name()
    return processes * next((peak for key, peak in known.items() if key in name), float("nan"))


def draw(results: list[dict[str, Any]], file: str) -> None:
    """One bar a contestant, one panel a round: time of a step, in times of the loop by hand."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = min(3, len(results))
    rows = -(-len(results) // columns)
    figure, panels = pyplot.subplots(rows, columns, figsize=(5.2 * columns, 2.9 * rows), squeeze=False)
    for panel in panels.flat[len(results) :]:
        panel.axis("off")
    for panel, result in zip(panels.flat, results, strict=False):
        found = {name: median(runs, "step_seconds") or 0 for name, runs in result["found"].items()}
        unit = found.get("handwritten") or min(found.values())
        names = sorted(found, key=lambda name: -found[name])
        ratios = [found[name] / unit for name in names]
        colors = ["#c2410c" if name.startswith(OURS) else "#94a3b8" for name in names]
        bars = panel.barh(names, ratios, color=colors)
        panel.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
        panel.axvline(1, color="#334155", linewidth=0.8, linestyle=":")
        panel.set_title(
            Round(result["workload"], result["processes"], result["full"], result["workers"]).title, fontsize=9
        )
        panel.set_xlim(0, max(ratios) * 1.15)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8)
    figure.supxlabel("time of a step ÷ that of the loop written by hand (less is better)", fontsize=9)
    figure.tight_layout()
    figure.savefig(file, dpi=140)


if __name__ == "__main__":
    sys.exit(main())
