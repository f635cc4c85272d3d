"""Where the ranks of an srun step find rank 0.

torch wants an address and a free port that all ranks know before they can speak. The address is the step's first node.
Ports follow from the job, so that all ranks try the same ones: at the first that is free there, rank 0 tells whoever
names the same step the port of the process group. Jobs that share a node cannot meet, whatever ports they try.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from launcher.errors import LauncherError
from launcher.world import network, peers
from launcher.world.waiting import Wait, guarded, ranks
from launcher.world.world import World

FIRST_PORT, LAST_PORT = 15_000, 31_999  # below those that systems give to outgoing connections
TRIES = 50
_RETRY_SECONDS = 0.2
_ANSWER_SECONDS = 5.0
_LOOPBACK = "127.0.0.1"


@contextmanager
def gathered(world: World, timeout_seconds: float) -> Iterator[None]:
    """Sets what torch makes a process group from, for the ranks of an srun step; does nothing in other worlds.

    Args:
        world: The processes, as the environment says.
        timeout_seconds: How long ranks may be late.

    Raises:
        LauncherError: Not all ranks came.
    """
    if world.step is None or world.host is None:
        yield
        return
    meet = _receive if world.is_first else _visit
    wait = Wait(partial(_awaited, world), timeout_seconds + _ANSWER_SECONDS)  # who meets gives up a little sooner
    if world.is_first:
        wait.why = "not there yet"
    else:
        wait.host, wait.port = _addresses(world)[0], ports(world.step)[0]
    with guarded(wait, world):
        port = meet(world, time.monotonic() + timeout_seconds)
    variables = {
        "RANK": world.rank,
        "WORLD_SIZE": world.size,
        "LOCAL_RANK": world.local_rank,
        "LOCAL_WORLD_SIZE": world.local_size,
        "MASTER_ADDR": _own_address(world) if world.is_first else peers.known[0].address,
        "MASTER_PORT": port,
    }
    os.environ.update({name: str(value) for name, value in variables.items()})
    _choose_interface()
    try:
        yield
    finally:
        for name in variables:
            del os.environ[name]


def _awaited(world: World) -> str:
    return ranks(
        [rank for rank in range(1, world.size) if rank not in peers.known] if world.is_first else [0], world.size
    )


def _addresses(world: World) -> list[str]:
    """Of rank 0, from where this process is: as the site file says, by SLURM's name, by the address that SLURM has."""
    if world.nodes == 1:
        return [_LOOPBACK]
    named = world.master.replace("{host}", str(world.host)) if world.master else ""
    return [named] if named else [*dict.fromkeys(filter(None, (str(world.host), world.host_address)))]


def _choose_interface() -> None:
    """Has gloo use the interface over which the ranks have met, unless one is named: it would go by the host's name.

    That name means another address than the others use, or none, on many machines.
    """
    if network.GLOO_VARIABLE in os.environ or not peers.known:
        return
    met = (peer.connection.getsockname()[0].removeprefix("::ffff:") for peer in peers.known.values())
    here = (_LOOPBACK if address.startswith("127.") else address for address in met)
    if (interface := network.interface_of(*here)) is not None:
        os.environ[network.GLOO_VARIABLE] = interface


def ports(step: str) -> list[int]:
    """The ports that a step's ranks try, in order; each has the process group's beside it."""
    start = int.from_bytes(hashlib.sha256(step.encode()).digest()[:4], "big")
    pairs = (LAST_PORT - FIRST_PORT) // 2
    return [FIRST_PORT + 2 * ((start + number) % pairs) for number in range(TRIES)]


def _receive(world: World, deadline: float) -> int:
    """Rank 0: tells every other rank the port of the process group."""
    desk, port = _listen(str(world.step), "" if world.nodes > 1 else _LOOPBACK)
    waited_for = set(range(1, world.size))
    with desk:
        while waited_for:
            desk.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                peer, _ = desk.accept()
            except TimeoutError:
                raise LauncherError(_missing(world, sorted(waited_for))) from None
            rank, host = _greeted(peer, str(world.step))
            if rank not in waited_for:
                peer.close()  # somebody else's, or a rank that has been here
                continue
            peer.sendall(f"{world.step} {port}\n".encode())
            waited_for.remove(rank)
            peers.met(rank, peers.Peer(host, peer))
    return port


def _own_address(world: World) -> str:
    """Of rank 0, from its own process: its node's name, if it is known there."""
    try:
        socket.getaddrinfo(_addresses(world)[0], None)
        return _addresses(world)[0]
    except OSError:
        return _LOOPBACK


def _listen(step: str, address: str) -> tuple[socket.socket, int]:
    for port in ports(step):
        with contextlib.suppress(OSError):
            with _bound("", port + 1):  # free, and nobody's business but ours until torch takes it
                desk = _bound(address, port)
            desk.listen(1024)
            return desk, port + 1
    raise LauncherError(
        f"none of {TRIES} pairs of ports between {FIRST_PORT} and {LAST_PORT} is free on {socket.gethostname()}; "
        "start the job on another node"
    )


def _bound(address: str, port: int) -> socket.socket:
    """A socket at an address; at none, at all of this machine, of both kinds where it knows both."""
    both = address == "" and socket.has_dualstack_ipv6()
    endpoint = socket.socket(socket.AF_INET6 if both else socket.AF_INET, socket.SOCK_STREAM)
    try:
        endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if both:
            endpoint.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        endpoint.bind((address, port))
    except OSError:
        endpoint.close()
        raise
    return endpoint


def _greeted(peer: socket.socket, step: str) -> tuple[int, str]:
    """The rank that has come, and its node; -1 for a stranger."""
    peer.settimeout(_ANSWER_SECONDS)
    try:
        stated_step, rank, host = _line(peer).split(" ")
    except (OSError, ValueError):
        return -1, ""
    return (int(rank), host) if stated_step == step and rank.isascii() and rank.isdigit() else (-1, "")


def _visit(world: World, deadline: float) -> int:
    """Another rank: asks at all ports of the step in turn until rank 0 answers."""
    wrong: dict[str, str] = {}
    while time.monotonic() < deadline:
        for address in _addresses(world):
            for port in ports(str(world.step)):
                try:
                    if (group_port := _asked(world, address, port)) is not None:
                        return group_port
                except OSError as error:
                    wrong[address] = error.strerror or str(error)
                    if isinstance(error, socket.gaierror):
                        break  # the name is not known here, at no port
        time.sleep(_RETRY_SECONDS)
    tried = " and ".join(f"{address}: {text}" for address, text in wrong.items()) or str(world.host)
    raise LauncherError(
        f"rank {world.rank} did not find rank 0 on {tried}; can this node reach that one so? The site file's `master` "
        f"says how else. Ports {FIRST_PORT} to {LAST_PORT} must be open between nodes"
    )


def _asked(world: World, address: str, port: int) -> int | None:
    peer = socket.create_connection((address, port), timeout=_ANSWER_SECONDS)
    try:
        peer.sendall(f"{world.step} {world.rank} {platform.node()}\n".encode())
        step, _, answer = _line(peer).rpartition(" ")
        if step != world.step or not answer.isdigit():
            peer.close()
            return None
    except OSError:
        peer.close()
        raise
    peers.met(0, peers.Peer(str(world.host), peer, address))
    return int(answer)


def _line(peer: socket.socket) -> str:
    """One short line, or what there is of it when the other side leaves."""
    text = b""
    while not text.endswith(b"\n") and len(text) < 256:
        piece = peer.recv(256)
        if not piece:
            break
        text += piece
    return text.decode("utf-8", errors="replace").removesuffix("\n")


def _missing(world: World, ranks: list[int]) -> str:
    shown = ", ".join(map(str, ranks[:8])) + (", …" if len(ranks) > 8 else "")
    return f"rank{'s' * (len(ranks) > 1)} {shown} of {world.size} did not come; what the step printed may say why"
