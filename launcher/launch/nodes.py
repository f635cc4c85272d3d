"""Several machines that are started by hand, one supervisor on each."""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from launcher.errors import LauncherError, UsageError

MEETING_SECONDS = 900.0  # how long the nodes may be started apart


class NodesError(LauncherError):
    """The other nodes did not come."""


@dataclass(frozen=True)
class Nodes:
    """This machine among those of the run.

    Attributes:
        count: How many.
        rank: This one, from 0; the first one's supervisor is where they meet.
        host: Name or address of the first one.
        port: Where it listens.
    """

    count: int = 1
    rank: int = 0
    host: str = "localhost"
    port: int = 0

    @staticmethod
    def parse(count: int, rank: int | None, master: str | None, restarts: int = 0) -> Nodes:
        """Reads `--nodes`, `--node-rank` and `--master`.

        Args:
            count: How many machines.
            rank: This one among them.
            master: `HOST:PORT`.
            restarts: What `--max-restarts` says.

        Raises:
            UsageError: One is missing, or makes no sense.
        """
        if count == 1:
            if rank or master:
                raise UsageError("--node-rank and --master go with --nodes N, on each of the N machines")
            return Nodes()
        if rank is None or master is None:
            raise UsageError(
                f"--nodes {count}: start the same command on each machine with its own --node-rank, 0 to {count - 1}, "
                "and --master HOST:PORT, an address of the first one that the others reach"
            )
        if not 0 <= rank < count:
            raise UsageError(f"--node-rank {rank}: {count} nodes have the ranks 0 to {count - 1}")
        if restarts:
            # the static rendezvous keeps its store, with the addresses of processes that are dead
            raise UsageError(
                "--max-restarts: over several nodes this version does not restart by itself; start the same command "
                "again with the same --run-dir: it goes on from the last checkpoint"
            )
        host, _, port = master.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise UsageError(f"--master {master}: write HOST:PORT, as in 10.0.0.1:29500")
        return Nodes(count, rank, host.strip("[]"), int(port))

    @property
    def run_id(self) -> str:
        """What tells this run's agents from others' on the same port."""
        return str(os.getpid()) if self.count == 1 else "launcher"

    def rendezvous(self) -> dict[str, Any]:
        """The agent's settings: a free port of its own for one node; a fixed meeting point, by rank, for several."""
        if self.count == 1:
            return {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0"}
        return {
            "rdzv_backend": "static",
            "rdzv_endpoint": f"{self.host}:{self.port}",
            "rdzv_configs": {"rank": self.rank, "timeout": int(MEETING_SECONDS)},
        }

    def agree_on(self, folder: Path) -> Path:
        """The run's folder that the first node chose, on all of them.

        Raises:
            NodesError: The first node's port is in use, or it is not reached.
        """
        if self.count == 1:
            return folder
        if self.rank == 0:
            self._check_port()
        else:
            self._wait_for_first()
        from torch.distributed import TCPStore  # type: ignore[attr-defined]  # exported, says its own documentation

        # the agent's own store, which it makes a moment later: a second one in this process is the same
        store = TCPStore(
            self.host,
            self.port,
            is_master=self.rank == 0,
            timeout=timedelta(seconds=MEETING_SECONDS),
            wait_for_workers=False,
            multi_tenant=True,
        )
        object.__setattr__(self, "_store", store)  # lives as long as this
        if self.rank == 0:
            store.set("launcher/folder", str(folder))
            return folder
        return Path(store.get("launcher/folder").decode())

    def _check_port(self) -> None:
        try:
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("", self.port))
        except OSError as error:
            raise NodesError(
                f"--master {self.host}:{self.port}: {error.strerror or error}; another program uses that port, choose "
                "another one on all nodes"
            ) from error

    def _wait_for_first(self) -> None:
        deadline = time.monotonic() + MEETING_SECONDS
        while True:
            try:
                socket.create_connection((self.host, self.port), timeout=5).close()
                return
            except OSError as error:
                if time.monotonic() > deadline:
                    raise NodesError(
                        f"--master {self.host}:{self.port}: the first node is not reached ({error.strerror or error}); "
                        "is it started, and does a firewall stand between?"
                    ) from error
                time.sleep(0.5)
