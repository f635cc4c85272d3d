"""What is printed and what is kept of it, however long a line is.

Where something took time in the square of a line's length, these tests would not end: they hold no clock of their own.
"""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
    "a bar that is drawn anew": "\r 50%" * (LONG // 5),
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
