"""Worker processes that read batches ahead: torch's DataLoader, with deaths and hangs that name the sample.

torch raises a worker's death from a signal handler, wherever the training happens to be, and a hang only as "timed
out". Here both are found where a batch is waited for, and each worker says in shared memory what it is reading.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import os
import shutil
import signal
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from multiprocessing import parent_process, sharedctypes
from multiprocessing.util import Finalize
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from launcher import internals
from launcher.data.parts import Packed, sendable
from launcher.data.reading import Reader
from launcher.errors import LauncherError
from launcher.world.signals import die_with_parent
from launcher.world.temporary import held_folder

Key = tuple[int, int]  # (epoch, index): workers learn the epoch with each sample

POLL_SECONDS = 2.0  # how often the health of workers is looked at, while a batch is waited for
GRACE_SECONDS = 1.0  # how long a worker may take to leave
BATCHES_AHEAD = 4  # of each worker
_IDLE = -1
_END = object()


class Workers:
    """Processes that read batches of one data set, kept from one pass to the next.

    Args:
        reader: Makes the batches.
        count: How many processes, at least 1.
    """

    def __init__(self, reader: Reader, count: int):
        self.reader = reader
        self.count = count
        self._keys = _Keys()
        self._loader: DataLoader[Any] | None = None
        self._iterator: Any = None
        self._reads = sharedctypes.RawArray(ctypes.c_int64, [0, _IDLE] * count)  # by worker: epoch, index

    def batches(self, keys: Iterable[list[Key]]) -> Iterator[Any]:
        """A batch for each list of keys, in their order.

        Raises:
            LauncherError: A worker died or hangs, or the data set says that a sample cannot be read.
        """
        iterator = self._start(keys)
        ended = False
        try:
            while (batch := self._next(iterator)) is not _END:
                yield batch
            ended = True
        finally:
            if not ended:  # workers are still busy with batches that nobody waits for
                self.close()

    def close(self) -> None:
        """Ends the processes now; one that has not left in a second is killed."""
        iterator, self._iterator, self._loader = self._iterator, None, None
        if iterator is None:
            return
        impatience = threading.Timer(GRACE_SECONDS, _kill, [iterator])
        impatience.start()
        with suppress(RuntimeError):  # what torch says of workers that died
            internals.shut_down(iterator)
        impatience.cancel()
        _kill(iterator)
        for worker in internals.processes_of(iterator):
            worker.join()

    def kill(self) -> None:
        """Ends the processes without a word: at the end of this one, when no thread can be started any more."""
        iterator, self._iterator = self._iterator, None
        if iterator is not None:
            _kill(iterator)

    def _start(self, keys: Iterable[list[Key]]) -> Any:
        self._keys.keys = keys
        if self._loader is not None:
            with suppress(RuntimeError):  # a worker died since the last pass: start afresh
                return iter(self._loader)
            self.close()
        self._loader = self._data_loader()
        _keep_sockets(os.getpid())
        with _death_unsignalled():
            self._iterator = iter(self._loader)
        _ended_at_exit().add(self)
        return self._iterator

    def _data_loader(self) -> DataLoader[Any]:
        return DataLoader(
            _InWorker(self.reader, self._reads),
            batch_sampler=self._keys,
            collate_fn=_as_it_is,
            num_workers=self.count,
            timeout=POLL_SECONDS,
            worker_init_fn=_start_worker,
            # without one, each iterator would draw from the global generator, and evaluating would change training
            generator=torch.Generator(),
            pin_memory=self.reader.reading.pin_memory,
            prefetch_factor=BATCHES_AHEAD,
            persistent_workers=True,
        )

    def _next(self, iterator: Any) -> Any:
        began = time.monotonic()
        while True:
            try:
                batch = next(iterator, _END)
            except RuntimeError as error:
                self._check_alive(iterator)
                if not str(error).startswith("DataLoader timed out"):
                    raise
                if time.monotonic() - began >= self.reader.reading.timeout_seconds:
                    raise self._hanging() from None
                continue
            if isinstance(batch, _Failure):
                raise batch.error
            return batch.unpacked() if isinstance(batch, Packed) else batch

    def _check_alive(self, iterator: Any) -> None:
        for number, worker in enumerate(internals.processes_of(iterator)):
            if not worker.is_alive():
                what = f"worker process {number} {_ending(worker.exitcode)}{self._while_reading(number)}"
                raise LauncherError(f"{self.reader.name}: {what}; {_remedy(worker.exitcode)}") from None

    def _hanging(self) -> LauncherError:
        busy = [number for number in range(self.count) if self._reads[2 * number + 1] != _IDLE]
        which = "; ".join(f"worker process {number} hangs{self._while_reading(number)}" for number in busy)
        return LauncherError(
            f"{self.reader.name}: no batch came in data.timeout ({self.reader.reading.timeout_seconds:g} s): "
            f"{which or 'the worker processes do not answer'}; mend what it waits for, give it a longer "
            "data.timeout, or look at it with data.workers=0"
        )

    def _while_reading(self, number: int) -> str:
        epoch, index = self._reads[2 * number : 2 * number + 2]
        return f" while reading sample {index} (epoch {epoch})" if index != _IDLE else ""


class _Keys:
    """A batch sampler whose content changes from pass to pass, which a DataLoader does not allow."""

    keys: Iterable[list[Key]] = ()

    def __iter__(self) -> Iterator[list[Key]]:
        return iter(self.keys)


class _Failure:
    """An error on its way from a worker: one with a clear message, or one that torch cannot make again from a text."""

    def __init__(self, error: Exception):
        self.error = error


class _InWorker(Dataset[Any]):
    """What a worker process has of the data set: reads lists of keys, and says in shared memory which."""

    def __init__(self, reader: Reader, reads: Any):
        self.reader = reader
        self.reads = reads
        self.number = 0

    def begin(self, number: int) -> None:
        """This is that worker from now on."""
        self.number = number
        self.reader.in_training_process, self.reader.mark = False, self._mark

    def __getitems__(self, keys: list[Key]) -> Any:
        indices = np.array([index for _, index in keys], dtype=np.int64)
        try:
            return sendable(self.reader.batch(keys[0][0], indices))
        except LauncherError as error:
            return _Failure(LauncherError(str(error)))
        except (StopIteration, SystemExit, KeyboardInterrupt) as error:
            # torch takes each of them for the end of this process; no signal raises one here
            raise RuntimeError(_stray(error)).with_traceback(error.__traceback__) from None
        except Exception as error:
            if _can_be_made_again(error):
                raise
            return _Failure(RuntimeError(_as_torch_tells(error, self.number)))
        finally:
            self._mark(0, _IDLE)

    def _mark(self, epoch: int, index: int) -> None:
        place = 2 * self.number
        self.reads[place], self.reads[place + 1] = epoch, index


def _as_it_is(batch: Any) -> Any:
    return batch


# ---------------------------------------------------------------------- processes


def _start_worker(number: int) -> None:
    """Signals are meant for the trainer; a worker ends when its trainer does."""
    for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    die_with_parent()
    sys.excepthook = functools.partial(_say, sys.excepthook)
    parent = parent_process()
    if parent is not None and not parent.is_alive():
        os._exit(1)
    info = get_worker_info()
    assert info is not None
    assert isinstance(info.dataset, _InWorker)
    info.dataset.begin(number)


def _say(
    otherwise: Callable[..., Any], kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Of multiprocessing's thread that hands over what was read: that the trainer has died is no news from a worker."""
    if not isinstance(error, ConnectionError | EOFError):
        otherwise(kind, error, trace)


class _death_unsignalled:  # noqa: N801  # a context manager named as what it says
    """Keeps torch from raising a worker's death in the middle of whatever the main thread does then."""

    def __enter__(self) -> None:
        self.handler = signal.getsignal(signal.SIGCHLD)

    def __exit__(self, *_: object) -> None:
        if self.handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, self.handler)


def _kill(iterator: Any) -> None:
    for worker in internals.processes_of(iterator):
        worker.kill()


def _ending(code: int | None) -> str:
    if code is None or code >= 0:
        return f"ended with exit code {code}"
    return f"was killed by {signal.Signals(-code).name}"


def _remedy(code: int | None) -> str:
    if code is not None and code >= 0:
        return "something in it called os._exit or exit; data.workers=0 reads in the training process itself"
    return "if memory ran out, use fewer data.workers; data.workers=0 reads in the training process itself"


def _stray(error: BaseException) -> str:
    """What is no error elsewhere, in words."""
    if isinstance(error, StopIteration):
        return "StopIteration: an iterator of the data set ran out, and next() had nothing more to give"
    if isinstance(error, SystemExit):
        return f"left early: SystemExit({error.code!r}), where a sample should have been read"
    return "KeyboardInterrupt: raised by the code itself, nobody pressed Ctrl-C"


def _can_be_made_again(error: Exception) -> bool:
    """Whether torch can raise it in the trainer: it calls the class with one text."""
    try:
        return isinstance(str(type(error)("")), str)
    except Exception:
        return False


def _as_torch_tells(error: Exception, number: int) -> str:
    """The message that torch would give the error, with its traceback inside."""
    text = "".join(traceback.format_exception(error)).lstrip(" +").partition("\n")[2]
    kind = type(error).__name__
    return f"Caught {kind} in DataLoader worker process {number}.\nOriginal Traceback (most recent call last):\n{text}"


@functools.cache
def _keep_sockets(process: int) -> None:
    """Gives this process a folder for its workers' sockets: one for all, else each would have its own, and leave it."""
    with suppress(OSError):
        folder, _ = held_folder()  # held until the process has ended
        Finalize(None, shutil.rmtree, args=(folder, True), exitpriority=-100)  # after what uses it
        internals.keep_sockets_in(str(folder))


@functools.cache
def _ended_at_exit() -> weakref.WeakSet[Workers]:
    """Workers that are ended with this process. multiprocessing's own way is SIGTERM, which they ignore."""
    known: weakref.WeakSet[Workers] = weakref.WeakSet()
    owner = os.getpid()

    def end() -> None:
        for workers in list(known) if os.getpid() == owner else ():
            workers.kill()

    atexit.register(end)
    return known
