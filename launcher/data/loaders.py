"""Batches for one rank: whole batches at once where the data set can, worker processes otherwise."""

from __future__ import annotations

import ctypes
import os
import random
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate

from launcher.data.permutation import mix
from launcher.data.sampler import StepSampler, evaluation_shares
from launcher.errors import LauncherError

Collate = Callable[[list[Any]], Any]
Key = tuple[int, int]  # (epoch, index): workers learn the epoch with each sample


@dataclass(slots=True)
class MicroBatch:
    """What one forward pass reads.

    Attributes:
        data: The batch as the data set and its collate made it, in host memory.
        samples: How many of its samples count; 0 for a stand-in that keeps the ranks in step.
    """

    data: Any
    samples: int


@dataclass(frozen=True)
class Reading:
    """How samples become batches.

    Attributes:
        collate: Makes a batch of a list of samples; None is torch's default.
        workers: Worker processes of one training process.
        timeout_seconds: How long a batch may take.
        seed: Seeds each sample and each collate, where `sample_seeds`.
        sample_seeds: Whether they are seeded.
        pin_memory: Whether batches are made ready for a transfer to a GPU.
    """

    collate: Collate | None = None
    workers: int = 0
    timeout_seconds: float = 600.0
    seed: int = 0
    sample_seeds: bool = True
    pin_memory: bool = False


def whole_batches(dataset: Any, collate: Collate | None) -> Callable[[np.ndarray], Any] | None:
    """A function from indices to a batch, where the data set is known to have one; never found by trial.

    A `TensorDataset` and classes with `get_batch(indices)` read many samples at once, many times faster
    than one by one.
    """
    if collate is not None:
        return None
    if type(dataset) is TensorDataset:
        tensors = dataset.tensors
        return lambda indices: tuple(tensor[torch.from_numpy(indices)] for tensor in tensors)
    get_batch = getattr(dataset, "get_batch", None)
    if callable(get_batch):
        return lambda indices: get_batch(torch.from_numpy(indices))
    return None


class TrainLoader:
    """The training data, step after step, from any step on.

    Args:
        dataset: Map-style, or read whole batches at a time.
        sampler: Which samples this rank reads at which step.
        reading: How samples become batches.
    """

    def __init__(self, dataset: Any, sampler: StepSampler, reading: Reading):
        self.dataset = dataset
        self.sampler = sampler
        self.reading = reading
        self._whole = whole_batches(dataset, reading.collate)
        self._iterator: Any = None

    @property
    def reads_whole_batches(self) -> bool:
        """Whether the data set gives a batch in one call."""
        return self._whole is not None

    def steps(self, start: int, stop: int | None) -> Iterator[list[MicroBatch]]:
        """This rank's micro-batches of each optimizer step from `start` on."""
        read = self._read_whole if self._whole is not None else self._read_samples
        yield from read(start, stop)

    def _read_whole(self, start: int, stop: int | None) -> Iterator[list[MicroBatch]]:
        read, shares, pin = self._whole, self.sampler.shares, self.reading.pin_memory
        assert read is not None
        step = start
        while stop is None or step < stop:
            batches = [MicroBatch(read(share.indices), share.samples) for share in shares(step)]
            if pin:
                batches = [MicroBatch(pinned(batch.data), batch.samples) for batch in batches]
            yield batches
            step += 1

    def _read_samples(self, start: int, stop: int | None) -> Iterator[list[MicroBatch]]:
        self.sampler.start_step, self.sampler.stop_step = start, stop
        loader = data_loader(self.dataset, self.sampler, self.reading)
        iterator = iter(loader)
        step = start
        try:
            while stop is None or step < stop:
                shares = self.sampler.shares(step)
                yield [MicroBatch(_next(iterator, loader), share.samples) for share in shares]
                step += 1
        finally:
            close_workers(iterator)


class EvaluationLoader:
    """An evaluation set in order, every sample once.

    Args:
        dataset: Map-style, or read whole batches at a time.
        batch_size: Samples of one forward pass.
        reading: How samples become batches.
        limit: At most so many batches.
    """

    def __init__(self, dataset: Any, batch_size: int, reading: Reading, limit: int | None = None):
        self.dataset = dataset
        self.batch_size = batch_size
        self.reading = reading
        self.limit = limit
        self._whole = whole_batches(dataset, reading.collate)

    def batches(self, rank: int = 0, world_size: int = 1) -> Iterator[MicroBatch]:
        """This rank's contiguous, unpadded shard; all of it with one rank."""
        shares = self._shares(rank, world_size)
        if self._whole is not None:
            for indices in shares:
                yield MicroBatch(self._whole(indices), len(indices))
            return
        keys = [[(0, int(index)) for index in indices] for indices in shares]
        loader = data_loader(self.dataset, keys, self.reading)
        iterator = iter(loader)
        try:
            for batch in keys:
                yield MicroBatch(_next(iterator, loader), len(batch))
        finally:
            close_workers(iterator)

    def _shares(self, rank: int, world_size: int) -> list[np.ndarray]:
        size = len(self.dataset)
        if self.limit is not None:
            size = min(size, self.limit * self.batch_size)
        return list(evaluation_shares(size, self.batch_size, rank, world_size))

    def num_samples(self) -> int:
        """Samples that an evaluation counts, over all ranks."""
        size = len(self.dataset)
        return size if self.limit is None else min(size, self.limit * self.batch_size)

    def num_batches(self) -> int:
        """Batches of one pass on one rank."""
        return -(-self.num_samples() // self.batch_size)


# ---------------------------------------------------------------------- samples through torch's DataLoader


class _Samples(Dataset[Any]):
    """The data set as the loader's workers see it: seeded samples by (epoch, index)."""

    def __init__(self, dataset: Any, reading: Reading):
        self.dataset = dataset
        self.reading = reading

    def __getitems__(self, keys: Sequence[Key]) -> tuple[Sequence[Key], list[Any]]:
        if not self.reading.sample_seeds:
            return keys, [self.dataset[index] for _, index in keys]
        with _randomness_restored(self.reading.workers == 0):
            return keys, [self._seeded(epoch, index) for epoch, index in keys]

    def _seeded(self, epoch: int, index: int) -> Any:
        seed_sample(self.reading.seed, epoch, index)
        return self.dataset[index]


class _Collate:
    """The user's collate, seeded by (seed, epoch, first index)."""

    def __init__(self, reading: Reading):
        self.reading = reading

    def __call__(self, fetched: Any) -> Any:  # what `__getitems__` of _Samples gives: keys and samples
        keys, samples = fetched
        collate = self.reading.collate
        if collate is None:
            return default_collate(samples)
        with _randomness_restored(self.reading.workers == 0):
            epoch, first = keys[0]
            seed_sample(self.reading.seed, epoch, first, purpose=1)
            return collate(samples)


def seed_sample(seed: int, epoch: int, index: int, purpose: int = 0) -> None:
    """Seeds `random`, NumPy and torch's CPU generator for one sample (9.5 µs)."""
    value = mix(seed, epoch, index, purpose)
    random.seed(value)
    np.random.seed(value & 0xFFFFFFFF)
    torch.default_generator.manual_seed(value & 0x7FFFFFFFFFFFFFFF)


class _randomness_restored:  # noqa: N801  # a context manager named as what it says
    """Puts the process's random states back; workers, which have nothing else to do with them, skip it."""

    def __init__(self, needed: bool):
        self.needed = needed

    def __enter__(self) -> None:
        if self.needed:
            self.state = random.getstate(), np.random.get_state(), torch.default_generator.get_state()

    def __exit__(self, *_: object) -> None:
        if self.needed:
            random.setstate(self.state[0])
            np.random.set_state(self.state[1])
            torch.default_generator.set_state(self.state[2])


def data_loader(dataset: Any, batch_sampler: Any, reading: Reading) -> DataLoader[Any]:
    """A DataLoader over our sampler, with a generator of its own.

    Without one, each iterator would draw from the global generator, and evaluating would change training.
    """
    workers = reading.workers
    return DataLoader(
        _Samples(dataset, reading),
        batch_sampler=batch_sampler,
        collate_fn=_Collate(reading),
        num_workers=workers,
        timeout=reading.timeout_seconds if workers else 0,
        worker_init_fn=_start_worker if workers else None,
        generator=torch.Generator(),
        pin_memory=reading.pin_memory,
        prefetch_factor=4 if workers else None,
    )


def _start_worker(_: int) -> None:
    """Signals are meant for the trainer; a worker ends when its trainer does."""
    for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    parent = os.getppid()
    die_with_parent()
    if os.getppid() != parent:
        os._exit(1)
    torch.set_num_threads(1)


def die_with_parent() -> None:
    """Linux: SIGKILL for this process when the thread that started it ends."""
    try:
        ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))
    except (OSError, AttributeError):
        return  # not Linux: the loader's own watchdog ends the worker


def _next(iterator: Any, loader: DataLoader[Any]) -> Any:
    try:
        return next(iterator)
    except RuntimeError as error:
        if "DataLoader" not in str(error):
            raise
        name = type(loader.dataset.dataset).__name__  # type: ignore[attr-defined]  # a _Samples
        raise LauncherError(
            f"reading {name} failed: {error}; a worker that was killed may have run out of memory (fewer "
            "data.workers), one that hangs shows where with data.workers=0 (or give it more data.timeout)"
        ) from error


def close_workers(iterator: Any) -> None:
    """Ends a DataLoader's workers now; one that has not left in a second is killed."""
    workers = getattr(iterator, "_workers", [])
    shutdown = getattr(iterator, "_shutdown_workers", None)
    if shutdown is None or not workers:
        return
    for worker in workers:
        if worker.is_alive() and getattr(iterator, "_workers_done_event", None) is not None:
            worker.join(0)
    shutdown()
    for worker in workers:
        worker.join(1)
        if worker.is_alive():
            worker.kill()


def pinned(data: Any) -> Any:
    """The same batch in page-locked memory."""
    if isinstance(data, torch.Tensor):
        return data.pin_memory()
    if isinstance(data, dict):
        return {key: pinned(value) for key, value in data.items()}
    if isinstance(data, tuple | list):
        return type(data)(pinned(value) for value in data)
    return data
