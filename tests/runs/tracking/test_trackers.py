"""Trackers: what is said of their settings, what they hold after a resume, and those that fail or hang."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import accelerate
import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from tracked import log_steps, track, train_line, validation_line

from launcher.errors import LauncherError
from launcher.runs.tracking import trackers
from launcher.runs.tracking.trackers import QUEUE_LINES
from launcher.runs.tracking.tracking import check_trackers, read_metrics

# wandb does not wait for a helper that was killed
pytestmark = pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")


@pytest.fixture(autouse=True, scope="module")
def _state() -> None:
    accelerate.PartialState(cpu=True)  # a run has its Accelerator before it tracks


def test_what_is_wrong_with_trackers_is_said_before_training() -> None:
    with pytest.raises(LauncherError) as raised:
        check_trackers({"wandb": {}, "tensorbord": {}, "comet_ml": {}})
    tensorboard, comet = str(raised.value).splitlines()
    assert "no such tracker; did you mean 'tensorboard'? There are: aim, clearml, comet_ml" in tensorboard
    assert comet == "track.comet_ml: it is not installed; pip install comet-ml, or --remove track.comet_ml"
    check_trackers({"wandb": {"project": "x", "settings": {"init_timeout": 3}}, "tensorboard": {}})
    check_trackers({})


def complaints(settings: Mapping[str, Mapping[str, Any]], *allow: str) -> list[str]:
    """What is said of trackers' settings, whether they are installed or not."""
    try:
        check_trackers(settings, allow)
    except LauncherError as error:
        return [line for line in str(error).splitlines() if "it is not installed" not in line]
    return []


@pytest.mark.parametrize(
    ("name", "settings", "refused"),
    [
        ("wandb", {"settings": {"base_url": "https://elsewhere.example"}}, "wandb.settings.base_url"),
        ("wandb", {"dir": "/etc", "project": "x"}, "wandb.dir"),
        ("wandb", {"settings": "x"}, "wandb.settings"),
        ("mlflow", {"logging_dir": "/etc"}, "mlflow.logging_dir"),
        ("dvclive", {"dir": "/etc"}, "dvclive.dir"),
        ("clearml", {"output_uri": "s3://elsewhere"}, "clearml.output_uri"),
        ("tensorboard", {"filename_suffix": "/../x"}, "tensorboard.filename_suffix"),
    ],
)
def test_a_recipe_cannot_choose_servers_and_folders(name: str, settings: Mapping[str, Any], refused: str) -> None:
    (line,) = complaints({name: settings})
    assert line.startswith(f"track.{refused}: ")
    assert complaints({name: settings}, name) == []


@pytest.mark.parametrize(
    ("name", "file"), [("wandb", "wandb/settings"), ("wandb", ".wandb/settings"), ("comet_ml", ".comet.config")]
)
def test_a_folder_does_not_choose_where_a_key_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, file: str
) -> None:
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text("[default]\nbase_url = http://127.0.0.1:9\n")
    assert complaints({name: {}}) == []  # it lies elsewhere
    monkeypatch.chdir(tmp_path)
    (line,) = complaints({name: {}})
    assert line.startswith(f"track.{name}: {file} in the working directory chooses where the key and numbers go")
    assert complaints({name: {}}, name) == []
    monkeypatch.setenv("HOME", str(tmp_path))
    assert complaints({name: {}}) == []


def test_every_tracker_s_settings_are_listed() -> None:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    assert set(trackers.SETTINGS) == set(LOGGER_TYPE_TO_CLASS)


def tensorboard_scalars(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]  # ships no types

    events = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    tags = events.Tags()["scalars"]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def test_tensorboard_has_every_number_once_after_a_resume(tmp_path: Path) -> None:
    tracking = track(tmp_path, trackers={"tensorboard": {}}, output="quiet")
    log_steps(tracking, 10, 200)
    tracking.close("failed", [])
    tracking = track(tmp_path, start_step=150, trackers={"tensorboard": {}}, output="quiet")
    log_steps(tracking, 160, 300)
    tracking.close("finished", [])
    scalars = tensorboard_scalars(tmp_path)
    assert [step for step, _ in scalars["train/loss"]] == list(range(10, 301, 10))
    assert [value for _, value in scalars["train/loss"]] == pytest.approx([1 / step for step in range(10, 301, 10)])
    assert [step for step, _ in scalars["validation/accuracy"]] == [50, 100, 150, 200, 250, 300]
    assert set(scalars) == {
        "train/loss",
        "train/lr",
        "train/epoch",
        "train/host_memory",
        *(f"validation/{key}" for key in ("loss", "accuracy", "epoch")),
    }


def test_mlflow_is_reached_by_its_name_and_is_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    for start, last, outcome in ((0, 100, "stopped"), (100, 200, "finished")):
        tracking = track(tmp_path, start_step=start, trackers={"mlflow": {"tags": {"team": "seven"}}}, output="quiet")
        log_steps(tracking, start + 10, last)
        tracking.close(outcome, [])
    from mlflow import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name("digits")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.status, run.data.tags["team"]) == ("FINISHED", "seven")
    assert run.data.params["optimizer.lr"] == "0.001"
    losses = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(one.step, one.value) for one in losses] == [(step, 1 / step) for step in range(10, 201, 10)]


class Unreliable(GeneralTracker):  # type: ignore[misc]  # Accelerate ships no types
    """A tracker of somebody else's: fails or hangs where it is told to."""

    name = "unreliable"
    requires_logging_directory = False
    got: list[int]
    released: threading.Event

    def __init__(self, project: str, fails_at: str = "", hangs_at: str = ""):
        super().__init__()
        self.fails_at, self.hangs_at = fails_at, hangs_at

    @property
    def tracker(self) -> None:
        return None

    def _do(self, act: str) -> None:
        if act == self.hangs_at:
            self.released.wait()
        if act == self.fails_at:
            raise RuntimeError("the service says no\nand more")

    def start(self) -> None:
        self._do("start")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self._do("config")

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        self._do(f"log {step}")
        self.got.append(step or 0)

    def finish(self) -> None:
        self._do("finish")


@pytest.fixture
def unreliable(monkeypatch: pytest.MonkeyPatch) -> type[Unreliable]:
    mine = type("Mine", (Unreliable,), {"got": [], "released": threading.Event()})  # a hung one outlives its test
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "unreliable", mine)
    return mine


@pytest.mark.parametrize("act", ["start", "config", "finish"])
def test_a_tracker_that_fails_is_said_and_training_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], unreliable: type[Unreliable], act: str
) -> None:
    tracking = track(tmp_path, trackers={"unreliable": {"fails_at": act}, "tensorboard": {}})
    log_steps(tracking, 10, 100)
    tracking.close("finished", [])
    out = capsys.readouterr().out
    assert out.count("unreliable failed (RuntimeError: the service says no); training continues without it\n") == 1
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 12
    assert len(tensorboard_scalars(tmp_path)["train/loss"]) == 10


def test_a_tracker_that_fails_midway_gets_the_lines_after(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], unreliable: type[Unreliable]
) -> None:
    tracking = track(tmp_path, trackers={"unreliable": {"fails_at": "log 30"}})
    log_steps(tracking, 10, 40)
    tracking.close("finished", [])
    out = capsys.readouterr().out
    assert "unreliable failed (RuntimeError: the service says no); training continues\n" in out
    assert "unreliable: 1 lines did not reach it; metrics.jsonl has them\n" in out
    assert unreliable.got == [10, 20, 40]


def test_a_tracker_that_hangs_holds_nobody_up(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    unreliable: type[Unreliable],
) -> None:
    monkeypatch.setattr(trackers, "LEAVE_SECONDS", 3.0)
    tracking = track(tmp_path, trackers={"unreliable": {"hangs_at": "start"}, "tensorboard": {}})
    log_steps(tracking, 10, 100)
    tracking.close("stopped", [])
    out = capsys.readouterr().out
    assert re.search("waiting up to 3 s for unreliable", out)
    assert "unreliable did not finish in time and was abandoned\n" in out
    assert len(tensorboard_scalars(tmp_path)["train/loss"]) == 10


def test_a_tracker_that_is_too_slow_loses_its_oldest_train_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], unreliable: type[Unreliable]
) -> None:
    tracking = track(tmp_path, trackers={"unreliable": {"hangs_at": "start"}})
    tracking.log(validation_line(1))
    for step in range(2, 3001):
        tracking.log(train_line(step))
    unreliable.released.set()
    tracking.close("finished", [])
    assert unreliable.got == [1, *range(3000 - QUEUE_LINES + 2, 3001)]
    assert (
        f"unreliable: {3000 - QUEUE_LINES} lines did not reach it; metrics.jsonl has them\n" in capsys.readouterr().out
    )
