"""What is known about failures of a kind, and what to do about them."""

from __future__ import annotations

import re

from launcher.world import network
from launcher.world.failure import Failure

_HINTS: tuple[tuple[str, str], ...] = (
    (
        r"CUDA out of memory|OutOfMemoryError|CUBLAS_STATUS_ALLOC_FAILED",
        "the GPU's memory is full{batch}; halve data.micro_batch_size (the result stays the same), or use "
        "device.precision=bf16 or more processes",
    ),
    (
        r"signal 9|MemoryError|Cannot allocate memory|can't allocate memory|DefaultCPUAllocator",
        "if it was memory{batch}: use fewer data.workers or processes, or a smaller data.micro_batch_size; "
        "the kernel's word on it: dmesg | grep -i 'killed process'",
    ),
    (
        r"worker process \d+ was killed|'/dev/shm/",
        "memory of the machine, or /dev/shm, may be full or not to be written{batch}: use fewer data.workers, or none",
    ),
    (
        r"NCCL error|ncclSystemError|ncclUnhandledCudaError",
        "start again with NCCL_DEBUG=WARN, and run `launcher doctor`",
    ),
    (
        r"Expected to have finished reduction|did not receive grad",
        "parameters of the model were not used in the loss{unused}; use them, remove them or freeze them, or allow it: "
        "device.ddp.find_unused_parameters=true (it costs time)",
    ),
    (
        r"shapes? cannot be multiplied|size mismatch|must match the size|[Ee]xpected .* to have \d+ channels"
        r"|[Ee]xpected input batch_size|shape '.*' is invalid|Expected target size|Dimension out of range"
        r"|[Ss]izes of tensors must match|stack expects each tensor to be equal size",
        "shapes do not fit{shapes}; `launcher data RECIPE` shows what the data set gives",
    ),
    (
        r"Target -?\d+ is out of bounds|device-side assert",
        "a class is out of range: are there more than the model has?",
    ),
    (r"No space left on device", "the disk is full: `df -h` shows which"),
    (r"Too many open files", "raise the limit (ulimit -n 65536), or use fewer data.workers"),
)
# about how ranks reach each other: not where the user's own code lost a connection of its own
_HINTS_ABOUT_RANKS: tuple[tuple[str, str], ...] = (
    (
        r"Address already in use|EADDRINUSE|errno: 98",
        "another program uses that port: choose another --master HOST:PORT, or leave it away on one node",
    ),
    (
        r"[Uu]nable to find address for|couldn't find .*interface|no socket interface|Bootstrap : no socket"
        r"|connectFullMesh failed|Unable to resolve hostname|launch\.meeting_timeout: .*connections of the ranks",
        "name the network interface that reaches the other machines (ip addr lists them), as in launch.interface=eth0 "
        "or GLOO_SOCKET_IFNAME=eth0; it was {interface}; firewalls must let the machines speak to one another",
    ),
    (
        r"launch\.meeting_timeout: .*name unknown",
        "the name of rank 0's machine has no address here: name it by its address, or put it into /etc/hosts",
    ),
    (
        r"launch\.meeting_timeout",
        "were all processes started, and does a firewall stand between? Where they take longer to come (to prepare "
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


def hint_for(failure: Failure) -> str | None:
    """What is known about such a failure, and what to do."""
    for pattern, text in (*_HINTS, *(() if failure.is_users else _HINTS_ABOUT_RANKS)):
        if re.search(pattern, failure.what):
            known = {name: f" ({value})" for name, value in failure.facts.items()}
            interface = network.interface_in_use() or "not said"
            return text.format(**{"batch": "", "shapes": "", "unused": "", "interface": interface, **known})
    return None
