"""metrics.jsonl: what was written is read back, cut where a run resumes, and outlives a full disk."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

import pytest
from tracked import log_steps, strictly, track, train_line, validation_line

from launcher.errors import LauncherError
from launcher.runs.metrics import MetricsFile, Redone, encode, read_evaluations, read_last
from launcher.runs.tracking.tracking import read_metrics


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
    assert file.path.stat().st_ino == inode  # cut, not written again
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
    assert capsys.readouterr().out.count("No space left on device; training continues") == 1
