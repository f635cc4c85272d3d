"""The charts of a report as PNG files, for papers and slides."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from launcher.errors import UsageError
from launcher.runs.report.charts import Chart
from launcher.runs.report.page import Told, charts
from launcher.text import printable
from launcher.version import install


def draw(named: Sequence[Told], folder: Path) -> Iterator[Path]:
    """Draws every chart of the runs of a report over steps, one file each; yields each path when it is written.

    Raises:
        UsageError: matplotlib is missing, or the folder cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError(f"--png needs matplotlib, which is not installed; {install('report')}") from None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number, chart in enumerate(charts(named)):
            path = folder / f"{number:02}-{re.sub(r'[^A-Za-z0-9_.-]+', '-', chart.key)[:60]}.png"
            figure = Figure(figsize=(7, 4), dpi=150, layout="constrained")
            _draw(chart, figure.subplots(), [entry.label for entry in named])
            figure.savefig(path)
            yield path
    except OSError as error:
        raise UsageError(f"--png {folder}: {error.strerror or error}") from error


def _draw(chart: Chart, axes: Any, labels: Sequence[str]) -> None:
    for series in chart.series:
        label = series.label if len(labels) == 1 else f"{labels[series.run]} · {series.label}"
        splits = ("train", "validation", "test")
        place = splits.index(series.split) if series.split in splits else len(splits)
        order = place if len(labels) == 1 else series.run
        axes.plot(
            series.steps,
            series.values,
            label=_text(label),
            color=f"C{order}",
            linewidth=1 if series.split == "train" else 1.8,
            alpha=0.55 if series.split == "train" and len(labels) > 1 else 1,
            marker={"validation": "o", "test": "D"}.get(series.split) if len(series.steps) < 40 else None,
            markersize=4,
        )
    axes.set(title=_text(chart.title), xlabel="step")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)


def _text(words: str) -> str:
    """Words without what is a formula to matplotlib, or has no shape."""
    return printable(words).replace("$", r"\$")
