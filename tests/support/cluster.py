"""A real SLURM cluster of three nodes on this machine, for tests: one for all of them."""

from __future__ import annotations

import os
import random
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from places import ROOT

from launcher.runs.job import Submission
from launcher.runs.reading import Run

SCRIPT = ROOT / "scripts" / "slurm_cluster"


@dataclass(frozen=True)
class Cluster:
    """A cluster that is up.

    Attributes:
        environment: The variables with which SLURM's commands mean it.
        has_cables: Whether its nodes have a network whose cables can be pulled.
    """

    environment: dict[str, str]
    has_cables: bool

    def act(self, *words: str) -> None:
        """Lets something happen to a node, as `power-off 1`."""
        subprocess.run([str(SCRIPT), *words], env={**os.environ, **self.environment}, check=True)

    def say(self, *command: str) -> str:
        """What a command of SLURM's says."""
        environment = {**os.environ, **self.environment}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout

    def job(self, number: str) -> dict[str, str]:
        """What the controller knows of a job."""
        shown = self.say("scontrol", "show", "job", "--oneliner", number)
        return dict(re.findall(r"(\w+)=(\S*)", shown))

    def hurry(self, number: str) -> None:
        """A requeued job waits two minutes; not here, but so long that its nodes have done with the start before.

        One that comes at once is refused there: `Job credential revoked`.
        """
        shown = self.job(number)
        if shown.get("JobState") == "PENDING" and int(shown.get("Restarts", "0")):
            due = shown.get("StartTime", "Unknown")
            if due != "Unknown" and datetime.fromisoformat(due) - datetime.now() > timedelta(seconds=5):
                self.say("scontrol", "update", f"JobId={number}", "StartTime=now+2")

    def until(self, condition: Callable[[], bool], *, job: str, seconds: float = 150) -> None:
        """Waits for something; the job's log is shown where it does not come."""
        deadline = time.monotonic() + seconds
        while not condition():
            shown = self.job(job)
            assert time.monotonic() < deadline, f"{shown}\n{log(shown)}"
            self.hurry(job)
            time.sleep(0.3)

    def ended(self, number: str, seconds: float = 150) -> str:
        """Waits for a job's end; gives its state and exit code, as in `COMPLETED 0:0`."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "DEADLINE", "BOOT_FAIL")
        self.until(lambda: self.job(number).get("JobState") in over, job=number, seconds=seconds)
        shown = self.job(number)
        return f"{shown['JobState']} {shown['ExitCode']}"


def log(shown: dict[str, str]) -> str:
    """What a job has printed, by what the controller knows of it."""
    path = Path(shown.get("StdOut", ""))
    return path.read_text(errors="replace") if path.is_file() else ""


def number_of(folder: Path) -> str:
    """The job of a run."""
    return Submission.read(folder).job


def reached(folder: Path, step: int, start: int = 1) -> Callable[[], bool]:
    """Whether a run's n-th start has come to a step."""

    def come() -> bool:
        run = Run(folder)
        starts = [event for event in run.events if event["event"] in ("start", "resume")]
        return len(starts) >= start and run.step >= step

    return come


def start_cluster(folder: Path, **settings: str) -> Cluster:
    """Starts it, or skips with the reason why there can be none.

    Args:
        folder: Of its own.
        **settings: Variables of `scripts/slurm_cluster`.
    """
    if os.geteuid() != 0:
        pytest.skip("a SLURM cluster of one's own needs root")
    if not all(
        shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") for name in ("slurmctld", "munged", "sbatch")
    ):
        pytest.skip("SLURM is not installed: apt-get install slurm-wlm munge")
    number = _free_number()
    environment: dict[str, str] = {
        "SLURM_CLUSTER_DIR": str(folder),
        "SLURM_CLUSTER_GPUS": "4",
        "SLURM_CLUSTER_PORT": str(_port(number)),
        "SLURM_CONF": str(folder / "slurm.conf"),
        **settings,
    }
    if has_cables := "SLURM_CLUSTER_NETWORK" not in settings and _can_make_networks():
        environment["SLURM_CLUSTER_NETWORK"] = f"10.{50 + number}.{number}"
    done = subprocess.run(
        [str(SCRIPT), "up", "3"], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    if done.returncode and "unshare" in done.stderr:
        pytest.skip(f"this root may make no namespaces: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    return Cluster(environment, has_cables)


def a_cluster(**settings: str) -> Iterator[Cluster]:
    """One for as long as a fixture lasts; for `settings` see `start_cluster`."""
    with tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as folder:  # pytest's are private
        up = start_cluster(Path(folder), **settings)
        yield up
        up.act("down")


def enter_home(cluster: Cluster, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes this test a user of the cluster, in a folder of one's own and with the cluster's variables."""
    for name, value in {**cluster.environment, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("LAUNCHER_SITE", "")
    monkeypatch.chdir(home)


def _port(number: int) -> int:
    return 17_000 + 10 * number


def _free_number() -> int:
    """Of a cluster: no port of it is in use, and no network of it is left over from a test that was killed."""
    numbers = list(range(200))
    random.SystemRandom().shuffle(numbers)
    for number in numbers:
        if not Path(f"/sys/class/net/slurm{_port(number)}").exists() and all(
            _is_free(_port(number) + node) for node in range(4)
        ):
            return number
    raise AssertionError("200 clusters, or what is left of them, are on this machine: `ip link`")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def _can_make_networks() -> bool:
    name = f"probe-{os.getpid()}"
    if shutil.which("ip") is None or subprocess.run(["ip", "netns", "add", name], check=False).returncode:
        return False
    subprocess.run(["ip", "netns", "del", name], check=True)
    return True
