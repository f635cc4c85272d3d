"""Several machines that are started by hand, one supervisor on each."""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.errors import LauncherError, UsageError
from launcher.text import spans
from launcher.world import network
from launcher.world.waiting import Wait, pauses, ranks

if TYPE_CHECKING:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

_RETRY_SECONDS = 0.5
_STORE_SECONDS = 300.0  # for an answer of a supervisor that is there


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
    host: str = ""
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
                "again with the same --run-dir: it resumes from the last checkpoint"
            )
        host, _, port = master.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise UsageError(f"--master {master}: write HOST:PORT, as in 10.0.0.1:29500")
        return Nodes(count, rank, host.strip("[]"), int(port))

    @property
    def run_id(self) -> str:
        """What tells this run's agents from others' on the same port."""
        return str(os.getpid()) if self.count == 1 else "launcher"

    def agree_on(self, folder: Path, processes: int, wait: Wait) -> Path:
        """The run's folder that the first node chose, on all of them, when all have come.

        Args:
            folder: The one that this node would choose.
            processes: How many each node starts.
            wait: What is waited for, and how long: it is kept true.

        Raises:
            NodesError: The first node's port is in use, or not all came in time.
        """
        if self.count == 1:
            return folder
        if self.rank == 0:
            self._check_port()
        else:
            self._wait_for_first(processes, wait)
        store = self.open_store()
        object.__setattr__(self, "_store", store)  # lives as long as this
        store.set(f"launcher/node/{self.rank}", self._seen())
        if self.rank == 0:
            store.set("launcher/folder", str(folder))
        self._wait_for_all(store, processes, wait)
        return Path(store.get("launcher/folder").decode())

    @property
    def address(self) -> str:
        """Where the processes meet, from this machine. The first one's own name may be known to the others alone.

        Raises:
            UsageError: This machine is the only one, and has no loopback network.
        """
        is_unknown = self.count == 1 or (self.rank == 0 and not network.addresses(self.host))
        return network.loopback() if is_unknown else self.host

    def open_store(self) -> TCPStore:
        """What the processes meet at, held by the first node: of one node a new one each time, at a free port.

        Of several nodes it is one and the same.
        """
        from torch.distributed import TCPStore  # type: ignore[attr-defined]  # exported, says its own documentation

        kept: TCPStore | None = getattr(self, "_store", None)
        return kept or TCPStore(
            self.address,
            self.port,
            is_master=self.rank == 0,
            timeout=timedelta(seconds=_STORE_SECONDS),
            wait_for_workers=False,
            multi_tenant=self.count > 1,
        )

    def unanswered(self, wait: Wait) -> str:
        """What to say where somebody listens at the first node's place, and speaks otherwise than it would."""
        return (
            f"--master {self.host}:{self.port}: something listens there and does not answer as the first node does, "
            f"for {wait.seconds:g} seconds; is it another program's port? launch.meeting_timeout says how long to wait"
        )

    def interface(self) -> str | None:
        """The network interface over which this node's processes speak to the others'; None where that is not clear.

        The others know by which address they have reached the first one. It may be called otherwise by itself.
        """
        store = getattr(self, "_store", None)
        if self.rank == 0 and store is not None:
            seen = store.get("launcher/node/1").decode()
            if seen and (interface := network.interface_of(seen)) is not None:
                return interface
        return network.interface_towards(self.host or self.address, self.count)

    def _seen(self) -> str:
        """The first node's address, as this one reaches it."""
        if self.rank == 0:
            return ""
        try:
            with socket.create_connection((self.host, self.port), timeout=5) as connection:
                return str(connection.getpeername()[0])
        except OSError:
            return ""

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

    def _wait_for_first(self, processes: int, wait: Wait) -> None:
        wait.what, wait.why = self._ranks([0], processes), None
        wait.host, wait.port = self.host, self.port
        pause = pauses(_RETRY_SECONDS)
        while fault := network.fault_of(self.host, self.port):
            if wait.is_over:
                raise NodesError(
                    f"--master {self.host}:{self.port}: the first node is not reached ({fault}); is it started, and "
                    "does a firewall stand between?"
                )
            time.sleep(next(pause))

    def _wait_for_all(self, store: TCPStore, processes: int, wait: Wait) -> None:
        missing = list(range(self.count))
        while missing := [node for node in missing if not store.check([f"launcher/node/{node}"])]:
            wait.what, wait.why = self._ranks(missing, processes), "not there yet"
            wait.host, wait.port = self.host, self.port
            if wait.is_over:
                raise NodesError(
                    f"--master {self.host}:{self.port}: {wait.whom} did not come within {wait.seconds:g} seconds; were "
                    "they started, with this --master? launch.meeting_timeout says how long to wait"
                )
            time.sleep(_RETRY_SECONDS / 5)

    def _ranks(self, nodes: list[int], processes: int) -> str:
        awaited = [rank for node in nodes for rank in range(node * processes, (node + 1) * processes)]
        return f"{ranks(awaited, self.count * processes)} (node{'s' * (len(nodes) > 1)} {spans(nodes)})"
