"""Which servers are asked while a recipe is rehearsed: those that nobody has announced are told."""

from __future__ import annotations

import functools
import socket
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

_KIN = {  # of a server that was announced: where it sends those who ask
    "huggingface.co": ("hf.co",),
    "Amazon S3": ("amazonaws.com",),
    "Google Cloud Storage": ("googleapis.com",),
    "github.com": ("githubusercontent.com",),
}
_ANY = "the data set's own server"
_listeners: list[dict[str, None]] = []


@contextmanager
def noted_hosts() -> Iterator[dict[str, None]]:
    """The names that Python looks up within, in any thread of this process; compiled code is not heard."""
    _listen()
    hosts: dict[str, None] = {}
    _listeners.append(hosts)
    try:
        yield hosts
    finally:
        _listeners.remove(hosts)


@functools.cache
def _listen() -> None:
    sys.addaudithook(_hear)  # for as long as the process lives


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if not _listeners or event not in ("socket.getaddrinfo", "socket.gethostbyname"):
        return
    host = arguments[0].decode(errors="replace") if isinstance(arguments[0], bytes) else arguments[0]
    if isinstance(host, str) and host and host != socket.gethostname():
        for hosts in _listeners:
            hosts.setdefault(host)


def unannounced(hosts: Iterable[str], servers: Iterable[str]) -> list[str]:
    """Those hosts that nothing has announced.

    Args:
        hosts: As they were looked up.
        servers: As `Builder.reached` says them, several of one place with commas.
    """
    words = [part.partition(" (")[0] for server in servers for part in server.split(", ")]
    if _ANY in words:
        return []
    known = [name.partition(":")[0] for word in words for name in (word, *_KIN.get(word, ()))]
    return [host for host in hosts if not any(host == name or host.endswith(f".{name}") for name in known)]
