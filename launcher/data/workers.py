"""Worker processes that read batches ahead, with deaths and hangs that name the sample.

Each worker has a few slots of memory that it shares with the trainer (launcher/data/transport.py), and two semaphores:
how many requests wait in them, and how many answers. No thread, no pipe, no file is needed for a batch, and a worker
that dies or hangs is noticed where its batch is waited for; it says in shared memory what it is reading.
"""

from __future__ import annotations

import ctypes
import functools
import multiprocessing
import os
import pickle
import shutil
import signal
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from multiprocessing import get_start_method, parent_process, sharedctypes
from multiprocessing.util import Finalize
from typing import Any

import torch

from launcher import internals
from launcher.data.permutation import Indices
from launcher.data.reading import Reader, pinned
from launcher.data.seeds import seed_generators
from launcher.data.transport import Slot
from launcher.errors import LauncherError
from launcher.recipe.local_data import keep_to_data
from launcher.recipe.raised import all_lines
from launcher.text import words_of
from launcher.world.signals import die_with_parent
from launcher.world.temporary import held_folder

Request = tuple[int, Indices]  # an epoch, and which samples of it make a batch

POLL_SECONDS = 0.5  # how often the health of workers is looked at, while a batch is waited for
GRACE_SECONDS = 1.0  # how long a worker may take to leave
BATCHES_AHEAD = 4  # of each worker
_IDLE = -1


class Workers:
    """Processes that read batches of one data set, kept from one pass to the next.

    Args:
        reader: Makes the batches.
        count: How many processes, at least 1.
    """

    def __init__(self, reader: Reader, count: int):
        self.reader = reader
        self.count = count
        self._workers: list[_Worker] = []

    def batches(self, requests: Iterable[Request]) -> Iterator[Any]:
        """A batch for each request, in their order. The workers take them in turn, the first one the first.

        Raises:
            LauncherError: A worker died or hangs, or the data set says that a sample cannot be read.
        """
        self._start()
        wanted = iter(requests)
        waiting: deque[_Worker] = deque()
        ended = False
        try:
            for worker in [*self._workers] * BATCHES_AHEAD:
                if (request := next(wanted, None)) is None:
                    break
                worker.ask(*request)
                waiting.append(worker)
            while waiting:
                worker = waiting.popleft()
                batch = self._taken(worker)
                if (request := next(wanted, None)) is not None:
                    worker.ask(*request)
                    waiting.append(worker)
                yield batch
                del batch  # its memory is free for the next one
            ended = True
        finally:
            if not ended:  # workers are still busy with batches that nobody waits for
                self.close()

    def close(self) -> None:
        """Ends the processes now; one that has not left in a second is killed."""
        workers, self._workers = self._workers, []
        if workers:
            self._last_word.cancel()
        for worker in workers:
            worker.dismiss()
        deadline = time.monotonic() + GRACE_SECONDS
        for worker in workers:
            worker.end(max(0.0, deadline - time.monotonic()))

    def _start(self) -> None:
        if self._workers and all(worker.process.is_alive() for worker in self._workers):
            return
        self.close()  # one died since the last pass: all start afresh
        _keep_sockets(os.getpid())
        self._workers = [_Worker(self.reader, number, self.count) for number in range(self.count)]
        # with this object, and at the end of this process: multiprocessing's own way is SIGTERM, which they ignore
        self._last_word = Finalize(self, _kill, args=(self._workers,), exitpriority=10)

    def _taken(self, worker: _Worker) -> Any:
        began = time.monotonic()
        while not worker.is_ready(POLL_SECONDS):
            self._check_alive()
            if time.monotonic() - began >= self.reader.reading.timeout_seconds:
                raise self._hanging()
        is_batch, value = worker.take(self.reader.reading.pin_memory)
        if not is_batch:
            raise value.error()
        return value

    def _check_alive(self) -> None:
        for worker in self._workers:
            if not worker.process.is_alive():
                code = worker.process.exitcode
                what = f"worker process {worker.number} {_ending(code)}{worker.while_reading()}"
                raise LauncherError(f"{self.reader.name}: {what}; {_remedy(code)}")

    def _hanging(self) -> LauncherError:
        busy = [worker for worker in self._workers if worker.is_reading]
        which = "; ".join(f"worker process {worker.number} hangs{worker.while_reading()}" for worker in busy)
        return LauncherError(
            f"{self.reader.name}: no batch came in data.timeout ({self.reader.reading.timeout_seconds:g} s): "
            f"{which or 'the worker processes do not answer'}; fix what it waits for, give it a longer "
            "data.timeout, or look at it with data.workers=0"
        )


class _Desk:
    """What a worker and its trainer share."""

    def __init__(self) -> None:
        context = multiprocessing.get_context()
        self.slots = [Slot() for _ in range(BATCHES_AHEAD)]
        self.asked, self.ready = context.Semaphore(0), context.Semaphore(0)
        # epoch and index of what it is reading, and whether it may leave
        self.marks = sharedctypes.RawArray(ctypes.c_int64, [0, _IDLE, 0])


class _Worker:
    """One worker process, as its trainer sees it."""

    def __init__(self, reader: Reader, number: int, count: int):
        self.number = number
        self._desk = _Desk()
        self._num_asked = self._num_taken = 0
        self.process: Any = multiprocessing.get_context().Process(
            target=_serve, args=(self._desk, reader, number, count), daemon=True, name=f"reader {number}"
        )
        self.process.start()

    def ask(self, epoch: int, indices: Indices) -> None:
        """Asks for a batch; there is a free slot, since no more are asked for than there are."""
        self._desk.slots[self._num_asked % BATCHES_AHEAD].ask(epoch, indices)
        self._num_asked += 1
        self._desk.asked.release()

    def is_ready(self, seconds: float) -> bool:
        """Waits for the oldest batch that was asked for."""
        return bool(self._desk.ready.acquire(timeout=seconds))

    def take(self, pins: bool) -> tuple[bool, Any]:
        """Whether it is a batch, and it, or what went wrong."""
        is_batch, value = self._desk.slots[self._num_taken % BATCHES_AHEAD].answered(pins)
        self._num_taken += 1
        return is_batch, pinned(value) if pins and is_batch else value

    @property
    def is_reading(self) -> bool:
        """Whether it is busy with a sample."""
        return bool(self._desk.marks[1] != _IDLE)

    def while_reading(self) -> str:
        """Which sample, in words."""
        epoch, index, _ = self._desk.marks
        return f" while reading sample {index} (epoch {epoch})" if index != _IDLE else ""

    def dismiss(self) -> None:
        """Lets it leave when it is through with what it reads."""
        self._desk.marks[2] = 1
        self._desk.asked.release()

    def end(self, seconds: float) -> None:
        """Waits for that, and no longer; then it is gone."""
        self.process.join(seconds)
        self.process.kill()
        self.process.join()
        for slot in self._desk.slots:
            slot.close()


# ---------------------------------------------------------------------- in the worker


def _serve(desk: _Desk, reader: Reader, number: int, count: int) -> None:
    """Answers requests until it may leave, or its trainer is gone."""
    _start_worker(reader, number, count)
    marks = desk.marks

    def mark(epoch: int, index: int) -> None:
        marks[0], marks[1] = epoch, index

    reader.in_training_process, reader.mark = False, mark
    turn = 0
    while True:
        _await(desk)
        if marks[2]:
            return
        slot = desk.slots[turn % BATCHES_AHEAD]
        turn += 1
        _answer(slot, reader, number)
        mark(0, _IDLE)
        desk.ready.release()


def _await(desk: _Desk) -> None:
    parent = parent_process()
    while not desk.asked.acquire(timeout=POLL_SECONDS):
        if parent is not None and not parent.is_alive():
            os._exit(1)


def _answer(slot: Slot, reader: Reader, number: int) -> None:
    try:
        epoch, indices = slot.asked()
        batch = reader.batch(epoch, indices)
    except LauncherError as error:
        slot.fail(_Failure(LauncherError, str(error)))
        return
    except (StopIteration, SystemExit, KeyboardInterrupt) as error:
        # each would be taken for the end of this process; no signal raises one here
        stray = RuntimeError(_stray(error)).with_traceback(error.__traceback__)
        slot.fail(_Failure(RuntimeError, _as_torch_tells(stray, number)))
        return
    except Exception as error:
        slot.fail(_failure(error, number))
        return
    try:
        slot.answer(batch)
    except Exception as error:
        words = f"{type(error).__name__}: {' '.join(words_of(error).split())[:200]}"
        remedy = "drop it from the batch (data.collate), or read with data.workers=0"
        slot.fail(_Failure(LauncherError, f"{reader.name}: a batch cannot leave a worker process: {words}; {remedy}"))


def _start_worker(reader: Reader, number: int, count: int) -> None:
    """Signals are meant for the trainer; a worker ends when its trainer does, and computes with one thread."""
    for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    die_with_parent()
    parent = parent_process()
    if parent is not None and not parent.is_alive():
        os._exit(1)
    torch.set_num_threads(1)
    if get_start_method() != "fork":  # else as its trainer
        keep_to_data("launcher", may_load_models="transformers" in sys.modules)
    seed_generators(reader.reading.seed, reader.reading.rank, number)
    internals.become_worker(number, count, reader.dataset)


# ---------------------------------------------------------------------- what went wrong


class _Failure:
    """An error on its way from a worker: its class, where it can be made of a text, and the text."""

    def __init__(self, kind: type[Exception], text: str):
        self.kind, self.text = kind, text

    def error(self) -> Exception:
        """It again."""
        return self.kind(_Verbatim(self.text) if issubclass(self.kind, KeyError) else self.text)


class _Verbatim(str):
    """A text that is shown as it is, also by a KeyError."""

    def __repr__(self) -> str:
        return str(self)


def _failure(error: Exception, number: int) -> _Failure:
    text = _as_torch_tells(error, number)
    return _Failure(type(error) if _can_be_made_again(error) else RuntimeError, text)


def _can_be_made_again(error: Exception) -> bool:
    """Whether it is known by name to the trainer, and made of one text."""
    kind = type(error)
    with suppress(Exception):
        return pickle.loads(pickle.dumps(kind)) is kind and isinstance(str(kind("")), str)
    return False


def _ending(code: int | None) -> str:
    if code is None or code >= 0:
        return f"ended with exit code {code}"
    return f"was killed by {signal.Signals(-code).name}"


def _remedy(code: int | None) -> str:
    if code is not None and code >= 0:
        return "something in it called os._exit or exit; data.workers=0 reads in the training process itself"
    return "if memory ran out, use fewer data.workers; data.workers=0 reads in the training process itself"


def _stray(error: BaseException) -> str:
    """What is not an error elsewhere, in words."""
    if isinstance(error, StopIteration):
        return "StopIteration: an iterator of the data set ran out, and next() had nothing more to give"
    if isinstance(error, SystemExit):
        return f"left early: SystemExit({error.code!r}), where a sample should have been read"
    return "KeyboardInterrupt: raised by the code itself, nobody pressed Ctrl-C"


def _as_torch_tells(error: Exception, number: int) -> str:
    """The message that torch's DataLoader would give the error, with its traceback inside."""
    text = all_lines(error).lstrip(" +").partition("\n")[2]
    kind = type(error).__name__
    return f"Caught {kind} in DataLoader worker process {number}.\nOriginal Traceback (most recent call last):\n{text}"


@functools.cache
def _keep_sockets(process: int) -> None:
    """Gives this process a folder for what workers keep: one for all, else each would have its own, and leave it."""
    with suppress(OSError):
        folder, _ = held_folder()  # held until the process has ended
        Finalize(None, shutil.rmtree, args=(folder, True), exitpriority=-100)  # after what uses it
        internals.keep_sockets_in(str(folder))


def _kill(workers: list[_Worker]) -> None:
    """Silently: no thread can be started any more at the end of a process."""
    for worker in workers:
        worker.process.kill()
        worker.process.join()
    workers.clear()
