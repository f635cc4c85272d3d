"""What a model makes of each sample of a set: collected while it is evaluated, and written as Parquet.

A classifier's have `index`, `target`, `prediction`, `probability` (of the prediction) and `loss`; others have `target`
and `prediction`, lists where a sample has several. `launcher.runs.predictions` reads them for the report.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from launcher.coordination import Coordinator, packed, unpacked
from launcher.data.loaders import EvaluationLoader, MicroBatch
from launcher.data.sheet import as_png
from launcher.data.subsets import innermost
from launcher.datasets.files import needed, whole
from launcher.errors import LauncherError
from launcher.outputs import class_dimension, probabilities

if TYPE_CHECKING:
    from numpy.typing import NDArray


_PICTURES = 24  # of the worst mistakes


class Predictions:
    """Gathers columns, a row for each sample in order.

    Args:
        classes_only: Whether batches without a class number for each sample are passed over.
    """

    def __init__(self, classes_only: bool = False):
        self._classes_only = classes_only
        self._parts: dict[str, list[NDArray[Any]]] = {}

    def see(self, outputs: Sequence[Any], targets: Sequence[Any], batch: MicroBatch) -> None:
        """Takes a batch in.

        Raises:
            LauncherError: The model's output is no tensor with a row for each sample.
        """
        target = targets[0] if targets and isinstance(targets[0], torch.Tensor) else None
        if self._classes_only and (target is None or target.dim() != 1 or target.is_floating_point()):
            return
        output = outputs[0] if outputs else None
        if not isinstance(output, torch.Tensor) or output.dim() == 0 or len(output) != batch.samples:
            raise LauncherError("predictions need an output with a row for each sample; pick it with batch.outputs")
        for name, column in columns_of(output, target).items():
            self._parts.setdefault(name, []).append(column)

    def columns(self, coordinator: Coordinator) -> dict[str, NDArray[Any]] | None:
        """All ranks' rows in order, on every rank; None where there are none."""
        own = packed({name: torch.from_numpy(np.concatenate(parts)) for name, parts in self._parts.items()})
        read: list[dict[str, torch.Tensor]] = [share for share in map(unpacked, coordinator.gather(own)) if share]
        names = list(read[0]) if read else []
        columns = {name: torch.cat([share[name] for share in read]).numpy() for name in names}
        return {"index": np.arange(len(columns[names[0]])), **columns} if names else None


def columns_of(output: torch.Tensor, target: torch.Tensor | None) -> dict[str, NDArray[Any]]:
    """The columns of a batch, each with a row for each sample.

    Args:
        output: [N, …]: logits of classes, a logit for each target, or values.
        target: [N, …]: class numbers, 0 and 1, or values; None where there is none.
    """
    chosen = _chosen(output.detach().float(), target)
    columns = chosen if target is None else {"target": target, **chosen}
    return {name: column.detach().cpu().numpy() for name, column in columns.items()}


def _chosen(output: torch.Tensor, target: torch.Tensor | None) -> dict[str, torch.Tensor]:
    over = class_dimension(output, target)
    whole_numbers = target is None or not target.is_floating_point()
    if over is None and (target is None or not whole_numbers):
        return {"prediction": output if target is None else output.reshape(target.shape)}
    shares = probabilities(output, target)
    if over is None:  # one logit for each: above 0 is yes
        assert target is not None
        prediction = (shares > 0.5).long()
        sure = torch.where(prediction == 1, shares, 1 - shares)
        of_target = torch.where(target == 1, shares, 1 - shares)
        return {"prediction": prediction, "probability": sure, "loss": -of_target.log()}
    sure, prediction = shares.max(dim=over)
    if target is None or target.shape != prediction.shape:
        return {"prediction": prediction, "probability": sure}
    of_target = shares.gather(over, target.clamp(min=0).unsqueeze(over)).squeeze(over)
    return {"prediction": prediction, "probability": sure, "loss": -of_target.log()}


def write_predictions(path: Path, columns: dict[str, NDArray[Any]], loader: EvaluationLoader) -> None:
    """Writes Parquet, with the classes' names where the data set has them and pictures of the worst mistakes.

    Args:
        path: Whole or not at all.
        columns: See `Predictions.columns`.
        loader: Of the set, for names and pictures.

    Raises:
        ImportError: pyarrow is missing.
        OSError: The disk is full or read-only.
    """
    pyarrow = needed("pyarrow", "tables", "predictions as Parquet")
    parquet = needed("pyarrow.parquet", "tables", "predictions as Parquet")
    table = pyarrow.table({name: pyarrow.array(_cells(column)) for name, column in columns.items()})
    if pictures := _pictures(columns, loader.dataset):
        cells = [pictures.get(row) for row in range(len(table))]
        table = table.append_column("picture", pyarrow.array(cells, type=pyarrow.binary()))
    names = getattr(innermost(loader.dataset), "classes", None)
    if names is not None and "probability" in columns:
        table = table.replace_schema_metadata({"classes": json.dumps([str(name) for name in names])})
    with whole(path) as part:
        parquet.write_table(table, part)


def _cells(column: NDArray[Any]) -> Any:
    return column if column.ndim == 1 else column.reshape(len(column), -1).tolist()


def _pictures(columns: dict[str, NDArray[Any]], dataset: Any) -> dict[int, bytes]:
    """PNG files of the worst mistakes by row, where samples are pictures."""
    if "loss" not in columns or columns["target"].ndim != 1:
        return {}
    wrong = np.flatnonzero(columns["target"] != columns["prediction"])
    worst = wrong[np.argsort(-columns["loss"][wrong], kind="stable")][:_PICTURES]
    pictures = {}
    for row in worst.tolist():
        sample = dataset[row]
        first = sample[0] if isinstance(sample, tuple | list) and len(sample) else sample
        picture = as_png(first) if isinstance(first, torch.Tensor) else None
        if picture is None:
            return {}
        pictures[row] = picture
    return pictures
