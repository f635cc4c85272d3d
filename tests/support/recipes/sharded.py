"""What sharded.yaml names: a small model of blocks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset


class Tokens(Dataset[tuple[Tensor, Tensor]]):
    """Rows of 7 tokens: six, and those that follow them."""

    def __init__(self, size: int = 37, seed: int = 1):
        generator = torch.Generator().manual_seed(seed)
        self.rows = torch.randint(0, 17, (size, 7), generator=generator)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.rows[index, :-1], self.rows[index, 1:]


class Flow(IterableDataset[tuple[Tensor, Tensor]]):
    """The same as a stream."""

    def __init__(self, size: int):
        self.tokens = Tokens(size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return (self.tokens[index] for index in range(len(self.tokens)))

    def __len__(self) -> int:
        return len(self.tokens)


class Holed(Tokens):
    """One of the rows cannot be read."""

    def __init__(self, size: int, hole: int):
        super().__init__(size)
        self.hole = hole

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if index == self.hole:
            raise OSError("a bad disk")
        return super().__getitem__(index)


class Slow(Tokens):
    """Rows that do not come, as it says."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        print("reading", flush=True)
        time.sleep(60)
        return super().__getitem__(index)


class Wide(Dataset[tuple[Tensor, Tensor]]):
    """Rows of many numbers, and as many to predict."""

    def __init__(self, width: int):
        self.width = width

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return torch.full((self.width,), float(index)), torch.zeros(self.width)


class Block(nn.Module):
    """A two-layer perceptron, added to its input."""

    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)
        self.dropout = nn.Dropout(dropout)
        self.scale = nn.Parameter(torch.ones(1))  # one row: most ranks have none of it

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = x + self.scale * self.dropout(self.down(F.gelu(self.up(self.norm(x)))))
        return added


class Net(nn.Module):
    """[N, 6] tokens to [N, 17, 6] logits."""

    angles: Tensor

    def __init__(self, width: int = 10, layers: int = 3, dropout: float = 0.0, dtype: str = "float64"):
        super().__init__()
        self.tokens = nn.Embedding(17, width)
        self.blocks = nn.ModuleList(Block(width, dropout) for _ in range(layers))
        self.side = nn.Linear(width, width)
        self.side.requires_grad_(False)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 17, bias=False)
        self.head.weight = self.tokens.weight
        self.register_buffer("angles", torch.arange(width).double().cos(), persistent=False)
        self.register_buffer("seen", torch.zeros(3), persistent=True)
        self.to(getattr(torch, dtype))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) * (1 + 0.1 * self.angles)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x + self.side(x)))
        return logits.transpose(1, 2)


class Again(Net):
    """One block at two places."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([self.blocks[0], self.blocks[1], self.blocks[0]])


class Scaled(nn.CrossEntropyLoss):
    """A loss with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((3,), 2.0, dtype=torch.float64))

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return super().forward(input * self.scale.prod(), target)


def step(model: nn.Module, batch: Any, at: Any) -> dict[str, Tensor]:
    """A step function."""
    logits = model(batch[0])
    return {"loss": F.cross_entropy(logits, batch[1]), "outputs": logits, "targets": batch[1]}


class Lamb(torch.optim.Optimizer):
    """Steps by the norms of whole parameters, as LAMB does."""

    def __init__(self, params: Any, lr: float = 0.01):
        super().__init__(params, {"lr": lr, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # torch overloads it
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                kept = state.setdefault("momentum", torch.zeros_like(parameter))
                kept.mul_(0.9).add_(parameter.grad)
                ratio = (1 + parameter.norm()) / (1 + kept.norm())
                parameter.sub_(kept * ratio * group["lr"])


class Chosen(nn.Module):
    """Layers that are looked at while they are drawn."""

    def __init__(self, width: int = 8, layers: int = 2):
        super().__init__()
        linears = [nn.Linear(width, width) for _ in range(layers)]
        self.layers = nn.Sequential(*linears)
        while float(linears[0].bias.detach().sum()) < 0:
            nn.init.normal_(linears[0].bias)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layers(x)
        return result
