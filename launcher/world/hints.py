"""What is known about failures of a kind, and what to do about them."""

from __future__ import annotations

import re

from launcher.world import network
from launcher.world.failure import Failure

_HINTS: tuple[tuple[str, str], ...] = (
    (
        r"/dev/shm.*No space left|nccl-\w+ .*No space left",
        "ranks of one machine meet in shared memory, and there is no room: give the container more (docker run "
        "--shm-size=8g, or --ipc=host)",
    ),
    (
        r"(?:CUDA|HIP|XPU|backend|error:) out of memory|OutOfMemoryError"
        r"|(?:CUBLAS|CUDNN|CUSOLVER|CUFFT)_STATUS_ALLOC_FAILED|hipErrorOutOfMemory|UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY"
        r"|CUDNN_STATUS_NOT_INITIALIZED|CUBLAS_STATUS_NOT_INITIALIZED|CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION",
        "the GPU's memory is full{batch}; {memory}, or use device.precision=bf16 or more processes",
    ),
    (
        r"signal 9|MemoryError|Cannot allocate memory|can't allocate memory|DefaultCPUAllocator",
        "if it was memory{batch}: use fewer data.workers or processes; {memory}; the kernel's word on it: "
        "dmesg | grep -i 'killed process'",
    ),
    (
        r"worker process \d+ was killed|'/dev/shm/",
        "memory of the machine, or /dev/shm, may be full or not to be written{batch}: use fewer data.workers, or none",
    ),
    (
        r"Watchdog caught collective operation timeout",
        "this rank waited for another longer than device.timeout, and NCCL ended it: the one that hung is "
        "another, and says nothing; launch.stall='10 minutes' has the stacks of all ranks written down before that",
    ),
    (
        r"no kernel image is available|cudaErrorNoKernelImageForDevice|not compatible with the current PyTorch install",
        "this build of torch has no kernels for this GPU: `launcher doctor` names both; install one for its compute "
        "capability",
    ),
    (
        r"invalid device ordinal|cudaErrorInvalidDevice\b",
        "a GPU was asked for that this process may not use: CUDA_VISIBLE_DEVICES may leave it fewer than LOCAL_RANK "
        "counts; start as many processes as there are GPUs, and name no 'cuda:1' in your own code",
    ),
    (
        r"uncorrectable ECC|ECC error|Xid|fallen off the bus|cudaErrorHardwareStackError|NVLink.*error",
        "the GPU itself is at fault: exclude its machine (sbatch --exclude), and tell its administrator; "
        "nvidia-smi -q shows its counts of errors",
    ),
    (
        r"devices?(?:\(s\))? \S+ busy or unavailable|cudaErrorDevicesUnavailable|exclusive(?:-process)? (?:and|mode)",
        "another process has exclusive use of the GPU: nvidia-smi shows whose, and its compute mode",
    ),
    (
        r"Cannot re-initialize CUDA in forked subprocess|cudaErrorInitializationError.*fork",
        "a worker process may not use the GPU: let the data set give tensors in host memory (the batch is moved for "
        "you), or use data.workers=0",
    ),
    (
        r"Expected all tensors to be on the same device|Input type .*cuda.* and weight type|mat\d is on cpu",
        "a tensor is on another device than the model: make it where its inputs are (device=x.device), or keep it with "
        "register_buffer, which moves with the model",
    ),
    (
        r"CUBLAS_WORKSPACE_CONFIG",
        "torch looks for that variable once per process: set CUBLAS_WORKSPACE_CONFIG=:4096:8 before Python starts, or "
        "restart the kernel of a notebook",
    ),
    (
        r"does not have a deterministic implementation",
        "device.deterministic: true refuses kernels that add up in any order; use another operation there, or leave it "
        "false: the same numbers but for rounding",
    ),
    (
        r"of CUDAGraphs that has been overwritten",
        "a result of a model compiled into CUDA graphs was kept over the next call: clone() it, or say "
        "device.compile: max-autotune-no-cudagraphs",
    ),
    (
        r"illegal memory access|misaligned address|cudaErrorIllegalAddress|unspecified launch failure",
        "a kernel read or wrote where it may not, and the line above may be a later one than the one at fault: "
        "--debug finds it (it makes the GPU answer at once)",
    ),
    (
        r"NVIDIA driver on your system is too old|CUDA driver version is insufficient|no CUDA-capable device",
        "torch cannot use the GPUs of this machine with its driver: `launcher doctor` shows both versions",
    ),
    (
        r"NCCL error|ncclSystemError|ncclUnhandledCudaError",
        "start again with NCCL_DEBUG=WARN, and run `launcher doctor`",
    ),
    (
        r"Expected to have finished reduction|did not receive grad",
        "parameters of the model were not used in the loss; use them, remove them or freeze them, or allow it: "
        "device.ddp.find_unused_parameters=true (it costs time)",
    ),
    (
        r"expect_autograd_hooks_",
        "device.ddp.static_graph does not hold for this model: torch takes it with several micro-batches only where "
        "the loss uses all of the model's outputs; remove it, or give one micro-batch a step",
    ),
    (
        r"(requires|needs|missing|without|no).{0,40}closure|closure.{0,40}(required|missing|None)",
        "the optimizer calls the loss itself: write _closure_: true beside its _target_",
    ),
    (
        r"shapes? cannot be multiplied|size mismatch|must match the size|[Ee]xpected .* to have \d+ channels"
        r"|[Ee]xpected input batch_size|shape '.*' is invalid|Expected target size|Dimension out of range"
        r"|[Ss]izes of tensors must match|stack expects each tensor to be equal size",
        "shapes do not fit{shapes}; `launcher data RECIPE` shows what the data set gives",
    ),
    (
        r"same dtype|expected target dtype|[Ff]ound dtype|expected scalar type|Input type .* and weight type",
        "numbers of different types meet{shapes}: have the data set give what the model and the loss compute with, as "
        "a rule float32 for inputs and int64 for classes",
    ),
    (
        r"Target -?\d+ is out of bounds|device-side assert",
        "a class is out of range: they count from 0; are there more than the model has? Or a token that its embedding "
        "does not have{asynchronous}",
    ),
    (r"^bdb\.BdbQuit", "the debugger was left with q, which ends the run; c continues it"),
    (r"No space left on device", "the disk is full: `df -h` shows which"),
    (r"Too many open files", "raise the limit (ulimit -n 65536), or use fewer data.workers"),
)
# about how ranks reach each other: not where the user's own code lost a connection of its own
_HINTS_ABOUT_RANKS: tuple[tuple[str, str], ...] = (
    (
        r"Address already in use|EADDRINUSE|errno: 98",
        "another program uses that port: choose another --master HOST:PORT, or omit --master on one node",
    ),
    (
        r"[Uu]nable to find address for|couldn't find .*interface|no socket interface|Bootstrap : no socket"
        r"|connectFullMesh failed|Unable to resolve hostname|launch\.meeting_timeout: .*connections of the ranks",
        "name the network interface that reaches the other machines (ip addr lists them), as in launch.interface=eth0 "
        "or GLOO_SOCKET_IFNAME=eth0; it was {interface}; firewalls must let the machines reach one another",
    ),
    (
        r"launch\.meeting_timeout: .*name unknown",
        "the name of rank 0's machine has no address here: name it by its address, or put it into /etc/hosts",
    ),
    (
        r"launch\.meeting_timeout",
        "were all processes started, and is there a firewall in between? Where they take longer to come (to prepare "
        "their data, say): launch.meeting_timeout='30 minutes'",
    ),
    (
        r"Name or service not known|[Nn]o address associated|getaddrinfo|Temporary failure in name resolution",
        "the host's name has no address here: name --master by its address, or put it into /etc/hosts",
    ),
    (
        r"Timed out waiting \d+ms|collective operation timeout|Connection timed out|No route to host"
        r"|Network is unreachable",
        "a rank waited for another longer than device.timeout: the other hangs, or the network is cut; launch.stall "
        "has the stacks of all ranks written down when they stop",
    ),
    (
        r"Connection closed by peer|Connection reset by peer|PeerError",
        "another rank ended first; where it is on another machine, the report there says why",
    ),
)


_SMALLER = "halve data.micro_batch_size (the same result), or say auto there"
_LATER = "; the line above may be a later one, even of another step: --debug finds the one at fault"


def hint_for(failure: Failure) -> str | None:
    """What is known about such a failure, and what to do."""
    for pattern, text in (*_HINTS, *(() if failure.is_users else _HINTS_ABOUT_RANKS)):
        if re.search(pattern, failure.what):
            known = {name: f" ({value})" for name, value in failure.facts.items()}
            interface = network.interface_in_use() or "not said"
            blank = {"batch": "", "shapes": "", "interface": interface}
            known["memory"] = failure.facts.get("memory", _SMALLER)
            return text.format(**{**blank, "asynchronous": _LATER if "device-side" in failure.what else "", **known})
    if re.search(r"(?:CUDA|HIP) error", failure.what):
        return f"a GPU reports an error when it is asked next{_LATER}"
    return None
