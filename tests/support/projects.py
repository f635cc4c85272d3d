"""Small projects of a user's own, made for one test each."""

from __future__ import annotations

from pathlib import Path

import yaml

PARTS = '''
"""A user's own code."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset


class Points(Dataset[tuple[Tensor, Tensor]]):
    """Points in the plane of three classes."""

    def __init__(self, size: int = 50) -> None:
        generator = torch.Generator().manual_seed(0)
        self.points = torch.randn(size, 2, generator=generator)

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.points[index], torch.tensor(index % 3)


class Net(nn.Module):
    """Points to logits."""

    def __init__(self, norm: bool = False, unused: bool = False) -> None:
        super().__init__()
        middle: list[nn.Module] = [nn.BatchNorm1d(4)] if norm else []
        self.layers = nn.Sequential(nn.Linear(2, 4), *middle, nn.Tanh(), nn.Linear(4, 3))
        self.spare = nn.Linear(2, 2) if unused else None

    def forward(self, points: Tensor) -> Any:
        return self.layers(points)
'''
RECIPE = """
name: project
data: {train: {_target_: parts.py:Points}, global_batch_size: 16}
model: {_target_: parts.py:Net}
loss: {_target_: CrossEntropyLoss}
optimizer: {_target_: SGD, lr: 0.1}
train: {epochs: 3}
"""


def make(folder: Path, recipe: str = RECIPE, **files: str) -> Path:
    """A project: `recipe.yaml` and `parts.py`, and other files by their stem; returns the recipe."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in {"parts": PARTS, **files}.items():
        (folder / f"{name}.py").write_text(text)
    assert isinstance(yaml.safe_load(recipe), dict)
    (folder / "recipe.yaml").write_text(recipe)
    return folder / "recipe.yaml"


def stand_in(folder: Path, package: str, code: str) -> None:
    """An installed package of this name, as far as its names and signatures go."""
    path = folder / "site" / Path(*package.split("."))
    path.mkdir(parents=True, exist_ok=True)
    for parent in [path, *path.parents]:
        if parent.name == "site":
            break
        (parent / "__init__.py").touch()
    (path / "__init__.py").write_text(code)
