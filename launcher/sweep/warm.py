"""A process from which trials are forked: it has imported what they need, and computed nothing.

Run as a process of its own, `python start.py FOLDERS launcher.sweep.warm PARENT [MODULE …]`. Orders come as lines of
JSON on standard input, and what happens to them is reported on standard output. It dies with who started it, and its
trials die with it: whoever starts the sweep again finds nobody at work in its runs.

A fork is safe as long as no other thread holds a lock meanwhile and nothing in this process has ever computed: torch's
threads are not copied, and a child that counts on them waits for ever. So the modules are a fixed list, no file of a
user's is imported here, no data opened, no GPU asked for anything; and each fork looks first whether there is still
but one thread. Where there are more, on systems other than Linux and where an order wants it, the child becomes a fresh
process in place of a copy.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from launcher.launch.start import started
from launcher.world.exit import ended_by
from launcher.world.loading import loading
from launcher.world.screen import let_go, prepare, take_any_letter
from launcher.world.signals import die_with_parent, own_process

# what a trial imports whatever its recipe says: a tenth of a second later it trains
MODULES = (
    "launcher.run",
    "launcher.cli.main",
    "launcher.evaluation.generation",
    "launcher.launch.postmortem",
    "launcher.launch.slurm.requeue",
    "launcher.launch.supervisor",
    "launcher.models",
    "launcher.recipe.own_code",
    "launcher.runs.report.page",
    "launcher.runs.tracking.console",
    "launcher.runs.tracking.scores",
    "launcher.runs.tracking.trackers",
    "launcher.training.ways",
    "rich.progress",
    "jinja2",
    "torch.utils.serialization",
)
# and what it makes once: the page's template alone is a third of what a short trial computes
_MADE_ONCE = (("launcher.runs.report.page", "template"), ("launcher.runs.folder", "versions"))
_HARMLESS = {"jemalloc_bg_thd"}  # pyarrow's: its allocator looks after itself in a fork
_IGNORED = ("SIGTERM", "SIGINT", "SIGUSR2", "SIGHUP")  # they are for the trials, which save


@dataclass(frozen=True)
class Order:
    """A trial to be started as a process of its own.

    Attributes:
        number: By which its outcome is reported.
        arguments: Of `launcher`.
        output: The file that takes what it prints.
        environment: All of its variables.
        is_fresh: Whether it is to be a fresh process in any case.
    """

    number: int
    arguments: Sequence[str]
    output: str
    environment: Mapping[str, str] = field(repr=False)
    is_fresh: bool = False

    def line(self) -> str:
        """As it goes over the pipe."""
        return json.dumps({"start": asdict(self)}) + "\n"


class _Server:
    """Takes orders, forks, and tells of each child that ended."""

    def __init__(self) -> None:
        self._numbers: dict[int, tuple[int, bool]] = {}  # the order's, and whether it is a fork, by the process
        self._unread = b""
        self._ears = os.pipe()
        for end in self._ears:
            os.set_blocking(end, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._ears[1], warn_on_full_buffer=False)

    def serve(self) -> Order | None:
        """Until nobody gives orders any more; in a child its own order."""
        self._say({"ready": True})
        while True:
            ready, _, _ = select.select([0, self._ears[0]], [], [])
            if self._ears[0] in ready:
                os.read(self._ears[0], 2**16)
                self._reap()
            if 0 in ready:
                if not (read := os.read(0, 2**16)):
                    return None
                *lines, self._unread = (self._unread + read).split(b"\n")
                for line in lines:
                    if (order := self._obey(json.loads(line))) is not None:
                        return order

    def _obey(self, words: Mapping[str, Any]) -> Order | None:
        if "import" in words:
            _import(words["import"])
            return None
        if "stop" in words:
            for pid, (number, _) in self._numbers.items():
                if number == words["stop"]:
                    os.kill(pid, words["signal"])  # a child of ours, not yet reaped: the number is its own
            return None
        order = Order(**words["start"])
        is_fresh = order.is_fresh or sys.platform != "linux" or bool(set(_threads()) - _HARMLESS)
        parent = os.getpid()
        if (pid := os.fork()) == 0:
            self._become_trial(order, parent)
            if is_fresh:
                _execute(order)
            return order
        self._numbers[pid] = order.number, not is_fresh
        return None

    def _become_trial(self, order: Order, parent: int) -> None:
        """In the child: a process as any other, with nothing of this one's but its modules."""
        os.setsid()
        signal.set_wakeup_fd(-1)
        for name in (*_IGNORED, "SIGCHLD"):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        die_with_parent(parent)
        for number, path, access in ((0, os.devnull, os.O_RDONLY), (1, order.output, _WRITING)):
            opened = os.open(path, access, 0o666)
            os.dup2(opened, number)
            os.close(opened)
        os.dup2(1, 2)
        for end in self._ears:
            os.close(end)
        os.environ.clear()
        os.environ.update(order.environment)
        sys.argv = ["launcher", *order.arguments]

    def _reap(self) -> None:
        for pid in list(self._numbers):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                number, is_forked = self._numbers.pop(pid)
                code = os.waitstatus_to_exitcode(status)
                self._say({"ended": number, "code": code, "is_forked": is_forked})

    def _say(self, words: Mapping[str, Any]) -> None:
        os.write(1, json.dumps(words).encode() + b"\n")


_WRITING = os.O_WRONLY | os.O_CREAT | os.O_TRUNC


def _threads() -> list[str]:
    """The names of this process's threads but the main one; where that cannot be known, one that nobody knows."""
    tasks = Path("/proc/self/task")
    try:
        return [
            (task / "comm").read_text(encoding="utf-8", errors="replace").strip()
            for task in tasks.iterdir()
            if task.name != str(os.getpid())
        ]
    except OSError:
        return ["unknown"]


def _execute(order: Order) -> NoReturn:
    os.execve(sys.executable, [sys.executable, *started("launcher", *order.arguments)], dict(order.environment))


def _import(names: Sequence[str]) -> None:
    """What is not installed is left to the trial that wants it."""
    with loading():
        for name in names:
            try:
                importlib.import_module(name)
            except Exception as error:
                print(f"launcher: a trial will import {name} itself: {error!r}", file=sys.stderr)


def _program() -> int:
    for name in _IGNORED:
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    parent, *modules = sys.argv[1:]
    die_with_parent(int(parent))
    if modules:
        _import(modules)
        for module, made_once in _MADE_ONCE:
            getattr(importlib.import_module(module), made_once)()
    order = _Server().serve()
    if order is None:
        return 0
    own_process()
    prepare()
    take_any_letter()
    main = importlib.import_module("launcher.cli.main").main
    try:
        return int(main(list(order.arguments)))
    finally:
        let_go()


def serve() -> None:
    """Runs this process, and in each child the trial: there all that follows is of the trial."""
    ended_by(_program)  # registers its exit handler before any library does


if __name__ == "__main__":
    serve()
