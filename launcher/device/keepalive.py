"""The side channel's connections, watched by the kernel."""

from __future__ import annotations

import os
import socket
from contextlib import suppress


def open_files() -> set[int]:
    """This process's open files, where the system lists them (Linux)."""
    try:
        return {int(name) for name in os.listdir("/proc/self/fd")}
    except OSError:
        return set()


def watch_connection(descriptor: int, seconds: float) -> None:
    """Has the kernel end a connection whose other side cannot be reached any more, behind a cut cable say.

    The process that waits on it would wait for ever: a peer that dies says so, a peer that is lost does not.
    """
    try:
        copy = os.dup(descriptor)
    except OSError:
        return  # it was open for the look at them only
    try:
        connection = socket.socket(fileno=copy)
    except OSError:  # another kind of file
        os.close(copy)
        return
    with connection, suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(1, min(32_767, int(seconds / 2))))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, min(32_767, int(seconds / 6))))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, min(2**31 - 1, int(seconds * 1000)))
