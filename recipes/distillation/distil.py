"""A small student that learns what a large teacher thinks of images that nobody has labelled."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div
from torch.utils.data import TensorDataset

from launcher.datasets import Digits

Batch = tuple[Tensor, Tensor]


class Labelled(TensorDataset):
    """The few images that have a label: what there is without a teacher."""

    def __init__(self, samples: int = 100) -> None:
        super().__init__(*(tensor[:samples] for tensor in Digits("train").tensors))


def taught(model: nn.Module, weights: str | None = None, epochs: int = 10) -> nn.Module:
    """A teacher: from a file of weights, or taught here, by the plainest of loops, in seconds.

    Args:
        model: It.
        weights: What a run of it has left (`model_weights.pth`).
        epochs: How long it is taught where there are none.
    """
    if weights is not None:
        model.load_state_dict(torch.load(weights, weights_only=True))
        return model.eval().requires_grad_(False)
    images, digits = Digits("train").tensors
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for rows in torch.randperm(len(images), generator=generator).split(64):
            optimizer.zero_grad()
            cross_entropy(model(images[rows]), digits[rows]).backward()
            optimizer.step()
    return model.eval().requires_grad_(False)


class Distil:
    """The step: the student is to think of each image as the teacher does (Hinton and others, 2015).

    No label is read in training.

    Args:
        teacher: Is asked, and learns nothing.
        temperature: By which both are made less sure, so that what is unlikely counts too.
    """

    def __init__(self, teacher: nn.Module, temperature: float = 2.0) -> None:
        self.teacher, self.temperature = teacher, temperature

    def __call__(self, model: nn.Module, batch: Batch, at: Any) -> Mapping[str, Any]:
        """In training the loss; in an evaluation what the student says, and its loss as to the true digits."""
        images, digits = batch
        if not torch.is_grad_enabled():
            outputs = model(images)
            return {"loss": cross_entropy(outputs, digits), "outputs": outputs, "targets": digits}
        with torch.no_grad():
            thoughts = (self.teacher.to(images.device)(images) / self.temperature).softmax(1)
        loss = kl_div((model(images) / self.temperature).log_softmax(1), thoughts, reduction="batchmean")
        return {"loss": self.temperature**2 * loss}
