"""Pictures of shapes made by arithmetic, and a small U-Net that says of each pixel what it belongs to."""

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.utils.data import TensorDataset
from torchmetrics.functional.classification import multiclass_jaccard_index

SHAPES = ("disc", "square", "ring")  # classes 1, 2 and 3; 0 is the background


class Shapes(TensorDataset):
    """Images [3, size, size] and masks [size, size]: three shapes on each, whose colours and the ground's tell nothing.

    Args:
        samples: How many images.
        size: Height and width, in pixels.
        seed: Another seed is another set of images.
    """

    def __init__(self, samples: int, size: int = 40, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)

        def draw(low: float, high: float, *shape: int) -> Tensor:
            return low + (high - low) * torch.rand(samples, *shape, generator=generator)

        rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
        images = draw(0, 1, 3, 1, 1) + draw(-0.5, 0.5, 3, 1, 1) * rows / size
        masks = torch.zeros(samples, size, size, dtype=torch.long)
        for _ in range(3):  # what is drawn later covers what was there
            y, x, radius = (*draw(0, size, 2, 1, 1).unbind(1), draw(size / 10, size / 5, 1, 1))
            kind = torch.randint(1, 4, (samples, 1, 1), generator=generator)
            across, away = torch.maximum((rows - y).abs(), (columns - x).abs()), (rows - y).hypot(columns - x)
            inside = torch.where(kind == 2, across < 0.9 * radius, away < radius) & ~((kind == 3) & (away < radius / 2))
            images = torch.where(inside.unsqueeze(1), draw(0, 1, 3, 1, 1), images)
            masks = torch.where(inside, kind, masks)
        super().__init__(images + 0.1 * torch.randn(images.shape, generator=generator), masks)


class UNet(nn.Module):
    """Three resolutions; each is joined again with what was seen at it on the way down.

    Args:
        width: Channels at the full resolution; each lower one has twice as many.
    """

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.down = nn.ModuleList([block(3, width), block(width, 2 * width), block(2 * width, 4 * width)])
        self.up = nn.ModuleList([block(6 * width, 2 * width), block(3 * width, width)])
        self.head = nn.Conv2d(width, 1 + len(SHAPES), kernel_size=1)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images [N, 3, H, W] to logits [N, 4, H, W]."""
        seen: list[Tensor] = []
        x = images
        for stage in self.down:
            x = stage(x)
            seen.append(x)
            x = nn.functional.max_pool2d(x, 2)
        x = seen.pop()
        for stage in self.up:
            x = stage(torch.cat([interpolate(x, scale_factor=2.0), seen.pop()], dim=1))
        logits: Tensor = self.head(x)
        return logits


def block(inputs: int, outputs: int) -> nn.Sequential:
    """Two convolutions; group norm looks at one image at a time, so that any number of processes gives the same."""
    first, second = (nn.Conv2d(width, outputs, kernel_size=3, padding=1) for width in (inputs, outputs))
    return nn.Sequential(first, nn.GroupNorm(8, outputs), nn.ReLU(), second, nn.GroupNorm(8, outputs), nn.ReLU())


def baseline() -> float:
    """The mean IoU of who says 'background' everywhere."""
    masks = Shapes(samples=256, seed=2).tensors[1]
    return float(multiclass_jaccard_index(torch.zeros_like(masks), masks, num_classes=1 + len(SHAPES)))


if __name__ == "__main__":
    print(f"mean IoU of saying 'background' everywhere: {baseline():.3f}")
