"""What a classifier takes for what: the confusion matrix and the worst mistakes, from its saved predictions.

`predictions.parquet` in a run's folder has a row for each sample: `target` and `prediction` (whole numbers or words),
and where it is known `index` (in the data set), `probability` (of the prediction), `loss` and `picture` (PNG, null
for most). Its schema's metadata may hold `set`, on which they were made, and `classes`: names, as a JSON list.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.errors import LauncherError
from launcher.recipe.inputs import unreadable
from launcher.version import install

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

PREDICTIONS_FILE = "predictions.parquet"
_MOST_MISTAKES = 24
_MOST_VALUES = 2000  # what predicts more different ones is not a classifier
_MOST_PAIRS = 20


@dataclass(frozen=True)
class Mistake:
    """A sample that was taken for another class.

    Attributes:
        target: Its class.
        prediction: What it was taken for.
        index: Its place in the data set, if it is known.
        probability: How sure the model was, 0 to 1, if it is known.
        picture: As a `data:` address, if there is one.
    """

    target: str
    prediction: str
    index: int | None
    probability: float | None
    picture: str | None


@dataclass(frozen=True)
class Mistakes:
    """What a classifier takes for what.

    Attributes:
        classes: Their names.
        matrix: How many samples of each class (rows) were taken for which (columns).
        worst: The mistakes with the largest loss, or made with the largest probability.
        of: The set's name; empty where it is not known.
    """

    classes: Sequence[str]
    matrix: npt.NDArray[np.int64]
    worst: Sequence[Mistake]
    of: str = ""

    @property
    def accuracy(self) -> float:
        """The share that was predicted correctly."""
        return float(self.matrix.trace() / max(1, self.matrix.sum()))

    def pairs(self) -> list[tuple[str, str, int]]:
        """The classes that are mistaken most often: which, for which, how often."""
        import numpy as np

        wrong = self.matrix - np.diag(np.diag(self.matrix))
        order = np.argsort(wrong, axis=None)[::-1][:_MOST_PAIRS]
        places = (np.unravel_index(place, wrong.shape) for place in order)
        return [(self.classes[i], self.classes[j], int(wrong[i, j])) for i, j in places if wrong[i, j]]


def read_mistakes(folder: Path) -> Mistakes | None:
    """What the predictions of a run show; None where there are none, or none of a classifier.

    Raises:
        LauncherError: They cannot be read.
    """
    path = folder / PREDICTIONS_FILE
    if not path.exists():
        return None
    if fault := unreadable(path):
        raise LauncherError(f"{path} {fault}")
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise LauncherError(f"{path} needs pyarrow to be read; {install('report')}") from None
    try:
        table = parquet.read_table(path)
        about = table.schema.metadata or {}
        names = json.loads(about.get(b"classes", b"[]"))
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise LauncherError(f"{path} cannot be read: {error}") from error
    if not {"target", "prediction"} <= set(table.column_names):
        return None
    mistakes = _mistakes({name: table[name] for name in table.column_names}, names)
    return replace(mistakes, of=about.get(b"set", b"").decode(errors="replace")) if mistakes is not None else None


def _mistakes(columns: Mapping[str, Any], names: Sequence[str]) -> Mistakes | None:
    import numpy as np

    targets, predictions = (columns[name].to_numpy() for name in ("target", "prediction"))
    values, places = np.unique(np.concatenate([targets, predictions]), return_inverse=True)
    rows, cells = places[: len(targets)], places[len(targets) :]
    if (size := len(values)) > _MOST_VALUES:
        return None
    matrix = np.bincount(rows * size + cells, minlength=size * size).reshape(size, size)
    classes = [_class_name(value, names) for value in values.tolist()]
    order = np.flatnonzero(rows != cells)
    for measure in ("loss", "probability"):
        if measure in columns:
            order = order[np.argsort(-columns[measure].to_numpy()[order], kind="stable")]
            break
    worst = [_mistake(int(row), columns, classes[rows[row]], classes[cells[row]]) for row in order[:_MOST_MISTAKES]]
    return Mistakes(classes, matrix, worst)


def _class_name(value: Any, names: Sequence[str]) -> str:
    return str(names[value]) if isinstance(value, int) and 0 <= value < len(names) else str(value)


def _mistake(row: int, columns: Mapping[str, Any], target: str, prediction: str) -> Mistake:
    index, probability, picture = (
        columns[name][row].as_py() if name in columns else None for name in ("index", "probability", "picture")
    )
    address = f"data:image/png;base64,{base64.b64encode(picture).decode()}" if picture else None
    return Mistake(target, prediction, index, probability, address)
