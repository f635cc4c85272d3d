"""What is printed and what is kept of it, however long a line is.

Where something took time in the square of a line's length, these tests would not end: they hold no clock of their own.
"""

from __future__ import annotations

import io
import os
import re
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from places import RECIPES
from worlds import Command, free_port

from launcher.recipe.masking import masked
from launcher.runs.copy_output import copy
from launcher.runs.logs import Prefixed, Tee, plain
from launcher.world.failure import Failure, of_exception
from launcher.world.failure_report import FAILURE_FILE, Report
from launcher.world.hints import hint_for
from launcher.world.notes import Notes

# what a log's copy leaves out, as it was first written: right, and too slow for long lines
REFERENCE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[^\n]*\r(?!\n)")
LONG = 5_000_000


@given(st.text(alphabet="ab\r\n", max_size=40))
def test_of_a_redrawn_line_the_log_has_what_was_drawn_last(text: str) -> None:
    assert plain(text) == REFERENCE.sub("", text)


@given(st.lists(st.sampled_from(["a", "\n", "\x1b[1m", "\x1b[0;31m", "\x1b[?25l", "\x1b[", "\x1b", "7;"]), max_size=20))
def test_colours_are_left_out(pieces: list[str]) -> None:
    assert plain("".join(pieces)) == REFERENCE.sub("", "".join(pieces))


LINES = {
    "a vocabulary": "token 'a', " * (LONG // 11),
    "a bar that is drawn again": "\r 50%" * (LONG // 5),
    "colours": "\x1b[31m7" * (LONG // 6),
    "half a colour": "\x1b[" + "1;" * (LONG // 2),
    "many halves": "\x1b[1" * (LONG // 4),
    "short lines": "x\r\n" * (LONG // 3),
}


@pytest.mark.parametrize("text", LINES.values(), ids=LINES.keys())
@pytest.mark.timeout(60)
def test_a_long_line_costs_no_more_than_its_length(text: str) -> None:
    screen, file = io.StringIO(), io.StringIO()
    tee = Tee(screen, file)
    assert tee.write(text) == len(text)
    assert screen.getvalue() == text
    assert len(file.getvalue()) <= len(text)


@pytest.mark.timeout(60)
def test_a_long_line_in_small_pieces_costs_no_more_than_its_length() -> None:
    screen = io.StringIO()
    stream = Prefixed(screen, "[rank 1] ")
    for _ in range(LONG // 10):
        stream.write("token")
    assert screen.getvalue() == ""  # not while another rank's may come between
    stream.write("\nnext")
    assert screen.getvalue() == "[rank 1] " + "token" * (LONG // 10) + "\n"


WORDS = {
    "one word": "x" * LONG,
    "what a hint looks for, over and over": "Expected couldn't find shape ' " * (LONG // 31),
    "a page": "<p>\n" * (LONG // 4),
}


@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS.keys())
@pytest.mark.timeout(60)
def test_an_exception_of_megabytes_is_told_in_a_few_lines(tmp_path: Path, words: str) -> None:
    failure = failed(words)
    assert len(failure.line) < 1000
    report = Report(failure, tmp_path, "again", "resume")
    hint_for(failure)
    assert len(report.text()) < 6000
    report.write()
    Notes(tmp_path).write(failure)
    for path in (tmp_path / FAILURE_FILE, Notes(tmp_path).folder / "0.json"):
        assert path.stat().st_size < 400_000
    if "\n" not in words:
        assert f"({len(words.strip()) + 12:,} characters; the log has them all)" in failure.noted["what"]
    assert words in failure.traceback  # which goes to the rank's log


def failed(words: str) -> Failure:
    try:
        raise ValueError(words)
    except ValueError as error:
        return of_exception(error)


# ---------------------------------------------------------------------- what compiled code and other programs print

TOKEN = "hf_" + "abcdefghij" * 3
LOUD = f'''
import ctypes, os, subprocess, time
from parts import Net as Quiet

class Net(Quiet):
    def __init__(self):
        super().__init__()
        compiled = ctypes.CDLL(None)
        compiled.printf(b"compiled {TOKEN}\\n")
        compiled.fflush(None)
        os.write(2, b"half {TOKEN[:12]}")
        os.write(2, b"{TOKEN[12:]} whole\\n")
        subprocess.run(["echo", "child https://bob:hunter2@host/x"])
        os.write(1, b"-----BEGIN RSA PRIVATE KEY-----\\nMIIB1\\n")
        time.sleep(0.1)
        os.write(1, b"MIIB2\\n-----END RSA PRIVATE KEY-----\\n")
        os.write(1, b"x" * 2_000_000 + b"\\nafter\\n")
'''


@pytest.mark.parametrize("started_by", ["launcher", "torchrun"])
def test_what_compiled_code_prints_is_in_the_log_without_secrets(tmp_path: Path, started_by: str) -> None:
    for name in ("tiny.yaml", "parts.py"):
        (tmp_path / name).write_text((RECIPES / name).read_text())
    (tmp_path / "loud.py").write_text(LOUD)
    words = ("train", "tiny.yaml", "model={_target_: loud.py:Net}", "--cpu", "--quiet", "--run-dir=run")
    if started_by == "launcher":
        done = [Command(tmp_path, *words, "--processes=2").wait()]
        ranks = [0, 1]
    else:  # rank 0 keeps its terminal to itself
        world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        both = [Command(tmp_path, *words, **world, RANK=rank, LOCAL_RANK=rank) for rank in "01"]
        done, ranks = [command.wait() for command in both], [1]
    assert [one.code for one in done] == [0] * len(done), done
    for rank in ranks:
        log = (tmp_path / "run" / "logs" / f"rank-{rank}.log").read_text()
        assert "compiled hf_***\n" in log
        assert "half hf_*** whole\n" in log
        assert "child https://***@host/x\n" in log
        assert "-----BEGIN PRIVATE KEY----- ***\n" in log
        assert "after\n" in log
        assert not [secret for secret in (TOKEN, "hunter2", "MIIB1", "MIIB2") if secret in log]
        assert log.count("x") > 2_000_000
    assert all(TOKEN in one.screen for one in done if started_by == "launcher")  # the screen is its owner's


def test_half_a_line_is_written_after_a_while_and_at_the_end(tmp_path: Path) -> None:
    read, write = os.pipe()
    log = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    copying = threading.Thread(target=copy, args=(log, {read: None}, masked))
    copying.start()
    os.write(write, b"a prompt: ")
    while not (tmp_path / "log").read_bytes():
        time.sleep(0.05)
    os.write(write, b"\xff and no end")
    os.close(write)
    copying.join()
    assert (tmp_path / "log").read_bytes().decode() == "a prompt: \ufffd and no end"
