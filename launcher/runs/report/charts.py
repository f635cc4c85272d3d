"""What a report draws: charts of one or several runs, as plain numbers, for the page and for pictures alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from launcher.runs.report.curves import Columns, Curves, evened, thinned

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

NUM_BUCKETS = 700  # a curve is drawn with up to twice as many points
_NO_CHARTS = ("step", "epoch", "time", "seconds")
_TITLES = {
    "lr": "learning rate",
    "grad_norm": "gradient norm",
    "samples_per_second": "samples per second",
    "data_wait": "waiting for data, share of time",
    "gpu_memory": "GPU memory, GiB",
    "host_memory": "host memory of rank 0, GiB",
}
_OF_THE_MACHINE = ("samples_per_second", "data_wait", "gpu_memory", "host_memory")
_UNITS = {"gpu_memory": 2.0**30, "host_memory": 2.0**30}


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Attributes:
        run: Which run, from 0.
        label: What tells it from the chart's other lines of the run: `train`, `validation clean`.
        split: `train`, `validation` or `test`.
        steps: Optimizer steps completed.
        seconds: Time since the run was started, pauses included.
        values: As many; NaN where there is none.
        num_not_finite: How many values of the whole line are no finite numbers.
    """

    run: int
    label: str
    split: str
    steps: npt.NDArray[np.float64]
    seconds: npt.NDArray[np.float64]
    values: npt.NDArray[np.float64]
    num_not_finite: int


@dataclass(frozen=True)
class Chart:
    """Values over steps.

    Attributes:
        key: As in `metrics.jsonl`.
        series: Its lines; one for each run and split that has the key.
    """

    key: str
    series: Sequence[Series]

    @property
    def title(self) -> str:
        """What is drawn, with its unit."""
        return _TITLES.get(self.key, self.key)

    @property
    def is_about_learning(self) -> bool:
        """Whether it shows what was learned and how, not what the machine did."""
        return self.key not in _OF_THE_MACHINE


def charts_of(runs: Sequence[Curves], starts: Sequence[float | None]) -> list[Chart]:
    """The charts of several runs, the loss first, then metrics, then what the machine did.

    Args:
        runs: What was measured.
        starts: When each was started, in unix time.
    """
    keys = sorted(_keys(runs), key=_place)
    charts = (Chart(key, tuple(_series(key, runs, starts))) for key in keys)
    return [chart for chart in charts if chart.series]


def _keys(runs: Sequence[Curves]) -> dict[str, None]:
    return {key: None for curves in runs for columns in curves.values() for key in columns if key not in _NO_CHARTS}


def _place(key: str) -> tuple[int, str]:
    if key == "loss":
        return 0, ""
    return (2, f"{list(_TITLES).index(key)}") if key in _TITLES else (1, key)


def _series(key: str, runs: Sequence[Curves], starts: Sequence[float | None]) -> Iterator[Series]:
    import numpy as np

    for number, (curves, start) in enumerate(zip(runs, starts, strict=True)):
        for (split, name), columns in curves.items():
            if key in columns and "step" in columns:
                drawn = evened(columns) if split == "train" else columns
                broken = int((~np.isfinite(columns[key])).sum())
                yield _line(key, drawn, number, split, f"{split} {name}".strip(), start, broken)


def _line(
    key: str, columns: Columns, run: int, split: str, label: str, start: float | None, num_not_finite: int
) -> Series:
    import numpy as np

    values = columns[key] / _UNITS.get(key, 1.0)
    kept = thinned(values, NUM_BUCKETS)
    steps = columns["step"][kept]
    times = columns["time"][kept] if "time" in columns else np.full(len(kept), np.nan)
    seconds = times - (start if start is not None else times[0])
    return Series(run, label, split, steps, seconds, values[kept], num_not_finite)


def steps_per_epoch(curves: Curves) -> float | None:
    """How many optimizer steps a pass over the data has; None where no line says."""
    import numpy as np

    for columns in curves.values():
        if "epoch" in columns and (fits := np.flatnonzero(columns["epoch"] > 0)).size:
            last = fits[-1]
            return float(columns["step"][last] / columns["epoch"][last])
    return None
