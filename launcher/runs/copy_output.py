"""Copies what a process and its children print by themselves: to the screen as it is, to the log without secrets.

A process of its own, run as a file, `python copy_output.py FOLDER LOG PIPE:SCREEN…`, where PIPE and SCREEN are
descriptors and SCREEN may be missing: what a library says when it aborts, and what was printed before a SIGKILL, still
gets there. It ends when nobody can write to the pipes any more.
"""

from __future__ import annotations

import os
import selectors
import signal
import sys
from collections.abc import Callable

_BLOCK = 65_536
_LONGEST = 1_000_000  # characters that are kept until their line ends
_PAUSE_SECONDS = 1.0  # after which half a line is written all the same


class Copy:
    """One stream of a process: as it is to the screen, by lines and masked to the log.

    Args:
        screen: The descriptor, if there is one.
        log: The log's.
        masked: Gives a text without secrets.
    """

    def __init__(self, screen: int | None, log: int, masked: Callable[[str], str]):
        self._screen = screen
        self._log = log
        self._masked = masked
        self._unfinished = b""

    def take(self, block: bytes) -> None:
        """Copies what was printed; the log waits for the end of the line, as half a secret has no shape."""
        if self._screen is not None and not _written(self._screen, block):
            self._screen = None  # a terminal that is gone
        text = self._unfinished + block
        whole = _whole_lines(text)
        self._unfinished = text[whole:]
        if whole:
            self._write(text[:whole])
        if len(self._unfinished) > _LONGEST:
            self.finish()

    def finish(self) -> None:
        """Writes what has no end, and will get none soon."""
        rest, self._unfinished = self._unfinished, b""
        if rest:
            self._write(rest)

    def _write(self, text: bytes) -> None:
        _written(self._log, self._masked(text.decode(errors="replace")).encode())


def _whole_lines(text: bytes) -> int:
    """How much of a text can be looked at for secrets: lines that have an end, and private keys that have theirs."""
    end = text.rfind(b"\n") + 1
    key = text.rfind(b"-----BEGIN ", 0, end)
    is_open = key >= 0 and b"PRIVATE KEY" in text[key : key + 60] and b"-----END " not in text[key:end]
    return key if is_open else end


def _written(descriptor: int, block: bytes) -> bool:
    try:
        while block:
            block = block[os.write(descriptor, block) :]
    except OSError:  # no screen any more, or no room on the disk
        return False
    return True


def copy(log: int, streams: dict[int, int | None], masked: Callable[[str], str]) -> None:
    """Copies until all pipes are closed.

    Args:
        log: The log's descriptor.
        streams: The screen of each pipe, if it has one.
        masked: Gives a text without secrets.
    """
    with selectors.DefaultSelector() as waiting:
        copies = {pipe: Copy(screen, log, masked) for pipe, screen in streams.items()}
        for pipe, stream in copies.items():
            waiting.register(pipe, selectors.EVENT_READ, stream)
        while waiting.get_map():
            ready = waiting.select(_PAUSE_SECONDS)
            for key, _ in ready:
                if block := os.read(key.fd, _BLOCK):
                    key.data.take(block)
                else:
                    waiting.unregister(key.fd)
                    key.data.finish()
            if not ready:
                for stream in copies.values():
                    stream.finish()


def _main() -> None:
    for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2"):  # meant for the process that prints
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    folder, path, *pairs = sys.argv[1:]
    sys.path.append(folder)
    from launcher.recipe.masking import masked

    log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)  # which its process has opened before
    numbers = (pair.partition(":") for pair in pairs)
    copy(log, {int(pipe): int(screen) if screen else None for pipe, _, screen in numbers}, masked)


if __name__ == "__main__":
    _main()
