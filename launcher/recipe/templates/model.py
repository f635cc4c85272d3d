"""The model: any nn.Module will do."""

from torch import Tensor, nn


class Net(nn.Module):
    """Points in the plane to classes.

    Args:
        classes: How many.
        width: Of the hidden layer.
    """

    def __init__(self, classes: int, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.Linear(width, classes))

    def forward(self, points: Tensor) -> Tensor:
        """Maps points of shape [N, 2] to logits of shape [N, classes]."""
        logits: Tensor = self.layers(points)
        return logits
