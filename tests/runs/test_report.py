"""The report, read by a real browser from files that were written as a run writes them; and where the time went."""

from __future__ import annotations

import base64
import json
import re
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from browser import Tab, browser
from places import ROOT
from worlds import TINY, in_world

from launcher.cli.main import main
from launcher.errors import LauncherError
from launcher.runs.folder import environment, write_json
from launcher.runs.metrics import MetricsFile, encode
from launcher.runs.reading import Run
from launcher.runs.report.confusion import matrix_of
from launcher.runs.report.curves import evened, read_curves, thinned
from launcher.runs.report.goodput import attempts_of
from launcher.runs.report.page import REPORT_FILE, charts, differences, page, told, write_report
from launcher.runs.report.predictions import read_mistakes
from launcher.version import __version__

BEGUN = time.time() - 7200.0
RECIPE = """\
name: digits
optimizer:
  lr: 0.001  # recipes/digits.yaml:7:12
evaluate:
  best:
    metric: accuracy
    mode: max
"""
HOSTILE = "<img src=x onerror=alert(1)>"


# ---------------------------------------------------------------------- runs without training


@dataclass
class Made:
    """A run's folder in the making; its clock is moved by hand.

    Attributes:
        folder: Where it is.
        now: Its clock, in unix time.
        step: Optimizer steps completed.
    """

    folder: Path
    lr: float = 0.001
    now: float = BEGUN
    step: int = 0
    status: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        (self.folder / "logs").mkdir(parents=True)
        (self.folder / "resolved.yaml").write_text(RECIPE.replace("0.001", str(self.lr)))
        write_json(
            self.folder / "environment.json",
            {
                "command": ["launcher", "train", "digits.yaml"],
                "host": "node7",
                "versions": {"torch": "2.13.0"},
                "git": {"commit": "0123456789abcdef", "diff": "-a\n+b\n"},
            },
        )
        self.metrics = MetricsFile(self.folder / "metrics.jsonl")

    def event(self, event: str, **details: Any) -> None:
        line = {"event": event, "step": self.step, "time": self.now, **details}
        with (self.folder / "events.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def start(self, step: int = 0, world: int = 2) -> None:
        past = self.metrics.continue_from(step)
        self.step = step
        began, self.now = self.now, self.now + 5
        self.event("resume" if step else "start", began=began, world=world, host="node7")
        if past.redone.steps:
            self.event("redone", **vars(past.redone))
        self.now += 7
        self.event("train")
        self.say("running", world=world, started=self.now)

    def say(self, state: str, **more: Any) -> None:
        self.status |= {"state": state, "step": self.step, "total_steps": 1000, "updated": self.now, "host": "node7"}
        self.status |= more
        write_json(self.folder / "status.json", self.status)

    def train(self, until: int, loss: Any = None) -> None:
        """Train lines every 10 steps, of a second each; an evaluation every 100, a save every 200."""
        while self.step < until:
            self.step += 10
            self.now += 10
            value = 2 / (1 + self.lr * self.step * 10) if loss is None else loss
            self.line("train", loss=value, lr=self.lr, samples_per_second=640.0, data_wait=0.1, seconds=10.0)
            if self.step % 100 == 0:
                self.now += 4
                self.line("validation", loss=value * 1.1, accuracy=1 - value / 3)
                self.event("evaluate", seconds=4.0)
            if self.step % 200 == 0:
                self.now += 2
                self.event("save", seconds=30.0, stall=2.0)

    def line(self, split: str, **values: Any) -> None:
        head = {"step": self.step, "epoch": self.step / 50, "split": split}
        self.metrics.write({**head, **values, "time": self.now})

    def end(self, event: str, **details: Any) -> None:
        self.event(event, **details)
        self.say({"finish": "finished", "stop": "stopped", "fail": "failed"}[event], ended=self.now)


def finished(folder: Path, lr: float = 0.001, until: int = 300) -> Made:
    """A run without accidents."""
    made = Made(folder, lr)
    made.start()
    made.train(until)
    made.end("finish")
    return made


def unlucky(folder: Path) -> Made:
    """A run that was killed, stopped, and then failed."""
    made = Made(folder)
    made.start()
    made.train(260)  # killed 60 steps after a save
    made.now += 100
    made.start(200)
    made.train(400)
    made.end("stop")
    made.now += 300
    made.start(400, world=4)
    made.train(450)
    made.end("fail", error=f"step 451: {HOSTILE}")
    return made


# ---------------------------------------------------------------------- where the time went


def test_time_is_accounted_for_to_the_second(tmp_path: Path) -> None:
    unlucky(tmp_path / "run")
    (one,) = told([Run(tmp_path / "run")])
    spent = {kind: round(seconds, 3) for kind, seconds in one.spent.seconds.items() if seconds}
    assert spent == {
        "computing": 45 * 10 * 0.9,
        "data": 45 * 10 * 0.1,
        "evaluating": 4 * 5.0 - 4.0,  # at 100, 200, 300 and 400
        "saving": 2 * 2.0,  # what training was held up by, not the 30 s of writing beside it
        "starting": 3 * 12.0,
        "redone": 6 * 10.0,
        "between": 100.0 + 300.0,
    }
    assert one.spent.redone_steps == 60
    assert one.spent.goodput == pytest.approx(405 / (450 + 16 + 4 + 36 + 60 + 400))


def test_every_start_is_told_with_its_end(tmp_path: Path) -> None:
    unlucky(tmp_path / "run")
    attempts = attempts_of(Run(tmp_path / "run"))
    assert [(one.outcome, one.first_step, one.last_step, one.world, one.redone_steps) for one in attempts] == [
        ("killed", 0, 260, 2, 60),
        ("stopped", 200, 400, 2, 0),
        ("failed", 400, 450, 4, 0),
    ]
    assert attempts[2].message == f"step 451: {HOSTILE}"
    assert attempts[0].ended - attempts[0].begun == pytest.approx(12 + 26 * 10 + 2 * 4 + 2, abs=0.01)


def test_a_run_without_events_is_one_start(tmp_path: Path) -> None:
    made = finished(tmp_path / "run")
    (made.folder / "events.jsonl").unlink()
    (attempt,) = attempts_of(Run(made.folder))
    assert (attempt.outcome, attempt.last_step) == ("finished", 300)
    (one,) = told([Run(made.folder)])
    assert one.spent.seconds["computing"] == pytest.approx(270, abs=1)


def killed_at(step: int, folder: str) -> None:
    """Trains as one rank and is killed after a step; at 0 it is not."""
    from launcher.recipe.load import load_recipe
    from launcher.run import run
    from launcher.runs.options import Options
    from launcher.world.world import World

    changes = ["launch.threads=1", "save.every=4 steps", "save.background=false", "data.validation=20% of train"]
    faults = f"kill@step:{step}" if step else None
    run(load_recipe(str(TINY), changes), World(faults=faults), Options(cpu=True, run_dir=folder, output="quiet"))


def test_a_run_that_was_really_killed_and_gone_on_with(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(AssertionError, match="died"):
        in_world(1, killed_at, 7, str(folder))
    assert (Run(folder).state, Run(folder).step) == ("dead", 6)  # it was killed before it could say 7
    assert [one.outcome for one in attempts_of(Run(folder))] == ["killed"]
    in_world(1, killed_at, 0, str(folder))
    run = Run(folder)
    total = run.total_steps
    assert total is not None
    assert (run.state, run.step) == ("finished", total)
    curves = read_curves(folder / "metrics.jsonl")
    assert curves["train", ""]["step"].tolist() == list(range(1, total + 1))  # nothing twice, nothing missing
    assert len(set(curves["validation", ""]["step"].tolist())) == len(curves["validation", ""]["step"]) > 0
    assert [(one.outcome, one.first_step) for one in attempts_of(run)] == [("killed", 0), ("finished", 4)]
    assert write_report(folder) is None
    assert "killed" in (folder / REPORT_FILE).read_text()


# ---------------------------------------------------------------------- columns


@pytest.mark.parametrize("size", [10, 1399, 1400, 1401, 100_003])
def test_a_thinned_curve_keeps_its_extremes_and_ends(size: int) -> None:
    values = np.sin(np.arange(size) / 50) + np.random.default_rng(0).normal(size=size) / 10
    values[size // 3], values[size // 2] = 77.0, -77.0
    values[-2] = np.nan
    values[size // 5] = np.inf
    kept = thinned(values, 700)
    assert len(kept) <= 1402
    assert np.all(np.diff(kept) > 0)
    assert {0, size // 3, size // 2, size - 1} <= set(kept.tolist())
    drawn = np.full(size, np.nan)
    drawn[kept] = values[kept]
    for first in range(0, size, -(-size // 700)) if size > 1400 else ():
        pieces = (each[first : first - (-size // 700)] for each in (values, drawn))
        bucket, shown = (piece[np.isfinite(piece)] for piece in pieces)
        assert (shown.min(), shown.max()) == (bucket.min(), bucket.max())


def test_columns_know_every_split_and_set_and_leave_words_out(tmp_path: Path) -> None:
    lines = [
        {"step": 1, "split": "train", "loss": 0.5, "note": "hello"},
        {"step": 2, "split": "train", "loss": "NaN"},
        {"step": 2, "split": "validation", "name": "clean", "loss": 1, "each": [0.1, 0.2]},
        {"step": 3, "split": "train", "loss": 0.25, "extra": 7},
        {"step": 4, "split": "train", "loss": "-Infinity"},
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f"{encode(line)}\n" for line in lines) + '{"step": 5, "spl')
    curves = read_curves(path)
    assert set(curves) == {("train", ""), ("validation", "clean")}
    assert set(curves["validation", "clean"]) == {"step", "loss"}
    train = curves["train", ""]
    np.testing.assert_array_equal(train["step"], [1, 2, 3, 4])
    np.testing.assert_array_equal(train["loss"], [0.5, np.nan, 0.25, -np.inf])
    np.testing.assert_array_equal(train["extra"], [np.nan, np.nan, 7, np.nan])


def test_a_long_run_is_drawn_with_few_points_and_its_spike(tmp_path: Path) -> None:
    made = finished(tmp_path / "run")
    line = encode({"step": 0, "epoch": 1.0, "split": "train", "loss": 0.5, "lr": 0.1, "time": BEGUN})
    rows = [line.replace('"step": 0', f'"step": {step}') for step in range(1, 60_001)]
    rows[40_404] = rows[40_404].replace("0.5", "999.0")
    (made.folder / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    text = page([Run(made.folder)])
    assert "999.0" in text
    assert len(text) < 500_000
    (loss, _) = charts(told([Run(made.folder)]))
    (series,) = loss.series
    assert len(series.steps) <= 1402
    assert series.steps[np.argmax(series.values)] == 40_405


# ---------------------------------------------------------------------- the page


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


def hostile(root: Path) -> list[Run]:
    """Runs whose names, metrics and predictions are all markup."""
    several = [finished(root / HOSTILE), unlucky(root / "</script><script>alert(2)</script>"[:20].replace("/", ""))]
    for made in several:
        made.line("validation", **{HOSTILE: 0.5, "</script><script>alert(3)</script>": 1.0, "__proto__": 2.0})
        made.line("train", loss=float("nan"), lr=0.1)
    (several[0].folder / "resolved.yaml").write_text(RECIPE + f"define:\n  word: '{HOSTILE}'\n")
    table = {"target": [HOSTILE, "b", "b"], "prediction": ["b", "b", HOSTILE], "picture": [b"no picture", None, None]}
    pyarrow.parquet.write_table(pyarrow.table(table), several[0].folder / "predictions.parquet")
    return [Run(made.folder) for made in several]


def opened(tab: Tab, runs: list[Run], path: Path) -> None:
    tab.requests.clear()
    tab.complaints.clear()
    path.write_text(page(runs))
    tab.open(path)


def test_the_page_opens_from_disk_and_asks_nobody_for_anything(tmp_path: Path, tab: Tab) -> None:
    opened(tab, [Run(unlucky(tmp_path / "run").folder)], tmp_path / "report.html")
    assert tab.complaints == []
    assert tab.requests == [(tmp_path / "report.html").as_uri()]
    assert tab.run("document.querySelectorAll('figure[data-chart] canvas').length") == len(
        tab.run("[...document.querySelectorAll('figure[data-chart]')].map((figure) => figure.textContent)")
    )
    assert tab.run("document.querySelector('h1 .state').textContent") == "failed"
    colours = "new Set(document.querySelector('canvas').getContext('2d').getImageData(0, 0, 400, 200).data).size"
    assert tab.run(colours) > 10  # something is drawn


def test_hostile_names_stay_text(tmp_path: Path, tab: Tab) -> None:
    opened(tab, hostile(tmp_path / "runs"), tmp_path / "report.html")
    assert tab.complaints == []
    addresses = [address for address in tab.requests if not address.startswith("data:image/png")]
    assert addresses == [(tmp_path / "report.html").as_uri()]
    assert tab.run("document.querySelectorAll('script').length") == 2
    assert tab.run("document.querySelectorAll('img:not([src^=\"data:\"])').length") == 0
    shown = tab.run("document.body.innerText")
    assert shown.count(HOSTILE) >= 4  # the run, the metric, the recipe's value, the class
    assert "</script><script>alert(3)</script>" in shown


def test_what_is_clicked_is_redrawn(tmp_path: Path, tab: Tab) -> None:
    runs = [Run(finished(tmp_path / name, lr).folder) for name, lr in (("slow", 0.001), ("fast", 0.01))]
    opened(tab, runs, tmp_path / "report.html")
    legend = "document.querySelector('figure[data-chart] .u-legend').textContent"
    assert tab.run(legend).startswith("step")
    for control in ("[value=epoch]", "[value=seconds]", "[name=log]"):
        tab.run(f"document.querySelector('.controls {control}').click()")
        tab.settle()
    assert tab.run(legend).startswith("time")
    tab.run(
        "(() => { const range = document.querySelector('[name=smooth]'); range.value = 0.9;"
        "range.dispatchEvent(new Event('input', { bubbles: true })); })()"
    )
    assert "lr=0.001" in tab.run(legend)
    tab.run("[...document.querySelectorAll('[data-run]')][1].click()")
    tab.settle()
    assert "lr=0.001" not in tab.run(legend)
    assert "lr=0.01" in tab.run(legend)
    tab.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    tab.settle()
    tab.ask("Emulation.setEmulatedMedia", features=[])
    assert tab.complaints == []


def test_runs_are_ranked_by_what_decides(tmp_path: Path, tab: Tab) -> None:
    runs = [Run(finished(tmp_path / name, lr).folder) for name, lr in (("slow", 0.001), ("fast", 0.01))]
    opened(tab, runs, tmp_path / "report.html")
    rows = tab.run("[...document.querySelectorAll('.ranking tr')].slice(1).map((row) => row.innerText)")
    assert [row.split()[:2] for row in rows] == [["1", "lr=0.01"], ["2", "lr=0.001"]]
    assert differences(told(runs)) == [("optimizer.lr", ["0.01", "0.001"])]


def test_a_report_of_almost_nothing_is_a_page(tmp_path: Path, tab: Tab) -> None:
    (tmp_path / "run").mkdir()
    write_json(tmp_path / "run" / "status.json", {"state": "failed"})
    opened(tab, [Run(tmp_path / "run")], tmp_path / "report.html")
    assert tab.complaints == []
    assert tab.run("document.querySelector('h1').innerText").split() == ["run", "failed"]


# ---------------------------------------------------------------------- predictions


def write_predictions(folder: Path, columns: dict[str, Any], classes: list[str] | None = None) -> None:
    table = pyarrow.table(columns)
    if classes:
        table = table.replace_schema_metadata({"classes": json.dumps(classes)})
    pyarrow.parquet.write_table(table, folder / "predictions.parquet")


def test_predictions_become_a_matrix_and_the_worst_mistakes(tmp_path: Path) -> None:
    columns = {
        "index": [10, 11, 12, 13, 14],
        "target": [0, 0, 1, 2, 2],
        "prediction": [0, 1, 1, 0, 1],
        "loss": [0.1, 2.0, 0.1, 9.0, 3.0],
        "probability": [0.9, 0.8, 0.9, 0.99, 0.7],
        "picture": pyarrow.array([None, None, None, b"png", None], pyarrow.binary()),
    }
    write_predictions(tmp_path, columns, ["cat", "dog", "cow"])
    found = read_mistakes(tmp_path)
    assert found is not None
    assert found.matrix.tolist() == [[1, 1, 0], [0, 1, 0], [1, 1, 0]]
    assert found.accuracy == pytest.approx(2 / 5)
    assert [(one.index, one.target, one.prediction) for one in found.worst] == [
        (13, "cow", "cat"),
        (14, "cow", "dog"),
        (11, "cat", "dog"),
    ]
    assert found.worst[0].picture == "data:image/png;base64,cG5n"


@pytest.mark.parametrize(("classes", "is_numbered"), [(30, True), (31, False), (100, False)])
def test_a_matrix_is_drawn_up_to_a_hundred_classes(tmp_path: Path, classes: int, is_numbered: bool) -> None:
    names = [f"class {number} of {'many ' * 6}" for number in range(classes)]
    write_predictions(tmp_path, {"target": [*range(classes), 7, 7], "prediction": [*range(classes), 8, 8]}, names)
    mistakes = read_mistakes(tmp_path)
    assert mistakes is not None
    matrix = matrix_of(mistakes)
    assert matrix is not None
    assert matrix.is_numbered == is_numbered
    wrong = [cell for cell in matrix.cells if not cell.is_right]
    assert [(cell.row, cell.column, cell.count, round(cell.share, 3)) for cell in wrong] == [(7, 8, 2, 0.667)]
    assert len(matrix.cells) == classes + 1
    assert matrix.size >= matrix.font  # a row's name has room


def test_more_classes_are_told_by_pairs(tmp_path: Path) -> None:
    write_predictions(tmp_path, {"target": [*range(101), 7, 7], "prediction": [*range(101), 8, 8]})
    mistakes = read_mistakes(tmp_path)
    assert mistakes is not None
    assert matrix_of(mistakes) is None
    assert mistakes.pairs() == [("7", "8", 2)]


# ---------------------------------------------------------------------- how it looks


def with_predictions(made: Made, classes: int = 10) -> Run:
    numbers = [number % classes for number in range(5 * classes)]
    columns = {"target": numbers, "prediction": [*numbers[:-1], 0], "loss": [0.1] * len(numbers)}
    write_predictions(made.folder, columns, [f"a class called {number}" for number in range(classes)])
    return Run(made.folder)


def pages_of(tab: Tab) -> int:
    printed = tab.ask("Page.printToPDF", printBackground=True, paperWidth=8.27, paperHeight=11.69)
    return len(re.findall(rb"/Type\s*/Page\b(?!s)", base64.b64decode(printed["data"])))


@pytest.mark.parametrize(("classes", "pages"), [(10, 2), (100, 4)])
def test_one_run_fits_every_screen_and_two_sheets_of_paper(tmp_path: Path, tab: Tab, classes: int, pages: int) -> None:
    run = with_predictions(finished(tmp_path / "run"), classes)
    opened(tab, [run], tmp_path / "report.html")
    for width in (390, 820, 1280):
        tab.open(tmp_path / "report.html", width)
        assert tab.run(OVERFLOW) <= 0, width
    assert tab.run("document.querySelectorAll('svg.confusion rect').length") == classes + 2  # a mistake, the ground
    assert pages_of(tab) <= pages
    assert tab.run("document.documentElement.className") == ""  # back on the screen
    assert tab.complaints == []


OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
CUT = """[...document.querySelectorAll('.u-legend')].filter((one) =>
  one.scrollHeight > one.clientHeight + 1 || one.scrollWidth > one.clientWidth + 1).length"""


def test_several_runs_fit_every_screen_and_no_legend_is_cut(tmp_path: Path, tab: Tab) -> None:
    runs = [with_predictions(finished(tmp_path / str(number), lr=0.001 * (number + 1))) for number in range(9)]
    opened(tab, runs, tmp_path / "report.html")
    for width in (390, 820, 1280):
        tab.open(tmp_path / "report.html", width)
        assert (tab.run(OVERFLOW), tab.run(CUT)) == (0, 0), width
        names = "[...document.querySelectorAll('.ranking label')].map((label) => label.clientWidth)"
        assert min(tab.run(names)) >= 120  # and does not break after each letter
    entries = "[...document.querySelectorAll('figure .u-legend')].map((one) => one.innerText.match(/lr=/g).length)"
    assert set(tab.run(entries)) == {9}  # each run once
    assert pages_of(tab) <= 5


def test_paper_is_white_whatever_the_screen_is(tmp_path: Path, tab: Tab) -> None:
    opened(tab, [Run(finished(tmp_path / "run").folder)], tmp_path / "report.html")
    tab.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    background = "getComputedStyle(document.body).backgroundColor"
    assert tab.run(background) == "rgb(20, 23, 27)"
    tab.run("dispatchEvent(new Event('beforeprint'))")
    assert tab.run(background) == "rgb(255, 255, 255)"
    tab.run("dispatchEvent(new Event('afterprint'))")
    assert tab.run(background) == "rgb(20, 23, 27)"
    tab.ask("Emulation.setEmulatedMedia", features=[])


def test_a_short_line_is_no_dip_in_the_curve() -> None:
    """A line of one step of 3 samples, cut by an evaluation, is drawn with the nine steps behind it."""
    columns = {
        "step": np.array([10.0, 20, 21, 30, 40, 41]),
        "loss": np.array([2.0, 1.0, 0.0, 0.9, 0.8, 0.1]),
        "lr": np.array([6.0, 5, 4, 3, 2, 1]),
        "seconds": np.array([10.0, 10, 1, 9, 10, 1]),
        "samples_per_second": np.array([64.0, 64, 3, 64, 64, 3]),
    }
    drawn = {key: values.tolist() for key, values in evened(columns).items()}
    assert drawn["step"] == [10, 20, 30, 41]
    assert drawn["loss"] == pytest.approx([2.0, 1.0, (3 * 0.0 + 576 * 0.9) / 579, (640 * 0.8 + 3 * 0.1) / 643])
    assert drawn["lr"] == [6, 5, 3, 1]
    assert drawn["samples_per_second"] == pytest.approx([64, 64, 57.9, 643 / 11])
    assert drawn["seconds"] == [10, 10, 10, 11]
    even = {key: values[:2] for key, values in columns.items()}
    assert evened(even) is even


def test_installing_is_no_part_of_a_run() -> None:
    """A shell installs for a while, and becomes the process that trains."""
    code = "import psutil; from launcher.world.began import BEGAN; print(BEGAN - psutil.Process().create_time())"
    command = f"sleep 1; exec {sys.executable} -c '{code}'"
    ended = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True, cwd=ROOT)
    assert float(ended.stdout) >= 0.9


def test_a_page_tells_the_launcher_s_version_and_the_machine(tmp_path: Path) -> None:
    made = finished(tmp_path / "run")
    write_json(made.folder / "environment.json", {**environment({}), "directory": "/tmp"})
    shown = page([Run(made.folder)])
    assert f"launcher {__version__}" in shown
    assert f"<th>cpu</th><td>{environment({})['cpu_model']}" in shown


def test_a_regression_has_no_matrix_and_damaged_predictions_are_said(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).normal(size=3000)
    write_predictions(tmp_path, {"target": numbers, "prediction": numbers + 1})
    assert read_mistakes(tmp_path) is None
    (tmp_path / "predictions.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(LauncherError, match="cannot be read"):
        read_mistakes(tmp_path)
    made = finished(tmp_path / "run")
    (made.folder / "predictions.parquet").write_bytes(b"PAR1 and no more")
    assert "predictions.parquet cannot be read" in page([Run(made.folder)])


# ---------------------------------------------------------------------- the command


def test_runs_of_several_recipes_are_told_apart_by_their_names(tmp_path: Path) -> None:
    runs = []
    for name in ("digits", "text"):
        for lr in (0.1, 0.2):
            run = finished(tmp_path / f"{name}-{lr}", lr).folder
            resolved = run / "resolved.yaml"
            resolved.write_text(f"name: {name}\n" + re.sub(r"^name:.*\n", "", resolved.read_text(), flags=re.MULTILINE))
            runs.append(Run(run))
    assert sorted(entry.label for entry in told(runs)) == [
        "digits lr=0.1",
        "digits lr=0.2",
        "text lr=0.1",
        "text lr=0.2",
    ]


def test_the_command_writes_a_page_and_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = finished(tmp_path / "runs" / "one")
    assert main(["report", str(made.folder), "--png", str(tmp_path / "png")]) == 0
    paths = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert paths[0] == made.folder / REPORT_FILE
    assert [path.name for path in paths[1:3]] == ["00-loss.png", "01-accuracy.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths[1:])
    finished(tmp_path / "runs" / "two")
    assert main(["report", str(tmp_path / "runs"), "--to", str(tmp_path / "both.html")]) == 0
    assert "2 runs" in (tmp_path / "both.html").read_text()


def test_the_command_overwrites_its_own_page_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = finished(tmp_path / "run")
    shown: list[str] = []
    monkeypatch.setattr("webbrowser.open", shown.append)
    mine = tmp_path / "mine.html"
    mine.write_text("<html>my own</html>")
    assert main(["report", str(made.folder), "--to", str(mine)]) == 2
    assert re.search("mine.html is not a report .*--to", capsys.readouterr().err)
    assert mine.read_text() == "<html>my own</html>"
    for _ in range(2):
        assert main(["report", str(made.folder)]) == 0
    assert not shown
    assert main(["report", str(made.folder), "--open"]) == 0
    assert shown == [(made.folder / "report.html").resolve().as_uri()]


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_what_is_no_run_is_said_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["report", str(tmp_path / name)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_million_lines_are_reported_in_under_ten_seconds(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text(json.dumps({"state": "finished", "step": 10_000_000, "started": 1e9}))
    with (tmp_path / "metrics.jsonl").open("w") as file:
        file.writelines(
            f'{{"step": {number}0, "epoch": {number / 470:.6f}, "split": "train", "loss": {2 / number**0.5:.17g}, '
            f'"lr": 0.001, "grad_norm": {number % 997 / 997:.17g}, "samples_per_second": {number % 89}.25, '
            f'"data_wait": 0.0123, "seconds": 0.1, "host_memory": 512000000, "time": {1e9 + number / 10:.3f}}}\n'
            for number in range(1, 1_000_001)
        )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "launcher", "report", str(tmp_path)], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (tmp_path / "report.html").stat().st_size < 2e6
    # the issue's own bound; other processes on the machine do not count
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 10


def test_a_report_that_fails_fails_no_run(tmp_path: Path) -> None:
    made = finished(tmp_path / "run")
    (made.folder / "metrics.jsonl").write_text('{"step": 1}\nnot json\n{"step": 2}\n')
    assert "metrics.jsonl:2" in str(write_report(made.folder))
