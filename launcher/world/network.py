"""How this machine's processes reach one another and those of other machines: addresses, interfaces, what is wrong."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from launcher.errors import UsageError

GLOO_VARIABLE = "GLOO_SOCKET_IFNAME"
_VARIABLES = (GLOO_VARIABLE, "NCCL_SOCKET_IFNAME", "TP_SOCKET_IFNAME")
_LOOPBACKS = ("127.0.0.1", "::1")  # by address: a name wants a hosts file, and names of machines mean all sorts
_ELSEWHERE = ("192.0.2.1", "2001:db8::1")  # nobody's, kept for documents: only the route to them is looked up
_NO_ROUTE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


def loopback() -> str:
    """The address at which processes of this machine reach one another.

    Raises:
        UsageError: There is none, as in a network namespace that nobody has set up.
    """
    loopback_address = next((address for address in _LOOPBACKS if _source(address) is not None), None)
    if loopback_address is None:
        raise UsageError(
            "several processes need this machine's loopback network, and it is down; start it (ip link set lo up), "
            "or use one process"
        )
    return loopback_address


def is_loopback(host: str) -> bool:
    """Whether a host as it was written, before it is looked up, means this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def interfaces() -> dict[str, list[str]]:
    """The addresses of each network interface of this machine."""
    import psutil

    kinds = (socket.AF_INET, socket.AF_INET6)
    return {
        name: [entry.address.partition("%")[0] for entry in given if entry.family in kinds]
        for name, given in psutil.net_if_addrs().items()
    }


def interface_of(*addresses: str) -> str | None:
    """The interface that has one of these addresses."""
    return next((name for name, given in interfaces().items() if not set(addresses).isdisjoint(given)), None)


def interface_towards(host: str, nodes: int) -> str | None:
    """The interface over which this machine reaches the one of rank 0, and is reached; None where that is not clear.

    gloo would go by this machine's own name, which many a hosts file gives a loopback address (`127.0.1.1 node1`), or
    none. On rank 0's machine the name of its own may mean just that: there the way out is taken.

    Args:
        host: Rank 0's, by name or address.
        nodes: How many machines.
    """
    if nodes == 1 or is_loopback(host):
        return interface_of(loopback())
    sources = [source for address in addresses(host) if (source := _source(address)) is not None]
    outward = [source for source in sources if not is_loopback(source)]
    return interface_of(outward[0]) if outward else _way_out()


def _way_out() -> str | None:
    """The interface of the default route, or the only one with a network."""
    for address in _ELSEWHERE:
        if (source := _source(address)) is not None and not is_loopback(source):
            return interface_of(source)
    names = [name for name, given in interfaces().items() if any(map(_is_of_a_network, given))]
    return names[0] if len(names) == 1 else None


def _is_of_a_network(address: str) -> bool:
    read = ipaddress.ip_address(address)
    return not read.is_loopback and not read.is_link_local


def addresses(host: str) -> list[str]:
    """The addresses of a host; none where its name is not known here."""
    try:
        return [str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_DGRAM)]
    except (OSError, UnicodeError):
        return []


def _source(address: str) -> str | None:
    """This machine's own address on the route to another; None where there is no route. Nothing is sent."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))
            return str(probe.getsockname()[0])
    except OSError:
        return None


def check_interface(named: str, origin: str) -> None:
    """Refuses a name that no interface of this machine has.

    Args:
        named: One, or several with commas between.
        origin: Who named it.

    Raises:
        UsageError: The message lists those that there are.
    """
    known = interfaces()
    for name in named.split(","):
        if name not in known:
            raise UsageError(f"{origin}: this machine has no network interface '{name}'; it has: {', '.join(known)}")


@contextmanager
def interface_said(named: str | None, fallback: str | None) -> Iterator[None]:
    """Tells gloo and NCCL for a while which interface to use.

    Args:
        named: The one that somebody has named: for both, whatever the environment says.
        fallback: The one that was found: for gloo, unless the environment names one. NCCL finds its own.
    """
    settings = variables(named, fallback)
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def variables(named: str | None, fallback: str | None) -> dict[str, str]:
    """The variables that tell gloo and NCCL which interface to use, as in `interface_said`."""
    if named is not None:
        return dict.fromkeys(_VARIABLES, named)
    return {GLOO_VARIABLE: fallback} if fallback is not None and interface_in_use() is None else {}


def interface_in_use() -> str | None:
    """The interface that gloo is told to use."""
    return os.environ.get(GLOO_VARIABLE)


def fault_of(host: str, port: int, seconds: float = 3.0) -> str:
    """Why nobody is reached at a place, in a few words; empty where somebody is.

    Args:
        host: A name or an address.
        port: There.
        seconds: How long an answer may take.
    """
    try:
        socket.create_connection((host, port), timeout=seconds).close()
    except (socket.gaierror, UnicodeError):
        return "name unknown"
    except ConnectionRefusedError:
        return "nothing listens there"
    except TimeoutError:
        return "no answer"
    except OSError as error:
        return "no route" if error.errno in _NO_ROUTE else (error.strerror or str(error)).lower()
    return ""


def place(host: str, port: int) -> str:
    """`10.0.0.1:29500`, `[fd00::1]:29500`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
