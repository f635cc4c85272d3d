"""The three generators' states, for tests of what draws from them."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def states() -> tuple[Any, ...]:
    """Of `random`, NumPy and torch, to be compared: numbers that are kept for a next call included."""
    by_numpy: Any = np.random.get_state()  # a tuple, with an array in it
    arrays = by_numpy[1].tobytes(), torch.default_generator.get_state().numpy().tobytes()
    return random.getstate(), by_numpy[0], by_numpy[2:], *arrays
