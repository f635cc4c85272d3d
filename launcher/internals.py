"""All that is touched of what torch, torchmetrics, Accelerate and Python call private, in one place.

Each function says what it takes, why there is no public way, and what happens where a release lacks it. A test names
each of them, so that a release that moves one says so at once. Nothing is imported before it is asked for: parts of
the launcher that load no torch may be above this. What runs in every step is asked for once and kept.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch
    from torch import nn

# ---------------------------------------------------------------------- a step


def engine() -> Callable[..., Any] | None:
    """What `torch.autograd.backward` calls when it has looked at its arguments.

    Its look takes longer than the backward pass of a small model. None where there is none.
    """
    import torch

    backward_engine: Callable[..., Any] | None = getattr(torch.autograd.graph, "_engine_run_backward", None)
    return backward_engine


def autograd_switch() -> Callable[..., Any]:
    """The decorator of a step of torch's optimizers that turns autograd off or on.

    To tell such a step from one that somebody else has wrapped.

    Raises:
        AttributeError: There is none: a step is called as torch has it.
    """
    from torch.optim import optimizer

    decorator: Callable[..., Any] = optimizer._use_grad_for_differentiable
    return decorator


def is_counted_by_scheduler(step: Any) -> bool:
    """Whether a scheduler has put its own function around an optimizer's step; no where it leaves no mark."""
    return hasattr(step, "_wrapped_by_lr_sched")


def note_step(optimizer: Any) -> None:
    """Notes what that function notes: the optimizer has stepped, else the scheduler warns of a wrong order."""
    optimizer._opt_called = True


def step_onlookers() -> Callable[[Any], bool]:
    """A function that says whether hooks or a profiler look on when an optimizer steps.

    There are public ways to add such a hook and none to ask for it.

    Raises:
        AttributeError: Also when it is called: there are no such lists. A step is called as torch has it.
    """
    from torch.autograd import profiler
    from torch.optim import optimizer as everywhere

    def look_on(optimizer: Any) -> bool:
        return bool(
            optimizer._optimizer_step_pre_hooks
            or optimizer._optimizer_step_post_hooks
            or everywhere._global_optimizer_pre_hooks
            or everywhere._global_optimizer_post_hooks
            or profiler._is_profiler_enabled
        )

    return look_on


def is_view(tensor: torch.Tensor) -> bool:
    """Whether a tensor is a view of another, that a change in place would change too; no where that cannot be told."""
    return getattr(tensor, "_base", None) is not None


def changes_of(tensor: torch.Tensor) -> int:
    """How often a tensor was changed in place; 0 where that is not counted."""
    return int(getattr(tensor, "_version", 0))


def finite_check() -> Callable[[Sequence[torch.Tensor], torch.Tensor, torch.Tensor], None]:
    """A function (gradients, flag, scale 1) that raises the flag where a gradient is not finite.

    The gradient scaler's kernel looks at all gradients in one call. Where there is none, each is asked by itself.
    """
    import torch

    kernel: Any = getattr(torch, "_amp_foreach_non_finite_check_and_unscale_", None)
    return kernel or _finite_check_by_one


def reads_overflow(optimizer: Any) -> bool:
    """Whether an optimizer's own kernel looks at a flag (`found_inf`) and then leaves everything as it is.

    The gradient scaler asks the same. Where an optimizer does not say so, it does not.
    """
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def overflow(scaler: Any, optimizer: Any) -> torch.Tensor:
    """The flag that a gradient scaler has raised or not in its last step, on the device; asked before `update()`.

    Raises:
        AttributeError: It keeps it elsewhere: a run under fp16 could not say what was skipped.
    """
    flags = scaler._per_optimizer_states[id(optimizer)]["found_inf_per_device"]
    raised: torch.Tensor = sum(flags.values())
    return raised


def _finite_check_by_one(gradients: Sequence[torch.Tensor], flag: torch.Tensor, scale: torch.Tensor) -> None:
    for gradient in gradients:
        flag.masked_fill_(~gradient.isfinite().all().to(flag.device), 1.0)


class AdamKernels(NamedTuple):
    """What a fused Adam calls.

    Attributes:
        add: Adds a number to tensors.
        by_device_and_type: Sorts lists of tensors, and refuses what belongs together and is not alike.
        adam: The update.
        adamw: The one with weights that decay by themselves.
    """

    add: Callable[..., Any]
    by_device_and_type: Callable[..., Any]
    adam: Callable[..., Any]
    adamw: Callable[..., Any]


def adam_kernels() -> AdamKernels:
    """The kernels below `torch.optim`: the optimizer's Python takes as long as they do, and there is no way between.

    Raises:
        AttributeError: There are none: a step is called as torch has it.
    """
    import torch

    alike: Any = torch._C._group_tensors_by_device_and_dtype
    return AdamKernels(torch._foreach_add_, alike, torch._fused_adam_, torch._fused_adamw_)


# ---------------------------------------------------------------------- the compiler

COMPILER = "torch._dynamo"
_CACHED = "__dynamo_disable"  # where torch keeps what its compiler has made of a function


def is_compiler_loaded() -> bool:
    """Whether anybody has imported the compiler; before that nothing is compiled."""
    return COMPILER in sys.modules


def kept_from_compiler() -> Callable[..., Any]:
    """Torch's decorator for functions of its own that shall not be compiled: it loads the compiler to say so.

    Raises:
        AttributeError: There is none.
    """
    import torch

    decorator: Callable[..., Any] = torch._disable_dynamo  # type: ignore[attr-defined]  # not exported
    return decorator


def ddp_forward() -> Callable[..., Any] | None:
    """What DDP puts around its forward pass, under that decorator; None where there is none."""
    from torch.nn.parallel import DistributedDataParallel

    entered = getattr(DistributedDataParallel, "_inside_ddp_forward", None)  # made a context manager
    wrapper: Callable[..., Any] | None = getattr(entered, "__wrapped__", None)
    return wrapper


def is_spared(function: Any) -> bool:
    """Whether something is kept already that is called in a function's place."""
    return hasattr(function, _CACHED)


def spare(function: Any, instead: Callable[..., Any]) -> None:
    """Puts something in the place where torch keeps what its compiler has made of a function."""
    setattr(function, _CACHED, instead)


_ASKED = ("_dynamo", "utils", "get_optimize_ddp_mode")


def asks_compiler_one_thing(made: Callable[..., Any]) -> bool:
    """Whether DDP's constructor asks the compiler, as far as it goes without one, for a single setting of its."""
    code = getattr(made, "__code__", None)
    return code is not None and set(_ASKED) <= set(code.co_names) and "python_reducer" in code.co_consts


@contextmanager
def compiler_replaced(stand_in: Any) -> Iterator[None]:
    """Puts a stand-in where torch would load its compiler, and takes it away whatever happens.

    DDP's constructor asks `torch._dynamo` for a setting; the name cannot be answered without loading but so. Where it
    is loaded already, it answers itself.
    """
    import torch

    if is_compiler_loaded():
        yield
        return
    torch._dynamo = stand_in
    try:
        yield
    finally:
        if vars(torch).get("_dynamo") is stand_in:
            del torch._dynamo


def uncompiled(module: nn.Module) -> nn.Module:
    """The module that `torch.compile` made another of; the module itself where it did not."""
    inner: nn.Module = getattr(module, "_orig_mod", module)
    return inner


# ---------------------------------------------------------------------- data


def pin_memory(batch: Any) -> Any:
    """A batch of any structure in page-locked memory, as a DataLoader pins it.

    Where there is none it stays where it is, which a transfer takes as well, only slower.
    """
    try:
        from torch.utils.data._utils.pin_memory import pin_memory as pin
    except ImportError:
        return batch
    return pin(batch)


def forget_worker() -> None:
    """Makes `torch.utils.data.get_worker_info()` say in a worker that there are none.

    A stream that splits itself among workers would leave out samples where it is split already.

    Raises:
        RuntimeError: It does not: samples would be left out silently.
    """
    from torch.utils.data import get_worker_info
    from torch.utils.data._utils import worker

    worker._worker_info = None
    if get_worker_info() is not None:
        raise RuntimeError("this torch keeps what a worker is told elsewhere; use data.workers=0")


def become_worker(number: int, count: int, dataset: Any) -> None:
    """Makes `torch.utils.data.get_worker_info()` say in this process what it says in a DataLoader's worker.

    Data sets and collates ask it which worker they are in. Where this torch has another way, they hear that they are in
    none. The seed is what it is in torch's, `torch.initial_seed()`: here that of the sample, whichever worker reads it.
    """
    import torch
    from torch.utils.data._utils import worker

    kind = getattr(worker, "WorkerInfo", None)
    if kind is not None:
        seed = property(lambda info: torch.initial_seed(), lambda info, value: None)
        told = type("WorkerInfo", (kind,), {"seed": seed})
        worker._worker_info = told(id=number, num_workers=count, seed=0, dataset=dataset)


@contextmanager
def as_in_no_worker() -> Iterator[None]:
    """Lets torch collate as the training process would, for a while; else it makes each tensor a shared file."""
    from torch.utils.data._utils import worker

    info = worker._worker_info
    worker._worker_info = None
    try:
        yield
    finally:
        worker._worker_info = info


def collate_functions() -> dict[Any, Any]:
    """What torch's default collate does with values of which type; whoever has types of his own adds them here."""
    from torch.utils.data._utils import collate

    return collate.default_collate_fn_map


def python_generator(num_bytes: int) -> Any:
    """The memory of the generator behind `random`, to be read: `getstate` makes 625 numbers of it each time.

    None where there is none of that size. Whoever reads it compares it with `getstate` first.
    """
    import ctypes
    import random

    begin = object.__basicsize__
    if sys.implementation.name != "cpython" or type(random._inst).__basicsize__ < begin + num_bytes:
        return None
    return (ctypes.c_char * num_bytes).from_address(id(random._inst) + begin)


def torch_generator() -> Any:
    """The memory in which torch's generator on the CPU keeps its state, to be read: `get_state` writes a tensor.

    It is found by seeds put there. None where it does not stand as it does today: it has to show a seed, a draw, and a
    number that was kept for a next call.
    """
    import ctypes

    import torch

    begin = 256  # in how much of it a seed is looked for
    size = 4 * 624 + 48  # the engine's words, and what is around them
    generator = torch.default_generator
    address, state = getattr(generator, "_cdata", None), generator.get_state()
    if not isinstance(address, int):
        return None
    try:
        places = set()
        for seed in (0x1234_5678_9ABC_DEF0, 0x0FED_CBA9_8765_4321):
            generator.manual_seed(seed)
            places.add(ctypes.string_at(address, begin).find(seed.to_bytes(8, sys.byteorder)))
        if len(places) != 1 or (place := places.pop()) < 0:
            return None
        memory = (ctypes.c_char * size).from_address(address + place)
        looks = [memory.raw]
        for _ in range(3):  # the second number was kept by the first draw
            torch.randn(())
            looks.append(memory.raw)
        return memory if len(set(looks)) == len(looks) else None
    finally:
        generator.set_state(state)


def python_owner() -> Any:
    """The object behind the functions of `random`: its `gauss_next` is what `gauss` has kept for its next call."""
    import random

    return random._inst


def numpy_half_pair() -> Any:
    """The memory (an int and a float) where NumPy's generator says whether `randn` has kept a number, and which.

    It is found by putting one there. None where it does not stand as it does today.
    """
    import ctypes
    import struct

    import numpy as np

    generator: Any = np.random.mtrand._rand
    state = generator.get_state(legacy=False)
    if state["bit_generator"] != "MT19937":
        return None
    engine = "MT19937", state["state"]["key"], state["state"]["pos"]
    try:
        found = []
        for planted in ((1, 0.123456789), (1, -9.87654321)):
            generator.set_state((*engine, *planted))
            memory = ctypes.string_at(id(generator), type(generator).__basicsize__)
            found.append(memory.find(struct.pack("i4xd", *planted)))
        if found[0] != found[1] or found[0] < 0:
            return None
        pair = (ctypes.c_char * struct.calcsize("i4xd")).from_address(id(generator) + found[0])
        generator.set_state((*engine, 0, 0.0))
        return pair if struct.unpack("i4xd", pair.raw)[0] == 0 else None
    finally:
        generator.set_state(state)


def iterates_itself(loader: Any) -> bool:
    """Whether a DataLoader's class makes its batches in a way of its own."""
    from torch.utils.data import DataLoader

    names = ("__iter__", "_get_iterator")
    return any(getattr(type(loader), name, None) is not getattr(DataLoader, name, None) for name in names)


# ---------------------------------------------------------------------- modules, schedules, metrics


def names_within(module: nn.Module) -> list[str]:
    """The names of all that is directly in a module, of what is None or stands there twice, too.

    Raises:
        AttributeError: This torch keeps them elsewhere: nobody could say whether one of them is code.
    """
    return [*module._modules.keys(), *module._parameters.keys(), *module._buffers.keys()]  # torch.jit has no more


def packaged_readers() -> frozenset[str] | None:
    """The names of the readers that come with `datasets`; None where it is not imported, or has none of that name."""
    readers = getattr(sys.modules.get("datasets.packaged_modules"), "_PACKAGED_DATASETS_MODULES", None)
    return None if readers is None else frozenset(readers)


def judge_file_systems(judge: Callable[[type], None]) -> None:
    """Has a function look at each kind of file system of fsspec before one is made, or taken from those made before.

    There is no public way to be asked. Their common metaclass is public by `type()`; where fsspec is not installed
    nothing happens.
    """
    try:
        kind: Any = type(importlib.import_module("fsspec").AbstractFileSystem)
    except ImportError:
        return
    make = kind.__call__

    def judged(cls: type, *arguments: Any, **settings: Any) -> Any:
        judge(cls)
        return make(cls, *arguments, **settings)

    kind.__call__ = judged


def run_no_program_for_pictures() -> None:
    """Has PIL start no Ghostscript, which it asks to draw a picture that is PostScript, whatever its file is called.

    `False` is its own word for a machine that has none. Nothing happens where PIL is not installed.
    """
    with suppress(ImportError):
        from PIL import EpsImagePlugin

        EpsImagePlugin.gs_binary = False


def count_no_downloads() -> None:
    """Has `datasets` tell no server that one of its readers was used, which it does for files of this machine too.

    There is a variable of the environment, read when it is imported, which may have been before.
    """
    config: Any = sys.modules.get("datasets.config")
    if config is not None:
        config.HF_UPDATE_DOWNLOAD_COUNTS = False


def judge_versions_of_data(judge: Callable[[str], None]) -> None:
    """Has a function look at the version of each configuration of a data set, which becomes part of a path.

    A README says it, here or on the hub; `datasets` looks at the name alone, and makes the folder before it reads the
    version. Nothing happens where its class is another.
    """
    kind: Any = getattr(sys.modules.get("datasets.builder"), "BuilderConfig", None)
    check = getattr(kind, "__post_init__", None)
    if check is None or hasattr(check, "is_judged"):
        return

    def judged(config: Any) -> None:
        judge(str(config.version))
        check(config)

    judged.is_judged = True  # type: ignore[attr-defined]  # a mark on a function
    kind.__post_init__ = judged


def judge_addresses_of_media(judge: Callable[[str], None]) -> None:
    """Has a function look at each address at which transformers would fetch a picture or a sound that data names.

    There is no public way to be asked: the modules that fetch do it by `httpx.get`, a name of theirs. Nothing happens
    where they are not installed, or fetch in another way.
    """
    for name in ("audio_utils", "image_utils", "video_utils"):
        with suppress(ImportError):
            module: Any = importlib.import_module(f"transformers.{name}")
            if (known := getattr(module, "httpx", None)) is not None and not hasattr(known, "is_judged"):
                module.httpx = _judging(known, judge)


def _judging(known: Any, judge: Callable[[str], None]) -> types.ModuleType:
    def get(url: Any, *arguments: Any, **settings: Any) -> Any:
        judge(str(url))
        return known.get(url, *arguments, **settings)

    judged: Any = types.ModuleType(known.__name__)
    judged.__dict__.update({**vars(known), "get": get, "is_judged": True})
    module: types.ModuleType = judged
    return module


# what transformers calls with settings of a folder's, or with a row: programs, and what opens addresses by itself
PROGRAMS = ("pytesseract:image_to_data", "rhoknp:Jumanpp", "sudachipy.dictionary:Dictionary")
_OPENERS = (
    "torchcodec.decoders:AudioDecoder.__init__",
    "torchcodec.decoders:VideoDecoder.__init__",
    "torchcodec.decoders:get_container_metadata",
    "yt_dlp:YoutubeDL.download",
)


def judge_calls_beside_transformers(judge: Callable[[str, Sequence[Any]], None]) -> None:
    """Has a function look at each such call and its positional arguments before it is made.

    There is no public way to be asked. Nothing happens where a package is not installed, cannot be loaded, or has no
    such function.
    """
    for place in (*PROGRAMS, *_OPENERS):
        module, _, name = place.partition(":")
        if importlib.util.find_spec(module.partition(".")[0]) is None:
            continue
        with suppress(Exception):  # whatever a package raises that is not whole
            holder: Any = importlib.import_module(module)
            if "." in name:
                holder, name = getattr(holder, name.partition(".")[0]), name.partition(".")[2]
            known = getattr(holder, name)
            if not hasattr(known, "is_judged"):
                setattr(holder, name, _judged_call(place, known, judge))


def _judged_call(place: str, known: Any, judge: Callable[[str, Sequence[Any]], None]) -> Callable[..., Any]:
    def call(*arguments: Any, **settings: Any) -> Any:
        judge(place, arguments)
        return known(*arguments, **settings)

    call.is_judged = True  # type: ignore[attr-defined]  # a mark on a function
    return call


def run_no_code_of_repositories() -> None:
    """Has transformers refuse a repository with Python of its own, and not ask on the terminal whether to run it.

    It waits 15 seconds for an answer where nobody has said `trust_remote_code`, and 0 is its own way not to ask; there
    is no public setting. Nothing happens where it is not installed.
    """
    try:
        from transformers import dynamic_module_utils
    except ImportError:
        return
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0


def has_hooks(module: nn.Module) -> bool:
    """Whether somebody has put hooks around a module's forward or backward pass.

    There are public ways to add one and none to ask; where a torch hides a list, it counts as filled.
    """
    lists = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, name, True) for name in lists)


def dropouts() -> tuple[type[nn.Module], ...]:
    """The class of all dropouts, or those that torch has where it names none."""
    from torch import nn
    from torch.nn.modules import dropout

    base = getattr(dropout, "_DropoutNd", None)
    return (base,) if base is not None else (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


def batch_norms() -> tuple[type[nn.Module], ...]:
    """The class of all batch normalizations, or those that torch has where it names none."""
    from torch import nn
    from torch.nn.modules import batchnorm

    known = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
    common = getattr(batchnorm, "_BatchNorm", None)
    return known if common is None else (common, *known)


def tree_map(function: Callable[[Any], Any], tree: Any) -> Any:
    """A structure with each leaf put through a function, as `torch.export` takes structures apart.

    Raises:
        ImportError: There is none; asking for another form of the weights than `.pt2` does without.
    """
    from torch.utils._pytree import tree_map as mapped

    return mapped(function, tree)


def with_own_hooks(module: nn.Module) -> nn.Module:
    """The same module once more, whose hooks before the forward are its own."""
    other = copy.copy(module)
    other._forward_pre_hooks = copy.copy(module._forward_pre_hooks)
    return other


def milestones(scheduler: Any) -> list[int]:
    """The steps at which a SequentialLR goes from one scheduler to the next; empty where it does not say."""
    return list(getattr(scheduler, "_milestones", ()))


def inner_schedulers(scheduler: Any) -> Sequence[Any]:
    """Those that a SequentialLR or ChainedScheduler is made of; empty where it does not say."""
    schedulers: Sequence[Any] = getattr(scheduler, "_schedulers", ())
    return schedulers


def reductions(metric: Any) -> Mapping[str, Any]:
    """How each state of a torchmetrics metric is made of those of several ranks, by the state's name.

    The public way joins the ranks by itself, in a process group of its own choice.

    Raises:
        AttributeError: It does not say, and any number would be a guess.
    """
    state_reductions: Mapping[str, Any] = metric._reductions
    return state_reductions


def keep_to_rank(metric: Any) -> None:
    """Lets a metric compute what this rank has seen, and wait for no other.

    The public setting is read once, when a metric is made; what it was read into is the second.
    """
    metric.sync_on_compute = metric._to_sync = False


# ---------------------------------------------------------------------- memory and processes


def storage_id(storage: torch.UntypedStorage) -> int:
    """A number that two tensors' storages share where they are one; where there is none, where its memory begins."""
    address: int | None = getattr(storage, "_cdata", None)
    return storage.data_ptr() if address is None else address


def has_storage(tensor: torch.Tensor) -> bool:
    """Whether a tensor's numbers lie in memory of its own, where its strides say.

    Not of a sparse, nested, quantized or lazily conjugated one, nor of one whose class wraps others.
    """
    import torch

    is_plain = tensor.layout is torch.strided and not (tensor.is_quantized or tensor.is_nested)
    return is_plain and not (tensor.is_conj() or tensor.is_neg() or wraps_others(tensor))


def wraps_others(tensor: torch.Tensor) -> bool:
    """Whether a tensor's class only wraps others, and can be taken apart into them and put together again.

    That is a protocol (`__tensor_flatten__`) with no public way to ask for it.
    """
    from torch.utils import _python_dispatch as dispatch

    return bool(dispatch.is_traceable_wrapper_subclass(tensor))


def parts_of(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The tensors that one is made of, sharing its memory: indices and values of a sparse one; else itself.

    Those of a sparse one that has an entry twice have private names only.
    """
    import torch

    if has_storage(tensor):
        return [tensor]
    if wraps_others(tensor):
        flatten: Any = getattr(tensor, "__tensor_flatten__")  # noqa: B009  # which mypy does not know
        inner = [getattr(tensor, name) for name in flatten()[0]]  # a DTensor's mesh is among them
        return [part for one in inner if isinstance(one, torch.Tensor) for part in parts_of(one)]
    if tensor.layout is torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    return list(tensor.unbind()) if tensor.is_nested else [tensor]


@contextmanager
def hidden_from_ddp(module: Any, names: Sequence[str]) -> Iterator[None]:
    """DDP made inside of it leaves these buffers alone: it fails to send them. There is no public way to say so.

    Where a release does not look there, DDP's own error says what it cannot send.
    """
    module._ddp_params_and_buffers_to_ignore = list(names)
    try:
        yield
    finally:
        del module._ddp_params_and_buffers_to_ignore


def default_store() -> Any:
    """The store of the default process group: how ranks look for word of one another without waiting.

    Raises:
        AttributeError: There is none; a store of one's own would need a port of its own.
    """
    from torch import distributed

    return distributed.distributed_c10d._get_default_store()


def process_groups() -> list[Any]:
    """All process groups that this process is in: torch lists them nowhere, and each mesh makes more.

    Where torch keeps them in another way, the default one alone.
    """
    from torch import distributed

    if not distributed.is_initialized():
        return []
    known = getattr(getattr(distributed.distributed_c10d, "_world", None), "pg_map", None)
    return [distributed.group.WORLD] if known is None else list(known)


def abort_group() -> None:
    """Ends the default process group without waiting for what was begun in it.

    The public way, `destroy_process_group`, is NCCL's normal end and waits. Where there is no other, nothing is
    done: this process ends.
    """
    from torch.distributed import distributed_c10d

    abort = getattr(distributed_c10d, "_abort_process_group", None)
    if abort is not None:
        abort()


@contextmanager
def peer_access_settled() -> Iterator[None]:
    """Answers Accelerate's question whether GPUs can reach each other, for which it runs nvidia-smi in every rank.

    Where it asks in another way, it finds out by itself.
    """
    from accelerate import state

    name = "check_cuda_p2p_ib_support"
    ask = getattr(state, name, None)
    if ask is None:
        yield
        return
    setattr(state, name, lambda: True)
    try:
        yield
    finally:
        setattr(state, name, ask)


def forget_accelerator(accelerator: Any) -> None:
    """Lets the next Accelerator of this process be another: else it takes up the state that the last one left.

    Where there is no such way it does, and says itself what cannot be changed.
    """
    reset = getattr(type(accelerator.state), "_reset_state", None)
    if reset is not None:
        reset(reset_partial_state=True)


def keep_sockets_in(folder: str) -> None:
    """Has multiprocessing keep its sockets in a folder, and the processes that it starts theirs.

    Its own is left behind where the process is killed. There is no public way but TMPDIR, which is everybody's. Where
    there is none, it makes its own.
    """
    import multiprocessing

    settings = getattr(multiprocessing.current_process(), "_config", None)
    if settings is not None:
        settings.setdefault("tempdir", folder)


def run_exit_handlers() -> None:
    """Runs what was registered with `atexit`, as Python does when it has waited for all threads.

    For a process that leaves without one of them; there is no public way. Where there is none, they are not run.
    """
    import atexit

    run = getattr(atexit, "_run_exitfuncs", None)
    if run is not None:
        run()


# ---------------------------------------------------------------------- tensors without memory


def fake_tensors() -> tuple[Any, Any]:
    """Torch's mode in which tensors have no memory, and the class of those tensors.

    Raises:
        ImportError: There is none, nor of what is below: a sharded model is built whole.
    """
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    return FakeTensorMode, FakeTensor


@contextmanager
def operations_through(handler: Callable[[Any, Sequence[Any], Mapping[str, Any]], Any]) -> Iterator[None]:
    """Has a function do what torch is asked to do: given the operation, its arguments and its keywords.

    torch documents the class in its notes and keeps it in a private module. It loads its compiler to keep it from
    compiling this; where there is none yet, nothing is compiled.
    """
    from torch.utils._python_dispatch import TorchDispatchMode

    class Through(TorchDispatchMode):
        @classmethod
        def _should_skip_dynamo(cls) -> bool:
            return is_compiler_loaded()

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return handler(func, args, kwargs or {})

    with Through():  # type: ignore[no-untyped-call]  # of torch
        yield


def plainly(function: Callable[[], Any]) -> Any:
    """Calls a function as outside of all such modes."""
    from torch.utils._python_dispatch import _disable_current_modes

    with _disable_current_modes():
        return function()


def aliased_arguments(operation: Any, args: Sequence[Any], *, changed: bool = False) -> list[Any]:
    """The arguments whose memory one of torch's operations gives on, or changes; or only those that it changes."""
    infos = ((value, known.alias_info) for known, value in zip(operation._schema.arguments, args, strict=False))
    return [value for value, info in infos if info is not None and (info.is_write or not changed)]


def named_arguments(operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What one of torch's operations is called with, by name, and what it has by default."""
    known = operation._schema.arguments
    by_default = {one.name: one.default_value for one in known if one.has_default_value()}
    return {**by_default, **{one.name: value for one, value in zip(known, args, strict=False)}, **kwargs}


@contextmanager
def truncated_normal_through(handler: Callable[..., Any]) -> Iterator[None]:
    """Has a function do torch's truncated normal, given torch's own and its arguments: it looks at what it draws.

    Where there is no such function, its own operations are seen.
    """
    from torch.nn import init

    name = "_no_grad_trunc_normal_"
    own = getattr(init, name, None)
    if own is not None:
        setattr(init, name, lambda *args, **kwargs: handler(own, *args, **kwargs))
    try:
        yield
    finally:
        if own is not None:
            setattr(init, name, own)


@contextmanager
def safetensors_through(handler: Callable[..., Any]) -> Iterator[None]:
    """Has a function open safetensors files, given what `safetensors.safe_open` is given, in every module that has it.

    Weights are read one by one meanwhile: transformers' threads would do it unseen. Modules take that name when they
    are imported, so it is looked for in all of them, again in the end; one that has it by another name opens as ever.
    """
    import os

    try:
        from safetensors import safe_open
    except ImportError:  # nobody opens any
        yield
        return

    def exchange(own: Any, other: Any) -> None:
        for module in list(sys.modules.values()):
            if getattr(module, "__dict__", {}).get("safe_open") is own:
                module.safe_open = other  # type: ignore[attr-defined]  # as it has been

    name = "HF_DEACTIVATE_ASYNC_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    exchange(safe_open, handler)
    try:
        yield
    finally:
        exchange(handler, safe_open)
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def of_the_same_versions(made: Any, other: Any) -> Any:
    """A state_dict with the versions of modules that another has, by which they read what an older torch wrote.

    Where there are none, it is read as one without.
    """
    versions = getattr(other, "_metadata", None)
    if versions is not None:
        made._metadata = versions
    return made


def place_in_archive(storage: torch.UntypedStorage) -> int | None:
    """Where in a file stands what a storage is of that `torch.load` has made without memory.

    torch documents the attribute in its notes on serialization. None where there is none: the file is read whole.
    """
    place: int | None = getattr(storage, "_checkpoint_offset", None)
    return place
