"""What a job may ask for, what the environment may add, and who of its ranks failed: seen without a cluster."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from worlds import TINY

from launcher.cli.main import main
from launcher.errors import UsageError
from launcher.launch.slurm.batch_script import command_words, expanded
from launcher.launch.slurm.plan import _option_of
from launcher.launch.slurm.request import _gpus_in_gres
from launcher.recipe.sbatch import SBATCH_OPTIONS, limit_seconds
from launcher.runs.job import Submission
from launcher.runs.lock import LOCK_FILE, check_free
from launcher.world import peers, rendezvous
from launcher.world.failure import Failure, Frame, of_stack
from launcher.world.failure_report import Report, exits, host_at_fault
from launcher.world.site import in_recipe, read_site
from launcher.world.world import World


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("SLURM_", "SBATCH_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("LAUNCHER_SITE", "")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["submit", str(TINY), "--cpu", "--dry-run", *words]) == 2
    return capsys.readouterr().err


def planned(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[list[str], str]:
    assert main(["submit", str(TINY), "--cpu", "--dry-run", *words]) == 0
    printed = capsys.readouterr()
    return [line.removeprefix("#SBATCH ") for line in printed.out.splitlines()], printed.err


# sbatch takes every beginning of an option that is no other's
HARMFUL = (
    "output",
    "error",
    "input",
    "chdir",
    "wrap",
    "array",
    "export",
    "export-file",
    "open-mode",
    "bbf",
    "nodefile",
)
BEGINNINGS = [name[:length] for name in HARMFUL for length in range(2, len(name) + 1)]


def test_no_beginning_of_an_option_that_chooses_a_file_or_runs_a_command_is_taken() -> None:
    assert not {one.replace("-", "_") for one in BEGINNINGS} & SBATCH_OPTIONS
    recipe = {"slurm": dict.fromkeys(BEGINNINGS, "/home/me/.bashrc"), "base": str(TINY)}
    Path("hostile.yaml").write_text(json.dumps(recipe))
    assert main(["check", "hostile.yaml", "--fast"]) == 2


@pytest.mark.parametrize(
    ("change", "answer"),
    [
        ("slurm.erro=/home/me/.bashrc", "slurm.erro: a recipe may not say this"),
        ("slurm.output=/home/me/.bashrc", "slurm.output: a recipe may not say this"),
        ("slurm.timee=4", "did you mean 'time'?"),
        ("slurm.partitoin=gpu", "did you mean 'partition'?"),
        ("slurm.constrain=h100", "did you mean 'constraint'?"),
        ("slurm.gpus-per-node=4", "write gpus_per_node"),
        ("slurm.dependency=afterok:7", "a recipe may not say this"),
        ("slurm.nodelist=/etc/shadow", "would read this as the name of a file"),
        ("slurm.exclude=./hosts", "would read this as the name of a file"),
    ],
)
def test_options_are_those_of_a_list(capsys: pytest.CaptureFixture[str], change: str, answer: str) -> None:
    assert answer in refused(capsys, change)


@pytest.mark.parametrize("words", [("--arr=0-3",), ("--array", "0-3"), ("-a0-3",), ("-a", "0-3"), ("--wr=id",)])
def test_a_run_is_no_array_behind_dashes(capsys: pytest.CaptureFixture[str], words: tuple[str, ...]) -> None:
    assert "after --: " in refused(capsys, "--", *words)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 5400), ("00:90", 120), ("1:30:00", 5400), ("1-12", 129_600), ("1-0:1", 86_460), ("0", None), ("0:01", 60)],
)
def test_a_limit_is_read_as_sbatch_does(text: str, seconds: int | None) -> None:
    assert limit_seconds(text) == seconds


@pytest.mark.parametrize(
    "words",
    [
        *(("--time", "2"), ("--time", "00:90"), ("--time", "10", "--signal", "10 minutes"), ('slurm.time="1"',)),
        *(("--", "--time=1"), ("--", "-t", "2"), ("--", "-t1"), ("--time", "60", "--", "--tim", "1")),
    ],
)
def test_a_limit_shorter_than_the_time_to_save_is_refused(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    assert "is over before training begins" in refused(capsys, *words)


def test_the_environment_adds_what_nobody_states(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (
        "TIMELIMIT=30",
        "ACCOUNT=theirs",
        "QOS=low",
        "WAIT=1",
        "NO_REQUEUE=1",
        "MEM_PER_NODE=1G",
        "EXPORT=NONE",
    ):
        monkeypatch.setenv("SBATCH_" + name.partition("=")[0], name.partition("=")[2])
    _, shown = planned(capsys, "--account", "mine", "slurm.mem=2G")
    assert "time       30; saves" in shown
    assert "account mine" in shown
    counted = [line.split()[1].rstrip(",") for line in shown.splitlines() if line.endswith("from the environment")]
    assert counted == ["SBATCH_QOS=low", "SBATCH_TIMELIMIT=30"]
    assert "SBATCH_WAIT is in the environment and not used" in shown


def test_variables_are_those_options() -> None:
    names = ("SBATCH_TIMELIMIT", "SBATCH_NO_REQUEUE", "SBATCH_MEM_PER_GPU", "SBATCH_CPUS_PER_GPU", "SBATCH_ARRAY_INX")
    assert [_option_of(name) for name in names] == ["time", "requeue", "mem", "cpus-per-gpu", "array"]


def test_files_and_the_environment_are_always_stated(capsys: pytest.CaptureFixture[str]) -> None:
    lines, _ = planned(capsys, "--run-dir", "a b")
    log = f'"{Path.cwd()}/a b/logs/slurm-%j.out"'
    assert {f"--output={log}", f"--error={log}", f"--chdir={Path.cwd()}", "--export=ALL"} <= {*lines}
    assert command_words({"output": "a b", "requeue": True, "gres": False}) == ["--output=a b", "--requeue"]


@pytest.mark.parametrize(
    ("gres", "count"),
    [("gpu", "1"), ("gpu:2", "2"), ("gpu:h100", "h100:1"), ("shard:1,gpu:h100:4", "h100:4"), ("lgpu:3", None)],
)
def test_gpus_may_be_named_by_gres(gres: str, count: str | None) -> None:
    assert _gpus_in_gres(gres) == count


# ---------------------------------------------------------------------- the site file


def test_a_site_file_for_all_users(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("USER", "ann")
    monkeypatch.setenv("LAUNCHER_SITE", "site.yaml")
    Path("site.yaml").write_text(
        "runs: /scratch/$USER/${env.GROUP}/runs\nscratch: $TMPDIR/of/${USER}\n"
        "environment: {CACHE: '/x/$USER/$SLURM_JOB_ID; touch PWNED', MONEY: '5 $'}\n"
        "container: [apptainer, '--bind=/scratch/$USER:/data', sh, -c, 'exec $X']\n"
        "interface: ib0\nmaster: '{host}-ib'\n"
    )
    site, _ = read_site()
    with pytest.raises(UsageError, match="the variable GROUP is not set here"):
        _ = site.root
    monkeypatch.setenv("GROUP", "g7")
    assert site.root == Path("/scratch/ann/g7/runs")
    lines, _ = planned(capsys, "--run-dir", "run")
    for line in (
        """export CACHE=/x/ann/"${SLURM_JOB_ID}"'; touch PWNED'""",
        *("export MONEY='5 $'", "export NCCL_SOCKET_IFNAME=ib0", "export LAUNCHER_MASTER='{host}-ib'"),
    ):
        assert line in lines
    (start,) = (line for line in lines if '"$python" -m launcher train' in line)
    assert start.strip().startswith("""apptainer --bind=/scratch/ann:/data sh -c 'exec $X' "$python" """)
    assert "'data.scratch=${env.TMPDIR}/of/ann'" in start
    Path("site.yaml").write_text("options: {erro: /tmp/x}\n")
    assert "options.erro: no site file says this to sbatch" in refused(capsys)


def test_a_user_without_a_name_or_a_home_is_known_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    import pwd

    for name in ("USER", "LOGNAME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LAUNCHER_SITE", "site.yaml")
    Path("site.yaml").write_text("runs: /scratch/$USER\n")
    assert read_site()[0].root == Path("/scratch") / pwd.getpwuid(os.getuid()).pw_name


def test_a_home_that_cannot_be_written_is_no_reason_to_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from launcher.datasets import text
    from launcher.runs.job import mark_submitted, queue_now

    monkeypatch.setattr(text, "LARGE_BYTES", 10)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "squeue").write_text("#!/bin/sh\necho '7|7|RUNNING|None|N/A|1:00|n1|2:00'\n")
    (tmp_path / "squeue").chmod(0o755)
    (tmp_path / "long.txt").write_text("a text of more than ten bytes")
    for home in ("/proc/nowhere", "/dev/null"):
        monkeypatch.setenv("HOME", home)
        assert len(text.TextFile("long.txt", context=4)) > 0
        assert queue_now()["7"].nodes == "n1"
        mark_submitted(tmp_path, Submission())
        assert main(["runs", "."]) == 0


@pytest.mark.parametrize("text", ["a b", "$X", "${X}y", "$(touch PWNED)", "`x`", "'", '"', "$", "${", "$X'$Y", ""])
def test_only_variables_are_read_by_the_shell(text: str) -> None:
    import subprocess

    script = f"printf '%s' {expanded(text)}"
    done = subprocess.run(
        ["/bin/sh", "-c", script], env={"X": "1 2", "Y": ";"}, capture_output=True, text=True, check=True
    )
    assert done.stdout == text.replace("${X}", "1 2").replace("$X", "1 2").replace("$Y", ";")
    assert not Path("PWNED").exists()
    assert in_recipe("$A/${B}/${env.C}") == "${env.A}/${env.B}/${env.C}"


# ---------------------------------------------------------------------- a lock whose job is over


@pytest.mark.parametrize(
    ("holder", "submission", "me", "is_free"),
    [
        ({"job": "7", "restart": 0}, {"starts": [{"job": "7", "code": 1}]}, "8", True),  # its script has seen its end
        ({"job": "7", "restart": 0}, {"starts": [{"job": "7", "lost": True}, {"job": "8"}]}, "8", True),
        ({"job": "7", "restart": 0}, {"over": ["7.0"], "starts": []}, "8", True),  # as SLURM has said to `resume`
        ({"job": "7", "restart": 0}, {"starts": [{"job": "7"}, {"job": "8"}]}, "8", False),
        ({"job": "7", "restart": 1}, {"starts": [{"job": "7", "code": 1}]}, "8", False),  # a later start of it
        ({"job": "7", "restart": 0}, {"starts": "x", "over": 3}, "8", False),
        ({"job": None}, {"starts": [{"job": "7", "code": 1}]}, "8", False),  # a process at somebody's screen
        ({"job": "7"}, {}, "7", True),  # written before starts were counted, on another host
    ],
)
def test_the_lock_of_a_start_that_is_over_binds_nobody(
    tmp_path: Path, holder: dict[str, Any], submission: dict[str, Any], me: str, is_free: bool
) -> None:
    known = {"host": "elsewhere", "pid": 1, "namespace": "another", "start": "", **holder}
    (tmp_path / LOCK_FILE).write_text(json.dumps(known))
    (tmp_path / "slurm.json").write_text(json.dumps(submission))
    if is_free:
        check_free(tmp_path, me)
    else:
        with pytest.raises(UsageError, match="is being written by process 1 on elsewhere"):
            check_free(tmp_path, me)


def test_a_later_start_of_the_same_job_follows_an_earlier_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"host": os.uname().nodename, "pid": 1, "namespace": "another", "job": "7", "restart": 1}
    (tmp_path / LOCK_FILE).write_text(json.dumps(known))
    for restart, is_free in (("2", True), ("1", False)):
        monkeypatch.setenv("SLURM_RESTART_COUNT", restart)
        if is_free:
            check_free(tmp_path, "7")
        else:
            with pytest.raises(UsageError):
                check_free(tmp_path, "7")


# ---------------------------------------------------------------------- who was it

AFTERMATH = "RuntimeError: Connection closed by peer"


def rank(number: int, what: dict[int, str], step: str, said: Any) -> None:
    """One rank of four that meet, to which something happens; the others fail because of it."""
    world = World(rank=number, size=4, local_rank=number, local_size=4, started_by="srun", host="node0", step=step)
    with rendezvous.gathered(world, 30):
        mine = what.get(number)
        if mine == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        frames = (Frame("model.py", 1, "forward", "x", True),)
        failure = Failure(AFTERMATH, rank=number, world=4, is_aftermath=True)
        if mine == "raise":
            failure = Failure("ValueError: x", rank=number, world=4, frames=frames)
        if mine == "hang":
            peers.tell(Failure("no progress", rank=number, world=4, frames=frames))
            time.sleep(5)
            return
        verdict = peers.judged(failure, world)
        if verdict is not None:
            said.put((number, verdict[0].rank, verdict[0].what))


@pytest.mark.parametrize(
    ("what", "reporters", "culprit"),
    [
        ({3: "kill"}, {0}, 3),
        ({0: "kill"}, {1, 2, 3}, 0),
        ({2: "raise"}, {0, 2}, 2),
        ({3: "hang"}, {0}, 3),
        ({2: "raise", 1: "kill"}, {0, 2}, 2),  # who says so is nearer to the cause than who says nothing
    ],
)
def test_the_rank_that_made_the_others_fail_is_named(what: dict[int, str], reporters: set[int], culprit: int) -> None:
    context = multiprocessing.get_context("fork")
    said = context.SimpleQueue()
    step = f"{os.getpid()}.{time.time_ns()}.0"
    ranks = [context.Process(target=rank, args=(number, what, step, said)) for number in range(4)]
    for one in ranks:
        one.start()
    for one in ranks:
        one.join(60)
    found = []
    while not said.empty():
        found.append(said.get())
    assert {reporter for reporter, _, _ in found} == reporters
    assert {about for _, about, _ in found} == {culprit}


def test_srun_says_who_was_killed_first() -> None:
    log = (
        "srun: error: node1: task 3: Killed\nsrun: launch/slurm: _step_signal: Terminating StepId=7.0\n"
        "srun: error: node0: tasks 0-1: Exited with exit code 1\nsrun: error: gpu-2: task 2: Out Of Memory\n"
    )
    found = list(exits(log))
    assert [(one.rank, one.host) for one in found] == [(3, "node1"), (0, "node0"), (1, "node0"), (2, "gpu-2")]
    assert found[0].what.startswith("killed by signal 9 (SIGKILL): the machine may have run out of memory")
    assert [one.exit_code for one in found] == [-9, 1, 1, -9]


def test_the_first_cause_stays_and_several_hosts_are_nobody_s_fault(tmp_path: Path) -> None:
    def report(failure: Failure, *others: Failure) -> bool:
        return Report(failure, tmp_path, "", "", others, since=0.0).write()

    assert report(Failure(AFTERMATH, rank=0, host="a", is_aftermath=True))
    assert host_at_fault(tmp_path, 0.0) == ""
    assert report(Failure("killed", rank=3, host="b", is_silent=True))
    assert host_at_fault(tmp_path, 0.0) == "b"
    assert report(Failure("ValueError", rank=2, host="c"))
    assert not report(Failure("ValueError", rank=1, host="d", time=time.time() + 9))
    assert host_at_fault(tmp_path, 0.0) == "c"
    assert host_at_fault(tmp_path, time.time() + 5) == ""
    stalled = [Failure("no progress", rank=number, host=host, time=1.0) for number, host in ((0, "a"), (3, "b"))]
    assert report(*stalled)
    assert host_at_fault(tmp_path, 0.0) == ""


@pytest.mark.parametrize(
    ("inner", "waits"),
    [
        ((), False),  # in one's own code
        (("torch/utils/data/dataloader.py", "multiprocessing/connection.py"), False),  # for its own workers
        (("torch/nn/modules/module.py", "torch/autograd/graph.py"), True),
        (("torch/distributed/distributed_c10d.py",), True),
        (("torch/utils/data/dataloader.py", "torch/distributed/distributed_c10d.py"), True),
    ],
)
def test_who_waits_for_its_own_data_waits_for_no_other_rank(inner: tuple[str, ...], waits: bool) -> None:
    import traceback

    files = ("/home/me/model.py", *(f"/x/site-packages/{file}" for file in inner))
    stack = [traceback.FrameSummary(file, 1, "f", line="x") for file in files]
    assert of_stack("no progress", stack).is_aftermath is waits
