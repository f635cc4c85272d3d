"""What a measurement looks at: what came of a batch, the mode of training, and what its samples lack."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from loss_cases import CASES, Batch, normal, whole
from torch import Generator, Tensor, nn

from launcher.objective.probe import measure
from launcher.objective.reading import Hints, Reading
from launcher.objective.subject import Samples, Subject
from tests.objective.test_reading import Same, verdict_of


def test_where_samples_may_be_left_out_what_came_is_counted() -> None:
    for name, reading in (("focal", Reading("rows")), ("masked, mean of means", Reading("rows"))):
        verdict = verdict_of(CASES[name].loss, CASES[name].draw, may_drop=True)
        assert verdict.reading == reading
        assert not reading.by_samples
        assert verdict_of(CASES[name].loss, CASES[name].draw).reading == Reading("samples")
    boxes = [{"box": torch.full((1 + n % 3, 4), float(n))} for n in range(48)]
    subject = Subject(
        parts=lambda batch: (batch,),
        outputs=lambda model, batch: (torch.stack([target["box"][0] for target in batch]),),
        function=lambda o, targets: (
            (o - torch.stack([target["box"].mean() for target in targets])[:, None] - 1).abs().mean()
        ),
    )
    verdict = measure(subject, Same(), Samples(48, lambda numbers: [boxes[n] for n in numbers], may_drop=True), Hints())
    assert verdict.reading == Reading("rows", (0,))  # of a list
    assert verdict.reading.count((boxes[:5],), 7) == 5


# ---------------------------------------------------------------------- in the mode of training


class InTrain(nn.Module):
    """The hardest half while it is trained, behind dropout; a mean otherwise."""

    def __init__(self, whole: bool = True):
        super().__init__()
        self.drop, self.whole = nn.Dropout(0.5), whole

    def forward(self, o: Tensor, y: Tensor) -> Tensor:
        """Cross entropy."""
        each = F.cross_entropy(self.drop(o), y, reduction="none")
        return (each.topk(len(each) // 2)[0] if self.training and self.whole else each).mean()


class OwnInTrain(nn.Module):
    """The same as a model's own; or with what is random in train mode, which is held while it is measured."""

    def __init__(self, loss: nn.Module, drop: float = 0.0):
        super().__init__()
        self.line, self.loss, self.drop = nn.Linear(4, 3), loss, drop

    def forward(self, x: Tensor, y: Tensor) -> Any:
        """The loss."""
        return self.loss(F.dropout(self.line(x), self.drop, self.training), y)


def test_a_loss_is_measured_in_the_mode_in_which_it_is_trained() -> None:
    draw = CASES["CE"].draw
    assert verdict_of(InTrain(), draw).reading == Reading("batch")
    assert verdict_of(InTrain().eval(), draw).reading == Reading("samples")
    assert verdict_of(InTrain(whole=False), draw).reading == Reading("samples")
    g = Generator().manual_seed(0)
    x, y = normal(g, 48, 4), whole(g, 3, 48)
    samples = Samples(48, lambda numbers: (x[list(numbers)], y[list(numbers)]))
    subject = Subject(parts=lambda batch: batch, value=lambda twin, batch: twin(*batch))
    for model, kind in (
        (OwnInTrain(InTrain()), "batch"),
        (OwnInTrain(InTrain(whole=False)), "samples"),
        (OwnInTrain(InTrain(whole=False), drop=0.5), "samples"),
    ):
        verdict = measure(subject, model.train(), samples, Hints(of_batches=True))
        assert verdict.reading is not None
        assert verdict.reading.kind == kind
        assert all(module.training for module in model.modules())


# ---------------------------------------------------------------------- what these samples lack


def both(o: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Two labels, each with a mean of its own."""
    return F.cross_entropy(o, y) + F.cross_entropy(o.flip(1), z)


def two_labels(g: Generator, n: int, later: bool) -> Batch:
    return (normal(g, n, 5),), (whole(g, 5, n), whole(g, 5, n))


def two_masks(g: Generator, n: int, later: bool) -> Batch:
    return (normal(g, n, 3),), (torch.ones(n, 3), torch.ones(n, 3))


def of_masks(o: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """A mean over each."""
    return (o.abs() * a).sum() / a.sum() + (o**2 * b).sum() / b.sum()


def test_what_would_make_it_another_mean_is_remembered_and_refused_when_it_comes() -> None:
    reading = verdict_of(both, two_labels).reading
    assert reading is not None
    assert {((0,), -100.0), ((1,), -100.0)} <= set(reading.unless)
    assert not reading.by_samples
    labels = (torch.tensor([0, 1]), torch.tensor([2, -100]))
    assert reading.unforeseen(labels) == "-100 in [1]"
    assert reading.unforeseen((labels[0], labels[0])) == ""
    assert Reading.of_manifest(reading.manifest()).unless == reading.unless
    masks = verdict_of(of_masks, two_masks).reading
    assert masks is not None
    assert ((1,), 0.0) in masks.unless
    for name in (
        "CE",
        "focal",
        "CE weights",
        "masked mean",
        "masked mean, mask full at first",
        "shifted, -100 only later",
    ):
        found = verdict_of(CASES[name].loss, CASES[name].draw).reading
        assert found is not None
        assert -100.0 not in [value for _, value in found.unless], name


def test_of_a_model_that_says_nearly_the_same_of_all_places_the_count_that_fits_exactly_is_taken() -> None:
    """As a new head of a segmentation does: what is wrong is far below what is let pass as rounding."""

    def batch(numbers: Any) -> Any:
        g = [Generator().manual_seed(number) for number in numbers]
        maps = torch.stack([torch.randint(0, 3, (12, 8), generator=one) for one in g])
        for number, one in zip(numbers, maps, strict=True):
            one[: number % 5] = 255
        return torch.stack([torch.randn(4, 12, 8, generator=one) for one in g]), maps

    def loss(net: Any, batch: Any) -> Any:
        return F.cross_entropy(1e-3 * net(batch[0]), batch[1], ignore_index=255)

    torch.manual_seed(0)
    subject = Subject(parts=lambda batch: batch, value=loss)
    verdict = measure(subject, nn.Conv2d(4, 3, 1), Samples(40, batch), Hints(of_batches=True))
    assert verdict.reading is not None, verdict
    assert (verdict.reading.kind, verdict.reading.ignored) == ("kept", 255)
