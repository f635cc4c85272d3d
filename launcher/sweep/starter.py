"""Starting trials from a warm process: the sweep's half of it; the other is `launcher.sweep.warm`."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from launcher.errors import LauncherError
from launcher.launch.start import started
from launcher.sweep.warm import MODULES, Order

# one thread of each library while modules are loaded: what has begun several cannot be forked
_ALONE = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1")
_NO_CUDA_CONTEXT = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}  # whoever asks for GPUs there leaves CUDA alone
_LAST_SECONDS = 10.0


@dataclass(frozen=True)
class Ended:
    """The end of a trial's process.

    Attributes:
        number: The order's.
        code: Its exit code; the negative number of the signal that killed it.
        is_forked: Whether it was a copy of the warm process, not a fresh one.
    """

    number: int
    code: int
    is_forked: bool


class WarmProcessLostError(LauncherError):
    """The process that trials are started from has died, and they with it."""


class Starter:
    """Starts trials, stops them and tells of their ends.

    It is best made first of all: its process imports what trials need while the sweep is read and checked.

    Args:
        is_warm: Whether to have the process import what trials need; where none is to be forked that is for nothing.

    Attributes:
        running: The numbers of the trials at work.
        is_ready: Whether its process has been heard to have imported all, so that a trial begins at once.
    """

    def __init__(self, is_warm: bool = True):
        self._modules: tuple[str, ...] = MODULES if is_warm else ()
        self.running: set[int] = set()
        self._has_started = False
        self._unread = b""
        self._process = self._begun()

    def _begun(self) -> subprocess.Popen[bytes]:
        self.is_ready = False
        return subprocess.Popen(
            [sys.executable, *started("launcher.sweep.warm", str(os.getpid()), *self._modules)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **_ALONE, **_NO_CUDA_CONTEXT},
            start_new_session=True,  # a Ctrl-C is for the sweep, which then asks the trials to save
        )

    def renew(self) -> None:
        """Has a new process in place of one that was lost."""
        self.close()
        self.running.clear()
        self._unread = b""
        self._process = self._begun()

    def also_load(self, modules: Sequence[str]) -> None:
        """Has the process import more, if it imports at all: installed packages that a recipe is known to use.

        Raises:
            WarmProcessLostError: There is nobody to do so.
        """
        if self._modules and not set(modules) <= set(self._modules):
            self._modules = (*self._modules, *modules)
            self._send(json.dumps({"import": list(modules)}) + "\n")

    def start(self, order: Order) -> None:
        """Starts a trial.

        Raises:
            WarmProcessLostError: There is nobody to do so.
        """
        self._send(order.line())
        self._has_started = True
        self.running.add(order.number)

    def signal(self, number: int, what: signal.Signals) -> None:
        """Sends a signal to a trial that runs."""
        self._send(json.dumps({"stop": number, "signal": int(what)}) + "\n")

    def ended(self, seconds: float) -> list[Ended]:
        """Waits at most so long for ends of trials, and gives those that came; where none runs, until it is ready.

        Raises:
            WarmProcessLostError: The process has died, and all trials with it.
        """
        deadline, ends, was_ready = time.monotonic() + seconds, list[Ended](), self.is_ready
        while (
            not ends and (self.running or self.is_ready == was_ready) and self._is_readable(deadline - time.monotonic())
        ):
            for words in self._read():
                self.is_ready = self.is_ready or "ready" in words
                if "ended" in words:
                    self.running.discard(words["ended"])
                    ends.append(Ended(words["ended"], words["code"], words["is_forked"]))
            if self.is_ready != was_ready and not self.running:
                break
        return ends

    def close(self) -> None:
        """Ends the process; trials that run still die with it. One that has started none may be importing: no wait."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
            self._process.wait(_LAST_SECONDS if self._has_started and not self.running else 0.0)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _is_readable(self, seconds: float) -> bool:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, seconds))
        return bool(ready)

    def _read(self) -> Iterator[dict[str, Any]]:
        assert self._process.stdout is not None
        read = os.read(self._process.stdout.fileno(), 2**16)
        if not read:
            raise self._lost()
        *lines, self._unread = (self._unread + read).split(b"\n")
        yield from map(json.loads, lines)

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()
        except OSError as error:
            raise self._lost() from error

    def _lost(self) -> WarmProcessLostError:
        code = self._process.wait()
        return WarmProcessLostError(f"the process that trials are started from has ended with {code}")
