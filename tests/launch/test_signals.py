"""The launcher as a shell sees it: asked to stop, and killed; and no process left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from tiers import rounds
from worlds import TINY, Command, Trained, result_of, train

import launcher

LONG = ("train.epochs=4000", "track.every=20 steps", "launch.threads=1")


def start(folder: Path, *flags: str, **world: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "launcher", "train", str(TINY), *LONG, "--cpu", "--run-dir", "run", *flags]
    environment = {**os.environ, **world, "PYTHONPATH": str(Path(launcher.__file__).parent.parent)}
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # a group of its own, as a terminal's Ctrl-C finds it
    )


def until(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.05)


def trains(folder: Path) -> bool:
    path = folder / "run" / "metrics.jsonl"
    return path.exists() and path.stat().st_size > 0


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]


def gone(processes: list[psutil.Process]) -> bool:
    return not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in processes)


PACED = ("data.train={_target_: parts.py:Paced, seconds: 0.05}", "train.epochs=15", "train.step=parts.py:witnessed")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return train(folder / "run", *PACED, "data.train.seconds=0", size=2)


@rounds("target", plain=["launcher", "Ctrl-C"], long=["rank"])
def test_asked_to_stop_it_saves_ends_with_75_and_goes_on(
    tmp_path: Path, target: str, undisturbed: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = start(tmp_path, "--processes", "2", *PACED)
    until(lambda: trains(tmp_path))
    everyone = family(process)
    rank = next(one for one in everyone[1:] if "-u" in one.cmdline())
    if target == "Ctrl-C":
        os.killpg(process.pid, signal.SIGINT)
    else:
        os.kill(process.pid if target == "launcher" else rank.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 75, output
    assert ("once more to leave at once" in output) == (target == "Ctrl-C")
    assert "KeyboardInterrupt" not in output
    until(lambda: gone(everyone), 10)
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["state"] == "stopped"
    assert 0 < status["step"] < 60
    assert (tmp_path / "run" / "checkpoints" / f"step-{status['step']:08d}").is_dir()
    assert [(tmp_path / f"steps-{rank}").read_text() for rank in range(2)] == [str(status["step"])] * 2
    if target == "launcher":  # on as many processes as were asked for then
        done = Command(tmp_path, "resume", "run").wait()
        assert (done.code, "world      2 processes" in done.screen) == (0, True), done.screen
        assert result_of(tmp_path / "run").distance(undisturbed) == 0
        return
    monkeypatch.chdir(tmp_path)
    assert train(tmp_path / "run", *PACED, size=2).distance(undisturbed) == 0


def test_kill_9_of_the_launcher_takes_the_ranks_with_it(tmp_path: Path) -> None:
    process = start(tmp_path, "--processes", "2", "data={train: {_target_: parts.py:Noisy}, workers: 1}")
    until(lambda: trains(tmp_path))
    everyone = family(process)
    assert len(everyone) >= 5  # the launcher, two ranks, a worker of each
    process.kill()
    until(lambda: gone(everyone), 5)  # the bound that a user is promised
    process.communicate(timeout=60)


def test_a_second_ctrl_c_leaves_at_once(tmp_path: Path) -> None:
    slow = "data.train={_target_: parts.py:Paced, seconds: 8, least: 16}"  # the first step's, not those tried before
    process = start(tmp_path, slow)
    until(lambda: (tmp_path / "run" / "status.json").exists())
    process.send_signal(signal.SIGINT)
    time.sleep(2.5)
    assert process.poll() is None  # it waits for the step to end
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "once more to leave at once" in output
    train(tmp_path / "run", *LONG[1:], "train={steps: 1}")  # the folder is free for the next


def test_a_second_launch_into_a_living_run_is_refused_and_touches_nothing(tmp_path: Path) -> None:
    arguments = ("train", str(TINY), *LONG, "--cpu", "--processes", "2", "--run-dir", "run", "--quiet")
    first = Command(tmp_path, *arguments)
    until(lambda: trains(tmp_path))
    before = {path: path.stat().st_ino for path in (tmp_path / "run").rglob("*") if ".ranks" in path.parts}
    assert before
    second = Command(tmp_path, *arguments).wait()
    assert second.code == 2, second.screen
    assert "is being written by process" in second.screen
    assert {path: path.stat().st_ino for path in before} == before
    assert "is being written" not in (tmp_path / "run" / "logs" / "rank-0.log").read_text()
    first.process.terminate()
    assert first.wait().code == 75


# ---------------------------------------------------------------------- before Python has loaded anything


def mask(pid: int, kind: str) -> int:
    """The signals that a process blocks (`SigBlk`) or handles (`SigCgt`), a bit for each."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith(kind)), 16)


def cannot_die_of(pid: int, number: int) -> bool:
    return bool((mask(pid, "SigBlk") | mask(pid, "SigCgt")) >> (number - 1) & 1)


@rounds("name, moment", plain=[("SIGUSR2", 0.0)], long=[("SIGTERM", 0.0), ("SIGUSR2", 0.1), ("SIGUSR2", 0.5)])
def test_a_rank_that_is_asked_to_stop_while_it_is_loaded_saves(tmp_path: Path, name: str, moment: float) -> None:
    world = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    process = start(tmp_path, "--quiet", **world)
    until(lambda: cannot_die_of(process.pid, getattr(signal, name)))  # Python itself is loaded until then
    time.sleep(moment)
    process.send_signal(getattr(signal, name))
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output  # not 75, which an agent would take for a failure
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "stopped"


@pytest.mark.parametrize(("module", "code"), [("argparse", -signal.SIGINT), ("pydantic", 130)])
def test_a_ctrl_c_while_modules_are_loaded_leaves_no_traceback(tmp_path: Path, module: str, code: int) -> None:
    (tmp_path / f"{module}.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    path = os.pathsep.join([str(tmp_path), str(Path(launcher.__file__).parent.parent)])
    command = [sys.executable, "-m", "launcher", "train", str(TINY), "--cpu"]
    ended = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=60
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (code, "", "")


def test_ranks_of_ours_cannot_die_of_it_at_any_moment(tmp_path: Path) -> None:
    process = start(tmp_path, "--quiet", "--processes", "2")
    ranks: set[int] = set()
    while len(ranks) < 2:
        assert process.poll() is None
        for one in psutil.Process(process.pid).children():
            if one.pid not in ranks:
                ranks.add(one.pid)
                one.send_signal(signal.SIGUSR2)  # the first thing that befalls it
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 75, output
    status = tmp_path / "run" / "status.json"
    if not status.exists():  # asked before the ranks had met: nothing was begun
        assert "stopped while waiting for " in output
        assert "failed" not in output
    else:
        assert json.loads(status.read_text())["state"] == "stopped"
