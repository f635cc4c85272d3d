"""Two networks over handwritten digits that take turns, and how real what one of them makes looks."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as judged
from torch.utils.data import TensorDataset

from launcher.datasets import Digits

NOISE = 32


class Images(TensorDataset):
    """The digits' pixels [64], between -1 and 1."""

    def __init__(self, split: str) -> None:
        super().__init__(2 * Digits(split).tensors[0].flatten(1) - 1)  # type: ignore[arg-type]


class Gan(nn.Module):
    """Both networks."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.generator = nn.Sequential(
            *(nn.Linear(NOISE, width), nn.LayerNorm(width), nn.ReLU()),
            *(nn.Linear(width, width), nn.LayerNorm(width), nn.ReLU()),
            *(nn.Linear(width, 64), nn.Tanh()),
        )
        self.critic = nn.Sequential(
            *(nn.Linear(64, width), nn.LeakyReLU(0.2), nn.Linear(width, width), nn.LeakyReLU(0.2)), nn.Linear(width, 1)
        )


def critic(model: Gan, batch: tuple[Tensor], at: Any) -> Mapping[str, Tensor]:
    """The critic's turn: it tells real digits from made ones, and is kept flat at the real ones.

    Without that penalty (R1; Mescheder and others, 2018) the two run in circles.
    """
    real = blurred(batch[0]).requires_grad_()
    with torch.no_grad():
        fake = model.generator(torch.randn(len(real), NOISE, device=real.device))
    true, false = model.critic(real), model.critic(blurred(fake))
    loss = judged(true, torch.ones_like(true)) + judged(false, torch.zeros_like(false))
    if not torch.is_grad_enabled():  # in an evaluation
        return {"loss": loss}
    (slope,) = torch.autograd.grad(true.sum(), real, create_graph=True)
    return {"loss": loss + 0.1 * slope.square().sum(1).mean()}


def blurred(images: Tensor) -> Tensor:
    """With a little noise: real pixels have one of 17 values, by which alone they could be told from made ones."""
    return images + 0.1 * torch.randn_like(images)


def generator(model: Gan, batch: tuple[Tensor], at: Any) -> Mapping[str, Tensor]:
    """The generator's turn: what it makes is to be taken for real."""
    (images,) = batch
    verdict = model.critic(blurred(model.generator(torch.randn(len(images), NOISE, device=images.device))))
    return {"loss": judged(verdict, torch.ones_like(verdict))}


class Look:
    """After an evaluation: how well made digits are told from real ones, and a picture of 64 of them."""

    def __init__(self, split: str) -> None:
        self.real = Images(split).tensors[0]

    def __call__(self, model: Gan, at: Any, scores: Mapping[str, Any]) -> Mapping[str, Any]:
        """`told` and `digits`."""
        made = model.generator(torch.randn(len(self.real), NOISE, device=next(model.parameters()).device)).cpu()
        return {"told": told(self.real, made), "digits": -made[:64].reshape(8, 8, 8, 8).transpose(1, 2).reshape(64, 64)}


def told(real: Tensor, made: Tensor) -> float:
    """How many images have a nearest neighbour of their own sort: 0.5 where nothing tells them apart, 1 at worst.

    The leave-one-out accuracy of one nearest neighbour, as Lopez-Paz and Oquab (2017) have it.
    """
    distance = torch.cdist(both := torch.cat([real, made]), both).fill_diagonal_(float("inf"))
    is_real = torch.arange(len(both)) < len(real)
    return float((is_real[distance.argmin(1)] == is_real).float().mean())


def baseline() -> float:
    """`told` of images drawn from a Gaussian of the training images' mean and covariance."""
    images, real = Images("train").tensors[0], Images("validation").tensors[0]
    spread = torch.linalg.cholesky(images.T.cov() + 1e-4 * torch.eye(64))
    noise = torch.randn(len(real), 64, generator=torch.Generator().manual_seed(0))
    return told(real, (images.mean(0) + noise @ spread.T).clamp(-1, 1))


if __name__ == "__main__":
    print(f"told from real ones, drawn from a Gaussian: {baseline():.3f}")
