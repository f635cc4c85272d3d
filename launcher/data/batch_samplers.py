"""Batches that are more than the next samples of a permutation: by class, by length, by number of tokens.

Each batch is a function of (seed, epoch, number): the same for every number of processes, and as cheap to find at any
place of a run as at its beginning. As torch's batch samplers they can be iterated over, an epoch at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from launcher.data.measured import lengths_of, targets_of
from launcher.data.permutation import Indices, Permutation, keyed_bits, mix

Numbers = str | Path | Sequence[int] | npt.NDArray[Any] | Callable[[Any], Any]

_WINDOWS, _STEPS, _BUCKETS, _CLASSES, _ROUNDS = range(101, 106)  # whose orders must not be one another's


class ArithmeticBatches(Sampler[list[int]]):
    """Batches by arithmetic.

    Attributes:
        steps_per_epoch: How many an epoch has.
        seed: Fixes all of it with the epoch; None until the run says its own.
        deals_in_turn: Whether the ranks get a batch's samples in turn, and not in pieces: they are sorted.
    """

    steps_per_epoch: int
    deals_in_turn = False

    def __init__(self, seed: int | None):
        self.seed = seed
        self.epoch = 0

    def batch(self, epoch: int, number: int) -> Indices:
        """The samples of this batch of an epoch, of all ranks together."""
        raise NotImplementedError

    def samples_in(self, epoch: int, number: int) -> int:
        """How many samples an epoch's first `number` batches have; as many in every whole epoch."""
        raise NotImplementedError

    def set_epoch(self, epoch: int) -> None:
        """Makes iteration go through this epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        return (self.batch(self.epoch, number).tolist() for number in range(len(self)))

    def __len__(self) -> int:
        return self.steps_per_epoch

    def _mix(self, *place: int) -> int:
        return mix(self.seed or 0, *place)


class MPerClass(ArithmeticBatches):
    """The same number of samples of each of several classes, for losses that compare samples of one class.

    The classes take turns: a round goes through all of them in an order of its own, and each class through its samples
    in orders of their own. What is left of a round when its last batch is full is left out of it.

    Args:
        data_source: The training set, passed in by the run.
        m: Samples of each class in a batch.
        batch_size: Samples of a batch over all processes, a multiple of `m`.
        targets: A class for each sample: numbers, a .npy file, or a function of the data set; None asks the data set.
        steps: Batches of an epoch; None is as many as the data set has samples for.
        seed: None is the run's.

    Raises:
        ValueError: A batch needs more classes than there are, or `m` does not divide it.
    """

    def __init__(
        self,
        data_source: Any,
        m: int,
        batch_size: int,
        targets: Numbers | None = None,
        steps: int | None = None,
        seed: int | None = None,
    ):
        super().__init__(seed)
        numbers = targets_of(data_source, targets)
        self.m, self.batch_size = m, batch_size
        _, counts = np.unique(numbers, return_counts=True)
        self._order = np.argsort(numbers, kind="stable")
        self._bounds = np.append(0, np.cumsum(counts))
        self._in_batch = batch_size // m if m > 0 else 0
        if not self._in_batch or batch_size % m:
            raise ValueError(f"batch_size: {batch_size} is not a multiple of m ({m}); use one, as in {max(1, m) * 8}")
        if self._in_batch > len(counts):
            raise ValueError(f"a batch of {batch_size} has {self._in_batch} classes, and there are {len(counts)}")
        self.steps_per_epoch = steps or max(1, len(numbers) // batch_size)
        self._kept: dict[int, tuple[int, Indices]] = {}  # by class: a pass over its samples, and their order in it

    def batch(self, epoch: int, number: int) -> Indices:
        """`m` samples of one class, then of the next."""
        classes = len(self._bounds) - 1
        turns, place = divmod(epoch * self.steps_per_epoch + number, classes // self._in_batch)
        order = Permutation(classes, self._mix(_ROUNDS), turns)
        chosen = order.slice(place * self._in_batch, (place + 1) * self._in_batch).tolist()
        return np.concatenate([self._of_class(one, turns * self.m, (turns + 1) * self.m) for one in chosen])

    def samples_in(self, epoch: int, number: int) -> int:
        """All batches are of one size."""
        return number * self.batch_size

    def _of_class(self, number: int, start: int, stop: int) -> Indices:
        """The samples at these places of a class's endless order."""
        first, size = self._bounds[number], int(self._bounds[number + 1] - self._bounds[number])
        parts = []
        while start < stop:
            turn, place = divmod(start, size)
            end = min(size, place + stop - start)
            parts.append(self._order[first + self._shuffled(number, size, turn)[place:end]])
            start += end - place
        return np.concatenate(parts)

    def _shuffled(self, number: int, size: int, turn: int) -> Indices:
        kept = self._kept.get(number)
        if kept is None or kept[0] != turn:
            keys = keyed_bits(self._mix(_CLASSES, number, turn), np.arange(size))
            kept = self._kept[number] = turn, np.argsort(keys, kind="stable")
        return kept[1]


class LengthBuckets(ArithmeticBatches):
    """Samples of nearly one length in each batch, so that little is padded; every sample once an epoch.

    Windows of the epoch's permutation are sorted by length and cut into batches, which come in an order of their own.

    Args:
        data_source: The training set, passed in by the run.
        batch_size: Samples of a batch over all processes.
        lengths: A length for each sample: numbers, a .npy file, or a function of the data set; None measures them.
        window: Batches of a window: more of them pad less, and mix less.
        drop_last: Leave out an epoch's last samples where they are no whole batch.
        seed: None is the run's.
    """

    deals_in_turn = True

    def __init__(
        self,
        data_source: Any,
        batch_size: int,
        lengths: Numbers | None = None,
        window: int = 50,
        drop_last: bool = False,
        seed: int | None = None,
    ):
        super().__init__(seed)
        if batch_size < 1 or window < 1:
            raise ValueError("batch_size and window are at least 1")
        self.lengths = lengths_of(data_source, lengths)
        self.batch_size, self.window = batch_size, window
        whole, rest = divmod(len(self.lengths), batch_size)
        self.steps_per_epoch = whole + (rest > 0 and not drop_last)
        self._size = min(len(self.lengths), self.steps_per_epoch * batch_size)
        self._kept: tuple[tuple[int, int], Indices] | None = None  # a window, sorted

    def batch(self, epoch: int, number: int) -> Indices:
        """The samples, the longest last."""
        window, place = divmod(number, self.window)
        first = window * self.window
        batches = min(self.window, self.steps_per_epoch - first)
        chosen = int(Permutation(batches, self._mix(_WINDOWS, window), epoch).slice(place, place + 1)[0])
        return self._sorted(epoch, window)[chosen * self.batch_size : (chosen + 1) * self.batch_size]

    def samples_in(self, epoch: int, number: int) -> int:
        """All batches are of one size but one of the last window."""
        first = (self.steps_per_epoch - 1) // self.window * self.window
        if number <= first:
            return number * self.batch_size
        return first * self.batch_size + sum(len(self.batch(epoch, at)) for at in range(first, number))

    def _sorted(self, epoch: int, window: int) -> Indices:
        if self._kept is None or self._kept[0] != (epoch, window):
            start = window * self.window * self.batch_size
            stop = min(start + self.window * self.batch_size, self._size)
            indices = Permutation(len(self.lengths), self._mix(), epoch).slice(start, stop)
            self._kept = (epoch, window), indices[np.argsort(self.lengths[indices], kind="stable")]
        return self._kept[1]


class TokenBudget(ArithmeticBatches):
    """As many samples of like length in a batch as a budget of tokens allows, padded ones counted; each once an epoch.

    The samples are divided into buckets by length, once, each with as many rows a batch as its longest sample allows.
    What a bucket has beyond whole batches goes into batches of the rest, so that the number of batches is known.

    Args:
        data_source: The training set, passed in by the run.
        tokens: The most tokens of a batch over all processes: its rows times its longest sample.
        lengths: As for `LengthBuckets`.
        buckets: How many: more of them pad less, and mix less.
        seed: None is the run's.

    Raises:
        ValueError: A sample has more tokens than a batch may have.
    """

    deals_in_turn = True

    def __init__(
        self, data_source: Any, tokens: int, lengths: Numbers | None = None, buckets: int = 64, seed: int | None = None
    ):
        super().__init__(seed)
        self.lengths = lengths_of(data_source, lengths)
        self._order = np.argsort(self.lengths, kind="stable")
        longest = np.maximum(1, self.lengths[self._order])
        if longest[-1] > tokens:
            message = f"sample {self._order[-1]} has {longest[-1]} tokens, and a batch at most {tokens}"
            raise ValueError(f"{message}; raise tokens, or cut it shorter")
        self.tokens, count = tokens, min(max(1, buckets), len(longest))
        self._starts = np.arange(count + 1) * len(longest) // count  # where each bucket begins in the order
        self._sizes = np.diff(self._starts)
        self._longest = longest[self._starts[1:] - 1]
        self._rows = tokens // self._longest
        self._ends = np.cumsum(self._sizes // self._rows)  # of each bucket's batches, among all that are whole
        self._rest = list(self._batches_of_the_rest())
        self.steps_per_epoch = int(self._ends[-1]) + len(self._rest)

    def _batches_of_the_rest(self) -> Iterator[list[tuple[int, int, int]]]:
        """Batches of what buckets have left, from the longest down: bucket, first place, and place behind the last."""
        batch: list[tuple[int, int, int]] = []
        room = 0
        for bucket in reversed(range(len(self._sizes))):
            start, stop = int(self._sizes[bucket] // self._rows[bucket] * self._rows[bucket]), int(self._sizes[bucket])
            while start < stop:
                if not room:
                    if batch:
                        yield batch
                    batch, room = [], int(self._rows[bucket])
                taken = min(room, stop - start)
                batch.append((bucket, start, start + taken))
                start, room = start + taken, room - taken
        if batch:
            yield batch

    def batch(self, epoch: int, number: int) -> Indices:
        """The samples of one bucket, or of neighbours."""
        place = int(Permutation(self.steps_per_epoch, self._mix(_STEPS), epoch).slice(number, number + 1)[0])
        if place >= self._ends[-1]:
            return np.concatenate([self._rows_of(epoch, *part) for part in self._rest[place - int(self._ends[-1])]])
        bucket = int(np.searchsorted(self._ends, place, side="right"))
        rows = int(self._rows[bucket])
        start = (place - int(self._ends[bucket - 1] if bucket else 0)) * rows
        return self._rows_of(epoch, bucket, start, start + rows)

    def samples_in(self, epoch: int, number: int) -> int:
        """By the place of each batch among all."""
        places = Permutation(self.steps_per_epoch, self._mix(_STEPS), epoch).slice(0, number)
        whole = self._rows[np.searchsorted(self._ends, places[places < self._ends[-1]], side="right")]
        rest: list[int] = [sum(stop - start for _, start, stop in batch) for batch in self._rest]
        last = int(self._ends[-1])
        return int(whole.sum() + sum(rest[place - last] for place in places.tolist() if place >= last))

    def _rows_of(self, epoch: int, bucket: int, start: int, stop: int) -> Indices:
        order = Permutation(int(self._sizes[bucket]), self._mix(_BUCKETS, bucket), epoch)
        rows: Indices = self._order[self._starts[bucket] + order.slice(start, stop)]
        return rows
