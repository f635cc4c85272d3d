"""Preparing data sets: by one process of each node, before any builds them; the others wait.

A data set class may have a `prepare`, a class method or static method, that downloads, unpacks or tokenises. It gets
those arguments of the recipe's that it names, and should return at once where its work is done already. With
`launcher.datasets.files.whole` a killed preparation leaves nothing half-made.
"""

from __future__ import annotations

import fcntl
import hashlib
import inspect
import math
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from launcher.errors import LauncherError
from launcher.recipe.build import Builder, BuildError
from launcher.recipe.component import Component
from launcher.recipe.directory import directory
from launcher.recipe.expressions import Expression
from launcher.recipe.places import dotted
from launcher.recipe.signature import arguments_of, parameters_of
from launcher.recipe.targets import told
from launcher.text import printable
from launcher.world.signals import stop_requested
from launcher.world.waiting import Wait, stop
from launcher.world.world import World

_DONE = "done"
_held: dict[str, int] = {}  # while a process that prepared lives, those that come later know that it is done


def prepare(builder: Builder, component: Component, **handed: Any) -> None:
    """Prepares a data set of the recipe and those inside it, innermost first, where they have something to prepare.

    Args:
        builder: Resolves names and arguments.
        component: The data set, not yet built.
        **handed: Arguments that the run passes in, where a `prepare` names them.

    Raises:
        LauncherError: A `prepare` failed.
    """
    for inner in reversed(list(component.walk())):
        function = _prepare_of(builder, inner)
        if function is not None:
            keywords = {**arguments_of(inner, parameters_of(builder.resolve(inner)) or {}), **handed}
            takes = inspect.signature(function).parameters
            keywords = {name: value for name, value in keywords.items() if name in takes}
            evaluated = {name: builder.value(value, handed) for name, value in keywords.items()}
            arguments = builder.as_annotated(inner, function, evaluated)
            place = f"{inner.origin}: {dotted(inner.path)}: {inner.target}.prepare"
            key = repr((inner.target, str(directory()), {name: _plain(value) for name, value in keywords.items()}))
            once_per_node(key, partial(function, **arguments), place)


def _prepare_of(builder: Builder, component: Component) -> Callable[..., Any] | None:
    if component.given is not None or component.style != "call":
        return None
    target = builder.resolve(component)
    method = inspect.getattr_static(target, "prepare", None) if inspect.isclass(target) else None
    return target.prepare if isinstance(method, classmethod | staticmethod) else None


def _plain(value: Any) -> Any:
    """What the recipe says, the same in every process: objects show where they lie in memory."""
    if isinstance(value, Component):
        return value.target, _plain(list(value.args)), _plain(value.kwargs)
    if isinstance(value, Expression):
        return value.text
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else repr(value)


def once_per_node(key: str, act: Callable[[], object], place: str) -> None:
    """Acts in one process of this machine, while others that come with the same key wait until it is done.

    The lock is exclusive while a process acts, and shared for as long as one that knows of it lives; the kernel frees
    it when a process ends, however that is. A process that was killed in the act is followed by one that waited.

    Args:
        key: What is done.
        act: Does it.
        place: Says in messages what failed.

    Raises:
        LauncherError: It failed, here or in the process that was waited for.
    """
    if key in _held:
        os.close(_held.pop(key))
    lock = _lock_file(key)
    try:
        while not _locked(lock):
            _wait_for_another(lock, place)
            outcome = os.pread(lock, 65536, 0).decode(errors="replace")
            if outcome == _DONE:
                break
            if outcome:
                raise BuildError(f"{place}: {outcome}")
            fcntl.flock(lock, fcntl.LOCK_UN)
            time.sleep(0.01 + os.getpid() % 16 / 1000)  # several have waited for one that was killed
        else:
            _act(lock, act, place)
    except BaseException:
        os.close(lock)
        raise
    _held[key] = lock


def _wait_for_another(lock: int, place: str) -> None:
    """Until another process of this machine has done it, or this one is asked to stop; by polling, to hear that."""
    wait = Wait(f"another process of this machine, which does it now: {place}", math.inf, why="")
    with wait.told():
        while not _locked(lock, fcntl.LOCK_SH):
            if stop_requested():
                stop(wait.whom, World.from_environ())
            time.sleep(0.02)


def _locked(lock: int, kind: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _act(lock: int, act: Callable[[], object], place: str) -> None:
    os.ftruncate(lock, 0)
    outcome = ""  # what an interrupt leaves: the next one acts
    try:
        act()
        outcome = _DONE
    except LauncherError as error:
        outcome = str(error)
        raise
    except Exception as error:
        outcome = printable(told(error))
        raise BuildError(f"{place}: {outcome}") from error
    finally:
        os.pwrite(lock, outcome.encode()[:65536], 0)
        fcntl.flock(lock, fcntl.LOCK_SH)


def _lock_file(key: str) -> int:
    """A file on this machine's own disk: locks of network file systems hold for other machines too, or not at all."""
    folder = Path(tempfile.gettempdir()) / f"launcher-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise LauncherError(f"{folder} belongs to another user; set TMPDIR to a folder of your own")
    name = hashlib.sha256(key.encode()).hexdigest()[:24]
    return os.open(folder / f"{name}.lock", os.O_RDWR | os.O_CREAT, 0o600)
