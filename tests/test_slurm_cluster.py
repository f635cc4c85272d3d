"""Jobs on a real SLURM cluster: they end with the weights of a run that nothing happened to."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

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


def test_a_rank_that_raises_ends_the_job(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    wrapped("[ $SLURM_PROCID = 0 ] || export LAUNCHER_FAULTS=raise@step:3", monkeypatch)
    run = submit("launch.threads=1", "--nodes", "2", "--processes", "2", "--time", "10")
    job = number_of(run)
    assert cluster.ended(job).startswith("FAILED ")
    assert "RuntimeError: a fault at step" in log(cluster.job(job))
    assert json.loads((run / "status.json").read_text())["state"] == "failed"
