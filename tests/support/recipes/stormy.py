"""What is trained while signals come: every source of chance, and a pace of which the recipe knows nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import torch
from parts import Net as Calm
from parts import Noisy as Noisy
from torch import Tensor
from torch.utils.data import IterableDataset

PACE = "STORM_PACE"  # seconds of a forward pass, until there is a file `calm`


class Flow(IterableDataset[tuple[Tensor, Tensor]]):
    """48 of the noisy rows as a stream, which can be cut into parts."""

    def __init__(self) -> None:
        self.rows, self.places, self.num_shards = Noisy(), range(48), 12

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return (self.rows[index] for index in self.places)

    def shard(self, num_shards: int, index: int) -> Flow:
        part = Flow()
        part.places, part.num_shards = self.places[index::num_shards], self.num_shards // num_shards
        return part


class Net(Calm):
    """With dropout and running means, and as slow as is said."""

    def __init__(self) -> None:
        super().__init__(dropout=0.2, norm=True)

    def forward(self, inputs: Tensor) -> Tensor:
        time.sleep(0 if os.path.exists("calm") else float(os.environ.get(PACE, "0")))
        outputs: Tensor = super().forward(inputs)
        return outputs + 0.01 * torch.randn_like(outputs)
