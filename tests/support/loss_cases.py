"""Losses that people bring, with data of the kind that they get: what each is a mean over is known to whoever reads."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

Batch = tuple[tuple[Any, ...], tuple[Any, ...]]  # outputs and targets
Draw = Callable[[Generator, int, bool], Batch]  # of so many samples; `later` ones may have what the first ones lack
MEAN, SUM, BATCH, ASKED = "mean", "sum", "batch", "asked"


@dataclass(frozen=True)
class Case:
    """A loss, its data, and what must come of it.

    Attributes:
        loss: The loss.
        draw: Its data.
        truth: `mean`, `sum`, `batch`, or `asked` where no number shows it.
        count: A count of the user's own.
    """

    loss: Any
    draw: Draw
    truth: str
    count: Callable[[Any], Any] | None = None


CASES: dict[str, Case] = {}


def case(name: str, loss: Any, draw: Draw, truth: str = MEAN, count: Callable[[Any], Any] | None = None) -> None:
    """Adds one."""
    assert name not in CASES
    CASES[name] = Case(loss, draw, truth, count)


def normal(g: Generator, *shape: int) -> Tensor:
    """Normal numbers."""
    return torch.randn(*shape, generator=g)


def uniform(g: Generator, *shape: int) -> Tensor:
    """Numbers between 0 and 1."""
    return torch.rand(*shape, generator=g)


def whole(g: Generator, below: int, *shape: int) -> Tensor:
    """Whole numbers."""
    return torch.randint(0, below, shape, generator=g)


# ---------------------------------------------------------------------- data


def classes(g: Generator, n: int, later: bool) -> Batch:
    """Scores of five classes, and class numbers."""
    return (normal(g, n, 5),), (whole(g, 5, n),)


def vectors(g: Generator, n: int, later: bool) -> Batch:
    """Three numbers for three."""
    return (normal(g, n, 3),), (normal(g, n, 3),)


def pairs(g: Generator, n: int, later: bool) -> Batch:
    """Two outputs, no targets."""
    return (normal(g, n, 6), normal(g, n, 6)), ()


def triplets(g: Generator, n: int, later: bool) -> Batch:
    """Three outputs, no targets."""
    return (normal(g, n, 4), normal(g, n, 4), normal(g, n, 4)), ()


def answers(g: Generator, n: int, later: bool) -> Batch:
    """Probabilities for yes and no."""
    return (uniform(g, n, 4) * 0.8 + 0.1,), (whole(g, 2, n, 4).float(),)


def pixels(g: Generator, n: int, later: bool) -> Batch:
    """Logits for yes and no."""
    return (normal(g, n, 8),), (whole(g, 2, n, 8).float(),)


def log_probabilities(g: Generator, n: int, later: bool) -> Batch:
    """Log-probabilities, and probabilities."""
    return (normal(g, n, 5).log_softmax(1),), (normal(g, n, 5).softmax(1),)


def ignored(value: int = -100, at_once: bool = True) -> Draw:
    """Class numbers, some of which do not count: from the first samples on, or in later ones only."""

    def draw(g: Generator, n: int, later: bool) -> Batch:
        targets = whole(g, 4, n) + 1
        if at_once or later:
            targets[uniform(g, n) < 0.4] = value
            targets[0] = 2
        return (normal(g, n, 5),), (targets,)

    return draw


def tokens(value: int | None = None, at_once: bool = True, long: int = 6, last: bool = False) -> Draw:
    """Class numbers in rows, the ends of which do not count; scores `[N, C, T]`, or `[N, T, C]`."""

    def draw(g: Generator, n: int, later: bool) -> Batch:
        targets = whole(g, 4, n, long) + 1
        if value is not None and (at_once or later):
            for row in range(n):
                targets[row, 1 + int(whole(g, long, 1)) :] = value
        outputs = normal(g, n, 5, long)
        return (outputs.transpose(1, 2) if last else outputs,), (targets,)

    return draw


def equally_ignored(g: Generator, n: int, later: bool) -> Batch:
    """As many ignored ones in each of the first rows."""
    if later:
        return tokens(-100)(g, n, later)
    outputs, targets = tokens()(g, n, later)
    targets[0][:, 3:] = -100
    return outputs, targets


def masked(full: bool = False) -> Draw:
    """Six numbers for six, with a mask; of the first samples it may let all through."""

    def draw(g: Generator, n: int, later: bool) -> Batch:
        mask = torch.zeros(n, 6)
        for row in range(n):
            mask[row, : 1 + int(whole(g, 6, 1))] = 1
        return (normal(g, n, 6),), (normal(g, n, 6), torch.ones(n, 6) if full and not later else mask)

    return draw


def holes(at_once: bool = True) -> Draw:
    """Targets some of which are NaN."""

    def draw(g: Generator, n: int, later: bool) -> Batch:
        targets = normal(g, n, 3)
        if at_once or later:
            targets[uniform(g, n, 3) < 0.4] = float("nan")
            targets[:, 0] = 1.0
        return (normal(g, n, 3),), (targets,)

    return draw


def anchors(g: Generator, n: int, later: bool) -> Batch:
    """Scores and boxes, and which of them are of an object; each picture has one."""
    positives = (uniform(g, n, 12) < 0.25).float()
    positives[:, 0] = 1
    return (normal(g, n, 12), normal(g, n, 12)), (positives,)


def weighted(g: Generator, n: int, later: bool) -> Batch:
    """A weight for each sample."""
    return (normal(g, n),), (normal(g, n), uniform(g, n) + 0.1)


def speech(g: Generator, n: int, later: bool) -> Batch:
    """Outputs `[T, N, C]`, targets, and the lengths of both."""
    lengths = whole(g, 4, n) + 2
    return (normal(g, 12, n, 6).log_softmax(2),), (whole(g, 5, n, 6) + 1, torch.full((n,), 12), lengths)


def speech_by_rows(g: Generator, n: int, later: bool) -> Batch:
    """The same with outputs `[N, T, C]`."""
    outputs, targets = speech(g, n, later)
    return (outputs[0].transpose(0, 1),), targets


def codes(g: Generator, n: int, later: bool) -> Batch:
    """A reconstruction with mean and log-variance, and what is to be reconstructed."""
    return (uniform(g, n, 8) * 0.8 + 0.1, normal(g, n, 2), normal(g, n, 2)), (uniform(g, n, 8),)


def _of(outputs: Callable[[Generator, int], Any], targets: Callable[[Generator, int], Any]) -> Draw:
    def draw(g: Generator, n: int, later: bool) -> Batch:
        first, second = outputs(g, n), targets(g, n)
        return first if isinstance(first, tuple) else (first,), second if isinstance(second, tuple) else (second,)

    return draw


# ---------------------------------------------------------------------- torch's own

WEIGHTS = torch.tensor([0.2, 1.0, 3.0, 0.5, 2.0])
case("CE", nn.CrossEntropyLoss(), classes)
case("CE sum", nn.CrossEntropyLoss(reduction="sum"), classes, SUM)
case("CE, -100", nn.CrossEntropyLoss(), ignored())
case("CE, -100 only later", nn.CrossEntropyLoss(), ignored(at_once=False))
case("CE ignore_index=0", nn.CrossEntropyLoss(ignore_index=0), ignored(0))
case("CE dense", nn.CrossEntropyLoss(), tokens())
case("CE dense, -100", nn.CrossEntropyLoss(), tokens(-100))
case("CE dense, -100 only later", nn.CrossEntropyLoss(), tokens(-100, at_once=False))
case("CE weights", nn.CrossEntropyLoss(weight=WEIGHTS), classes)
case("CE weights, -100", nn.CrossEntropyLoss(weight=WEIGHTS), ignored())
case("CE smoothing", nn.CrossEntropyLoss(label_smoothing=0.1), classes)
case("CE smoothing, weights", nn.CrossEntropyLoss(weight=WEIGHTS, label_smoothing=0.1), classes)
case("CE smoothing, -100", nn.CrossEntropyLoss(label_smoothing=0.1), ignored())
distributions = _of(lambda g, n: normal(g, n, 5), lambda g, n: normal(g, n, 5).softmax(1))
case("CE probabilities", nn.CrossEntropyLoss(), distributions)
case("CE probabilities, weights", nn.CrossEntropyLoss(weight=WEIGHTS), distributions)
case("NLL", nn.NLLLoss(), _of(lambda g, n: normal(g, n, 5).log_softmax(1), lambda g, n: whole(g, 5, n)))
case("BCE", nn.BCELoss(), answers)
case("BCEWithLogits pos_weight", nn.BCEWithLogitsLoss(pos_weight=torch.arange(1.0, 9.0)), pixels)
case("BCEWithLogits [N, 1]", nn.BCEWithLogitsLoss(), _of(lambda g, n: normal(g, n, 1), lambda g, n: uniform(g, n, 1)))
for kind in (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.PoissonNLLLoss):
    case(kind.__name__, kind(), _of(lambda g, n: normal(g, n, 3), lambda g, n: normal(g, n, 3).abs()))
case("MSE sum", nn.MSELoss(reduction="sum"), vectors, SUM)
case("KLDiv batchmean", nn.KLDivLoss(reduction="batchmean"), log_probabilities)
case("KLDiv mean", nn.KLDivLoss(reduction="mean"), log_probabilities)
signs = _of(lambda g, n: (normal(g, n, 4), normal(g, n, 4)), lambda g, n: whole(g, 2, n) * 2 - 1)
case("CosineEmbedding", nn.CosineEmbeddingLoss(), signs)
case(
    "MarginRanking",
    nn.MarginRankingLoss(0.5),
    _of(lambda g, n: (normal(g, n), normal(g, n)), lambda g, n: whole(g, 2, n) * 2.0 - 1),
)
of_signs = _of(lambda g, n: normal(g, n, 3), lambda g, n: whole(g, 2, n, 3) * 2.0 - 1)
case("HingeEmbedding", nn.HingeEmbeddingLoss(), of_signs)
case("SoftMargin", nn.SoftMarginLoss(), of_signs)
case("TripletMargin", nn.TripletMarginLoss(), triplets)
case("MultiMargin", nn.MultiMarginLoss(), classes)
case("MultiMargin weight", nn.MultiMarginLoss(weight=WEIGHTS), classes)


def labels(g: Generator, n: int) -> Tensor:
    """Several labels a row, ended by -1."""
    rows = [(torch.randperm(4, generator=g)[:size], 4 - size) for size in (whole(g, 3, n) + 1).tolist()]
    return torch.stack([torch.cat([row, torch.full((rest,), -1)]) for row, rest in rows])


case("MultiLabelMargin", nn.MultiLabelMarginLoss(), _of(lambda g, n: normal(g, n, 4), labels))
case("MultiLabelSoftMargin", nn.MultiLabelSoftMarginLoss(), answers)
case("CTC [T, N, C]", F.ctc_loss, speech)
case("CTC [N, T, C]", lambda o, t, own, its: F.ctc_loss(o.transpose(0, 1), t, own, its), speech_by_rows)


def ctc_by_length(outputs: Tensor, targets: Tensor, own: Tensor, its: Tensor) -> Tensor:
    """CTC by the letter."""
    return F.ctc_loss(outputs.transpose(0, 1), targets, own, its, reduction="sum") / its.sum()


case("CTC sum / letters", ctc_by_length, speech_by_rows)


# ---------------------------------------------------------------------- functions, closures, modules of one's own


class Focal(nn.CrossEntropyLoss):
    """Torch's attributes, and a mean of its own."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Over all, ignored ones too."""
        each = F.cross_entropy(input, target, reduction="none")
        return ((1 - (-each).exp()) ** 2 * each).mean()


case("F.cross_entropy, -100", F.cross_entropy, ignored())
case("F.cross_entropy, -100 only later", F.cross_entropy, ignored(at_once=False))


def flattened(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of all tokens."""
    return F.cross_entropy(outputs.transpose(1, 2).reshape(-1, 5), targets.reshape(-1))


case("tokens flattened, -100", flattened, tokens(-100))
case("weights in the file", lambda o, t: F.cross_entropy(o, t, WEIGHTS.to(o.dtype)), classes)
case(
    "weights made in the code", lambda o, t: F.cross_entropy(o, t, torch.arange(1.0, 6.0).sqrt().to(o)), classes, ASKED
)


class Alpha(nn.Module):
    """Class weights by another name, no buffer: a tensor, or numbers."""

    def __init__(self, alpha: Any):
        super().__init__()
        self.alpha = alpha

    def forward(self, o: Tensor, t: Tensor) -> Tensor:
        """A weighted mean of a focal entropy."""
        weights = torch.as_tensor(self.alpha, dtype=o.dtype)[t]
        entropy = F.cross_entropy(o, t, reduction="none")
        return (weights * (1 - (-entropy).exp()) ** 2 * entropy).sum() / weights.sum()


case("class weights called alpha", Alpha(WEIGHTS), classes)
case("class weights in a list", Alpha(WEIGHTS.tolist()), classes)
by_weight = functools.partial(lambda o, t, w: F.cross_entropy(o, t, w.to(o.dtype)), w=WEIGHTS)
case("class weights of a partial", by_weight, classes)
for left_out in (1, 3):
    case(f"class {left_out} left out inside", functools.partial(F.cross_entropy, ignore_index=left_out), classes)
case("class 1 left out in a closure", lambda o, t: F.cross_entropy(o, t, ignore_index=1), classes)
case("class 2 left out of tokens", lambda o, t: F.cross_entropy(o, t, ignore_index=2), tokens())
case("focal", Focal(), classes)
case("focal dense, -100", Focal(), tokens(-100))
for index in (0, 255):
    ignoring = lambda o, t, index=index: F.cross_entropy(o, t, ignore_index=index)  # noqa: E731  # a closure it must be
    case(f"closure ignores {index}", ignoring, tokens(index))
    case(f"closure ignores {index}, only later", ignoring, tokens(index, at_once=False))


def shifts(outputs: Tensor, targets: Tensor) -> Tensor:
    """A language model's: each token from those before it."""
    return F.cross_entropy(outputs[:, :-1].reshape(-1, 5), targets[:, 1:].reshape(-1), ignore_index=-100)


case("shifted, -100", shifts, tokens(-100, last=True))
case("shifted, -100 only later", shifts, tokens(-100, at_once=False, last=True))
case("masked mean", lambda o, y, m: ((o - y) ** 2 * m).sum() / m.sum(), masked())
case("masked mean + 1e-8", lambda o, y, m: ((o - y) ** 2 * m).sum() / (m.sum() + 1e-8), masked())
case("masked mean + 1e-6", lambda o, y, m: ((o - y) ** 2 * m).sum() / (m.sum() + 1e-6), masked())
case("masked mean + 1e-3", lambda o, y, m: ((o - y) ** 2 * m).sum() / (m.sum() + 1e-3), masked())
case("masked mean + 1", lambda o, y, m: ((o - y) ** 2 * m).sum() / (m.sum() + 1), masked())
case("masked mean + 0.0015", lambda o, y, m: ((o - y) ** 2 * m).sum() / (m.sum() + 0.0015), masked(), BATCH)
case("masked, mean over all", lambda o, y, m: ((o - y) ** 2 * m).mean(), masked())
case("masked, mean of means", lambda o, y, m: (((o - y) ** 2 * m).sum(1) / m.sum(1)).mean(), masked())
case("masked mean, mask full at first", lambda o, y, m: ((o - y) ** 2 * m).sum() / m.sum(), masked(full=True))
case("mean of means, mask full at first", lambda o, y, m: (((o - y) ** 2 * m).sum(1) / m.sum(1)).mean(), masked(True))
case("NaN targets", lambda o, y: (o - y)[~y.isnan()].pow(2).mean(), holes())
case("NaN targets only later", lambda o, y: (o - y)[~y.isnan()].pow(2).mean(), holes(at_once=False))
case("sample weights / their sum", lambda o, y, w: (w * (o - y) ** 2).sum() / w.sum(), weighted)
case("sample weights, mean", lambda o, y, w: (w * (o - y) ** 2).mean(), weighted)


def root_lengths(g: Generator, n: int, later: bool) -> Batch:
    """A length for each sample."""
    return (normal(g, n),), (normal(g, n), whole(g, 9, n) + 1)


def by_root(o: Tensor, y: Tensor, length: Tensor) -> Tensor:
    """A mean over roots of lengths."""
    root = length.to(o.dtype).sqrt()
    return ((o - y) ** 2 * root).sum() / root.sum()


case("a count of one's own", by_root, root_lengths, count=lambda targets: targets[1].double().sqrt().sum())
case("a count of one's own, not given", by_root, root_lengths, ASKED)


def dice(o: Tensor, y: Tensor) -> Tensor:
    """Of one batch."""
    p = o.sigmoid()
    return 1 - (2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1)


case("dice", dice, pixels, BATCH)
case("dice by sample", lambda o, y: torch.stack([dice(a, b) for a, b in zip(o, y, strict=True)]).mean(), pixels)
case("BCE + dice", lambda o, y: F.binary_cross_entropy_with_logits(o, y) + dice(o, y), pixels, BATCH)
case("jaccard by sample", lambda o, y: (1 - (o.sigmoid() * y).sum(1) / (o.sigmoid() + y).sum(1)).mean(), pixels)
case("soft F1", lambda o, y: 1 - 2 * ((o.sigmoid() * y).sum(0) / (o.sigmoid() + y).sum(0)).mean(), pixels, BATCH)


def contrast(a: Tensor, b: Tensor) -> Tensor:
    """InfoNCE."""
    scores = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T / 0.1
    return F.cross_entropy(scores, torch.arange(len(a)))


case("InfoNCE", contrast, pairs, BATCH)
case("CLIP", lambda a, b: (contrast(a, b) + contrast(b, a)) / 2, pairs, BATCH)
case("BPR", lambda a, b: -F.logsigmoid((a - b).sum(1)).mean(), pairs)
case("VICReg", lambda a, b: F.mse_loss(a, b) + F.relu(1 - a.std(0, unbiased=False)).mean(), pairs, BATCH)
case(
    "MMD",
    lambda a, b: (-torch.cdist(a, a)).exp().mean() - 2 * (-torch.cdist(a, b)).exp().mean(),
    pairs,
    BATCH,
)


def active(a: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """A mean over those triplets that still say something."""
    each = F.relu((a - p).norm(dim=1) - (a - q).norm(dim=1) + 0.1)
    return each.sum() / (each > 0).sum().clamp(min=1)


case("triplets, mean over active", active, triplets, BATCH)
hardest = lambda o, y: F.cross_entropy(o, y, reduction="none").topk(max(1, len(y) // 2))[0].mean()  # noqa: E731
case("hardest half", hardest, classes, BATCH)
case("RMSE", lambda o, y: F.mse_loss(o, y).sqrt(), vectors, BATCH)
case("Pearson", lambda o, y: 1 - F.cosine_similarity((o - o.mean()).flatten(), y.flatten(), 0), vectors, BATCH)
case("largest", lambda o, y: (o - y).abs().max(), vectors, BATCH)
case("pinball", lambda o, y: torch.maximum(0.9 * (y - o), -0.1 * (y - o)).mean(), vectors)
case("log-cosh", lambda o, y: (o - y).cosh().log().mean(), vectors)
case("charbonnier", lambda o, y: ((o - y) ** 2 + 1e-6).sqrt().mean(), vectors)
case("listwise", lambda o, y: -(y.softmax(1) * o.log_softmax(1)).sum(1).mean(), vectors)
case("weights of the target, mean", lambda o, y: ((o - y) ** 2 * (1 + y.abs())).mean(), vectors)
of_weights = lambda o, y: ((o - y) ** 2 * (1 + y.abs())).sum() / (1 + y.abs()).sum()  # noqa: E731
case("weights of the target / their sum", of_weights, vectors, ASKED)
case("CE + entropy", lambda o, y: F.cross_entropy(o, y) + (o.softmax(1) * o.log_softmax(1)).sum(1).mean(), classes)
case("CE + diversity", lambda o, y: F.cross_entropy(o, y) + (o.softmax(1).mean(0) ** 2).sum(), classes, BATCH)
case("CE + constant", lambda o, y: F.cross_entropy(o, y) + 3.7, classes)
case("CE sum + constant", lambda o, y: F.cross_entropy(o, y, reduction="sum") + 3.7, classes, BATCH)
case("CE sum / 256", lambda o, y: F.cross_entropy(o, y, reduction="sum") / 256, classes, SUM)
case("mean × batch size", lambda o, y: F.mse_loss(o, y) * len(o), vectors, SUM)
case("bits", lambda o, y: F.cross_entropy(o, y) / 0.6931, tokens(-100))
case("tokens + samples", lambda o, y: F.cross_entropy(o, y) + 0.1 * (o**2).mean(), tokens(-100), BATCH)
case("sums of rows / n", lambda o, y: F.cross_entropy(o, y, reduction="sum") / len(y), tokens(-100))


def means_of_rows(o: Tensor, y: Tensor) -> Tensor:
    """A mean of the means of rows."""
    kept = y != -100
    return ((F.cross_entropy(o, y, reduction="none") * kept).sum(1) / kept.sum(1)).mean()


case("means of rows, -100", means_of_rows, tokens(-100))
case("means of rows, as many at first", means_of_rows, equally_ignored)
case("CE, as many at first", nn.CrossEntropyLoss(), equally_ignored)
objects = _of(lambda g, n: normal(g, n, 5, 9), lambda g, n: torch.cat([whole(g, 2, n, 1) + 1, whole(g, 3, n, 8)], 1))
case("CE / objects", lambda o, t: F.cross_entropy(o, t, reduction="sum") / (t > 0).sum(), objects)


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Of a code from a normal one."""
    return -0.5 * (1 + log_variance - mean**2 - log_variance.exp())


case("VAE sum + sum", lambda r, m, v, x: F.mse_loss(r, x, reduction="sum") + divergence(m, v).sum(), codes, SUM)
case("VAE mean + mean", lambda r, m, v, x: F.mse_loss(r, x) + divergence(m, v).mean(), codes)
case(
    "VAE (sum + sum) / n",
    lambda r, m, v, x: (F.mse_loss(r, x, reduction="sum") + divergence(m, v).sum()) / len(x),
    codes,
)
case("VAE mean + sum", lambda r, m, v, x: F.mse_loss(r, x) + divergence(m, v).sum(), codes, BATCH)
gaussian = _of(lambda g, n: (normal(g, n, 1), uniform(g, n, 1) + 0.1), lambda g, n: normal(g, n, 1))
case("Gaussian, in its order", lambda mean, var, y: F.gaussian_nll_loss(mean, y, var), gaussian)


def focal(o: Tensor, y: Tensor) -> Tensor:
    """Of each anchor."""
    return F.binary_cross_entropy_with_logits(o, y, reduction="none") * (y - o.sigmoid()).abs() ** 2


case("focal / positives", lambda o, b, y: focal(o, y).sum() / y.sum(), anchors)
case(
    "detector, mean + boxes / positives",
    lambda o, b, y: {"classes": focal(o, y).mean(), "boxes": (b.abs() * y).sum() / y.sum()},
    anchors,
    BATCH,
)
case(
    "detector, both / positives",
    lambda o, b, y: {"classes": focal(o, y).sum() / y.sum(), "boxes": (b.abs() * y).sum() / y.sum()},
    anchors,
)
case("detector by picture", lambda o, b, y: (focal(o, y).sum(1) / y.sum(1)).mean(), anchors)
lists = _of(lambda g, n: ([normal(g, n, 3), normal(g, n, 3)],), lambda g, n: normal(g, n, 3))
case("deep supervision", lambda o, y: sum(F.mse_loss(one, y) for one in o), lists)
two_scores = _of(lambda g, n: (normal(g, n, 5), normal(g, n, 5)), lambda g, n: whole(g, 5, n))
case(
    "distillation",
    lambda s, t, y: F.kl_div(s.log_softmax(1), t.softmax(1), reduction="batchmean") + F.cross_entropy(s, y),
    two_scores,
)
column = _of(lambda g, n: normal(g, n, 1), lambda g, n: normal(g, n))
case("broadcast by a slip", lambda o, y: ((o - y) ** 2).mean(), column, BATCH)
case("squeeze() of both", lambda o, y: F.mse_loss(o.squeeze(), y.squeeze()), column)


def zero_head(g: Generator, n: int, later: bool) -> Batch:
    """What a head of zeros gives at first."""
    return (normal(g, n, 5) if later else torch.zeros(n, 5),), ignored()(g, n, later)[1]


case("head of zeros, -100", nn.CrossEntropyLoss(), zero_head)
case(
    "rows that are no samples",
    nn.CrossEntropyLoss(),
    _of(lambda g, n: normal(g, 3 * n, 5), lambda g, n: whole(g, 5, 3 * n)),
)


# ---------------------------------------------------------------------- with state, and with randomness


class Perceptual(nn.Module):
    """A distance between what a network makes of both."""

    def __init__(self, *middle: nn.Module):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(3, 8), *middle, nn.Linear(8, 4))

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean square."""
        return F.mse_loss(self.layers(outputs), self.layers(targets))


class Centered(nn.Module):
    """Moves a buffer when it is called."""

    center: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(1))
        self.calls = 0

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean square from the moving center."""
        loss = F.mse_loss(outputs - self.center, targets)
        self.calls += 1
        with torch.no_grad():
            self.center.mul_(0.9).add_(0.1 * outputs.mean())
        return loss


class Counting:
    """No module: its value differs from call to call."""

    calls = 0

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Grows."""
        Counting.calls += 1
        return F.mse_loss(outputs, targets) * (1 + 0.1 * Counting.calls)


case("perceptual", Perceptual(nn.ReLU()), vectors)
case("perceptual, dropout", Perceptual(nn.Dropout(0.5)), vectors)
case("perceptual, BatchNorm", Perceptual(nn.BatchNorm1d(8)), vectors)
case("a buffer that moves", Centered(), vectors)
case("differs from call to call", Counting(), vectors, ASKED)
case("zero", lambda o, y: F.relu(1 - o.abs() - 5).mean(), vectors, ASKED)
case("constant", lambda o, y: o.sum() * 0 + 1, vectors, ASKED)
case("NaN", lambda o, y: (o - y).sum() * float("nan"), vectors, ASKED)


def few_positives(g: Generator, n: int, later: bool) -> Batch:
    """Anchors, none of which is of an object in some pictures of later on."""
    outputs, (positives,) = anchors(g, n, later)
    if later:
        positives[n // 2 :] = 0
    return outputs, (positives,)


case("focal / positives, at least 1", lambda o, b, y: focal(o, y).sum() / y.sum().clamp(min=1), few_positives)
case("focal / (positives + 1)", lambda o, b, y: focal(o, y).sum() / (y.sum() + 1), few_positives)
case("masked mean, at least 1", lambda o, y, m: ((o - y) ** 2 * m).sum() / m.sum().clamp(min=1), masked())
