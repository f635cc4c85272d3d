"""What is shown of a sweep: the ranking, the table, what comes out of it for other programs, the page in a browser."""

from __future__ import annotations

import csv
import io
import json
import math
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet
import pytest
import yaml
from browser import Tab, browser
from places import ROOT
from simulated import Timing, settings, simulate, with_runs

from launcher.cli.main import main
from launcher.errors import EXIT_USAGE, UsageError
from launcher.recipe.load import load_recipe
from launcher.recipe.show import resolved
from launcher.runs import naming
from launcher.runs.naming import sweep_called
from launcher.runs.reading import find_runs
from launcher.sweep import record as lines
from launcher.sweep.best import best_recipe, rows, table, where_to_save
from launcher.sweep.importances import importances
from launcher.sweep.known import Known
from launcher.sweep.metric import Metric
from launcher.sweep.naming import named_run, saved_place
from launcher.sweep.page import sweep_page
from launcher.sweep.proposals import draw
from launcher.sweep.ranking import baseline_values, leader, ranked, verdict
from launcher.sweep.record import Record, Settings, create
from launcher.sweep.retention import best_trials
from launcher.sweep.space import Space, read_space

WORDS = (
    "lr=1e-4..1e-1:log",
    "model.width=16..256:x2",
    "optimizer={_target_: AdamW},{_target_: SGD, momentum: 0.5..0.9}",
)
SPACE = read_space({}, WORDS)
RUNGS = (25, 50, 100)
RECIPE = str(ROOT / "recipes" / "digits_mlp.yaml")
HOSTILE = "</script><script>alert(1)</script>"


def curve(trial: int, parameters: Mapping[str, int | float] | None, rung: int) -> float:
    own = random.Random(f"{sorted((parameters or {}).items())}/{trial}")
    return (parameters or {}).get("optimizer", 0) + 0.1 * own.random()


def swept(folder: Path, asked: Settings, space: Space = SPACE, **timing: object) -> Record:
    record = simulate(folder, replace(asked, words=space.words), space, curve, Timing(**timing))  # type: ignore[arg-type]
    with_runs(record, space, curve)
    return record


def with_values(folder: Path, values: list[list[float]], mode: str = "max") -> Record:
    """A sweep whose points gave these, a list of its seeds' each."""
    repeats = len(values[0])
    asked = settings(trials=len(values) * repeats, seeds=tuple(range(repeats)), metric=Metric("accuracy", mode))
    record = create(folder, asked)
    with record.locked():
        for number, value in enumerate(value for point in values for value in point):
            record.append(lines.proposal(number, {"a": number // repeats}), lines.rung(number, 0, value, 100))
    return record


def test_repeats_are_ranked_by_their_mean_and_a_lead_within_noise_is_said(tmp_path: Path) -> None:
    record = with_values(tmp_path / "near", [[0.90, 0.92], [0.91, 0.93], [0.80, 0.82], [float("nan"), 0.99]])
    entries = ranked(record)
    assert [(entry.point, entry.place) for entry in entries] == [(1, 1), (0, 2), (2, 3), (3, None)]
    best = leader(entries)
    assert best is not None
    assert best.value == pytest.approx(0.92)
    assert best.error == pytest.approx(0.01)
    sentence = verdict(entries)
    assert sentence is not None
    assert sentence.startswith("The lead is within noise: 0002–0003 is 0.01000 ahead of 0000–0001 (baseline)")
    far = with_values(tmp_path / "far", [[0.90, 0.91], [0.98, 0.99], [0.80, 0.82]])
    assert verdict(ranked(far)) is None
    once = with_values(tmp_path / "once", [[0.90], [0.91]])
    assert verdict(ranked(once)) is None


@pytest.mark.parametrize(("mode", "order"), [("max", [3, 1]), ("min", [1, 3])])
def test_what_is_not_finite_has_no_place(tmp_path: Path, mode: str, order: list[int]) -> None:
    record = with_values(tmp_path / "sweep", [[math.inf], [0.2], [-math.inf], [0.3], [math.nan]], mode)
    entries = ranked(record)
    assert [entry.point for entry in entries if entry.place] == order
    assert best_trials(record) == {order[0]}
    assert Known({}, record.settings.metric.rank(math.inf)) == Known({}, math.inf), "as one that failed"


def test_a_baselines_values_are_told_whatever_they_are(tmp_path: Path) -> None:
    space = read_space({}, ["model.hidden=[8],[16]", "model.more={a: 1},{a: 2}", "optimizer=AdamW,SGD", "c.d=1,2"])
    record = with_values(tmp_path / "sweep", [[0.1]])
    run = record.folder_of(0)
    run.mkdir(parents=True)
    told = "model: {hidden: [256, 128], more: {a: 3, b: x}}\noptimizer: {_target_: parts.py:Own, lr: 1}\nc: {d: 7}\n"
    (run / "resolved.yaml").write_text(told)
    assert baseline_values(record, space) == {
        "model.hidden": "[256, 128]",
        "model.more": "{a: 3, b: x}",
        "optimizer": "Own",
        "c.d": "7",
    }


def test_a_sweep_is_named_as_a_run_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    first = swept(Path("runs/faked-sweep/all"), settings(trials=4, created=time.time() - 60))
    best = leader(ranked(first))
    assert best is not None
    trial = first.folder_of(best.trials[0].number)
    for name in ("runs/faked-sweep/all", "faked-sweep/all", "faked-sweep", "faked-s", "latest", "faked-sweep@1"):
        assert saved_place(name) == named_run(name).folder == trial, name
        assert naming.named_sweep(name) == sweep_called(name) == first.folder
        assert len(naming.named_runs([name])) == 4
        assert main(["runs", name, "--json"]) == 0
        assert len(capsys.readouterr().out.splitlines()) == 4
        assert main(["sweep", name, "--table", "json"]) == 0
        assert len(capsys.readouterr().out.splitlines()) == 4
        assert main(["resume", name]) == EXIT_USAGE
        assert f"`launcher sweep {first.folder}` resumes it" in capsys.readouterr().err
        assert main(["show", name]) == 0
        shown = capsys.readouterr().out
        assert all(line in shown for line in (trial / "resolved.yaml").read_text().splitlines())
        assert main(["report", name]) == 0
        assert capsys.readouterr().out == f"{first.folder}/report.html\n"
    swept(Path("runs/faked-sweep/two"), settings(trials=3, created=time.time()))
    assert naming.place_of("faked-sweep").folder == naming.place_of("latest").folder == Path("runs/faked-sweep/two")
    assert naming.named_sweep("faked-sweep") is None
    assert sweep_called("faked-sweep@1") == first.folder
    assert naming.runs() == [], "trials are a sweep's own"
    assert main(["runs", "faked-sweep"]) == 0
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        "sweep runs/faked-sweep/all",
        "sweep runs/faked-sweep/two",
    ]
    assert sweep_called(RECIPE) is None


def test_what_has_come_further_is_before_what_was_left_behind(tmp_path: Path) -> None:
    record = swept(tmp_path / "sweep", settings(method="halving", trials=16, rungs=RUNGS), slots=3)
    entries = ranked(record)
    assert [entry.rung for entry in entries] == [2] * 4 + [1] * 4 + [0] * 8
    assert [entry.place for entry in entries] == list(range(1, 17))
    values = [entry.value or 0.0 for entry in entries]
    assert values[:4] == sorted(values[:4])


def test_the_tables_hold_every_trial_with_its_values(tmp_path: Path) -> None:
    record = swept(tmp_path / "sweep", settings(trials=12, seeds=(3, 4)), failing={5: 0})
    told = rows(record, SPACE)
    assert len(told) == 12
    assert told[5]["failure"] == "it failed"
    assert {row["seed"] for row in told} == {3, 4}
    assert all(isinstance(row["lr"], float) for row in told[2:])
    read = list(csv.DictReader(io.StringIO(table(record, SPACE, "csv").decode())))
    assert [float(row["result"]) for row in read if row["result"]] == [row["result"] for row in told if row["result"]]
    assert [json.loads(line)["trial"] for line in table(record, SPACE, "json").splitlines()] == list(range(12))
    columns = pyarrow.parquet.read_table(io.BytesIO(table(record, SPACE, "parquet"))).to_pydict()
    assert columns["model.width"] == [row["model.width"] for row in told]


@pytest.mark.parametrize(
    ("words", "remove"),
    [
        (["optimizer.lr=1e-4..1e-2:log", "model.hidden=[64],[256,256]", "seed=0..1"], ()),
        (["optimizer={_target_: AdamW, lr: 1e-3},{_target_: SGD, lr: 0.1, momentum: 0.5..0.9}"], ()),
        (["model.hidden.0=32,64", "train.epochs=3"], ()),
        (["model.hidden=[32],[64]"], ("scheduler",)),
    ],
)
def test_the_best_is_a_recipe(tmp_path: Path, words: list[str], remove: tuple[str, ...]) -> None:
    space = read_space(RECIPE, words)
    repeats = max(1, len(space.seeds))
    asked = settings(
        recipe=RECIPE,
        words=space.words,
        trials=4 * repeats,
        seeds=space.seeds,
        remove=remove,
        metric=Metric("loss", "min"),
    )
    record = create(tmp_path / "sweep", asked)
    with record.locked():
        for number in range(2 * repeats):
            point = None if number < repeats else draw(space, 0, 1)
            record.append(lines.proposal(number, point), lines.rung(number, 0, 1.0 - number, 100))
    text = best_recipe(record, space, ROOT)
    assert text.startswith("# validation/loss ")
    assert "1st of 2 points" in text.splitlines()[0]
    (best := tmp_path / "best.yaml").write_text(
        text.replace("base: recipes", f"base: {ROOT}/recipes"), encoding="utf-8"
    )
    wanted = load_recipe(RECIPE, space.overrides(draw(space, 0, 1)), remove)
    read = load_recipe(yaml.safe_load(best.read_text(encoding="utf-8")) if remove else best)
    assert resolved(read) == resolved(wanted)


def test_a_printed_best_names_its_base_from_where_it_goes(
    tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    space = read_space(RECIPE, ["optimizer.lr=1e-4..1e-2:log"])
    asked = settings(recipe=RECIPE, words=space.words, trials=4, metric=Metric("loss", "min"))
    record = create(tmp_path / "sweep", asked)
    with record.locked():
        record.append(lines.proposal(0, draw(space, 0, 1)), lines.rung(0, 0, 1.0, 100))
    command = ["sweep", str(record.folder), "--best"]
    (tmp_path / "deeper").mkdir()
    with (tmp_path / "deeper" / "best.yaml").open("wb") as file:
        started = [sys.executable, "-m", "launcher", *command]
        assert subprocess.run(started, stdout=file, check=False).returncode == 0
        piped = subprocess.run(started, stdout=subprocess.PIPE, check=True).stdout
    assert not Path(yaml.safe_load((tmp_path / "deeper" / "best.yaml").read_text())["base"]).is_absolute()
    assert Path(yaml.safe_load(piped)["base"]).is_absolute()
    capsysbinary.readouterr()
    assert main([*command, "--whole"]) == 0
    (tmp_path / "whole.yaml").write_bytes(capsysbinary.readouterr().out)
    assert "base" not in yaml.safe_load((tmp_path / "whole.yaml").read_text())
    whole, best = load_recipe(tmp_path / "whole.yaml"), load_recipe(tmp_path / "deeper" / "best.yaml")
    assert {**resolved(whole), "sweep": None} == {**resolved(best), "sweep": None}
    assert main(["sweep", RECIPE, "--whole"]) == EXIT_USAGE


def test_a_printed_best_that_calls_files_beside_it_says_where_they_are(tmp_path: Path) -> None:
    asked, here = settings(recipe=str(tmp_path / "r.yaml")), tmp_path / "deeper"
    own = "base: ../r.yaml\nmodel: {_target_: parts/my.py:Net}\n"
    assert where_to_save(own, asked, tmp_path) is None
    for folder in (here, None):
        note = where_to_save(own, asked, folder)
        assert note == f"it calls parts/my.py, which is looked for beside it: save it in {tmp_path}"
    assert where_to_save("base: ../r.yaml\nmodel: {width: 3}  # my.py:7:3\n", asked, here) is None


def test_a_sweep_without_a_value_has_no_best(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no trial has been evaluated yet"):
        best_recipe(create(tmp_path / "sweep", settings()), SPACE)


def test_importances_tell_what_decides() -> None:
    space = read_space({}, ["a=0.0..1.0", "b=0.0..1.0", "c=x,y,z", "d=1e-5..1e-1:log"])
    points = [draw(space, 0, number) for number in range(1, 60)]
    known = [Known(point, abs(point["a"] - 0.3) + 0.2 * (point["c"] == 1)) for point in points]
    shares = importances(space, known)
    assert shares is not None
    assert list(shares)[:2] == ["a", "c"]
    assert sum(shares.values()) == pytest.approx(1.0)
    assert importances(space, known[:7]) is None


def test_runs_shows_a_sweep_the_best_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = swept(tmp_path / "sweep", settings(method="halving", trials=8, rungs=RUNGS))
    assert main(["runs", str(record.folder)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert "halving, 8 trials: 2 finished, 6 paused" in shown[0]
    assert " ".join(shown[3].split()) == "TRIAL lr width optimizer momentum LOSS RUNG STATE STEP LEFT"
    best = ranked(record)[0]
    assert shown[4].split()[:2] == ["1", f"{best.trials[0].number:04}"]
    assert main(["runs", str(record.folder), "--json"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 8


# ---------------------------------------------------------------------- the page


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


def show(tab: Tab, page: Path, width: int = 1280) -> None:
    tab.requests.clear()
    tab.complaints.clear()
    tab.open(page, width)
    assert tab.complaints == []
    assert tab.requests == [page.resolve().as_uri()]


@pytest.mark.parametrize(
    "asked",
    [
        settings(trials=12),
        settings(method="halving", trials=16, rungs=RUNGS),
        settings(method="tpe", draws="tpe", trials=12, seeds=(0, 1, 2), lag=0),
    ],
    ids=lambda asked: asked.method,
)
def test_the_page_is_drawn_at_every_width(tmp_path: Path, tab: Tab, asked: Settings) -> None:
    record = swept(tmp_path / "sweep", asked, failing={5: 0})
    assert main(["report", str(record.folder)]) == 0
    for width in (1280, 800, 380):
        show(tab, record.folder / "report.html", width)
        assert tab.run("document.documentElement.scrollWidth") <= width
        drawings = (
            "[...document.querySelectorAll('.drawing')].map((one) => one.querySelectorAll('path, circle').length)"
        )
        assert all(tab.run(drawings))
    points = len(ranked(record))
    assert tab.run("document.querySelectorAll('#ranking tbody tr').length") == points
    dark = {"name": "prefers-color-scheme", "value": "dark"}
    tab.ask("Emulation.setEmulatedMedia", features=[dark])
    ground = "getComputedStyle(document.body).backgroundColor"
    on_screen = tab.run(ground)
    on_paper = tab.run(f"(dispatchEvent(new Event('beforeprint')), {ground})")
    assert (on_paper, tab.run(f"(dispatchEvent(new Event('afterprint')), {ground})")) == (
        "rgb(255, 255, 255)",
        on_screen,
    )
    assert on_screen != on_paper
    tab.ask("Emulation.setEmulatedMedia", features=[])
    assert ("Proposals were made from whatever was known" in tab.run("document.body.textContent")) == (asked.lag == 0)


def test_the_table_is_searched_and_sorted_and_lines_are_filtered(tmp_path: Path, tab: Tab) -> None:
    record = swept(tmp_path / "sweep", settings(trials=16))
    assert main(["report", str(record.folder)]) == 0
    show(tab, record.folder / "report.html")
    tab.run("(search.value = 'sgd', search.dispatchEvent(new Event('input')))")
    of_sgd = sum((trial.parameters or {}).get("optimizer") == 1 for trial in record.trials.values())
    assert tab.run("[...document.querySelectorAll('#ranking tbody tr')].filter((row) => !row.hidden).length") == of_sgd
    tab.run("[...document.querySelectorAll('[data-sort]')].find((head) => head.textContent === 'lr').click()")
    shown = tab.run(
        "[...document.querySelectorAll('#ranking tbody tr')].map((row) => Number(row.cells[2].textContent))"
    )
    assert [value for value in shown if value] == sorted(value for value in shown if value)
    place = "document.querySelectorAll('#parallel .catch')[2].getBoundingClientRect()"
    x, top, height = (tab.run(f"{place}.{part}") for part in ("x", "y", "height"))
    tab.run("window.scrollTo(0, 0)")
    for kind, y in (
        ("mousePressed", top + height - 0.5),
        ("mouseMoved", top + height * 0.6),
        ("mouseReleased", top + height * 0.6),
    ):
        tab.ask(
            "Input.dispatchMouseEvent",
            type=kind,
            x=x + 9,
            y=y,
            button="left",
            buttons=1,
            clickCount=1,
        )
    assert tab.run("document.getElementById('parallel-note').textContent") == f"{15 - of_sgd} of 16 points"
    assert tab.run("document.querySelectorAll('#parallel .line.off').length") > 0


def test_a_hostile_sweep_is_text(tmp_path: Path, tab: Tab) -> None:
    space = read_space({}, [f'a="{HOSTILE}","b"', "c=1,2"])
    record = create(tmp_path / "sweep", settings(trials=3, words=space.words, metric=Metric(HOSTILE, "min")))
    with record.locked():
        for number in range(2):
            record.append(lines.proposal(number, {"a": number, "c": 0}), lines.rung(number, 0, number + 1.0, 100))
        record.append(lines.proposal(2, {"a": 1, "c": 1}), lines.failure(2, HOSTILE, is_final=True))
    with_runs(record, space, curve)
    (tmp_path / "page.html").write_text(sweep_page(record, space), encoding="utf-8")
    show(tab, tmp_path / "page.html")
    assert HOSTILE in tab.run("document.body.textContent")
    (record.folder_of(0) / "resolved.yaml").write_text("name: digits\n")  # whatever the recipe's file is called
    assert "<h1>digits " in sweep_page(record, space)


def test_what_comes_of_it_is_printed_for_other_programs(
    tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    record = swept(tmp_path / "sweep", settings(trials=5, recipe=RECIPE))
    assert main(["sweep", str(record.folder), "--table", "json"]) == 0
    assert len(capsysbinary.readouterr().out.splitlines()) == 5
    assert main(["sweep", RECIPE, "--best"]) == EXIT_USAGE
    assert b"is not a sweep's folder" in capsysbinary.readouterr().err


def test_from_above_a_sweep_is_a_line_and_its_trials_are_not_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = swept(tmp_path / "group" / "sweep", settings(trials=4))
    assert main(["runs", str(tmp_path)]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"sweep {record.folder}: random, 4 trials: 4 finished; best validation/loss: ")
    assert list(find_runs(tmp_path)) == []
    assert len(list(find_runs(record.folder))) == 4
