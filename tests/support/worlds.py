"""Real processes for tests: worlds of any size over gloo, forked from a server that has imported torch once."""

from __future__ import annotations

import ctypes
import importlib.util
import multiprocessing
import os
import random
import signal
import socket
import sys
import tempfile
import time
import traceback
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import psutil
import torch
from places import ROOT, SUPPORT
from places import TINY as TINY  # the recipe that most tests train

from launcher import internals
from launcher.checkpoints import format as checkpoints
from launcher.checkpoints.weights import find_weights, read_weights
from launcher.recipe.duration import Duration
from launcher.recipe.load import load_recipe
from launcher.runs.tracking.tracking import Line, read_metrics
from launcher.world.world import FAULTS_VARIABLE, World

_context = multiprocessing.get_context("forkserver")
# imported once: what each process would otherwise spend seconds on
_context.set_forkserver_preload(
    [
        *("launcher.run", "torch.distributed.tensor", "torch.distributed.fsdp"),
        # it imports torchvision where that is installed, which imports torch's compiler: no run has it that early
        *(() if importlib.util.find_spec("torchvision") else ("torchmetrics.classification",)),
        *("rich.progress", "jinja2", "torch.distributed.elastic.agent.server.local_elastic_agent"),
        *("launcher.launch.supervisor", "launcher.launch.nodes", "launcher.launch.slurm.requeue"),
        "ready",
    ]
)


@cache
def _ready() -> None:
    """Starts the server where it finds `ready`: it imports from where it is started."""
    here = os.getcwd()
    os.chdir(SUPPORT)
    try:
        forkserver.ensure_running()
    finally:
        os.chdir(here)


def _process(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """A process of that server."""
    _ready()
    process = _context.Process(target=function, args=arguments, **options)
    process.start()
    return process


def free_port() -> int:
    """A port that nobody listens at, and that no connection takes before somebody does: those take higher ones."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def in_world(size: int, function: Callable[..., Any], *arguments: Any, timeout: float = 120.0) -> list[Any]:
    """Calls `function(*arguments)` as each rank of a world; returns what they returned, by rank.

    Raises:
        AssertionError: A rank failed or did not end in time; no process is left behind.
    """
    processes, pipes = _start(size, function, arguments)
    try:
        return _gather(pipes, time.monotonic() + timeout)
    finally:
        for process in processes:
            process.join(5)
            if process.is_alive():
                process.kill()


def survivors(size: int, function: Callable[..., Any], *arguments: Any, lost: int, within: float) -> list[Any]:
    """Calls `function(*arguments)` as each rank, of which one ends or raises; gives what the others returned.

    Args:
        size: How many ranks.
        function: What they do.
        *arguments: With what.
        lost: The rank that is not waited for.
        within: Seconds, from the end of that rank, in which the others must return.
    """
    processes, pipes = _start(size, function, arguments)
    try:
        wait([pipes[lost]], timeout=120)
        others = [pipe for rank, pipe in enumerate(pipes) if rank != lost]
        return _gather(others, time.monotonic() + within)
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.join()


def killed(size: int, function: Callable[..., Any], *arguments: Any, after: float | None = None) -> bool:
    """Calls `function(*arguments)` as each rank, and kills all of them with SIGKILL.

    Args:
        size: How many ranks.
        function: What they do.
        *arguments: With what.
        after: Seconds to wait; None waits until one of them dies by itself.

    Returns:
        Whether they were still at it.
    """
    processes, _pipes = _start(size, function, arguments)
    try:
        ended = wait([process.sentinel for process in processes], timeout=60 if after is None else after)
        assert ended or after is not None, "nobody died"
        return any(process.exitcode not in (0, None) for process in processes) or not ended
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.join()


def _start(size: int, function: Callable[..., Any], arguments: Any) -> tuple[list[Any], list[Any]]:
    port = free_port()
    pipes: list[Any] = []
    processes: list[Any] = []
    for rank in range(size):
        ours, theirs = _context.Pipe(duplex=False)
        process = _process(_rank, rank, size, port, os.getcwd(), theirs, function, arguments)
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    return processes, pipes


def _gather(pipes: list[Any], deadline: float) -> list[Any]:
    results: dict[int, Any] = {}
    while len(results) < len(pipes):
        waiting = {pipe: rank for rank, pipe in enumerate(pipes) if rank not in results}
        ready: list[Any] = wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
        assert ready, f"ranks {sorted(waiting.values())} did not end in time"
        for pipe in ready:
            rank = waiting[pipe]
            try:
                failed, results[rank] = pipe.recv()
            except EOFError:
                failed, results[rank] = True, "it died"
            assert not failed, f"rank {rank}: {results[rank]}"
    return [results[rank] for rank in range(len(pipes))]


def _rank(rank: int, size: int, port: int, folder: str, pipe: Connection, function: Any, arguments: Any) -> None:
    os.chdir(folder)
    multiprocessing.set_start_method("fork", force=True)  # loader workers start as in a process of one's own
    os.environ.update(OMP_NUM_THREADS="1", GIT_DIR=os.devnull)  # no run asks this repository for its state
    if size > 1:
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in names.items()}, MASTER_ADDR="127.0.0.1")
    try:
        pipe.send((False, function(*arguments)))
    except BaseException as error:
        pipe.send((True, "".join(traceback.format_exception(error))))
    sys.stdout.flush()
    os._exit(0)


@dataclass(frozen=True)
class Trained:
    """What a run left.

    Attributes:
        folder: The run's folder.
        lines: metrics.jsonl.
        weights: Its final ones.
    """

    folder: Path
    lines: list[Line]
    weights: dict[str, torch.Tensor]

    def column(self, key: str, split: str = "train") -> list[Any]:
        """One key of all lines of a split."""
        return [line[key] for line in self.lines if line["split"] == split]

    def distance(self, other: Trained) -> float:
        """The largest difference between two runs' weights."""
        assert self.weights.keys() == other.weights.keys()
        differences = (self.weights[name] - other.weights[name] for name in self.weights)
        return max(float(one.abs().max()) for one in differences if one.numel())


def train(
    folder: Path,
    *overrides: str,
    size: int = 1,
    recipe: Path = TINY,
    remove: tuple[str, ...] = (),
    timeout: float = 120.0,
) -> Trained:
    """Trains a recipe in a world of `size` gloo processes, one thread each."""
    in_world(size, train_here, str(folder), overrides, str(recipe), remove, timeout=timeout)
    return result_of(folder)


def result_of(folder: Path) -> Trained:
    """Reads what a run left."""
    return Trained(folder, list(read_metrics(folder / "metrics.jsonl")), dict(read_weights(find_weights(folder))))


def train_here(
    folder: str,
    overrides: tuple[str, ...] = (),
    recipe: str = str(TINY),
    remove: tuple[str, ...] = (),
    faults: str | None = None,
    until: str = "",
) -> str:
    """Trains as one rank of the world that this process is in; gives the run's state."""
    from launcher.run import run
    from launcher.runs.options import Options

    if faults is not None:
        os.environ[FAULTS_VARIABLE] = faults
    read = load_recipe(recipe, ["launch.threads=1", *overrides], remove)
    how = {"recipe": recipe, "overrides": ["launch.threads=1", *overrides], "remove": list(remove), "allow": []}
    options = Options(cpu=True, run_dir=folder, output="quiet", until=Duration.parse(until), how=how)
    return run(read, World.from_environ(), options).state


def train_in_process(run: Path, *overrides: str, **options: Any) -> Any:
    """Trains the tiny recipe in this process; gives what `launcher.run.run` gives."""
    from launcher.run import run as launch
    from launcher.runs.options import Options

    recipe = load_recipe(TINY, ["launch.threads=1", *overrides])
    return launch(recipe, World(), Options(cpu=True, run_dir=str(run), output="quiet", **options))


def assert_whole(run: Path) -> None:
    """Whatever is visible of a run of the tiny recipe verifies."""
    from recipes.parts import Net

    for path in (run / "checkpoints").glob("step-*"):
        checkpoints.verify(path)
    if (run / "model_weights.pth").exists():
        Net().load_state_dict(torch.load(run / "model_weights.pth", weights_only=True))


# ---------------------------------------------------------------------- our own supervisor


@dataclass(frozen=True)
class Launched:
    """What a command on the screen came to.

    Attributes:
        code: Its exit code.
        screen: All that it printed.
        left: Processes that it left behind.
        ended: When, in unix time.
    """

    code: int
    screen: str
    left: list[psutil.Process]
    ended: float

    @property
    def report(self) -> str:
        """From the failure report's first line on."""
        _, found, rest = self.screen.partition("launcher: ")
        return found + rest


class Command:
    """`launcher ARGUMENTS` in a process of its own that has imported torch already; its ranks are started as ever.

    Args:
        folder: Where it is given.
        *arguments: What is given.
        netns: The network that it has.
        memory: A folder that is its /dev/shm.
        stdin: A file that is its standard input.
        **environment: Variables.
    """

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        netns: str | None = None,
        memory: str | None = None,
        stdin: str | None = None,
        **environment: str,
    ):
        self._mark = f"test-{uuid.uuid4()}"
        self.screen = folder / f"{self._mark}.screen"
        environment |= {"LAUNCHER_TEST_MARK": self._mark, "OMP_NUM_THREADS": "1"}
        self.process = _process(
            _command, str(folder), str(self.screen), arguments, environment, netns, memory, stdin, daemon=False
        )

    def family(self) -> list[psutil.Process]:
        """It and all that it started, wherever they are in the tree of processes by now."""
        own = []
        with suppress(psutil.NoSuchProcess):  # it may end meanwhile, and is nobody's zombie here
            own = [psutil.Process(self.process.pid)] if self.process.is_alive() else []
        return own + [one for one in psutil.process_iter() if _is_marked(one, self._mark)]

    def wait(self, seconds: float = 150) -> Launched:
        """Waits for its end, and a moment for that of what it started."""
        self.process.join(seconds)
        code, ended = self.process.exitcode, time.time()
        deadline = time.monotonic() + 5
        while (left := self.family()) and code is not None and time.monotonic() < deadline:
            time.sleep(0.1)
        for one in left:
            one.kill()
        screen = self.screen.read_text() if self.screen.exists() else ""
        assert code is not None, f"it did not end: {screen}"
        return Launched(code, screen, left, ended)


def _mount(folder: str, place: str) -> None:
    """A folder in another's place, for this process and those that it starts."""
    library = ctypes.CDLL(None, use_errno=True)
    private, bound = 1 << 18 | 1 << 14, 1 << 12  # MS_PRIVATE with MS_REC; MS_BIND
    done = (
        library.unshare(0x20000)
        or library.mount(b"none", b"/", None, private, None)
        or library.mount(os.fsencode(folder), os.fsencode(place), None, bound, None)
    )
    assert not done, os.strerror(ctypes.get_errno())


def _is_marked(process: psutil.Process, mark: str) -> bool:
    try:
        return process.environ().get("LAUNCHER_TEST_MARK") == mark and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _command(
    folder: str,
    screen: str,
    arguments: tuple[str, ...],
    environment: dict[str, str],
    netns: str | None,
    memory: str | None,
    stdin: str | None,
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # as where modules are loaded
    os.chdir(folder)
    if stdin is not None:
        os.dup2(os.open(stdin, os.O_RDONLY), 0)
        sys.stdin = os.fdopen(0, closefd=False)
    if memory is not None:
        _mount(memory, "/dev/shm")
    if netns is not None:
        with open(f"/run/netns/{netns}") as file:
            assert ctypes.CDLL(None).setns(file.fileno(), 0) == 0
    root = str(ROOT)
    os.environ.update(environment, PYTHONPATH=root, PYTHONUNBUFFERED="1")
    with open(screen, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    multiprocessing.set_start_method("fork", force=True)  # loader workers start as in a process of one's own
    multiprocessing.current_process()._config.pop("tempdir", None)  # type: ignore[attr-defined]  # that of the tests
    tempfile.tempdir = None
    from launcher.cli.main import main

    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code = main(arguments)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    internals.run_exit_handlers()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
