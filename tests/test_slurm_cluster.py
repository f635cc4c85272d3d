"""Jobs on a real SLURM cluster: they end with the weights of a run that nothing happened to."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from cluster import ROOT, Cluster, log, number_of, reached, start_cluster
from worlds import TINY, Trained, result_of, train

from launcher.cli import main

# 120 steps
LONG = ("data.train={_target_: parts.py:Noisy}", "model.dropout=0.3", "launch.threads=1", "train.epochs=30")
PACED = "data.train.seconds={}"  # for each of the 8 samples that one of two processes reads for a step


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as folder:  # pytest's are private
        up = start_cluster(Path(folder))
        yield up
        up.act("down")


@pytest.fixture(autouse=True)
def a_user_of_the_cluster(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In a folder of one's own, with the cluster's variables."""
    for name, value in {**cluster.environment, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LAUNCHER_SITE", "")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def submit(*words: str, folder: str = "run") -> Path:
    assert main(["submit", str(TINY), "--cpu", "--run-dir", folder, *words]) == 0
    return Path(folder).absolute()


def test_two_nodes_of_two_ranks_train_as_one_process(cluster: Cluster, tmp_path: Path) -> None:
    expected = train(tmp_path / "expected")
    run = submit("launch.threads=1", "--nodes", "2", "--processes", "4", "--time", "10")
    job = number_of(run)
    assert cluster.ended(job) == "COMPLETED 0:0", log(cluster.job(job))
    assert "4 processes on 2 nodes, started by srun" in log(cluster.job(job))
    assert result_of(run).distance(expected) < 1e-9
    status = json.loads((run / "status.json").read_text())
    assert (status["job"], status["world"], status["state"]) == (job, 4, "finished")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(tmp_path_factory.mktemp("undisturbed") / "run", *LONG, size=2)


@pytest.mark.timeout(600)
def test_the_time_limit_requeues_until_the_end_is_bit_equal(cluster: Cluster, undisturbed: Trained) -> None:
    # steps of 0.4 seconds, 48 in all, are more than fits between a start and ten seconds before a minute's end
    limit = ("--time", "1", "--signal", "10 seconds")
    run = submit(*LONG, PACED.format(0.05), "--nodes", "2", "--processes", "2", *limit)
    job = number_of(run)
    assert cluster.ended(job, 500) == "COMPLETED 0:0", log(cluster.job(job))
    printed = log(cluster.job(job))
    assert int(cluster.job(job)["Restarts"]) >= 1
    assert f"queueing job {job} again" in printed
    assert "more starts like this one" in printed
    assert result_of(run).distance(undisturbed) == 0


@pytest.mark.timeout(600)
def test_whatever_happens_to_it_the_end_is_bit_equal(cluster: Cluster, undisturbed: Trained) -> None:
    slowly = (*LONG, PACED.format(0.02), "save.every=5 steps")
    run = submit(*slowly, "--nodes", "2", "--processes", "2", "--time", "20")
    job = number_of(run)
    cluster.until(reached(run, 10, start=1), job=job)
    cluster.say("scancel", "--signal=TERM", job)  # as a preemption that asks
    cluster.until(reached(run, 20, start=2), job=job)
    cluster.say("scontrol", "requeue", job)  # as one that does not
    cluster.until(reached(run, 30, start=3), job=job)
    cluster.act("power-off", "0")
    try:
        assert cluster.ended(job, 400) == "COMPLETED 0:0", log(cluster.job(job))
    finally:
        cluster.act("start-node", "0")
    assert int(cluster.job(job)["Restarts"]) == 3
    assert "node0" not in cluster.job(job)["NodeList"]
    assert result_of(run).distance(undisturbed) == 0


def wrapped(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the site file start each rank inside a script of shell."""
    Path("site.yaml").write_text(json.dumps({"container": ["sh", "-c", f'{script}; exec "$@"', "_"]}))
    monkeypatch.setenv("LAUNCHER_SITE", str(Path("site.yaml").absolute()))


def test_jobs_that_share_a_node_do_not_meet_and_see_their_own_gpus(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapped("echo task $SLURM_LOCALID sees $CUDA_VISIBLE_DEVICES", monkeypatch)
    Path("rates.txt").write_text("optimizer.lr=1e-3\noptimizer.lr=3e-3\n")
    command = ["submit", str(TINY), "--gpus-per-node", "2", "--cpus-per-task", "1", "--run-dir", "run"]
    assert main([*command, "--array-file", "rates.txt", "launch.threads=1", "--", "--nodelist=node1"]) == 0
    seen = set()
    for task, rate in enumerate(("0.001", "0.003")):
        run = Path("run").absolute() / str(task)
        job = number_of(run)
        assert job.endswith(f"_{task}")
        assert cluster.ended(job) == "COMPLETED 0:0", log(cluster.job(job))
        printed = log(cluster.job(job)).splitlines()
        (devices,) = {line.split()[-1] for line in printed if " sees " in line}
        assert sorted(line.split()[1] for line in printed if " sees " in line) == ["0", "1"]
        seen.add(devices)
        assert f"optimizer.lr: {rate}" in (run / "resolved.yaml").read_text().replace("  lr:", "optimizer.lr:")
        assert len(result_of(run).column("step")) == 12
    assert seen == {"0,1", "2,3"}
    assert main(["resume", "run/1"]) == 0  # that one alone
    assert number_of(Path("run/1")) != job
    assert cluster.ended(number_of(Path("run/1"))) == "COMPLETED 0:0"
    assert "this run is finished" in log(cluster.job(number_of(Path("run/1"))))


def test_a_rank_that_raises_ends_the_job(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    wrapped("[ $SLURM_PROCID = 0 ] || export LAUNCHER_FAULTS=raise@step:3", monkeypatch)
    run = submit("launch.threads=1", "--nodes", "2", "--processes", "2", "--time", "10")
    job = number_of(run)
    assert cluster.ended(job).startswith("FAILED ")
    assert "RuntimeError: a fault at step" in log(cluster.job(job))
    assert json.loads((run / "status.json").read_text())["state"] == "failed"


def test_a_job_that_is_cancelled_saves_and_goes_on_when_it_is_resumed(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    run = submit(*LONG[:3], "train.epochs=10", PACED.format(0.02), "--time", "10", "--", "--hold")
    job = number_of(run)
    assert main(["runs", "run"]) == 0
    shown = capsys.readouterr().out
    assert " queued " in shown
    assert f"job {job} waits: held: scontrol release JOB" in shown
    cluster.say("scontrol", "release", job)
    cluster.until(reached(run, 3), job=job)
    assert main(["cancel", "run"]) == 0
    assert cluster.ended(job) == "FAILED 75:0", log(cluster.job(job))
    assert "cancelled, and not queued again" in log(cluster.job(job))
    assert main(["resume", "run"]) == 0
    again = number_of(run)
    assert again != job
    assert main(["resume", "run"]) == 2
    assert f"job {again} is " in capsys.readouterr().err
    assert cluster.ended(again) == "COMPLETED 0:0", log(cluster.job(again))
    assert result_of(run).column("step")[-1] == 40


def test_a_preflight_decides_whether_the_run_starts(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    bad = submit("train.start_from=nothing.pth", "--preflight", "--time", "10", folder="bad")
    good = submit("launch.threads=1", "--preflight", "--time", "10", folder="good")
    assert cluster.ended(number_of(bad)).startswith("CANCELLED ")
    assert cluster.ended(number_of(good)) == "COMPLETED 0:0", log(cluster.job(number_of(good)))
    first = [
        line.split()[2].rstrip(",") for line in capsys.readouterr().out.splitlines() if line.startswith("preflight")
    ]
    assert "train.start_from: " in log(cluster.job(first[0]))
    assert cluster.ended(first[1]) == "COMPLETED 0:0"
    assert "preempted  step 1" in log(cluster.job(first[1]))


def test_what_slurm_refuses_is_said_in_its_words(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", str(TINY), "--cpu", "--partition", "gpuu"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("sbatch refused the job: ")
    assert "(this means slurm.partition)" in error
    assert not list(Path("runs").rglob("job.sbatch"))
    assert main(["submit", str(TINY)]) == 2
    assert "the cluster offers: 4 in debug" in capsys.readouterr().err
    assert main(["submit", str(TINY), "--gpus-per-node", "2", "--", "--test-only"]) == 0
    shown = capsys.readouterr().out
    assert "2 GPUs, default memory), 2 CPUs a process" in shown
    assert "to start at" in shown


@pytest.mark.parametrize("agent", ["torchrun", "accelerate"])
def test_an_agent_a_node_in_a_script_of_one_s_own(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, agent: str
) -> None:
    for name, value in {"PYTHON": sys.executable, "ACCELERATE_USE_CPU": "true", "HF_HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    asked = ["--nodes=2", "--gpus-per-node=1", "--cpus-per-task=2", "--time=10", "--parsable"]
    job = cluster.say(
        "sbatch", *asked, str(ROOT / "slurm" / f"{agent}.sbatch"), str(TINY), "--cpu", "launch.threads=1"
    ).strip()
    assert cluster.ended(job) == "COMPLETED 0:0", log(cluster.job(job))
    assert f"2 processes on 2 nodes, started by {agent}" in log(cluster.job(job))
    assert result_of(tmp_path / "runs" / f"job-{job}").distance(train(tmp_path / "expected")) < 1e-9


def processes(run: Path) -> list[psutil.Process]:
    """The ranks of a run on this machine, whichever node they are on."""
    return [one for one in psutil.process_iter(["cmdline"]) if {"train", str(run)} <= {*(one.info["cmdline"] or ())}]


@pytest.mark.timeout(600)
def test_a_node_whose_daemon_died_does_not_write_beside_the_new_start(cluster: Cluster) -> None:
    run = submit(*LONG, PACED.format(0.05), "save.every=5 steps", "--time", "20")
    job = number_of(run)
    cluster.until(reached(run, 5), job=job)
    node = cluster.job(job)["NodeList"]
    (old,) = [one for one in processes(run) if one.name() != "srun"]
    cluster.act("kill-slurmd", node[-1])  # the rank lives on
    try:
        cluster.until(reached(run, 0, start=2), job=job, seconds=200)
        cluster.until(lambda: not old.is_running() or old.status() == psutil.STATUS_ZOMBIE, job=job, seconds=60)
        assert cluster.job(job)["NodeList"] != node
        assert cluster.ended(job, 300) == "COMPLETED 0:0", log(cluster.job(job))
    finally:
        cluster.act("start-node", node[-1])
    assert result_of(run).column("step") == list(range(1, 121))
