"""What is shown of a module is the class that it was made by, sharded or not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from recipes.sharded import Block, Net, Scaled
from torch.distributed.fsdp import fully_shard

from launcher.model.blocks import blocks_of
from launcher.model.kinds import class_of, is_sharded
from launcher.objective.loss import name_of


@pytest.fixture
def group_of_one() -> Iterator[None]:
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())  # type: ignore[attr-defined]
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("group_of_one")
def test_a_sharded_module_goes_by_its_own_name() -> None:
    model, loss, part = Net(), Scaled(), torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    before = blocks_of(model).describe()
    for module in (*blocks_of(model).modules.values(), model, loss, *part):
        fully_shard(module)
        assert is_sharded(module)
    assert class_of(model) is Net
    assert class_of(model.blocks[0]) is Block
    assert class_of(part[0]) is torch.nn.Linear
    assert name_of(loss) == "Scaled"
    assert blocks_of(model).describe() == before == "3 × Block, the rest as one"
