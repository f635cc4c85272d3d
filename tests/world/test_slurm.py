"""Who a process is under SLURM, and how the ranks of a step find one another."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.errors import LauncherError, UsageError
from launcher.world import peers, rendezvous
from launcher.world.nodelist import expand, expand_counts
from launcher.world.world import World, usable_cpus

# as SLURM 22.05 sets them for the last task of `srun` in a batch script of 2 nodes with 2 tasks each
TASK = {
    "SLURM_JOB_ID": "12",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "node[0-1]",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
}


@pytest.mark.parametrize(
    ("text", "nodes"),
    [
        ("node7", ["node7"]),
        ("gpu[01-03,7],login", ["gpu01", "gpu02", "gpu03", "gpu7", "login"]),
        ("r[1-2]n[08-10]-ib", [f"r{r}n{n}-ib" for r in (1, 2) for n in ("08", "09", "10")]),
        ("a-b.c[0-0],[1-2]x", ["a-b.c0", "1x", "2x"]),
        ("n[099-101]", ["n099", "n100", "n101"]),
    ],
)
def test_node_lists_are_read(text: str, nodes: list[str]) -> None:
    assert expand(text) == nodes


@pytest.mark.parametrize("text", ["", "a,,b", "n[1-", "n[]", "n[3-1]", "n[a-b]", "n]1[", "n[1-2", "n[0-99999999999]"])
def test_what_is_no_node_list_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="node list"):
        expand(text)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 5)), min_size=1, max_size=5))
def test_counts_are_read(runs: list[tuple[int, int]]) -> None:
    text = ",".join(f"{count}(x{times})" if times > 1 else str(count) for count, times in runs)
    assert expand_counts(text) == [count for count, times in runs for _ in range(times)]


def test_a_task_of_a_step_knows_its_world() -> None:
    world = World.from_environ(TASK)
    assert (world.rank, world.size, world.local_rank, world.local_size) == (3, 4, 1, 2)
    assert (world.node, world.nodes, world.host, world.started_by) == (1, 2, "node0", "srun")
    assert (world.job, world.step, world.deadline) == ("12", "12.0.0", None)
    assert World.from_environ({**TASK, "SLURM_JOB_END_TIME": "1700000000"}).deadline == 1.7e9
    uneven = {**TASK, "SLURM_STEP_TASKS_PER_NODE": "3,1", "SLURM_LOCALID": "0", "SLURM_RESTART_COUNT": "2"}
    array = {**TASK, "SLURM_ARRAY_JOB_ID": "11", "SLURM_ARRAY_TASK_ID": "3"}
    found = World.from_environ(array)
    assert (found.job, found.step) == ("11_3", "12.0.0")  # 12 alone may mean the whole array
    # bound by srun or not, a task has no more than was asked for it
    assert World.from_environ({**TASK, "SLURM_CPUS_PER_TASK": "1"}).cpus == 1
    assert World.from_environ({**TASK, "SLURM_CPUS_PER_TASK": "1000"}).cpus == usable_cpus()
    assert world.cpus == max(1, usable_cpus() // 2)
    assert (World.from_environ(uneven).local_size, World.from_environ(uneven).step) == (1, "12.0.2")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"SLURM_STEP_ID": ""}, "a batch script"),
        ({"SLURM_STEP_ID": "4294967290"}, "salloc with an interactive step"),
        ({"SLURM_PTY_PORT": "34567"}, "srun --pty bash"),
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, "srun --ntasks=1"),
    ],
)
def test_shells_and_single_tasks_want_one_process(changes: dict[str, str], why: str) -> None:
    world = World.from_environ({**TASK, **changes})
    assert (world.size, world.is_launched, world.job) == (1, False, "12"), why


def test_torchrun_and_accelerate_inside_a_step_are_theirs() -> None:
    variables = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    assert World.from_environ({**TASK, **variables}).started_by == "torchrun"
    accelerate = {"ACCELERATE_MIXED_PRECISION": "no"}
    assert World.from_environ({**TASK, **variables, **accelerate}).started_by == "accelerate"
    with pytest.raises(UsageError, match="accelerate launch was started 4 times by srun"):
        World.from_environ({**TASK, **accelerate})


@pytest.mark.parametrize("changes", [{"SLURM_PROCID": "4"}, {"SLURM_NODEID": "2"}, {"SLURM_STEP_TASKS_PER_NODE": "4"}])
def test_variables_that_contradict_each_other_are_refused(changes: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="do not agree"):
        World.from_environ({**TASK, **changes})
    with pytest.raises(UsageError, match="SLURM_STEP_ID is set and SLURM_PROCID is not"):
        World.from_environ({name: value for name, value in TASK.items() if name != "SLURM_PROCID"})


# ---------------------------------------------------------------------- finding rank 0


@pytest.fixture(autouse=True)
def connections_are_closed() -> Iterator[None]:
    yield
    while peers.known:
        peers.known.popitem()[1].connection.close()


def world(rank: int, size: int, step: str) -> World:
    return World(rank=rank, size=size, host="127.0.0.1", step=step, started_by="srun")


def meet(size: int, step: str, found: dict[int, int]) -> list[threading.Thread]:
    """Every rank in a thread; `found` receives the port that each was told."""

    def one(rank: int) -> None:
        deadline = time.monotonic() + 30
        way = rendezvous._receive if rank == 0 else rendezvous._visit
        found[rank] = way(world(rank, size, step), deadline)

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    return threads


def test_two_steps_that_try_the_same_ports_do_not_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "ports", lambda step: [15_100, 15_102, 15_104])
    stranger = socket.create_server(("127.0.0.1", 15_100))  # takes connections and never answers
    monkeypatch.setattr(rendezvous, "_ANSWER_SECONDS", 0.5)
    one: dict[int, int] = {}
    two: dict[int, int] = {}
    with stranger:
        for thread in [*meet(3, "1.0.0", one), *meet(3, "2.0.0", two)]:
            thread.join(40)
    assert set(one) == set(two) == {0, 1, 2}
    assert {*one.values()} | {*two.values()} == {15_103, 15_105}
    assert len({*one.values()}) == len({*two.values()}) == 1


def test_a_rank_that_does_not_come_is_named() -> None:
    with pytest.raises(LauncherError, match="rank 1 of 2 did not come"):
        rendezvous._receive(world(0, 2, "3.0.0"), time.monotonic() + 0.1)
    with pytest.raises(LauncherError, match=r"rank 1 did not find rank 0 on 127.0.0.1: Connection refused"):
        rendezvous._visit(world(1, 2, "3.0.0"), time.monotonic() + 0.1)


def test_the_ports_of_steps_differ_and_lie_below_those_of_outgoing_connections() -> None:
    assert rendezvous.ports("1.0.0") != rendezvous.ports("2.0.0")
    tried = rendezvous.ports("1.0.0")
    assert len({*tried}) == rendezvous.TRIES
    assert all(15_000 <= port < 32_000 for port in tried)
    lowest = Path("/proc/sys/net/ipv4/ip_local_port_range")
    assert not lowest.exists() or max(tried) < int(lowest.read_text().split()[0])
