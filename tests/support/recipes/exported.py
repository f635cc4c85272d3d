"""What is exported: sets whose samples are no pairs, models that get and give other things than tensors, and steps."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

SIZE = 6


def numbers(index: int) -> Tensor:
    """The inputs of a sample."""
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(index))


class Samples(Dataset[Any]):
    """A few samples of a kind: `rows` of mappings, single `tensors`, `bytes`, nested ones, or `triples`."""

    def __init__(self, kind: str = "rows", samples: int = 8):
        if os.environ.get("NO_SAMPLES") in ("all", f"{samples} {kind}"):
            raise FileNotFoundError(f"there is no {kind}.bin")
        self.kind, self.samples = kind, samples

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> Any:
        if index >= self.samples:
            raise IndexError(index)
        x, y = numbers(index), index % 3
        kinds = {
            "rows": {"x": x, "y": y},
            "tensors": x,
            "bytes": ((128 + 40 * x).clamp(0, 255).to(torch.uint8), y),
            "nested": {"seen": {"left": x, "right": (x + 1, x * 2)}, "y": y},
            "triples": (index, x, y),
            "words": (torch.arange(index, index + 4) % 11, y),
            "pictures": (x.reshape(1, 2, 3).double(), y),
        }
        return kinds[self.kind]


class Stream(IterableDataset[Any]):
    """Pairs one after the other; one that holds a lock can be read only once."""

    def __init__(self, once: bool = False):
        self.lock = threading.Lock() if once else None

    def __iter__(self) -> Iterator[Any]:
        return ((numbers(index), index % 3) for index in range(24))


def as_object(samples: Any) -> SimpleNamespace:
    """A batch that is an object."""
    return SimpleNamespace(x=torch.stack([sample["x"] for sample in samples]), y=torch.tensor([0] * len(samples)))


def as_floats(batch: Any) -> Any:
    """On the device: bytes as numbers."""
    return batch[0].float() / 255, batch[1]


class Net(nn.Module):
    """A layer."""

    def __init__(self, size: int = SIZE):
        super().__init__()
        self.layer = nn.Linear(size, 3)

    def forward(self, x: Tensor, *, twice: bool = False) -> Tensor:
        return self.layer(2 * x if twice else x)  # type: ignore[no-any-return]


class InPlace(Net):
    """Changes what it is given."""

    def forward(self, x: Tensor, *, twice: bool = False) -> Tensor:
        return super().forward(x.mul_(2))


class Deciding(Net):
    """What it does depends on its values."""

    def forward(self, x: Tensor, *, twice: bool = False) -> Tensor:
        return super().forward(x, twice=bool(x.sum() > 0))


class Complex(Net):
    """Gives complex numbers, and takes their size for its loss."""

    def forward(self, x: Tensor, *, twice: bool = False) -> Tensor:
        return torch.complex(super().forward(x), self.layer(-x))


class Labelled(Net):
    """Gives its loss, where there are labels."""

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:  # type: ignore[override]
        logits = self.layer(x)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return {"logits": logits, **({} if loss is None else {"loss": loss})}


class Both(Net):
    """Takes the parts of a nested batch by name."""

    def forward(self, left: Tensor, right: Any) -> Tensor:  # type: ignore[override]
        return self.layer(left + right[0] * right[1])  # type: ignore[no-any-return]


class OfObject(Net):
    """Takes a whole batch."""

    def forward(self, batch: Any) -> Any:  # type: ignore[override]
        logits = self.layer(batch.x)
        return {"logits": logits, "loss": nn.functional.cross_entropy(logits, batch.y)}


class Words(nn.Module):
    """Two heads over words, in a mapping."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head, self.size = nn.Embedding(11, 4), nn.Linear(4, 3), nn.Linear(4, 1)

    def forward(self, words: Tensor) -> dict[str, Tensor]:
        x = self.words(words).mean(1)
        return {"size": self.size(x), "kind": self.head(x)}


@dataclasses.dataclass
class Heads:
    """What a model gives."""

    kind: Tensor
    size: Tensor


class InClass(Net):
    """Gives an object of a class of its own."""

    def forward(self, x: Tensor, *, twice: bool = False) -> Any:
        return Heads(self.layer(x), x.sum())


class Recurrent(nn.Module):
    """Of which torch.export warns as it traces it."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.recurrent, self.head = nn.Embedding(11, 4), nn.GRU(4, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.recurrent(self.words(words))[0][:, -1])  # type: ignore[no-any-return]


class Noisy(Net):
    """Draws, also in eval mode."""

    def forward(self, x: Tensor, *, twice: bool = False) -> Tensor:
        return self.layer(x + torch.randn_like(x))  # type: ignore[no-any-return]


class Pictures(nn.Module):
    """A convolution in double precision, which onnxruntime does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(4, 3)).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)  # type: ignore[no-any-return]


class Gan(nn.Module):
    """Two parts, and no forward."""

    def __init__(self) -> None:
        super().__init__()
        self.generator, self.critic = nn.Linear(2, SIZE), nn.Linear(SIZE, 1)


class Published(Gan):
    """Is saved as a folder and loaded, as diffusers' models are; a step calls its parts."""

    def save_pretrained(self, folder: str) -> None:
        os.makedirs(folder)
        torch.save(self.state_dict(), f"{folder}/weights.pth")

    @classmethod
    def from_pretrained(cls, folder: str) -> nn.Module:
        model = cls()
        model.load_state_dict(torch.load(f"{folder}/weights.pth", weights_only=True))
        return model


def turn(model: Gan, batch: Tensor, at: Any) -> Mapping[str, Tensor]:
    """Of a GAN, with a penalty that asks for a slope."""
    fake = model.generator(torch.randn(len(batch), 2))
    verdict = model.critic(fake + batch)
    (slope,) = torch.autograd.grad(verdict.sum(), fake, create_graph=True)
    return {"loss": verdict.mean() + slope.square().mean()}


def by_name(model: nn.Module, batch: Any, at: Any) -> Mapping[str, Tensor]:
    """Calls the model with what no recipe could name; twice, and changes what it is called with."""
    x = batch["x"] if isinstance(batch, Mapping) else batch
    views = torch.cat([x, x + 1])
    logits = model(x=views, twice=True)
    views.zero_()
    return {"loss": logits.square().mean() + model(x).mean()}


class Counting:
    """A step with a state, that changes the model."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, model: Any, batch: Any, at: Any) -> Mapping[str, Tensor]:
        self.calls += 1
        loss = nn.functional.cross_entropy(model(batch["x"]), batch["y"])
        if not model.training:
            with torch.no_grad():
                model.layer.weight.zero_()
        return {"loss": loss}


def only_trains(model: nn.Module, batch: Any, at: Any) -> Mapping[str, Tensor]:
    """Fails where nothing is trained."""
    assert model.training, "not for an evaluation"
    return {"loss": model(batch["x"]).square().mean()}


def functional(model: Any, batch: Any, at: Any) -> Mapping[str, Tensor]:
    """Never calls a module."""
    return {"loss": nn.functional.linear(batch["x"], model.layer.weight).square().mean()}


def size_of(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss of complex numbers."""
    return outputs.abs().mean()


def first_head(outputs: Any, targets: Tensor) -> Tensor:
    """Of an object."""
    return nn.functional.cross_entropy(outputs.kind, targets)


def shaped(outputs: Mapping[str, Tensor], targets: Tensor) -> tuple[Tensor, Tensor]:
    """For `batch.adapt`."""
    return outputs["kind"], targets
