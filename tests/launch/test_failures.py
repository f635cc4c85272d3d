"""When something breaks: what is said first, how the program ends, and that no process is left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from places import FAILING
from recipes.parts import Net
from tiers import rounds
from torch import nn
from worlds import TINY, Command, in_world, train, train_here

import launcher
from launcher.checkpoints.format import name_of
from launcher.device import kind
from launcher.device.device import check_device, check_gpus, check_kind
from launcher.errors import LauncherError
from launcher.launch.agent import run_agent
from launcher.launch.nodes import Nodes
from launcher.launch.postmortem import examined
from launcher.launch.supervisor import choose_processes
from launcher.recipe.schema import Device
from launcher.text import shapes
from launcher.world.context import known_of, remembered
from launcher.world.failure import Failure, Frame, of_exception, of_exit, of_stack
from launcher.world.failure_report import Report, folded
from launcher.world.hints import hint_for
from launcher.world.notes import Notes, first_of
from launcher.world.world import World, usable_cpus
from recipes import failing

PLACE = r"\S*failing\.py:\d+"


def caught(act: Any, *arguments: Any) -> BaseException:
    try:
        act(*arguments)
    except BaseException as error:
        return error
    raise AssertionError("it did not fail")


# ---------------------------------------------------------------------- who failed, by the agent


def test_the_agent_tells_of_each_start_and_each_failure_and_logs_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    starts: list[int] = []
    ends: list[tuple[int, int, float]] = []
    ends_badly = "import os, sys; sys.exit(3 if os.environ['RANK'] == '1' else 0)"
    how: Any = {"nodes": Nodes(), "processes": 2, "max_restarts": 1, "leaving_seconds": 5}

    def act() -> None:
        said: Any = {"starting": starts.append, "ended": lambda *one: ends.append(one)}
        run_agent(("-S", "-c", ends_badly), **how, **said)

    before = time.time()
    with ThreadPoolExecutor(1) as thread:  # in the main thread the agent takes the signals
        thread.submit(act).result()
    assert starts == [0, 1]
    codes, times = zip(*((code, when) for rank, code, when in ends if rank == 1), strict=True)  # 0 may be told to end
    assert codes == (3, 3)
    assert before < times[0] < times[1] < time.time()
    assert capfd.readouterr() == ("", "")


# ---------------------------------------------------------------------- what is said


def test_the_user_s_own_line_is_named_and_torch_s_are_folded() -> None:
    error = caught(nn.Sequential(nn.Linear(2, 3), nn.Linear(4, 1)), torch.ones(1, 2))
    failure = of_exception(error, rank=1, world=2, host="node7", step=3)
    assert failure.culprit is not None
    assert failure.culprit.file == __file__
    assert failure.line.startswith("rank 1 of 2 on node7 failed at step 3 in ")
    assert f"{Path(__file__).name}:" in failure.line
    shown = list(folded(failure.frames))
    assert shown[-1].endswith("frames of launcher, torch and others)")
    assert not any("site-packages" in line for line in shown)
    assert "shapes do not fit" in (hint_for(failure) or "")


@pytest.mark.parametrize(
    ("what", "hint"),
    [
        ("OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", "data.micro_batch_size"),
        ("killed by signal 9 (SIGKILL)", "fewer data.workers"),
        ("RuntimeError: [enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory", "data.workers"),
        ("Points: worker process 0 was killed by SIGKILL while reading sample 3", "/dev/shm"),
        ("DistNetworkError: The server socket has failed to listen: errno: 98 - Address already in use", "--master"),
        ("RuntimeError: Unable to find address for: eth7", "GLOO_SOCKET_IFNAME"),
        ("RuntimeError: mat1 and mat2 shapes cannot be multiplied (8x3 and 4x3)", "(the batch is float32 [8, 3])"),
        ("RuntimeError: The size of tensor a (3) must match the size of tensor b (4)", "launcher data"),
        ("IndexError: Target 7 is out of bounds.", "a class is out of range"),
        (
            "RuntimeError: mat1 and mat2 must have the same dtype, but got Double and Float",
            "numbers of different types",
        ),
        ("RuntimeError: expected target dtype to be Long or Byte, but got Int", "int64 for classes"),
        ("RuntimeError: Found dtype Long but expected Float", "numbers of different types meet (the batch is float32"),
        ("RuntimeError: Expected to have finished reduction in the prior iteration", "not used in the loss"),
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("RuntimeError: Timed out waiting 2000ms for recv operation to complete", "device.timeout"),
        ("OSError: [Errno 24] Too many open files", "ulimit -n"),
    ],
)
def test_what_is_known_is_hinted_at(what: str, hint: str) -> None:
    facts = {"shapes": "the batch is float32 [8, 3]"}
    assert hint in (hint_for(Failure(what, facts=facts)) or "")


def test_the_first_failure_is_not_one_that_followed_from_it() -> None:
    followed = of_exception(RuntimeError("[pair.cc:547] Connection closed by peer [127.0.0.1]"), rank=0, time=10.0)
    cause = of_exit(-signal.SIGKILL, rank=1, time=10.9)
    ended_by_the_agent = of_exit(-signal.SIGTERM, rank=2, time=1.0)
    assert first_of([followed, cause, ended_by_the_agent]) is cause
    assert cause.what.startswith("killed by signal 9 (SIGKILL): the machine may have run out of memory")
    assert first_of([followed, ended_by_the_agent]) is ended_by_the_agent
    assert first_of([]) is None


def test_what_a_loader_s_worker_raised_is_the_user_s_line() -> None:
    inner = caught(failing.happen, None, None) if failing.ACCIDENT else ValueError("sample 3 is bad")
    text = (
        f'Traceback (most recent call last):\n  File "{failing.__file__}", line 40, in __getitem__\n    raise inner\n'
    )
    outer = ValueError(f"Caught ValueError in DataLoader worker process 0.\nOriginal {text}ValueError: {inner}")
    failure = of_exception(outer)
    assert failure.what == "ValueError: sample 3 is bad"
    assert failure.culprit is not None
    assert (failure.culprit.line, failure.culprit.function) == (40, "__getitem__")


def test_who_waits_for_another_is_not_at_fault() -> None:
    at_fault = traceback.StackSummary.from_list([(failing.__file__, 70, "happen", "time.sleep(10_000)")])
    waiting = [*at_fault, traceback.FrameSummary(torch.__file__, 1, "all_reduce")]
    assert not of_stack("no progress", at_fault).is_aftermath
    assert of_stack("no progress", waiting).is_aftermath


def test_word_left_by_a_rank_is_read_as_it_was(tmp_path: Path) -> None:
    frame = Frame("my.py", 3, "forward", "return x", is_users=True)
    failure = Failure("ValueError: no", rank=3, world=4, frames=(frame,), step=7, facts={"batch": "8"})
    notes = Notes(tmp_path)
    assert notes.write(failure)
    assert notes.read() == {3: failure}
    notes.clear(3)
    assert notes.read() == {}


def test_the_checkpoint_that_a_report_names_is_that_of_the_most_steps(tmp_path: Path) -> None:
    for steps in (99_999_999, 100_000_000, 7):
        (tmp_path / "checkpoints" / name_of(steps)).mkdir(parents=True)
    newest = Report(Failure(""), tmp_path, "again", "resume").checkpoint
    assert newest is not None
    assert newest.name == name_of(100_000_000)


def test_a_batch_is_described() -> None:
    batch = {"x": torch.zeros(2, 3), "y": [torch.zeros(2, dtype=torch.int64), "text"]}
    assert shapes(batch) == "{x: float32 [2, 3], y: (int64 [2], str)}"


class Fussy(Net):
    """Fails at a call."""

    def __init__(self, calls: int):
        super().__init__()
        self.calls = calls

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """As ever, until it is the last call."""
        self.calls -= 1
        if self.calls == 0:
            raise ValueError("fussy")
        return super().forward(inputs)


def test_what_a_run_knew_goes_with_its_exception_and_with_no_other(tmp_path: Path) -> None:
    said: Any = {"cpu": True, "output": "quiet"}
    steps = ("launch.threads=1", "train={steps: 9}", "scheduler=null", "evaluate.first=false")

    def fails_at(call: int, folder: str) -> BaseException:
        return caught(lambda: launcher.train(TINY, *steps, run_dir=tmp_path / folder, model=Fussy(call), **said))

    first, second = fails_at(6, "first"), fails_at(3, "second")
    for error, step, folder in ((first, 5, "first"), (second, 2, "second")):
        failure = examined(error, World())
        assert (failure.step, known_of(error).folder) == (step, tmp_path / folder)
        assert failure.facts["batch"].startswith("global batch 16 = 1 process")
        assert failure.facts["shapes"] == "the batch is (float64 [16, 6], int64 [16])"
    unread = caught(lambda: launcher.train(TINY, "optimizer.lr=fast", run_dir=tmp_path / "third", **said))
    after = caught(lambda: int("x"))
    assert [(known_of(one).step, known_of(one).folder) for one in (unread, after)] == [(None, None)] * 2
    assert examined(after, World()).facts == {}


def test_a_run_inside_a_run_has_a_context_of_its_own() -> None:
    def inner() -> None:
        with remembered() as known:
            known.step = 3
            raise ValueError

    with remembered() as outer:
        outer.step = 8
        assert known_of(caught(inner)).step == 3
        error = caught(int, "x")
    assert known_of(error).step is None  # it did not end the run

    def both() -> None:
        with remembered() as known:
            known.step = 5
            inner()

    assert known_of(caught(both)).step == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((2, None, None), "--nodes 2: start the same command on each machine with its own --node-rank, 0 to 1"),
        ((2, 2, "a:1"), "--node-rank 2: 2 nodes have the ranks 0 to 1"),
        ((2, 0, "a:1", 3), "--max-restarts: over several nodes"),
        ((2, 0, "a"), "--master a: write HOST:PORT"),
        ((1, 1, None), "go with --nodes N"),
    ],
)
def test_nodes_that_make_no_sense_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(LauncherError, match=re.escape(message)):
        Nodes.parse(*arguments)


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kind, "count", lambda: 2)
    assert choose_processes("auto", cpu=False) == 2
    assert choose_processes(4, cpu=False, nodes=2) == 2
    with pytest.raises(LauncherError, match="this machine shows 2 GPUs and one process uses one; use --processes 2,"):
        choose_processes(3, cpu=False)
    monkeypatch.setattr(kind, "count", lambda: 0)
    with pytest.raises(LauncherError, match="shows no GPU; add --cpu"):
        choose_processes(2, cpu=False)


def test_a_gpu_that_ranks_would_share_is_refused() -> None:
    check_gpus(["0 GPU-a", "0 GPU-b", "1 GPU-a"])
    with pytest.raises(LauncherError, match=r"ranks 0, 2 and 3 would share one GPU of node 0 \(GPU-a\), .*--cpu"):
        check_gpus(["0 GPU-a", "0 GPU-b", "0 GPU-a", "0 GPU-a"])


@pytest.mark.parametrize(
    ("variable", "name"),
    [
        ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed"),
        ("ACCELERATE_USE_MEGATRON_LM", "Megatron-LM"),
        ("ACCELERATE_USE_FSDP", "FSDP"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "a parallelism config"),
        ("ACCELERATE_USE_SAGEMAKER", "SageMaker"),
    ],
)
def test_what_an_accelerate_config_asks_for_in_vain_is_refused(variable: str, name: str) -> None:
    message = rf"the accelerate config asks for {name} \({variable}\), which .* choose a config without it"
    with pytest.raises(LauncherError, match=message):
        check_device(Device(), World.from_environ({variable: "true"}), on_cpu=True)
    check_device(Device(), World.from_environ({variable: "false"}), on_cpu=True)


def test_a_tpu_is_refused() -> None:
    for world_kind in ("NO", "MULTI_CPU", "MULTI_GPU"):
        check_kind(world_kind)
    with pytest.raises(LauncherError, match=r"told XLA, and this program does not train there: .* use --cpu"):
        check_kind("XLA")


def test_processes_are_shared_out_equally_over_nodes() -> None:
    assert choose_processes(4, cpu=True, nodes=2) == 2
    with pytest.raises(LauncherError, match="2 nodes cannot have equal shares"):
        choose_processes(3, cpu=True, nodes=2)


# ---------------------------------------------------------------------- real accidents

# by what happens on rank 1: the first line of the report, and a word of what follows it
BATCH = "(global batch 16 = 2 processes × 8 × 1 accumulated)"
AT_3 = r"failed at step 3 \(epoch 0\.75\)"
ACCIDENTS = {
    "raise": (rf"{AT_3} in ({PLACE}): ValueError: the fourth batch is bad", 'raise ValueError("the fourth'),
    "shape": (
        rf"{AT_3} in ({PLACE}): RuntimeError: mat1 and mat2 shapes cannot be",
        "the batch is (float32 [8, 4], int",
    ),
    "exit 7": (rf"{AT_3} in ({PLACE}): SystemExit: 7", "os._exit(7)"),
    "exit 0": (rf"{AT_3} in ({PLACE}): left early: SystemExit\(0\)", "os._exit(0)"),
    "sys.exit": (rf"{AT_3} in ({PLACE}): left early: SystemExit\(0\)", "sys.exit(0)"),
    "segv": (rf"{AT_3} in ({PLACE}): killed by signal 11 \(SIGSEGV\)", "happen"),
    "kill": (rf"{AT_3}: killed by signal 9 \(SIGKILL\): the machine may", f"if it was memory {BATCH}: use fewer"),
    "worker": (
        r"failed at .*: data.train \(Points\), rank 1: worker process 0 was killed by SIGKILL",
        f"/dev/shm, may be full or not to be written {BATCH}: use fewer",
    ),
    "unused": (
        r"failed at step 1 \(epoch 0\.25\): got no gradient of spare\.weight, spare\.bias, for which the other",
        "set device.ddp.find_unused_parameters: true",
    ),
}


OFTEN = ("raise", "exit 0", "kill", "worker")


@pytest.mark.torch_internals  # its agent
@rounds("accident", plain=OFTEN, long=[accident for accident in ACCIDENTS if accident not in OFTEN])
def test_the_first_failure_is_reported_and_nothing_is_left_running(tmp_path: Path, accident: str) -> None:
    first, more = ACCIDENTS[accident]
    workers = int(accident == "worker")
    arguments = (f"data.workers={workers}", "--cpu", "--processes", "2", "--run-dir", "run", "--quiet")
    done = Command(tmp_path, "train", FAILING, *arguments, ACCIDENT=accident).wait()
    assert done.code == 1, done.screen
    who = "rank [01]" if accident == "unused" else "rank 1"
    assert re.match(rf"launcher: {who} of 2 on \S+ {first}", done.report), done.screen
    assert more in done.report
    assert "Traceback" not in done.screen
    assert "Connection closed" not in done.screen
    assert done.left == []
    failure = json.loads((tmp_path / "run" / "failure.json").read_text())
    assert (failure["rank"], failure["exit_code"]) == (1 if accident != "unused" else failure["rank"], 1)
    assert done.ended - failure["time"] < 10  # the bound that a user is promised
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "failed"
    if accident not in ("unused", "worker"):  # workers read ahead: nobody knows in which step it is found
        assert failure["checkpoint"].endswith("step-00000002")
        assert "resume     launcher resume " in done.report


def test_an_exception_in_a_loader_worker_is_told_as_one_in_the_process_is(tmp_path: Path) -> None:
    told = []
    for workers in (0, 1):
        said = ("data.train={_target_: parts.py:Broken}", f"data.workers={workers}", "launch.threads=1")
        error = caught(lambda said=said: launcher.train(TINY, *said, run_dir=tmp_path / str(said), cpu=True))
        told.append(of_exception(error).what)
    assert told[0] == told[1] == "ZeroDivisionError: row 3 is broken\nin data.train (Broken), rank 0, sample 3"


def test_debugging_several_processes_ends_well(tmp_path: Path) -> None:
    done = Command(tmp_path, "train", str(TINY), "--cpu", "--processes", "2", "--debug", "--run-dir", "run").wait()
    assert done.code == 0, done.screen


def test_a_mistake_that_only_one_rank_finds_is_said_with_its_rank(tmp_path: Path) -> None:
    arguments = ("--cpu", "--processes", "2", "--run-dir", "run", "--quiet")
    done = Command(tmp_path, "train", FAILING, *arguments, ACCIDENT="import").wait()
    assert done.code == 2
    assert re.search(r"^rank 1 on \S+: .*no module named 'cv3'", done.screen, re.MULTILINE), done.screen
    assert done.left == []
    assert not (tmp_path / "run").exists()


@contextmanager
def busy_port() -> Iterator[None]:
    """Beside a busy 29500, the port that everything else uses."""
    with socket.socket() as busy:
        busy.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError):  # somebody else keeps it busy
            busy.bind(("127.0.0.1", 29500))
            busy.listen()
        yield


@rounds("launches", plain=[3], long=[8])
def test_launches_at_once_do_not_meet(tmp_path: Path, launches: int) -> None:
    (tmp_path / "add.py").write_text(
        "import sys, torch, torch.distributed as dist\n"
        "dist.init_process_group('gloo')\n"
        "number = torch.tensor([int(sys.argv[1])])\n"
        "dist.all_reduce(number)\n"
        "assert int(number) == 2 * int(sys.argv[1]), number\n"
        "if dist.get_rank() == 0:\n"
        "    print('sum', int(number))\n"
    )
    arguments = ("run", "--cpu", "--processes", "2", "--run-dir")
    with busy_port():
        launched = [Command(tmp_path, *arguments, f"run-{one}", "add.py", str(one)) for one in range(launches)]
        for number, done in enumerate([one.wait() for one in launched]):
            assert (done.code, done.screen, done.left) == (0, f"sum {2 * number}\n", [])


def test_a_killed_rank_is_started_again_and_the_end_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    arguments = ("--cpu", "--processes", "2", "--run-dir", "run", "--quiet", "--max-restarts", "2")
    with busy_port():
        done = Command(tmp_path, "train", FAILING, *arguments, ACCIDENT="kill once").wait()
    assert done.code == 0, done.screen
    assert re.search(r"rank 1 of 2 .* killed by signal 9 .*; restart 1 of 2, from the last checkpoint", done.screen)
    assert done.left == []
    assert not (tmp_path / "run" / "failure.json").exists()
    in_world(2, train_here, str(tmp_path / "straight"), (), FAILING)
    one, other = (torch.load(tmp_path / name / "model_weights.pth", weights_only=True) for name in ("run", "straight"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    # a rank's log has what Python, compiled code and programs print, whole; the screen has rank 0's
    for rank in (0, 1):
        log = (tmp_path / "run" / "logs" / f"rank-{rank}.log").read_text()
        for who in ("Python", "C", "a program"):
            assert log.count(f"{who} says: rank {rank}\n") == 2  # two starts
            assert done.screen.count(f"{who} says: rank {rank}\n") == (2 if rank == 0 else 0)


def test_a_full_disk_for_logs_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "run" / "logs").mkdir(parents=True)
    for rank in (0, 1):
        (tmp_path / "run" / "logs" / f"rank-{rank}.log").symlink_to("/dev/full")
    done = Command(tmp_path, "train", FAILING, "--cpu", "--processes", "2", "--run-dir", "run").wait()
    assert done.code == 0, done.screen


def test_ctrl_c_twice_ends_ranks_that_do_not_listen(tmp_path: Path) -> None:
    arguments = ("--cpu", "--processes", "2", "--run-dir", "run", "--quiet")
    command = Command(tmp_path, "train", FAILING, *arguments, ACCIDENT="sleep")
    metrics = tmp_path / "run" / "checkpoints" / "step-00000002"
    deadline = time.monotonic() + 120
    while not metrics.exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    launcher = psutil.Process(command.process.pid)
    launcher.send_signal(signal.SIGINT)
    time.sleep(2.5)
    assert command.process.is_alive()
    launcher.send_signal(signal.SIGINT)
    done = command.wait(30)
    assert done.code == 130
    assert done.left == []


def test_a_rank_that_stalls_is_told_with_the_stacks_of_all(tmp_path: Path) -> None:
    stall = ("launch.stall=3 seconds", "launch.on_stall=stop")
    arguments = ("--cpu", "--processes", "2", "--run-dir", "run", "--quiet")
    done = Command(tmp_path, "train", FAILING, *stall, *arguments, ACCIDENT="sleep").wait()
    assert done.code == 1
    assert re.match(
        rf"launcher: rank 1 of 2 on \S+ {AT_3} in ({PLACE}): no progress for 3 s \(launch.stall\)",
        done.report,
    ), done.screen
    assert "time.sleep(10_000)" in done.report
    for rank in (0, 1):
        assert f"stacks of rank {rank}" in (tmp_path / "run" / "logs" / f"rank-{rank}.log").read_text()
    assert done.left == []


@rounds("shared", plain=["true"], long=["false"])
def test_a_rank_that_hangs_is_waited_for_as_long_as_the_timeout_says(tmp_path: Path, shared: str) -> None:
    said = ("device.timeout=2 seconds", f"device.ddp.shared_memory={shared}")
    arguments = ("--cpu", "--processes", "2", "--run-dir", "run", "--quiet")
    done = Command(tmp_path, "train", FAILING, *said, *arguments, ACCIDENT="sleep").wait()
    assert done.code == 1
    assert re.match(rf"launcher: rank 0 of 2 on \S+ {AT_3}: RuntimeError: .*Timed out waiting 2000ms", done.report)
    assert "longer than device.timeout: the other hangs" in done.report
    failure = json.loads((tmp_path / "run" / "failure.json").read_text())
    assert [one["what"] for one in failure["others"]] == ["did not end after another rank had failed, and was killed"]
    assert done.left == []


def test_under_torchrun_errors_have_their_rank_s_name_and_logs_are_whole(tmp_path: Path) -> None:
    torchrun = [
        str(Path(sys.executable).parent / "torchrun"),
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "launcher",
    ]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "ACCIDENT": "raise"}
    done = subprocess.run(
        [*torchrun, "train", FAILING, "--cpu", "--run-dir", "run"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == 1
    named = rf"^launcher: rank 1 of 2 on \S+ {AT_3} in ({PLACE}): ValueError: the fourth batch is bad"
    assert re.search(named, done.stderr, re.MULTILINE), done.stderr
    assert "\n[rank 1] Python complains: rank 1\n" in f"\n{done.stderr}"
    assert "\nPython complains: rank 0\n" in f"\n{done.stderr}"
    for rank in (0, 1):
        log = (tmp_path / "run" / "logs" / f"rank-{rank}.log").read_text()
        assert f"Python says: rank {rank}\n" in log  # said before the run's folder was known
        assert ("the fourth batch is bad" in log) == (rank == 1)
    assert "says: rank 1" not in done.stdout + done.stderr


def test_one_process_reports_in_its_own_name(tmp_path: Path) -> None:
    done = Command(
        tmp_path, "train", FAILING, "--cpu", "--run-dir", "run", "--quiet", ACCIDENT="raise", RANK="1"
    ).wait()
    assert done.code == 1, done.screen
    assert re.match(rf"launcher: {AT_3} in ({PLACE}): ValueError: the fourth batch is bad", done.report)
    assert "launcher resume" in done.report
    assert "Traceback" in (tmp_path / "run" / "logs" / "rank-0.log").read_text()


def test_a_run_that_was_never_hit_reports_nothing(tmp_path: Path) -> None:
    trained = train(tmp_path / "run", recipe=Path(FAILING), size=2)
    assert not (tmp_path / "run" / "failure.json").exists()
    assert trained.column("step")[-1] == 12
    processes = json.loads((tmp_path / "run" / "environment.json").read_text())["processes"]
    expected = {"number": 2, "device": "CPU", "threads": 1, "workers": 0, "usable_cpus": usable_cpus()}
    assert processes == expected
