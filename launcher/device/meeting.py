"""Where the ranks meet before they have a process group: all are there, or whoever waits says for whom."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any

from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # as documented
from torch.distributed.rendezvous import register_rendezvous_handler

from launcher.world import network
from launcher.world.waiting import Wait, pauses, ranks
from launcher.world.world import World, is_served_by_agent, master

_SCHEME = "launcher"
_POLL_SECONDS = 0.05
_RETRY_SECONDS = 0.5
_starts = itertools.count()
# Kept: rank 0's may be the server, which cannot be made again while others still speak to it.
_stores: dict[tuple[str, int], Any] = {}
_waiting: list[tuple[World, Wait, float]] = []  # who makes a process group now


@contextmanager
def meeting(world: World, wait: Wait, seconds: float) -> Iterator[str]:
    """Gives the URL at which the process group that is made inside finds all ranks.

    Args:
        world: The processes, as the environment says.
        wait: What is waited for: it is kept true.
        seconds: How long the ranks may take to connect, when all have come.
    """
    _register()
    _waiting.append((world, wait, seconds))
    try:
        yield f"{_SCHEME}://"
    finally:
        _waiting.pop()


@cache
def _register() -> None:
    register_rendezvous_handler(_SCHEME, _meet)


def _meet(url: str, *, timeout: timedelta, **options: Any) -> Iterator[tuple[PrefixStore, int, int]]:
    """A store of this start's own, when all ranks are there.

    A script may train twice in the world that torchrun made, and torchrun keeps its store when it starts the processes
    again: what was left there (addresses, a stop request) would be taken for this one's.
    """
    world, wait, seconds = _waiting[-1]
    store = PrefixStore(f"{_SCHEME}/{world.restarts}/{next(_starts)}", _store(world, wait, timeout))
    store.set(f"here/{world.rank}", "")
    missing, pause = list(range(world.size)), pauses(_POLL_SECONDS)
    while missing := [rank for rank in missing if not store.check([f"here/{rank}"])]:
        wait.what, wait.why = ranks(missing, world.size), "not there yet"
        time.sleep(next(pause))
    interface = network.interface_in_use()
    over = f"over {interface}; launch.interface names another" if interface else "launch.interface names the network"
    wait.turn("the connections of the ranks to one another", over, seconds)
    yield store, world.rank, world.size


def _store(world: World, wait: Wait, timeout: timedelta) -> Any:
    """That of `env://`: at the place that the environment names, held by rank 0 or by an elastic agent."""
    host, port = wait.host, wait.port = master()
    if (host, port) not in _stores:
        host_here, is_server = host, world.is_first and not is_served_by_agent()
        if not is_server:
            wait.what, pause = ranks([0], world.size), pauses(_RETRY_SECONDS)
            while network.fault_of(host, port):  # torch's own client would fill the screen
                time.sleep(next(pause))
        elif not network.addresses(host):
            host_here = network.loopback()  # its own name may be known to the others alone
        _stores[host, port] = TCPStore(
            host_here, port, world.size, is_server, timeout=timeout, wait_for_workers=False, multi_tenant=True
        )
    return _stores[host, port]
