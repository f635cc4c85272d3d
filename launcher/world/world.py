"""Who am I among the processes of this run? The one place that reads the environment."""

from __future__ import annotations

import os
import platform
import pwd
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from launcher.errors import UsageError
from launcher.world.nodelist import expand, expand_counts

RUN_DIR_VARIABLE = "LAUNCHER_RUN_DIR"  # the supervisor chooses the run's folder once and tells its ranks
SUPERVISOR_VARIABLE = "LAUNCHER_SUPERVISOR"
FAULTS_VARIABLE = "LAUNCHER_FAULTS"
SITE_VARIABLE = "LAUNCHER_SITE"
PLAIN_TORCH_VARIABLE = "LAUNCHER_PLAIN_TORCH"
GPUS_VARIABLE = "LAUNCHER_GPUS_ON_NODE"  # what a job asked for, where SLURM counts no GPUs
MASTER_VARIABLE = "LAUNCHER_MASTER"  # how rank 0's node is named where the others reach it, as in {host}-ib
# they would make several jobs of one run, have sbatch wait for its end, or feed it a file
UNHEARD = ("SBATCH_ARRAY_INX", "SBATCH_WAIT", "SBATCH_INPUT")
_OF_THE_CLUSTER = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT")  # which one, and how to be let in
_OF_QUESTIONS = ("SBATCH_", "SCANCEL_", "SCONTROL_", "SINFO_", "SQUEUE_")
_GPUS = ("SLURM_GPUS_ON_NODE", "SLURM_STEP_GPUS", "SLURM_JOB_GPUS", "SLURM_GPUS_PER_NODE", GPUS_VARIABLE)
_OF_MPI = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")  # Accelerate takes these for a world's size
_FIRST_SPECIAL_STEP = 0xFFFFFFF0  # batch scripts, interactive shells and the like have steps of these numbers


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
        started_by: Who started the processes: `one process`, `launcher`, `accelerate`, `torchrun` or `srun`.
        wants_cpu: Whether the environment asks for the CPU (`accelerate launch --cpu`).
        run_dir: The run folder that the supervisor chose, if it did.
        restarts: How often an elastic agent has restarted these processes.
        supervisor: Our own supervisor's process, if it started these.
        has_agent: Whether an elastic agent looks after this process, torchrun's, accelerate's or our own: to it, every
            exit code but 0 is a failure.
        job: The SLURM job that this process belongs to, if it does; of an array its task alone, as in `1234_5`.
        deadline: When that job ends by its limit, in unix time, where it says so.
        host: The node of rank 0, for the ranks of an srun step.
        master: How the others reach that node, as in `{host}-ib`, if it was given.
        host_address: That node's address, as SLURM has it, if it says one.
        step: That step in this start of its job, as in `1234.0.1`.
        cpus_per_task: What an srun step was asked to give each of its tasks, if it was.
        gpus: The variable that says that this process was given GPUs by SLURM, with its value; empty where none does.
        faults: Accidents to be made on purpose, see `launcher.world.faults`.
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
    has_agent: bool = False
    job: str | None = None
    deadline: float | None = None
    host: str | None = None
    master: str | None = None
    host_address: str | None = None
    step: str | None = None
    cpus_per_task: int | None = None
    gpus: str = ""
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

    @property
    def cpus(self) -> int:
        """This process's share of the CPUs of its node."""
        usable = usable_cpus()
        if self.cpus_per_task is not None:  # srun may have bound each task already: what is usable is its own
            return max(1, min(usable, self.cpus_per_task))
        return max(1, usable // self.local_size)

    @staticmethod
    def from_environ(environ: Mapping[str, str] | None = None) -> World:
        """Reads the variables that torchrun, accelerate, our own supervisor and SLURM set.

        Of a SLURM job, only the tasks of a step of several are a world; a shell of salloc or `srun --pty`, a batch
        script and a step of one task want one process, which may start others on its node.

        Raises:
            UsageError: The variables contradict each other, or ask for what no process group can give.
        """
        environ = os.environ if environ is None else environ
        accelerate = {name: value for name, value in environ.items() if name.startswith("ACCELERATE_")}
        wants_cpu = accelerate.get("ACCELERATE_USE_CPU", "false").lower() in ("1", "true", "yes")
        if "WORLD_SIZE" not in environ:
            _refuse_half_a_world(environ)
            if _is_task(environ):
                return _task(environ, wants_cpu, accelerate)
            started_by = "accelerate" if "ACCELERATE_MIXED_PRECISION" in environ else "one process"
            return World(
                wants_cpu=wants_cpu,
                started_by=started_by,
                run_dir=environ.get(RUN_DIR_VARIABLE),
                job=_job(environ),
                deadline=_deadline(environ),
                gpus=_gpus(environ),
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
            has_agent="TORCHELASTIC_RUN_ID" in environ,
            job=_job(environ),
            deadline=_deadline(environ),
            gpus=_gpus(environ),
            faults=environ.get(FAULTS_VARIABLE),
            accelerate=accelerate,
        )
        if not 0 <= world.rank < world.size:
            raise UsageError(f"environment: RANK={world.rank} with WORLD_SIZE={world.size}; ranks count from 0")
        return world


def master(environ: Mapping[str, str] | None = None) -> tuple[str, int]:
    """Where the ranks of a world that somebody has started meet: host and port of rank 0.

    Raises:
        UsageError: It is not said.
    """
    environ = os.environ if environ is None else environ
    host, port = environ.get("MASTER_ADDR"), _number(environ, "MASTER_PORT", None if "MASTER_ADDR" in environ else "0")
    if not host or not 0 < port < 65536:
        problem = f"MASTER_PORT={port} is not a port" if host else "WORLD_SIZE is set and MASTER_ADDR is not"
        raise UsageError(f"environment: {problem}; start with srun, torchrun or accelerate launch")
    return host, port


def is_placed() -> bool:
    """Whether the environment says where ranks meet; a world that was only made up has no such place.

    Raises:
        UsageError: It has a world and no such place.
    """
    if "WORLD_SIZE" in os.environ and "MASTER_ADDR" not in os.environ:
        master()
    return "MASTER_ADDR" in os.environ


def is_served_by_agent() -> bool:
    """Whether an elastic agent holds what the ranks meet at, not rank 0."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def is_spokesman() -> bool:
    """Whether this process prints what every rank finds for itself: rank 0, or the only one."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


def name_of_rank() -> str:
    """This process among the others, for people."""
    rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
    return f"rank {rank} on {platform.node()}"


def site_variable() -> str | None:
    """The site file that `LAUNCHER_SITE` names, if it does."""
    return os.environ.get(SITE_VARIABLE) or None


def user_variable(name: str) -> str | None:
    """A variable; a user's name and home are known without it too."""
    if value := os.environ.get(name):
        return value
    field = {"USER": "pw_name", "LOGNAME": "pw_name", "HOME": "pw_dir"}.get(name)
    try:
        return str(getattr(pwd.getpwuid(os.getuid()), field)) if field else None
    except KeyError:  # a number without a name, as in a container
        return None


def wants_plain_torch() -> bool:
    """Whether `LAUNCHER_PLAIN_TORCH=1` asks for torch's own ways alone: slower, for who doubts ours.

    A function, as what asks is of the process and not of a run: optimizers are made where there is no world.

    Raises:
        UsageError: It says neither yes nor no.
    """
    value = os.environ.get(PLAIN_TORCH_VARIABLE, "")
    if value not in ("", "0", "1"):
        raise UsageError(f"environment: {PLAIN_TORCH_VARIABLE}={value!r} is neither 1 nor 0; 1 is plain torch")
    return value == "1"


def job_environment() -> dict[str, str]:
    """The variables that sbatch gets, and a new job inherits.

    All but those of the job that this process may itself be in, and those that would make something else of the job.
    """
    return {
        name: value
        for name, value in os.environ.items()
        if name in _OF_THE_CLUSTER or not (name.startswith("SLURM_") or name in UNHEARD)
    }


def question_environment() -> dict[str, str]:
    """The variables for a question to the cluster, without those that change what is asked or how it is answered."""
    return {name: value for name, value in job_environment().items() if not name.startswith(_OF_QUESTIONS)}


def sbatch_variables() -> dict[str, str]:
    """What the environment says to sbatch, by the variable."""
    return {name: value for name, value in sorted(os.environ.items()) if name.startswith("SBATCH_")}


def job_start() -> int:
    """How often the SLURM job that this process belongs to was started before."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0)


def is_of_this_start(environ: Mapping[str, str]) -> bool:
    """Whether the process of these variables belongs to the same start of the same SLURM job as this one."""
    names = ("SLURM_JOB_ID", "SLURM_RESTART_COUNT")
    return "SLURM_JOB_ID" in os.environ and all(environ.get(name) == os.environ.get(name) for name in names)


def usable_cpus(root: Path = Path("/")) -> int:
    """CPUs that this process may run on: a container's or job's quota of time counts as so many whole ones.

    Args:
        root: Where `proc` and `sys` are.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min([allowed, *_quotas(root)])))


def _quotas(root: Path) -> Iterator[float]:
    """CPU quotas of this process's cgroups and those around them, in CPUs."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for number, controllers, path in (line.split(":", 2) for line in lines if line.count(":") > 1):
        if number == "0":
            yield from _quotas_of(root / "sys/fs/cgroup", path, "cpu.max")
        elif "cpu" in controllers.split(","):
            yield from _quotas_of(root / "sys/fs/cgroup/cpu", path, "cpu.cfs_quota_us", "cpu.cfs_period_us")


def _quotas_of(mount: Path, path: str, *files: str) -> Iterator[float]:
    inner = mount / path.strip("/")
    for folder in (candidate for candidate in (inner, *inner.parents) if candidate.is_relative_to(mount)):
        with suppress(OSError, ValueError, ZeroDivisionError):  # "max", or no such file: no quota
            quota, period = map(int, " ".join((folder / file).read_text(encoding="utf-8") for file in files).split())
            if quota > 0:  # -1 is none
                yield quota / period


def _job(environ: Mapping[str, str]) -> str | None:
    """The job by the name that means it alone: the plain number may mean all tasks of its array."""
    array, task = environ.get("SLURM_ARRAY_JOB_ID"), environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else environ.get("SLURM_JOB_ID")


def _is_task(environ: Mapping[str, str]) -> bool:
    """Whether this is one of several tasks that srun has started together, and no shell of somebody's."""
    step = environ.get("SLURM_STEP_ID", "")
    if not step.isdigit() or int(step) >= _FIRST_SPECIAL_STEP or "SLURM_PTY_PORT" in environ:
        return False
    return _number(environ, "SLURM_STEP_NUM_TASKS", "1") > 1


def _task(environ: Mapping[str, str], wants_cpu: bool, accelerate: Mapping[str, str]) -> World:
    size = _number(environ, "SLURM_STEP_NUM_TASKS")
    if "ACCELERATE_MIXED_PRECISION" in environ:
        raise UsageError(
            f"accelerate launch was started {size} times by srun and made one process of each; tell it of the others: "
            "srun --ntasks-per-node=1 accelerate launch --num_machines N --num_processes P …, see slurm/README.md"
        )
    node = _number(environ, "SLURM_NODEID")
    counts = expand_counts(environ.get("SLURM_STEP_TASKS_PER_NODE") or environ.get("SLURM_TASKS_PER_NODE", ""))
    names = expand(environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST", ""))
    job, start = environ.get("SLURM_JOB_ID", ""), environ.get("SLURM_RESTART_COUNT") or "0"
    rank = _number(environ, "SLURM_PROCID")
    if not 0 <= rank < size or node >= len(counts) or len(counts) != len(names):
        raise UsageError(
            f"environment: SLURM's variables do not agree: task {rank} of {size}, node {node} of {len(names)}; "
            "were they set by hand?"
        )
    return World(
        rank=rank,
        size=size,
        local_rank=_number(environ, "SLURM_LOCALID"),
        local_size=counts[node],
        node=node,
        nodes=len(names),
        started_by="srun",
        wants_cpu=wants_cpu,
        run_dir=environ.get(RUN_DIR_VARIABLE),
        job=_job(environ),
        deadline=_deadline(environ),
        host=names[0],
        master=environ.get(MASTER_VARIABLE) or None,
        host_address=_launch_address(environ, names[0]),
        step=f"{job}.{environ['SLURM_STEP_ID']}.{start}",
        cpus_per_task=_number(environ, "SLURM_CPUS_PER_TASK") if environ.get("SLURM_CPUS_PER_TASK") else None,
        gpus=_gpus(environ),
        faults=environ.get(FAULTS_VARIABLE),
        accelerate=accelerate,
    )


def _deadline(environ: Mapping[str, str]) -> float | None:
    end_time = environ.get("SLURM_JOB_END_TIME", "")
    return float(end_time) if end_time.isdigit() else None


def _launch_address(environ: Mapping[str, str], first: str) -> str | None:
    """The address of the node that srun was started on, where that is the step's first: of a batch script it is."""
    job_nodes = environ.get("SLURM_JOB_NODELIST", "")
    is_first = first in expand(job_nodes)[:1] if job_nodes else False
    return environ.get("SLURM_LAUNCH_NODE_IPADDR") if is_first else None


def _gpus(environ: Mapping[str, str]) -> str:
    """`SLURM_GPUS_ON_NODE=4`: what proves that GPUs were asked for, and are paid for."""
    if "SLURM_JOB_ID" not in environ:
        return ""
    return next((f"{name}={environ[name]}" for name in _GPUS if environ.get(name, "0") not in ("", "0")), "")


def _starter(environ: Mapping[str, str]) -> str:
    if SUPERVISOR_VARIABLE in environ:
        return "launcher"
    return "accelerate" if "ACCELERATE_MIXED_PRECISION" in environ else "torchrun"


def _refuse_half_a_world(environ: Mapping[str, str]) -> None:
    for name in ("LOCAL_RANK", *_OF_MPI):
        if environ.get(name, "1") != "1" or (name == "LOCAL_RANK" and name in environ):
            raise UsageError(
                f"environment: {name}={environ[name]} is set and WORLD_SIZE is not; unset it to train alone, or start "
                "with `launcher train`, srun, torchrun or accelerate launch"
            )
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
        set_by = "SLURM_STEP_ID" if name.startswith("SLURM_") else "WORLD_SIZE"
        raise UsageError(
            f"environment: {set_by} is set and {name} is not; start with srun, torchrun or accelerate launch"
        )
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"environment: {name}={text!r} is not a whole number") from None
