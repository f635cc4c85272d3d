"""What a run shows: on a terminal, in plain lines, and as JSON."""

from __future__ import annotations

import inspect
import math
import os
import pty
import re
import select
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
from tracked import log_steps, strictly, track, train_line, validation_line

from launcher.runs.tracking.console import tables
from launcher.runs.tracking.json_lines import lines_schema
from launcher.runs.tracking.scores import Scores
from launcher.runs.tracking.tracking import NoTracking, Tracking, read_metrics
from launcher.text import duration, number, short


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


def test_names_are_neither_markup_nor_escape_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = "[/]:heart:\x1b[2J"
    tracking = track(tmp_path)
    tracking.start([])
    tracking.log(train_line(1000))
    tracking.log(validation_line(1000, name=odd, **{odd: 0.5}))
    tracking.close("finished", [validation_line(1000, name=odd, **{odd: 0.5})])
    print(tables([{"split": "validation", "name": odd, "step": 1, odd: [0.5, 0.5]}]))
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert shown.count("[/]:heart:\\x1b[2J") >= 4
    assert "the display failed" not in shown


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
        "validation  step 300   train loss 0.003333  loss 0.1200               accuracy 0.9780 best",
        "saved step 300",
        "validation  step 400   train loss 0.003333  loss 0.1000 (-0.02)       accuracy 0.9810 (+0.003) best",
        "validation clean  step 500   train loss 0.003333  loss 1.000e-5             accuracy 0.9800",
    ]
    table = [re.split(r"\s{2,}", line.strip()) for line in lines if line.startswith(("step  ", "loss  ", "accuracy"))]
    assert table == [
        ["step", "300", "400", "500"],
        ["loss", "0.003333", "0.1000", "1.000e-5"],
        ["accuracy", "0.9810", "0.9800"],
    ]
    assert re.fullmatch(rf"finished  step 500  in \d:\d\d  {re.escape(str(tmp_path))}", lines[-2])
    assert lines[-1] == f"report    launcher report {tmp_path}"


@pytest.mark.parametrize("total", [1000, None])
def test_columns_of_evaluations_stand_below_each_other_from_the_first_line_on(total: int | None) -> None:
    scores = Scores(("accuracy", "max"), "", total_steps=total)
    shown = [
        scores.add(
            validation_line(3**place, loss=loss, accuracy=1 - loss / 3, f1=loss), train_line(1) | {"loss": loss / 2}
        ).plain
        for place, loss in enumerate([1.5, 0.3333, 0.03125, 0.0123, 0.001234, 1.25e-5, 12.5])
    ]
    for label in ("train loss", "  loss", "accuracy", "f1"):
        assert len({line.index(label) for line in shown}) == 1, shown


def test_a_finished_run_without_its_last_checkpoint_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for saved in (1000, 900):
        tracking = track(tmp_path)
        tracking.log(train_line(1000))
        tracking.close("finished", [], saved)
        last = capsys.readouterr().out.splitlines()[-2]
        assert ("the last checkpoint is of step 900" in last) == (saved == 900)


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
    tracking.close("stopped", [], 300)
    capsys.readouterr()
    tracking = track(tmp_path, start_step=200)
    tracking.log(validation_line(300, loss=0.3, accuracy=0.85))
    assert capsys.readouterr().out == "validation  step 300   loss 0.3000 (-0.1)        accuracy 0.8500 (+0.05)\n"


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
    printed = [strictly(text) for text in capsys.readouterr().out.splitlines()]
    for one in printed:
        jsonschema.validate(one, lines_schema())
    plan, line, message, end = printed
    assert plan == {"kind": "plan", "plan": {"device": "cpu"}}
    assert {key: line[key] for key in ("step", "split", "loss")} == {"step": 10, "split": "train", "loss": "Infinity"}
    assert message == {"kind": "message", "message": "saved\nstep 10"}
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
    assert capsys.readouterr().err.count("training continues") == 1


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
    from launcher.runs.tracking.tracking import open_tracking

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
    assert "\r\nvalidation  step 300  train loss 0.003333  loss 0.5000\r\n" in plain
    assert "the user's own words\r\n" in plain
    assert "\x1b[?25l" not in out  # the cursor is never hidden, so that no crash leaves it so
    assert re.search(
        rf"\r\nfinished  step 300  in \d+:\d\d  {re.escape(str(tmp_path))}\s+report +launcher report", plain
    )


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
