"""What a process needs while it lives: gone when it has ended, however that was, and nobody else's before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import ROOT

from launcher.world.temporary import held_file, held_folder, sweep, temporary_folder

HOLDER = """
import os, sys, time
from launcher.world.temporary import held_file, held_folder
folder, _ = held_folder()
(folder / "socket").touch()
file, _ = held_file(folder.parent)
print(folder, file, flush=True)
time.sleep(float(sys.argv[1]))
assert (folder / "socket").exists() and file.exists()
"""


@pytest.fixture
def tmp_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """TMPDIR, of one's own, with a name that is short enough for sockets."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        monkeypatch.setenv("TMPDIR", name)
        monkeypatch.setattr(tempfile, "tempdir", None)
        yield Path(name)


def holder(seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLDER, str(seconds)]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True)


def said(process: subprocess.Popen[str]) -> list[Path]:
    assert process.stdout is not None
    return [Path(name) for name in process.stdout.readline().split()]


def test_what_a_killed_process_has_left_goes_with_the_next(tmp_path: Path) -> None:
    living, killed = holder(60), holder(60)
    kept, left = said(living), said(killed)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    try:
        assert all(path.exists() for path in (*kept, *left))
        with temporary_folder() as folder:
            assert set(tmp_path.iterdir()) == {folder, *kept}
        assert set(tmp_path.iterdir()) == {*kept}
        living.send_signal(signal.SIGSTOP)  # it lives all the same
        sweep(tmp_path)
        assert set(tmp_path.iterdir()) == {*kept}
    finally:
        living.kill()
        living.communicate()
    sweep(tmp_path)
    assert not list(tmp_path.iterdir())


def test_nobody_takes_what_another_has_just_made(tmp_path: Path) -> None:
    everybody = [holder(1.0) for _ in range(8)]
    for process in everybody:
        process.communicate()
    assert [process.returncode for process in everybody] == [0] * 8
    sweep(tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_is_not_ours_stays(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").touch()
    (tmp_path / "launcher_tmp_link").symlink_to(elsewhere)
    (tmp_path / "pymp-abc").mkdir()
    os.mkfifo(tmp_path / "launcher_tmp_pipe")
    if os.geteuid() == 0:
        os.mkdir(tmp_path / "launcher_tmp_other")
        os.chown(tmp_path / "launcher_tmp_other", 54321, 54321)
    before = {path for path in tmp_path.rglob("*") if path.name != "launcher_tmp_pipe"}
    sweep(tmp_path)
    sweep(tmp_path / "not there")
    assert before <= set(tmp_path.rglob("*"))


def test_a_folder_that_cannot_be_written_is_an_error_of_the_system_s(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        held_file(tmp_path / "not there")
    path, descriptor = held_folder()
    assert path.parent == tmp_path
    os.close(descriptor)
