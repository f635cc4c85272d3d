"""What people bring more rarely: losses that leave out what has nothing, models that move weights in their forward."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from nets import Deep, made
from sets import SIZE, Rows, normal, whole
from torch import Tensor, nn
from torch.utils.data import Dataset

# ---------------------------------------------------------------------- losses that leave out what has nothing


class Absent(Rows):
    """Masks of three kinds, of which some samples have none.

    Args:
        size: How many samples.
        first: How many of the first have something of everything.
        kind: `rows` of three, or `planes` of 4 × 4 for each.
    """

    def __init__(self, size: int = SIZE, first: int = 0, kind: str = "rows"):
        is_planes = kind == "planes"
        x = normal(size, 2, 4, 4) if is_planes else normal(size, 4)
        masks = (normal(size, 3, *(4, 4) if is_planes else (), seed=3) > 0.3).double()
        masks.view(size, 3, -1)[..., 0] = 1
        absent = whole(3, size, 3, seed=8) == 0 if is_planes else (torch.arange(size) % 3 == 0)[:, None].expand(-1, 3)
        absent = absent & (torch.arange(size) >= first)[:, None]
        masks[absent] = 0
        self.tensors = x, masks


class AbsentRows(Rows):
    """Rows of six numbers and a mask, which lets nothing through of some."""

    def __init__(self, size: int = SIZE, first: int = 0):
        mask = (torch.arange(6) <= whole(6, size, 1)).double()
        mask[first:][::3] = 0
        self.tensors = normal(size, 6, 4), normal(size, 6, seed=7), mask


class Unlabelled(Rows):
    """Rows of six labels: half of them, and every fourth row, do not count."""

    def __init__(self) -> None:
        labels = whole(3, SIZE, 6)
        labels[whole(2, SIZE, 6, seed=9) == 0] = -100
        labels[::4] = -100
        self.tensors = normal(SIZE, 6, 4), labels


@made
def planes() -> nn.Module:
    return nn.Conv2d(2, 3, 1)


def dice_of_present(outputs: Tensor, masks: Tensor) -> Tensor:
    """A mean over the samples that have something."""
    p = outputs.sigmoid()
    return (1 - 2 * (p * masks).sum(1) / (p + masks).sum(1))[masks.sum(1) > 0].mean()


def dice_of_present_planes(outputs: Tensor, masks: Tensor) -> Tensor:
    """A mean over the kinds that are there."""
    p = outputs.sigmoid()
    each = 1 - 2 * (p * masks).sum((2, 3)) / (p + masks).sum((2, 3))
    return each[masks.sum((2, 3)) > 0].mean()


def rows_let_through(outputs: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    each = ((outputs - targets) ** 2 * mask).sum(1) / mask.sum(1).clamp(min=1)
    return each[mask.sum(1) > 0].mean()


def by_labelled_rows(outputs: Tensor, labels: Tensor) -> Tensor:
    """A mean of rows' means, where a row has one."""
    each = F.cross_entropy(outputs.transpose(1, 2), labels, reduction="none").sum(1)
    counts = (labels != -100).sum(1)
    return (each[counts > 0] / counts[counts > 0]).mean()


def by_conversation(outputs: Tensor, labels: Tensor) -> Tensor:
    """All tokens, divided by the rows that have a label."""
    total = F.cross_entropy(outputs.flatten(0, 1), labels.flatten(), reduction="sum")
    return total / (labels != -100).any(1).sum()


def boxes_of_present(scores: Tensor, sizes: Tensor, classes: Tensor, targets: Tensor) -> Tensor:
    """Two means over other counts; of a batch without an object there is none."""
    there = classes > 0
    return F.cross_entropy(scores, classes) + F.smooth_l1_loss(sizes[there], targets[there])


class Objects(Rows):
    """A class, and a size; the first samples are of no object."""

    def __init__(self) -> None:
        classes = whole(3, SIZE)
        classes[:3] = 0
        self.tensors = normal(SIZE, 4), classes, normal(SIZE, 1, seed=9)


class Found(nn.Module):
    """Scores of classes, and a size."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.scores, self.sizes = nn.Linear(4, 3).double(), nn.Linear(4, 1).double()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.scores(x), self.sizes(x)


# ---------------------------------------------------------------------- counts of other kinds


class Weighing(nn.Module):
    """Class weights as people keep them: in an array, a list, a mapping."""

    def __init__(self, kind: str):
        super().__init__()
        kinds: dict[str, Any] = {"array": np.array([0.3, 1.0, 2.0]), "list": [1, 2, 3], "mapping": {0: 0.5, 1: 1, 2: 2}}
        self.weights = kinds[kind]

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        own = self.weights
        own = list(own.values()) if isinstance(own, dict) else own
        return F.cross_entropy(outputs, targets, weight=torch.as_tensor(own, dtype=outputs.dtype))


class Importance(Rows):
    """Rows of six, and how much each entry weighs, in whole numbers."""

    def __init__(self) -> None:
        mask = (torch.arange(6) <= whole(6, SIZE, 1)) * (1 + whole(2, SIZE, 6, seed=4))
        self.tensors = normal(SIZE, 6, 4), normal(SIZE, 6, seed=7), mask


class Words(Dataset[Any]):
    """Twelve frames, and from one to three letters."""

    def __init__(self) -> None:
        self.x, self.letters, self.lengths = normal(SIZE, 12, 4), whole(2, SIZE, 3) + 1, whole(3, SIZE) + 1

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> Any:
        return self.x[index], self.letters[index, : int(self.lengths[index])]


def in_a_row(samples: list[Any]) -> tuple[Tensor, ...]:
    """As CTC takes letters of all samples: one after the other."""
    frames, letters = zip(*samples, strict=True)
    return (
        torch.stack(frames),
        torch.cat(letters),
        torch.full((len(frames),), 12),
        torch.tensor([len(one) for one in letters]),
    )


class ByTime(nn.Module):
    """Log-probabilities, [T, N, C]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.line = nn.Linear(4, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.line(x)
        return out.log_softmax(-1).transpose(0, 1)


class Boxes(Dataset[Any]):
    """Four numbers, and from one to three classes."""

    def __init__(self) -> None:
        self.x = normal(SIZE, 4)

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> Any:
        return self.x[index], {"labels": whole(3, 1 + index % 3, seed=index)}


def beside(samples: list[Any]) -> Any:
    """What a sample has stays its own."""
    return torch.stack([x for x, _ in samples]), [target for _, target in samples]


def mean_of_images(outputs: Tensor, targets: Any) -> Tensor:
    own = zip(outputs, (target["labels"] for target in targets), strict=True)
    return torch.stack([F.cross_entropy(one.expand(len(labels), -1), labels) for one, labels in own]).mean()


class Measures(nn.Module):
    """Gives a measure among its losses."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.line = nn.Linear(4, 3).double()

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        scores: Tensor = self.line(x)
        spread = scores.detach().std()
        return {"classes": F.cross_entropy(scores, y), "size": (scores**2).mean(), "spread": spread}


# ---------------------------------------------------------------------- weights that a forward moves


class Bootstrapped(nn.Module):
    """A teacher follows in each forward, in one of the ways that there are: its weights are parameters."""

    def __init__(self, way: str = "in place"):
        super().__init__()
        torch.manual_seed(0)
        self.way = way
        self.student, self.head = nn.Linear(4, 3).double(), nn.Linear(3, 3).double()
        self.teacher = nn.Linear(4, 3).double().requires_grad_(False)
        self.teacher.load_state_dict(self.student.state_dict())

    @torch.no_grad()
    def follow(self) -> None:
        for own, other in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            if self.way == "in place":
                own.lerp_(other, 0.1)
            elif self.way == "data":
                own.data.mul_(0.9).add_(other.data, alpha=0.1)
            else:
                own.data = 0.9 * own.data + 0.1 * other.data

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        if self.training:
            self.follow()
        with torch.no_grad():
            wanted = self.teacher(other)
        return (2 - 2 * F.cosine_similarity(self.head(self.student(one)), wanted)).mean()


class Held(Deep):
    """Keeps its weights small in each forward."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.a.weight.clamp_(-0.3, 0.3)
        return super().forward(x)


class Taught(Deep):
    """Adds what an average of a layer of its own says, moved in each forward."""

    def __init__(self) -> None:
        super().__init__()
        self.average = nn.Linear(4, 1).double().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.average.weight.lerp_(self.b.weight, 0.1)
        out: Tensor = super().forward(x) + 0.3 * self.average(x)
        return out


# ---------------------------------------------------------------------- what model and loss have in common


class Headed(nn.Module):
    """Has a head that its loss calls."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.line, self.head = nn.Linear(4, 4).double(), nn.Linear(4, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.line(x))


class OfHead(nn.Module):
    """Is given the head of a model."""

    def __init__(self, head: nn.Module):
        super().__init__()
        self.head = head

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(self.head(outputs), targets)
