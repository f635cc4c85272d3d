"""torch's elastic agent, extended as its documentation says: starts a machine's processes, and all again if one fails.

Everything of torch's is imported inside functions: the command line imports this module and must not wait for torch.
"""

from __future__ import annotations

import inspect
import itertools
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from launcher.launch.nodes import Nodes

if TYPE_CHECKING:
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
    from torch.distributed.elastic.multiprocessing import LogsSpecs
    from torch.distributed.elastic.rendezvous import RendezvousHandler
    from torch.distributed.launcher.api import LaunchConfig

Starting = Callable[[int], None]  # told of each start of the processes, from 0, before they are there
Ended = Callable[[int, int, float], None]  # told of each that failed: its rank, its exit code, when it was found


def run_agent(
    command: Sequence[str],
    *,
    nodes: Nodes,
    processes: int,
    max_restarts: int,
    leaving_seconds: int,
    starting: Starting,
    ended: Ended,
) -> None:
    """Runs `python COMMAND` in every process of this machine until all have ended.

    Args:
        command: What Python runs.
        nodes: This machine among several.
        processes: How many this machine has.
        max_restarts: How often all are started again when one has failed.
        leaving_seconds: What those that still run at the end are granted; an older torch grants 30 seconds, always.
        starting: Told of each start.
        ended: Told of each failure.
    """
    config = _config(nodes, processes, max_restarts)
    with _unheard("torch.distributed.elastic"):
        _agent(config, nodes, _handler(nodes), command, leaving_seconds, starting, ended).run()


def _handler(nodes: Nodes) -> RendezvousHandler:
    """Where the processes meet: the supervisors have met already, and who is there stays as it is.

    torch's own go by the machine's name, which need not mean this machine, or anything. On one machine each start has a
    store of its own: what processes that are dead have left in it would be taken for that of the next.
    """
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]
    from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousStoreInfo

    stores = []  # kept: processes that are being ended may still speak to the one before

    class Met(RendezvousHandler):
        @property
        def use_agent_store(self) -> bool:
            return True

        def get_backend(self) -> str:
            return "static"

        def next_rendezvous(self) -> RendezvousInfo:
            stores.append(nodes.open_store())
            place = RendezvousStoreInfo(nodes.address, stores[-1].port)
            return RendezvousInfo(PrefixStore(nodes.run_id, stores[-1]), nodes.rank, nodes.count, place)

        def is_closed(self) -> bool:
            return False

        def set_closed(self) -> None:
            pass

        def num_nodes_waiting(self) -> int:
            return 0

        def get_run_id(self) -> str:
            return nodes.run_id

        def shutdown(self) -> bool:
            return True

    return Met()


def _config(nodes: Nodes, processes: int, max_restarts: int) -> LaunchConfig:
    """What torchrun would make of it, with its defaults: the binding of processes to memory nodes among them."""
    from torch.distributed.launcher.api import LaunchConfig

    return LaunchConfig(
        min_nodes=nodes.count,
        max_nodes=nodes.count,
        nproc_per_node=processes,
        run_id=nodes.run_id,
        max_restarts=max_restarts,
        monitor_interval=0.1,
        logs_specs=_untouched(),
    )


def _untouched() -> LogsSpecs:
    """The processes keep the screen: each copies or moves its output itself."""
    from torch.distributed.elastic.multiprocessing import LogsDest, LogsSpecs

    class Untouched(LogsSpecs):
        root_log_dir = ""

        def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
            nowhere = dict.fromkeys(envs, "")
            return LogsDest(stdouts=nowhere, stderrs=nowhere, error_files=nowhere)

    return Untouched()


def _agent(
    config: LaunchConfig,
    nodes: Nodes,
    handler: RendezvousHandler,
    command: Sequence[str],
    leaving_seconds: int,
    starting: Starting,
    ended: Ended,
) -> LocalElasticAgent:
    from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent

    starts = itertools.count()

    class Agent(LocalElasticAgent):
        """Says what it is about to do and what it has found; two of the methods that an agent is made of."""

        def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
            starting(next(starts))
            pids: dict[int, Any] = super()._start_workers(worker_group)
            return pids

        def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
            looked = time.time()  # now: the agent ends the others before it tells of the first
            result: RunResult = super()._monitor_workers(worker_group)
            for rank, failure in result.failures.items():
                ended(rank, failure.exitcode, max(looked, failure.timestamp))  # a timestamp is in whole seconds
            return result

    spec = WorkerSpec(
        role=config.role,
        local_world_size=config.nproc_per_node,
        entrypoint=sys.executable,
        args=("-u", *command),
        rdzv_handler=handler,
        max_restarts=config.max_restarts,
        monitor_interval=config.monitor_interval,
        numa_options=config.numa_options,
    )
    assert config.logs_specs is not None
    takes_it = "shutdown_timeout" in inspect.signature(LocalElasticAgent).parameters  # torch 2.10 does not
    granted: dict[str, Any] = {"shutdown_timeout": leaving_seconds} if takes_it else {}
    return Agent(spec, config.logs_specs, config.start_method, **granted)


@contextmanager
def _unheard(name: str) -> Iterator[None]:
    """Keeps what a library logs off the screen for a while: it is reported in our own words."""
    log, nowhere = logging.getLogger(name), logging.NullHandler()
    before, log.propagate = log.propagate, False
    log.addHandler(nowhere)
    try:
        yield
    finally:
        log.removeHandler(nowhere)
        log.propagate = before
