"""A user's own code with an accident in it: `ACCIDENT` says which, on rank 1."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, get_worker_info

ACCIDENT = os.environ.get("ACCIDENT", "")
RANK = int(os.environ.get("RANK", "0"))

if ACCIDENT in ("raise", "kill once"):
    print(f"Python says: rank {RANK}")
    print(f"Python complains: rank {RANK}", file=sys.stderr)
    ctypes.CDLL(None).printf(b"C says: rank %d\n", RANK)
    os.system(f"echo a program says: rank {RANK}")
if ACCIDENT == "import" and RANK == 1:
    raise ImportError("no module named 'cv3'")


class Points(Dataset[tuple[Tensor, Tensor]]):
    """Points of three classes."""

    def __init__(self, size: int = 64) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if ACCIDENT == "worker" and RANK == 1 and get_worker_info() is not None and index >= 32:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.randn(4, generator=torch.Generator().manual_seed(index)), torch.tensor(index % 3)


class Net(nn.Module):
    """A linear classifier that comes to grief in its fourth step."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.spare = nn.Linear(2, 2) if ACCIDENT == "unused" else None
        self.calls = 0

    def forward(self, points: Tensor) -> Any:
        """Logits."""
        self.calls += self.training
        if ACCIDENT == "slow" and not self.training:  # one evaluation takes a minute
            Path("evaluates").touch()
            time.sleep(1)
        if self.calls == 4 and RANK == 1:
            happen(self, points)
        return self.layer(points)


def happen(net: Net, points: Tensor) -> None:
    """The accident."""
    if ACCIDENT == "raise":
        raise ValueError("the fourth batch is bad")
    if ACCIDENT == "shape":
        net.layer(points[:, :3])
    if ACCIDENT == "exit 7":
        os._exit(7)
    if ACCIDENT == "exit 0":
        os._exit(0)
    if ACCIDENT == "sys.exit":
        sys.exit(0)
    if ACCIDENT == "segv":
        ctypes.string_at(0)
    if ACCIDENT == "kill" or (ACCIDENT == "kill once" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"):
        os.kill(os.getpid(), signal.SIGKILL)
    if ACCIDENT == "sleep":
        time.sleep(10_000)
