"""What is trained in the benchmark: models and data, the same objects for every contestant."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import people
import torch
from clock import Clocked
from torch import nn
from torch.utils.data import Dataset, TensorDataset, default_collate

from launcher.datasets import TextFile
from launcher.models import GPT, MLP, ConvNet

SEED = 0
TEXT = os.environ.get("BENCH_TEXT")  # a text file; else the standard library's source


@dataclass(frozen=True)
class Workload:
    """One of them.

    Attributes:
        model: Builds the module, seeded.
        data: Its training set.
        validation: The set of evaluations.
        batch: Samples of a global batch.
        rate: AdamW's learning rate.
        clip: The largest norm of the gradients, or None.
        warm: Steps before the stopwatch starts.
        steps: Steps that it measures.
        precision: `no` or `bf16`.
        collate: Makes a batch of samples; None is torch's default.
        with_workers: Whether it is read by workers too.
    """

    model: Callable[[], nn.Module]
    data: Callable[[], Dataset[Any]]
    validation: Callable[[], Dataset[Any]]
    batch: int
    rate: float
    clip: float | None
    warm: int
    steps: int
    precision: str = "no"
    collate: Callable[[list[Any]], Any] | None = None
    with_workers: bool = False


def seeded(
    net: Callable[[], nn.Module], data: Callable[[], Dataset[Any]], loss: nn.Module, collate: Any = default_collate
) -> Clocked:
    """A model under the stopwatch, the same in every process."""
    probe = data()
    np.random.seed(SEED)
    inputs, targets = collate([probe[index] for index in range(64)])
    torch.manual_seed(SEED)
    return Clocked(net(), loss, (inputs, targets))


@cache
def vectors(train: bool = True) -> TensorDataset:
    """10,000 vectors of 64 numbers in 10 classes that a line cannot tell apart; 2,000 to validate."""
    return classified((64,), 10_000 if train else 2_000, 1 - train)


@cache
def images(train: bool = True) -> TensorDataset:
    """8,000 images of 1 × 16 × 16 in 10 classes; 1,000 to validate."""
    return classified((1, 16, 16), 8_000 if train else 1_000, 2 + (not train))


def classified(shape: tuple[int, ...], samples: int, seed: int) -> TensorDataset:
    """Random inputs, and classes that a random two-layer network gives them."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(samples, *shape, generator=generator)
    teacher = torch.Generator().manual_seed(99)
    size = inputs[0].numel()
    first, second = (torch.randn(a, b, generator=teacher) / a**0.5 for a, b in ((size, 64), (64, 10)))
    targets = (torch.tanh(3 * inputs.flatten(1) @ first) @ second).argmax(1)
    return TensorDataset(inputs, targets)


@cache
def text(train: bool = True) -> TextFile:
    """Windows of 64 characters."""
    return TextFile(TEXT, "train" if train else "validation", context=64)


def mlp() -> Clocked:
    """64-128-10."""
    return seeded(lambda: MLP(64, 128, 10), vectors, nn.CrossEntropyLoss())


def cnn() -> Clocked:
    """Two stages of 32 and 64 channels."""
    return seeded(lambda: ConvNet(10), images, nn.CrossEntropyLoss())


def gpt() -> Clocked:
    """4 layers, 4 heads, 128 wide: recipes/text_gpt.yaml's."""
    return seeded(lambda: GPT(text().vocab_size, context=64), text, nn.CrossEntropyLoss())


# ---------------------------------------------------------------------- as people have it


def rows_mlp() -> Clocked:
    """64-128-10, of rows that are read one by one."""
    return seeded(lambda: MLP(64, 128, 10), people.rows, nn.CrossEntropyLoss())


def table_mlp() -> Clocked:
    """64-128-10, of a Parquet file."""
    return seeded(lambda: MLP(64, 128, 10), people.table, nn.CrossEntropyLoss())


def shards_mlp() -> Clocked:
    """64-128-10, of tars."""
    return seeded(lambda: MLP(64, 128, 10), people.shards, nn.CrossEntropyLoss())


def jpegs_cnn() -> Clocked:
    """A convolution over large strides: the pictures are the work."""

    def net() -> nn.Module:
        layers = [nn.Conv2d(3, 16, 8, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, 10)]
        return nn.Sequential(*layers)

    return seeded(net, people.pictures, nn.CrossEntropyLoss())


class Bag(nn.Module):
    """The mean of embeddings, padded places left out."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.linear = nn.Embedding(30_000, 32, padding_idx=0), nn.Linear(32, 10)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Ids [N, length] to logits [N, 10]."""
        counts = (ids > 0).sum(1, keepdim=True).clamp(min=1)
        return self.linear(self.embedding(ids).sum(1) / counts)


def text_bag() -> Clocked:
    """Of texts of many lengths."""
    return seeded(Bag, people.texts, nn.CrossEntropyLoss(), people.padded)


# ---------------------------------------------------------------------- for a GPU


@cache
def pictures(train: bool = True) -> TensorDataset:
    """4,096 images of 3 × 32 × 32 in 10 classes."""
    return classified((3, 32, 32), 4_096 if train else 512, 4 + (not train))


class Tokens(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Windows of 512 random tokens of 50,304."""

    def __init__(self, samples: int = 4_096) -> None:
        self.tokens = torch.randint(50_304, (samples, 513), generator=torch.Generator().manual_seed(5))

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.tokens[index, :-1], self.tokens[index, 1:]

    def get_batch(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Many windows at once."""
        return self.tokens[indices, :-1], self.tokens[indices, 1:]


@cache
def tokens(train: bool = True) -> Tokens:
    """For the large language model."""
    return Tokens() if train else Tokens(128)


class Residual(nn.Module):
    """Two convolutions with batch norm around a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [N, inputs, H, W] to [N, outputs, H / stride, W / stride]."""
        return torch.relu(self.body(x) + self.shortcut(x))


def resnet() -> Clocked:
    """ResNet-18's stages, for images of 32 × 32."""

    def net() -> nn.Module:
        widths = [64, 64, 64, 128, 128, 256, 256, 512, 512]
        blocks = [Residual(a, b, 1 + (a != b)) for a, b in pairwise(widths)]
        first = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
        return nn.Sequential(*first, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))

    return seeded(net, pictures, nn.CrossEntropyLoss())


def gpt2() -> Clocked:
    """GPT-2 small's shape, with a context of 512."""
    return seeded(lambda: GPT(50_304, 512, layers=12, heads=12, width=768), tokens, nn.CrossEntropyLoss())


WORKLOADS = {
    "mlp": Workload(mlp, vectors, lambda: vectors(False), 32, 1e-3, None, warm=300, steps=3_000),
    "cnn": Workload(cnn, images, lambda: images(False), 64, 1e-3, None, warm=30, steps=300),
    "gpt": Workload(gpt, text, lambda: text(False), 12, 1e-3, 1.0, warm=20, steps=200),
    "rows": Workload(rows_mlp, people.rows, lambda: people.rows(False), 32, 1e-3, None, 200, 2_000, with_workers=True),
    "jpegs": Workload(
        jpegs_cnn, people.pictures, lambda: people.pictures(False), 32, 1e-3, None, 10, 60, with_workers=True
    ),
    "texts": Workload(
        text_bag, people.texts, lambda: people.texts(False), 32, 1e-3, None, 50, 500, "no", people.padded, True
    ),
    "table": Workload(
        table_mlp, people.table, lambda: people.table(False), 32, 1e-3, None, 200, 2_000, with_workers=True
    ),
    "shards": Workload(
        shards_mlp, people.shards, lambda: people.shards(False), 32, 1e-3, None, 100, 1_000, with_workers=True
    ),
    "resnet": Workload(resnet, pictures, lambda: pictures(False), 256, 1e-3, None, 50, 300, "bf16"),
    "gpt2": Workload(gpt2, tokens, lambda: tokens(False), 16, 6e-4, 1.0, 20, 100, "bf16"),
}
ON_A_GPU = ("resnet", "gpt2")
