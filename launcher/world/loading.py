"""Importing much at once."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading() -> Iterator[None]:
    """Lets torch, and what comes with it, be imported without a search for garbage among it, over and over.

    That is a seventh of a start. Modules are no garbage as long as the process lives: later searches, and the pages
    that worker processes share, leave them alone.
    """
    if not gc.isenabled() or "torch" in sys.modules:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
