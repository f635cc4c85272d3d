"""Handwritten digits in ink or none, and a variational autoencoder (Kingma and Welling, 2014) of them."""

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy, binary_cross_entropy_with_logits
from torch.utils.data import Dataset

from launcher.datasets import Digits


class Ink(Dataset[tuple[Tensor]]):
    """Images [64], 1 where a pixel is at least half black, else 0."""

    def __init__(self, split: str) -> None:
        self.images = (Digits(split).tensors[0].flatten(1) >= 0.5).float()  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor]:
        return (self.images[index],)


class VAE(nn.Module):
    """Two layers to a Gaussian over what is latent, two layers back.

    Its loss is the negative evidence lower bound, in nats for each image.
    """

    def __init__(self, width: int = 256, latent: int = 16) -> None:
        super().__init__()
        self.latent = latent
        self.encoder = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, 2 * latent))
        self.decoder = nn.Sequential(nn.Linear(latent, width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, 64))

    def forward(self, images: Tensor) -> Tensor:
        """The mean loss of images [N, 64]; what it draws is seeded with the step."""
        mean, log_variance = self.encoder(images).chunk(2, dim=1)
        drawn = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        missed = binary_cross_entropy_with_logits(self.decoder(drawn), images, reduction="none").sum(1)
        apart = (mean.square() + log_variance.exp() - log_variance - 1).sum(1) / 2  # from a standard Gaussian
        loss: Tensor = (missed + apart).mean()
        return loss


def draw(model: VAE, at: object, scores: object) -> dict[str, Tensor]:
    """After an evaluation: a picture of 64 digits that it makes up."""
    ink = model.decoder(torch.randn(64, model.latent)).sigmoid()
    return {"digits": 1 - ink.reshape(8, 8, 8, 8).transpose(1, 2).reshape(64, 64)}


def baseline() -> float:
    """The same of who knows how often each pixel is black, and takes them for independent; on the test's part."""
    often = Ink("train").images.mean(0).clamp(1e-3, 1 - 1e-3)
    images = Ink("test").images
    return float(binary_cross_entropy(often.expand_as(images), images, reduction="none").sum(1).mean())


if __name__ == "__main__":
    print(f"nats for each image, pixels taken for independent: {baseline():.2f}")
