"""How a process ends: with its code, whatever the user's own code has left running."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

LEFT_OVER = {
    "thread": "threading.Thread(target=time.sleep, args=(1000,), name='mine').start()",
    "timer": "threading.Timer(1000, print).start()",
    "pool": "concurrent.futures.ThreadPoolExecutor(2, 'mine').submit(time.sleep, 1000)",
    "process": "multiprocessing.get_context('fork').Process(target=time.sleep, args=(1000,), name='mine').start()",
    "deaf": "multiprocessing.get_context('fork').Process(target=deaf, name='mine').start()",
}
PROGRAM = """
import atexit, concurrent.futures, multiprocessing, signal, sys, threading, time
from launcher.world import exit

exit.LEAVING_SECONDS = 0.5

def deaf():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(1000)

def program():
    atexit.register(print, "cleaned up")
    {left_over}
    print("done")
    {ending}

exit.ended_by(program)
"""
ENDINGS = {"return 0": 0, "return 3": 3, "sys.exit(75)": 75, "raise ValueError('mine')": 1}


def ended(folder: Path, left_over: str, ending: str) -> subprocess.CompletedProcess[str]:
    path = folder / "program.py"
    path.write_text(PROGRAM.format(left_over=left_over, ending=ending))
    command = [sys.executable, "-W", "ignore", str(path)]
    folders = {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=folders)


@pytest.mark.parametrize("left_over", LEFT_OVER)
def test_what_is_left_running_is_named_and_not_waited_for(tmp_path: Path, left_over: str) -> None:
    done = ended(tmp_path, LEFT_OVER[left_over], "return 3")
    assert (done.returncode, done.stdout) == (3, "done\ncleaned up\n"), done.stderr
    kind = "process" if left_over in ("process", "deaf") else "thread"
    assert done.stderr.startswith(f"launcher: left without the {kind} '{'Thread-' if left_over == 'timer' else 'mine'}")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_exit_code_is_the_program_s_own(tmp_path: Path, ending: str) -> None:
    done = ended(tmp_path, LEFT_OVER["thread"], ending)
    assert done.returncode == ENDINGS[ending], done.stderr
    assert "the thread 'mine'" in done.stderr


@pytest.mark.parametrize("left_over", ["threading.Thread(target=time.sleep, args=(0.1,)).start()", "pass"])
def test_what_ends_soon_is_waited_for_without_a_word(tmp_path: Path, left_over: str) -> None:
    done = ended(tmp_path, left_over, "return 0")
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\ncleaned up\n", "")


def test_the_place_of_a_thread_is_the_user_s_own_line(tmp_path: Path) -> None:
    own = "threading.Thread(target=lambda: time.sleep(1000), name='mine').start()"
    done = ended(tmp_path, own, "return 0")
    line = PROGRAM.format(left_over=own, ending="").splitlines().index(f"    {own}") + 1
    assert f"still ran in {tmp_path / 'program.py'}:{line};" in done.stderr
