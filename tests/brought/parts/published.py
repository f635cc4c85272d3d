"""Losses as papers and repositories publish them: masks of padding, missing numbers, classes weighed inside."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from sets import SIZE, Rows, normal, whole
from torch import Tensor, nn


class Given(Rows):
    """Rows of one kind; what is missing, is missing from some sample on."""

    def __init__(self, kind: str, size: int = SIZE, first: int = 0):
        x, rows = normal(size, 4), normal(size, 6, 4)
        padded = torch.arange(6) > whole(6, size, 1)
        real, classes, tokens = normal(size, 3, seed=3), whole(3, size), whole(3, size, 6)
        missing = (normal(size, 3, seed=5) > 0.3) & (torch.arange(size) >= first)[:, None]
        kinds: dict[str, tuple[Tensor, ...]] = {
            "padded": (rows, normal(size, 6, seed=7), padded),
            "padded tokens": (rows, tokens, padded),
            "padded, in numbers": (rows, normal(size, 6, seed=7), padded.long()),
            "lengths": (rows, normal(size, 6, seed=7), whole(5, size) + 2),
            "yes or no, or unknown": (x, torch.where(missing, -1.0, (real > 0).double())),
            "yes or no in whole numbers": (x, torch.where(missing, -1, (real > 0).long())),
            "distances": (x, torch.where(missing, 0.0, real.abs() + 0.1)),
            "both signs": (x, real),
            "classes": (x, classes),
            "complex": (x, torch.complex(real, real.flip(0))),
            "lives": (x, whole(3, size, seed=4), (whole(3, size) > 0).long()),
            "domains": (x, classes, whole(2, size, seed=5)),
            "rewarded": (rows, tokens, normal(size, seed=5), (~padded).double()),
            "pictures": (normal(size, 2, 6, 6), whole(2, size, 6, 6)),
        }
        self.tensors = kinds[kind]


class Complex(nn.Module):
    """Three complex numbers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.real, self.imaginary = nn.Linear(4, 3).double(), nn.Linear(4, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        return torch.complex(self.real(x), self.imaginary(x))


# ---------------------------------------------------------------------- what counts


def outside(outputs: Tensor, targets: Tensor, padded: Tensor) -> Tensor:
    """The mask says what is padded, as attention takes it."""
    kept = ~padded.bool()
    return ((outputs - targets) ** 2 * kept).sum() / kept.sum()


def next_outside(outputs: Tensor, tokens: Tensor, padded: Tensor) -> Tensor:
    """The next token of each, but for those that are padded."""
    kept = ~padded[:, 1:]
    return F.cross_entropy(outputs[:, :-1][kept], tokens[:, 1:][kept])


def of_differences(outputs: Tensor, targets: Tensor, lengths: Tensor) -> Tensor:
    """One less than there are in each row."""
    kept = torch.arange(5) < (lengths - 1)[:, None]
    return ((outputs.diff(dim=1) - targets.diff(dim=1)) ** 2 * kept).sum() / (lengths - 1).sum()


def of_known(outputs: Tensor, targets: Tensor) -> Tensor:
    """-1 means that nobody knows, as in CheXpert."""
    known = targets >= 0
    return F.binary_cross_entropy_with_logits(outputs[known], targets[known].double())


def above_zero(outputs: Tensor, targets: Tensor) -> Tensor:
    """Distances that a sensor has found."""
    found = targets > 0
    return F.l1_loss(outputs[found], targets[found])


class Inside(nn.Module):
    """torch's own, with its weights, in a module of one's own."""

    def __init__(self, index: int = -100):
        super().__init__()
        self.ce = nn.CrossEntropyLoss(torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64), ignore_index=index)

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        value: Tensor = self.ce(outputs, targets)
        return value


WEIGHTS = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)


def beside(outputs: Tensor, targets: Tensor) -> Tensor:
    """By weights that stand in the file."""
    return F.cross_entropy(outputs, targets, weight=WEIGHTS)


def of_complex(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).abs().square().mean()


def hazard(outputs: Tensor, ends: Tensor, seen: Tensor) -> Tensor:
    """Survival in intervals of time."""
    before, at, risk = torch.arange(3) < ends[:, None], F.one_hot(ends, 3), outputs.sigmoid()
    ending = seen[:, None] * risk.log() + (1 - seen[:, None]) * (1 - risk).log()
    return -((1 - risk).log() * before + ending * at).sum(1).mean()


def of_source(outputs: Tensor, classes: Tensor, domain: Tensor) -> Tensor:
    """Only one of two domains has labels."""
    return F.cross_entropy(outputs[domain == 0], classes[domain == 0])


def by_answers(outputs: Tensor, tokens: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """A mean over answers, each a mean over its tokens, as GRPO has it."""
    chosen = outputs.log_softmax(-1).gather(2, tokens[..., None])[..., 0]
    return -((chosen * advantages[:, None] * mask).sum(1) / mask.sum(1)).mean()


def by_tokens(outputs: Tensor, tokens: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """A mean over all tokens, as DAPO has it."""
    chosen = outputs.log_softmax(-1).gather(2, tokens[..., None])[..., 0]
    return -(chosen * advantages[:, None] * mask).sum() / mask.sum()


# ---------------------------------------------------------------------- of the whole batch


def flooded(outputs: Tensor, targets: Tensor, level: float = 0.02) -> Tensor:
    """Is held at a level that a run reaches late: a mean until then."""
    return (F.mse_loss(outputs, targets) - level).abs() + level


def hard_pixels(outputs: Tensor, targets: Tensor, sure: float = 0.7) -> Tensor:
    """What is surely right does not count."""
    each = F.cross_entropy(outputs, targets, reduction="none").flatten()
    hard = each[each > -math.log(sure)]
    return (hard if len(hard) > 5 else each.topk(5)[0]).mean()


def by_difficulty(outputs: Tensor, targets: Tensor) -> Tensor:
    """Weighs by how far off the model is, and divides by these weights."""
    each = F.cross_entropy(outputs, targets, reduction="none")
    weights = (1 - (-each).exp()).detach() ** 2
    return (weights * each).sum() / weights.sum()


def tokens_ahead(outputs: Tensor, targets: Tensor) -> Tensor:
    """The next token, and the one after it: two means over other counts where labels are ignored."""
    ahead = [F.cross_entropy(outputs[:, :-by].flatten(0, 1), targets[:, by:].flatten()) for by in (1, 2)]
    return torch.stack(ahead).mean()
