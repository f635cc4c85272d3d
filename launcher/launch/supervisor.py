"""Several processes on this machine, run by torch's elastic agent, watched and waited for."""

from __future__ import annotations

import math
import os
import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType

from launcher.errors import EXIT_DONE, EXIT_FAILED, EXIT_PREEMPTED, EXIT_USAGE, UsageError
from launcher.launch.agent import run_agent
from launcher.launch.nodes import Nodes, NodesError
from launcher.launch.start import started
from launcher.runs.logs import log_of, tail_of
from launcher.text import printable_lines
from launcher.world import network, progress
from launcher.world.exit import leave_at_once
from launcher.world.failure import Failure, of_exit
from launcher.world.failure_report import Report
from launcher.world.loading import loading
from launcher.world.notes import Notes, first_of
from launcher.world.progress import Progress
from launcher.world.signals import SECOND_INTERRUPT_SECONDS, hold, ignoring
from launcher.world.site import read_site
from launcher.world.temporary import place, sweep
from launcher.world.waiting import Wait
from launcher.world.world import RUN_DIR_VARIABLE, SUPERVISOR_VARIABLE, usable_cpus

POLL_SECONDS = 0.2
LEAVING_SECONDS = 5  # what the other ranks are granted when one has failed
SILENCE_SECONDS = 25  # how long the agent may have no process before it is given up: it waits for nodes that are gone
EXIT_INTERRUPTED = 130
_BY_INTERRUPT = (EXIT_INTERRUPTED, -signal.SIGINT, -signal.SIGTERM)  # how ranks end that do not listen to a Ctrl-C
_SILENT = -1  # an end of which all is said
_LAST_SECONDS = 3.0
_MEETING_GRACE_SECONDS = 3.0  # for those who wait to say so themselves
_KILLED = "did not end after another rank had failed, and was killed"


def choose_processes(asked: int | str | None, cpu: bool, nodes: int = 1) -> int:
    """How many processes to start on this machine: its share of those asked for; else every GPU, or one on a CPU.

    Args:
        asked: Processes over all nodes, `auto` or None.
        cpu: Whether they stay on the CPU.
        nodes: How many machines.

    Raises:
        UsageError: More processes than GPUs, or nodes that cannot have equal shares.
    """
    if isinstance(asked, int) and asked % nodes:
        raise UsageError(f"--processes {asked}: {nodes} nodes cannot have equal shares; use a multiple of {nodes}")
    here = asked // nodes if isinstance(asked, int) else None
    if cpu:
        return here or 1
    with loading():
        from launcher.device.kind import count

    gpus = count()
    if here is None:
        return max(1, gpus)
    if gpus and here > gpus:
        raise UsageError(
            f"--processes {asked}: this machine shows {gpus} GPU{'s' * (gpus > 1)} and one process uses one; "
            f"use --processes {gpus * nodes}, more nodes, or --cpu for a rehearsal"
        )
    if here > 1 and not gpus:
        raise UsageError(f"--processes {asked}: this machine shows no GPU; add --cpu to run the processes on the CPU")
    return here


@dataclass
class Supervisor:
    """The processes of one run on this machine.

    Attributes:
        processes: How many.
        cpu: Whether they stay on the CPU.
        threads: CPU threads of each, or `auto`.
        folder: The run's, chosen already, so that its state can be read when they have ended.
        again: The command that started it.
        resume: The flags of the command that resumes it, after the folder's name.
        nodes: This machine among several.
        max_restarts: How often all are started again, from the last checkpoint, when one has failed.
        interface: The network interface between machines, if somebody has named one.
        meeting_seconds: How long the other machines may take to come.
        tidy: Called with the exit code at the end, whichever way it comes.
        is_temporary: Whether the folder is no run's and is gone afterwards: then each machine has one of its own, and
            no report names what is in it.
    """

    processes: int
    cpu: bool
    threads: int | str
    folder: Path
    again: str = ""
    resume: Sequence[str] = ()
    nodes: Nodes = field(default_factory=Nodes)
    max_restarts: int = 0
    interface: str | None = None
    meeting_seconds: float = 300.0
    tidy: Callable[[int], None] = lambda code: None
    is_temporary: bool = False

    def __post_init__(self) -> None:
        self._exits: dict[int, tuple[int, float]] = {}  # by rank: exit code and when
        self._error: BaseException | None = None
        self._alone_since: float | None = None
        self._left_since: float | None = None
        self._interrupts: list[float] = []
        self._is_stopping = self._has_started = False
        self._is_meeting = True
        self._wait = Wait("the other machines", self.meeting_seconds, why="")

    def run(self, module: str, *arguments: str) -> int:
        """Runs `python -m MODULE ARGUMENTS` in every process until all have ended; reports what failed first.

        The agent has a thread of its own: the main thread stays free for signals, and can leave an agent that waits
        for machines which are gone.

        Returns:
            The exit code: 0 also where a training was stopped and has saved, 75 where a script was.
        """
        with loading():
            import torch.distributed.launcher.api  # noqa: F401  # in the main thread, where a Ctrl-C can end it

        command = started(module, *arguments)
        agent = threading.Thread(target=self._run_agent, args=(command,), daemon=True, name="agent")
        with self._signals(), _variables(self._environment()):
            agent.start()
            while agent.is_alive():
                agent.join(POLL_SECONDS)
                if (code := self._look()) is not None:
                    _kill_children()
                    self._leave(code)
        code = self._outcome()
        self._tidy(code, is_read=code != EXIT_FAILED)
        return code

    def _tidy(self, code: int, *, is_read: bool) -> None:
        """Removes what is left; what its ranks have said, unless other machines may have to read it still."""
        sweep(place())  # what ranks that were killed have left
        if is_read or self.nodes.count == 1:
            Notes(self.folder).remove(self.nodes.rank, map(self._rank, range(self.processes)))
        self.tidy(code)

    def _run_agent(self, command: Sequence[str]) -> None:
        hold(signal.SIGINT)  # what this thread starts begins like that, and hears it when it is ready to
        try:
            with self._wait.told():
                agreed = self.nodes.agree_on(self.folder, self.processes, self._wait)
            self.folder = self.folder if self.is_temporary else agreed
            self._is_meeting = False
            if self.nodes.rank == 0:
                shutil.rmtree(Notes(self.folder).folder, ignore_errors=True)  # what ranks of an earlier start said
            os.environ.update(self._interface(), **{RUN_DIR_VARIABLE: str(self.folder)})
            run_agent(
                command,
                nodes=self.nodes,
                processes=self.processes,
                max_restarts=self.max_restarts,
                leaving_seconds=LEAVING_SECONDS,
                starting=self.starting,
                ended=self.ended,
            )
        except BaseException as error:
            self._error = error

    def ended(self, rank: int, code: int, when: float) -> None:
        """The agent has found a process that failed in this attempt."""
        self._exits.setdefault(rank, (code, when))

    @property
    def _last_seconds(self) -> float:
        """How much longer than the others this machine stays: the first one holds what their agents speak through."""
        return _LAST_SECONDS if self.nodes.count > 1 and self.nodes.rank == 0 else 0.0

    def _rank(self, local_rank: int) -> int:
        return self.nodes.rank * self.processes + local_rank

    # ------------------------------------------------------------------ while they run

    def _look(self) -> int | None:
        """Looks at the processes; the exit code where there is no point in waiting any longer."""
        if self._interrupts and self._interrupts[-1] - self._interrupts[0] >= SECOND_INTERRUPT_SECONDS:
            return EXIT_INTERRUPTED
        if self._error is not None:
            return None  # the agent is ending
        now = time.monotonic()
        if self._is_meeting:  # what the folder says of ranks is an earlier start's
            if now - self._wait.began <= self._wait.seconds + _MEETING_GRACE_SECONDS:
                return None
            print(f"launcher: {self.nodes.unanswered(self._wait)}", file=sys.stderr)
            return _SILENT
        workers = self._said()
        living = [worker for worker in workers.values() if _lives(worker.pid)]
        if self._has_started and any(worker.state == progress.STOPPED for worker in workers.values()):
            self._is_stopping = True  # one that hears it too early to save has not failed, and is not started again
            _stop_late_ones(living)
        self._alone_since = None if living or not workers else self._alone_since or now
        if self._alone_since is not None and now - self._alone_since > SILENCE_SECONDS:
            return EXIT_DONE if self._all_done(workers) else EXIT_FAILED
        if any(note.exit_code == EXIT_USAGE for note in Notes(self.folder).read().values()):
            self._left_since = self._left_since or now
            is_awaited = living or self.nodes.count > 1  # else the agent is ending
            if is_awaited and now - self._left_since > LEAVING_SECONDS + self._last_seconds:
                return EXIT_USAGE
        elif living and not all(progress.is_over(worker) for worker in workers.values() if worker not in living):
            # dead, and the agent sees nothing wrong: it left with 0, and the others may wait for it for ever
            self._left_since = self._left_since or now
            if now - self._left_since > LEAVING_SECONDS:
                _kill_children()
        else:
            self._left_since = None
        return None

    def _said(self) -> dict[int, Progress]:
        """What the ranks of this machine say of themselves."""
        notes = Notes(self.folder)
        workers = {
            self._rank(local): progress.read(notes.progress_of(self.nodes.rank, local))
            for local in range(self.processes)
        }
        return {rank: worker for rank, worker in workers.items() if worker is not None and worker.pid}

    def _all_done(self, workers: dict[int, Progress]) -> bool:
        return all(progress.is_over(worker) for worker in workers.values())

    def starting(self, attempt: int) -> None:
        """The agent starts the processes, for the first time or again.

        Raises:
            _StoppedError: They were asked to stop before they could hear it.
        """
        self._has_started = True
        if attempt and self._is_stopping:
            raise _StoppedError
        if attempt:
            first = first_of(self._failures())
            what = f"{first.line}; " if first else ""
            print(
                f"launcher: {what}restart {attempt} of {self.max_restarts}, from the last checkpoint",
                file=sys.stderr,
                flush=True,
            )
        self._exits.clear()
        self._left_since = self._alone_since = None
        notes = Notes(self.folder)
        for local in range(self.processes):
            notes.clear(self._rank(local))
            with suppress(OSError):
                notes.progress_of(self.nodes.rank, local).unlink(missing_ok=True)

    # ------------------------------------------------------------------ when they have ended

    def _outcome(self) -> int:
        workers = self._said()
        if self._error is None and not self._exits and self._all_done(workers):
            return EXIT_PREEMPTED if any(worker.state == progress.STOPPED for worker in workers.values()) else EXIT_DONE
        if self._interrupts and self._exits and all(code in _BY_INTERRUPT for code, _ in self._exits.values()):
            return EXIT_INTERRUPTED
        unheard = (-signal.SIGTERM, -signal.SIGUSR2)  # while they were imported, say
        if isinstance(self._error, _StoppedError) or (
            self._is_stopping and self._exits and all(code in unheard for code, _ in self._exits.values())
        ):
            return EXIT_PREEMPTED
        if isinstance(self._error, NodesError):
            print(f"launcher: {self._error}", file=sys.stderr)
            return EXIT_FAILED
        notes = Notes(self.folder).read()
        if wrong := [note for note in notes.values() if note.exit_code == EXIT_USAGE]:
            alone = wrong[0].rank > 0  # rank 0 would have found it too
            print(
                f"rank {wrong[0].rank} on {wrong[0].host}: " * alone + printable_lines(wrong[0].what), file=sys.stderr
            )
            return EXIT_USAGE
        if self._error is not None:
            raise self._error
        if any(code == EXIT_USAGE for code, _ in self._exits.values()):
            return EXIT_USAGE  # it has been said
        return self._report()

    def _report(self) -> int:
        failures = self._failures()
        first = first_of(failures)
        if first is not None:
            resume = shlex.join(["launcher", "resume", str(self.folder), *self.resume])
            others = [failure for failure in failures if failure.rank != first.rank]
            Report(first, None if self.is_temporary else self.folder, self.again, resume, others).show()
            _mark_failed(self.folder, first)
        return EXIT_FAILED

    def _failures(self) -> list[Failure]:
        """Of every rank that failed: what it said itself, or what its end says of it."""
        notes, workers = Notes(self.folder), self._said()
        failures, size = notes.read(), self.processes * self.nodes.count
        first = min((failure.time for failure in failures.values()), default=math.inf)
        for rank, (code, when) in self._exits.items():
            if rank not in failures:
                log = tail_of(log_of(self.folder, rank))
                failures[rank] = of_exit(code, notes.stacks(rank), log, rank=rank, world=size, time=when)
                if code == -signal.SIGKILL and when - first > LEAVING_SECONDS - 1:  # the agent counts whole seconds
                    failures[rank] = replace(failures[rank], what=_KILLED, is_aftermath=True)
        if all(failure.is_aftermath for failure in failures.values()):  # of somebody who left and said nothing
            for rank, worker in workers.items():
                if rank not in failures and not progress.is_over(worker) and not _lives(worker.pid):
                    when = time.time() - time.monotonic() + worker.beat
                    failures[rank] = of_exit(EXIT_DONE, rank=rank, world=size, time=when)
        steps = {rank: worker.step for rank, worker in workers.items()}
        return [notes.completed(failure, steps.get(rank)) for rank, failure in failures.items()]

    def _leave(self, code: int) -> None:
        """Ends this process without the agent, which may never come back."""
        if code == _SILENT:
            code = EXIT_FAILED
        elif code == EXIT_FAILED:
            if not (failures := self._failures()) or all(failure.is_aftermath for failure in failures):
                print("launcher: the other nodes do not answer any more", file=sys.stderr)
            if failures:
                self._report()
        elif code == EXIT_USAGE:
            code = self._outcome()
        self._tidy(code, is_read=False)
        sys.stdout.flush()
        sys.stderr.flush()
        leave_at_once(code)

    # ------------------------------------------------------------------ what the agent is told

    def _environment(self) -> dict[str, str]:
        share = self.threads if isinstance(self.threads, int) else max(1, usable_cpus() // self.processes)
        return {
            SUPERVISOR_VARIABLE: str(os.getpid()),
            RUN_DIR_VARIABLE: str(self.folder),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(share)),
            **({"ACCELERATE_USE_CPU": "true"} if self.cpu else {}),
        }

    def _interface(self) -> dict[str, str]:
        """Over which network interface they speak: as somebody has said, or as the machines have met."""
        named = self.interface
        if named is None and self.nodes.count > 1 and network.interface_in_use() is None:
            named = read_site()[0].interface
        is_said = named is not None or network.interface_in_use() is not None
        return network.variables(named, None if is_said else self.nodes.interface())

    # ------------------------------------------------------------------ signals

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Hands what is meant for the run to its ranks: they save and end, and the agent then finds them done."""

        def pass_on(number: int, _: FrameType | None) -> None:
            if number == signal.SIGINT:
                self._interrupts.append(time.monotonic())
            self._is_stopping = True
            children = list(_children())
            if not children and not self._has_started:  # there is nothing to save
                print(f"launcher: stopped while waiting for {self._wait.whom}; nothing is lost", file=sys.stderr)
                self._leave(EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_PREEMPTED)
            for child in children:
                with suppress(ProcessLookupError):
                    os.kill(child, number)

        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
        before = {number: signal.signal(number, pass_on) for number in numbers}
        try:
            with ignoring("SIGHUP"):
                yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class _StoppedError(Exception):
    """The processes were asked to stop, and are not started again."""


@contextmanager
def _variables(told: Mapping[str, str]) -> Iterator[None]:
    """What the processes find in their environment; this one's is as before afterwards."""
    before = dict(os.environ)
    os.environ.update(told)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _children() -> Iterator[int]:
    import psutil

    return (child.pid for child in psutil.Process().children())


def _kill_children() -> None:
    for child in _children():
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


def _stop_late_ones(living: Sequence[Progress]) -> None:
    """Asks those to stop that would wait for one that was asked and has left."""
    for worker in living:
        if worker.state == progress.STARTING:
            with suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGTERM)


def _lives(pid: int) -> bool:
    import psutil

    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _mark_failed(folder: Path, first: Failure) -> None:
    """A run whose rank 0 could not say so has failed all the same."""
    from launcher.runs.folder import STATUS_FILE, read_json, write_json

    status = read_json(folder / STATUS_FILE)
    if status.get("state") == "running":
        with suppress(OSError):
            write_json(folder / STATUS_FILE, {**status, "state": "failed", "ended": time.time(), "error": first.line})
