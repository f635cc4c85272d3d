"""For what is called from somebody's Python: it saves when asked to stop, and its caller ends as it was asked to."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from launcher.world.peers import code_of_a_stop
from launcher.world.signals import first_received, is_listening, listening
from launcher.world.world import World


@contextmanager
def obeying() -> Iterator[None]:
    """Ends what calls this as it was asked to, when all is saved; whoever listens themselves decides themselves."""
    if is_listening():
        yield
        return
    with listening():
        yield
        asked = first_received()
    if asked == signal.SIGINT:
        raise KeyboardInterrupt
    if asked is not None:
        raise SystemExit(code_of_a_stop(World.from_environ()))
