"""From indices to a batch: many samples in one call where the data set can, seeded ones one by one otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils.data import Subset, TensorDataset, default_collate

from launcher import internals
from launcher.data.epochs import Announcer
from launcher.data.many import verdict_on
from launcher.data.permutation import Indices
from launcher.data.seeds import randomness_restored, seed_generators, states
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
        self.epochs = Announcer(dataset, reading.collate)
        self._whole = whole_batches(dataset, reading.collate)
        self._gathers_pinned = reading.pin_memory and getattr(self._whole, "func", None) is _tensor_rows
        self._has_many = has_many(dataset)
        self._is_read_at_once = self._has_many and not _loops_over_samples(dataset)

    @property
    def reads_whole_batches(self) -> bool:
        """Whether the data set gives a batch in one call."""
        return self._whole is not None

    def batch(self, epoch: int, indices: Indices) -> Any:
        """The batch of these samples, as the data set and its collate make it.

        Raises:
            LauncherError: The data set says that a sample cannot be read, or the samples do not make a batch.
        """
        self.epochs.tell(epoch)
        if self._whole is not None:
            if self.mark is not _unmarked:
                self.mark(epoch, int(indices[0]))
            if self._gathers_pinned and self.in_training_process:
                return pinned_rows(self.dataset, indices)
            rows = self._whole(indices)
            return self.pinned(rows) if self.reading.pin_memory else rows
        with randomness_restored(self.in_training_process and self.reading.sample_seeds):
            return self.pinned(self.collated(epoch, indices, self._samples(epoch, indices)))

    def _samples(self, epoch: int, indices: Indices) -> Any:
        numbers = indices.tolist()
        samples = self._at_once(epoch, numbers) if self._is_read_at_once else None
        return [self._sample(epoch, index) for index in numbers] if samples is None else samples

    def _at_once(self, epoch: int, numbers: list[int]) -> Any:
        """What `__getitems__` gives for all of them; None where each must be read by itself.

        That is where reading draws at random, since each sample has seeds of its own whatever it is read with, and
        where it fails, since a message names the sample.
        """
        self.seed(epoch, numbers[0])
        self.mark(epoch, numbers[0])
        before = states() if self.reading.sample_seeds else None
        try:
            samples = self.dataset.__getitems__(numbers)
        except Exception:
            return None
        can_be_split = isinstance(samples, list | tuple) and len(samples) == len(numbers)
        if before is None or not can_be_split or before == states():
            return samples
        self._is_read_at_once = False
        return None

    def _sample(self, epoch: int, index: int) -> Any:
        self.seed(epoch, index)
        self.mark(epoch, index)
        with located(f"{self.name}, sample {index}"):
            return self.dataset.__getitems__([index])[0] if self._has_many else self.dataset[index]

    def collated(self, epoch: int, indices: Indices, samples: list[Any]) -> Any:
        """A batch of these samples, the collate seeded by the first of them.

        Raises:
            LauncherError: They do not make a batch.
        """
        if self.reading.collate is not None:
            self.seed(epoch, int(indices[0]), purpose=1)
            return self.reading.collate(samples)
        try:
            return _collated(samples)
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
            return pinned(batch)
        return batch


def pinned(batch: Any) -> Any:
    """A batch in page-locked memory; as it is where it holds tensors that cannot be there, sparse or quantized ones."""
    try:
        return pin_memory(batch)
    except (RuntimeError, NotImplementedError):
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
    """A function from indices to a batch, where what it gives is what collating the samples would give.

    A `TensorDataset`, classes with a `get_batch(indices)` that stands for their samples, and Hugging Face data sets of
    plain columns read many samples at once, many times faster than one by one.
    """
    if collate is not None:
        return None
    if type(dataset) is TensorDataset:
        return partial(_tensor_rows, dataset) if all(map(_has_rows, dataset.tensors)) else None
    get_batch = verdict_on(dataset).get_batch
    if get_batch is not None:
        return partial(_batch_rows, get_batch)
    return partial(_column_rows, dataset) if _reads_columns(dataset) else None


def reading_notes(dataset: Any, collate: Collate | None) -> Iterator[str]:
    """What the plan should say of how samples are read: a method that is not used, or one that bypasses another."""
    kind = type(dataset)
    if collate is None and (why := verdict_on(dataset).why):
        yield why
    elif has_many(dataset) and not _is_own_many(kind):
        yield (
            f"{kind.__name__} is read by the __getitems__ that it inherits or passes on, not by its own __getitem__, "
            "as torch's DataLoader would; give it a __getitems__ too if that is not meant"
        )


def has_many(dataset: Any) -> bool:
    """Whether it has a `__getitems__`, asked as torch's DataLoader asks: also of a `__getattr__`."""
    return bool(getattr(dataset, "__getitems__", None))


def _is_own_many(kind: type) -> bool:
    """Whether `__getitems__` is defined no higher than `__getitem__`."""
    names = [{name for name in ("__getitem__", "__getitems__") if name in vars(base)} for base in kind.__mro__]
    return "__getitems__" in next((methods for methods in names if methods), set())


def _loops_over_samples(dataset: Any) -> bool:
    """Whether its `__getitems__` is torch's own loop: read one by one, each sample can be named."""
    if getattr(type(dataset), "__getitems__", None) is not Subset.__getitems__:
        return False
    return not callable(getattr(dataset.dataset, "__getitems__", None)) or _loops_over_samples(dataset.dataset)


def _has_rows(tensor: torch.Tensor) -> bool:
    """Whether picking rows of a tensor is stacking them."""
    plain = tensor.layout is torch.strided and not (tensor.is_nested or tensor.is_quantized)
    return plain and tensor.device.type == "cpu" and type(tensor) is torch.Tensor


def _tensor_rows(dataset: TensorDataset, indices: Indices) -> list[torch.Tensor]:
    rows = torch.from_numpy(indices)
    return [tensor.index_select(0, rows) for tensor in dataset.tensors]  # up to three times as fast as tensor[rows]


def pinned_rows(dataset: TensorDataset, indices: Indices) -> list[torch.Tensor]:
    """The same, gathered where a GPU copies from; where no memory can be locked, in any."""
    rows = torch.from_numpy(indices)
    try:
        places = [
            torch.empty((len(rows), *tensor.shape[1:]), dtype=tensor.dtype, pin_memory=True)
            for tensor in dataset.tensors
        ]
    except RuntimeError:
        return _tensor_rows(dataset, indices)
    pairs = zip(dataset.tensors, places, strict=True)
    return [torch.index_select(tensor, 0, rows, out=place) for tensor, place in pairs]


def _batch_rows(get_batch: Callable[[torch.Tensor], Any], indices: Indices) -> Any:
    return get_batch(torch.from_numpy(indices))


def _column_rows(dataset: Any, indices: Indices) -> dict[str, Any]:
    """A `datasets.Dataset` gives columns: each is collated by itself, as the fields of a mapping are."""
    return {name: default_collate(list(column)) for name, column in dataset[indices.tolist()].items()}


def _collated(samples: list[Any]) -> Any:
    """Torch's default collate; in a worker too of tensors that its shortcut through shared memory cannot hold."""
    try:
        return default_collate(samples)
    except RuntimeError:
        with internals.as_in_no_worker() as is_worker:
            if not is_worker:
                raise
            return default_collate(samples)  # conjugated or quantized ones: as the training process would


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
    """Seeds `random`, NumPy and torch's CPU generator for one sample, independently of one another."""
    seed_generators(seed, epoch, index, purpose)


def _unmarked(epoch: int, index: int) -> None:
    """Nobody watches."""
