"""What a run tells: metrics.jsonl, the terminal, wandb and TensorBoard, each read back from what it really wrote."""

from __future__ import annotations

import gc
import inspect
import json
import math
import os
import pty
import re
import select
import socket
import struct
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import accelerate
import psutil
import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from worlds import TINY, in_world

from launcher.errors import LauncherError
from launcher.runs.metrics import MetricsFile, Redone, encode, read_evaluations, read_last
from launcher.runs.words import duration, number, short
from launcher.tracking import Line, NoTracking, Tracking, check_trackers, open_tracking, read_metrics, trackers
from launcher.tracking.console import tables
from launcher.tracking.trackers import QUEUE_LINES

# wandb does not wait for a helper that was killed
pytestmark = pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")

CONFIG = {"name": "digits", "optimizer": {"_target_": "AdamW", "lr": 1e-3, "betas": [0.9, 0.999], "foreach": None}}
BEST = ("accuracy", "max")
API_KEY = "0123456789abcdef" * 3


def train_line(step: int, **more: Any) -> Line:
    return {"step": step, "epoch": step / 100, "split": "train", "loss": 1 / step, "lr": 1e-3, **more}


def validation_line(step: int, **more: Any) -> Line:
    return {
        "step": step,
        "epoch": step / 100,
        "split": "validation",
        "loss": 2 / step,
        "accuracy": 1 - 1 / step,
        **more,
    }


def track(run_dir: Path, start_step: int = 0, **options: Any) -> Tracking:
    """A run of 1,000 steps, tracked in `run_dir`."""
    given = {"total_steps": 1000, "trackers": {}, "run_name": "digits", "config": CONFIG, "best": BEST, **options}
    return open_tracking(run_dir=run_dir, start_step=start_step, **given)


def log_steps(tracking: Tracking, first: int, last: int) -> None:
    """Train lines every 10 steps, a validation every 50."""
    for step in range(first, last + 1, 10):
        tracking.log(train_line(step))
        tracking.progress(step)
        if step % 50 == 0:
            tracking.log(validation_line(step))


# ---------------------------------------------------------------------- metrics.jsonl


def strictly(text: str) -> Any:
    """Standard JSON, which has no NaN."""

    def refuse(word: str) -> Any:
        raise ValueError(word)

    return json.loads(text, parse_constant=refuse)


def test_metrics_read_back_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    lines = [
        train_line(1),
        validation_line(1, name="NaN", worst=-math.inf, each=[0.5, math.inf]),
        train_line(2, loss=1e-30),
    ]
    for line in lines:
        file.write(line)
        assert path.read_text().endswith("}\n")  # flushed
    file.write(train_line(3, loss=math.nan))
    file.close()
    assert [type(strictly(text)) for text in path.read_text().splitlines()] == [dict] * 4
    *same, last = read_metrics(path)
    assert same == [lines[0], {**lines[1], "each": [0.5, "Infinity"]}, lines[2]]
    assert math.isnan(last["loss"])


def test_values_of_numpy_and_torch_become_plain() -> None:
    import numpy as np
    import torch

    line = {"a": np.float32(0.5), "b": torch.tensor(2.0), "c": np.array([1, 2]), "d": np.float64("nan")}
    assert strictly(encode(line)) == {"a": 0.5, "b": 2.0, "c": [1, 2], "d": "NaN"}


@pytest.mark.parametrize("torn", ['{"step": 3, "lo', '{"step": 3', "\0\0\0\0", '"'])
def test_a_torn_last_line_is_left_out(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f"{encode(train_line(1))}\n{encode(train_line(2))}\n{torn}")
    assert [line["step"] for line in read_metrics(path)] == [1, 2]


def test_no_file_and_an_empty_file_hold_no_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == []
    path.touch()
    assert read_metrics(path) == []


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, \n{"step": 3}\n')
    with pytest.raises(LauncherError, match=re.escape(f"{path}:2:")):
        read_metrics(path)


def test_going_on_drops_what_will_be_done_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f"{encode(train_line(step))}\n" for step in range(10, 80, 10)) + '{"step": 80, "spl')
    file = MetricsFile(path)
    file.continue_from(50)
    file.write(train_line(60, loss=0.25))
    file.close()
    assert [(line["step"], line["loss"]) for line in read_metrics(path)][-2:] == [(50, 1 / 50), (60, 0.25)]
    assert len(read_metrics(path)) == 6
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


def test_an_evaluation_and_a_test_that_are_made_again_are_dropped(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl")
    for line in (train_line(10), validation_line(10), train_line(20), validation_line(20)):
        file.write(line)
    file.write({**validation_line(10), "split": "test"})
    inode = file.path.stat().st_ino
    past = file.continue_from(20, evaluated=10)
    assert [(line["step"], line["split"]) for line in read_metrics(file.path)] == [
        (10, "train"),
        (10, "validation"),
        (20, "train"),
    ]
    assert [line["step"] for line in past.evaluations] == [10]
    assert (past.size_bytes, past.redone.steps) == (file.path.stat().st_size, 0)
    assert file.path.stat().st_ino == inode  # cut, not written anew
    file.continue_from(0, evaluated=-1)
    assert read_metrics(file.path) == []


def test_what_is_done_again_is_counted(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl")
    for step in range(10, 80, 10):
        file.write(train_line(step, seconds=2.0, time=1000.0 + step))
    assert file.continue_from(50).redone == Redone(20, 4.0, 1070.0)
    assert file.continue_from(50).redone == Redone(0, 0.0, 1050.0)
    assert file.continue_from(0).redone == Redone(50, 10.0, 1050.0)
    assert file.continue_from(0).redone == Redone()


def test_lines_of_any_length_are_read_across_blocks(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [validation_line(step, each=[step] * (step * 97 % 30_000)) for step in range(1, 120)]
    path.write_text("".join(f"{encode(line)}\n" for line in lines) + encode(train_line(120)))
    assert path.stat().st_size > 2_000_000
    assert read_metrics(path) == [*lines, train_line(120)]
    damaged = path.read_text().splitlines()
    damaged[70] = damaged[70][:-1]
    path.write_text("\n".join(damaged))
    with pytest.raises(LauncherError, match=re.escape(f"{path}:71:")):
        read_metrics(path)


def test_evaluations_and_the_last_line_are_found_among_many(tmp_path: Path) -> None:
    tracking = track(tmp_path, output="quiet")
    log_steps(tracking, 10, 2000)
    tracking.log(train_line(2001, **{"split": "train", '"split": "validation"': 1.0}))
    path = tmp_path / "metrics.jsonl"
    assert [line["step"] for line in read_evaluations(path, "validation")] == list(range(50, 2001, 50))
    assert read_last(path)["step"] == 2001
    with path.open("a") as file:
        file.write('{"step": 2002, "split": "validation", "lo')
    assert len(list(read_evaluations(path, "validation"))) == 40
    assert read_last(path)["step"] == 2001
    assert list(read_evaluations(tmp_path / "nowhere", "test")) == []
    assert read_last(tmp_path / "nowhere") == {}


def test_a_run_that_saved_nothing_begins_its_metrics_anew(tmp_path: Path) -> None:
    for _ in range(2):
        tracking = track(tmp_path, output="quiet")
        tracking.log(validation_line(1) | {"step": 0})
        tracking.close("failed", [])
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [0]


def test_a_full_disk_is_said_once_and_its_lines_come_later(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "metrics.jsonl"
    tracking = track(tmp_path)
    path.unlink()
    path.symlink_to("/dev/full")
    tracking.log(train_line(10))
    tracking.log(train_line(20))
    path.unlink()
    tracking.log(train_line(30))
    tracking.close("finished", [])
    assert [line["step"] for line in read_metrics(path)] == [10, 20, 30]
    assert capsys.readouterr().out.count("No space left on device; training goes on") == 1


# ---------------------------------------------------------------------- the terminal


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e-5, "1.000e-5"), (0.0123, "0.01230"), (0.98, "0.9800"), (123.0, "123.0"), (9999.96, "1.000e4"),
        (12345.6, "12346"), (1.5e12, "1.500e12"), (0.0, "0"), (-0.5, "-0.5000"), (7, "7"), (math.nan, "nan"),
        (-math.inf, "-inf"),
    ],
)  # fmt: skip
def test_numbers_are_readable_at_any_size(value: float, text: str) -> None:
    assert number(value) == text


def test_rates_and_times_are_short() -> None:
    assert [short(value) for value in (1e-3, 3e-5, 0.00091234)] == ["0.001", "3e-5", "0.0009123"]
    assert [duration(seconds) for seconds in (-1, 7.4, 751, 6730, 184200)] == [
        "0:00",
        "0:07",
        "12:31",
        "1:52:10",
        "2 d 3:10",
    ]


def test_plain_lines_have_no_escape_codes_and_do_not_wrap(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    tracking = track(tmp_path, deadline=time.time() + 3600)
    tracking.start([("device", "x" * 200), ("global batch", "[bold]64[/bold]")])
    tracking.log(train_line(300, samples_per_second=12345.6, data_wait=0.02, gpu_memory=3 * 2**30, grad_norm=0.5))
    tracking.log(validation_line(300, loss=0.12, accuracy=0.978))
    tracking.message("saved step 300")
    tracking.log(validation_line(400, loss=0.1, accuracy=0.981, each=[0.1, 0.9]))
    tracking.log(validation_line(500, loss=1e-5, accuracy=0.98, name="clean"))
    tracking.close("finished", [validation_line(400, loss=0.1, accuracy=0.981)])
    out = capsys.readouterr().out
    assert "\x1b" not in out
    lines = out.splitlines()
    assert lines[:2] == ["device        " + "x" * 200, "global batch  [bold]64[/bold]"]
    assert re.fullmatch(
        r"step 300/1000  epoch 3\.00  loss 0\.003333  lr 0\.001  12,346 samples/s  data wait 2%  gpu 3\.0 GiB"
        r"  grad 0\.5  \S+ left  limit in (1:00:00|59:\d\d)",
        lines[2],
    )
    assert lines[3:7] == [
        "validation  step 300  loss 0.1200  accuracy 0.9780 best",
        "saved step 300",
        "validation  step 400  loss 0.1000 (-0.02)  accuracy 0.9810 (+0.003) best",
        "validation clean  step 500  loss 1.000e-5  accuracy 0.9800",
    ]
    table = [re.split(r"\s{2,}", line.strip()) for line in lines if line.startswith(("step  ", "loss  ", "accuracy"))]
    assert table == [
        ["step", "300", "400", "500"],
        ["loss", "0.003333", "0.1000", "1.000e-5"],
        ["accuracy", "0.9810", "0.9800"],
    ]
    assert re.fullmatch(rf"finished  step 500  in \d:\d\d  {re.escape(str(tmp_path))}", lines[-1])


def test_a_matrix_is_a_row_for_each_class_and_a_curve_is_measured() -> None:
    line = validation_line(3, loss=0.5, matrix=[[7, 0], [2, 5]], curve=[[0.25] * 99, [0.5] * 99])
    rows = [re.split(r"\s{2,}", row.strip()) for row in tables([line]).splitlines()]
    assert rows[-3:] == [
        ["validation, class", "matrix", "curve"],
        ["0", "7 0", "99 numbers"],
        ["1", "2 5", "99 numbers"],
    ]


def test_plain_train_lines_are_few(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tracking = track(tmp_path)
    for step in range(1, 1001):
        tracking.log(train_line(step))
    out = capsys.readouterr().out
    assert out.startswith("step 1/1000")
    assert len(out.splitlines()) < 30


def test_a_resumed_run_compares_with_what_came_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tracking = track(tmp_path)
    tracking.log(validation_line(100, loss=0.5, accuracy=0.9))
    tracking.log(validation_line(200, loss=0.4, accuracy=0.8))
    tracking.log(validation_line(300, loss=0.1, accuracy=0.99))
    tracking.close("preempted", [])
    capsys.readouterr()
    tracking = track(tmp_path, start_step=200)
    tracking.log(validation_line(300, loss=0.3, accuracy=0.85))
    assert capsys.readouterr().out == "validation  step 300  loss 0.3000 (-0.1)  accuracy 0.8500 (+0.05)\n"


def test_quiet_prints_the_last_line_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tracking = track(tmp_path, output="quiet")
    tracking.start([("device", "cpu")])
    log_steps(tracking, 10, 200)
    tracking.message("saved step 200")
    tracking.evaluating(1, 2, "validation")
    tracking.close("finished", [])
    captured = capsys.readouterr()
    assert captured.out.startswith("finished  step 200  validation  loss 0.01000  accuracy 0.9950  in ")
    assert len(captured.out.splitlines()) == 1
    assert captured.err == ""


def test_json_is_one_object_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tracking = track(tmp_path, output="json")
    tracking.start([("device", "cpu")])
    tracking.log(train_line(10, loss=math.inf))
    tracking.message("saved\nstep 10")
    tracking.close("failed", [validation_line(10)])
    plan, line, message, end = (strictly(text) for text in capsys.readouterr().out.splitlines())
    assert plan == {"plan": {"device": "cpu"}}
    assert {key: line[key] for key in ("step", "split", "loss")} == {"step": 10, "split": "train", "loss": "Infinity"}
    assert message == {"message": "saved\nstep 10"}
    assert (end["outcome"], end["step"], end["summary"]) == ("failed", 10, [validation_line(10)])


def test_a_reader_that_went_away_ends_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", buffering=1) as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        tracking = track(tmp_path)
        tracking.start([("device", "cpu")])
        log_steps(tracking, 10, 100)
        tracking.message("saved step 100")
        tracking.close("finished", [])
        monkeypatch.undo()
        with pytest.raises(BrokenPipeError):
            stdout.close()
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 12
    assert capsys.readouterr().err.count("training goes on") == 1


def test_letters_that_the_stream_has_not_are_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out"
    with path.open("w", encoding="ascii") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        track(tmp_path).message("µ = 1")
        monkeypatch.undo()
    assert path.read_text() == "? = 1\n"


def test_the_other_ranks_have_the_same_signature() -> None:
    for name, method in inspect.getmembers(Tracking, inspect.isfunction):
        if not name.startswith("_"):
            other = NoTracking.__dict__[name]
            assert inspect.signature(other) == inspect.signature(method)
    tracking: Tracking = NoTracking()
    tracking.start([])
    log_steps(tracking, 10, 100)
    tracking.close("finished", [])


PROGRAM = """
    import sys, time
    from pathlib import Path
    from launcher.tracking import open_tracking

    tracking = open_tracking(
        run_dir=Path(sys.argv[1]), total_steps=300, start_step=0, trackers={}, run_name="digits", config={}, best=None
    )
    tracking.start([("device", "cpu")])
    for step in range(1, 301):
        if step == 100:
            print("the user's own", end=" ")
            print("words")
        if step == 150 and "debug" in sys.argv:
            breakpoint()
        if step % 10 == 0:
            tracking.log({"step": step, "epoch": 1.0, "split": "train", "loss": 1 / step, "lr": 1e-3})
            if step in (10, 200, 300):
                time.sleep(0.3)  # the bar moves a few times a second
            tracking.progress(step)
    time.sleep(0.3)
    tracking.evaluating(1, 2, "validation")
    tracking.log({"step": 300, "epoch": 1.0, "split": "validation", "loss": 0.5})
    tracking.close("finished", [])
"""


def on_terminal(run_dir: Path, *args: str, answer: Callable[[str], bytes] = lambda _: b"") -> str:
    """What a program prints on a terminal of 100 columns; `answer` types in reply to what was printed last."""
    child, terminal = pty.fork()
    if child == 0:
        os.environ.update(COLUMNS="100", LINES="30", TERM="xterm-256color")
        os.execv(sys.executable, [sys.executable, "-c", textwrap.dedent(PROGRAM), str(run_dir), *args])
    seen = b""
    while select.select([terminal], [], [], 60)[0]:
        try:
            part = os.read(terminal, 65536)
        except OSError:  # how a terminal ends
            break
        seen += part
        os.write(terminal, answer(seen.decode(errors="replace")))
    os.close(terminal)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0, seen
    return seen.decode()


def test_a_terminal_shows_a_bar_and_keeps_other_peoples_words(tmp_path: Path) -> None:
    out = on_terminal(tmp_path)
    assert "━" in out
    plain = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", out)
    assert re.search(r"━+  step 300/300  epoch 1\.00  0:00 left", plain)
    assert "loss 0.003333  lr 0.001" in plain
    assert "evaluating validation  1/2" in plain
    assert "\r\nvalidation  step 300  loss 0.5000\r\n" in plain
    assert "the user's own words\r\n" in plain
    assert "\x1b[?25l" not in out  # the cursor is never hidden, so that no crash leaves it so
    assert re.search(rf"\r\nfinished  step 300  in \d+:\d\d  {re.escape(str(tmp_path))}\s*$", plain)


def test_a_debugger_has_the_terminal_to_itself(tmp_path: Path) -> None:
    replies = iter([b"p 6 * 7\n", b"next\n", b"continue\n"])
    answered = 0

    def answer(seen: str) -> bytes:
        nonlocal answered
        if seen.count("(Pdb) ") <= answered:
            return b""
        answered += 1
        return next(replies)

    out = on_terminal(tmp_path, "debug", answer=answer)
    session = out[out.index("(Pdb) ") : out.rindex("(Pdb) ")]
    assert "42" in session
    assert "━" not in session
    assert "\x1b[2F" not in session
    assert "━" in out[out.rindex("(Pdb) ") :]


# ---------------------------------------------------------------------- trackers


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
    for start, last, outcome in ((0, 100, "preempted"), (100, 200, "finished")):
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
    assert out.count("unreliable failed (RuntimeError: the service says no); training goes on without it\n") == 1
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 12
    assert len(tensorboard_scalars(tmp_path)["train/loss"]) == 10


def test_a_tracker_that_fails_midway_gets_the_lines_after(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], unreliable: type[Unreliable]
) -> None:
    tracking = track(tmp_path, trackers={"unreliable": {"fails_at": "log 30"}})
    log_steps(tracking, 10, 40)
    tracking.close("finished", [])
    out = capsys.readouterr().out
    assert "unreliable failed (RuntimeError: the service says no); training goes on\n" in out
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
    tracking.close("preempted", [])
    out = capsys.readouterr().out
    assert re.search("waiting up to 3 s for unreliable", out)
    assert "unreliable did not finish in time and is left behind\n" in out
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


# ---------------------------------------------------------------------- wandb


@pytest.fixture
def wandb_env(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Sets wandb's environment, away from the person's own, and lets wandb forget the test before."""
    import wandb

    def set_env(**variables: str) -> None:
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))

    wandb.teardown()
    set_env()
    yield set_env
    wandb.teardown()


def wandb_records(run_dir: Path) -> Iterator[Any]:
    """All records of all wandb files of a run, oldest file first: LevelDB's log format, read independently."""
    from wandb.proto import wandb_internal_pb2

    for path in sorted(run_dir.glob("wandb/*run-*/run-*.wandb")):
        data, position, whole = path.read_bytes(), 7, b""
        while position + 7 <= len(data):
            if 32768 - position % 32768 < 7:
                position += 32768 - position % 32768
                continue
            _, length, kind = struct.unpack_from("<IHB", data, position)
            whole += data[position + 7 : position + 7 + length]
            position += 7 + length
            if kind in (1, 4):
                record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]  # built when it is imported
                record.ParseFromString(whole)
                yield record
                whole = b""


def wandb_numbers(run_dir: Path) -> Counter[tuple[str, int, float]]:
    """How often wandb has each number: (name, step, value)."""
    found: Counter[tuple[str, int, float]] = Counter()
    for record in wandb_records(run_dir):
        if record.HasField("history"):
            row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            assert row["step"] == row["_step"] == record.history.step.num
            found.update((name, row["step"], value) for name, value in row.items() if "/" in name)
    return found


def logged_numbers(run_dir: Path) -> Counter[tuple[str, int, float]]:
    """The same of metrics.jsonl."""
    return Counter(
        (f"{line['split']}/{name}", line["step"], value)
        for line in read_metrics(run_dir / "metrics.jsonl")
        for name, value in line.items()
        if name not in ("step", "split", "time", "seconds")
    )


def end(tracking: Tracking, outcome: str) -> None:
    """Ends a run as a process ends: wandb writes its last block when Python does."""
    import wandb

    tracking.close(outcome, [])
    wandb.teardown()
    gc.collect()  # warns of a killed helper now, where that is expected


def cores() -> list[Any]:
    """The helper processes of wandb that are ours."""
    return [child for child in psutil.Process().children() if child.name() == "wandb-core"]


def test_wandb_holds_every_number_once_though_its_helper_was_killed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], wandb_env: Callable[..., None]
) -> None:
    wandb_env(WANDB_API_KEY=API_KEY, WANDB_MODE="offline")
    tracking = track(tmp_path, trackers={"wandb": {"project": "digits"}})
    log_steps(tracking, 10, 100)
    while not wandb_numbers(tmp_path):  # written every few seconds
        time.sleep(0.1)
    log_steps(tracking, 110, 200)
    cores()[0].kill()  # what a lost node does: wandb loses its last seconds
    end(tracking, "failed")
    assert 0 < len(wandb_numbers(tmp_path)) < len(logged_numbers(tmp_path))
    for start, last, outcome in ((150, 300, "preempted"), (300, 400, "finished")):
        tracking = track(tmp_path, start_step=start, trackers={"wandb": {"project": "digits"}})
        log_steps(tracking, start + 10, last)
        end(tracking, outcome)
    assert wandb_numbers(tmp_path) == logged_numbers(tmp_path)
    assert set(wandb_numbers(tmp_path).values()) == {1}
    runs = [record.run for record in wandb_records(tmp_path) if record.HasField("run")]
    assert {run.run_id for run in runs} == {(tmp_path / "wandb_id").read_text().strip()}
    assert {run.project for run in runs} == {"digits"}
    config = {u.key: json.loads(u.value_json) for record in wandb_records(tmp_path) for u in record.config.update}
    assert {key: config[key] for key in CONFIG} == CONFIG
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path for path in files if API_KEY.encode() in path.read_bytes()] == []
    out = capsys.readouterr().out
    assert out.count(f"wandb: offline; to sync it later: wandb sync {tmp_path}/wandb/offline-run-*\n") == 3


def train_with_wandb(folder: str) -> dict[str, Any]:
    """Trains as one rank, tracked by wandb; returns the resolved recipe."""
    from launcher.launch.world import World
    from launcher.opening import Options
    from launcher.recipe.load import load_recipe
    from launcher.recipe.show import resolved
    from launcher.run import run

    os.environ.update(WANDB_API_KEY=API_KEY, WANDB_CONFIG_DIR=f"{folder}/config", WANDB_SILENT="true")
    recipe = load_recipe(str(TINY), ["track.wandb.mode=offline", "data.validation=20% of train", "launch.threads=1"])
    run(recipe, World(), Options(cpu=True, run_dir=folder, output="quiet"))
    return resolved(recipe)


def test_wandb_has_what_a_real_run_trained_with(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (recipe,) = in_world(1, train_with_wandb, str(folder))
    config = {u.key: json.loads(u.value_json) for record in wandb_records(folder) for u in record.config.update}
    assert {key: value for key, value in config.items() if key != "_wandb"} == json.loads(json.dumps(recipe))
    assert wandb_numbers(folder) == logged_numbers(folder)
    assert {name.partition("/")[0] for name, _, _ in wandb_numbers(folder)} == {"train", "validation"}
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path for path in files if API_KEY.encode() in path.read_bytes()] == []


@pytest.fixture
def silent_server() -> Iterator[str]:
    """A server on this machine that accepts, and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def half_silent_server() -> Iterator[str]:
    """A server that answers whether it is there, and nothing else."""
    server = socket.create_server(("127.0.0.1", 0))
    kept = []

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            kept.append(connection)
            if connection.recv(4, socket.MSG_PEEK) == b"GET ":
                connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                connection.shutdown(socket.SHUT_WR)

    threading.Thread(target=serve, daemon=True).start()
    yield f"http://127.0.0.1:{server.getsockname()[1]}"
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    for connection in kept:
        connection.close()


@pytest.mark.parametrize("server", ["no key", "closed port", "silent", "half silent"])
def test_wandb_without_an_answer_is_offline(
    server: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    wandb_env: Callable[..., None],
    silent_server: str,
    half_silent_server: str,
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{unused.getsockname()[1]}"
        urls = {"no key": closed, "closed port": closed, "silent": silent_server, "half silent": half_silent_server}
        key = {} if server == "no key" else {"WANDB_API_KEY": API_KEY}
        wandb_env(WANDB_BASE_URL=urls[server], **key)
        tracking = track(tmp_path, trackers={"wandb": {"settings": {"init_timeout": 2}}}, output="quiet")
        log_steps(tracking, 10, 100)
        end(tracking, "finished")
    why = {"no key": "no API key; wandb login", "half silent": "CommError: "}
    err = capsys.readouterr().err
    assert err.startswith(f"wandb: offline ({why.get(server, f'{urls[server]} does not answer')}")
    assert err.endswith(f"to sync it later: wandb sync {tmp_path}/wandb/offline-run-*\n")
    assert len(err.splitlines()) == 1
    assert wandb_numbers(tmp_path) == logged_numbers(tmp_path)


class WandbService(ThreadingHTTPServer):
    """As much of wandb's service as one run needs: keeps the rows of its history, or says nothing for a while."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), WandbRequest)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.rows: list[str] = []
        self.runs: set[str] = set()
        self.is_silent = False

    def answer(self, query: dict[str, Any]) -> Any:
        """The data for one GraphQL query."""
        entity = {"id": "e", "name": "somebody"}
        name = query["variables"].get("name", "")
        bucket = {"id": "b", "name": name, "historyLineCount": len(self.rows), "config": "{}", "summaryMetrics": "{}"}
        match query.get("operationName"):
            case "RunResumeStatus":
                tail = {"historyTail": json.dumps(self.rows[-1:]), "eventsTail": "[]", "wandbConfig": '{"t": {}}'}
                known = bucket | tail | {"eventsLineCount": 0, "logLineCount": 0} if name in self.runs else None
                return {"model": {"id": "p", "name": "digits", "entity": entity, "bucket": known}}
            case "UpsertBucket":
                self.runs.add(name)
                bucket["project"] = {"id": "p", "name": "digits", "entity": entity}
                return {"upsertBucket": {"bucket": bucket, "inserted": True}}
            case "CreateRunFiles":
                files = [{"name": file, "uploadUrl": f"{self.url}/files"} for file in query["variables"]["files"]]
                return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        return {}


class WandbRequest(BaseHTTPRequestHandler):
    """One request to it."""

    server: WandbService
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.reply({})

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.reply({})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        while self.server.is_silent:
            time.sleep(0.1)
            self.close_connection = True
        if self.close_connection:
            return
        if self.path == "/graphql":
            self.reply({"data": self.server.answer(json.loads(body))})
            return
        if self.path.endswith("/file_stream"):
            self.server.rows += json.loads(body).get("files", {}).get("wandb-history.jsonl", {}).get("content", [])
        self.reply({})

    def reply(self, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


@pytest.fixture
def wandb_service() -> Iterator[WandbService]:
    with WandbService() as service:
        threading.Thread(target=service.serve_forever, daemon=True).start()
        yield service
        service.is_silent = False
        service.shutdown()


def test_wandb_online_is_one_run_though_the_service_was_away(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], wandb_env: Callable[..., None], wandb_service: WandbService
) -> None:
    wandb_env(WANDB_API_KEY=API_KEY, WANDB_BASE_URL=wandb_service.url)
    trackers = {"wandb": {"project": "digits", "settings": {"finish_timeout": 2}}}
    tracking = track(tmp_path, trackers=trackers)
    log_steps(tracking, 10, 100)
    while not wandb_service.rows:
        time.sleep(0.1)
    wandb_service.is_silent = True
    log_steps(tracking, 110, 200)
    end(tracking, "finished")
    out = capsys.readouterr().out
    assert f"wandb: {wandb_service.url}/somebody/digits/runs/" in out
    assert re.search(
        "wandb failed .TimeoutError: .*; training goes on without it; to send what is missing: wandb sync", out
    )
    wandb_service.is_silent = False
    tracking = track(tmp_path, start_step=150, trackers=trackers)
    log_steps(tracking, 160, 300)
    end(tracking, "finished")
    rows = [json.loads(row) for row in wandb_service.rows]
    sent = Counter((name, row["step"], value) for row in rows for name, value in row.items() if "/" in name)
    assert sent == logged_numbers(tmp_path)
    assert wandb_service.runs == {(tmp_path / "wandb_id").read_text().strip()}


STOPPED = """
    import os, signal, sys, time
    from pathlib import Path
    import accelerate, psutil
    from launcher.tracking import open_tracking, trackers

    trackers.LEAVE_SECONDS = 3.0
    accelerate.PartialState(cpu=True)
    tracking = open_tracking(
        run_dir=Path(sys.argv[1]), total_steps=300, start_step=0, trackers={"wandb": {"mode": "offline"}},
        run_name="digits", config={}, best=None,
    )
    while not list(Path(sys.argv[1]).glob("wandb/offline-run-*/run-*.wandb")):
        time.sleep(0.05)
    helper = next(child for child in psutil.Process().children() if child.name() == "wandb-core")
    helper.send_signal(signal.SIGSTOP)
    for step in range(1, 301):
        tracking.log({"step": step, "epoch": 1.0, "split": "train", "loss": 1 / step})
    tracking.close("preempted", [])
    print(helper.pid)
"""


def test_a_wandb_that_hangs_does_not_keep_the_process_from_ending(tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(STOPPED), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
    *_, last, helper = done.stdout.splitlines()
    assert "wandb did not finish in time and is left behind" in done.stdout
    assert last.startswith("preempted  step 300")
    assert not psutil.pid_exists(int(helper))
    assert "Traceback" not in done.stderr
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 300
