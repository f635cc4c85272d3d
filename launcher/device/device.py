"""2: device. CPU or GPU, precision, process group: all through Accelerate, and nothing left to its environment."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin, InitProcessGroupKwargs

from launcher import internals
from launcher.device.coordination import Coordinator
from launcher.device.kernels import kernel_notes, kernels_chosen, settle_workspace
from launcher.device.kind import Kind, count, found, kind_of, make_current
from launcher.device.meeting import meeting
from launcher.device.shared_memory import shared_memory
from launcher.errors import UsageError
from launcher.recipe import schema
from launcher.world import gpus, network
from launcher.world.rendezvous import gathered
from launcher.world.site import read_site
from launcher.world.waiting import Wait, guarded
from launcher.world.world import World, is_placed, master

_UNSUPPORTED = {  # what an accelerate config may ask for and this program does not do
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config",
    "ACCELERATE_USE_SAGEMAKER": "SageMaker",
}
_LEAVING_SECONDS = 2.0  # what leaving the group is granted where this rank has failed
_SUPPORTED = ("NO", "MULTI_GPU", "MULTI_CPU", "MULTI_XPU")  # of Accelerate's kinds of worlds; not TPU (XLA), NPU, …


@dataclass(frozen=True)
class Device:
    """Where this rank computes.

    Attributes:
        accelerator: Accelerate's own, built with everything said explicitly.
        world: The processes of the run.
        coordinator: The ranks' side channel.
        notes: What was chosen by the program, for the plan.
        asked: The recipe's `device.precision`.
    """

    accelerator: Accelerator
    world: World
    coordinator: Coordinator
    notes: tuple[str, ...] = field(default=())
    asked: str = "no"

    @property
    def torch_device(self) -> torch.device:
        """`cpu`, or this rank's GPU.

        Accelerate numbers the CPU by the rank, and torch copies what moves from `cpu` to `cpu:1`: views of one memory
        would part.
        """
        device: torch.device = self.accelerator.device
        return torch.device("cpu") if device.type == "cpu" else device

    @property
    def kind(self) -> Kind:
        """What it can do: streams, events, generators, memory."""
        return kind_of(self.torch_device)

    @property
    def name(self) -> str:
        """`CPU`, or what the GPU calls itself."""
        return self.kind.name

    @property
    def threads(self) -> int:
        """CPU threads of this process."""
        return torch.get_num_threads()

    @property
    def is_gpu(self) -> bool:
        """Whether batches must be moved."""
        return not self.kind.is_host

    def describe(self) -> str:
        """The device in a few words, for the plan."""
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"{self.name}, {threads} a process, precision {self.precision}"

    @property
    def autocast(self) -> Callable[[], AbstractContextManager[Any]] | None:
        """What a step by hand is made under; None where the precision is the model's own.

        In a model that is bfloat16, it is what lets a step function give its parts floats of any kind.
        """
        if self.asked == "bf16-true":
            return partial(torch.autocast, self.torch_device.type, torch.bfloat16)
        return self.accelerator.autocast if self.accelerator.native_amp else None

    @property
    def precision(self) -> str:
        """`float32` (the model's own), `bf16`, `fp16` or `bf16-true`."""
        precision = str(self.accelerator.mixed_precision) if self.asked != "bf16-true" else self.asked
        return "the model's own" if precision == "no" else precision


def use_cpu(world: World, cpu: bool) -> bool:
    """Whether this run computes on the CPU: asked for, or nothing else is there.

    Raises:
        UsageError: The machine has NVIDIA GPUs that torch cannot use, or a job asked for GPUs and torch sees none.
    """
    if cpu or world.wants_cpu:
        return True
    device = found()
    if device is not None:
        _refuse_several(device, world)
        return False
    if gpus.of_machine():
        raise UsageError(_why_unusable())
    if world.gpus:
        raise UsageError(
            f"this job asked for GPUs ({world.gpus}) and torch {torch.__version__} sees none; install a build of torch "
            "for them, let the container see them (apptainer exec --nv), or use --cpu"
        )
    return True


def _refuse_several(device: torch.device, world: World) -> None:
    """There is one Apple GPU in a machine, and no process group on it.

    Raises:
        UsageError: Several processes want it.
    """
    if device.type == "mps" and world.size > 1:
        raise UsageError(
            f"{world.size} processes cannot train on an Apple GPU together; use --processes 1, or --cpu for several"
        )


def _why_unusable() -> str:
    """Why torch sees none of the machine's NVIDIA GPUs, and what to do."""
    there = "this machine has NVIDIA GPUs"
    if torch.version.cuda is None:
        return (
            f"{there} that torch {torch.__version__}, a build without CUDA, cannot use; install one with CUDA that "
            "fits the driver (nvidia-smi shows it), or use --cpu"
        )
    variable, value = gpus.hidden_by()
    if variable:
        return (
            f"{there}, and {variable}={value!r} hides them from this process; unset it, ask SLURM for some "
            "(--gpus-per-node, --gres=gpu:1), or use --cpu"
        )
    return (
        f"{there} that torch {torch.__version__} (CUDA {torch.version.cuda}) cannot use: is the driver older than that"
        "? nvidia-smi shows it; install a build of torch that fits it, or use --cpu"
    )


def _hidden() -> list[str]:
    """That a variable may be why a run is on the CPU: nothing else tells of GPUs in some containers."""
    name, value = gpus.hidden_by()
    is_for_gpus = torch.version.cuda is not None or torch.version.hip is not None
    return [f"on the CPU: {name}={value!r} hides any GPU"] if name and is_for_gpus else []


def choose_threads(asked: int | str, world: World) -> int:
    """CPU threads of a process: those asked for by the recipe or OMP_NUM_THREADS, or its share of the usable CPUs.

    torchrun and accelerate set the variable to 1 where the user does not, and nobody can tell: theirs is ignored.
    """
    if isinstance(asked, int):
        return asked
    wanted = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]  # of nested teams, the outermost
    is_users = world.started_by not in ("torchrun", "accelerate")
    is_number = wanted.isascii() and wanted.isdigit() and 0 < int(wanted) <= schema.MOST_THREADS
    return int(wanted) if is_users and is_number else world.cpus


@contextmanager
def open_device(
    section: schema.Device, world: World, *, cpu: bool, launch: schema.Launch | None = None
) -> Iterator[Device]:
    """Builds the Accelerator and joins the process group; leaves the group at the end.

    Args:
        section: The recipe's `device`.
        world: The processes, as the environment says.
        cpu: Whether to use the CPU even if there is a GPU.
        launch: The recipe's `launch`: threads, network interface, and how long others may take to come.

    Raises:
        UsageError: Accelerate sees another world than the environment's, there is no such interface, or it is too late
            for deterministic kernels.
    """
    on_cpu = use_cpu(world, cpu)
    launch = launch or schema.Launch()
    if not on_cpu:
        settle_workspace(section)
    hidden = [] if cpu or world.wants_cpu or not on_cpu else _hidden()
    with _joined(section, world, on_cpu, launch) as device:
        yield replace(device, notes=(*hidden, *device.notes))


@contextmanager
def _joined(section: schema.Device, world: World, on_cpu: bool, launch: schema.Launch) -> Iterator[Device]:
    before = torch.get_num_threads()
    with ExitStack() as stack:
        with ExitStack() as meeting_stack:
            with gathered(world, launch.meeting_timeout.amount):
                interface = stack.enter_context(_interface(launch, world))
                wait = _wait(section, launch, world)
                meeting_stack.enter_context(guarded(wait, world))
                peers = stack.enter_context(_peers_known(world, on_cpu))
                with meeting(world, wait, launch.meeting_timeout.amount) as url:
                    accelerator = _accelerator(section, on_cpu, url)
                # what libraries ask Accelerate for later is answered from its state, not from the variables
            stack.push(partial(_part, accelerator, before))
            torch.set_num_threads(choose_threads(launch.threads, world))  # after Accelerate, which sets its own guess
            make_current(accelerator.device)
            stack.enter_context(kernels_chosen(section, accelerator.device))
            _assert_world(accelerator, world, section, on_cpu)
            coordinator = Coordinator(world.rank, world.size, section.timeout.amount)
        _assert_own_gpus(accelerator.device, world, coordinator)
        in_memory = on_cpu and section.ddp.shared_memory and section.sharding == "none"
        with shared_memory(world, coordinator, section.timeout.amount) if in_memory else nullcontext() as memory:
            notes = (*_notes(section, world, accelerator.device), *interface, *peers)
            yield Device(accelerator, world, coordinator.sharing(memory), notes, section.precision)


def _wait(section: schema.Device, launch: schema.Launch, world: World) -> Wait:
    """For the other ranks. An elastic agent has met the others' and watches them: a rank that lives may take longer."""
    if world.has_agent:
        return Wait("the other ranks", section.timeout.amount, "device.timeout")
    return Wait("the other ranks", launch.meeting_timeout.amount)


def _part(accelerator: Accelerator, threads: int, kind: type[BaseException] | None, *_: object) -> None:
    """Leaves the group; a rank that fails waits for nobody: its peers stand in an all-reduce that it never joins."""
    torch.set_num_threads(threads)  # a notebook keeps its own
    if kind is None:
        _leave(accelerator)
    elif dist.is_initialized():
        leaving = threading.Thread(target=_leave_at_once, args=(accelerator,), daemon=True, name="leaving the group")
        leaving.start()
        leaving.join(_LEAVING_SECONDS)
    internals.forget_accelerator(accelerator)


def _leave(accelerator: Accelerator) -> None:
    accelerator.end_training()
    if dist.is_initialized():
        dist.destroy_process_group()


def _leave_at_once(accelerator: Accelerator) -> None:
    """NCCL's way of leaving is for normal ends, and waits for all that was begun; its other one does not."""
    with suppress(Exception):  # whatever a device says that has failed: the first error is the one to tell
        if dist.get_backend() == "gloo":
            _leave(accelerator)
        else:
            internals.abort_group()


@contextmanager
def _peers_known(world: World, on_cpu: bool) -> Iterator[list[str]]:
    """Spares each rank Accelerate's look at the machine by nvidia-smi, and does what it would then only ask for.

    Several RTX 40 under an older driver cannot reach each other's memory; `accelerate launch` tells NCCL so as well.
    """
    notes = []
    if not on_cpu and world.local_size > 1 and gpus.without_p2p():
        notes.append("NCCL goes through host memory (NCCL_P2P_DISABLE=1): RTX 40 with a driver before 550 cannot else")
        for name in ("NCCL_P2P_DISABLE", "NCCL_IB_DISABLE"):
            os.environ.setdefault(name, "1")
    with internals.peer_access_settled():
        yield notes


@contextmanager
def _interface(launch: schema.Launch, world: World) -> Iterator[list[str]]:
    """Tells the libraries for a while over which interface the ranks speak; gives a note of it for the plan."""
    if world.size == 1 or not is_placed():
        yield []
        return
    named, origin = launch.interface, "launch.interface"
    if named is None and world.nodes > 1 and network.interface_in_use() is None:
        named, origin = read_site()[0].interface, "the site file's interface"
    if named is not None:
        network.check_interface(named, origin)
    is_said = named is not None or network.interface_in_use() is not None
    with network.interface_said(named, None if is_said else network.interface_towards(master()[0], world.nodes)):
        used = network.interface_in_use() if world.nodes > 1 else None
        yield [f"ranks connect over {used}; launch.interface names another"] if used else []


def _accelerator(section: schema.Device, on_cpu: bool, url: str) -> Accelerator:
    ddp = DistributedDataParallelKwargs(
        find_unused_parameters=section.ddp.find_unused_parameters,
        static_graph=section.ddp.static_graph,
        bucket_cap_mb=section.ddp.bucket_cap_mb,
        gradient_as_bucket_view=True,
    )
    # Environment variables of accelerate beat its defaults, not what is passed: pass everything.
    return Accelerator(
        cpu=on_cpu,
        mixed_precision=autocast_of(section),
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        dynamo_backend="no",
        step_scheduler_with_optimizer=False,
        kwargs_handlers=[
            ddp,
            InitProcessGroupKwargs(init_method=url, timeout=timedelta(seconds=section.timeout.amount)),
        ],
    )


def autocast_of(section: schema.Device) -> str:
    """What autocast computes in; a model that is bfloat16 itself needs none."""
    return "no" if section.precision == "bf16-true" else section.precision


def check_device(section: schema.Device, world: World, on_cpu: bool) -> None:
    """Refuses a precision that does not exist there, and what an accelerate config asks for and does not get.

    Raises:
        UsageError: The message names what to say instead.
    """
    if on_cpu and section.precision == "fp16":
        raise UsageError("device.precision: fp16 needs a GPU; on a CPU use bf16, or 'no'")
    if on_cpu and section.sync_batchnorm:
        raise UsageError("device.sync_batchnorm: SyncBatchNorm does not run on a CPU; remove it")
    for variable, name in _UNSUPPORTED.items():
        if (world.accelerate or {}).get(variable, "false").lower() in ("1", "true", "yes"):
            raise UsageError(
                f"the accelerate config asks for {name} ({variable}), which this program does not do: it trains with "
                "DDP; choose a config without it (accelerate config), or start with `launcher train`"
            )


def check_kind(kind: str) -> None:
    """Refuses a world of a kind that this program does not know, by Accelerate's name of it.

    Raises:
        UsageError: It is a TPU, say.
    """
    if kind not in _SUPPORTED:
        raise UsageError(
            f"Accelerate has found or been told {kind}, and this program does not train there: it knows CPUs and GPUs, "
            "with DDP; choose another config (accelerate config), or use --cpu"
        )


def _assert_own_gpus(device: torch.device, world: World, coordinator: Coordinator) -> None:
    if device.type != "cpu" and world.size > 1 and (uuid := kind_of(device).uuid):
        check_gpus([message.decode() for message in coordinator.gather(f"{world.node} {uuid}".encode())])


def check_gpus(taken: Sequence[str]) -> None:
    """Refuses processes that share a GPU: Accelerate gives the fifth of five processes the first of four GPUs.

    Args:
        taken: Of each rank, as its node and the GPU's own number.

    Raises:
        UsageError: Two ranks have the same.
    """
    shared = next((gpu for gpu in taken if taken.count(gpu) > 1), None)
    if shared is None:
        return
    ranks = [str(rank) for rank, gpu in enumerate(taken) if gpu == shared]
    node, _, uuid = shared.partition(" ")
    raise UsageError(
        f"ranks {', '.join(ranks[:-1])} and {ranks[-1]} would share one GPU of node {node} ({uuid}), and one process "
        "uses one; start as many processes as there are GPUs, let each see its own (CUDA_VISIBLE_DEVICES), or use --cpu"
    )


def _assert_world(accelerator: Accelerator, world: World, section: schema.Device, on_cpu: bool) -> None:
    """What Accelerate made must be what was asked for, before a file is written.

    Raises:
        UsageError: It is not.
    """
    check_kind(accelerator.distributed_type.value)
    seen = (accelerator.num_processes, accelerator.process_index)
    if seen != (world.size, world.rank):
        raise UsageError(
            f"the environment says rank {world.rank} of {world.size}, Accelerate sees rank {seen[1]} of {seen[0]}; "
            "start with `launcher train`, torchrun or accelerate launch, and set no RANK or WORLD_SIZE by hand"
        )
    device, dynamo = accelerator.device.type, str(accelerator.state.dynamo_plugin.backend).rpartition(".")[2]
    asked = {
        "device": (device, "cpu" if on_cpu else device if device != "cpu" else "a GPU"),
        "mixed precision": (accelerator.mixed_precision, autocast_of(section)),
        "accumulation steps": (accelerator.gradient_accumulation_steps, 1),
        "dynamo backend": (dynamo, "NO"),
    }
    for what, (setting, wanted) in asked.items():
        if setting != wanted:
            raise UsageError(
                f"Accelerate made its {what} '{setting}' where '{wanted}' was asked for; "
                "unset the ACCELERATE_… variables (env | grep ACCELERATE)"
            )


def _notes(section: schema.Device, world: World, device: torch.device) -> Iterator[str]:
    asked = (world.accelerate or {}).get("ACCELERATE_MIXED_PRECISION", section.precision)
    if asked not in (section.precision, "no"):
        yield f"accelerate config says {asked}, the recipe {section.precision}: the recipe's is used"
    steps = (world.accelerate or {}).get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if steps not in ("1", ""):
        yield f"accelerate config says {steps} accumulation steps; they follow from data.micro_batch_size instead"
    if device.type != "cpu":
        yield from _notes_of_gpu(section, world, device)
    dynamo = (world.accelerate or {}).get("ACCELERATE_DYNAMO_BACKEND", "no")
    if dynamo.lower() != "no":
        yield f"accelerate config says dynamo backend {dynamo}; device.compile is {str(section.compile).lower()}"


def _notes_of_gpu(section: schema.Device, world: World, device: torch.device) -> Iterator[str]:
    if world.local_size > 1 and count() == 1:
        yield f"each of the {world.local_size} processes of a node sees one GPU, its own"
    if not section.deterministic:
        yield "GPU kernels are not promised bit for bit; device.deterministic: true chooses those that are"
    yield from kernel_notes(section, device)
