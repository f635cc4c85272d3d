"""Runs as others see them: their states, the table of them, and their logs as they grow."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from launcher.cli.main import main
from launcher.errors import UsageError
from launcher.runs.differing import differing, shown
from launcher.runs.folder import environment, write_json
from launcher.runs.lock import locked
from launcher.runs.metrics import encode
from launcher.runs.naming import named_runs, place_of
from launcher.runs.reading import Run, find_runs
from launcher.runs.states import ORDERS, STATES
from launcher.runs.table import View, chosen
from launcher.sweep.naming import saved_place

HOLD = """
import sys, time
from pathlib import Path
from launcher.runs.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def made(folder: Path, state: str, accuracy: float = 0.5, **status: Any) -> Path:
    """A run's folder, with one evaluation among many train lines."""
    (folder / "logs").mkdir(parents=True)
    now = time.time()
    write_json(
        folder / "status.json",
        {"state": state, "step": 10, "total_steps": 20, "world": 1, "host": "node7", "started": now, **status},
    )
    best = "evaluate:\n  best:\n    metric: accuracy\n    mode: max\n"
    (folder / "resolved.yaml").write_text(f"name: {folder.parent.name}\ndevice:\n  precision: no\n{best}")
    lines = [{"step": step, "split": "train", "loss": 1.0, "time": now} for step in range(1, 13)]
    lines.insert(5, {"step": 5, "split": "validation", "loss": 0.5, "accuracy": accuracy, "time": now})
    lines.insert(6, {"step": 6, "split": "validation", "loss": 0.5, "accuracy": "NaN", "time": now})
    (folder / "metrics.jsonl").write_text("".join(encode(line) + "\n" for line in lines))
    return folder


def end(folder: Path, state: str) -> None:
    """What a run writes last."""
    status = json.loads((folder / "status.json").read_text())
    write_json(folder / "status.json", {**status, "state": state, "ended": time.time()})


@pytest.fixture
def some(tmp_path: Path) -> Path:
    """Runs of two recipes, one of them alive."""
    root = tmp_path / "runs"
    made(root / "digits" / "one", "finished", accuracy=0.9, started=time.time() - 7200)
    made(root / "digits" / "two", "failed", accuracy=0.7, started=time.time() - 90, world=8, job="4242")
    made(root / "text" / "three", "running", accuracy=0.8, started=time.time() - 30)
    (root / "digits" / "one" / "checkpoints").mkdir()
    return root


# ---------------------------------------------------------------------- states


def test_a_run_runs_as_long_as_its_lock_is_held(tmp_path: Path) -> None:
    folder = made(tmp_path / "run", "running")
    assert Run(folder).state == "dead"
    with locked(folder):
        assert Run(folder).state == "running"
    end(folder, "finished")
    assert Run(folder).state == "finished"


def test_a_killed_run_is_dead(tmp_path: Path) -> None:
    folder = made(tmp_path / "run", "running")
    with subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert Run(folder).state == "running"
        holder.kill()
    assert Run(folder).state == "dead"


def test_a_failed_run_that_is_being_started_again_runs(tmp_path: Path) -> None:
    folder = made(tmp_path / "run", "running")
    end(folder, "failed")
    assert Run(folder).state == "failed"
    with locked(folder):
        assert Run(folder).state == "running"
        end(folder, "finished")  # it has ended, and has not left yet
        assert Run(folder).state == "finished"


def test_the_best_is_by_the_recipes_metric_and_never_nan(some: Path) -> None:
    best = Run(some / "digits" / "one").best
    assert best is not None
    assert (best.metric, best.mode, best.value, best.step, best.label) == ("accuracy", "max", 0.9, 5, "validation")


def test_whatever_is_missing_or_damaged_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text("{torn")
    (tmp_path / "metrics.jsonl").write_text("")
    (tmp_path / "events.jsonl").write_text('{"event": "start"}\n[]\n{"tor')
    (tmp_path / "resolved.yaml").write_text("a: [")
    run = Run(tmp_path)
    assert (run.state, run.best, run.step, run.events, dict(run.recipe)) == ("unknown", None, 0, [], {})
    assert main(["runs", str(tmp_path)]) == 0


# ---------------------------------------------------------------------- which runs


def test_runs_are_found_at_any_level_and_named_by_folder(some: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [run.folder.name for run in find_runs(some)] == ["one", "two", "three"]
    monkeypatch.chdir(some.parent)
    assert [run.folder for run in named_runs(["runs/digits", "runs/digits/one"])] == [
        Path("runs/digits/one"),
        Path("runs/digits/two"),
    ]
    assert place_of("digits").folder == Path("runs/digits/two")  # below runs, as they are made
    with pytest.raises(UsageError, match="no such run or folder; the newest are runs/text/three"):
        named_runs(["nothing"])
    with pytest.raises(UsageError, match=r"^text@2: there is only text@1$"):
        place_of("text@2")
    with pytest.raises(
        UsageError, match=r"^digits@0: there is none; there are digits@1, the first that was started, to digits@2$"
    ):
        place_of("digits@0")


def test_a_recipe_s_name_means_its_runs_wherever_they_lie(some: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(some.parent)
    elsewhere = made(some / "tries" / "apart", "finished", started=time.time() - 5)
    (elsewhere / "resolved.yaml").write_text("name: digits\n")
    assert place_of("digits").folder == Path("runs/tries/apart")
    assert [run.folder.name for run in named_runs(["digits"])] == ["one", "two", "apart"]
    assert place_of("digits@1").folder == Path("runs/digits/one")
    assert [run.folder.name for run in named_runs(["runs/digits"])] == ["one", "two"]
    Path("digits").mkdir()  # of the user's own, without runs
    assert [run.folder.name for run in chosen(View(Path("digits"), sort="name"))] == ["one", "two", "apart"]
    for inside in ("cat/1.png", "1.png", "train.csv"):  # flat, by class, or a table
        Path("digits", inside).parent.mkdir(exist_ok=True)
        Path("digits", inside).touch()
        assert saved_place("digits") == Path("runs/tries/apart")
    Path("digits/weights.pth").touch()
    assert saved_place("digits") == Path("digits")  # which can be evaluated itself
    Path("empty").mkdir()
    assert chosen(View(Path("empty"))) == []
    with pytest.raises(UsageError, match="empty: there is no run in this folder; the newest are runs/tries/apart"):
        place_of("empty")


def test_where_no_run_was_made_yet_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("site.yaml").write_text(f"runs: {tmp_path}/far\n")
    monkeypatch.setenv("LAUNCHER_SITE", "site.yaml")
    for root in (tmp_path / "far", Path("runs")):
        with pytest.raises(UsageError, match=f"{root}: no runs yet; `launcher train` makes the first"):
            chosen(View(root))


@pytest.mark.parametrize(
    ("sort", "names"),
    [
        ("age", ["three", "two", "one"]),
        ("best", ["one", "three", "two"]),
        ("name", ["one", "two", "three"]),
        ("recipe", ["one", "two", "three"]),
        ("state", ["one", "two", "three"]),  # finished, failed, dead
        ("step", ["one", "two", "three"]),
        ("world", ["two", "one", "three"]),
    ],
)
def test_every_order(some: Path, sort: str, names: list[str]) -> None:
    assert sort in ORDERS
    assert [run.folder.name for run in chosen(View(some, sort=sort))] == names


def test_runs_are_filtered_by_state_and_name(some: Path) -> None:
    assert [run.folder.name for run in chosen(View(some, states=["failed", "dead"]))] == ["three", "two"]
    assert [run.folder.name for run in chosen(View(some, name="digits/t"))] == ["two"]
    assert [run.folder.name for run in chosen(View(some, name="text*three"))] == ["three"]


# ---------------------------------------------------------------------- the table


def test_the_table_says_how_each_run_stands(some: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with locked(some / "text" / "three"):
        assert main(["runs", str(some)]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["RUN", "STATE", "RECIPE", "WORLD", "STEP", "BEST", "AGE", "WHERE"]
    cells = [re.split(r"\s{2,}", row) for row in rows]
    assert cells == [
        [f"{some}/text/three", "running", "text", "1", "12/20", "accuracy 0.8000", "30 s", "node7"],
        [f"{some}/digits/two", "failed", "digits", "8", "12/20", "accuracy 0.7000", "1 min", "job 4242 on node7"],
        [f"{some}/digits/one", "finished", "digits", "1", "12/20", "accuracy 0.9000", "2 h", "node7"],
    ]


def test_json_is_one_object_a_line(some: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", str(some), "--json", "--state", "finished", "--sort", "best"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    assert (found["state"], found["step"], found["world"], found["host"]) == ("finished", 12, 1, "node7")
    assert found["best"] == {"metric": "accuracy", "mode": "max", "value": 0.9, "step": 5, "on": "validation"}


def test_a_metric_that_no_run_has_measured_is_refused(some: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "best", "acuracy", str(some)]) == 2
    message = (
        "acuracy: no run has measured that; did you mean 'accuracy'? Write `launcher runs best accuracy` or `launcher"
    )
    assert capsys.readouterr().err.startswith(message)
    for word, meant in (("acc", "accuracy"), ("wer", None)):
        assert main(["runs", "best", word, str(some)]) == 2
        assert (f"did you mean '{meant}'?" in capsys.readouterr().err) == (meant is not None)
    assert main(["runs", "best", "accuracy:min", str(some)]) == 0


@pytest.mark.parametrize(
    ("metric", "better", "first"),
    [
        ("ece", {"ece": "min"}, "two"),
        ("lossless_ratio", {"lossless_ratio": "max"}, "one"),
        ("ema/ece", {"ece": "min"}, "two"),
        ("ema/loss", {}, "two"),
        ("ema/accuracy", {}, "one"),  # evaluate.best says it of the weights as they are
        ("lossless_ratio", {"ece": "min"}, None),
        ("val_mae", {}, None),
        ("ece", None, None),  # of a version that wrote nothing down
    ],
)
def test_the_direction_of_a_metric_is_known_or_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], metric: str, better: dict[str, str] | None, first: str | None
) -> None:
    for name, value in (("one", 0.9), ("two", 0.1)):
        folder = made(tmp_path / name, "finished")
        line = {"step": 9, "split": "validation", metric: value, "time": time.time()}
        (folder / "metrics.jsonl").write_text(encode(line) + "\n")
        if better is not None:
            event = {"event": "train", "step": 0, "time": time.time(), "better": better}
            (folder / "events.jsonl").write_text(json.dumps(event) + "\n")
    assert main(["runs", "best", metric, str(tmp_path)]) == (2 if first is None else 0)
    screen = capsys.readouterr()
    if first is None:
        assert screen.err.strip().endswith(f"is not known; write {metric}:max or {metric}:min")
        return
    direction, _, _, best, _ = screen.out.splitlines()
    assert direction.split() == ["metric", f"{metric}:{'max' if first == 'one' else 'min'}"]
    assert best.startswith(str(tmp_path / first))


def test_no_runs_and_no_folder_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"no runs in {tmp_path}\n"
    assert main(["runs", str(tmp_path / "nowhere")]) == 2
    assert "no such run or folder" in capsys.readouterr().err
    assert main(["runs", str(tmp_path), "--watch"]) == 2
    assert "not a terminal" in capsys.readouterr().err


def test_watching_shows_what_changes_until_ctrl_c(some: Path) -> None:
    child, terminal = pty.fork()
    if child == 0:
        os.environ.update(COLUMNS="200", LINES="30", TERM="xterm-256color")
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore it
        os.execv(sys.executable, [sys.executable, "-m", "launcher", "runs", str(some), "--watch"])
    seen = ""
    try:
        for word in ("dead", "stopped"):
            while word not in seen:
                assert select.select([terminal], [], [], 60)[0], seen
                seen += os.read(terminal, 65536).decode()
            end(some / "text" / "three", "stopped")
        os.write(terminal, b"\x03")
        while select.select([terminal], [], [], 60)[0]:
            try:
                seen += os.read(terminal, 65536).decode()
            except OSError:  # how a terminal ends
                break
    finally:
        os.close(terminal)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 130
    assert seen.endswith("\x1b[?25h\x1b[?1049l")  # the cursor and the screen are given back
    assert "Traceback" not in seen


# ---------------------------------------------------------------------- logs


def test_a_log_is_shown_and_its_absence_explained(some: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = some / "digits" / "one"
    assert main(["logs", str(folder)]) == 2
    assert "has not printed anything yet" in capsys.readouterr().err
    for rank in (0, 1, 10):
        (folder / "logs" / f"rank-{rank}.log").write_text(f"I am {rank}, µ\n")
    assert main(["logs", str(folder), "--rank", "10"]) == 0
    assert capsys.readouterr().out == "I am 10, µ\n"
    (folder / "logs" / "rank-1.log").write_text("a\x1b]0;T\x07\x9b2J\u202e\rb\t👩\u200d💻\r\n", newline="")
    assert main(["logs", str(folder), "--rank", "1"]) == 0
    assert capsys.readouterr().out == "a\\x1b]0;T\\x07\\x9b2J\\u202e\nb\t👩\u200d💻\n"  # no cursor is moved
    assert main(["logs", str(folder), "--rank", "2"]) == 2
    assert "rank 2 has no log; there are logs of rank 0, 1, 10" in capsys.readouterr().err


def test_a_log_is_followed_until_its_run_ends(some: Path) -> None:
    folder = some / "text" / "three"
    log = folder / "logs" / "rank-0.log"
    log.write_text("first\n")
    with ExitStack() as stack:
        stack.enter_context(locked(folder))
        command = [sys.executable, "-m", "launcher", "logs", "-f", str(folder)]
        follower = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        stack.callback(follower.send_signal, signal.SIGKILL)  # only where the test fails
        assert follower.stdout is not None
        assert follower.stdout.readline() == "first\n"
        with log.open("a") as file:
            for line in ("second\n", "third\n"):
                file.write(line)
                file.flush()
                assert follower.stdout.readline() == line
            file.write("last\n")
        end(folder, "finished")
        assert follower.stdout.read() == "last\n"
        assert follower.wait(60) == 0


def test_a_run_of_an_earlier_version_is_shown_in_today_s_words(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text('{"state": "preempted"}')
    assert Run(tmp_path).state == "stopped"


def test_a_run_that_was_started_by_hand_is_cancelled_by_its_process(
    some: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cancel", str(some / "text/three")]) == 2
    assert "no job was submitted for it; it is not running" in capsys.readouterr().err
    with locked(some / "text/three"):
        assert main(["cancel", str(some / "text/three")]) == 2
    assert f"as process {os.getpid()}: stop it with Ctrl-C there, or `kill {os.getpid()}`" in capsys.readouterr().err


def test_what_came_from_python_is_told_by_what_it_is_called(tmp_path: Path) -> None:
    for name in ("AdamW", "SGD"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "resolved.yaml").write_text(f'name: run\noptimizer: "given from Python: {name}"\n')
    runs = [Run(tmp_path / name) for name in ("AdamW", "SGD")]
    assert list(differing(runs).values()) == [{"optimizer": "AdamW"}, {"optimizer": "SGD"}]


@pytest.mark.parametrize(
    ("values", "short"),
    [
        (("0.009000000000000001", "0.008", "100000"), ["0.009", "0.008", "100000"]),
        (("0.12345678", "0.12345679"), ["0.12345678", "0.12345679"]),
        (("true", "0.30000000000000004"), ["true", "0.3"]),
    ],
)
def test_numbers_are_shown_with_as_few_digits_as_tell_them_apart(
    tmp_path: Path, values: tuple[str, ...], short: list[str]
) -> None:
    runs = [Run(tmp_path / str(number)) for number in range(len(values))]
    found = shown({run: {"lr": value} for run, value in zip(runs, values, strict=True)})
    assert [found[run]["lr"] for run in runs] == short


def test_the_states_are_those_that_runs_have() -> None:
    assert set(STATES) == {"queued", "running", "finished", "stopped", "failed", "dead"}


def test_no_fact_about_the_machine_takes_the_place_of_what_was_asked_for() -> None:
    asked = {"command": ["launcher"], "recipe": "a.yaml", "overrides": [], "remove": [], "allow": [], "cpu": False}
    recorded = environment(asked)
    assert {name: recorded[name] for name in asked} == asked
