"""What a model makes of each sample of a set: collected while it is evaluated, and written as Parquet.

A classifier's have `index`, `target`, `prediction`, `probability` (of the prediction) and `loss`; others have `target`
and `prediction`, lists where a sample has several. `launcher.runs.report.predictions` reads them for the report.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
import torch
from torch import nn

from launcher.data.getitems import gives_batches, sample_of
from launcher.data.inspect.picture_sheet import as_png
from launcher.data.load import Data
from launcher.data.loaders import EvaluationLoader, MicroBatch
from launcher.data.subsets import class_names, innermost, is_stream, numbered_in_whole
from launcher.datasets.files import atomic_write, needed
from launcher.device.coordination import Coordinator, packed, unpacked
from launcher.device.kind import Mark, kind_of
from launcher.errors import LauncherError
from launcher.evaluation.evaluate import Seen, unseen
from launcher.evaluation.heads import shortest_numbers
from launcher.evaluation.output_files import output_file
from launcher.evaluation.outputs import check_alike, class_dimension, probabilities, score_classes
from launcher.objective.batch import Evaluated
from launcher.objective.loss import Objective
from launcher.text import shapes
from launcher.version import install

if TYPE_CHECKING:
    from numpy.typing import NDArray


NO_MATRIX = "the report has no confusion matrix and no mistakes"
_PICTURES = 24  # of the worst mistakes
_MOST_SHOWN = 200_000  # samples of a set whose predictions a run keeps for its report


class Predictions:
    """Gathers columns, a row for each sample in order.

    Args:
        objective: Its loss says whether targets of 0.0 and 1.0 are classes.
        classes_only: Whether what has no class number and no prediction for each sample is skipped.
    """

    def __init__(self, objective: Objective, classes_only: bool = False):
        self._is_binary = any(isinstance(term.function, nn.BCEWithLogitsLoss) for term in objective.terms)
        self._classes_only = classes_only
        self._objective = objective
        self._parts: dict[str, list[torch.Tensor]] = {}  # in host memory, or on their way there
        self._mark: Mark | None = None  # behind the last of them
        self.left_out = ""  # why class numbers were skipped, in words

    def look(self, split: str, name: str) -> Seen:
        """Sees the batches of any set."""
        return self.see

    def see(self, evaluated: Evaluated, batch: MicroBatch) -> None:
        """Takes a batch in.

        Raises:
            LauncherError: The model's output is not a tensor with a row for each sample.
        """
        first, rest = evaluated.outputs[:1], {} if self._classes_only else self._heads(evaluated, batch)
        heads = rest if len(rest) > 1 else {"": (next(iter(first), None), next(iter(evaluated.targets), None))}
        columns = {"index": torch.arange(batch.first, batch.first + batch.samples)}
        for name, (output, target) in heads.items():
            target = target if isinstance(target, torch.Tensor) else None
            if target is not None and self._is_yes_or_no(name):
                target = _yes_or_no(target, self._on_host(target, batch))
            if self._classes_only and not (_has_rows(output, batch) and self._has_classes(output, target, batch)):
                return
            if not _has_rows(output, batch):
                raise LauncherError("predictions need an output with a row for each sample; pick it with batch.outputs")
            columns |= {f"{key}.{name}" if name else key: column for key, column in columns_of(output, target).items()}
            device = output.device
        self._hold(columns)
        self._mark = kind_of(device).mark()  # behind the copies

    def _heads(self, evaluated: Evaluated, batch: MicroBatch) -> dict[str, tuple[Any, Any]]:
        """Outputs with targets of their own: of losses that pick theirs, else of `batch.outputs`, in order."""
        layout, terms = self._objective.layout, self._objective.terms
        if any(term.outputs is not None for term in terms):
            pairs = [
                (
                    term.name,
                    _one(term.outputs_of(layout, evaluated.result)),
                    _one(term.targets_of(layout, evaluated.data)),
                )
                for term in {term.source.key: term.source for term in terms}.values()
            ]
        else:
            names = [str(key) for key in layout.section.outputs or ()]
            pairs = [*zip(names, evaluated.outputs, evaluated.targets, strict=False)]
        return {
            name: (output, target)
            for name, output, target in pairs
            if _has_rows(output, batch) and _has_rows(target, batch) and _are_of_one_kind(output, target)
        }

    def _is_yes_or_no(self, head: str) -> bool:
        own = [term for term in self._objective.terms if term.source.name == head]
        return self._is_binary if not own else any(isinstance(term.function, nn.BCEWithLogitsLoss) for term in own)

    def _hold(self, columns: Mapping[str, torch.Tensor]) -> None:
        for name, column in columns.items():
            held = self._parts.setdefault(name, [])
            try:
                check_alike([*held[:1], column])
            except ValueError as error:
                raise LauncherError(f"predictions: {name}: {error}") from error
            held.append(column.to("cpu", non_blocking=True))

    def _has_classes(self, output: Any, target: torch.Tensor | None, batch: MicroBatch) -> bool:
        """Whether there is a class number for each sample, and scores of the classes or, by the loss, a logit."""
        if target is None or target.dim() != 1 or target.is_floating_point() or len(output) != len(target):
            return False
        if _classifies(self._objective):
            return bool(output.dim() == 2 or output.numel() == target.numel())
        are_scores = score_classes(output, self._on_host(target, batch))
        if not are_scores and not self.left_out:
            self.left_out = f"its outputs, {shapes(output)}, are no scores of the classes that its targets number"
        return are_scores

    def _on_host(self, target: torch.Tensor, batch: MicroBatch) -> torch.Tensor:
        """The same targets as they were before they were moved: looking at those makes nobody wait."""
        if target.device.type == "cpu" or self._objective.step is not None:
            return target
        first = next(iter(self._objective.layout.targets(batch.data)), target)
        return first if isinstance(first, torch.Tensor) and first.shape == target.shape else target

    def columns(self, coordinator: Coordinator) -> dict[str, NDArray[Any]] | None:
        """All ranks' rows in order, on every rank; None where there are none."""
        if self._mark is not None:
            self._mark.synchronize()
        own = packed({name: torch.cat(parts) for name, parts in self._parts.items()})
        read: list[dict[str, torch.Tensor]] = [share for share in map(unpacked, coordinator.gather(own)) if share]
        names = list(read[0]) if read else []
        columns = {name: torch.cat([share[name] for share in read]).numpy() for name in names}
        order = np.argsort(columns["index"]) if names else None  # of a stream, ranks have every so manieth batch
        return {name: column[order] for name, column in columns.items()} or None


def _one(parts: Any) -> Any:
    """The only one of what a loss picks; None of several."""
    values = [*parts.values()] if isinstance(parts, Mapping) else [*parts]
    return values[0] if len(values) == 1 else None


def _has_rows(part: Any, batch: MicroBatch) -> TypeGuard[torch.Tensor]:
    return isinstance(part, torch.Tensor) and part.dim() > 0 and len(part) == batch.samples


def _are_of_one_kind(output: torch.Tensor, target: torch.Tensor) -> bool:
    """Whether an output says something of a target: scores of its classes, or as many values."""
    over, shape = class_dimension(output, target), [*output.shape]
    return over is None or shape[:over] + shape[over + 1 :] == [*target.shape]


def _yes_or_no(target: torch.Tensor, on_host: torch.Tensor) -> torch.Tensor:
    """Targets of 0.0 and 1.0, one for each sample, as class numbers; others as they are."""
    is_one = target.dim() > 0 and target.numel() == len(target)
    return target.reshape(-1).long() if is_one and bool(((on_host == 0) | (on_host == 1)).all()) else target


@dataclass
class Shown:
    """What a classifier's report shows: the predictions of one set, at its last evaluation.

    Attributes:
        split: The set's.
        name: Its name.
        loader: Its samples.
        objective: The loss.
        predictions: The last.
    """

    split: str
    name: str
    loader: EvaluationLoader
    objective: Objective
    predictions: Predictions = field(init=False)

    def __post_init__(self) -> None:
        self.predictions = Predictions(self.objective, classes_only=True)

    def look(self, split: str, name: str) -> Seen:
        """What sees the batches of a set: begins again with this one, and nothing of others."""
        if (split, name) != (self.split, self.name):
            return unseen
        self.__post_init__()
        return self.predictions.see


def shown_of(objective: Objective, data: Data) -> Shown | None:
    """The test set's predictions, else the validation set's, of a classifier; None where they cannot be written."""
    split, sets = ("test", data.test) if data.test else ("validation", data.validation)
    if not sets or importlib.util.find_spec("pyarrow") is None:
        return None
    name, loader = next(iter(sets.items()))
    return Shown(split, name, loader, objective) if loader.num_samples() <= _MOST_SHOWN else None


def missing_for(objective: Objective, data: Data) -> str:
    """Why the report lacks what predictions would show, in words; empty where nothing is missing."""
    sets = data.test or data.validation
    if not sets or not (_classifies(objective) or class_names(data.train.dataset)):
        return ""
    if importlib.util.find_spec("pyarrow") is None:
        return f"{NO_MATRIX}: pyarrow is not installed; {install('report')}"
    if (samples := next(iter(sets.values())).num_samples()) > _MOST_SHOWN:
        return f"{NO_MATRIX}: {samples:,} samples are more than {_MOST_SHOWN:,}; launcher evaluate --predictions"
    return ""


def _classifies(objective: Objective) -> bool:
    return any(isinstance(term.function, nn.CrossEntropyLoss | nn.BCEWithLogitsLoss) for term in objective.terms)


def columns_of(output: torch.Tensor, target: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """The columns of a batch, each with a row for each sample.

    Args:
        output: [N, …]: logits of classes, a logit for each target, or values.
        target: [N, …]: class numbers, 0 and 1, or values; None where there is none.
    """
    chosen = _chosen(output.detach().float(), target)
    columns = chosen if target is None else {"target": target, **chosen}
    return {name: column.detach() for name, column in columns.items()}


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


def decisions(output: torch.Tensor) -> dict[str, torch.Tensor]:
    """What logits of yes or no say, one or several for each sample: 1 or 0, and how sure that is."""
    shares = output.detach().float().sigmoid()
    shares = shares.reshape(len(shares)) if shares.numel() == len(shares) else shares
    prediction = (shares > 0.5).long()
    return {"prediction": prediction, "probability": torch.where(prediction == 1, shares, 1 - shares)}


def write_predictions(path: Path, columns: dict[str, NDArray[Any]], loader: EvaluationLoader) -> None:
    """Writes them with what the data set says of each sample, such as its file.

    Parquet also has the classes' names, where the data set has them, and pictures of the worst mistakes.

    Args:
        path: `.parquet`, `.csv` or `.jsonl`; whole or not at all.
        columns: See `Predictions.columns`.
        loader: Of the set, for names and pictures.

    Raises:
        ImportError: pyarrow is missing.
        OSError: The disk is full or read-only.
    """
    numbers = columns["index"].tolist()
    if path.suffix != ".parquet":
        with output_file(path) as write:
            plain = {name: shortest_numbers(column) for name, column in columns.items()}
            write({**beside(loader.dataset, numbers), **plain})
        return
    pyarrow = needed("pyarrow", "tables", "predictions as Parquet")
    parquet = needed("pyarrow.parquet", "tables", "predictions as Parquet")
    cells = {name: _cells(column) for name, column in columns.items()}
    said = {name: cell for name, cell in beside(loader.dataset, numbers).items() if name not in cells}
    table = pyarrow.table({name: pyarrow.array(cell) for name, cell in {**cells, **said}.items()})
    if pictures := _pictures(columns, loader.dataset):
        of_rows = [pictures.get(row) for row in range(len(table))]
        table = table.append_column("picture", pyarrow.array(of_rows, type=pyarrow.binary()))
    about = {"set": loader.name.removeprefix("data.").replace(".", " ")}
    names = getattr(innermost(loader.dataset), "classes", None)
    if names is not None and "probability" in columns:
        about["classes"] = json.dumps([str(name) for name in names])
    table = table.replace_schema_metadata(about)
    with atomic_write(path) as part:
        parquet.write_table(table, part)


def beside(dataset: Any, numbers: Sequence[int]) -> Mapping[str, list[Any]]:
    """What the data set says of these samples: their files, say."""
    if not callable(getattr(innermost(dataset), "row_of", None)):
        return {}
    places = [numbered_in_whole(dataset, number) for number in numbers]
    rows = [whole.row_of(number) for whole, number in places]
    return {name: [_plain(row[name]) for row in rows] for name in rows[0]}


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | None) else str(value)


def _cells(column: NDArray[Any]) -> Any:
    return column if column.ndim == 1 else column.reshape(len(column), -1).tolist()


def _pictures(columns: dict[str, NDArray[Any]], dataset: Any) -> dict[int, bytes]:
    """PNG files of the worst mistakes by row, where samples are pictures."""
    if "loss" not in columns or columns["target"].ndim != 1 or is_stream(dataset) or gives_batches(dataset):
        return {}
    wrong = np.flatnonzero(columns["target"] != columns["prediction"])
    worst = wrong[np.argsort(-columns["loss"][wrong], kind="stable")][:_PICTURES]
    pictures = {}
    for row in worst.tolist():
        sample = sample_of(dataset, row)
        first = sample[0] if isinstance(sample, tuple | list) and len(sample) else sample
        picture = as_png(first) if isinstance(first, torch.Tensor) else None
        if picture is None:
            return {}
        pictures[row] = picture
    return pictures
