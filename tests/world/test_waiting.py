"""Whoever waits says for whom, leaves when it is asked to, and finds its way on machines whose names mean little."""

from __future__ import annotations

import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from machines import joined
from places import ROOT
from projects import PARTS, make
from tiers import rounds
from worlds import free_port

from launcher.errors import RecipeError, UsageError
from launcher.launch.nodes import Nodes, NodesError
from launcher.recipe.load import load_recipe
from launcher.text import spans
from launcher.world import network, waiting
from launcher.world.failure import Failure
from launcher.world.hints import hint_for
from launcher.world.signals import listening, stop_requested
from launcher.world.waiting import Wait, pauses, ranks
from launcher.world.world import World

# ---------------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("numbers", "text"),
    [([1], "1"), ([4, 5, 6, 7], "4-7"), ([9, 1, 4, 5], "1, 4-5, 9"), (list(range(0, 40, 2)), "0, 2, 4, 6, 8, 10, …")],
)
def test_numbers_are_said_in_short(numbers: list[int], text: str) -> None:
    assert spans(numbers, most=6) == text


def test_who_is_missing_is_named() -> None:
    assert ranks([1], 2) == "rank 1 of 2"
    assert ranks([4, 5, 6, 7], 8) == "ranks 4-7 of 8"


def test_what_mostly_comes_at_once_is_looked_for_soon_and_ever_more_rarely() -> None:
    looks = list(itertools.islice(pauses(0.5), 12))
    assert looks[0] < 0.01 < looks[-1] == 0.5
    assert looks == sorted(looks)
    assert sum(looks[:6]) < 0.5


def test_why_nobody_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    assert network.fault_of("127.0.0.1", port) == "nothing listens there"
    assert network.fault_of("no.such.host.invalid", port) == "name unknown"
    assert network.fault_of("." * 300, port) == "name unknown"  # none that a name server would be asked for
    with socket.create_server(("127.0.0.1", port)):
        assert network.fault_of("127.0.0.1", port) == ""
    wait = Wait("rank 0 of 2", 1.0, host="127.0.0.1", port=port)
    assert wait.text == f"rank 0 of 2 at 127.0.0.1:{port} (nothing listens there)"
    wait.turn("the connections", "over lo", 1.0)
    assert wait.text == "the connections (over lo)"
    assert network.place("fd00::1", 29500) == "[fd00::1]:29500"


def test_an_unknown_name_is_told_at_once_and_all_else_after_a_while(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "_LOOK_SECONDS", 0.01)

    def told(wait: Wait, words: int) -> str:
        screen = ""
        with wait.told():
            while screen.count("waiting for") < words:
                time.sleep(0.02)
                screen += capfd.readouterr().err
        return screen

    said = told(Wait("rank 0 of 2", 60.0, host="no.such.host.invalid", port=29500), 1)
    assert said == "launcher: waiting for rank 0 of 2 at no.such.host.invalid:29500 (name unknown)\n"
    monkeypatch.setattr(waiting, "NOTICE_SECONDS", 0.3)
    monkeypatch.setattr(waiting, "AGAIN_SECONDS", 0.1)
    wait = Wait("rank 1 of 2", 60.0, why="not there yet", host="127.0.0.1", port=29500)
    wait.began = time.monotonic()
    said = told(wait, 3)
    assert set(said.splitlines()) == {"launcher: waiting for rank 1 of 2 at 127.0.0.1:29500 (not there yet)"}


@pytest.mark.parametrize(
    ("what", "hint"),
    [
        ("launch.meeting_timeout: waited 300 seconds for rank 0 of 2 at n0:29500 (name unknown)", "/etc/hosts"),
        ("launch.meeting_timeout: waited 300 seconds for rank 1 of 2 (not there yet)", "firewall"),
        ("launch.meeting_timeout: waited 300 seconds for the connections of the ranks to", "launch.interface=eth0"),
        ("RuntimeError: Gloo connectFullMesh failed with [pair.cc] timed out connecting", "launch.interface=eth0"),
    ],
)
def test_the_hint_says_what_to_change(what: str, hint: str) -> None:
    assert hint in (hint_for(Failure(what)) or "")


# ---------------------------------------------------------------------- the way to others


def test_one_machine_meets_at_an_address_and_over_its_interface() -> None:
    assert network.loopback() == Nodes().address == "127.0.0.1"
    assert network.interface_towards("no.such.host.invalid", nodes=1) == network.interface_of("127.0.0.1")
    assert Nodes().interface() == network.interface_of("127.0.0.1")


def test_the_interface_is_that_of_the_route_to_rank_0() -> None:
    for name, addresses in network.interfaces().items():
        for address in (one for one in addresses if not one.startswith("fe80")):
            if psutil.net_if_stats()[name].isup:
                assert network.interface_towards(address, nodes=2) == name  # as rank 0's own machine sees it


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.0.1.1", "::1"])
def test_a_loopback_address_means_this_machine(host: str) -> None:
    assert network.is_loopback(host)
    assert network.interface_towards(host, nodes=2) == network.interface_of("127.0.0.1")


@pytest.mark.parametrize("host", ["node1", "10.0.0.1", "127.example.org", ""])
def test_others_do_not(host: str) -> None:
    assert not network.is_loopback(host)


def test_an_interface_that_is_not_there_is_refused_before_anything_waits(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"launch.interface: this machine has no network interface 'eth77'; it has: "):
        network.check_interface("eth77", "launch.interface")
    done = subprocess.run(
        command(tmp_path, "launch.interface=eth77"),
        env={**by_hand(0, free_port())},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("launch.interface: this machine has no network interface 'eth77'")


def test_who_names_the_interface_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    with network.interface_said(None, "eth0"):
        assert network.interface_in_use() == "eth0"
        assert "NCCL_SOCKET_IFNAME" not in os.environ  # it finds its own
        with network.interface_said(None, "eth1"):
            assert network.interface_in_use() == "eth0"  # the environment's
        with network.interface_said("ib0", "eth1"):
            assert os.environ["NCCL_SOCKET_IFNAME"] == network.interface_in_use() == "ib0"
    assert network.interface_in_use() is None


@pytest.mark.parametrize("named", ["eth 0", "eth0;reboot", "$(id)", ""])
def test_an_interface_is_a_name(tmp_path: Path, named: str) -> None:
    with pytest.raises(RecipeError, match=r"launch.interface: .*as in eth0"):
        load_recipe(make(tmp_path), [f"launch.interface='{named}'"])


# ---------------------------------------------------------------------- worlds that somebody has set up halfway


@pytest.mark.parametrize("name", ["LOCAL_RANK", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE"])
def test_half_a_world_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name}=2 is set and WORLD_SIZE is not; unset it"):
        World.from_environ({name: "2"})


@pytest.mark.parametrize(
    ("variables", "why"),
    [
        ({}, "WORLD_SIZE is set and MASTER_ADDR is not"),
        ({"MASTER_PORT": "29500"}, "WORLD_SIZE is set and MASTER_ADDR is not"),
        ({"MASTER_ADDR": "n0"}, "MASTER_PORT is not"),
        ({"MASTER_ADDR": "n0", "MASTER_PORT": "0"}, "MASTER_PORT=0 is not a port"),
        ({"MASTER_ADDR": "n0", "MASTER_PORT": "ssh"}, "MASTER_PORT='ssh' is not a whole number"),
    ],
)
def test_a_world_without_a_place_is_refused(variables: dict[str, str], why: str) -> None:
    from launcher.world.world import master

    with pytest.raises(UsageError, match=re.escape(why)):
        master(variables)


# ---------------------------------------------------------------------- supervisors meet


def test_the_first_machine_knows_by_which_address_it_is_reached(tmp_path: Path) -> None:
    port = free_port()
    both = [Nodes.parse(2, rank, f"127.0.0.1:{port}") for rank in (0, 1)]
    found: dict[int, Path] = {}

    def come(rank: int) -> None:
        found[rank] = both[rank].agree_on(tmp_path / str(rank), 2, Wait("", 60.0))

    threads = [threading.Thread(target=come, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == {0: tmp_path / "0", 1: tmp_path / "0"}
    assert both[0].interface() == both[1].interface() == network.interface_of("127.0.0.1")


def test_a_machine_that_does_not_come_is_named_with_its_ranks() -> None:
    port = free_port()
    with pytest.raises(NodesError, match=r"ranks 2-5 of 6 \(nodes 1-2\) did not come within 0.2 seconds; .*--master"):
        Nodes.parse(3, 0, f"127.0.0.1:{port}").agree_on(Path("x"), 2, Wait("", 0.2))
    wait = Wait("", 0.2)
    with pytest.raises(NodesError, match=r"the first node is not reached .nothing listens there"):
        Nodes.parse(3, 1, f"127.0.0.1:{free_port()}").agree_on(Path("x"), 2, wait)
    assert wait.text.startswith("ranks 0-1 of 6 (node 0) at 127.0.0.1:")


# ---------------------------------------------------------------------- signals


IN_COMPILED_CODE = """
import math, signal, sys, threading, time
from datetime import timedelta
from pathlib import Path
import torch.distributed as dist
from launcher.errors import PeerError
from launcher.launch.postmortem import watched
from launcher.world.progress import running
from launcher.world.signals import listening
from launcher.world import waiting
from launcher.world.waiting import Wait, guarded, stoppable
from launcher.world.watchdog import Watch
from launcher.world.world import World

store = dist.TCPStore("127.0.0.1", 0, 1, True, timedelta(seconds=600))
never = lambda: dist.init_process_group("gloo", store=store, rank=0, world_size=2)
world = World(size=2, started_by={started_by!r}, has_agent={has_agent})
with listening():
    print("waits", flush=True)
    {wait}
"""
GUARDED = "with guarded(Wait('rank 1 of 2', {seconds}), world): never()"
BUILDS = "waiting._BUILDING_SECONDS = 1; never = stoppable()(never); never()"
HANGS = "with Watch(math.inf, False, Path('/no/run'), world, patience=1).watching(): running(); never()"
RESET = "Connection reset by peer"
LEFT = "with watched(world, ''): signal.raise_signal(signal.SIGTERM);"
ENDS = {
    "asked to stop": ("by hand", False, GUARDED, [signal.SIGTERM], 75),
    "asked by a cluster": ("by hand", False, GUARDED, [signal.SIGUSR2], 75),
    "under an agent": ("torchrun", True, GUARDED, [signal.SIGTERM], 0),  # 75 would be a failure to it
    "as rank 0 of srun": ("srun", False, GUARDED, [signal.SIGTERM], 75),
    "Ctrl-C": ("by hand", False, GUARDED, [signal.SIGINT], 75),
    "Ctrl-C twice, while training": ("by hand", False, "never()", [signal.SIGINT, signal.SIGINT], 130),
    "while a model is built": ("by hand", False, BUILDS, [signal.SIGTERM], 75),
    "in a step that hangs": ("by hand", False, HANGS, [signal.SIGTERM], 1),
    "another, asked too, has left before": ("by hand", False, f"{LEFT} raise RuntimeError('{RESET}')", [], 75),
    "or while it waited for that one": ("by hand", False, f"{LEFT} raise PeerError('rank 0 ended')", [], 75),
    "or in the midst of training": ("by hand", False, f"{LEFT} running(); raise PeerError('rank 0 ended')", [], 1),
    "too late": ("by hand", False, GUARDED, [], 1),
}


@pytest.mark.parametrize("case", ENDS)
def test_who_waits_in_compiled_code_can_be_ended(case: str) -> None:
    started_by, has_agent, wait, signals, code = ENDS[case]
    wait = wait.format(seconds=600 if signals else 1)
    program = IN_COMPILED_CODE.format(started_by=started_by, has_agent=has_agent, wait=wait)
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "waits\n"
        for number in signals:
            time.sleep(2.5 if number == signal.SIGINT else 0.5)  # a second Ctrl-C counts when it comes later
            process.send_signal(number)
        _, screen = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code, screen
    if code in (75, 0):
        whom = {GUARDED: "rank 1 of 2", BUILDS: "data and model to be built"}.get(ENDS[case][2], "the other ranks")
        assert f"launcher: stopped while waiting for {whom}; nothing is lost" in screen
    if "Watch" in wait:
        assert "launcher: rank 0 of 2" in screen
        assert "asked to stop, and no progress for 1 s (launch.meeting_timeout)" in screen
    if code == 1 and "guarded" in wait:
        assert "launch.meeting_timeout: waited 1 seconds for rank 1 of 2" in screen


def test_signals_of_others_are_no_wish_to_stop() -> None:
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    try:
        with listening():
            os.kill(os.getpid(), signal.SIGALRM)  # as a test's or a user's own clock
            child = os.fork()
            if child == 0:
                signal.raise_signal(signal.SIGTERM)  # in a worker that has inherited the handlers
                os._exit(0 if stop_requested() else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            time.sleep(0.2)  # for who listens, if it did
            assert not stop_requested()
    finally:
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("how", ["with listening():", "listen()\nif True:"])
def test_an_event_loop_of_the_user_s_takes_no_signal_away(how: str) -> None:
    program = f"""
import asyncio, gc, os, signal, threading, time
from launcher.world.signals import listen, listening, stop_requested

{how}
    gc.collect()
    asyncio.run(asyncio.sleep(0))  # it takes the place where signals are heard, and leaves it empty
    os.kill(os.getpid(), signal.SIGINT)
    assert stop_requested()
    time.sleep(2.2)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(20)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 130, done.stderr
    assert done.stderr == "\nstopping after this step; once more to leave at once\n"


PREPARES = """
import sys, time
from pathlib import Path
from launcher.data.preparation import once_per_node
from launcher.world import waiting
from launcher.world.signals import listening

waiting.NOTICE_SECONDS = 0.5

def act():
    Path("begun").touch()
    time.sleep(100)

with listening():
    once_per_node("something", act, "recipe.yaml:3: data.train: Photos.prepare")
"""


def test_who_waits_for_another_to_prepare_data_says_so_and_leaves_when_asked(tmp_path: Path) -> None:
    how: dict[str, Any] = {"cwd": tmp_path, "stderr": subprocess.PIPE, "text": True}
    how["env"] = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    first = subprocess.Popen([sys.executable, "-c", PREPARES], **how)
    while not (tmp_path / "begun").exists():
        assert first.poll() is None
        time.sleep(0.05)
    second = subprocess.Popen([sys.executable, "-c", PREPARES], **how)
    try:
        assert second.stderr is not None
        said = "another process of this machine, which does it now: recipe.yaml:3: data.train: Photos.prepare"
        assert second.stderr.readline() == f"launcher: waiting for {said}\n"
        second.terminate()
        _, screen = second.communicate(timeout=60)
        assert screen == f"launcher: stopped while waiting for {said}; nothing is lost\n"
        assert second.returncode == 75
    finally:
        for process in (first, second):
            process.kill()
            process.communicate()


def by_hand(rank: int, port: int, host: str = "127.0.0.1") -> dict[str, str]:
    names = {"RANK": rank, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": host, "MASTER_PORT": port}
    return {**os.environ, "PYTHONPATH": str(ROOT), **{name: str(value) for name, value in names.items()}}


def command(folder: Path, *overrides: str) -> list[str]:
    return [sys.executable, "-m", "launcher", "train", str(make(folder)), "--cpu", "--quiet", *overrides]


def test_rank_0_of_a_world_that_never_comes_says_so_and_leaves_when_asked(tmp_path: Path) -> None:
    """A variable left over from a tutorial, a worker of Kubernetes that never starts."""
    port = free_port()
    process = subprocess.Popen(
        command(tmp_path), env=by_hand(0, port), cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    try:
        said = next(line for line in process.stderr if "waiting" in line)
        assert said == f"launcher: waiting for rank 1 of 2 at 127.0.0.1:{port} (not there yet)\n"
        process.terminate()
        process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 75


LATE = """
import os, time
from launcher.world import waiting

waiting.NOTICE_SECONDS = 1.0
if os.environ.get("RANK") == "1":
    open("late", "w").close()
    deadline = time.monotonic() + 60
    while not os.path.exists("go") and time.monotonic() < deadline:
        time.sleep(0.05)
"""


def test_one_rank_that_is_asked_to_stop_while_it_waits_takes_the_late_ones_along(tmp_path: Path) -> None:
    arguments = command(tmp_path, "--processes", "2", "model={_target_: late.py:Net}")
    (tmp_path / "late.py").write_text(LATE + PARTS.replace(PARTS[: PARTS.index("from typing")], ""))
    process = subprocess.Popen(
        arguments,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        said = next(line for line in process.stderr if "waiting" in line)
        assert re.fullmatch(r"launcher: waiting for rank 1 of 2 at 127.0.0.1:\d+ \(not there yet\)\n", said)
        deadline = time.monotonic() + 60
        while not (tmp_path / "late").exists() and time.monotonic() < deadline:
            time.sleep(0.05)  # rank 0 may say that it waits before rank 1 has come that far
        assert (tmp_path / "late").exists()
        ranks = psutil.Process(process.pid).children()
        next(one for one in ranks if one.environ()["RANK"] == "0").terminate()
        time.sleep(0.5)  # rank 0 hears it while the other one is late still
        (tmp_path / "go").touch()
        _, screen = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 75, screen
    assert "launcher: stopped while waiting for rank 1 of 2; nothing is lost" in screen
    assert not any(one.is_running() for one in ranks)


def test_a_rank_whose_rank_0_is_nowhere_says_so_and_gives_up(tmp_path: Path) -> None:
    done = subprocess.run(
        command(tmp_path, "launch.meeting_timeout=2 seconds"),
        env=by_hand(1, 29500, "no.such.host.invalid"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "launcher: waiting for rank 0 of 2 at no.such.host.invalid:29500 (name unknown)\n" in done.stderr
    assert "launch.meeting_timeout: waited 2 seconds for rank 0 of 2 at no.such.host.invalid:29500" in done.stderr


# ---------------------------------------------------------------------- two machines whose names mean themselves


@pytest.fixture
def debian() -> Iterator[list[str]]:
    """Commands in front of another, for two machines as Debian sets them up: `127.0.1.1 NAME` in their hosts file."""
    names = [f"debian-{number}-{os.getpid()}" for number in (0, 1)]
    with joined({name: f"10.78.0.{10 + number}" for number, name in enumerate(names)}, "eth5", "unshare"):
        yield names


def on(name: str, number: int, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    hosts = folder / f"hosts-{number}"
    hosts.write_text(f"127.0.0.1 localhost\n127.0.1.1 node{number}\n")
    script = f'mount --bind {hosts} /etc/hosts && hostname node{number} && exec "$@"'
    way = ["ip", "netns", "exec", name, "unshare", "--uts", "--mount", "bash", "-c", script, "-"]
    where = ("--processes", "2", "--nodes", "2", "--node-rank", str(number))
    return subprocess.Popen(
        [*way, *command(folder, *where, *arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


# the first may call itself by a name that is its own alone, or that it does not know
@rounds("first", plain=["node0"], long=["node0.cluster.invalid", "10.78.0.10"])
def test_two_stock_machines_train_as_one_world(tmp_path: Path, debian: list[str], first: str) -> None:
    masters = (f"{first}:29500", "10.78.0.10:29500")
    both = [on(debian[number], number, tmp_path, "--master", masters[number]) for number in (0, 1)]
    for process in both:
        screen, _ = process.communicate(timeout=120)
        assert process.returncode == 0, screen


def test_a_supervisor_that_waits_says_so_and_leaves_when_asked(tmp_path: Path, debian: list[str]) -> None:
    alone = on(debian[1], 1, tmp_path, "--master", "10.78.0.10:29500")
    assert alone.stdout is not None
    try:
        said = next(line for line in alone.stdout if "waiting" in line)
        assert said == "launcher: waiting for rank 0 of 2 (node 0) at 10.78.0.10:29500 (nothing listens there)\n"
        alone.terminate()
        screen, _ = alone.communicate(timeout=60)
    finally:
        alone.kill()
    assert alone.returncode == 75
    assert "stopped while waiting for rank 0 of 2 (node 0); nothing is lost" in screen
    assert not (tmp_path / "runs").exists()
