"""Two machines: two supervisors on loopback, or in network namespaces of their own where the machine allows it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from machines import ip, joined
from places import FAILING
from worlds import Command, free_port, in_world, train_here

from launcher.errors import EXIT_DONE, EXIT_FAILED, EXIT_PREEMPTED, EXIT_USAGE
from launcher.launch import supervisor
from launcher.launch.nodes import Nodes
from launcher.world import progress
from launcher.world.failure import Failure
from launcher.world.notes import Notes

LONG = ("train.epochs=2000", "device.timeout=6 seconds")  # less, and a busy machine ends a run that nothing happens to
WITHIN = 36  # seconds, device.timeout + 30: the bound that a user is promised


def node(
    folder: Path, rank: int, master: str, *arguments: str, netns: str | None = None, **environment: str
) -> Command:
    """One of two supervisors with one rank."""
    where = ("--cpu", "--processes", "2", "--nodes", "2", "--node-rank", str(rank), "--master", master)
    # only the first one says where the run is: the other learns it
    named = ("--run-dir", str(folder / "run")) if rank == 0 else ()
    return Command(folder, "train", FAILING, *arguments, *where, *named, "--quiet", netns=netns, **environment)


def until(condition: Callable[[], bool], both: list[Command]) -> None:
    deadline = time.monotonic() + 150
    while not condition():
        assert all(command.process.is_alive() for command in both), [command.screen.read_text() for command in both]
        assert time.monotonic() < deadline
        time.sleep(0.1)


def trains(folder: Path) -> Callable[[], bool]:
    return lambda: any((folder / "run" / "checkpoints").glob("step-*"))


@pytest.mark.torch_internals  # its agent
def test_two_supervisors_train_as_one_world(tmp_path: Path) -> None:
    master = f"127.0.0.1:{free_port()}"
    one, other = (node(tmp_path, rank, master) for rank in (0, 1))
    for done in (one.wait(), other.wait()):
        assert done.code == 0, done.screen
        assert done.left == []
    in_world(2, train_here, str(tmp_path / "straight"), (), FAILING)
    found, expected = (
        torch.load(tmp_path / name / "model_weights.pth", weights_only=True) for name in ("run", "straight")
    )
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_supervisor_is_killed_the_other_side_ends_with_its_reason(tmp_path: Path, victim: int) -> None:
    master = f"127.0.0.1:{free_port()}"
    both = [node(tmp_path, rank, master, *LONG) for rank in (0, 1)]
    until(trains(tmp_path), both)
    both[victim].process.kill()
    survivor = both[1 - victim].wait(WITHIN)
    assert survivor.code == 1
    assert f"launcher: rank {1 - victim} of 2" in survivor.screen
    assert "another rank ended first" in survivor.report
    assert survivor.left == []
    assert both[victim].wait(10).left == []


@pytest.fixture
def link() -> Iterator[tuple[str, str]]:
    """Two network namespaces joined by a cable: their names."""
    names = (f"one-{os.getpid()}", f"two-{os.getpid()}")
    with joined({name: f"10.77.0.{number}" for number, name in enumerate(names, start=1)}, "eth0"):
        yield names


@pytest.mark.parametrize("doing", ["training", "waiting"])
def test_when_the_cable_is_cut_both_sides_end_with_their_reason(
    tmp_path: Path, link: tuple[str, str], doing: str
) -> None:
    evaluation = ("data.validation={_target_: failing.py:Points}", "evaluate.every=4 steps", "evaluate.batch_size=1")
    arguments, accident = ((*LONG, *evaluation), "slow") if doing == "waiting" else (LONG, "")
    both = [
        node(tmp_path, rank, "10.77.0.1:29500", *arguments, netns=name, GLOO_SOCKET_IFNAME="eth0", ACCIDENT=accident)
        for rank, name in enumerate(link)
    ]
    until(trains(tmp_path), both)
    if doing == "waiting":
        until((tmp_path / "evaluates").exists, both)
    assert ip("-n", link[0], "link", "set", "eth0", "down")
    deadline = time.monotonic() + WITHIN
    for command in both:
        done = command.wait(deadline - time.monotonic())
        assert done.code == 1
        assert "launcher: rank " in done.screen
        assert "device.timeout" in done.report, done.screen
        assert done.left == []


def test_a_place_where_something_listens_and_says_nothing_is_not_waited_at_for_ever(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=50) as silent:
        master = f"127.0.0.1:{silent.getsockname()[1]}"
        done = node(tmp_path, 1, master, "launch.meeting_timeout=1 seconds").wait(WITHIN)
    assert done.code == 1
    assert "something listens there and does not answer as the first node does, for 1 seconds" in done.screen
    assert done.left == []


def left_by(notes: Notes, node: int, state: int, local_rank: int = 0, pid: int = 2**22 + 1) -> None:
    """What a rank has said of itself, which by that number is no process any more."""
    said = notes.progress_of(node, local_rank)
    said.parent.mkdir(parents=True, exist_ok=True)
    said.write_bytes(array("q", [pid, state, 5, 0]))


@pytest.mark.parametrize("state", [progress.STARTING, progress.RUNNING, progress.DONE, progress.STOPPED])
def test_what_an_earlier_start_has_left_ends_nobody_who_waits_for_the_other_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: int
) -> None:
    monkeypatch.setattr(supervisor, "SILENCE_SECONDS", -1)
    notes = Notes(tmp_path)
    left_by(notes, 0, state)
    assert notes.write(Failure("a mistake", exit_code=EXIT_USAGE))
    ranks = supervisor.Supervisor(1, True, 1, tmp_path, nodes=Nodes(2, 0, "127.0.0.1", 1), meeting_seconds=60)
    assert ranks._look() is None
    ranks._is_meeting = False  # from here on they are this start's
    assert ranks._look() in (EXIT_DONE, EXIT_FAILED)


@pytest.mark.parametrize(
    ("state", "mistake", "code"),
    [
        (progress.DONE, False, EXIT_DONE),
        (progress.STOPPED, False, EXIT_PREEMPTED),
        (progress.STARTING, True, EXIT_USAGE),
    ],
)
def test_a_machine_that_has_ended_first_takes_nothing_away_that_another_is_to_read(
    tmp_path: Path, state: int, mistake: bool, code: int
) -> None:
    notes, nodes = Notes(tmp_path), (Nodes(2, 0, "127.0.0.1", 1), Nodes(2, 1, "127.0.0.1", 1))
    for rank in range(2):
        left_by(notes, rank, state)
        if mistake:
            assert notes.write(Failure("a mistake", rank=rank, world=2, exit_code=EXIT_USAGE))
    for number, each in enumerate(nodes):
        ranks = supervisor.Supervisor(1, True, 1, tmp_path, nodes=each)
        assert ranks._outcome() == code
        ranks._tidy(code, is_read=True)
        assert notes.folder.exists() is (number == 0)


def test_a_late_rank_that_dies_of_being_asked_to_stop_has_not_failed(tmp_path: Path) -> None:
    ranks = supervisor.Supervisor(2, True, 1, tmp_path)
    ranks.starting(0)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as late:
        left_by(Notes(tmp_path), 0, progress.STOPPED)
        left_by(Notes(tmp_path), 0, progress.STARTING, local_rank=1, pid=late.pid)
        ranks._is_meeting = False
        assert ranks._look() is None
        ranks.ended(1, late.wait(), time.time())
    assert ranks._outcome() == EXIT_PREEMPTED
    with pytest.raises(supervisor._StoppedError):
        ranks.starting(1)
