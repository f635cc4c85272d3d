"""Jobs on a real SLURM cluster: they end with the weights of a run that nothing happened to."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from cluster import Cluster, a_cluster, enter_home, log, number_of, reached
from places import ROOT, TINY
from tiers import rounds
from worlds import Trained, result_of, train

from launcher.cli.main import main
from launcher.sweep.record import Record
from launcher.world.nodelist import expand

# 120 steps
LONG = ("data.train={_target_: parts.py:Noisy}", "model.dropout=0.3", "launch.threads=1", "train.epochs=30")
SECRET = "hunter2hunter2"
GAN = str(ROOT / "recipes" / "gan" / "train.py")
PACED = "data.train.seconds={}"  # for each of the 8 samples that one of two processes reads for a step


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    yield from a_cluster()


@pytest.fixture(autouse=True)
def a_user_of_the_cluster(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In a folder of one's own, with the cluster's variables."""
    enter_home(cluster, tmp_path, monkeypatch)
    return tmp_path


def submit(*words: str, folder: str = "run", recipe: Path | str = TINY) -> Path:
    assert main(["submit", str(recipe), "--cpu", "--run-dir", folder, *words]) == 0
    return Path(folder).absolute()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """What one process makes of the recipe."""
    return train(tmp_path_factory.mktemp("alone") / "run")


def test_two_nodes_of_two_ranks_train_as_one_process(
    cluster: Cluster, alone: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tiny.yaml", "parts.py"):
        (tmp_path / name).write_text((TINY.parent / name).read_text())
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    words = ("launch.threads=1", "--nodes", "2", "--processes", "4", "--time", "10")
    run = submit(*words, "--", "--hold", recipe="tiny.yaml")
    job = number_of(run)
    (tmp_path / "parts.py").write_text("an edit while the job waits")
    (tmp_path / "tiny.yaml").unlink()
    cluster.say("scontrol", "release", job)
    assert cluster.ended(job) == "COMPLETED 0:0", log(cluster.job(job))
    assert "4 processes on 2 nodes, started by srun" in log(cluster.job(job))
    assert result_of(run).distance(alone) < 1e-9
    assert not [path for path in run.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    status = json.loads((run / "status.json").read_text())
    assert (status["job"], status["world"], status["state"]) == (job, 4, "finished")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(tmp_path_factory.mktemp("undisturbed") / "run", *LONG, size=2)


@pytest.mark.long  # what follows the signal is what follows `scancel --signal`, in the plain test below
@pytest.mark.timeout(600)
def test_the_time_limit_requeues_until_the_end_is_bit_equal(cluster: Cluster, undisturbed: Trained) -> None:
    # 34 seconds in all are more than fits between a start and thirty seconds before a minute's end
    limit = ("--time", "1", "--signal", "30 seconds")
    run = submit(*LONG, PACED.format(0.045), "--nodes", "2", "--processes", "2", *limit)
    job = number_of(run)
    assert cluster.ended(job, 500) == "COMPLETED 0:0", log(cluster.job(job))
    printed = log(cluster.job(job))
    assert int(cluster.job(job)["Restarts"]) >= 1
    assert f"queueing job {job} again" in printed
    assert "more starts like this one" in printed
    assert result_of(run).distance(undisturbed) == 0


@pytest.mark.timeout(600)
@rounds("nodes_are_lost", plain=[False], long=[True])
def test_whatever_happens_to_it_the_end_is_bit_equal(
    cluster: Cluster, undisturbed: Trained, nodes_are_lost: bool
) -> None:
    hurry = Path("hurry").absolute()  # once nothing more happens
    slowly = (*LONG, PACED.format(0.02), f"data.train.until={hurry}", "save.every=5 steps")
    run = submit(*slowly, "--nodes", "2", "--processes", "2", "--time", "20")
    job = number_of(run)
    cluster.until(reached(run, 10, start=1), job=job)
    cluster.say("scancel", "--signal=TERM", job)  # as a preemption that asks
    cluster.until(reached(run, 20, start=2), job=job)
    cluster.say("scontrol", "requeue", job)  # as one that does not
    lost: list[str] = []
    try:
        if nodes_are_lost:
            lose_nodes(cluster, run, job, lost)
        hurry.touch()
        assert cluster.ended(job, 400) == "COMPLETED 0:0", log(cluster.job(job))
    finally:
        for node in lost[-1:]:
            cluster.act("start-node", node)
    assert int(cluster.job(job)["Restarts"]) == 2 + len(lost)
    assert not {f"node{node}" for node in lost[-1:]} & {*expand(cluster.job(job)["NodeList"])}
    assert result_of(run).distance(undisturbed) == 0


def lose_nodes(cluster: Cluster, run: Path, job: str, lost: list[str]) -> None:
    """One node's power, and later, where there are cables, another's cable: noted in `lost`."""
    cluster.until(reached(run, 30, start=3), job=job)
    lost.append("0")
    cluster.act("power-off", "0")
    if cluster.has_cables:
        cluster.until(reached(run, 40, start=4), job=job)
        assert cluster.job(job)["NodeList"] == "node[1-2]"
        cluster.act("start-node", "0")
        lost.append("2")
        cluster.act("cut", "2")


def wrapped(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the site file start each rank inside a script of shell."""
    Path("site.yaml").write_text(json.dumps({"container": ["sh", "-c", f'{script}; exec "$@"', "_"]}))
    monkeypatch.setenv("LAUNCHER_SITE", str(Path("site.yaml").absolute()))


def test_jobs_that_share_a_node_do_not_meet_and_see_their_own_gpus(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the second task is asked to stop in its first start: it goes on, and leaves the other one alone
    stops = '[ "$SLURM_ARRAY_TASK_ID$SLURM_RESTART_COUNT" != 1 ] || export LAUNCHER_FAULTS=term@step:3'
    no_gpu = "export ACCELERATE_USE_CPU=true"  # those of this cluster are none
    wrapped(f"echo task $SLURM_LOCALID sees $CUDA_VISIBLE_DEVICES; {no_gpu}; {stops}", monkeypatch)
    paced = ("launch.threads=1", LONG[0], PACED.format(0.02))
    Path("rates.txt").write_text("optimizer.lr=1e-3\noptimizer.lr=3e-3\n")
    command = ["submit", str(TINY), "--gpus-per-node", "2", "--cpus-per-task", "1", "--run-dir", "run"]
    assert main([*command, "--array-file", "rates.txt", *paced, "--", "--nodelist=node1"]) == 0
    seen = set()
    for task, rate in enumerate(("0.001", "0.003")):
        run = Path("run").absolute() / str(task)
        job = number_of(run)
        assert job.endswith(f"_{task}")
        assert cluster.ended(job) == "COMPLETED 0:0", log(cluster.job(job))
        printed = log(cluster.job(job)).splitlines()
        ranks = [line.split() for line in printed if " sees " in line][:2]  # of the first start
        assert sorted(words[1] for words in ranks) == ["0", "1"]
        (devices,) = {words[-1] for words in ranks}
        assert cluster.job(job)["Restarts"] == str(task), printed
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
    report = r"^launcher: rank 1 of 2 on node\d failed at step \d.*: RuntimeError: a fault at step"
    assert re.search(report, log(cluster.job(job)), re.MULTILINE), log(cluster.job(job))
    assert json.loads((run / "status.json").read_text())["state"] == "failed"


def test_a_job_that_is_cancelled_saves_and_goes_on_when_it_is_resumed(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    run = submit(*LONG[:3], "train.epochs=10", PACED.format(0.02), "--time", "10", "--", "--hold")
    job = number_of(run)
    assert shown(capsys) == ("queued", f"job {job} waits: held: scontrol release JOB")
    cluster.say("scontrol", "release", job)
    cluster.until(reached(run, 3), job=job)
    state, queue = shown(capsys)
    assert state == "running"
    assert re.fullmatch(
        rf"job {job} is running on node\d, .* left; step \d+ of 40, .* samples/s, needs about .* jobs of 10:00.*", queue
    )
    assert main(["cancel", "run"]) == 0
    # COMPLETED would start those that wait for its success; RequeueExit starts 75 again
    assert cluster.ended(job).startswith("CANCELLED "), log(cluster.job(job))
    assert shown(capsys)[0] == "stopped"
    assert "cancelled, and not queued again" in log(cluster.job(job))
    assert main(["resume", "run"]) == 0
    again = number_of(run)
    assert again != job
    assert main(["resume", "run"]) == 2
    assert f"job {again} is " in capsys.readouterr().err
    assert main(["logs", "-f", "run"]) == 0  # while it waits, and to its end
    assert "finished  step 40" in capsys.readouterr().out
    assert cluster.ended(again) == "COMPLETED 0:0", log(cluster.job(again))
    assert result_of(run).column("step")[-1] == 40
    assert shown(capsys) == ("finished", "")


def shown(capsys: pytest.CaptureFixture[str], folder: str = "run") -> tuple[str, str]:
    """What `launcher runs` says of a run now: its state, and how its job stands."""
    (Path.home() / ".cache" / "launcher" / "squeue.json").unlink(missing_ok=True)  # not what it was 30 seconds ago
    capsys.readouterr()
    assert main(["runs", folder, "--json"]) == 0
    line = json.loads(capsys.readouterr().out)
    return line["state"], line["queue"] or ""


def test_a_script_of_one_s_own_with_a_rank_on_each_of_two_nodes(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--cpu", "--nodes", "2", "--processes", "2", "--time", "10", "--run-dir", "gan")
    assert main(["submit", *flags, "run", GAN, "--steps", "300"]) == 0
    job = number_of(Path("gan"))
    assert shown(capsys, "gan")[0] in ("queued", "running")
    assert cluster.ended(job) == "COMPLETED 0:0", log(cluster.job(job))
    assert log(cluster.job(job)).count("step 300: saved ") == 1
    assert Path("gan/generator.pth").is_file()
    assert shown(capsys, "gan") == ("finished", "")
    assert main(["logs", "gan"]) == 0
    assert "step 300: saved " in capsys.readouterr().out
    assert json.loads(Path("gan/environment.json").read_text())["script"] == GAN


def test_a_job_that_crashes_at_once_is_not_started_for_ever(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrapped("exit 7", monkeypatch)
    run = submit("launch.max_restarts=9", "--time", "10")
    job = number_of(run)
    assert cluster.ended(job) == "FAILED 1:0", log(cluster.job(job))
    assert cluster.job(job)["Restarts"] == "3"
    assert "3 starts in a row began at step 0: not started again" in log(cluster.job(job))
    assert shown(capsys)[0] == "failed"
    (run / "status.json").unlink()
    (run / "slurm.json").write_text("{}")
    assert shown(capsys) == ("unknown", "")


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
    assert "stopped, saved after step 1" in log(cluster.job(first[1]))


def test_what_slurm_refuses_is_said_in_its_words(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    for more in ((), ("--preflight",)):
        assert main(["submit", str(TINY), "--cpu", "--partition", "gpuu", *more]) == 2
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


@rounds("agent", plain=["torchrun"], long=["accelerate"])
def test_an_agent_a_node_in_a_script_of_one_s_own(
    cluster: Cluster, alone: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, agent: str
) -> None:
    for name, value in {"PYTHON": sys.executable, "ACCELERATE_USE_CPU": "true", "HF_HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    asked = ["--nodes=2", "--gpus-per-node=2", "--cpus-per-task=2", "--time=10", "--parsable"]
    job = cluster.say(
        "sbatch", *asked, str(ROOT / "slurm" / f"{agent}.sbatch"), str(TINY), "--cpu", "launch.threads=1"
    ).strip()
    assert cluster.ended(job) == "COMPLETED 0:0", log(cluster.job(job))
    assert f"4 processes on 2 nodes, started by {agent}" in log(cluster.job(job))
    assert result_of(tmp_path / "runs" / f"job-{job}").distance(alone) < 1e-9


def processes(run: Path) -> list[psutil.Process]:
    """The ranks of a run on this machine, whichever node they are on."""
    return [one for one in psutil.process_iter(["cmdline"]) if {"train", str(run)} <= {*(one.info["cmdline"] or ())}]


@pytest.mark.timeout(600)
def test_a_node_whose_daemon_died_does_not_write_beside_the_new_start(cluster: Cluster, tmp_path: Path) -> None:
    hurry = tmp_path / "hurry"
    run = submit(*LONG, PACED.format(0.03), f"data.train.until={hurry}", "save.every=5 steps", "--time", "20")
    job = number_of(run)
    cluster.until(reached(run, 5), job=job)
    node = cluster.job(job)["NodeList"]
    (old,) = [one for one in processes(run) if one.name() != "srun"]
    cluster.act("kill-slurmd", node[-1])  # the rank lives on
    try:
        cluster.until(reached(run, 0, start=2), job=job, seconds=200)
        cluster.until(lambda: old.status() == psutil.STATUS_STOPPED, job=job, seconds=60)
        assert cluster.job(job)["NodeList"] != node
        hurry.touch()
        assert cluster.ended(job, 300) == "COMPLETED 0:0", log(cluster.job(job))
    finally:
        cluster.act("start-node", node[-1])
    cluster.until(lambda: not old.is_running() or old.status() == psutil.STATUS_ZOMBIE, job=job, seconds=60)
    assert result_of(run).column("step") == list(range(1, 121))
    assert result_of(run).distance(train(tmp_path / "undisturbed", *LONG)) == 0


WHICH = """
import json
from launcher.world import gpus
from launcher.world.world import World

world, names = World.from_environ(), gpus.visible()
print(json.dumps([world.rank, world.node, names, gpus.taken_by(world.local_rank, names or [])]))
"""
ALL = ("--ntasks-per-node=2", "--gpus-per-node=2")  # every task of a node sees all that the node has
OWN = ("--ntasks-per-node=2", "--gpus-per-task=1")  # each sees its own


@pytest.mark.parametrize(
    ("layout", "renamed", "seen"),
    [
        (ALL, "", ["0", "1"]),
        (ALL, "CUDA_VISIBLE_DEVICES=GPU-aa,GPU-bb", ["GPU-aa", "GPU-bb"]),
        (ALL, "CUDA_VISIBLE_DEVICES=MIG-4c/1/0,MIG-4c/2/0", ["MIG-4c/1/0", "MIG-4c/2/0"]),
        (ALL, "CUDA_VISIBLE_DEVICES=3,-1,2", ["3"]),  # what stands behind a -1 is not seen
        (OWN, "", None),
    ],
    ids=["by number", "by UUID", "by MIG name", "cut short", "one a task"],
)
def test_each_rank_takes_a_gpu_of_its_own(
    cluster: Cluster, tmp_path: Path, layout: tuple[str, ...], renamed: str, seen: list[str] | None
) -> None:
    (tmp_path / "which.py").write_text(WHICH)
    command = f"{renamed} exec {sys.executable} which.py"
    printed = cluster.say("srun", "--nodes=2", *layout, "--time=2", "bash", "-c", command)
    ranks = sorted(json.loads(line) for line in printed.splitlines() if line.startswith("["))
    assert [(rank, node) for rank, node, *_ in ranks] == [(0, 0), (1, 0), (2, 1), (3, 1)], printed
    taken = [(node, name) for _, node, _, name in ranks]
    if seen is None:
        assert [len(names) for _, _, names, _ in ranks] == [1] * 4, printed
    else:
        assert [names for _, _, names, _ in ranks] == [seen] * 4, printed
    if renamed.endswith("3,-1,2"):
        assert len(set(taken)) == 2  # which the ranks then refuse, by the GPUs' own numbers
    else:
        assert len(set(taken)) == 4, printed


@pytest.mark.timeout(600)
@rounds("participants, trials, is_lost", plain=[(2, 4, False)], long=[(3, 12, True)])
def test_an_array_works_a_sweep_off(
    cluster: Cluster, tmp_path: Path, participants: int, trials: int, is_lost: bool
) -> None:
    words = ("data.train={_target_: parts.py:Noisy, seconds: 0.01}", "train.epochs=10", "save.every=2 steps")
    flags = ("--method", "random", "--trials", str(trials), "--parallel", "1", "--run-dir", "sweep")
    space = ("optimizer.lr=1e-4..1:log", "data.validation={_target_: parts.py:WholeNumbers, size: 23, seed: 2}")
    asks = ("--cpu", "--nodes", str(participants), "--time", "10")
    assert main(["submit", *asks, "sweep", str(TINY), *words, *space, *flags]) == 0
    record = Record(tmp_path / "sweep")
    jobs = [number_of(tmp_path / "sweep" / "jobs" / str(task)) for task in range(participants)]

    def is_at_work() -> bool:
        record.refresh()
        return len({trial.worker for trial in record.trials.values()} - {""}) == participants

    cluster.until(is_at_work, job=jobs[0])
    if is_lost:
        node = expand(cluster.job(jobs[-1])["NodeList"])[0].removeprefix("node")
        cluster.act("power-off", node)
    try:
        for job in jobs[: participants - is_lost]:
            assert cluster.ended(job, 400) == "COMPLETED 0:0", log(cluster.job(job))
    finally:
        if is_lost:
            cluster.act("start-node", node)
    record.refresh()
    assert [trial.state for trial in record.trials.values()] == ["finished"] * trials
    assert {trial.step for trial in record.trials.values()} == {40}


SLOTS = """
import json
from launcher.device import kind
from launcher.sweep.slots import slots_here
from launcher.world import gpus

kind.count = lambda: len(gpus.visible() or [])  # as torch would see them: those of this cluster are none
print(json.dumps([dict(slot.environment) for slot in slots_here(None, 1, cpu=False)]))
"""


def test_a_sweeps_slots_are_the_gpus_of_the_allocation(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "slots.py").write_text(SLOTS)
    command = f"{sys.executable} slots.py; sleep 5"  # both allocations are there at a time
    asks = ("--nodes=1", "--nodelist=node1", "--gpus-per-node=2", "--cpus-per-task=1", "--time=2")
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(cluster.say, "srun", *asks, "bash", "-c", command) for _ in range(2)]
        printed = [job.result() for job in both]
    dealt = [json.loads(line) for text in printed for line in text.splitlines() if line.startswith("[")]
    names = [slot["CUDA_VISIBLE_DEVICES"] for slots in dealt for slot in slots]
    assert [len(slots) for slots in dealt] == [2, 2], printed
    assert sorted(names) == ["0", "1", "2", "3"], printed
