"""Two machines on one: network namespaces that a cable joins."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest


def ip(*arguments: str) -> bool:
    """Whether iproute2 did it."""
    return subprocess.run(["ip", *arguments], capture_output=True, check=False).returncode == 0


@contextmanager
def joined(addresses: Mapping[str, str], interface: str, *programs: str) -> Iterator[None]:
    """Two namespaces for a while, by the names and addresses given; a test skips where there can be none.

    Args:
        addresses: The address of each, by its name.
        interface: What the cable's ends are called.
        *programs: What is needed besides iproute2.
    """
    if os.geteuid() != 0 or not all(map(shutil.which, ("ip", *programs))):
        pytest.skip("network namespaces need root and iproute2 (Debian: apt-get install iproute2)")
    first, second = addresses
    made = [ip("netns", "add", name) for name in addresses]
    if not all(made):
        pytest.skip("this machine lets nobody make network namespaces")
    try:
        cable = ("link", "add", interface, "type", "veth", "peer", "name", interface, "netns", second)
        assert ip("-n", first, *cable)
        for name, address in addresses.items():
            assert ip("-n", name, "addr", "add", f"{address}/24", "dev", interface)
            assert ip("-n", name, "link", "set", "lo", "up")
            assert ip("-n", name, "link", "set", interface, "up")
        yield
    finally:
        for name in addresses:
            ip("netns", "del", name)
