"""Bad days on a real SLURM cluster: dead jobs' locks, killed and hanging ranks, odd sites and environments."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from cluster import Cluster, a_cluster, enter_home, log, number_of, reached
from tiers import rounds
from worlds import TINY, result_of

from launcher.cli.main import main
from launcher.runs.job import Submission

# 40 steps, slow enough to be met on the way, until nothing more happens
SLOWLY = (
    *("data.train={_target_: parts.py:Noisy, seconds: 0.02, until: hurry}", "launch.threads=1", "train.epochs=10"),
    *("save.every=2 steps", "--time", "20"),
)
FOUR = ("--nodes", "2", "--processes", "4")
HANGING = """
import os, time, torch
class Hanging(torch.utils.data.Dataset):
    def __init__(self, rank):
        self.rank, self.inputs = rank, torch.zeros(50, 6, dtype=torch.float64)
    def __len__(self):
        return 50
    def __getitem__(self, index):
        if os.environ.get("SLURM_PROCID") == self.rank and os.path.exists("hang"):
            time.sleep(1000)
        time.sleep(0.02)
        return self.inputs[index], torch.tensor(index % 3)
"""


APART = {"SLURM_CLUSTER_NETWORK": "", "SLURM_CLUSTER_NODE": "CoreSpecCount=2"}  # of the network of the other cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    yield from a_cluster()


@pytest.fixture
def odd_cluster() -> Iterator[Cluster]:
    """One that counts no GPUs, and keeps two CPUs of each node for the system."""
    yield from a_cluster(**APART, SLURM_CLUSTER_GPUS="0")


def become_a_user(cluster: Cluster, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    enter_home(cluster, home, monkeypatch)
    for name in ("tiny.yaml", "parts.py"):
        (home / name).write_text((TINY.parent / name).read_text())
    (home / "hanging.py").write_text(HANGING)


@pytest.fixture
def user(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """In a folder of one's own, with the cluster's variables."""
    become_a_user(cluster, tmp_path, monkeypatch)
    return cluster


def submit(*words: str, folder: str = "run") -> Path:
    assert main(["submit", "tiny.yaml", "--cpu", "--run-dir", folder, *words]) == 0
    return Path(folder).absolute()


def site(monkeypatch: pytest.MonkeyPatch, **values: object) -> None:
    Path("site.yaml").write_text(json.dumps(values))
    monkeypatch.setenv("LAUNCHER_SITE", str(Path("site.yaml").absolute()))


def failure(run: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((run / "failure.json").read_text())
    return found


def rank_of(run: Path, rank: int) -> psutil.Process:
    """The process of a rank, whichever node it is on."""
    for one in psutil.process_iter(["cmdline"]):
        is_rank = {"train", str(run)} <= {*(one.info["cmdline"] or ())} and one.name() != "srun"
        if is_rank and one.environ().get("SLURM_PROCID") == str(rank):
            return one
    raise AssertionError(f"no process of rank {rank}")


# ---------------------------------------------------------------------- the lock of a dead job


def test_the_job_that_follows_a_crash_takes_the_lock_and_burns_no_restart(
    user: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    site(monkeypatch, requeue=False)
    run = submit(*SLOWLY, *FOUR, "launch.max_restarts=3")
    job = number_of(run)
    user.until(reached(run, 6), job=job)
    first = user.job(job)["BatchHost"]
    user.say("scontrol", "update", f"nodename={first}", "state=drain", "reason=test")
    try:
        rank_of(run, 0).kill()
        user.ended(job)
        Path("hurry").touch()
        follower = number_of(run)
        assert follower != job
        assert user.ended(follower) == "COMPLETED 0:0", log(user.job(follower))
    finally:
        user.say("scontrol", "update", f"nodename={first}", "state=resume")
    assert "restart 1 of 3" in log(user.job(job))
    assert "restart" not in log(user.job(follower))
    assert re.search(r"^launcher: rank 0 of 4 on node\d failed.*SIGKILL", log(user.job(job)), re.MULTILINE)
    assert result_of(run).column("step")[-1] == 40
    assert len(Submission.read(run).starts) == 2


def test_a_folder_has_one_job_at_a_time(user: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    endless = [word.replace("epochs=10", "epochs=1000") for word in SLOWLY]  # it is cancelled in the end
    run = submit(*endless, "--", "--hold")
    job = number_of(run)
    again = ["submit", "tiny.yaml", "--cpu", "--run-dir", "run", *endless]
    assert main(again) == 2
    assert f"run: job {job} is pending already" in capsys.readouterr().err
    user.say("scontrol", "release", job)
    user.until(reached(run, 2), job=job)
    assert main(again) == 2
    assert f"job {job} is running already" in capsys.readouterr().err
    by_hand = user.say("sbatch", "--parsable", str(run / "job.sbatch")).strip()
    assert user.ended(by_hand).startswith("FAILED")
    assert number_of(run) == job
    assert main(["cancel", "run"]) == 0
    assert user.ended(job).startswith("CANCELLED ")
    assert main([*again, "--", "--hold"]) == 0  # over: another may follow
    assert main(["cancel", "run"]) == 0


def test_a_lost_node_s_run_is_resumed_at_once(user: Cluster) -> None:
    run = submit(*SLOWLY, "--", "--no-requeue")
    job = number_of(run)
    user.until(reached(run, 4), job=job)
    node = user.job(job)["BatchHost"][-1]
    user.act("power-off", node)
    try:
        assert user.ended(job).startswith("NODE_FAIL")
        Path("hurry").touch()
        assert (run / "lock.json").exists()
        (run / "lock.json").touch()  # as if it had shown itself a moment ago
        assert main(["resume", "run"]) == 0
        assert user.ended(number_of(run)) == "COMPLETED 0:0", log(user.job(number_of(run)))
    finally:
        user.act("start-node", node)


# ---------------------------------------------------------------------- who was it


@rounds("rank", plain=[3], long=[0])  # rank 0 is killed in the first test
def test_a_rank_that_is_killed_is_named_and_not_its_peers(
    user: Cluster, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    site(monkeypatch, environment={"LAUNCHER_FAULTS": f"kill@step:5#{rank}"})
    run = submit("launch.threads=1", "--time", "10", *FOUR)
    job = number_of(run)
    assert user.ended(job).startswith("FAILED"), log(user.job(job))
    found = failure(run)
    printed = log(user.job(job))
    assert (found["rank"], "SIGKILL" in str(found["what"])) == (rank, True), printed
    host = user.job(job)["BatchHost"] if rank == 0 else str(found["host"])
    last = [line for line in printed.splitlines() if line.startswith("launcher: ")][-1]
    assert last.startswith(f"launcher: rank {rank} of 4 on {host} failed"), printed
    starts = Submission.read(run).starts
    assert [one["code"] for one in starts] == [137]


@rounds("rank, workers", plain=[("0", 0), ("2", 1)], long=[("3", 0)])
def test_a_hang_is_that_of_the_rank_that_hangs(user: Cluster, rank: str, workers: int) -> None:
    stall = ("launch.stall=6 seconds", "launch.on_stall=stop", f"data.workers={workers}")
    data = f'data.train={{_target_: "hanging.py:Hanging", rank: "{rank}"}}'
    long = ("train.epochs=50", "launch.threads=1", "launch.max_restarts=1", "--time", "10")
    run = submit(data, *stall, *long, *FOUR)
    job = number_of(run)
    user.until(reached(run, 5), job=job)
    Path("hang").touch()
    user.until(lambda: "fault" in (Submission.read(run).starts or [{}])[0], job=job)
    Path("hang").unlink()
    user.say("scancel", job)
    user.ended(job)
    printed, found = log(user.job(job)), failure(run)
    assert found["rank"] == int(rank), printed
    assert Submission.read(run).starts[0]["fault"] == found["host"], printed
    assert found["host"] == ("node0", "node1", "node2")[int(str(found["host"])[-1])]
    assert printed.count("no progress for 6 s") <= 3, printed  # one report, and the line that ends the log


def test_a_host_that_fails_twice_is_left_out_and_the_job_keeps_its_number(
    user: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails = "[ $(hostname) != node1 ] || export LAUNCHER_FAULTS=raise@step:$((3 + 3 * ${SLURM_RESTART_COUNT:-0}))"
    site(monkeypatch, container=["sh", "-c", f'{fails}; exec "$@"', "_"])
    run = submit(*SLOWLY, "--nodes", "2", "--processes", "2", "launch.max_restarts=3", "--", "--nodelist=node1")
    job = number_of(run)
    user.until(lambda: bool(Submission.read(run).excluded), job=job, seconds=200)
    user.until(lambda: user.job(job).get("ExcNodeList") == "node1", job=job)
    assert (number_of(run), user.job(job)["Restarts"]) == (job, "2")
    printed = log(user.job(job))
    assert "node1 was the first to fail in two starts running: from now on without it" in printed
    assert "SLURM does not" not in printed
    user.say("scancel", job)


# ---------------------------------------------------------------------- what waits for it


def test_what_waits_for_the_end_starts_after_the_whole_run(
    user: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    site(monkeypatch, requeue=False)
    run = submit(*SLOWLY)
    assert "a new job follows each that has saved" in capsys.readouterr().out
    job = number_of(run)
    script = f"#!/bin/sh\ngrep state {run}/status.json > {run}/seen\n"
    Path("after.sh").write_text(script)
    waiting = user.say("sbatch", "--parsable", f"--dependency=afterok:{job}", "--output=/dev/null", "after.sh").strip()
    user.until(reached(run, 4), job=job)
    user.say("scancel", "--signal=USR2", job)  # as before its limit
    assert user.ended(job) == "COMPLETED 0:0"
    Path("hurry").touch()
    follower = number_of(run)
    assert follower != job
    assert f"job {waiting} waits for that one now" in log(user.job(job))
    assert user.ended(follower) == "COMPLETED 0:0", log(user.job(follower))
    assert user.ended(waiting) == "COMPLETED 0:0"
    assert "finished" in (run / "seen").read_text()


def test_a_slow_save_gets_more_time_and_the_job_keeps_its_number(user: Cluster) -> None:
    run = submit(*SLOWLY[:-2], "--time", "3", "--signal", "1 minute", "train.epochs=40", "--", "--hold")
    job = number_of(run)
    noted = Submission.read(run)
    Submission(**{**vars(noted), "signal_seconds": 160}).write(run)  # as after a save of 85 seconds
    user.say("scontrol", "release", job)
    user.until(lambda: "queueing job" in log(user.job(job)), job=job, seconds=100)
    began = Submission.read(run).starts[0]["time"]
    assert time.time() - float(began) < 90  # and not after two minutes, as its own signal would
    assert number_of(run) == job
    user.say("scancel", job)
    user.ended(job)


# ---------------------------------------------------------------------- what was asked for


def test_a_gpu_asked_for_and_not_seen_is_refused(user: Cluster) -> None:
    command = ["submit", "tiny.yaml", "--gpus-per-node", "2", "--run-dir", "run", "--time", "10"]
    assert main(command) == 0
    job = number_of(Path("run"))
    assert user.ended(job) == "FAILED 2:0", log(user.job(job))
    assert "this job asked for GPUs (SLURM_GPUS_ON_NODE=2) and torch" in log(user.job(job))
    assert not list(Path("run").glob("model_weights*"))


def test_the_command_line_wins_over_the_environment_and_the_plan_tells_the_rest(
    user: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {
        "TIMELIMIT": "00:07:00",
        "NO_REQUEUE": "1",
        "SIGNAL": "USR1@10",
        "OPEN_MODE": "truncate",
        "OUTPUT": "/tmp/elsewhere",
        "ERROR": "/tmp/elsewhere",
        "EXPORT": "NONE",
        "ARRAY_INX": "0-3",
        "WAIT": "1",
        "JOB_NAME": "other",
        "THREADS_PER_CORE": "1",
        "MEM_PER_CPU": "9T",
    }.items():
        monkeypatch.setenv(f"SBATCH_{name}", value)
    monkeypatch.setenv("SQUEUE_STATES", "RUNNING")
    monkeypatch.setenv("SLURM_TIME_FORMAT", "relative")
    run = submit("--time", "01:00:00", "--mem", "100M", "--", "--hold")
    shown, printed = user.job(number_of(run)), capsys.readouterr().out
    assert (shown["TimeLimit"], shown["Requeue"], shown["JobName"]) == ("01:00:00", "1", "tiny")
    assert (shown["StdOut"], shown["StdErr"]) == (f"{run}/logs/slurm-{shown['JobId']}.out",) * 2
    assert (shown["WorkDir"], "ArrayJobId" in shown) == (str(Path.cwd()), False)
    assert "SBATCH_THREADS_PER_CORE=1, from the environment" in printed
    assert "SBATCH_ARRAY_INX is in the environment and not used" in printed
    assert "SBATCH_TIMELIMIT" not in printed
    assert main(["runs", "run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "queued"
    assert main(["cancel", "run"]) == 0
    mail = "slurm.mail_user=them@example.org"
    assert main(["submit", "tiny.yaml", "--cpu", "--run-dir", "two", "--dry-run", mail]) == 0
    printed = capsys.readouterr().err
    assert "time       00:07:00; saves 120 s before the limit" in printed
    assert "mail       of the job's beginning and end goes to them@example.org" in printed
    monkeypatch.setenv("SBATCH_TIMELIMIT", "2")
    assert main(["submit", "tiny.yaml", "--cpu", "--run-dir", "two"]) == 2
    assert "is over before training begins" in capsys.readouterr().err
    assert not Path("two").exists()


def test_a_job_of_export_none_and_without_a_home_trains(
    user: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    site(
        monkeypatch, environment={"MARK": "${USER}-$SLURM_JOB_ID"}, setup=["export FROM_SETUP=1"], runs="runs-of-$USER"
    )
    monkeypatch.setenv("USER", "somebody")
    monkeypatch.setenv("HOME", "/proc")  # as one that is full
    Path("peek.py").write_text(
        "import os\ndef peek(): pass\nprint('saw', os.environ.get('MARK'), os.environ.get('FROM_SETUP'))\n"
    )
    (tmp_path / "tiny.yaml").write_text(
        (tmp_path / "tiny.yaml").read_text() + "define: {peek: {_ref_: 'peek.py:peek'}}\n"
    )
    assert main(["submit", "tiny.yaml", "--cpu", "--time", "10", *FOUR, "--", "--export=NONE"]) == 0
    (run,) = Path("runs-of-somebody/tiny").iterdir()
    job = number_of(run)
    assert main(["runs"]) == 0
    assert user.ended(job) == "COMPLETED 0:0", log(user.job(job))
    assert "4 processes on 2 nodes, started by srun" in log(user.job(job))
    assert f"saw somebody-{job} 1\n" in log(user.job(job))
    assert main(["runs"]) == 0
    assert "finished" in capsys.readouterr().out


def test_a_cluster_that_counts_no_gpus_and_keeps_cpus_for_itself(
    odd_cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    become_a_user(odd_cluster, tmp_path, monkeypatch)
    command = ["submit", "tiny.yaml", "--nodes", "2", "--gpus-per-node", "2", "--time", "10", "--run-dir", "run"]
    assert main(command) == 0
    assert "2 GPUs (which SLURM does not count here: whole nodes)" in (printed := capsys.readouterr().out)
    assert "3 CPUs a process" in printed  # of the six that jobs may have
    job = number_of(Path("run"))
    assert odd_cluster.ended(job) == "FAILED 2:0", log(odd_cluster.job(job))
    assert "this job asked for GPUs (LAUNCHER_GPUS_ON_NODE=2)" in log(odd_cluster.job(job))
    assert odd_cluster.job(job)["NumTasks"] == "4"


def test_cpus_that_are_kept_for_the_system_are_not_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for up in a_cluster(**APART, SLURM_CLUSTER_GPUS="2"):
        become_a_user(up, tmp_path, monkeypatch)
        words = ("--nodes", "2", "--gpus-per-node", "2", "--run-dir", "run", "--", "--hold")
        assert main(["submit", "tiny.yaml", *words]) == 0
        assert "3 CPUs a process" in capsys.readouterr().out
        assert main(["cancel", "run"]) == 0


@pytest.mark.parametrize("names", ["", "{host}-ib"])
def test_rank_0_is_found_where_its_name_is_not_known(
    user: Cluster, monkeypatch: pytest.MonkeyPatch, names: str
) -> None:
    """By the address that SLURM has, or by the name that the site file says."""
    if not user.has_cables:
        pytest.skip("the nodes share this machine's addresses")
    hosts = Path(user.environment["SLURM_CLUSTER_DIR"]) / "hosts"
    addresses = [line.split() for line in hosts.read_text().splitlines() if " node" in line]
    text = "127.0.0.1 localhost\n" + "".join(f"{one} {name}-ib\n" for one, name in addresses if names)
    Path("hosts").write_text(text)
    inside = f'unshare -m sh -c \'mount --bind {Path("hosts").absolute()} /etc/hosts; exec "$@"\' _ "$@"'
    site(monkeypatch, container=["sh", "-c", inside, "_"], **({"master": names} if names else {}))
    run = submit("launch.threads=1", "device.timeout=30 seconds", "--time", "10", *FOUR)
    job = number_of(run)
    assert user.ended(job) == "COMPLETED 0:0", log(user.job(job))
    assert len(result_of(run).column("step")) == 12


def test_sixty_tasks_are_one_call_and_one_cancel(
    user: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls, bins = Path("calls").absolute(), Path("bin").absolute()
    bins.mkdir()
    for name in ("sbatch", "scancel", "squeue"):
        (bins / name).write_text(f'#!/bin/sh\necho {name} >> {calls}\nexec /usr/bin/{name} "$@"\n')
        (bins / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{bins}:{os.environ['PATH']}")
    Path("rates.txt").write_text("".join(f"optimizer.lr={number}e-4\n" for number in range(1, 61)))
    run = submit("--array-file", "rates.txt", "--time", "10", "--", "--hold", folder="arr")
    printed = capsys.readouterr()
    assert "60 tasks" in printed.out
    assert "not checked" not in printed.err
    assert calls.read_text().split() == ["sbatch"]
    assert [number_of(run / str(task)).partition("_")[2] for task in range(60)] == [str(task) for task in range(60)]
    assert main(["cancel", "arr"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [Path(line.partition(":")[0]).name for line in lines] == [str(task) for task in range(60)]
    assert calls.read_text().split() == ["sbatch", "squeue", "scancel"]
    user.until(
        lambda: "PENDING" not in user.say("squeue", "--me", "--noheader", "--format=%T"), job=number_of(run / "0")
    )
    for task in range(60):
        if task not in (7, 41):
            (run / str(task) / "status.json").write_text('{"state": "finished"}')
    assert main(["resume", "arr"]) == 0  # those two alone
    again = number_of(run / "7").partition("_")[0]
    assert number_of(run / "41") == f"{again}_41"
    assert main(["cancel", "arr"]) == 0


def test_refused_tasks_of_an_array_leave_nothing(user: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    Path("rates.txt").write_text("optimizer.lr=1e-3\n" * 30 + "optimizer.lrr=1\n")
    assert main(["submit", "tiny.yaml", "--cpu", "--array-file", "rates.txt", "--run-dir", "arr"]) == 2
    assert "AdamW takes no 'lrr'" in capsys.readouterr().err
    assert not Path("arr").exists()
    done = subprocess.run(
        [sys.executable, "-m", "launcher", "submit", "tiny.yaml", "--cpu", "--run-dir", "x", "--", "--array=0-3"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, "--array-file FILE makes a run of each line" in done.stderr) == (2, True)
