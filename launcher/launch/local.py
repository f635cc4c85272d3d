"""Several processes on this machine, run by torch's elastic agent."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from launcher.errors import EXIT_DONE, EXIT_FAILED, EXIT_USAGE, UsageError
from launcher.launch.world import RUN_DIR_VARIABLE, SUPERVISOR_VARIABLE, usable_cpus

if TYPE_CHECKING:
    from torch.distributed.launcher.api import LaunchConfig

LEAVING_SECONDS = 8  # what the agent grants the other ranks when one has failed


def choose_processes(asked: int | str | None, cpu: bool) -> int:
    """How many processes to start: those asked for; else every GPU, or one on a CPU.

    Raises:
        UsageError: More processes than GPUs.
    """
    if cpu:
        return asked if isinstance(asked, int) else 1
    import torch

    gpus = torch.cuda.device_count()
    if not isinstance(asked, int):
        return max(1, gpus)
    if gpus and asked > gpus:
        raise UsageError(
            f"--processes {asked}: this machine shows {gpus} GPU{'s' * (gpus > 1)} and one process uses one; "
            f"use --processes {gpus}, more nodes, or --cpu for a rehearsal"
        )
    if asked > 1 and not gpus:
        raise UsageError(f"--processes {asked}: this machine shows no GPU; add --cpu to run the processes on the CPU")
    return asked


@dataclass(frozen=True)
class Ranks:
    """The processes of one run on this machine.

    Attributes:
        processes: How many.
        cpu: Whether they stay on the CPU.
        threads: CPU threads of each, or `auto`.
        folder: The run's, chosen already, so that its state can be read when they have ended.
    """

    processes: int
    cpu: bool
    threads: int | str
    folder: Path

    def run(self, command: Sequence[str]) -> int:
        """Runs `python -m launcher COMMAND` in every process until all have ended.

        Returns:
            The exit code: 0 also where they were stopped and have saved, or that of the process that failed first.
        """
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.launcher.api import elastic_launch

        logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the ranks' own words come first
        os.environ.update(self._environment())
        try:
            with _signals_passed_on():
                elastic_launch(self._config(), sys.executable)("-u", "-m", "launcher", *command)
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            if failure.exitcode != EXIT_USAGE:  # then rank 0 has said all there is to say
                code = failure.exitcode
                how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
                print(f"launcher: rank {rank} failed first: {how}", file=sys.stderr)
            return failure.exitcode if failure.exitcode > 0 else EXIT_FAILED
        return EXIT_DONE

    def _environment(self) -> dict[str, str]:
        share = self.threads if isinstance(self.threads, int) else max(1, usable_cpus() // self.processes)
        return {
            SUPERVISOR_VARIABLE: str(os.getpid()),
            RUN_DIR_VARIABLE: str(self.folder),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(share)),
            "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(LEAVING_SECONDS),
            **({"ACCELERATE_USE_CPU": "true"} if self.cpu else {}),
        }

    def _config(self) -> LaunchConfig:
        from torch.distributed.launcher.api import LaunchConfig

        return LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=self.processes,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            run_id=str(os.getpid()),
            max_restarts=0,
            monitor_interval=0.1,
            start_method="spawn",
            # our own handlers pass signals on; the agent's would give up on the ranks while they save
            signals_to_handle="SIGQUIT",
        )


@contextmanager
def _signals_passed_on() -> Iterator[None]:
    """Hands what is meant for the run to its ranks: they save and end, and the agent then finds them done."""

    def pass_on(number: int, _: FrameType | None) -> None:
        for child in _children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, number)

    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
    before = {number: signal.signal(number, pass_on) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _children() -> list[int]:
    import psutil

    return [child.pid for child in psutil.Process().children()]
