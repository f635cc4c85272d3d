"""Small data sets and models for tests: doubles throughout, so that sums agree to 1e-9 in any order."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset


class Numbers(Dataset[tuple[Tensor, Tensor]]):
    """`size` rows of 6 numbers and a class of 3, read one by one."""

    def __init__(self, size: int = 50, seed: int = 1):
        generator = torch.Generator().manual_seed(seed)
        self.inputs = torch.randn(size, 6, generator=generator, dtype=torch.float64)
        self.targets = (self.inputs[:, :3] + 0.3 * self.inputs[:, 3:]).argmax(1)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.inputs[index], self.targets[index]


class WholeNumbers(Numbers):
    """The same rows, read whole batches at a time."""

    def get_batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self.inputs[indices], self.targets[indices]


class Named(Numbers):
    """The same rows as mappings."""

    def __getitem__(self, index: int) -> Any:
        return {"left": self.inputs[index, :3], "right": self.inputs[index, 3:], "label": self.targets[index]}


class Noisy(Numbers):
    """The same rows with random noise added at each reading, from every generator a user may draw from.

    A reading takes a while, until there is a file of that name.
    """

    def __init__(self, seconds: float = 0.0, until: str = ""):
        super().__init__()
        self.seconds, self.until = seconds, until

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if self.seconds and not (self.until and os.path.exists(self.until)):
            time.sleep(self.seconds)
        import random

        import numpy as np

        noise = torch.randn(6, dtype=torch.float64) + np.random.randn() + random.random()
        return self.inputs[index] + 0.1 * noise, self.targets[index]


class Uneven(Noisy):
    """The same rows, at a speed that is each process's own."""

    def __init__(self, seconds: float):
        super().__init__(seconds * (1 + os.getpid() % 5))


class Placed(Uneven):
    """The same rows, and a line in the log of which GPUs this process may use."""

    def __init__(self, seconds: float = 0.0):
        super().__init__(seconds)
        print("sees", os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)


class Words(Dataset[tuple[Tensor, Tensor]]):
    """Rows of 4 inputs and 5 targets each, of which a varying number is ignored (-100), in some rows all."""

    def __init__(self, size: int = 50):
        generator = torch.Generator().manual_seed(2)
        self.inputs = torch.randn(size, 5, 4, generator=generator, dtype=torch.float64)
        self.targets = self.inputs[..., :3].argmax(2)
        ignored = torch.rand(size, 5, generator=generator) < torch.rand(size, 1, generator=generator)
        self.targets[ignored] = -100
        self.targets[3::7] = -100

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.inputs[index], self.targets[index]


class Net(nn.Module):
    """6 numbers to 3 logits."""

    def __init__(self, dropout: float = 0.0, norm: bool = False):
        super().__init__()
        middle: list[nn.Module] = [nn.BatchNorm1d(8)] if norm else []
        self.layers = nn.Sequential(nn.Linear(6, 8), *middle, nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 3)).double()

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.layers(inputs)
        return logits


class TwoInputs(Net):
    """The same from two halves, by name; gives a mapping."""

    def forward(self, left: Tensor, right: Tensor) -> Any:  # type: ignore[override]  # another signature on purpose
        logits = self.layers(torch.cat([left, right], 1))
        return {"logits": logits, "hidden": logits.square()}


class WordNet(nn.Module):
    """[N, 5, 4] numbers to [N, 3, 5] logits."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3).double()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs).transpose(1, 2)  # type: ignore[no-any-return]  # a module's call is Any


class OwnLoss(Net):
    """Returns its own loss, as transformers' models do."""

    def forward(self, inputs: Tensor, labels: Tensor) -> Any:  # type: ignore[override]  # another signature on purpose
        logits = self.layers(inputs)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Paired(Net):
    """Does with two rows what it does not with any other number of them."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs.view(2, 6) * 2 if len(inputs) == 2 else inputs)


class OneNumber(Net):
    """6 numbers to one: [N]."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs)[:, 0]


class Spared(Net):
    """Has parameters that no step uses."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(6, 3).double()


class Scaled(nn.Module):
    """A loss with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs * self.scale, targets)


class Shifted(nn.Module):
    """A loss with several parameters, which are all zero at first."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(3, dtype=torch.float64))

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs + self.shift, targets)


class Exploding(Net):
    """Its gradients are infinite where a row's first number is above a limit."""

    def __init__(self, limit: float = 2.0):
        super().__init__()
        self.limit = limit

    def forward(self, inputs: Tensor) -> Tensor:
        logits = super().forward(inputs)
        return logits * torch.inf if (inputs[:, 0] > self.limit).any() else logits


class Looked(nn.Module):
    """A class's logits for each of 64 patterns of signs, with sparse gradients; infinite ones as in `Exploding`."""

    def __init__(self, limit: float = torch.inf):
        super().__init__()
        self.limit = limit
        self.table = nn.Embedding(64, 3, sparse=True).double()

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.table(((inputs > 0) * 2 ** torch.arange(6)).sum(1))
        return logits * torch.inf if (inputs[:, 0] > self.limit).any() else logits


class Evened(Exploding):
    """All of a parameter's gradient is its mean: one number, expanded."""

    def __init__(self, limit: float = 100.0):
        super().__init__(limit=limit)
        for parameter in self.parameters():
            parameter.register_post_accumulate_grad_hook(self._even)

    def _even(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            parameter.grad = parameter.grad.mean().expand_as(parameter)


class Waves(nn.Module):
    """6 numbers to 3 logits by way of complex ones; infinite ones as in `Exploding`."""

    def __init__(self, limit: float = torch.inf):
        super().__init__()
        self.limit = limit
        self.weight = nn.Parameter(torch.randn(6, 3, dtype=torch.complex128))

    def forward(self, inputs: Tensor) -> Tensor:
        logits = (inputs.to(torch.complex128) @ self.weight).abs()
        return logits * torch.inf if (inputs[:, 0] > self.limit).any() else logits


def step(model: nn.Module, batch: tuple[Tensor, Tensor], at: Any) -> Mapping[str, Any]:
    """A step function of a user's own."""
    outputs = model(batch[0])
    return {
        "loss": nn.functional.cross_entropy(outputs, batch[1]),
        "outputs": outputs,
        "targets": batch[1],
        "progress": at.fraction,
        "middle": outputs.mean(),
        "label": batch[1].double().mean().item(),
    }


def step_called_lr(model: nn.Module, batch: tuple[Tensor, Tensor], at: Any) -> Mapping[str, Any]:
    """A step function with a scalar whose name is taken."""
    return {**step(model, batch, at), "lr": 1.0}


def step_of_a_tensor(model: nn.Module, batch: tuple[Tensor, Tensor], at: Any) -> Any:
    """A step function that gives the loss alone."""
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def step_without_loss(model: nn.Module, batch: tuple[Tensor, Tensor], at: Any) -> Mapping[str, Any]:
    """A step function with a slip."""
    return {"los": nn.functional.cross_entropy(model(batch[0]), batch[1])}


def step_of_many(model: nn.Module, batch: tuple[Tensor, Tensor], at: Any) -> Mapping[str, Any]:
    """A step function with a scalar that is none."""
    return {**step(model, batch, at), "each": batch[1]}


def step_of_moods(model: nn.Module, batch: tuple[Tensor, Tensor], at: Any) -> Mapping[str, Any]:
    """A step function that has something more to say now and then."""
    return {**step(model, batch, at), **({"now": 1.0} if at.step == 5 else {})}


def witnessed(model: nn.Module, batch: tuple[Tensor, Tensor], at: Any) -> Mapping[str, Any]:
    """A step that each rank notes in a file of its own, with what torch was told of algorithms."""
    Path(f"steps-{os.environ.get('RANK', '0')}").write_text(str(at.step + 1))
    deterministic = torch.are_deterministic_algorithms_enabled()
    return {"loss": nn.functional.cross_entropy(model(batch[0]), batch[1]), "deterministic": deterministic}


def word_step(model: nn.Module, batch: tuple[Tensor, Tensor], at: Any) -> Mapping[str, Any]:
    """A step function whose loss is a mean over the entries that count."""
    outputs = model(batch[0])
    if not word_count(batch):
        return {"loss": outputs.sum() * 0}
    return {"loss": nn.functional.cross_entropy(outputs, batch[1])}


def word_count(batch: tuple[Tensor, Tensor]) -> int:
    """How many entries of a batch count."""
    return int((batch[1] != -100).sum())


def halved(step: int) -> float:
    """For LambdaLR."""
    return 0.5**step


def weights_of(dataset: Numbers) -> Any:
    """A weight per sample."""
    return (dataset.targets + 1).numpy()


class Slow(Numbers):
    """A set that takes some seconds to be read."""

    def __init__(self, seconds: float):
        super().__init__(4)
        self.seconds = seconds

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        time.sleep(self.seconds / len(self))
        return super().__getitem__(index)


class Paced(WholeNumbers):
    """Whole batches that take a while each; a single sample, as for the fingerprint of a run's data, does not."""

    def __init__(self, seconds: float, least: int = 2):
        super().__init__()
        self.seconds, self.least = seconds, least  # samples of a batch

    def get_batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        if len(indices) >= self.least:
            time.sleep(self.seconds)
        return super().get_batch(indices)


class Values(Numbers):
    """The same rows with a number each in place of a class."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.inputs[index], self.inputs[index].sum() + self.inputs[index, 0].square()


class YesOrNo(Numbers):
    """The same rows with 0 or 1 in place of a class."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.inputs[index], (self.targets[index] > 0).double()


class Inputs(Numbers):
    """The same rows without a class: what a model is to be asked."""

    def __getitem__(self, index: int) -> Any:
        return (self.inputs[index],)


class Blank(Inputs):
    """The same, the first of them unknown."""

    def __getitem__(self, index: int) -> Any:
        (row,) = super().__getitem__(index)
        return (row if index else row * torch.nan,)


class Flow(IterableDataset[tuple[Tensor, Tensor]]):
    """The same rows as a stream."""

    def __init__(self, size: int = 50, seed: int = 1):
        self.rows = Numbers(size, seed)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return (self.rows[index] for index in range(len(self.rows)))


class Shuffled(Flow):
    """They are in another order each time, by a list that is shuffled in place."""

    def __init__(self) -> None:
        super().__init__()
        self.order, self.draws = list(range(len(self.rows))), random

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.draws.shuffle(self.order)
        return (self.rows[index] for index in self.order)


class FlatWords(Words):
    """Words of all rows of a batch below one another: more of them than samples."""

    def __getitem__(self, index: int) -> Any:
        raise NotImplementedError("ask for batches")

    def get_batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self.inputs[indices].flatten(0, 1), self.targets[indices].flatten()


class OnlyBatches(WholeNumbers):
    """Rows that cannot be read one by one."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        raise NotImplementedError("ask for batches")

    def get_batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return super().get_batch(indices)


class Gone(Numbers):
    """A set whose files somebody has removed."""

    def __init__(self) -> None:
        raise FileNotFoundError("the training set is gone")


class Stuck(Numbers):
    """A set of which one row never comes."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        time.sleep(3600 if index == 20 else 0)
        return super().__getitem__(index)


class Deadly(Numbers):
    """A set of which one row is the end of whoever reads it, a while after the row before."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if index == 20:
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def one_in_brackets(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss of shape (1,)."""
    return nn.functional.cross_entropy(outputs, targets).reshape(1)


def nothing_of(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss that no parameter has a part in."""
    return outputs.detach().mean()


def weights_of_none() -> list[float]:
    """It gets the data set, but takes nothing."""
    return []


def each_output(outputs: Tensor, targets: Tensor) -> Tensor:
    """A metric that is many numbers."""
    return outputs.mean(1)


def one_complex(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss that cannot be made smaller."""
    return nn.functional.cross_entropy(outputs, targets).to(torch.complex128)


def one_each(outputs: Tensor, targets: Tensor) -> Tensor:
    """No mean: a loss for each sample."""
    return nn.functional.cross_entropy(outputs, targets, reduction="none")


def spread(outputs: Tensor, targets: Tensor) -> float:
    """A metric that only a whole set has: how far the mean outputs of the classes lie apart."""
    means = torch.stack([outputs[targets == one].mean(0) for one in range(int(targets.max()) + 1) if one in targets])
    return float(means.std(0, unbiased=False).sum())


class Broken(Numbers):
    """A set of which one row cannot be read."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if index == 3:
            raise ZeroDivisionError("row 3 is broken")
        return super().__getitem__(index)


class Huge(Dataset[tuple[Tensor, Tensor]]):
    """A thousand million rows, made where they are read."""

    def __len__(self) -> int:
        return 10**9

    def get_batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return torch.stack([indices.double()] * 6, 1), indices % 3


class Wide(Net):
    """As large as one likes."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 3)).double()


class Unseeded(Numbers):
    """The same rows with noise from a generator of its own, which nobody seeds."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        import numpy as np

        return self.inputs[index] + np.random.default_rng().normal(), self.targets[index]


class Cut(IterableDataset[tuple[Tensor, Tensor]]):
    """48 of the noisy rows as a stream, which can be cut into parts."""

    def __init__(self) -> None:
        self.rows, self.places, self.num_shards = Noisy(), range(48), 12

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return (self.rows[index] for index in self.places)

    def shard(self, num_shards: int, index: int) -> Cut:
        part = Cut()
        part.places, part.num_shards = self.places[index::num_shards], self.num_shards // num_shards
        return part


class InAStorm(Net):
    """With chance and running means; it takes its time until there is a file `calm`, of which no recipe knows."""

    def __init__(self) -> None:
        super().__init__(dropout=0.2, norm=True)

    def forward(self, inputs: Tensor) -> Tensor:
        time.sleep(0 if os.path.exists("calm") else float(os.environ.get("STORM_PACE", "0")))
        outputs: Tensor = super().forward(inputs)
        return outputs + 0.01 * torch.randn_like(outputs)
