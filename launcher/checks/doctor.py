"""What this machine offers a training, and what would stop one: each finding with its remedy."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
import yaml

from launcher.checks import smi
from launcher.checks.bandwidth import NUM_BYTES, RESULT_FILE
from launcher.device.kind import count, found
from launcher.launch.nodes import Nodes
from launcher.launch.supervisor import Supervisor
from launcher.recipe.directory import directory
from launcher.runs.folder import output_of, read_json, versions
from launcher.world import gpus, slurm
from launcher.world.temporary import temporary_folder
from launcher.world.world import usable_cpus

OK, WARNING, BROKEN = "ok", "warning", "broken"
_ENOUGH_FILES, _ENOUGH_DISK, _ENOUGH_SHARED = 4096, 5 * 2**30, 2**30
_UNSUPPORTED = ("DEEPSPEED", "MEGATRON_LM", "FSDP", "XLA", "TPU")


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's.

    Attributes:
        level: `ok`, `warning` or `broken`.
        what: The subject, in a word.
        text: What was found; where it is not well, what to do.
    """

    level: str
    what: str
    text: str


def findings() -> Iterator[Finding]:
    """Everything that one process can see."""
    yield Finding(OK, "python", f"{sys.version.split()[0]}, {', '.join(f'{k} {v}' for k, v in versions().items())}")
    yield from _gpus()
    yield _cpus()
    yield _room("disk", directory(), _ENOUGH_DISK, "checkpoints need room; name a --run-dir elsewhere")
    if Path("/dev/shm").is_dir():
        remedy = "processes on one machine add gradients up there; give the container more (--shm-size 8g)"
        yield _room("shared memory", Path("/dev/shm"), _ENOUGH_SHARED, remedy)
    yield _open_files()
    yield _clock()
    yield _slurm()
    yield _accelerate()


def _gpus() -> Iterator[Finding]:
    cards, device = smi.cards(output_of(*smi.QUERY)), found()
    if device is None:
        if not cards:
            yield Finding(OK, "GPU", "none: training is on the CPU")
            return
        variable, value = gpus.hidden_by()
        if variable:
            yield Finding(WARNING, "GPU", f"{len(cards)}, and {variable}={value!r} hides them; unset it to use them")
        else:
            fault = f"driver {cards[0].driver}, and torch {torch.__version__} cannot use it"
            yield Finding(BROKEN, "GPU", f"{fault}; install a build of torch for this driver")
        return
    if device.type != "cuda" or not cards:
        yield Finding(OK, "GPU", f"{count()} × {device.type}")  # to ask for more would open a context on each
        return
    for card in smi.visible(cards, gpus.visible()):
        yield _card(card)
    nccl = ".".join(map(str, torch.cuda.nccl.version())) if torch.distributed.is_nccl_available() else "none"
    yield Finding(OK, "driver", f"{cards[0].driver}, CUDA {torch.version.cuda}, NCCL {nccl}")


def _card(card: smi.Card) -> Finding:
    """One GPU, by the driver's word: a context of our own would be in the way of those who have it for themselves."""
    text = f"{card.index}: {card.name}, {card.free / 2**10:.1f} of {card.total / 2**10:.1f} GiB free"
    if card.free < 0.5 * card.total:
        return Finding(WARNING, "GPU", f"{text}; it is in use: nvidia-smi shows by whom")
    if card.mode not in ("Default", "[N/A]"):
        return Finding(OK, "GPU", f"{text}; {card.mode.replace('_', ' ')}: one process at a time")
    return Finding(OK, "GPU", text)


def _cpus() -> Finding:
    usable, there = usable_cpus(), os.cpu_count() or 1
    memory = psutil.virtual_memory()
    text = f"{usable} of {there} usable; {memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB memory free"
    if usable < 2 * (number := count()):
        return Finding(WARNING, "CPUs", f"{text}; {number} GPUs want at least two each: ask for more (--cpus-per-task)")
    return Finding(OK, "CPUs", text)


def _room(what: str, path: Path, enough: int, remedy: str) -> Finding:
    try:
        free = shutil.disk_usage(path).free
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(b"x")
    except OSError as error:
        return Finding(BROKEN, what, f"{path}: {error.strerror or error}; {remedy}")
    text = f"{free / 2**30:.1f} GiB free in {path}"
    return Finding(OK, what, text) if free >= enough else Finding(WARNING, what, f"{text}; {remedy}")


def _open_files() -> Finding:
    try:
        import resource
    except ImportError:
        return Finding(OK, "open files", "no limit known")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    text = f"at most {soft:,} (could be {hard:,})"
    if 0 <= soft < _ENOUGH_FILES:
        return Finding(WARNING, "open files", f"{text}; loader workers need many: ulimit -n {min(65536, hard)}")
    return Finding(OK, "open files", text)


def _clock() -> Finding:
    """Locks across hosts compare this machine's clock with the file server's."""
    try:
        with tempfile.NamedTemporaryFile(dir=directory()) as file:
            skew = os.stat(file.name).st_mtime - time.time()
    except OSError:
        return Finding(WARNING, "clock", "cannot be compared: the working directory is not writable")
    if abs(skew) > 5:
        return Finding(WARNING, "clock", f"{skew:+.0f} s from the file server's; set it (NTP): a lock may seem dead")
    return Finding(OK, "clock", f"{time.strftime('%Y-%m-%d %H:%M:%S %z')}, as the file system's")


def _slurm() -> Finding:
    if shutil.which("sbatch") is None:
        return Finding(OK, "SLURM", "none here")
    version = (output_of("sbatch", "--version") or "sbatch").strip()
    if not slurm.answers():
        remedy = "`launcher submit` needs it: sinfo says what is wrong, SLURM_CONF names another cluster"
        return Finding(WARNING, "SLURM", f"{version} is here, and no controller answers; {remedy}")
    return Finding(OK, "SLURM", version)


def _accelerate() -> Finding:
    from accelerate.commands.config.config_args import default_yaml_config_file

    path = Path(default_yaml_config_file)
    if not path.is_file():
        return Finding(OK, "accelerate", "no config, none needed")
    kind = ""
    with suppress(OSError, yaml.YAMLError, AttributeError):
        kind = str(yaml.safe_load(path.read_text(encoding="utf-8")).get("distributed_type", ""))
    if kind in _UNSUPPORTED:
        remedy = "choose a config without it (accelerate config), or start with `launcher train`"
        return Finding(
            WARNING, "accelerate", f"{path} asks for {kind}, which `accelerate launch` then refuses; {remedy}"
        )
    return Finding(OK, "accelerate", f"{path} ({kind or 'nothing said'})")


# ---------------------------------------------------------------------- the ranks together


def communication(processes: int, cpu: bool, nodes: Nodes) -> Finding:
    """Starts the processes, has them add up numbers, and compares with what the link gives by itself.

    Args:
        processes: Of this machine.
        cpu: Whether they stay on the CPU.
        nodes: This machine among several.
    """
    size = processes * nodes.count
    with temporary_folder() as folder:
        ranks = Supervisor(processes, cpu, 1, folder, "launcher doctor", nodes=nodes, is_temporary=True)
        code = ranks.run("launcher.checks.bandwidth")
        measurement = read_json(folder / RESULT_FILE)
    if code or (not measurement and nodes.rank == 0):
        return Finding(BROKEN, "all-reduce", f"{size} processes cannot talk to each other; the lines above say why")
    if not measurement:
        return Finding(OK, "all-reduce", "done; the first node shows how fast")
    link, what = _link(measurement["backend"] == "gloo", nodes)
    speed = measurement["bandwidth"]
    text = (
        f"{size} processes, {measurement['backend']}: {speed / 1e9:.2f} GB/s a rank, "
        f"{measurement['latency'] * 1e6:.0f} µs; {what}{f' {link / 1e9:.2f} GB/s' if link else ''}"
    )
    if link and speed < 0.1 * link:
        return Finding(WARNING, "all-reduce", f"{text}; too slow: is it the right interface (NCCL_SOCKET_IFNAME)?")
    return Finding(OK, "all-reduce", text)


def _link(on_cpu: bool, nodes: Nodes) -> tuple[float | None, str]:
    """What carries the numbers should give, in bytes a second, and what that is."""
    if nodes.count > 1:
        speeds = [card.speed for card in psutil.net_if_stats().values() if card.isup and card.speed]
        return (max(speeds) * 1e6 / 8, "the fastest network card says") if speeds else (None, "the card says nothing")
    if on_cpu:
        return _loopback(), "one plain connection on this machine gives"
    query = output_of(
        "nvidia-smi", "--query-gpu=pcie.link.gen.max,pcie.link.width.max", "--format=csv,noheader,nounits"
    )
    with suppress(ValueError, AttributeError, IndexError):
        generation, width = (query or "").splitlines()[0].split(",")
        # a lane of generation 3 carries 0.985 GB/s, and each generation doubles it
        return 0.985e9 * 2 ** (int(generation) - 3) * int(width), "PCIe (NVLink is faster) gives"
    return None, "what the link gives is not known"


def _loopback() -> float:
    """Bytes a second through one connection from this process to itself."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        with socket.create_connection(server.getsockname()) as sender:
            receiver, _ = server.accept()
            with receiver:
                thread = threading.Thread(target=sender.sendall, args=(bytes(NUM_BYTES),))
                began = time.perf_counter()
                thread.start()
                rest = NUM_BYTES
                while rest:
                    rest -= len(receiver.recv(min(rest, 2**20)))
                seconds = time.perf_counter() - began
                thread.join()
    return NUM_BYTES / seconds
