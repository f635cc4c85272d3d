"""From indices to a batch: many samples in one call where the data set can, seeded ones one by one otherwise."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import TensorDataset, default_collate

from launcher.data.permutation import Indices, mix
from launcher.data.subsets import is_hub_dataset, name_of
from launcher.errors import LauncherError
from launcher.internals import pin_memory

Collate = Callable[[list[Any]], Any]
Mark = Callable[[int, int], None]


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
        rank: Whose reading it is, for messages.
    """

    collate: Collate | None = None
    workers: int = 0
    timeout_seconds: float = 600.0
    seed: int = 0
    sample_seeds: bool = True
    pin_memory: bool = False
    rank: int = 0


class Reader:
    """Makes batches of a data set's samples, in the training process or in a worker.

    Args:
        dataset: Map-style.
        reading: How.
        name: What to call the data set in messages, as in `data.train`.
    """

    def __init__(self, dataset: Any, reading: Reading, name: str):
        self.dataset = dataset
        self.reading = reading
        self.name = f"{name} ({name_of(dataset)}), rank {reading.rank}"
        self.mark: Mark = _unmarked
        self.in_training_process = True  # whose generators are needed for other things than reading
        self.shard = 0  # of a stream: two of them never draw the same numbers
        self._whole = whole_batches(dataset, reading.collate)

    def batch(self, epoch: int, indices: Indices) -> Any:
        """The batch of these samples, as the data set and its collate make it.

        Raises:
            LauncherError: The data set says that a sample cannot be read, or the samples do not make a batch.
        """
        if self._whole is not None:
            self.mark(epoch, int(indices[0]))
            return self.pinned(self._whole(indices))
        with randomness_restored(self.in_training_process and self.reading.sample_seeds):
            return self.pinned(self.collated(epoch, indices, self._samples(epoch, indices)))

    def _samples(self, epoch: int, indices: Indices) -> list[Any]:
        if _reads_columns(self.dataset):
            rows: list[Any] = self.dataset.__getitems__(indices.tolist())
            return rows
        return [self._sample(epoch, index) for index in indices.tolist()]

    def _sample(self, epoch: int, index: int) -> Any:
        self.seed(epoch, index)
        self.mark(epoch, index)
        with located(f"{self.name}, sample {index}"):
            return self.dataset[index]

    def collated(self, epoch: int, indices: Indices, samples: list[Any]) -> Any:
        """A batch of these samples, the collate seeded by the first of them.

        Raises:
            LauncherError: They do not make a batch.
        """
        if self.reading.collate is not None:
            self.seed(epoch, int(indices[0]), purpose=1)
            return self.reading.collate(samples)
        try:
            return default_collate(samples)
        except (RuntimeError, TypeError, KeyError) as error:
            which = ", ".join(map(str, indices[:8].tolist())) + (", …" if len(indices) > 8 else "")
            raise LauncherError(
                f"{self.name}: samples {which} do not make a batch: {error}; make them alike in the data set, or name "
                "a function that can as data.collate"
            ) from error

    def seed(self, epoch: int, index: int, purpose: int = 0) -> None:
        """Seeds what comes next by its place, if seeds are wanted."""
        if self.reading.sample_seeds:
            seed_sample(self.reading.seed, epoch, index, 2 * self.shard + purpose)

    def pinned(self, batch: Any) -> Any:
        """The batch in page-locked memory where that is wanted; workers leave it to a thread of the trainer."""
        if self.reading.pin_memory and self.in_training_process:
            return pin_memory(batch)
        return batch


class located:  # noqa: N801  # a context manager named as what it says
    """Says of an error where it happened: before a clear message, as a note below a traceback.

    A class, because a generator would cost more than many a sample.
    """

    def __init__(self, place: str):
        self.place = place

    def __enter__(self) -> None:
        """Costs nothing."""

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, LauncherError):
            raise LauncherError(f"{self.place}: {error}") from error
        if isinstance(error, Exception) and hasattr(error, "add_note"):  # Python 3.11
            error.add_note(f"in {self.place}")


# ---------------------------------------------------------------------- many samples in one call


def whole_batches(dataset: Any, collate: Collate | None) -> Callable[[Indices], Any] | None:
    """A function from indices to a batch, where the data set is known to have one; never found by trial.

    A `TensorDataset`, classes with `get_batch(indices)` and Hugging Face data sets of plain columns read many
    samples at once, many times faster than one by one. What they give is what collating the samples would give.
    """
    if collate is not None:
        return None
    if type(dataset) is TensorDataset:
        return partial(_tensor_rows, dataset.tensors)
    get_batch = getattr(dataset, "get_batch", None)
    if callable(get_batch):
        return partial(_batch_rows, get_batch)
    return partial(_column_rows, dataset) if _reads_columns(dataset) else None


def _tensor_rows(tensors: Sequence[torch.Tensor], indices: Indices) -> tuple[torch.Tensor, ...]:
    rows = torch.from_numpy(indices)
    return tuple(tensor.index_select(0, rows) for tensor in tensors)  # up to three times as fast as tensor[rows]


def _batch_rows(get_batch: Callable[[torch.Tensor], Any], indices: Indices) -> Any:
    return get_batch(torch.from_numpy(indices))


def _column_rows(dataset: Any, indices: Indices) -> dict[str, Any]:
    """A `datasets.Dataset` gives columns: each is collated by itself, as the fields of a mapping are."""
    return {name: default_collate(list(column)) for name, column in dataset[indices.tolist()].items()}


def _reads_columns(dataset: Any) -> bool:
    """Whether it is a Hugging Face data set whose many rows at once are its rows one by one.

    Not with a format: NumPy's gives other types for one row than for many, torch's takes as long for many, and a
    transform is called once for each read and may be random. Nor with pictures or sound, decoded one by one.
    """
    if not is_hub_dataset(dataset) or dataset.format["type"] is not None:
        return False
    return not any(hasattr(feature, "decode_example") for feature in dataset.features.values())


# ---------------------------------------------------------------------- randomness


def seed_sample(seed: int, epoch: int, index: int, purpose: int = 0) -> None:
    """Seeds `random`, NumPy and torch's CPU generator for one sample (9.5 µs)."""
    value = mix(seed, epoch, index, purpose)
    random.seed(value)
    np.random.seed(value & 0xFFFFFFFF)
    torch.default_generator.manual_seed(value & 0x7FFFFFFFFFFFFFFF)


class randomness_restored:  # noqa: N801  # a context manager named as what it says
    """Puts the process's random states back."""

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


def _unmarked(epoch: int, index: int) -> None:
    """Nobody watches."""
