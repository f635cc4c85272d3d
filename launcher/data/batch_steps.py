"""Steps whose batches somebody else chooses: a batch sampler, dealt out to ranks and micro-batches.

A step is one batch, whatever its size. Ours are functions of (seed, epoch, number). Any other is gone through once by
every process, with generators seeded for it by the pass alone, so that all see the same batches; a run is resumed by
going through what was read before, without reading it, from the epoch's beginning where only torch's own classes or a
`set_epoch` say what a pass is, else from the run's.
"""

from __future__ import annotations

import copy
import random
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch

from launcher.data.batch_samplers import ArithmeticBatches
from launcher.data.epochs import listeners
from launcher.data.permutation import Indices
from launcher.data.sampler import Share, StepSampler, piece
from launcher.data.seeds import randomness_restored, seed_generators
from launcher.errors import LauncherError

_KEPT = 1024  # batches: the loop's, and those that workers are ahead of it
_AT_ONCE = 64  # batches that are drawn from a sampler together
_DRAWN = 3  # the purpose of its seeds
_END = object()


class Batches(Protocol):
    """The batches of a run, by the number of the step."""

    steps_per_epoch: int
    deals_in_turn: bool

    def at(self, step: int) -> Indices:
        """The samples of a step, of all ranks together."""
        ...

    def samples_before(self, step: int) -> int:
        """How many samples the steps before this one have together."""
        ...


class BatchSteps(StepSampler):
    """The steps of a run whose batches a batch sampler chooses.

    Args:
        dataset: Asked for its length.
        batches: The batches.
        rank: This process among `world_size`.
        world_size: Number of processes.
        micro_batch_size: The most samples in one forward pass of one rank.
        seed: The run's.
    """

    label = "batches of the sampler, the first of"

    def __init__(
        self,
        dataset: Any,
        batches: Batches,
        *,
        rank: int = 0,
        world_size: int = 1,
        micro_batch_size: int | None = None,
        seed: int = 0,
    ):
        self._batches = batches
        self._found: OrderedDict[int, Indices] = OrderedDict()
        first = len(batches.at(0))
        super().__init__(
            dataset,
            global_batch_size=first,
            rank=rank,
            world_size=world_size,
            micro_batch_size=micro_batch_size,
            seed=seed,
        )
        self.steps_per_epoch = batches.steps_per_epoch

    def _batch(self, step: int) -> Indices:
        if step not in self._found:
            if len(self._found) == _KEPT:
                self._found.popitem(last=False)
            self._found[step] = self._batches.at(step)
        return self._found[step]

    def _division(self, size: int) -> list[tuple[slice, int]]:
        if size not in self._micro_batches:
            self._micro_batches[size] = self._divide(size)
        return self._micro_batches[size]

    def batch_size(self, step: int) -> int:
        """Samples in this step's batch."""
        return len(self._batch(step))

    def accumulation(self, step: int) -> int:
        """Micro-batches in this step: the same number on every rank."""
        return len(self._division(self.batch_size(step)))

    def samples_before(self, step: int) -> int:
        """Samples that all ranks together have read when `step` steps are completed."""
        return self._batches.samples_before(step)

    def shares(self, step: int) -> list[Share]:
        """What this rank reads at this step, one share per micro-batch."""
        batch, world = self._batch(step), self.num_replicas
        start, stop = piece(len(batch), world, self.rank)
        own = batch[self.rank :: world] if self._batches.deals_in_turn else batch[start:stop]
        row = np.concatenate([batch[:1], own])
        return [Share(row[part], samples) for part, samples in self._division(len(batch))]

    def __len__(self) -> int:
        """Micro-batches in an epoch."""
        return sum(len(self._division(len(self._batches.at(step)))) for step in range(self.steps_per_epoch))


class ByArithmetic:
    """Batches of ours."""

    def __init__(self, sampler: ArithmeticBatches, seed: int):
        self.sampler = sampler
        self.steps_per_epoch, self.deals_in_turn = sampler.steps_per_epoch, sampler.deals_in_turn
        if sampler.seed is None:
            sampler.seed = seed

    def at(self, step: int) -> Indices:
        """The samples of a step."""
        return self.sampler.batch(*divmod(step, self.steps_per_epoch))

    def samples_before(self, step: int) -> int:
        """How many samples the steps before this one have together."""
        epochs, rest = divmod(step, self.steps_per_epoch)
        whole = self.sampler.samples_in(0, self.steps_per_epoch) if epochs else 0  # the same in each
        return epochs * whole + self.sampler.samples_in(epochs, rest)


class ByCounting:
    """Batches of any batch sampler, pass after pass.

    Args:
        sampler: Gives lists of indices; another pass may give others.
        dataset: What it chooses from.
        seed: The run's.
        steps: How many steps a run has, where the sampler does not know how many batches a pass has.

    Raises:
        LauncherError: What it gives is not a list of the data set's indices, or another number of them than it says.
    """

    deals_in_turn = False

    def __init__(self, sampler: Any, dataset: Any, seed: int, steps: int | None):
        self.sampler, self.size, self.seed = sampler, len(dataset), seed
        self._dataset, self._as_built = dataset, _copied(sampler, dataset)
        self.length = steps_of(sampler)
        self.steps_per_epoch = self.length or steps or 1
        self._is_known_by_pass = _is_known_by_pass(sampler)
        self._twin: ByCounting | None = None
        self._counted = self._samples = 0  # steps and samples that the twin has counted
        self._next = 0
        self._begin()

    def _begin(self, number: int = 0) -> None:
        """Stands before the first batch of a pass."""
        if not self._is_known_by_pass and self._as_built is not None and self._next:
            self.sampler, self._as_built = self._as_built, _copied(self._as_built, self._dataset)
        self._number = number
        self._first = (self.length or 0) * number  # the step that this pass began with
        self._next = self._first  # the step that comes next
        self._kept: OrderedDict[int, Indices] = OrderedDict()
        self._pass: _Pass | None = None

    def at(self, step: int) -> Indices:
        """The samples of a step; of one long ago, by going through them again."""
        if step in self._kept:
            return self._kept[step]
        if step < self._next or (self._is_known_by_pass and self.length and step >= self._first + 2 * self.length):
            self._begin(step // self.length if self._is_known_by_pass and self.length else 0)
        while self._next <= step:
            self._advance()
        return self._kept[step]

    def samples_before(self, step: int) -> int:
        """How many samples the steps before this one have together: what a twin counts, which only goes forward."""
        if self._twin is None or self._counted > step:
            fresh = _copied(self._as_built, self._dataset) if self._as_built is not None else self.sampler
            self._twin = ByCounting(fresh, self._dataset, self.seed, self.steps_per_epoch)
            self._counted = self._samples = 0
        while self._counted < step:
            self._samples += len(self._twin.at(self._counted))
            self._counted += 1
        return self._samples

    def _advance(self) -> None:
        if self._pass is None:
            self._pass = _Pass(self.sampler, self.seed, self._number)
        batch = self._pass.next()
        count = self._next - self._first
        if batch is _END:
            self._end(count)
            return
        if self.length is not None and count >= self.length:
            raise LauncherError(f"{self._name}: it gives more than {self.length} batches, and its length says so many")
        self._kept[self._next] = self._checked(batch, count)
        self._next += 1
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)

    def _end(self, count: int) -> None:
        if not count or (self.length is not None and count != self.length):
            says = f"its length says {self.length}" if self.length is not None else "a pass without any has no end"
            message = f"{self._name}: pass {self._number} has {count} batches, and {says}"
            raise LauncherError(f"{message}; the number must be the same in each, or there must be no __len__")
        self._number, self._first, self._pass = self._number + 1, self._next, None

    def _checked(self, batch: Any, count: int) -> Indices:
        try:
            indices = np.asarray(batch)
        except (ValueError, TypeError):
            indices = np.empty(0)
        if indices.ndim != 1 or not indices.size or indices.dtype.kind not in "iu":
            remedy = "a batch sampler gives lists of indices; torch.utils.data.BatchSampler makes them of single ones"
            raise LauncherError(f"{self._name}: batch {count} is {str(batch)[:60]}; {remedy}")
        if indices.min() < 0 or indices.max() >= self.size:
            wrong = indices.min() if indices.min() < 0 else indices.max()
            raise LauncherError(f"{self._name}: batch {count} has sample {wrong}; there are 0 to {self.size - 1}")
        return indices.astype(np.int64, copy=False)

    @property
    def _name(self) -> str:
        return f"data.batch_sampler ({type(self.sampler).__name__})"


class _Pass:
    """One iteration over a sampler, with generators of its own: whoever draws meanwhile changes nothing in it."""

    def __init__(self, sampler: Any, seed: int, number: int):
        self._iterator: Iterator[Any] | None = None
        self._sampler, self._place = sampler, (seed, number, _DRAWN)
        self._states: Any = None
        self._drawn: list[Any] = []

    def next(self) -> Any:
        """Its next batch, or `_END`."""
        if not self._drawn:
            self._draw()
        return self._drawn.pop(0)

    def _draw(self) -> None:
        with randomness_restored(needed=True):
            if self._iterator is None:
                for listener in listeners(self._sampler):
                    listener.set_epoch(self._place[1])
                seed_generators(*self._place)
                self._iterator = iter(self._sampler)
            else:
                random.setstate(self._states[0])
                np.random.set_state(self._states[1])
                torch.default_generator.set_state(self._states[2])
            for _ in range(_AT_ONCE):
                self._drawn.append(next(self._iterator, _END))
                if self._drawn[-1] is _END:
                    break
            self._states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()


def _copied(sampler: Any, dataset: Any) -> Any:
    """The sampler as it is now, over the same data set; None where it cannot be copied."""
    try:
        return copy.deepcopy(sampler, {id(dataset): dataset})
    except Exception:
        return None


def steps_of(sampler: Any) -> int | None:
    """How many batches a pass has, if it knows."""
    try:
        return len(sampler)
    except (TypeError, NotImplementedError, AttributeError):
        return None


def _is_known_by_pass(sampler: Any) -> bool:
    """Whether a pass depends on the generators and its number alone: torch's own, or what is told the epoch."""
    if callable(getattr(sampler, "set_epoch", None)):
        return True
    if type(sampler).__module__.partition(".")[0] != "torch" or getattr(sampler, "generator", None) is not None:
        return False
    inner = getattr(sampler, "sampler", None)
    return inner is None or _is_known_by_pass(inner)
