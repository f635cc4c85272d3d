"""What sharded.yaml may name instead, and cannot be sharded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from recipes.sharded import Block, Net
else:
    from sharded import Block, Net


class Scalar(Net):
    """A parameter without a dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens) / self.temperature


class _Held:
    def __init__(self, x: Tensor):
        self.x = x


class _OpaqueBlock(Block):
    def forward(self, x: Any) -> Any:
        return _Held(super().forward(x.x if isinstance(x, _Held) else x))


class Opaque(Net):
    """Blocks give something in which nobody finds a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_OpaqueBlock(10, 0.0).double() for _ in range(3))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x.x))
        return logits.transpose(1, 2)


class _ViewBlock(Block):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, :]


class Views(Net):
    """Blocks give views, which are changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_ViewBlock(10, 0.0).double() for _ in range(3))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) * 1.0
        for block in self.blocks:
            x = block(x)
            x += 1.0
        logits: Tensor = self.head(self.norm(x))
        return logits.transpose(1, 2)


class TiedApart(Net):
    """Two blocks share a weight."""

    def __init__(self) -> None:
        super().__init__()
        first, second = (block.get_submodule("up") for block in self.blocks[:2])
        second.weight = first.weight


class Sparing(Net):
    """Goes one way or another: processes leave out different layers of one size."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = (nn.Linear(6, 6, dtype=torch.float64) for _ in range(2))

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = super().forward(tokens)
        way = self.one if tokens[0, 0] < 8 else self.other
        added: Tensor = way(logits)
        return logits + 0.1 * added


class Clamping(Net):
    """Keeps a weight small in forward, though none is large yet."""

    def forward(self, tokens: Tensor) -> Tensor:
        self.norm.weight.data.clamp_(-9.0, 9.0)
        return super().forward(tokens)


class Replacing(Net):
    """The same, by other memory."""

    def forward(self, tokens: Tensor) -> Tensor:
        self.norm.weight.data = self.norm.weight.data.clamp(-9.0, 9.0)
        return super().forward(tokens)


class Slopes(Net):
    """Gives what it is and how steep, which is learned too: torch would end the process."""

    def forward(self, tokens: Tensor) -> Tensor:
        with torch.enable_grad():
            x = start = self.tokens(tokens)
            for block in self.blocks:
                x = block(x)
            (slope,) = torch.autograd.grad(x.sum(), start, create_graph=True)
        logits: Tensor = self.head(x + slope)
        return logits.transpose(1, 2)


class Hollow(Net):
    """A parameter of nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(0, 3, dtype=torch.float64))


class Peeping(Net):
    """Reads a block's weight outside of the block."""

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens) + 0.0 * self.blocks[0].get_parameter("up.weight").sum()


class Routed(Net):
    """A block that is called for some samples only."""

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens)
        for number, block in enumerate(self.blocks):
            if number != 1 or len(tokens) > 10:
                x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits.transpose(1, 2)


class Mixed(Net):
    """Types that differ within a block."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks[0].norm.float()


class Sparse(Net):
    """Gradients of the rows that were looked up."""

    def __init__(self) -> None:
        super().__init__()
        self.more = nn.Embedding(17, 10, sparse=True, dtype=torch.float64)


class Bounded(Net):
    """A weight that forward changes."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens.max_norm = 1.0


def penalty(model: Any, batch: Any, at: Any) -> dict[str, Tensor]:
    """Looks at a weight outside of forward."""
    return {"loss": F.cross_entropy(model(batch[0]), batch[1]) + model.blocks[0].up.weight.square().sum()}


def by_parts(model: Any, batch: Any, at: Any) -> dict[str, Tensor]:
    """Calls parts of the model."""
    x = model.tokens(batch[0])
    for block in model.blocks:
        x = block(x)
    return {"loss": F.cross_entropy(model.head(x).transpose(1, 2), batch[1])}
