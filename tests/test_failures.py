"""When something breaks: what is said first, how the program ends, and that no process is left behind."""

from __future__ import annotations

import json
import re
import signal
import socket
import time
import traceback
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import nn
from worlds import Command, in_world, train, train_here

from launcher.errors import LauncherError
from launcher.launch.failure import Failure, Frame, Notes, first_of, folded, hint_for, of_exception, of_exit, of_stack
from launcher.launch.local import choose_processes
from launcher.launch.nodes import Nodes
from launcher.postmortem import described
from recipes import failing

RECIPES = Path(__file__).parent / "recipes"
FAILING = str(RECIPES / "failing.yaml")
PLACE = r"\S*failing\.py:\d+"


def caught(act: Any, *arguments: Any) -> BaseException:
    try:
        act(*arguments)
    except BaseException as error:
        return error
    raise AssertionError("it did not fail")


# ---------------------------------------------------------------------- what is said


def test_the_user_s_own_line_is_named_and_torch_s_are_folded() -> None:
    error = caught(nn.Sequential(nn.Linear(2, 3), nn.Linear(4, 1)), torch.ones(1, 2))
    failure = of_exception(error, rank=1, world=2, host="node7", step=3)
    assert failure.culprit is not None
    assert failure.culprit.file == __file__
    assert failure.line.startswith("rank 1 of 2 on node7 failed at step 3 in ")
    assert "test_failures.py:" in failure.line
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
        ("RuntimeError: Expected to have finished reduction in the prior iteration", "(spare.weight) were"),
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("RuntimeError: Timed out waiting 2000ms for recv operation to complete", "device.timeout"),
        ("OSError: [Errno 24] Too many open files", "ulimit -n"),
    ],
)
def test_what_is_known_is_hinted_at(what: str, hint: str) -> None:
    facts = {"shapes": "the batch is float32 [8, 3]", "unused": "spare.weight"}
    if "(spare" in hint:
        hint = "not used in the loss (spare.weight)"
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


def test_a_batch_is_described() -> None:
    batch = {"x": torch.zeros(2, 3), "y": [torch.zeros(2, dtype=torch.int64), "text"]}
    assert described(batch) == "{x: float32 [2, 3], y: (int64 [2], str)}"


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


def test_processes_are_shared_out_equally_over_nodes() -> None:
    assert choose_processes(4, cpu=True, nodes=2) == 2
    with pytest.raises(LauncherError, match="2 nodes cannot have equal shares"):
        choose_processes(3, cpu=True, nodes=2)


# ---------------------------------------------------------------------- real accidents

# by what happens on rank 1: the first line of the report, and a word of what follows it
ACCIDENTS = {
    "raise": (rf"failed at step 3 in ({PLACE}): ValueError: the fourth batch is bad", 'raise ValueError("the fourth'),
    "exit 7": (r"failed at step 3: exit code 7, without a word", "checkpoint"),
    "exit 0": (r"failed at step 3: left early with exit code 0", "checkpoint"),
    "segv": (rf"failed at step 3 in ({PLACE}): killed by signal 11 \(SIGSEGV\)", "happen"),
    "unused": (r"failed at step 1: RuntimeError: Expected to have finished reduction", "(spare.weight, spare.bias)"),
}


@pytest.mark.parametrize("accident", ACCIDENTS)
def test_the_first_failure_is_reported_and_nothing_is_left_running(tmp_path: Path, accident: str) -> None:
    first, more = ACCIDENTS[accident]
    arguments = ("--cpu", "--processes", "2", "--run-dir", "run", "--quiet")
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
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "failed"
    if accident != "unused":
        assert failure["checkpoint"].endswith("step-00000002")
        assert "go on      launcher resume " in done.report


def test_a_mistake_that_only_one_rank_finds_is_said_with_its_rank(tmp_path: Path) -> None:
    arguments = ("--cpu", "--processes", "2", "--run-dir", "run", "--quiet")
    done = Command(tmp_path, "train", FAILING, *arguments, ACCIDENT="import").wait()
    assert done.code == 2
    assert re.search(r"^rank 1 on \S+: .*no module named 'cv3'", done.screen, re.MULTILINE), done.screen
    assert done.left == []
    assert not (tmp_path / "run").exists()


def test_a_killed_rank_is_started_again_and_the_end_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    arguments = ("--cpu", "--processes", "2", "--run-dir", "run", "--quiet", "--max-restarts", "2")
    # beside a busy 29500, the port that everything else uses
    with socket.socket() as busy:
        busy.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            busy.bind(("127.0.0.1", 29500))
            busy.listen()
        except OSError:
            pass  # somebody else keeps it busy
        done = Command(tmp_path, "train", FAILING, *arguments, ACCIDENT="kill once").wait()
    assert done.code == 0, done.screen
    assert re.search(r"rank 1 of 2 .* killed by signal 9 .*; restart 1 of 2, from the last checkpoint", done.screen)
    assert done.left == []
    assert not (tmp_path / "run" / "failure.json").exists()
    in_world(2, train_here, str(tmp_path / "straight"), (), FAILING)
    one, other = (torch.load(tmp_path / name / "model_weights.pth", weights_only=True) for name in ("run", "straight"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    log = (tmp_path / "run" / "logs" / "rank-1.log").read_text()
    assert isinstance(log, str)


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
        rf"launcher: rank 1 of 2 on \S+ failed at step 3 in ({PLACE}): no progress for 3 s \(launch.stall\)",
        done.report,
    ), done.screen
    assert "time.sleep(10_000)" in done.report
    for rank in (0, 1):
        assert f"stacks of rank {rank}" in (tmp_path / "run" / "logs" / f"rank-{rank}.log").read_text()
    assert done.left == []


def test_one_process_reports_in_its_own_name(tmp_path: Path) -> None:
    done = Command(
        tmp_path, "train", FAILING, "--cpu", "--run-dir", "run", "--quiet", ACCIDENT="raise", RANK="1"
    ).wait()
    assert done.code == 1, done.screen
    assert re.match(rf"launcher: failed at step 3 in ({PLACE}): ValueError: the fourth batch is bad", done.report)
    assert "launcher resume" in done.report
    assert "Traceback" in (tmp_path / "run" / "logs" / "rank-0.log").read_text()


def test_a_run_that_was_never_hit_reports_nothing(tmp_path: Path) -> None:
    trained = train(tmp_path / "run", recipe=Path(FAILING), size=2)
    assert not (tmp_path / "run" / "failure.json").exists()
    assert trained.column("step")[-1] == 12
