"""Who am I among the processes of this run? The one place that reads the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from launcher.errors import UsageError

RUN_DIR_VARIABLE = "LAUNCHER_RUN_DIR"  # the supervisor chooses the run's folder once and tells its ranks
SUPERVISOR_VARIABLE = "LAUNCHER_SUPERVISOR"
FAULTS_VARIABLE = "LAUNCHER_FAULTS"


@dataclass(frozen=True)
class World:
    """The processes of a run, as this one sees them.

    Attributes:
        rank: This process among all, from 0.
        size: How many processes train together, over all nodes.
        local_rank: This process among those of its node, from 0.
        local_size: How many processes run on this node.
        node: This node among all, from 0.
        nodes: How many nodes take part.
        started_by: Who started the processes: `one process`, `launcher`, `accelerate` or `torchrun`.
        wants_cpu: Whether the environment asks for the CPU (`accelerate launch --cpu`).
        run_dir: The run folder that the supervisor chose, if it did.
        restarts: How often an elastic agent has restarted these processes.
        supervisor: Our own supervisor's process, if it started these.
        job: The SLURM job that this process belongs to, if it does.
        faults: Accidents to be made on purpose, see `launcher.faults`.
        accelerate: What an `accelerate config` or its command line asked for, by its variable.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    node: int = 0
    nodes: int = 1
    started_by: str = "one process"
    wants_cpu: bool = False
    run_dir: str | None = None
    restarts: int = 0
    supervisor: int | None = None
    job: str | None = None
    faults: str | None = None
    accelerate: Mapping[str, str] | None = None

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that evaluates, prints and saves."""
        return self.rank == 0

    @property
    def is_launched(self) -> bool:
        """Whether somebody started a world for us, so that `launch:` has nothing left to decide."""
        return self.started_by != "one process"

    @staticmethod
    def from_environ(environ: Mapping[str, str] | None = None) -> World:
        """Reads the variables that torchrun, accelerate and our own supervisor set.

        Raises:
            UsageError: The variables contradict each other, or ask for what no process group can give.
        """
        environ = os.environ if environ is None else environ
        accelerate = {name: value for name, value in environ.items() if name.startswith("ACCELERATE_")}
        wants_cpu = accelerate.get("ACCELERATE_USE_CPU", "false").lower() in ("1", "true", "yes")
        if "WORLD_SIZE" not in environ:
            _refuse_half_a_world(environ)
            started_by = "accelerate" if "ACCELERATE_MIXED_PRECISION" in environ else "one process"
            return World(
                wants_cpu=wants_cpu,
                started_by=started_by,
                run_dir=environ.get(RUN_DIR_VARIABLE),
                job=environ.get("SLURM_JOB_ID"),
                faults=environ.get(FAULTS_VARIABLE),
                accelerate=accelerate,
            )
        size, local_size = _number(environ, "WORLD_SIZE"), _number(environ, "LOCAL_WORLD_SIZE", "1")
        world = World(
            rank=_number(environ, "RANK"),
            size=size,
            local_rank=_number(environ, "LOCAL_RANK"),
            local_size=local_size,
            node=_number(environ, "GROUP_RANK", "0"),
            nodes=_number(environ, "GROUP_WORLD_SIZE", str(max(1, size // max(1, local_size)))),
            started_by=_starter(environ),
            wants_cpu=wants_cpu,
            run_dir=environ.get(RUN_DIR_VARIABLE),
            restarts=_number(environ, "TORCHELASTIC_RESTART_COUNT", "0"),
            supervisor=_number(environ, SUPERVISOR_VARIABLE) if SUPERVISOR_VARIABLE in environ else None,
            job=environ.get("SLURM_JOB_ID"),
            faults=environ.get(FAULTS_VARIABLE),
            accelerate=accelerate,
        )
        if not 0 <= world.rank < world.size:
            raise UsageError(f"environment: RANK={world.rank} with WORLD_SIZE={world.size}; ranks count from 0")
        return world


def is_spokesman() -> bool:
    """Whether this process prints what every rank finds for itself: rank 0, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def usable_cpus() -> int:
    """CPUs that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _starter(environ: Mapping[str, str]) -> str:
    if SUPERVISOR_VARIABLE in environ:
        return "launcher"
    return "accelerate" if "ACCELERATE_MIXED_PRECISION" in environ else "torchrun"


def _refuse_half_a_world(environ: Mapping[str, str]) -> None:
    # `accelerate launch --cpu --num_processes 2` sets an address and then starts one process only
    if "ACCELERATE_MIXED_PRECISION" in environ and "MASTER_PORT" in environ:
        raise UsageError(
            "accelerate launch was asked for several processes on the CPU and started one (MASTER_PORT is set, "
            "WORLD_SIZE is not); use `launcher train RECIPE --cpu --processes N`, or "
            "`ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes N -m launcher train RECIPE`"
        )


def _number(environ: Mapping[str, str], name: str, default: str | None = None) -> int:
    text = environ.get(name, default)
    if text is None:
        raise UsageError(f"environment: WORLD_SIZE is set and {name} is not; start with torchrun or accelerate")
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"environment: {name}={text!r} is not a whole number") from None
