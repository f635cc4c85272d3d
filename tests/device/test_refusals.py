"""What GPUs refuse, by their words and as small patches: nothing of it needs one to be foreseen."""

from __future__ import annotations

import gc
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from places import FIT_HERE, ROOT, TINY
from torch import nn
from torch.autograd import DeviceType  # type: ignore[attr-defined]  # as its profiler's events have it
from torch.utils._python_dispatch import TorchDispatchMode
from worlds import Command, in_world, train_in_process

import launcher
from launcher import internals
from launcher.checkpoints import format as checkpoints
from launcher.checkpoints.saved_run import evaluated_on
from launcher.checks import smi
from launcher.device import agreement, device, kernels, kind
from launcher.device.agreement import Agreement, Requests
from launcher.device.coordination import Pending
from launcher.errors import RecipeError, UsageError
from launcher.evaluation.modes import own_randomness
from launcher.launch import supervisor
from launcher.model import build
from launcher.objective import optimizer
from launcher.objective.class_last import class_last
from launcher.recipe import schema
from launcher.recipe.build import Builder
from launcher.recipe.load import load_recipe
from launcher.training import nonfinite
from launcher.training.build import build_run_model, build_run_state, open_run_data
from launcher.training.nonfinite import NonFiniteError, NonFiniteGuard
from launcher.training.profiling import device_times, table
from launcher.training.step import warm_up
from launcher.world import gpus
from launcher.world.failure import Failure, of_exit
from launcher.world.hints import hint_for
from launcher.world.world import World

CPU = torch.device("cpu")

# ---------------------------------------------------------------------- a rank that fails, and one visible GPU

NEVER_LEAVES = """
import threading
from accelerate.state import PartialState
from torch import nn

def waits(self, group=None):  # as NCCL's normal end does while the peers stand in an all-reduce
    threading.Event().wait()

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.line, self.calls = nn.Linear(64, 10), 0
    def forward(self, x):
        import os
        self.calls += 1
        if os.environ.get("RANK") == "1" and self.calls == 3:
            PartialState.destroy_process_group = waits
            raise ValueError("rank 1 cannot continue")
        return self.line(x.flatten(1))
"""


def test_a_rank_that_fails_says_why_though_its_group_would_never_let_it_go(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(NEVER_LEAVES)
    (tmp_path / "r.yaml").write_text(
        "name: r\n"
        "data: {train: {_target_: launcher.datasets.Digits, split: train}, global_batch_size: 64, workers: 0}\n"
        "model: {_target_: 'model.py:Net'}\nloss: {_target_: CrossEntropyLoss}\n"
        "optimizer: {_target_: SGD, lr: 0.1}\ntrain: {steps: 20}\nlaunch: {threads: 1}\n"
    )
    ended = Command(tmp_path, "train", "r.yaml", "--cpu", "--processes", "2", "--run-dir", "run").wait()
    assert ended.code == 1
    assert "rank 1 of 2" in ended.report
    assert "ValueError: rank 1 cannot continue" in ended.report
    assert json.loads((tmp_path / "run" / "failure.json").read_text())["rank"] == 1
    assert ended.left == []


@pytest.mark.parametrize("local_rank", [0, 1])
def test_ddp_is_told_no_device_and_least_of_all_its_local_rank(
    monkeypatch: pytest.MonkeyPatch, local_rank: int
) -> None:
    told: list[Any] = []

    def shared(module: nn.Module, **settings: Any) -> nn.Module:
        told.append(settings)
        return module

    monkeypatch.setattr(build, "DistributedDataParallel", shared)
    asked: list[bool] = []

    def prepare(module: nn.Module, device_placement: bool, evaluation_mode: bool) -> nn.Module:
        asked.extend((evaluation_mode, not device_placement))  # then Accelerate neither puts DDP around it nor moves it
        return module

    only = SimpleNamespace(
        torch_device=torch.device("cuda:0"),  # of one that is visible
        is_gpu=True,
        world=World(rank=local_rank, size=2, local_rank=local_rank, local_size=2),
        coordinator=SimpleNamespace(memory=None),
        accelerator=SimpleNamespace(ddp_handler=None, prepare_model=prepare),
    )
    monkeypatch.setattr(nn.Module, "to", lambda module, *_: module)
    build.wrap(nn.Linear(1, 1), only, schema.Device())  # type: ignore[arg-type]
    assert asked == [True, True]
    assert told == [{}]  # a device would have DDP call the classes of what goes into the model


# ---------------------------------------------------------------------- deterministic algorithms

_THROW = (  # what CUDA has no deterministic kernel for, as torch.use_deterministic_algorithms lists it
    *("adaptive_avg_pool2d_backward", "adaptive_avg_pool3d_backward", "adaptive_max_pool2d_backward"),
    *("avg_pool3d_backward", "fractional_max_pool2d_backward", "fractional_max_pool3d_backward"),
    *("max_unpool2d", "max_unpool3d", "nll_loss2d_forward", "nll_loss2d_backward", "ctc_loss_backward"),
    *("reflection_pad1d_backward", "reflection_pad2d_backward", "reflection_pad3d_backward", "histc", "put"),
    *("upsample_linear1d_backward", "upsample_bilinear2d_backward", "upsample_bicubic2d_backward"),
    *("upsample_trilinear3d_backward", "grid_sampler_2d_backward", "grid_sampler_3d_backward", "cumsum_backward"),
    *("max_pool3d_with_indices_backward", "replication_pad1d_backward", "replication_pad2d_backward"),
)


class AsOnCuda(TorchDispatchMode):
    """Raises where CUDA would."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch left its types out

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__.strip("_")
        if name in _THROW or (name == "cumsum" and args[0].is_floating_point()):
            raise RuntimeError(f"{name}_cuda does not have a deterministic implementation")
        return func(*args, **(kwargs or {}))


# those that take turns have no one loss; of CTC torch has no deterministic kernel for a GPU; LoRA's pretrain first
RECIPES = [path for path in FIT_HERE if not {"gan", "ctc", "lora"} & set(path.parent.name.split("_"))]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT / "recipes")))
def test_every_recipe_that_ships_can_be_deterministic(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    recipe = load_recipe(path, ["device.deterministic=true", "data.workers=0", "launch.threads=1"])
    builder = Builder(recipe)
    data = open_run_data(recipe, builder, World())
    with device.open_device(recipe.device, World(), cpu=True, launch=recipe.launch) as here:
        state = build_run_state(recipe, builder, build_run_model(recipe, builder, here), here, data)
        state.model.bare.train()
        with AsOnCuda():
            warm_up(state)
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("make", [nn.CrossEntropyLoss, nn.NLLLoss])
@pytest.mark.parametrize("settings", [{}, {"reduction": "sum"}, {"ignore_index": 2}, {"weight": torch.rand(7)}])
def test_classes_that_stand_second_are_counted_as_rows(make: Any, settings: Mapping[str, Any]) -> None:
    torch.manual_seed(0)
    scores = torch.randn(4, 5, 7, dtype=torch.float64, requires_grad=True)  # as a language model makes them
    target = torch.randint(7, (4, 5))
    theirs = make(**settings).double()
    ours = class_last(theirs)
    assert isinstance(ours, make)
    assert type(ours).__name__ == make.__name__
    gradients = []
    for loss in (theirs, ours):
        with AsOnCuda() if loss is ours else torch.enable_grad():
            value = loss(scores.log_softmax(-1).transpose(1, 2), target)
            gradients.append((value, *torch.autograd.grad(value, scores)))
    for expected, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert ours.state_dict().keys() == theirs.state_dict().keys()


def test_images_keep_torch_s_own_kernel_unless_determinism_is_asked_for() -> None:
    loss, images = class_last(F.cross_entropy), torch.randn(2, 3, 4, 4, requires_grad=True)
    target = torch.randint(3, (2, 4, 4))
    with pytest.raises(RuntimeError, match="deterministic"), AsOnCuda():
        loss(images, target)
    with kernels.kernels_chosen(schema.Device(deterministic=True), CPU), AsOnCuda():
        loss(images, target).backward()
    shares = torch.rand(2, 3, 4, 4).softmax(1)  # shares of classes, and no numbers of them
    assert loss(images, shares) == F.cross_entropy(images, shares)
    with pytest.raises(RuntimeError, match=r"size|shape"):  # torch's own words
        loss(images, target[:, :2])


# ---------------------------------------------------------------------- gradients


def test_parameters_in_bfloat16_train_where_the_kernel_refuses_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = nonfinite._raise_flag
    refused: list[int] = []

    def as_cuda(gradients: Any, found: Any, one: Any) -> None:
        if any(gradient.dtype is torch.bfloat16 for gradient in gradients):
            refused.append(1)
            raise NotImplementedError("\"…_unscale_cuda\" not implemented for 'BFloat16'")
        made(gradients, found, one)

    monkeypatch.setattr(nonfinite, "_raise_flag", as_cuda)
    weights = [nn.Parameter(torch.ones(3, dtype=dtype)) for dtype in (torch.bfloat16, torch.float32)]
    guard = NonFiniteGuard(torch.optim.SGD(weights, 0.1), None, CPU, skips=False)
    for value in (1.0, float("nan")):
        weights[0].grad, weights[1].grad = torch.full_like(weights[0], value), torch.ones(3)
        if math.isfinite(value):
            assert guard.allows(0)
    with pytest.raises(NonFiniteError, match="step 1"):
        guard.allows(1)
    assert refused == [1]  # tried once
    model = nn.Sequential(nn.Linear(6, 3, dtype=torch.bfloat16))
    model[0].register_forward_pre_hook(lambda module, args: (args[0].bfloat16(),))
    model.register_forward_hook(lambda module, args, result: result.float())
    said = ("launch.threads=1", "train={steps: 3}", "optimizer={_target_: SGD, lr: 0.1}")
    launcher.train(TINY, *said, run_dir=tmp_path / "run", cpu=True, output="quiet", model=model)


def test_an_error_of_the_device_is_no_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(nonfinite, "_raise_flag", fails)
    weight = nn.Parameter(torch.ones(3))
    weight.grad = torch.ones(3)
    guard = NonFiniteGuard(torch.optim.SGD([weight], 0.1), None, CPU, skips=False)
    with pytest.raises(torch.OutOfMemoryError):
        guard.allows(0)


@pytest.mark.parametrize("skips", [False, True])
def test_what_the_device_counts_of_bad_steps_is_what_the_host_would(skips: bool) -> None:
    weight = nn.Parameter(torch.ones(3))
    made = torch.optim.AdamW([weight], 0.1, fused=True)
    guard = NonFiniteGuard(made, None, CPU, skips=skips)
    guard._read_now = False  # as on a GPU
    kept = []
    for step in range(8):
        weight.grad = torch.full((3,), float("inf") if step in (3, 4, 6) else 1.0)
        assert guard.allows(step)
        if skips:
            made.step()
            kept.append(weight.detach().clone())
    if skips:
        guard.take(guard.counts.tolist(), 7)
        assert guard.news() == "3 updates skipped: gradients were not finite (3 so far)"
        assert torch.equal(kept[2], kept[4])
        assert not torch.equal(kept[4], kept[5])
        with pytest.raises(NonFiniteError, match="20 steps in a row"):
            guard.take([20.0, 20.0, 20.0], 30)
    else:
        with pytest.raises(NonFiniteError, match="step 3:"):
            guard.take(guard.counts.tolist(), 7)


def test_fused_is_what_works_on_this_device_and_torch() -> None:
    class Refuses(torch.optim.Adagrad):
        def __init__(self, params: Any, fused: bool = False):
            super().__init__(params)
            raise RuntimeError("`fused=True` requires all the params to be floating point Tensors of supported devices")

    assert not optimizer._can_fuse(Refuses, CPU, torch.float32)
    assert optimizer._can_fuse(torch.optim.AdamW, CPU, torch.float32)
    assert not optimizer._can_fuse(torch.optim.AdamW, torch.device("meta"), torch.complex64)


def test_cuda_graphs_over_several_micro_batches_are_refused(tmp_path: Path) -> None:
    for mode in ("reduce-overhead", "max-autotune"):
        with pytest.raises(RecipeError, match=r"device\.compile: .*CUDA graphs"):
            train_in_process(tmp_path / mode, f"device.compile={mode}", "data.micro_batch_size=8")


# ---------------------------------------------------------------------- stops in time


class TwoRanks:
    world_size = 2

    def max(self, numbers: torch.Tensor) -> Pending:
        return Pending(numbers)


class Clock:
    """A host that launches steps, and a device that makes them later; its queue holds so many."""

    def __init__(self, gpu: float, host: float, first: float, ahead: int):
        self.gpu, self.host, self.first, self.ahead = gpu, host, first, ahead
        self.now, self.ends = 0.0, list[float]()

    def launch(self) -> None:
        self.now += self.first if not self.ends else self.host
        self.ends.append(max(self.now, self.ends[-1] if self.ends else 0.0) + self.gpu)
        if len(self.ends) > self.ahead:
            self.now = max(self.now, self.ends[-1 - self.ahead])

    def mark(self) -> Any:
        end = self.ends[-1]
        return SimpleNamespace(synchronize=lambda: setattr(self, "now", max(self.now, end)))


@pytest.mark.parametrize("is_alone", [False, True])
@pytest.mark.parametrize("asked_at", [1, 5, 60, 3_000])
@pytest.mark.parametrize(
    ("gpu", "host", "first", "ahead"),
    [
        (0.3, 0.015, 3.0, 10),
        (0.02, 0.0005, 1.0, 10),
        (0.1, 0.0005, 1.0, 10),
        (0.5, 0.0006, 1.0, 8),  # compiled
        (0.1, 0.0001, 60.0, 1024),  # in one CUDA graph: a thousand steps ahead
        (8.0, 0.5, 20.0, 4),
        (0.0001, 0.0002, 0.5, 1024),  # the host is the slower
    ],
)
def test_a_wish_to_stop_is_acted_upon_in_time(
    monkeypatch: pytest.MonkeyPatch, gpu: float, host: float, first: float, ahead: int, asked_at: int, is_alone: bool
) -> None:
    clock = Clock(gpu, host, first, ahead)
    monkeypatch.setattr(agreement, "time", SimpleNamespace(monotonic=lambda: clock.now))
    coordinator: Any = SimpleNamespace(world_size=1) if is_alone else TwoRanks()
    accelerator: Any = SimpleNamespace(is_host=False, mark=clock.mark)
    agreed = Agreement(coordinator, accelerator)
    asked = None
    for step in range(1, 20_000):
        clock.launch()
        if step >= asked_at and asked is None:
            asked = clock.now
        if agreed.after(step, Requests(stop=asked is not None)).stop:
            break
    assert asked is not None
    assert clock.ends[-1] - asked <= max(5.0, 3 * gpu)  # the step under way, and two more


# ---------------------------------------------------------------------- kernels, and what a notebook has set


def test_tf32_is_torch_s_own_unless_it_is_said_and_is_put_back() -> None:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    gpu = torch.device("cuda")
    with kernels.kernels_chosen(schema.Device(), gpu):
        assert (matmul.allow_tf32, cudnn.allow_tf32) == before[:2]
        assert cudnn.benchmark
        assert any(
            "TF32: off for float32 matrix products" in note for note in kernels.kernel_notes(schema.Device(), gpu)
        )
    for wanted in (True, False):
        with kernels.kernels_chosen(schema.Device(tf32=wanted, deterministic=True), gpu):
            assert (matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark) == (wanted, wanted, False)
    assert (matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark) == before
    with kernels.kernels_chosen(schema.Device(tf32=True), CPU):
        assert matmul.allow_tf32 == before[0]


def test_an_evaluation_seeds_the_device_s_generator_and_puts_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    module = SimpleNamespace(
        manual_seed=lambda seed: asked.append(seed),
        get_rng_state=lambda *device: "state",
        set_rng_state=lambda state, *device: asked.append((state, *device)),
    )
    for name, where in (("cuda:0", (torch.device("cuda:0"),)), ("mps", ())):
        monkeypatch.setattr(kind, "_accelerator", lambda device: kind.Kind(device, module))
        for _ in range(2):
            with own_randomness(3, 0, torch.device(name)):
                pass
        first, back, again, _ = asked
        assert first == again
        assert back == ("state", *where)
        asked.clear()


def test_weights_are_in_host_memory_when_they_are_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    copied: list[Any] = []

    def as_if(state: Any) -> Any:
        copied.append(state)
        return {name: torch.ones(2) for name in state}

    monkeypatch.setattr(checkpoints, "copied", as_if)
    checkpoints.save_weights(tmp_path / "a.pth", {"w": torch.zeros(2)})
    assert not copied
    checkpoints.save_weights(tmp_path / "b.pth", {"w": torch.zeros(2, device="meta")})  # as one on a GPU
    assert torch.equal(torch.load(tmp_path / "b.pth", weights_only=True)["w"], torch.ones(2))
    assert len(copied) == 1


# ---------------------------------------------------------------------- the profile


def test_a_profile_s_device_times_are_the_device_s_own() -> None:
    def event(at: float) -> Any:
        return SimpleNamespace(at=at, elapsed_time=lambda other: other.at - at)

    timers = [("forward", event(0), event(5)), ("backward", event(5), event(15)), ("optimizer", event(15), event(16))]
    assert device_times([*timers, ("data wait", None, None)]) == {"forward": 5, "backward": 10, "optimizer": 1}

    def seen(name: str, on: Any, host: float, kernel: float, is_range: bool = False) -> Any:
        times = {"cpu_time_total": host, "device_time_total": kernel}
        return SimpleNamespace(name=name, device_type=on, is_user_annotation=is_range, **times)

    events = [
        seen("forward", DeviceType.CPU, 1000, 5000),
        seen("forward", DeviceType.CUDA, 0, 5000, is_range=True),
        seen("backward", DeviceType.CPU, 2000, 0),
        seen("optimizer", DeviceType.CPU, 500, 1000),
        seen("nccl:all_reduce", DeviceType.CPU, 30, 2000),
        seen("nccl:all_reduce", DeviceType.CUDA, 0, 2000, is_range=True),
        seen("ncclDevKernel_AllReduce_Sum_f32", DeviceType.CUDA, 0, 2000),
    ]
    rows = {line[:16].strip(): line[16:].split() for line in table(events, device_times(timers), 0.016, 1)}
    assert [rows[label][1] for label in ("forward", "backward", "optimizer")] == ["5.000", "10.000", "1.000"]
    assert rows["communication"][:2] == ["0.030", "2.000"]
    on_host = {line[:16].strip(): line[16:].split() for line in table(events, {}, 0.016, 1)}
    assert on_host["forward"] == ["1.000", "6%"]


# ---------------------------------------------------------------------- words

_SAID = {
    "torch.AcceleratorError: CUDA error: out of memory": "memory is full",
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.": "memory is full",
    "RuntimeError: cuDNN error: CUDNN_STATUS_ALLOC_FAILED": "memory is full",
    "RuntimeError: CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`": "memory is full",
    "RuntimeError: MPS backend out of memory (MPS allocated: 9 GB)": "memory is full",
    "RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory": "fewer data.workers",
    "torch.AcceleratorError: CUDA error: device-side assert triggered": "--debug finds the one at fault",
    "DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:3690, unhandled system error\nLast error:\nError while "
    "creating shared memory segment /dev/shm/nccl-W5Y8nA (size 9637888), error: No space left on device (28)": (
        "--shm-size"
    ),
    "RuntimeError: Deterministic behavior was enabled, but this operation is not deterministic because it uses CuBLAS. "
    "You must set an environment variable before running your PyTorch application: CUBLAS_WORKSPACE_CONFIG=:4096:8": (
        "before Python starts"
    ),
    "RuntimeError: adaptive_avg_pool2d_backward_cuda does not have a deterministic implementation, but you set": (
        "device.deterministic"
    ),
    "torch.AcceleratorError: CUDA error: no kernel image is available for execution on the device": "this build",
    "torch.AcceleratorError: CUDA error: all CUDA-capable devices are busy or unavailable": "nvidia-smi shows who",
    "torch.AcceleratorError: CUDA error: CUDA-capable device(s) is/are busy or unavailable": "nvidia-smi shows who",
    "torch.AcceleratorError: CUDA error: invalid device ordinal": "CUDA_VISIBLE_DEVICES",
    "RuntimeError: Expected all tensors to be on the same device, but got mat2 is on cpu, different from other": (
        "register_buffer"
    ),
    "RuntimeError: Cannot re-initialize CUDA in forked subprocess. To use CUDA with multiprocessing": "data.workers=0",
    "RuntimeError: Error: accessing tensor output of CUDAGraphs that has been overwritten by a subsequent": "clone()",
    "torch.AcceleratorError: CUDA error: uncorrectable ECC error encountered": "--exclude",
    "torch.AcceleratorError: CUDA error: an illegal memory access was encountered": "--debug",
    "torch.AcceleratorError: CUDA error: unknown error": "--debug",
}


@pytest.mark.parametrize("said", _SAID)
def test_there_is_a_hint_for_what_people_meet_on_gpus(said: str) -> None:
    hint = hint_for(Failure(said))
    assert hint is not None
    assert _SAID[said] in hint


def test_nccl_s_watchdog_blames_nobody_who_only_waited() -> None:
    log = (
        "[rank0]:[E1129 13:00:00.1 ProcessGroupNCCL.cpp:684] [Rank 0] Watchdog caught collective operation timeout: "
        "WorkNCCL(SeqNum=42, OpType=ALLREDUCE) ran for 1800010 milliseconds before timing out.\nmore\n"
    )
    failure = of_exit(-6, log=log)
    assert failure.is_aftermath
    assert "another rank did not come" in failure.what
    assert "launch.stall" in (hint_for(failure) or "")
    assert not of_exit(-6, log="Aborted").is_aftermath
    assert not of_exit(-11, log=log).is_aftermath


def _driver(folder: Path, *models: str, version: str = "535.129.03") -> Path:
    for number, model in enumerate(models):
        place = folder / "gpus" / f"0000:0{number}:00.0"
        place.mkdir(parents=True)
        (place / "information").write_text(f"Model: \t\t {model}\nIRQ: 12\n")
    folder.mkdir(exist_ok=True)
    (folder / "version").write_text(f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {version}  Thu Nov\nGCC 12\n")
    return folder


def test_gpus_that_torch_cannot_see_are_told_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpus.of_machine(_driver(tmp_path / "a", "NVIDIA H200", "NVIDIA H200")) == ["NVIDIA H200"] * 2
    files = tmp_path / "dev"
    files.mkdir()
    assert gpus.of_machine(tmp_path / "none", files) == []
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "nvidia-caps"):
        (files / name).touch()
    assert len(gpus.of_machine(tmp_path / "none", files)) == 2  # in a container without /proc/driver
    monkeypatch.setattr(gpus, "of_machine", lambda: ["NVIDIA H200"])
    monkeypatch.setattr(device, "found", lambda: None)
    for cuda, value, words in (
        (None, "0", "a build without CUDA"),
        ("13.0", "", "CUDA_VISIBLE_DEVICES='' hides them"),
        ("13.0", "-1", "hides them"),
        ("13.0", "0", "is the driver older"),
    ):
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        with pytest.raises(UsageError, match=words):
            device.use_cpu(World(), cpu=False)
        assert device.use_cpu(World(), cpu=True)


@pytest.mark.parametrize(
    ("cuda", "value", "asked", "is_told"),
    [
        ("13.0", "", False, True),
        ("13.0", "-1", False, True),
        ("13.0", "", True, False),
        ("13.0", "0", False, False),
        (None, "", False, False),
    ],
)
def test_a_run_on_the_cpu_names_the_variable_that_may_be_why(
    monkeypatch: pytest.MonkeyPatch, cuda: str | None, value: str, asked: bool, is_told: bool
) -> None:
    monkeypatch.setattr(gpus, "of_machine", list)  # a container that shows nothing of them
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    with device.open_device(schema.Device(), World(), cpu=asked) as here:
        assert (f"on the CPU: CUDA_VISIBLE_DEVICES={value!r} hides any GPU" in here.notes) is is_told


@pytest.mark.parametrize(
    ("setting", "is_begun", "words"),
    [
        (None, False, ""),
        (None, True, "has used its GPU already"),  # a notebook's cell before
        (":16:8", True, ""),
        (":0:0", False, "is ':0:0'"),
    ],
)
def test_deterministic_products_are_asked_for_in_time_or_refused(
    monkeypatch: pytest.MonkeyPatch, setting: str | None, is_begun: bool, words: str
) -> None:
    name = "CUBLAS_WORKSPACE_CONFIG"
    monkeypatch.setenv(name, setting or "")
    if setting is None:
        monkeypatch.delenv(name)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: is_begun)
    kernels.settle_workspace(schema.Device())
    assert os.environ.get(name) == setting
    if not words:
        kernels.settle_workspace(schema.Device(deterministic=True))
        assert os.environ[name] == (setting or ":4096:8")
        return
    with pytest.raises(UsageError, match=f"{words}.*before Python starts") as refused:
        kernels.settle_workspace(schema.Device(deterministic=True))
    assert "\n" not in str(refused.value)


class Runtime:
    """CUDA's own, as torch passes it on: what is page-locked, by its address."""

    def __init__(self, code: int = 0):
        self.code, self.locked = code, dict[int, int]()

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:  # noqa: N802  # as CUDA names it
        if not self.code:
            self.locked[address] = size
        return self.code

    def cudaHostUnregister(self, address: int) -> int:  # noqa: N802  # as CUDA names it
        del self.locked[address]
        return 0


@pytest.mark.parametrize("code", [0, 2])
def test_memory_is_page_locked_to_the_byte_and_let_go_with_its_last_user(code: int) -> None:
    runtime = Runtime(code)
    memory = kind.Kind(CPU, SimpleNamespace(cudart=lambda: runtime)).pinned(3_000_001)
    assert memory.numel() == memory.untyped_storage().nbytes() == 3_000_001
    assert runtime.locked == ({} if code else {memory.data_ptr(): 3_000_001})
    part = torch.from_numpy(memory.numpy()[512:1024])  # as the arena hands it out
    del memory
    gc.collect()
    assert len(runtime.locked) == (not code)
    del part
    gc.collect()
    assert runtime.locked == {}


def test_cuda_graphs_are_told_where_a_step_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: begun.append(1))
    monkeypatch.setattr(torch, "compile", lambda module, mode: module)
    for mode in ("reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"):
        recipe = load_recipe(TINY, [f"device.compile={mode}", "data.workers=0", "launch.threads=1"])
        builder = Builder(recipe)
        data = open_run_data(recipe, builder, World())
        with device.open_device(recipe.device, World(), cpu=True, launch=recipe.launch) as here:
            state = build_run_state(recipe, builder, build_run_model(recipe, builder, here), here, data)
            warm_up(state)
    assert len(begun) == 2


def test_an_apple_gpu_takes_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "found", lambda: torch.device("mps"))
    assert not device.use_cpu(World(), cpu=False)
    with pytest.raises(UsageError, match="--processes 1"):
        device.use_cpu(World(size=2), cpu=False)
    for number in (1, 3):
        monkeypatch.setattr(kind, "count", lambda number=number: number)
        assert supervisor.choose_processes(None, cpu=False) == number
        with pytest.raises(UsageError, match=f"shows {number} GPU"):
            supervisor.choose_processes(4, cpu=False)


def test_sums_are_as_wide_as_the_device_has_numbers() -> None:
    def refuses(*_: Any, **__: Any) -> Any:
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")

    assert kind.kind_of(CPU).wide is torch.float64
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch, "zeros", refuses)
        assert kind.Kind(torch.device("mps"), SimpleNamespace()).wide is torch.float32
    kind._has_float64.cache_clear()


def test_several_rtx_40_under_an_old_driver_go_through_host_memory(tmp_path: Path) -> None:
    old, new = "535.129.03", "550.54.14"
    pair = ("NVIDIA GeForce RTX 4090", "NVIDIA GeForce RTX 4090")
    assert gpus.without_p2p(_driver(tmp_path / "old", *pair, version=old))
    assert not gpus.without_p2p(_driver(tmp_path / "new", *pair, version=new))
    assert not gpus.without_p2p(_driver(tmp_path / "one", pair[0], version=old))
    assert not gpus.without_p2p(_driver(tmp_path / "others", "NVIDIA H100", "NVIDIA H100", version=old))


SMI = (
    "0, GPU-aaaa-1, NVIDIA H200, 140000, 143771, Default, 570.1\n"
    "1, GPU-bbbb-2, NVIDIA H200, 900, 143771, Exclusive_Process, 570.1\n"
    "2, GPU-cccc-3, NVIDIA GB10, [N/A], [N/A], Default, 570.1\n"
    "No devices were found\n"
)


def test_the_doctor_asks_the_driver_and_opens_no_context() -> None:
    cards = smi.cards(SMI)
    assert [card.index for card in cards] == ["0", "1", "2"]
    assert (cards[0].free, cards[1].mode, cards[2].free) == (140_000, "Exclusive_Process", 0)
    for names, seen in (
        (None, "012"),
        (["1", "0"], "10"),
        (["GPU-bb"], "1"),
        (["MIG-4c1f/3/0"], "012"),
        ([], ""),
    ):
        assert "".join(card.index for card in smi.visible(cards, names)) == seen
    assert smi.cards(None) == []


def test_a_model_that_was_trained_in_fp16_is_evaluated_on_a_cpu() -> None:
    trained = schema.Device(precision="fp16", sync_batchnorm=True)
    with pytest.raises(UsageError, match="needs a GPU"):
        device.check_device(trained, World(), on_cpu=True)
    device.check_device(evaluated_on(trained, World(), on_cpu=True), World(), on_cpu=True)
    assert evaluated_on(trained, World(), on_cpu=False) == trained
    assert evaluated_on(schema.Device(precision="bf16"), World(), on_cpu=True).precision == "bf16"


def taken(local_rank: int, visible: int) -> str:
    """What Accelerate takes for a process, where so many GPUs are visible, with a group that is only pretended."""
    import accelerate.state
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    os.environ.update(RANK=str(local_rank), WORLD_SIZE="4", LOCAL_RANK=str(local_rank), LOCAL_WORLD_SIZE="4")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29999")
    join: Any = dist.init_process_group
    store = FakeStore()
    pretended: dict[str, Any] = {
        "is_available": lambda: True,
        "device_count": lambda: visible,
        "set_device": lambda chosen: None,
    }
    for name, function in pretended.items():
        setattr(torch.cuda, name, function)
    dist.init_process_group = lambda backend=None, **_: join("fake", rank=local_rank, world_size=4, store=store)
    with internals.peer_access_settled():
        return str(accelerate.state.PartialState().device)


@pytest.mark.parametrize(
    ("local_rank", "names"), [(1, ["0", "1", "2", "3"]), (3, ["MIG-4c/1/0"]), (2, ["GPU-a", "GPU-b"])]
)
def test_accelerate_takes_the_gpu_that_is_said(local_rank: int, names: list[str]) -> None:
    (chosen,) = in_world(1, taken, local_rank, len(names))
    assert names[int(chosen.removeprefix("cuda:"))] == gpus.taken_by(local_rank, names)
