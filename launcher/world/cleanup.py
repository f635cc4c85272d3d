"""What is put back afterwards, and what is told where that fails too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


@contextmanager
def afterwards(put_back: Callable[[], object]) -> Iterator[None]:
    """Calls a function at the end, which may touch a device.

    After an error of its own a device says the same of whatever it is asked next: what is raised while one is on its
    way does not take its place.

    Args:
        put_back: Called once, whatever happens.
    """
    try:
        yield
    except BaseException:
        with suppress(Exception):
            put_back()
        raise
    put_back()
