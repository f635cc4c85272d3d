"""Where the ranks of an srun step find rank 0, and how rank 0 knows that all others have left.

torch wants an address and a free port that all ranks know before they can speak. The address is the step's first node.
Ports follow from the job, so that all ranks try the same ones: at the first that is free there, rank 0 tells whoever
names the same step the port of the process group. Jobs that share a node cannot meet, whatever ports they try.

A rank's connection stays open until its process ends. Under `srun --kill-on-bad-exit` the rank that ends with 75 must
be the last one: it waits until all connections are closed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import selectors
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil

from launcher.errors import EXIT_DONE, EXIT_PREEMPTED, EXIT_USAGE, LauncherError
from launcher.world.failure import Failure, Notes, first_of, from_json, of_exception
from launcher.world.world import World

FIRST_PORT, LAST_PORT = 15_000, 31_999  # below those that systems give to outgoing connections
TRIES = 50
_RETRY_SECONDS = 0.2
_ANSWER_SECONDS = 5.0
_GOODBYE_SECONDS = 5.0  # what the others may take to leave word, before srun ends them all
_FIRST_SECONDS = 2.0  # what rank 0 may take to end, where its end is what made the others fail
_LOOPBACK = "127.0.0.1"
_ENDED = "its process has ended without a word: it was killed, or its node is lost"
_MUTE = "gives no answer: it hangs, or its node is cut off"
_peers: dict[int, Peer] = {}  # by rank; held until the process ends: their closing is what the other side waits for


@dataclass(frozen=True)
class Peer:
    """The process of another rank.

    Attributes:
        host: Its node.
        connection: Open for as long as it lives.
        address: Of rank 0, as this process has reached it.
    """

    host: str
    connection: socket.socket
    address: str = ""


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
    port = meet(world, time.monotonic() + timeout_seconds)
    variables = {
        "RANK": world.rank,
        "WORLD_SIZE": world.size,
        "LOCAL_RANK": world.local_rank,
        "LOCAL_WORLD_SIZE": world.local_size,
        "MASTER_ADDR": _own_address(world) if world.is_first else _peers[0].address,
        "MASTER_PORT": port,
    }
    os.environ.update({name: str(value) for name, value in variables.items()})
    _choose_interface()
    try:
        yield
    finally:
        for name in variables:
            del os.environ[name]


def leave_last(timeout_seconds: float = 60.0) -> None:
    """Rank 0: waits until the processes of all other ranks have ended."""
    deadline = time.monotonic() + timeout_seconds
    for peer in _peers.values():
        peer.connection.settimeout(max(0.01, deadline - time.monotonic()))
        with contextlib.suppress(OSError):
            peer.connection.recv(1)  # nothing is sent any more: this ends when the other side does


def code_of_a_stop(world: World) -> int:
    """75 where a run is to be continued and somebody hears it: under srun of rank 0, which leaves last.

    Under an elastic agent every rank ends with 0: any other code would make it start them again, or end the last one.
    """
    if world.started_by == "srun" and world.is_first:
        leave_last()
        return EXIT_PREEMPTED
    return EXIT_DONE if world.is_launched else EXIT_PREEMPTED


def judged(failure: Failure, world: World) -> tuple[Failure, list[Failure]] | None:
    """What this rank is to report, and what befell the others; None where that is for another rank to say.

    Every rank leaves word with rank 0. One that is killed cannot: its connection closes, and nothing was said. Rank 0
    speaks for it; where rank 0 is the one, the others do.

    Args:
        failure: This rank's own.
        world: The processes.
    """
    if not _peers:
        return failure, []
    _tell(failure)
    if not failure.is_aftermath:
        return failure, _heard(world, 0.0)
    others = _heard(world, _GOODBYE_SECONDS if world.is_first else _FIRST_SECONDS)
    if not world.is_first:
        return (others[0], [failure]) if others and others[0].is_silent else None
    first = first_of([failure, *others]) or failure
    return first, [one for one in (failure, *others) if one is not first]


@contextmanager
def mistakes_told(world: World, folder: str | None) -> Iterator[None]:
    """Leaves word of a mistake of usage, with the other ranks and with the batch script.

    srun ends all ranks then, and with their code instead of this one's.

    Args:
        world: The processes.
        folder: The run's, if it was said.
    """
    try:
        yield
    except LauncherError as error:
        if world.step is not None and error.exit_code == EXIT_USAGE:
            failure = of_exception(error, rank=world.rank, world=world.size)
            _tell(failure)
            if folder is not None and Path(folder).is_dir():
                Notes(Path(folder)).write(failure)
        raise


def tell(failure: Failure) -> None:
    """Leaves word with rank 0 of how this rank stands, for when it has to say which of them made all fail."""
    if 0 in _peers:
        _tell(failure)


def _tell(failure: Failure) -> None:
    """To rank 0; rank 0 to all others."""
    said = json.dumps(asdict(replace(failure, traceback="", facts={}))).encode() + b"\n"
    for peer in _peers.values():
        with contextlib.suppress(OSError):
            peer.connection.settimeout(1.0)
            peer.connection.sendall(said)


def _heard(world: World, seconds: float) -> list[Failure]:
    """What those at the other ends have said, or failed to say before they ended; waits a while for all."""
    deadline, texts, closed = time.monotonic() + seconds, dict.fromkeys(_peers, b""), set[int]()
    with selectors.DefaultSelector() as waiting:
        for rank, peer in _peers.items():
            waiting.register(peer.connection, selectors.EVENT_READ, rank)
        while waiting.get_map():
            ready = waiting.select(max(0.0, deadline - time.monotonic()))
            for key, _ in ready:
                piece = _piece(_peers[key.data].connection)
                texts[key.data] += piece
                if not piece:
                    closed.add(key.data)
                if not piece or piece.endswith(b"\n"):
                    waiting.unregister(key.fileobj)
            if not ready:
                break
    words = {rank: _word(text) for rank, text in texts.items()}
    found = [word for word in words.values() if word is not None]
    mute = [rank for rank, word in words.items() if word is None]
    found += [_silent(rank, world, _ENDED) for rank in mute if rank in closed]
    nobody_else = not closed and all(one.is_aftermath for one in found)
    if world.is_first and seconds and nobody_else and len({_peers[rank].host for rank in mute}) == 1:
        found += [_silent(rank, world, _MUTE) for rank in mute]  # of several hosts most would be innocent
    return found


def _piece(connection: socket.socket) -> bytes:
    connection.settimeout(_ANSWER_SECONDS)
    try:
        return connection.recv(65_536)
    except OSError:
        return b""


def _word(text: bytes) -> Failure | None:
    """Of what a rank has said, its own failure rather than what another's did to it."""
    found = [one for line in text.splitlines() if (one := from_json(line)) is not None]
    return next((one for one in found if not one.is_aftermath), found[-1] if found else None)


def _silent(rank: int, world: World, what: str) -> Failure:
    return Failure(what, rank=rank, world=world.size, host=_peers[rank].host, is_silent=True)


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
    if "GLOO_SOCKET_IFNAME" in os.environ or not _peers:
        return
    met = (peer.connection.getsockname()[0].removeprefix("::ffff:") for peer in _peers.values())
    here = {_LOOPBACK if address.startswith("127.") else address for address in met}
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address.partition("%")[0] in here for one in addresses):
            os.environ["GLOO_SOCKET_IFNAME"] = name
            return


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
            _peers[rank] = Peer(host, peer)
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
    one = socket.socket(socket.AF_INET6 if both else socket.AF_INET, socket.SOCK_STREAM)
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if both:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        one.bind((address, port))
    except OSError:
        one.close()
        raise
    return one


def _greeted(peer: socket.socket, step: str) -> tuple[int, str]:
    """The rank that has come, and its node; -1 for a stranger."""
    peer.settimeout(_ANSWER_SECONDS)
    try:
        said, rank, host = _line(peer).split(" ")
    except (OSError, ValueError):
        return -1, ""
    return (int(rank), host) if said == step and rank.isascii() and rank.isdigit() else (-1, "")


def _visit(world: World, deadline: float) -> int:
    """Another rank: asks at all ports of the step in turn until rank 0 answers."""
    wrong: dict[str, str] = {}
    while time.monotonic() < deadline:
        for address in _addresses(world):
            for port in ports(str(world.step)):
                try:
                    if (found := _asked(world, address, port)) is not None:
                        return found
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
        said, _, answer = _line(peer).rpartition(" ")
        if said != world.step or not answer.isdigit():
            peer.close()
            return None
    except OSError:
        peer.close()
        raise
    _peers[0] = Peer(str(world.host), peer, address)
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
