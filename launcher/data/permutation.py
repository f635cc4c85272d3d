"""The order of one epoch, computed where it is asked: any slice of it, at any size, without the rest.

An order is a function of (size, seed, epoch) alone, so that a run's position in its data is arithmetic:
nothing is drawn ahead, stored or replayed. Every random bit here is SplitMix64's (Steele, Lea and Flood,
*Fast splittable pseudorandom number generators*, OOPSLA 2014; constants from Vigna's public-domain
`splitmix64.c`), whose n-th output is a plain function of seed and n.
"""

from __future__ import annotations

from typing import Any, Protocol, overload

import numpy as np
import numpy.typing as npt

from launcher.errors import Problem, RecipeError

Indices = npt.NDArray[np.int64]
Bits = npt.NDArray[np.uint64]

_GAMMA = 0x9E3779B97F4A7C15
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9
_MULTIPLIER_2 = 0x94D049BB133111EB
_MASK = 2**64 - 1

_CHUNK = 8192  # positions permuted at once: few enough to stay in a core's cache, many enough for NumPy
_PARTS = 201  # the purpose of an order of parts, which must not be that of samples
_SPLIT_EPOCH = -1  # the epoch whose order divides train from validation; no run trains it


@overload
def mix(*values: int) -> int: ...
@overload
def mix(*values: int | Bits) -> Any: ...
def mix(*values: int | Bits) -> Any:
    """Hashes integers, in their order, to 64 bits: a seed from (seed, epoch, index) and the like.

    Each value is taken modulo 2**64 and folded in by one step of SplitMix64, so that `mix(seed)` is that
    generator's first output. With an array in place of one of them it is an array: the hash for each of its numbers.
    """
    state: Any = 0
    for value in values:
        state = (state + value + _GAMMA) & _MASK
        state = ((state ^ state >> 30) * _MULTIPLIER_1) & _MASK
        state = ((state ^ state >> 27) * _MULTIPLIER_2) & _MASK
        state ^= state >> 31
    return state


def _scramble(bits: Bits) -> Bits:
    """SplitMix64's finalizer, in place, less its last step, which the upper half can do without."""
    bits ^= bits >> 30
    bits *= _MULTIPLIER_1
    bits ^= bits >> 27
    bits *= _MULTIPLIER_2
    return bits


def keyed_bits(key: int, positions: Indices) -> Bits:
    """The outputs of SplitMix64, seeded with `key`, at `positions` (from 0) of its stream."""
    bits = positions.astype(np.uint64)
    bits += 1
    bits *= _GAMMA
    bits += key & _MASK
    bits = _scramble(bits)
    bits ^= bits >> 31
    return bits


def keyed_uniform(key: int, positions: Indices) -> npt.NDArray[np.float64]:
    """Floats in [0, 1) with 53 random bits each, one for every position under this key."""
    uniform = (keyed_bits(key, positions) >> 11).astype(np.float64)
    uniform *= 2.0**-53
    return uniform


class Order(Protocol):
    """The order in which one epoch reads a data set.

    Attributes:
        size: Positions in the epoch.
    """

    size: int

    def at(self, positions: Indices) -> Indices:
        """The data set indices at these positions, each in [0, size), at a cost per position."""
        ...

    def slice(self, start: int, stop: int) -> Indices:
        """The data set indices at positions [start, stop)."""
        assert 0 <= start <= stop <= self.size
        return self.at(np.arange(start, stop, dtype=np.int64))


class Sequential(Order):
    """Every index in its own place: an epoch that is not shuffled."""

    def __init__(self, size: int):
        self.size = size

    def at(self, positions: Indices) -> Indices:
        """The positions themselves."""
        return positions


class Permutation(Order):
    """A pseudo-random permutation of [0, size), a function of (size, seed, epoch): every index exactly once.

    A position is a pair (left, right) in a rectangle of 2**k by ceil(size / 2**k) cells, the nearest to a
    square. A Feistel round adds to one half a keyed hash of the other (modulo that half's length), then the
    halves change roles: a bijection of the rectangle whatever the hash. Its fewer than 2**k cells beyond
    `size` are left by walking on along their cycle until one within is met (Black and Rogaway, *Ciphers with
    arbitrary finite domains*, CT-RSA 2002).

    Two rounds bring a pair of positions nearer to independence by a factor of about sqrt(size), so that tiny
    sizes get up to 32 rounds and large ones 8. Enumerated over random hashes, each order of 3 to 8 elements
    is within 0.5 % of equally likely.

    Args:
        size: Number of indices, at most 2**63 - 1.
        seed: Any integer.
        epoch: Any integer.
    """

    def __init__(self, size: int, seed: int, epoch: int):
        self.size = size
        bits = max(1, (size - 1).bit_length())
        left_bits = bits // 2
        self._left_bits = np.uint64(left_bits)
        self._left_size = 1 << left_bits  # even, where it can be: a sum modulo it can be an odd permutation
        self._right_size = -(-size >> left_bits)
        num_rounds = 2 * min(max(64 // bits, 4), 16)
        self._keys = keyed_bits(mix(size, seed, epoch), np.arange(num_rounds))

    def at(self, positions: Indices) -> Indices:
        """The data set indices at these positions, each in [0, size)."""
        indices = np.empty(len(positions), dtype=np.int64)
        for start in range(0, len(positions), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            indices[chunk] = self._walk(positions[chunk].astype(np.uint64))
        return indices

    def _walk(self, positions: Bits) -> Bits:
        cells = self._encrypt(positions)
        outside = np.flatnonzero(cells >= self.size)
        while outside.size:
            cells[outside] = self._encrypt(cells[outside])
            outside = outside[cells[outside] >= self.size]
        return cells

    def _encrypt(self, cells: Bits) -> Bits:
        this_size, other_size = self._left_size, self._right_size
        this, other = cells & np.uint64(this_size - 1), cells >> self._left_bits
        for key in self._keys:
            total = _scramble(other + key)
            total >>= 32
            total *= this_size
            total >>= 32  # 32 random bits, scaled to [0, this_size): cheaper than a remainder
            total += this
            # Below this_size the difference wraps around to a huge number: the minimum is the remainder.
            this, other = other, np.minimum(total, total - this_size)
            this_size, other_size = other_size, this_size
        return other << self._left_bits | this


class ShardedPermutation(Order):
    """A pseudo-random order that goes through few parts of the data set at a time: every index exactly once.

    The parts are permuted and taken some together; within such a group the samples are permuted. A start costs a sum
    over the parts, and positions what a `Permutation` costs.

    Args:
        sizes: Samples of each part, in the order of their indices.
        together: How many parts are one group.
        seed: Any integer.
        epoch: Any integer.
    """

    def __init__(self, sizes: npt.ArrayLike, together: int, seed: int, epoch: int):
        parts = np.asarray(sizes, dtype=np.int64)
        self.size = int(parts.sum())
        together = min(together, len(parts))
        self._seed, self._epoch, self._together = mix(seed, _PARTS), epoch, together
        self._parts = Permutation(len(parts), self._seed, epoch).slice(0, len(parts))
        self._firsts = np.append(0, np.cumsum(parts))[:-1][self._parts]  # the index that each part begins with
        self._ends = np.cumsum(parts[self._parts])
        groups = np.arange(together - 1, len(parts) + together - 1, together)
        self._group_ends = self._ends[np.minimum(groups, len(parts) - 1)]

    def at(self, positions: Indices) -> Indices:
        """The data set indices at these positions."""
        indices = np.empty(len(positions), dtype=np.int64)
        groups = np.searchsorted(self._group_ends, positions, side="right")
        for group in np.unique(groups).tolist():
            own = np.flatnonzero(groups == group)
            start = int(self._group_ends[group - 1]) if group else 0
            order = Permutation(int(self._group_ends[group]) - start, mix(self._seed, group), self._epoch)
            places = start + order.at(positions[own] - start)
            part = np.searchsorted(self._ends, places, side="right")
            begins = np.where(part > 0, self._ends[part - 1], 0)
            indices[own] = self._firsts[part] + places - begins
        return indices


class WeightedDraws(Order):
    """Draws with replacement, each index as often as its weight says; as many an epoch as there are weights.

    Args:
        cumulative: What `cumulative_weights` made of the weights, once a run; shared, never copied.
        seed: Any integer.
        epoch: Any integer.
    """

    def __init__(self, cumulative: npt.NDArray[np.float64], seed: int, epoch: int):
        self.size = len(cumulative)
        self._cumulative = cumulative
        self._key = mix(self.size, seed, epoch)

    def at(self, positions: Indices) -> Indices:
        """The data set indices drawn at these positions."""
        draws = np.searchsorted(self._cumulative, keyed_uniform(self._key, positions), side="right")
        return draws.astype(np.int64, copy=False)


def cumulative_weights(weights: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """The share of all weight that lies in samples 0 to i, for every i; the last is exactly 1.

    Args:
        weights: One number a sample, in any unit: shape (dataset size,).

    Raises:
        RecipeError: The weights are not one non-negative, finite number a sample, or their sum is zero.
    """
    values = np.asarray(weights, dtype=np.float64)
    if values.ndim != 1:
        raise _weights_error(f"an array of shape {values.shape}; allowed: one number per sample, shape (n,)")
    bad = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
    if bad.size:
        first = f"the first is {values[bad[0]]} for sample {bad[0]}"
        raise _weights_error(f"{bad.size} of {len(values)} are negative or not finite ({first}); correct them")
    with np.errstate(over="ignore"):
        total = np.cumsum(values)
    if not len(total) or not 0 < total[-1] < np.inf:
        raise _weights_error("their sum must be positive and finite; scale them, or omit the weights")
    total /= total[-1]
    return total


def _weights_error(message: str) -> RecipeError:
    return RecipeError([Problem("", "data.weights", message)])


def split(size: int, fraction: float, seed: int) -> tuple[Indices, Indices]:
    """Holds a random part of a data set back for validation: `10% of train`.

    A function of its arguments alone, so that every run, rank and resume has the same two parts.

    Args:
        size: Samples in the data set.
        fraction: The validation part's share, between 0 and 1.
        seed: Any integer.

    Returns:
        The training indices and the validation indices: disjoint, ascending, together every index once.

    Raises:
        RecipeError: One of the two parts would be empty.
    """
    num_validation = round(size * fraction)
    if not 0 < num_validation < size:
        message = (
            f"{100 * fraction:g}% of {size} samples is {num_validation}; training and validation need at least one "
            "sample each: take another share, or a larger data set"
        )
        raise RecipeError([Problem("", "data.validation", message)])
    held_back = np.zeros(size, dtype=np.bool_)
    held_back[Permutation(size, seed, _SPLIT_EPOCH).slice(0, num_validation)] = True
    return np.flatnonzero(~held_back), np.flatnonzero(held_back)
