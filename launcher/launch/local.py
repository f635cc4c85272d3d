"""Several processes on this machine, run by torch's elastic agent."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

from launcher.errors import EXIT_DONE, EXIT_FAILED, EXIT_USAGE, UsageError
from launcher.launch.world import RUN_DIR_VARIABLE, usable_cpus


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


def start(command: Sequence[str], processes: int, *, cpu: bool, threads: int | str, run_dir: str | None) -> int:
    """Runs `python -m launcher COMMAND` in several processes until all have ended.

    Args:
        command: Arguments of the launcher.
        processes: How many.
        cpu: Whether they stay on the CPU.
        threads: CPU threads of each, or `auto`.
        run_dir: The run's folder if it is known already.

    Returns:
        The exit code: 0, or that of the process that failed first.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the ranks' own words come first
    environment = {"LAUNCHER_SUPERVISOR": str(os.getpid())}
    if cpu:
        environment["ACCELERATE_USE_CPU"] = "true"
    if run_dir is not None:
        environment[RUN_DIR_VARIABLE] = run_dir
    if "OMP_NUM_THREADS" not in os.environ:
        share = threads if isinstance(threads, int) else max(1, usable_cpus() // processes)
        environment["OMP_NUM_THREADS"] = str(share)
    os.environ.update(environment)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id=str(os.getpid()),
        max_restarts=0,
        monitor_interval=0.1,
        start_method="spawn",
    )
    try:
        elastic_launch(config, sys.executable)("-u", "-m", "launcher", *command)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode != EXIT_USAGE:  # then rank 0 has said all there is to say
            how = f"killed by signal {-failure.exitcode}" if failure.exitcode < 0 else f"exit code {failure.exitcode}"
            print(f"launcher: rank {rank} failed first: {how}", file=sys.stderr)
        return failure.exitcode if failure.exitcode > 0 else EXIT_FAILED
    return EXIT_DONE
