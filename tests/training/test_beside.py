"""What stands in people's own objects beside every `state_dict`: seen while it changes, whatever it is."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from launcher.evaluation.unmoved import Unmoved
from launcher.training.beside import beside_states, changed_names


class Noisy(nn.Linear):
    """Has a generator of its own."""

    def __init__(self, generator: Any):
        super().__init__(1, 1)
        self.generator = generator


@pytest.mark.parametrize(
    ("generator", "draw", "has_state"),
    [
        (random.Random(0), random.Random.random, True),
        (random.SystemRandom(), random.Random.random, False),
        (np.random.default_rng(0), np.random.Generator.random, True),
        (np.random.RandomState(0), np.random.RandomState.rand, True),
        (torch.Generator(), lambda generator: torch.rand((), generator=generator), True),
    ],
    ids=["random's", "the system's", "NumPy's", "NumPy's old ones", "torch's"],
)
def test_a_generator_that_moves_is_seen_and_put_back(generator: Any, draw: Any, has_state: bool) -> None:
    model = Noisy(generator)
    before, unmoved = beside_states({"model": model}), Unmoved(model)
    draw(generator)
    assert changed_names(before, beside_states({"model": model})) == ["model.generator"] * has_state
    unmoved.put_back()
    assert not changed_names(before, beside_states({"model": model}))
