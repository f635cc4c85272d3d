"""The other ranks of an srun step, by connections that stay open: what befell them, and when they have left.

A rank's connection closes when its process ends. Under `srun --kill-on-bad-exit` the rank that ends with 75 must be
the last one: it waits until all connections are closed.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from launcher.errors import EXIT_DONE, EXIT_PREEMPTED, EXIT_USAGE, LauncherError
from launcher.world.failure import Failure, of_exception
from launcher.world.notes import Notes, first_of, from_json
from launcher.world.world import World

_ANSWER_SECONDS = 5.0
_GOODBYE_SECONDS = 5.0  # what the others may take to leave word, before srun ends them all
_FIRST_SECONDS = 2.0  # what rank 0 may take to end, where its end is what made the others fail
_ENDED = "its process has ended without a message: it was killed, or its node is lost"
_MUTE = "gives no answer: it hangs, or its node is cut off"
known: dict[int, Peer] = {}  # by rank; held until the process ends: their closing is what the other side waits for


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


def met(rank: int, peer: Peer) -> None:
    """Holds a rank's connection, in place of that of an earlier run of this process, for which nobody waits."""
    former = known.get(rank)
    known[rank] = peer
    if former is not None:
        former.connection.close()


def leave_last(timeout_seconds: float = 60.0) -> None:
    """Rank 0: waits until the processes of all other ranks have ended."""
    deadline = time.monotonic() + timeout_seconds
    for peer in known.values():
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

    Every rank leaves word with rank 0. One that is killed cannot: its connection closes without a message. Rank 0
    speaks for it; where rank 0 is the one, the others do.

    Args:
        failure: This rank's own.
        world: The processes.
    """
    if not known:
        return failure, []
    _tell(failure)
    if not failure.is_aftermath:
        return failure, _heard(world, 0.0)
    others = _heard(world, _GOODBYE_SECONDS if world.is_first else _FIRST_SECONDS)
    if not world.is_first and others:
        return (others[0], [failure]) if others[0].is_silent else None
    first = first_of([failure, *others]) or failure
    return first, [candidate for candidate in (failure, *others) if candidate is not first]


@contextmanager
def mistakes_told(world: World, folder: str | None) -> Iterator[None]:
    """Leaves word of a mistake of usage, with the other ranks and with the batch script.

    srun ends all ranks then, and with their code instead of this one's.

    Args:
        world: The processes.
        folder: The run's, if it was given.
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
    if 0 in known:
        _tell(failure)


def _tell(failure: Failure) -> None:
    """To rank 0; rank 0 to all others."""
    message = json.dumps(asdict(replace(failure, traceback="", facts={}))).encode() + b"\n"
    for peer in known.values():
        with contextlib.suppress(OSError):
            peer.connection.settimeout(1.0)
            peer.connection.sendall(message)


def _heard(world: World, seconds: float) -> list[Failure]:
    """What those at the other ends have said, or failed to say before they ended; waits a while for all."""
    deadline, texts, closed = time.monotonic() + seconds, dict.fromkeys(known, b""), dict[int, float]()
    with selectors.DefaultSelector() as waiting:
        for rank, peer in known.items():
            waiting.register(peer.connection, selectors.EVENT_READ, rank)
        while waiting.get_map():
            ready = waiting.select(max(0.0, deadline - time.monotonic()))
            for key, _ in ready:
                piece = _piece(known[key.data].connection)
                texts[key.data] += piece
                if not piece:
                    closed[key.data] = time.time()
                if not piece or piece.endswith(b"\n"):
                    waiting.unregister(key.fileobj)
            if not ready:
                break
    words = {rank: _word(text) for rank, text in texts.items()}
    failures = [word for word in words.values() if word is not None]
    mute = [rank for rank, word in words.items() if word is None]
    failures += [_silent(rank, world, _ENDED, when) for rank, when in closed.items() if rank in mute]
    nobody_else = not closed and all(failure.is_aftermath for failure in failures)
    if world.is_first and seconds and nobody_else and len({known[rank].host for rank in mute}) == 1:
        # of several hosts most would be innocent
        failures += [_silent(rank, world, _MUTE, time.time()) for rank in mute]
    return failures


def _piece(connection: socket.socket) -> bytes:
    connection.settimeout(_ANSWER_SECONDS)
    try:
        return connection.recv(65_536)
    except OSError:
        return b""


def _word(text: bytes) -> Failure | None:
    """Of what a rank has said, its own failure rather than what another's did to it."""
    failures = [failure for line in text.splitlines() if (failure := from_json(line)) is not None]
    return next((failure for failure in failures if not failure.is_aftermath), failures[-1] if failures else None)


def _silent(rank: int, world: World, what: str, when: float) -> Failure:
    return Failure(what, rank=rank, world=world.size, host=known[rank].host, is_silent=True, time=when)
