"""Losses that people bring: functions, modules, with attributes of torch's, with a state, with parameters."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

# ---------------------------------------------------------------------- means of their own


class Focal(nn.CrossEntropyLoss):
    """Torch's attributes, and a mean over all."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        each = F.cross_entropy(input, target, reduction="none")
        return ((1 - (-each).exp()) ** 2 * each).mean()


class Alpha(nn.Module):
    """Class weights by a name of its own, no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.alpha = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return by_alpha(input, target, self.alpha)


def by_alpha(input: Tensor, target: Tensor, alpha: Tensor) -> Tensor:
    each = F.cross_entropy(input, target, reduction="none")
    return (alpha[target] * (1 - (-each).exp()) ** 2 * each).sum() / alpha[target].sum()


def inside(input: Tensor, target: Tensor) -> Tensor:
    return by_alpha(input, target, torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64))


def weight_of(batch: Any) -> Tensor:
    return torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)[batch[1]].sum()


def all_of(batch: Any) -> int:
    return len(batch[1])


def without_one(input: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(input, target, ignore_index=1)


def relative(y_true: Tensor, y_pred: Tensor) -> Tensor:
    return ((y_true - y_pred) / (1 + y_true**2)).abs().mean()


class HardInTrain(nn.Module):
    """The hardest half while it is trained."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        each = F.cross_entropy(input, target, reduction="none")
        return (each.topk(max(1, len(each) // 2))[0] if self.training else each).mean()


class FocalKept(nn.Module):
    """Of what is not ignored, with `reduction` and `ignore_index` of its own."""

    def __init__(self, ignore_index: int = -100, reduction: str = "mean"):
        super().__init__()
        self.ignore_index, self.reduction = ignore_index, reduction

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        each = F.cross_entropy(input, target, reduction="none", ignore_index=self.ignore_index)
        each = (1 - (-each).exp()) ** 2 * each
        return each.sum() if self.reduction == "sum" else each[target != self.ignore_index].mean()


class Smooth(nn.Module):
    """Label smoothing as it is written by hand; its `reduction` is something else's word."""

    reduction = "none"

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        logs = input.log_softmax(-1)
        truth = torch.full_like(logs, 0.05).scatter(1, target[:, None], 0.9)
        return -(truth * logs).sum(1).mean()


def flattened(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())


def shifted(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs[:, :-1].flatten(0, 1), targets[:, 1:].flatten(), ignore_index=-100)


def masked(outputs: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    return ((outputs - targets) ** 2 * mask).sum() / mask.sum()


def masked_safely(outputs: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    return ((outputs - targets) ** 2 * mask).sum() / mask.sum().clamp(min=1)


def masked_over_all(outputs: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    return ((outputs - targets) ** 2 * mask).mean()


def masked_by_row(outputs: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    return (((outputs - targets) ** 2 * mask).sum(1) / mask.sum(1)).mean()


def selected(outputs: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    return F.l1_loss(outputs[mask], targets[mask])


def by_lengths(outputs: Tensor, targets: Tensor, lengths: Tensor) -> Tensor:
    mask = torch.arange(outputs.shape[1]) < lengths[:, None]
    return ((outputs - targets) ** 2 * mask).sum() / lengths.sum()


def present(outputs: Tensor, targets: Tensor) -> Tensor:
    is_there = ~targets.isnan()
    return ((outputs - targets)[is_there] ** 2).mean()


def weighted(outputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    return (weights * (outputs - targets) ** 2).sum() / weights.sum()


def weighted_mean(outputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    return (weights * (outputs - targets) ** 2).mean()


def pinball(outputs: Tensor, targets: Tensor, tau: float = 0.9) -> Tensor:
    off = targets - outputs
    return torch.maximum(tau * off, (tau - 1) * off).mean()


def log_cosh(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).cosh().log().mean()


def listwise(outputs: Tensor, targets: Tensor) -> Tensor:
    return -(targets * outputs.log_softmax(1)).sum(1).mean()


def dice_by_sample(outputs: Tensor, targets: Tensor) -> Tensor:
    p = outputs.sigmoid()
    return (1 - 2 * (p * targets).sum(1) / (p + targets).sum(1)).mean()


def over_places(outputs: Tensor, targets: Tensor) -> Tensor:
    """Sum over places, mean over samples."""
    return ((outputs - targets) ** 2).sum(1).mean()


def in_brackets(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.mse_loss(outputs, targets)[None]


def plus_constant(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.mse_loss(outputs, targets) + 3.7


def positives(outputs: Tensor, targets: Tensor) -> Tensor:
    """Of objects: per positive."""
    each = F.binary_cross_entropy_with_logits(outputs, targets, reduction="none")
    return each.sum() / targets.sum().clamp(min=1)


def root_mean(outputs: Tensor, targets: Tensor, lengths: Tensor) -> Tensor:
    """A count that no tensor shows."""
    root = lengths.double().sqrt()
    return (((outputs - targets) ** 2).mean(1) * root).sum() / root.sum()


def summed(outputs: Tensor, targets: Tensor) -> Tensor:
    return ((outputs - targets) ** 2).sum() / 16


def times_size(outputs: Tensor, targets: Tensor) -> Tensor:
    """As detectors multiply a mean by the batch's size."""
    return F.mse_loss(outputs, targets) * len(outputs) / 16


def elbo(recon: Tensor, x: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """In an order of its own: a sum of sums."""
    divergence = -0.5 * (1 + logvar - mu**2 - logvar.exp()).sum()
    return (F.mse_loss(recon.expand_as(x), x, reduction="sum") + divergence) / 64


def elbo_mean(recon: Tensor, x: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    return elbo(recon, x, mu, logvar) * 64 / len(x)


def deep(outputs: Any, targets: Tensor) -> Tensor:
    """Deep supervision: a list of outputs."""
    return torch.stack([F.mse_loss(one, targets) for one in outputs]).sum()


def ctc(outputs: Tensor, targets: Tensor, own: Tensor, theirs: Tensor) -> Tensor:
    return F.ctc_loss(outputs.log_softmax(2).transpose(0, 1), targets, own, theirs)


def ctc_by_letter(outputs: Tensor, targets: Tensor, own: Tensor, theirs: Tensor) -> Tensor:
    logs = outputs.log_softmax(2).transpose(0, 1)
    return F.ctc_loss(logs, targets, own, theirs, reduction="sum") / theirs.sum()


def mapping(outputs: Any, targets: Tensor) -> Tensor:
    return F.mse_loss(outputs["main"], targets) + 0.3 * F.l1_loss(outputs["other"]["aux"], targets)


# ---------------------------------------------------------------------- of the whole batch


def root(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.mse_loss(outputs, targets).sqrt()


def dice(outputs: Tensor, targets: Tensor) -> Tensor:
    p = outputs.sigmoid()
    return 1 - (2 * (p * targets).sum() + 1) / (p.sum() + targets.sum() + 1)


def contrast(a: Tensor, b: Tensor) -> Tensor:
    """InfoNCE: all others are negatives."""
    scores = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T / 0.5
    return F.cross_entropy(scores, torch.arange(len(a)))


def vicreg(a: Tensor, b: Tensor) -> Tensor:
    return F.mse_loss(a, b) + F.relu(1 - a.std(0, unbiased=False)).mean()


def barlow(a: Tensor, b: Tensor) -> Tensor:
    cross = (a - a.mean(0)).T @ (b - b.mean(0)) / len(a)
    return ((cross - torch.eye(len(cross))) ** 2).sum()


def hardest_half(outputs: Tensor, targets: Tensor) -> Tensor:
    each = F.cross_entropy(outputs, targets, reduction="none")
    return each.topk(max(1, len(each) // 2))[0].mean()


def correlation(outputs: Tensor, targets: Tensor) -> Tensor:
    return 1 - F.cosine_similarity((outputs - outputs.mean()).flatten(), (targets - targets.mean()).flatten(), 0)


def ranking(one: Tensor, other: Tensor, sign: Tensor) -> Tensor:
    """The margin as torch's, of columns."""
    return F.margin_ranking_loss(one[:, 0], other[:, 0], sign, margin=0.5)


def small(outputs: Tensor) -> Tensor:
    """Of an output alone."""
    return (outputs**2).mean()


def noisy(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.mse_loss(outputs + torch.randn_like(outputs), targets)


# ---------------------------------------------------------------------- with a state, with parameters


def by_names(outputs: Tensor, targets: Tensor) -> dict[str, Any]:
    """A mean over what is not ignored, one over samples, and what is only worth knowing."""
    hits = (outputs.argmax(1) == targets).double().mean()
    return {
        "ce": F.cross_entropy(outputs, targets),
        "size": 0.1 * outputs.square().sum(1).mean(),
        "accuracy": hits,
        "scores": outputs.detach(),
    }


class ByNames(nn.Module):
    """The same of a module with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, dtype=torch.float64))

    def forward(self, outputs: Tensor, targets: Tensor) -> dict[str, Any]:
        return by_names(outputs * self.scale, targets)


class Parts(NamedTuple):
    """Two losses with names."""

    near: Tensor
    small: Tensor


def in_parts(outputs: Tensor, targets: Tensor) -> Parts:
    return Parts(F.mse_loss(outputs, targets), outputs.abs().mean())


def with_whole(outputs: Tensor, targets: Tensor) -> dict[str, Any]:
    """A loss and what it is made of, as VAEs give it."""
    near, small = in_parts(outputs, targets)
    return {"near": near, "small": small.detach(), "loss": near + small}


def in_a_pair(outputs: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Any]]:
    return F.mse_loss(outputs, targets), {"far": (outputs - targets).abs().max().item()}


def unnamed_whole(outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    near, small = in_parts(outputs, targets)
    return {"near": near, "small": small, "objective": near + small}


def unreduced(outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    return {"near": F.mse_loss(outputs, targets, reduction="none"), "small": outputs.abs().mean()}


def only_known(outputs: Tensor, targets: Tensor) -> dict[str, Any]:
    return {"far": (outputs - targets).abs().mean().item()}


def whole_of_batch(outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    return {"near": F.mse_loss(outputs, targets), "root": outputs.square().mean().sqrt()}


def of_forces(energy: Tensor, slopes: Tensor, target: Tensor) -> Tensor:
    """Energies and forces at once."""
    return F.mse_loss(energy, target) + 10 * F.mse_loss(slopes, target.expand_as(slopes))


def of_equation(u: Tensor, places: Tensor, target: Tensor) -> Tensor:
    """How far a function is from an equation and from what is known of it: by gradients of the outputs."""
    (slopes,) = torch.autograd.grad(u.sum(), places, create_graph=True)
    return (slopes.sum(1) - u[:, 0]).square().mean() + F.mse_loss(u, target)


class Steep(nn.Module):
    """Punishes steep slopes of a judge of its own, between what is given and what is wanted."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.judge = nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 1)).double().requires_grad_(False)

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        between = (outputs + targets) / 2
        if not between.requires_grad:
            between.requires_grad_()
        (slopes,) = torch.autograd.grad(self.judge(between).sum(), between, create_graph=True)
        value: Tensor = F.mse_loss(outputs, targets) + (slopes.norm(dim=1) - 1).square().mean()
        return value


class Centered(nn.Module):
    """A buffer that moves whenever it is called."""

    center: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(1, dtype=torch.float64))

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        loss = F.mse_loss(outputs - self.center, targets)
        with torch.no_grad():
            self.center.mul_(0.9).add_(0.1)
        return loss


class Annealed(nn.Module):
    """Counts its calls in train mode, and weighs by them."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.float64))

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.training:
            self.calls.add_(1)
        return F.mse_loss(outputs, targets) * (1 + 0.1 * self.calls)


class Uncertain(nn.Module):
    """Learns its own scale."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(outputs, targets) * (-self.log_scale).exp() + self.log_scale


class Centers(nn.Module):
    """Learns a center of each class."""

    def __init__(self) -> None:
        super().__init__()
        self.centers = nn.Parameter(torch.eye(3, dtype=torch.float64))

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets) + 0.1 * ((outputs - self.centers[targets]) ** 2).sum(1).mean()


class Margin(nn.Module):
    """ArcFace: the last layer stands in the loss."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.weight = nn.Parameter(torch.randn(3, 3, dtype=torch.float64))

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        cosine = F.linear(F.normalize(outputs), F.normalize(self.weight))
        return F.cross_entropy(4 * (cosine - 0.2 * F.one_hot(targets, 3)), targets)


class Perceptual(nn.Module):
    """A frozen net inside, with dropout that is off in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Linear(1, 4), nn.Tanh()).double().requires_grad_(False)

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(self.net(outputs), self.net(targets))


class Callable:
    """No module, no function."""

    def __init__(self, power: int = 2):
        self.power = power

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return ((outputs - targets).abs() ** self.power).mean()


def gone(outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Without one of its numbers in the last step of an epoch."""
    near, small = in_parts(outputs, targets)
    return {"near": near} if len(outputs) == 4 else {"near": near, "small": small}


class OverAll(nn.Module):
    """Divided by what all ranks have together, as DETR's: the ranks' mean of it is the mean over all."""

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        count = torch.tensor(float(outputs.numel()))
        if dist.is_initialized():
            dist.all_reduce(count)
            count /= dist.get_world_size()
        return (outputs - targets).square().sum() / count


def far_of_all(outputs: Tensor, targets: Tensor) -> Tensor:
    """A metric that gathers what every rank has."""
    far = (outputs - targets).abs()
    if dist.is_initialized():
        everyone = [torch.empty_like(far) for _ in range(dist.get_world_size())]
        dist.all_gather(everyone, far)
        far = torch.cat(everyone)
    return far.mean()
