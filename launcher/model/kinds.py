"""3: model. What a module was made by: torch's `fully_shard` puts a class of its own in the place of the module's."""

from __future__ import annotations

import sys
from typing import Any

from torch import nn


def is_sharded(module: Any) -> bool:
    """Whether a module was sharded; where nothing was, nothing is imported for the answer."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and isinstance(module, fsdp.FSDPModule)


def class_of(module: nn.Module) -> type:
    """The class that a module was made by, sharded or not: what its name is."""
    kind = type(module)
    return kind.__mro__[2] if is_sharded(module) else kind
