"""The launcher in more than seventy surroundings: the exit code, the first line, and nothing left behind, in each.

Each row is a process of its own, in namespaces of its own (host name, mounts, network): what it finds there is what the
row says, and /dev/shm and TMPDIR are empty when it begins.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from places import ROOT
from projects import make

FINISHED = r"finished  step 12 "
_MARK = "LAUNCHER_TEST_MARK"
# `$train` is the command, and `$two` the same with two processes. What is left behind is listed by who is inside.
SCRIPT = """
mount -t tmpfs tmpfs /dev/shm
two="$train --processes 2"
{setup}
{act}
code=$?
ls -A /dev/shm "$TMPDIR" 2>&1 | sed 's/^/left: /' > "$LEFT"
exit $code
"""


@dataclass(frozen=True)
class Surroundings:
    """One row of the table.

    Attributes:
        name: What is odd.
        setup: Shell: what makes it so, as root in namespaces of its own.
        act: Shell: the command.
        code: Its exit code.
        says: How its first line begins, a regular expression.
        has_network: Whether the machine's own network is there.
        is_plain: Whether it is tried each time.
    """

    name: str
    setup: str = ""
    act: str = "$train"
    code: int = 0
    says: str = FINISHED
    has_network: bool = True
    is_plain: bool = False


def row(name: str, setup: str = "", act: str = "$train", **details: object) -> Surroundings:
    return Surroundings(name, setup, act, **details)  # type: ignore[arg-type]


NAMELESS = "hostname no-such-host.cluster"
NO_HOSTS = "mount --bind /dev/null /etc/hosts"
DEBIAN = "hostname box; printf '127.0.0.1 localhost\\n127.0.1.1 box\\n' > hosts; mount --bind hosts /etc/hosts"
ELSEWHERE = "hostname box; printf '192.0.2.77 box\\n127.0.0.1 localhost\\n' > hosts; mount --bind hosts /etc/hosts"
SIX = "ip link set lo up; ip addr del 127.0.0.1/8 dev lo"
WORLD = "export RANK=0 WORLD_SIZE=2 LOCAL_RANK=0"
SOMEBODY = "setpriv --reuid 54321 --inh-caps +dac_override --ambient-caps +dac_override"  # who may read root's files
NO_ANSWER = "echo nameserver 192.0.2.1 > r; mount --bind r /etc/resolv.conf"
LONG_NAME = "d=$(printf 'd%.0s' $(seq 100)); mkdir $d; export TMPDIR=$PWD/$d"
MASTER = "MASTER_ADDR=127.0.0.1 MASTER_PORT=1"

TABLE = (
    # names and hosts files
    row("nothing odd", act="$two", is_plain=True),
    row("a name that means nothing", NAMELESS, act="$two", is_plain=True),
    row("no hosts file", NO_HOSTS, act="$two", is_plain=True),
    row("no hosts file and no name", f"{NO_HOSTS}; {NAMELESS}", act="$two"),
    row("no hosts file, no name server", f"{NO_HOSTS}; mount --bind /dev/null /etc/resolv.conf", act="$two"),
    row("Debian's hosts file", DEBIAN, act="$two"),
    row("a name of another machine's", ELSEWHERE, act="$two"),
    row("a long name", "hostname $(printf 'n%.0s' $(seq 60)).de", act="$two"),
    row("a name in capitals", "hostname GPU-BOX", act="$two"),
    row("a name of digits", "hostname 127", act="$two"),
    row("the name localhost", "hostname localhost", act="$two"),
    row("a name that means nothing, one process", NAMELESS),
    row("a name that means nothing, restarts", NAMELESS, act="$two --max-restarts 1"),
    row("no hosts file, restarts", NO_HOSTS, act="$two --max-restarts 1"),
    # networks
    row("no network but loopback", "ip link set lo up", act="$two", has_network=False, is_plain=True),
    row(
        "no network at all",
        act="$two",
        has_network=False,
        code=2,
        says="several processes need this machine's loopback network, and it is down; start it",
        is_plain=True,
    ),
    row("no network at all, one process", has_network=False),
    row("loopback of version 6 alone", SIX, act="$two", has_network=False),
    row("loopback of version 6 alone, no name", f"{SIX}; {NAMELESS}", act="$two", has_network=False),
    row("a proxy that is not there", "export http_proxy=http://127.0.0.1:1 https_proxy=http://127.0.0.1:1", act="$two"),
    row("an interface of the environment's", "export GLOO_SOCKET_IFNAME=lo", act="$two"),
    row("an interface of the recipe's", act="$two launch.interface=lo"),
    row(
        "an interface that is not there",
        act="$two launch.interface=eth77",
        code=2,
        says="launch.interface: this machine has no network interface 'eth77'; it has: ",
    ),
    # worlds set up halfway
    row(
        "a left-over LOCAL_RANK", "export LOCAL_RANK=0", code=2, says="environment: LOCAL_RANK=0 is set", is_plain=True
    ),
    row("mpirun", "export OMPI_COMM_WORLD_SIZE=2", code=2, says="environment: OMPI_COMM_WORLD_SIZE=2 is set"),
    row("WORLD_SIZE alone", "export WORLD_SIZE=2", code=2, says="environment: WORLD_SIZE is set and RANK is not"),
    row("no LOCAL_RANK", "export RANK=0 WORLD_SIZE=2", code=2, says="environment: WORLD_SIZE is set and LOCAL_RANK"),
    row("no MASTER_ADDR", WORLD, code=2, says="environment: WORLD_SIZE is set and MASTER_ADDR is not", is_plain=True),
    row("no MASTER_PORT", f"{WORLD} MASTER_ADDR=127.0.0.1", code=2, says="environment: WORLD_SIZE is set and MASTER_P"),
    row("a rank too many", f"{WORLD} {MASTER} RANK=2", code=2, says=".*environment: RANK=2 with WORLD_SIZE=2"),
    row(
        "nobody else comes",
        f"{WORLD} MASTER_ADDR=127.0.0.1 MASTER_PORT=29733",
        act="$train 'launch.meeting_timeout=1 seconds'",
        code=1,
        says="launcher: rank 0 of 2 on .* failed: launch.meeting_timeout: waited 1 seconds for rank 1 of 2 at 127",
        is_plain=True,
    ),
    row(
        "asked to stop while nobody comes",
        f"{WORLD} MASTER_ADDR=127.0.0.1 MASTER_PORT=29734",
        act="$train 2> >(tee screen >&2) & until grep -qs waiting screen; do sleep .1; done; kill $!; wait $!",
        code=75,
        says="launcher: waiting for rank 1 of 2 at 127.0.0.1:29734 .not there yet.",
    ),
    row("a world of one", "export RANK=0 WORLD_SIZE=1 LOCAL_RANK=0 MASTER_ADDR=no.such.host.invalid MASTER_PORT=1"),
    # locales
    row("C", "export LC_ALL=C LANG=C"),
    row("POSIX, two processes", "export LC_ALL=POSIX", act="$two"),
    row("a locale that is not there", act="env LC_ALL=xx_YY.UTF-8 $train"),
    row("ASCII alone", "export LC_ALL=C PYTHONCOERCECLOCALE=0 PYTHONUTF8=0"),
    row("no locale", "unset LC_ALL LANG LC_CTYPE"),
    row("Python's own encoding of streams", "export PYTHONIOENCODING=ascii"),
    # HOME and accounts
    row("no HOME", "unset HOME", is_plain=True),
    row("a HOME that is not there", "export HOME=/no/such/home", act="$two"),
    row("a HOME that is a file", "export HOME=/etc/hostname"),
    row("a HOME that cannot be written", "mkdir home; mount -t tmpfs -o ro tmpfs home; export HOME=$PWD/home"),
    row("an empty HOME", "export HOME="),
    row("no USER", "unset USER LOGNAME"),
    row("a number without a name", act=f"{SOMEBODY} $train"),
    row("an empty environment", act="env -i PATH=$PATH PYTHONPATH=$PYTHONPATH TMPDIR=$TMPDIR $MARKED $two"),
    # descriptors and terminals
    row("standard input closed", act="$train <&-"),
    row("standard input closed, two processes", act="$two <&-", is_plain=True),
    row("standard input without an end", act="$train < /dev/zero"),
    row("no screen", act="$two >&-", says=""),
    row("neither screen nor standard error", act="$two >&- 2>&-", says=""),
    row("the screen is full", act="$train > /dev/full", says=""),
    row("no terminal, a session of its own", act="setsid -w $two"),
    row("TERM is unknown", "export TERM=no-such-terminal"),
    row("TERM is dumb and COLUMNS odd", "export TERM=dumb COLUMNS=0 LINES=x"),
    # sizes
    row("few open files", "ulimit -n 128", act="$two"),
    row("few processes of shared memory", "mount -o remount,size=64k /dev/shm", act="$two", is_plain=True),
    row("no shared memory", "umount /dev/shm; mount -t tmpfs -o ro tmpfs /dev/shm", act="$two"),
    row("a small stack", "ulimit -s 1024"),
    row("no core files, low priority", "ulimit -c 0", act="nice -n 10 $train"),
    row("one CPU", act="taskset -c 0 $two"),
    # what daemons, shells and profiles leave to those whom they start
    row("a dead name server", f"{NO_HOSTS}; {NAMELESS}; {NO_ANSWER}"),
    row("SIGCHLD is ignored", act="(trap '' CHLD; $two data.workers=1)"),
    row("Ctrl-C is ignored, as in the background", act="(trap '' INT; $two)"),
    row("SIGTERM is blocked", act="env --block-signal=TERM --block-signal=USR2 $two"),
    row("nobody else may read", "umask 077", act="$two"),
    row("Python without docstrings", "export PYTHONOPTIMIZE=2", act="$two"),
    row("a PATH that leads nowhere", act="env PATH= $two"),
    row("a TMPDIR with a long name", LONG_NAME, act="$train data.workers=1"),
    row("standard error closed", act="$two 2>&-", says=""),
    # working directories
    row("a space and an umlaut", "mkdir 'a ö'; cp recipe.yaml parts.py 'a ö'; cd 'a ö'", act="$two", is_plain=True),
    row("a deep folder", "d=$(printf 'deep/%.0s' $(seq 40)); mkdir -p $d; cp recipe.yaml parts.py $d; cd $d"),
    row("a link to the folder", "mkdir real; cp recipe.yaml parts.py real; ln -s real link; cd link", act="$two"),
    row(
        "no working directory",
        "mkdir gone; cd gone; rmdir ../gone",
        code=2,
        says=".*the working directory no longer exi",
    ),
    row(
        "a name that is not text",
        r"d=$(printf 'a\377'); mkdir $d; cp recipe.yaml parts.py $d; cd $d",
        act="$two",
        code=2,
        says="--run-dir: .* this name is not text in UTF-8; name a folder elsewhere",
    ),
    row(
        "a folder that cannot be written",
        "mkdir ro; cp recipe.yaml parts.py ro; mount --bind ro ro; mount -o remount,bind,ro ro; cd ro",
        code=2,
        says=r".*runs/project.* cannot be made: Read-only file system; name a --run-dir",
    ),
)


def test_there_are_sixty_and_twelve_are_tried_each_time() -> None:
    assert len(TABLE) >= 60
    assert len({one.name for one in TABLE}) == len(TABLE)
    assert sum(one.is_plain for one in TABLE) == 12


@pytest.fixture(scope="module", autouse=True)
def _namespaces() -> None:
    if os.geteuid() != 0 or shutil.which("unshare") is None or shutil.which("ip") is None:
        pytest.skip("surroundings of one's own need root, util-linux and iproute2")


@pytest.mark.parametrize("one", [one for one in TABLE if one.is_plain], ids=lambda one: one.name)
def test_in_any_surroundings_it_trains_or_says_why_not(tmp_path: Path, one: Surroundings) -> None:
    check(tmp_path, one)


@pytest.mark.long
@pytest.mark.parametrize("one", [one for one in TABLE if not one.is_plain], ids=lambda one: one.name)
def test_in_all_surroundings_it_trains_or_says_why_not(tmp_path: Path, one: Surroundings) -> None:
    check(tmp_path, one)


def check(tmp_path: Path, one: Surroundings) -> None:
    folder, temporary, left = tmp_path / "project", tmp_path / "tmp", tmp_path / "left"
    make(folder)
    temporary.mkdir()
    mark = f"test-{uuid.uuid4()}"
    environment = {
        **{name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG", "USER")},
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "TMPDIR": str(temporary),
        "LEFT": str(left),
        "MARKED": f"{_MARK}={mark}",
        "train": f"{sys.executable} -m launcher train recipe.yaml --cpu --quiet",
        _MARK: mark,
    }
    namespaces = ["unshare", "--mount", "--uts", *(() if one.has_network else ("--net",))]
    done = subprocess.run(
        [*namespaces, "bash", "-c", SCRIPT.format(setup=one.setup, act=one.act)],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    screen = done.stderr + done.stdout
    assert done.returncode == one.code, screen
    assert re.match(one.says, first_line(done)), screen
    assert "Traceback" not in screen
    remains = set(left.read_text().split("left: ")) if left.exists() else set()
    assert not [text for text in map(str.strip, remains) if text and not text.endswith(":")], remains  # of a folder
    assert not running(mark)


def first_line(done: subprocess.CompletedProcess[str]) -> str:
    """What is said first that is not torch's own: of errors, where there are any, else of the result."""
    lines = [line for line in (*done.stderr.splitlines(), *done.stdout.splitlines()) if line.strip()]
    return next((line for line in lines if not line.startswith("[W")), "")


def running(mark: str) -> list[psutil.Process]:
    """Processes that it has left behind, a moment later."""
    deadline = time.monotonic() + 5
    while (left := [one for one in psutil.process_iter() if is_marked(one, mark)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def is_marked(process: psutil.Process, mark: str) -> bool:
    try:
        return process.environ().get(_MARK) == mark and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
