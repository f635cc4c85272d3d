"""A storm on a real SLURM cluster; its plain sister is `test_whatever_happens_to_it_the_end_is_bit_equal`."""

from __future__ import annotations

import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from cluster import Cluster, a_cluster, log, number_of, reached
from places import RECIPES, ROOT
from worlds import Command, result_of

from launcher.cli.main import main
from launcher.runs.reading import Run

ROUNDS = 14  # of four signals each
STEPS = 2500
RECIPE = (
    *("data.train={_target_: parts.py:Cut}", "model={_target_: parts.py:InAStorm}", "data.workers=1", "train.ema=0.9"),
    *(f"train.steps={STEPS}", "save={every: 3 steps, keep: 2}", "launch.threads=1"),
    *("launch.max_restarts=100", "slurm.max_requeues=200"),
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    yield from a_cluster()


def processes_of(run: Path) -> list[psutil.Process]:
    """A run's ranks on all nodes, and their workers."""
    own = {"train", str(run)}
    return [one for one in psutil.process_iter(["cmdline", "name"]) if is_of(one, own)]


def is_of(process: psutil.Process, words: set[str]) -> bool:
    return words <= {*(process.info["cmdline"] or ())} and process.info["name"] != "srun"


def ranks_of(run: Path) -> list[psutil.Process]:
    every = processes_of(run)
    return [one for one in every if one.ppid() not in {other.pid for other in every}]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_whatever_signals_come_the_end_is_the_same(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = Path(tempfile.mkdtemp(dir="/tmp"))  # short: it is for sockets
    for name in ("tiny.yaml", "parts.py"):
        shutil.copy(RECIPES / name, tmp_path)
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TMPDIR": str(temporary), "HOME": str(tmp_path)}
    for name, value in {**cluster.environment, **own, "LAUNCHER_SITE": "", "STORM_PACE": "0.02"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    run, chance = tmp_path / "run", random.Random(ROUNDS)
    flags = ("--cpu", "--nodes", "2", "--processes", "3", "--time", "60", f"--run-dir={run}")
    assert main(["submit", "tiny.yaml", *flags, *RECIPE]) == 0
    try:
        for number in range(ROUNDS):
            one_more(cluster, run, chance, is_asked=number % 2 == 0)
        assert Run(run).step < STEPS - 50
        Path("calm").touch()
        assert cluster.ended(number_of(run), 300) == "COMPLETED 0:0", log(cluster.job(number_of(run)))
    finally:
        cluster.say("scancel", number_of(run))
    straight = ("train", "tiny.yaml", "--cpu", "--quiet", "--processes=3", "device.ddp.shared_memory=false", *RECIPE)
    done = Command(tmp_path, *straight, "--run-dir=straight", STORM_PACE="0").wait()
    assert done.code == 0, done.screen
    assert result_of(run).distance(result_of(tmp_path / "straight")) == 0
    assert not processes_of(run)
    temporary.rmdir()  # nothing is in it


def kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def one_more(cluster: Cluster, run: Path, chance: random.Random, *, is_asked: bool) -> None:
    """Waits for the run to get further, and for a moment; then something ends this start of it.

    Two failures in a row on one host would leave it out, so that none would be left: between them it is asked to stop.
    """
    starts = sum(event["event"] in ("start", "resume") for event in Run(run).events) if run.exists() else 0
    cluster.until(reached(run, Run(run).step + 4, starts or 1), job=number_of(run), seconds=200)
    starts, job = sum(event["event"] in ("start", "resume") for event in Run(run).events), number_of(run)
    time.sleep(chance.uniform(0.0, 0.5))
    paused = chance.choice(processes_of(run))
    paused.suspend()
    paused.send_signal(signal.SIGHUP)  # a rank leaves it be, and so does a worker
    time.sleep(0.2)
    paused.resume()
    asking: tuple[Callable[[], object], ...] = (
        lambda: cluster.say("scancel", "--signal=TERM", job),
        lambda: cluster.say("scancel", "--signal=USR2", job),
        lambda: cluster.say("scontrol", "requeue", job),
        lambda: chance.choice(ranks_of(run)).send_signal(signal.SIGUSR2),
    )
    killing: tuple[Callable[[], object], ...] = (
        lambda: chance.choice(processes_of(run)).kill(),
        lambda: kill(processes_of(run)),
        lambda: chance.choice(ranks_of(run)).send_signal(signal.SIGUSR1),
    )
    chance.choice(asking if is_asked else killing)()
    cluster.until(
        lambda: (
            sum(event["event"] in ("start", "resume") for event in Run(run).events) > starts
            or Run(run).state == "finished"
        ),
        job=job,
        seconds=200,
    )
