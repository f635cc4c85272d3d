"""The record of a sweep: only appended to, by whoever works on it, and whole after any kill."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from simulated import settings

from launcher.errors import LauncherError, UsageError
from launcher.runs.naming import is_sweep
from launcher.sweep import record as lines
from launcher.sweep.record import Record, create
from launcher.sweep.retention import tidy
from launcher.sweep.workers import free_the_lost, taking_part

APPEND = """
import sys
from pathlib import Path
from launcher.sweep import record as lines
record = lines.Record(Path(sys.argv[1]))
for _ in range(20):
    with record.locked():
        number = len(record.trials)
        record.append(lines.proposal(number, {"a": number}), lines.taken(number, 0, sys.argv[2]))
"""


def test_a_sweep_is_what_it_was(tmp_path: Path) -> None:
    asked = settings(seeds=(1, 2), rungs=(5, 10), words=("a=1..2",), method="halving")
    create(tmp_path / "sweep", asked)
    assert is_sweep(tmp_path / "sweep")
    assert Record(tmp_path / "sweep").settings == asked


def test_a_trials_way_through_its_states(tmp_path: Path) -> None:
    record = create(tmp_path / "sweep", settings(rungs=(5, 10), method="halving"))
    states = []
    with record.locked():
        for line in (
            lines.proposal(0, None),
            lines.taken(0, 0, "here"),
            lines.released(0, "stopped", 1.0),
            lines.taken(0, 0, "there"),
            lines.rung(0, 0, math.nan, 5, 2.0),
            lines.taken(0, 1, "here"),
            lines.failure(0, "the machine was at fault", is_final=False),
            lines.rung(0, 1, -math.inf, 10, 4.0),
        ):
            record.append(line)
            states.append(record.trials[0].state)
    assert states == ["waiting", "running", "waiting", "running", "paused", "running", "paused", "finished"]
    again = Record(tmp_path / "sweep").trials[0]
    assert math.isnan(again.values[0])
    assert (again.result, again.seconds, again.failures) == (-math.inf, 7.0, ["the machine was at fault"])


@pytest.mark.parametrize("link", ["folder", "checkpoints", "one"])
def test_a_trial_that_is_a_link_loses_nothing_of_others(tmp_path: Path, link: str) -> None:
    record = create(tmp_path / "sweep", settings(rungs=(5,)))
    with record.locked():
        for trial in (0, 1):
            record.append(lines.proposal(trial, None))
            record.append(lines.taken(trial, 0, "here"))
            record.append(lines.rung(trial, 0, float(trial), 5, 1.0))
    other = tmp_path / "other" / "checkpoints" / "step-00000001"
    other.mkdir(parents=True)
    (other / "weights.pth").touch()
    (tmp_path / "other" / "model_weights.pth").touch()
    for trial in (0, 1):
        place = {"folder": "", "checkpoints": "checkpoints", "one": "checkpoints/step-00000001"}[link]
        path = record.folder_of(trial) / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(tmp_path / "other" / place)
    tidy(record)
    assert (other / "weights.pth").exists()
    assert (tmp_path / "other" / "model_weights.pth").exists()


def test_a_torn_last_line_is_cut_off_and_a_damaged_one_told(tmp_path: Path) -> None:
    record = create(tmp_path / "sweep", settings())
    with record.locked():
        record.append(lines.proposal(0, None))
    path = tmp_path / "sweep" / lines.RECORD_FILE
    whole = path.read_bytes()
    for torn in (b'{"kind": "prop', b"{", b"\0" * 100):
        path.write_bytes(whole + torn)
        record = Record(tmp_path / "sweep")
        assert list(record.trials) == [0]
        with record.locked():
            record.append(lines.proposal(1, {"a": 1}))
        assert list(Record(tmp_path / "sweep").trials) == [0, 1]
        path.write_bytes(whole)
    path.write_bytes(b"nonsense\n" + whole)
    with pytest.raises(LauncherError, match=r"record\.jsonl:1: this line of the record is damaged"):
        Record(tmp_path / "sweep")


def test_several_processes_never_take_the_same_trial(tmp_path: Path) -> None:
    create(tmp_path / "sweep", settings())
    command = [sys.executable, "-c", APPEND, str(tmp_path / "sweep")]
    workers = [subprocess.Popen([*command, str(number)]) for number in range(3)]
    assert [worker.wait() for worker in workers] == [0, 0, 0]
    record = Record(tmp_path / "sweep")
    assert sorted(record.trials) == list(range(60))
    assert record.lines == 120
    assert {trial.worker for trial in record.trials.values()} == {"0", "1", "2"}


def test_a_later_versions_line_is_passed_over(tmp_path: Path) -> None:
    record = create(tmp_path / "sweep", settings())
    with record.locked():
        record.append(lines.proposal(0, None), {"kind": "weather", "trial": 0})
    assert Record(tmp_path / "sweep").trials[0].state == "waiting"


def test_what_a_lost_participant_had_spent_is_counted_as_far_as_its_run_tells(tmp_path: Path) -> None:
    record = create(tmp_path / "sweep", settings())
    with record.locked():
        record.append(lines.proposal(0, None), lines.taken(0, 0, "gone"), lines.proposal(1, {}))
        record.append(lines.taken(1, 0, "gone"))
    since = record.trials[0].since or 0.0
    record.folder_of(0).mkdir(parents=True)
    (record.folder_of(0) / "status.json").write_text(json.dumps({"state": "running", "step": 7, "updated": since + 12}))
    with taking_part(record, None, join=False) as me, record.locked():
        free_the_lost(record, me)
    assert [trial.state for trial in record.trials.values()] == ["waiting", "waiting"]
    assert [trial.seconds for trial in record.trials.values()] == [pytest.approx(12, abs=0.01), 0]


def test_another_budget_is_everybodys(tmp_path: Path) -> None:
    record, other = create(tmp_path / "sweep", settings(budget=60.0)), Record(tmp_path / "sweep")
    assert record.seconds == 60.0
    with record.locked():
        record.append(lines.other_budget(3600.0))
    other.refresh()
    assert other.seconds == Record(tmp_path / "sweep").seconds == 3600.0


def test_a_folder_that_is_no_sweeps_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(UsageError, match="holds file"):
        create(tmp_path / "other", settings())
    with pytest.raises(UsageError, match="is not a sweep's folder"):
        Record(tmp_path / "other")
