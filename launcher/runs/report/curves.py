"""The numbers of `metrics.jsonl` as columns, and what of a long column has to be drawn."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.runs.metrics import Line, read_blocks

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Column = npt.NDArray[np.float64]

Columns = Mapping[str, "Column"]  # by key; all of one length, NaN where a line has no such number
Curves = Mapping[tuple[str, str], Columns]  # by split and name of the set
_WORDS = ("split", "name")


def read_curves(path: Path) -> Curves:
    """All numbers of a `metrics.jsonl`, by split and set. Lists and words, which are no curves, are left out.

    Raises:
        LauncherError: A line other than the last is damaged.
    """
    parts: dict[tuple[str, str], list[dict[str, Column]]] = {}
    for block in read_blocks(path):
        for (split, name, keys), lines in _alike(block).items():
            parts.setdefault((split, name), []).append(_columns(keys, lines))
    return {place: _in_order(_joined(several)) for place, several in parts.items()}


def _alike(block: list[Line]) -> dict[tuple[str, str, tuple[str, ...]], list[Line]]:
    """The lines by split, set and keys: usually all train lines of a run have the same."""
    groups: dict[tuple[str, str, tuple[str, ...]], list[Line]] = {}
    for line in block:
        groups.setdefault((line.get("split", ""), line.get("name", ""), tuple(line)), []).append(line)
    return groups


def _columns(keys: tuple[str, ...], lines: list[Line]) -> dict[str, Column]:
    import numpy as np

    columns = {}
    for key, values in zip(keys, zip(*(line.values() for line in lines), strict=True), strict=True):
        if key not in _WORDS:
            try:
                column = np.array(values, np.float64)
            except (TypeError, ValueError):  # words, or lists of several lengths
                continue
            if column.ndim == 1:
                columns[key] = column
    return columns


def _joined(parts: list[dict[str, Column]]) -> dict[str, Column]:
    import numpy as np

    sizes = [len(next(iter(part.values()), ())) for part in parts]
    keys = dict.fromkeys(key for part in parts for key in part)
    return {
        key: np.concatenate([part.get(key, np.full(size, np.nan)) for part, size in zip(parts, sizes, strict=True)])
        for key in keys
    }


def _in_order(columns: dict[str, Column]) -> dict[str, Column]:
    """By step: lines with other keys than their neighbours were put aside."""
    import numpy as np

    steps = columns.get("step")
    if steps is None or not np.any(np.diff(steps) < 0):
        return columns
    order = np.argsort(steps, kind="stable")
    return {key: column[order] for key, column in columns.items()}


def thinned(values: Column, num_buckets: int) -> npt.NDArray[np.int64]:
    """Which values to draw so that a picture of `num_buckets` columns looks the same: indices, in order.

    The lowest and the highest finite value of every bucket, and the first and the last of all: no extreme is lost.

    Args:
        values: In the order they are drawn.
        num_buckets: How many pieces to cut them into.
    """
    import numpy as np

    size = len(values)
    if size <= 2 * num_buckets:
        return np.arange(size)
    width = -(-size // num_buckets)
    buckets = np.full((-(-size // width), width), np.nan)
    buckets.reshape(-1)[:size] = values
    finite, first = np.isfinite(buckets), np.arange(0, size, width)
    lowest = first + np.where(finite, buckets, np.inf).argmin(axis=1)
    highest = first + np.where(finite, buckets, -np.inf).argmax(axis=1)
    return np.unique(np.concatenate([[0], lowest, highest, [size - 1]]))


def evened(columns: Columns) -> Columns:
    """Train lines without those that cover fewer than half of the samples that lines usually do.

    An evaluation or a save ends a line early, and the mean over a step or two would be a spike that is none. Such a
    line is put together with the next, which lacks those steps, and the last of all with the one before.
    """
    import numpy as np

    if not {"seconds", "samples_per_second"} <= columns.keys() or len(columns["seconds"]) < 3:
        return columns
    seconds = columns["seconds"]
    samples = seconds * columns["samples_per_second"]
    is_short = samples < np.nanmedian(samples) / 2
    begins = np.concatenate([[True], ~is_short[:-1]])
    if is_short[-1]:
        begins[-1] = False
    if begins.all():
        return columns
    first, last = np.flatnonzero(begins), np.append(np.flatnonzero(begins)[1:], len(begins)) - 1

    def mean(values: Column, weights: Column) -> Column:
        sums: Column = np.add.reduceat(values * weights, first) / np.add.reduceat(weights, first)
        return np.where(first == last, values[first], sums)  # a line of its own stays the same to the last bit

    of_moments = {"step", "epoch", "time", "lr", "gpu_memory", "host_memory"}
    evened = {key: values[last] if key in of_moments else mean(values, samples) for key, values in columns.items()}
    by_time = {key: mean(columns[key], seconds) for key in ("samples_per_second", "data_wait") if key in columns}
    return {**evened, **by_time, "seconds": np.add.reduceat(seconds, first)}
