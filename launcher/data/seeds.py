"""Seeds for all three generators at once: `random`, NumPy's and torch's, none of which knows of the others.

NumPy's `seed` and torch's `manual_seed` both fill a Mersenne Twister from the low 32 bits of what they get. Seeded
with one value they are one generator: `np.random.randint(2)` and `torch.randint(2, ())` would always be equal. So one
gets the lower half of what is mixed from a place, and the other the upper half; `random` takes both.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import torch

from launcher.data.permutation import mix
from launcher.device.kind import Kind

LOWER = 0xFFFFFFFF  # all of a seed that the two look at
TORCH_BITS = 0x7FFFFFFFFFFFFFFF  # of a seed that torch takes
_NUMPY = 1  # whose value it is


def seed_generators(*place: int, kind: Kind | None = None) -> None:
    """Seeds `random`, NumPy and torch with three independent values (about 7 µs).

    Args:
        *place: What is about to happen, as numbers: a run's seed, an epoch, an index; a step, a rank.
        kind: The device whose generator is seeded too.
    """
    value = mix(*place)
    random.seed(value)
    np.random.seed(value & LOWER)
    seed_torch(value, kind)


def numpy_seed(value: int) -> int:
    """What to seed NumPy with where torch is seeded with `value` itself."""
    return mix(value, _NUMPY) & LOWER


def seed_torch(value: int, kind: Kind | None = None) -> None:
    """Seeds torch's generators with what is mixed from a place, as `seed_generators` does, and no others.

    The halves are exchanged. `default_generator.manual_seed` costs 1 µs, `torch.manual_seed` 100.
    """
    value = (value << 32 | value >> 32) & TORCH_BITS
    torch.default_generator.manual_seed(value)
    if kind is not None:
        kind.seed(value)


def seed_everything(seed: int) -> None:
    """Seeds `random`, NumPy and torch, on every device; torch with the seed itself, as a script would."""
    random.seed(seed)
    np.random.seed(numpy_seed(seed))  # with torch's own seed it would draw what torch draws
    torch.manual_seed(seed)


def randomness_kept() -> Callable[[], None]:
    """Keeps the process's random states; gives what puts them back."""
    state = random.getstate(), np.random.get_state(), torch.default_generator.get_state()

    def back() -> None:
        random.setstate(state[0])
        np.random.set_state(state[1])
        torch.default_generator.set_state(state[2])

    return back


class randomness_restored:  # noqa: N801  # a context manager named as what it says
    """Puts the process's random states back."""

    def __init__(self, needed: bool):
        self.needed = needed

    def __enter__(self) -> None:
        if self.needed:
            self._back = randomness_kept()

    def __exit__(self, *_: object) -> None:
        if self.needed:
            self._back()
