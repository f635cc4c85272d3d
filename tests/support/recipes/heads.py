"""A model that gives the same two outputs in each form that people's models have, and some that are of no sample."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

Pair = namedtuple("Pair", "logits value")


@dataclass
class Both:
    """The same as a dataclass."""

    logits: Tensor
    value: Tensor


class Marks(Dataset[tuple[Tensor, int, Tensor, int]]):
    """Ten rows of three numbers: whether their sum is above 0, the sum, and which number is the largest."""

    classes = ("low", "high")
    inputs = torch.linspace(-1, 1, 30).reshape(10, 3)

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, int, Tensor, int]:
        row = self.inputs[index]
        return row, int(row.sum() > 0), row.sum(), int(row.argmax())


class Net(nn.Module):
    """Logits [N, 2], a value [N], and what else a form has.

    Args:
        gives: Which form.
    """

    def __init__(self, gives: str = "tensor") -> None:
        super().__init__()
        self.gives = gives
        self.layer, self.head = nn.Linear(3, 2), nn.Linear(3, 1)

    def forward(self, rows: Tensor) -> Any:
        """Maps rows [N, 3] to the form; of boxes to a loss in training."""
        logits, value = self.layer(rows), self.head(rows).squeeze(1)
        form = "one of them" if self.training and self.gives == "boxes" else self.gives
        return FORMS[form](rows, logits, value)


def _count(row: Tensor) -> int:
    """A number from 0 to 2 that is a row's own; of the first row 0."""
    return round(float(row[0] + 1) * 29 / 6) % 3


def _boxes(rows: Tensor) -> list[dict[str, Any]]:
    numbers = [_count(row) for row in rows]
    return [
        {"boxes": row.expand(number, 3), "labels": torch.ones(number, dtype=torch.long), "sure": row[0]}
        for number, row in zip(numbers, rows, strict=True)
    ]


def _of_transformers(rows: Tensor, logits: Tensor, value: Tensor) -> Any:
    from transformers.cache_utils import DynamicCache
    from transformers.utils.generic import ModelOutput

    made: Callable[..., Any] = ModelOutput
    return made(loss=logits.mean(), logits=logits, hidden_states=(rows, logits), cache=DynamicCache())


Form = Callable[[Tensor, Tensor, Tensor], Any]
FORMS: dict[str, Form] = {
    "tensor": lambda rows, logits, value: logits,
    "tuple": lambda rows, logits, value: (logits, value),
    "list": lambda rows, logits, value: [logits, value],
    "named tuple": lambda rows, logits, value: Pair(logits, value),
    "dataclass": lambda rows, logits, value: Both(logits, value),
    "mapping": lambda rows, logits, value: {"logits": logits, "value": value},
    "nested": lambda rows, logits, value: {"first": {"logits": logits}, "second": {"of": {"value": value}}},
    "one of them": lambda rows, logits, value: {"logits": logits, "loss": logits.mean()},
    "transformers'": _of_transformers,
    "a table": lambda rows, logits, value: (logits, torch.zeros(4, 2)),  # as many rows as a batch has by chance
    "boxes": lambda rows, logits, value: _boxes(rows),
    "boxes inside": lambda rows, logits, value: {"found": _boxes(rows), "value": value},
    "ragged": lambda rows, logits, value: [row[: _count(row)] for row in rows],
    "texts": lambda rows, logits, value: {"text": [f"{float(row[0]):.2f}" for row in rows], "value": value},
    "types": lambda rows, logits, value: {
        "bfloat16": logits.bfloat16(),
        "bool": value > 0,
        "complex": torch.complex(logits, -logits),
        "double": value.double() / 3,
        "half": value.half(),
        "int": value.round().long() + 2**40,
        "nan": value * torch.nan,
        "sparse": logits.to_sparse(),
        "wide": logits.unsqueeze(1).expand(-1, 2, -1),
    },
    "frames": lambda rows, logits, value: {"frames": logits.expand(5, -1, -1), "value": value},
    "a number": lambda rows, logits, value: logits.mean(),
    "turned": lambda rows, logits, value: logits.T,
    "shorter": lambda rows, logits, value: (logits[1:], value.mean()),
    "nothing": lambda rows, logits, value: None,
    "no longer": lambda rows, logits, value: logits if len(rows) == 4 else torch.cat([logits, logits]),
    "a part": lambda rows, logits, value: {"logits": logits} | ({} if len(rows) == 2 else {"value": value}),
    "a key": lambda rows, logits, value: [{"a": row} if row[0] < 0.5 else {"a": row, "b": row} for row in rows],
}


def logits_alone(output: Any, target: Tensor) -> tuple[Tensor, Tensor]:
    """For batch.adapt."""
    return output["logits"].flip(1), target


def by_target(output: Any, target: Tensor) -> tuple[Tensor, Tensor]:
    """One that gives what only targets tell."""
    return torch.nn.functional.one_hot(target, 2).float() + 0 * output["logits"], target


def of_both(logits: Tensor, value: Tensor, kind: Tensor, total: Tensor) -> Tensor:
    """One loss of two heads."""
    return nn.functional.cross_entropy(logits, kind) + (value - total).square().mean()


def own(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss of one's own for classes."""
    return nn.functional.cross_entropy(outputs, targets)
