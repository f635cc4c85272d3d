"""Digits scattered over a picture, and a small detector: where each lies, and which it is."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, smooth_l1_loss
from torch.utils.data import Dataset
from torchmetrics import Metric

Target = Mapping[str, Tensor]  # boxes [K, 4] as x1, y1, x2, y2 in pixels, and labels [K]
SIZE, CELL = 48, 4  # of the picture and of a cell of the grid in which the detector looks, in pixels


class Scattered(Dataset[tuple[Tensor, Target]]):
    """Noisy pictures [1, 48, 48] with one to three handwritten digits, each 8 to 16 pixels high.

    Args:
        samples: How many pictures.
        test: Draw from the last 500 digits, which no training picture has.
        seed: Another seed is another set of pictures.
    """

    def __init__(self, samples: int, test: bool = False, seed: int = 0) -> None:
        pixels, digits = load_digits(return_X_y=True)
        chosen = slice(-500, None) if test else slice(0, -500)
        self.digits = torch.from_numpy(pixels[chosen] / 16).float().reshape(-1, 1, 8, 8)
        self.labels = torch.from_numpy(digits[chosen]).long()
        self.samples, self.seed = samples, seed

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_000 + index)

        def draw(low: int, high: int) -> int:
            return int(torch.randint(low, high, (), generator=generator))

        picture = 0.5 * torch.rand(1, SIZE, SIZE, generator=generator)
        boxes, labels = [], []
        for left in range(0, 16 * draw(1, 4), 16):  # each in a third of the picture's width
            which, size = draw(0, len(self.digits)), draw(8, 17)
            x, y = left + draw(0, 17 - size), draw(0, SIZE - size + 1)
            digit = nn.functional.interpolate(self.digits[which][None], size=(size, size), mode="bilinear")[0]
            picture[:, y : y + size, x : x + size] += digit
            boxes.append([x, y, x + size, y + size])
            labels.append(self.labels[which])
        return picture, {"boxes": torch.tensor(boxes, dtype=torch.float32), "labels": torch.stack(labels)}


def listed(samples: Sequence[tuple[Tensor, Target]]) -> tuple[Tensor, list[Target]]:
    """A batch: the pictures in one tensor, the targets, of which each has as many boxes as it has, in a list."""
    pictures, targets = zip(*samples, strict=True)
    return torch.stack(pictures), list(targets)


class Detector(nn.Module):
    """Of each cell: whether the middle of a digit lies in it, where the box around it ends, and which digit it is.

    In training it gives its losses, in eval mode the boxes that it finds, as torchvision's detectors do.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        widths = [1, width, 2 * width, 4 * width]
        stages = []
        for inputs, outputs, stride in zip(widths, widths[1:], (2, 2, 1), strict=False):
            stages += [nn.Conv2d(inputs, outputs, 3, stride, padding=1), nn.GroupNorm(8, outputs), nn.ReLU()]
            stages += [nn.Conv2d(outputs, outputs, 3, padding=1), nn.GroupNorm(8, outputs), nn.ReLU()]
        self.features = nn.Sequential(*stages)
        self.head = nn.Conv2d(4 * width, 1 + 4 + 10, kernel_size=1)
        rows, columns = torch.meshgrid(torch.arange(SIZE // CELL), torch.arange(SIZE // CELL), indexing="ij")
        self.register_buffer("middles", CELL * (torch.stack([columns, rows], dim=-1) + 0.5), persistent=False)
        self.middles: Tensor

    def forward(self, pictures: Tensor, targets: Sequence[Target]) -> Any:
        """Maps pictures [N, 1, 48, 48] to a mapping of losses in training, else to a list of what was found in each."""
        cells = self.head(self.features(pictures)).permute(0, 2, 3, 1)
        there, reach, digits = cells.split([1, 4, 10], dim=-1)
        if self.training:
            return self._losses(there.squeeze(-1), reach, digits, targets)
        corners = torch.cat([self.middles, self.middles], -1) + 16 * reach
        return [_found(*of_one) for of_one in zip(there.sigmoid().squeeze(-1), corners, digits, strict=True)]

    def _losses(self, there: Tensor, reach: Tensor, digits: Tensor, targets: Sequence[Target]) -> dict[str, Tensor]:
        picture = torch.cat([torch.full_like(target["labels"], row) for row, target in enumerate(targets)])
        boxes, labels = (torch.cat([target[name] for target in targets]) for name in ("boxes", "labels"))
        middle = (boxes[:, :2] + boxes[:, 2:]) / 2
        column, row = (middle / CELL).long().unbind(1)
        wanted = torch.zeros_like(there).index_put((picture, row, column), torch.ones(len(boxes)))
        offsets = (boxes - torch.cat([self.middles, self.middles], -1)[row, column]) / 16
        cells = there.numel() / len(targets)
        return {
            "there": binary_cross_entropy_with_logits(there, wanted, pos_weight=torch.tensor(10.0)) * cells / 10,
            "boxes": 10 * smooth_l1_loss(reach[picture, row, column], offsets, reduction="sum") / len(targets),
            "digits": cross_entropy(digits[picture, row, column], labels, reduction="sum") / len(targets),
        }


def _found(there: Tensor, corners: Tensor, digits: Tensor) -> dict[str, Tensor]:
    """The cells that are surer than their neighbours, and surer than not."""
    peak = nn.functional.max_pool2d(there[None], kernel_size=3, stride=1, padding=1)[0]
    chosen = (there == peak) & (there > 0.5)
    return {"boxes": corners[chosen], "scores": there[chosen], "labels": digits[chosen].argmax(-1)}


class F1(Metric):
    """Twice the boxes that are right over all that were found and all that are there.

    Right is one that covers a box of the target of its digit with an IoU of more than a half.
    """

    right: Tensor
    all: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("right", "all"):
            self.add_state(name, torch.tensor(0), dist_reduce_fx="sum")

    def update(self, outputs: Sequence[Target], targets: Sequence[Target]) -> None:
        """Counts those of a batch."""
        for output, target in zip(outputs, targets, strict=True):
            self.right += _right(output, target)
            self.all += len(output["labels"]) + len(target["labels"])

    def compute(self) -> Tensor:
        """The share of all batches."""
        return 2 * self.right / self.all


def baseline() -> float:
    """The F1 of who knows every box, and guesses the digit."""
    ten, metric = torch.Generator().manual_seed(0), F1()
    for _, target in map(Scattered(300, test=True, seed=1).__getitem__, range(300)):
        guessed = torch.randint(10, target["labels"].shape, generator=ten)
        metric.update([{"boxes": target["boxes"], "labels": guessed}], [target])
    return float(metric.compute())


def _right(output: Target, target: Target) -> int:
    ours, theirs = output["boxes"][:, None], target["boxes"]
    shared = (torch.minimum(ours[..., 2:], theirs[:, 2:]) - torch.maximum(ours[..., :2], theirs[:, :2])).clamp(min=0)
    both = shared.prod(-1)
    iou = both / (_area(ours) + _area(theirs) - both)
    return int(((iou > 0.5) & (output["labels"][:, None] == target["labels"])).any(0).sum())


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).prod(-1)


if __name__ == "__main__":
    print(f"F1 of who knows every box, and guesses the digit: {baseline():.3f}")
