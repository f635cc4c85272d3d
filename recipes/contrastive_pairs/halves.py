"""Which lower half belongs to this upper half? Pairs of halves of handwritten digits, and two encoders that meet."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from torch.utils.data import TensorDataset

from launcher.datasets import Digits


class Halves(TensorDataset):
    """The upper [1, 4, 8] and the lower [1, 4, 8] half of each digit."""

    def __init__(self, split: str) -> None:
        images = Digits(split).tensors[0]  # type: ignore[arg-type]
        super().__init__(images[:, :, :4], images[:, :, 4:])


class Encoders(nn.Module):
    """One for each half, into the same space, and a temperature (Radford and others, 2021)."""

    def __init__(self, width: int = 256, into: int = 64) -> None:
        super().__init__()
        self.upper, self.lower = (
            nn.Sequential(nn.Flatten(), nn.Linear(32, width), nn.ReLU(), nn.Dropout(0.2), nn.Linear(width, into))
            for _ in range(2)
        )
        self.temperature = nn.Parameter(torch.tensor(2.0))

    def forward(self, upper: Tensor, lower: Tensor) -> tuple[Tensor, Tensor]:
        """Maps both to [N, into]; their product says how well an upper half goes with each lower one."""
        return self.temperature.exp() * normalize(self.upper(upper)), normalize(self.lower(lower))


def info_nce(upper: Tensor, lower: Tensor) -> Tensor:
    """Each half is to find its other among all of the batch, both ways."""
    fits, own = upper @ lower.T, torch.arange(len(upper), device=upper.device)
    return (cross_entropy(fits, own) + cross_entropy(fits.T, own)) / 2


def found_in_5(upper: Tensor, lower: Tensor) -> float:
    """The share of upper halves whose own lower half is among the five that fit best, of all of the set."""
    fits = upper @ lower.T
    return float(((fits > fits.diagonal()[:, None]).sum(1) < 5).float().mean())


def baseline() -> float:
    """The same share where linear regression says the lower half, and the nearest ones are taken."""
    (seen, true), (upper, lower) = ((half.flatten(1) for half in Halves(split).tensors) for split in ("train", "test"))
    said = (
        torch.cat([upper, torch.ones(len(upper), 1)], 1)
        @ torch.linalg.lstsq(torch.cat([seen, torch.ones(len(seen), 1)], 1), true, driver="gelsd").solution
    )
    distance = torch.cdist(said, lower)
    return float(((distance < distance.diagonal()[:, None]).sum(1) < 5).float().mean())


if __name__ == "__main__":
    print(f"found among five by linear regression: {baseline():.3f}; by chance: {5 / len(Halves('test')):.3f}")
