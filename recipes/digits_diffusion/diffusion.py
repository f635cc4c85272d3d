"""Diffusion over handwritten digits: a network that says what noise was added, and what comes of noise without it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from launcher.datasets import Digits


class Images(TensorDataset):
    """The digits' pixels [64], between -1 and 1."""

    def __init__(self, split: str) -> None:
        super().__init__(2 * Digits(split).tensors[0].flatten(1) - 1)  # type: ignore[arg-type]


class Diffusion(nn.Module):
    """Denoising diffusion (Ho and others, 2020) with a cosine schedule (Nichol and Dhariwal, 2021).

    Args:
        width: Of the network's layers.
        layers: How many there are.
        times: How many grades of noise there are.
    """

    def __init__(self, width: int = 256, layers: int = 4, times: int = 100) -> None:
        super().__init__()
        self.times = times
        self.enter = nn.Linear(64, width)
        self.time = nn.Embedding(times, width)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
            for _ in range(layers)
        )
        self.leave = nn.Linear(width, 64)
        kept = (torch.linspace(0, 1, times + 1) * torch.pi / 2 * 0.99).cos().square()
        self.register_buffer("kept", kept[1:] / kept[0], persistent=False)
        self.kept: Tensor

    def noise_in(self, noisy: Tensor, time: Tensor) -> Tensor:
        """What the network takes for noise in images [N, 64] at times [N]."""
        x = self.enter(noisy)
        for layer in self.layers:
            x = x + layer(x + self.time(time))
        noise: Tensor = self.leave(x)
        return noise

    def forward(self, images: Tensor) -> Tensor:
        """The mean squared error of the noise that it sees; times and noise are seeded with the step."""
        time = torch.randint(self.times, (len(images),), device=images.device)
        noise, kept = torch.randn_like(images), self.kept[time, None]
        seen = self.noise_in(kept.sqrt() * images + (1 - kept).sqrt() * noise, time)
        return (seen - noise).square().mean()

    def sample(self, count: int) -> Tensor:
        """Images [count, 64] from noise, a grade of it after the other taken away."""
        images = torch.randn(count, 64, device=self.kept.device)
        for time in reversed(range(self.times)):
            kept, before = self.kept[time], self.kept[time - 1] if time else torch.ones_like(self.kept[0])
            noise = self.noise_in(images, torch.full((count,), time, device=images.device))
            clean = ((images - (1 - kept).sqrt() * noise) / kept.sqrt()).clamp(-1, 1)
            lost = 1 - kept / before
            mean = (before.sqrt() * lost * clean + (kept / before).sqrt() * (1 - before) * images) / (1 - kept)
            images = mean + (lost * (1 - before) / (1 - kept)).sqrt() * torch.randn_like(images)
        return images


class Look:
    """After an evaluation: how well made digits are told from real ones, and a picture of 64 of them."""

    def __init__(self, split: str) -> None:
        self.real = Images(split).tensors[0]

    def __call__(self, model: Diffusion, at: Any, scores: Mapping[str, Any]) -> Mapping[str, Any]:
        """`told` and `digits`."""
        made = model.sample(len(self.real)).cpu()
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
