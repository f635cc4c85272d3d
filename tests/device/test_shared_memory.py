"""Gradients added up in memory that ranks share: the same sum on every rank, and no waiting for the dead."""

from __future__ import annotations

import os
import random
import resource
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from worlds import TINY, Command, in_world, result_of, survivors, train_here

from launcher.device.coordination import Coordinator, packed, unpacked
from launcher.device.memory import SLOT_BYTES, Memory
from launcher.device.shared_memory import shared_memory
from launcher.errors import PeerError
from launcher.world.world import World

pytestmark = pytest.mark.torch_internals
IN_A_SLOT = SLOT_BYTES // 4  # of float32


def opened(rank: int, size: int, seconds: float = 30.0) -> Any:
    """The ranks' memory, in a process group of their own."""
    dist.init_process_group("gloo")
    return shared_memory(
        World(rank=rank, size=size, local_rank=rank, local_size=size), Coordinator(rank, size), seconds
    )


def here() -> tuple[int, int]:
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def numbers(rank: int, length: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(length, generator=torch.Generator().manual_seed(rank), dtype=torch.float64).to(dtype)


def sums(lengths: list[int], dtype: torch.dtype) -> bytes:
    rank, size = here()
    with opened(rank, size) as memory:
        assert isinstance(memory, Memory)
        found = [numbers(rank, length, dtype) for length in lengths]
        for one in found:
            memory.add_up(one)
    dist.destroy_process_group()
    return packed(found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64], ids=str)
@pytest.mark.parametrize("size", [2, 3])
def test_every_rank_gets_the_same_sum(size: int, dtype: torch.dtype) -> None:
    lengths = [1, 2, 1_000, IN_A_SLOT - 1, IN_A_SLOT, IN_A_SLOT + 1, 3 * IN_A_SLOT + 7]
    results = map(unpacked, in_world(size, sums, lengths, dtype))
    for length, *found in zip(lengths, *results, strict=True):
        parts = [numbers(rank, length, dtype) for rank in range(size)]
        total = sum(parts[1:], start=parts[0])  # in the order of the ranks
        assert all(torch.equal(one, total) for one in found)


def sums_of_many_rounds() -> list[float]:
    rank, size = here()
    generator = random.Random(rank)
    found = []
    with opened(rank, size) as memory:
        for number in range(400):
            if generator.random() < 0.1:
                time.sleep(generator.random() * 0.01)  # late, sometimes by more than the others spin
            one = torch.full((1 + 37 * number % 500,), float(number * size + rank))
            memory.add_up(one)
            assert one.unique().numel() == 1
            found.append(float(one[0]))
    dist.destroy_process_group()
    return found


def test_a_rank_may_be_late_and_nothing_is_mixed_up() -> None:
    expected = [number * 9 + 3.0 for number in range(400)]
    assert in_world(3, sums_of_many_rounds) == [expected] * 3


class Mixed(nn.Module):
    """Parameters of two types, one of which may have a sparse gradient."""

    def __init__(self, sparse: bool = False) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 4, sparse=sparse)
        self.first = nn.Linear(4, 300_000 // 4)  # more than a slot
        self.second = nn.Linear(300_000 // 4, 2, dtype=torch.float64)

    def forward(self, indices: Tensor) -> Tensor:
        return torch.as_tensor(self.second(self.first(self.table(indices)).double()))


def weights_after_steps(in_memory: bool, sparse: bool) -> bytes:
    rank, size = here()
    torch.set_num_threads(1)
    with opened(rank, size) as memory:
        torch.manual_seed(0)
        model = Mixed(sparse)
        wrapped = DistributedDataParallel(model, gradient_as_bucket_view=True)
        if in_memory:
            memory.serve(wrapped)
        optimizer = torch.optim.SGD(model.parameters(), 1e-3)
        for step in range(4):
            with wrapped.no_sync():
                wrapped(torch.tensor([step, 1])).square().mean().backward()
            wrapped(torch.tensor([step, rank])).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    dist.destroy_process_group()
    return packed(list(model.parameters()))


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_ddp_trains_as_it_does_over_gloo(sparse: bool) -> None:
    ours, others = map(unpacked, in_world(2, weights_after_steps, True, sparse))
    gloos, _ = map(unpacked, in_world(2, weights_after_steps, False, sparse))
    for one, other, gloo in zip(ours, others, gloos, strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one, gloo)  # two ranks have one order only, and halving is exact


def waits_for_one_that_ends() -> tuple[str, float]:
    rank, size = here()
    with opened(rank, size) as memory:
        memory.add_up(torch.ones(3))
        if rank == 1:
            os.kill(os.getpid(), 9)
        began = time.monotonic()
        with pytest.raises(PeerError) as caught:
            memory.add_up(torch.ones(3))
        return str(caught.value), time.monotonic() - began


def test_a_rank_that_was_killed_is_not_waited_for() -> None:
    for said, seconds in survivors(3, waits_for_one_that_ends, lost=1, within=10):
        assert said == "rank 1 ended while this rank waited for it"
        assert seconds < 10


def waits_too_long() -> str:
    rank, size = here()
    with opened(rank, size) as memory:
        if rank == 0:
            with pytest.raises(RuntimeError, match="Timed out waiting 200ms for the gradients of rank 1"):
                memory.add_up(torch.ones(3), timeout_seconds=0.2)
        dist.barrier()
    dist.destroy_process_group()
    return "over"


def test_a_rank_that_lives_and_does_not_come_is_given_up_after_the_timeout() -> None:
    assert in_world(2, waits_too_long) == ["over", "over"]


def waits_as_long_as_it_takes() -> list[float]:
    rank, size = here()
    with opened(rank, size, seconds=0.2) as memory:
        coordinator = Coordinator(rank, size, memory=memory)
        if rank == 1:
            time.sleep(1)
        total = coordinator.sum(torch.tensor([1.0 + rank, 5.0], dtype=torch.float64)).result()
    dist.destroy_process_group()
    return [float(one) for one in total]


def test_counts_are_waited_for_as_long_as_it_takes() -> None:
    assert in_world(2, waits_as_long_as_it_takes) == [[3.0, 10.0]] * 2


def large_half_gradients() -> list[float]:
    rank, size = here()
    with opened(rank, size) as memory:
        model = nn.Linear(1, 1, bias=False, dtype=torch.float16)
        wrapped = DistributedDataParallel(model)
        memory.serve(wrapped)
        (wrapped(torch.ones(1, 1, dtype=torch.float16)) * 200.0).mul(200.0).sum().backward()
    dist.destroy_process_group()
    assert model.weight.grad is not None
    return [float(one) for one in model.weight.grad.flatten()]


def test_a_mean_of_half_precision_may_be_of_numbers_whose_sum_is_too_large() -> None:
    assert in_world(2, large_half_gradients) == [[40_000.0]] * 2


def trained_again_and_again() -> int:
    for number in range(6):
        assert train_here(f"run{number}", ("train={steps: 2}",)) == "finished"
    return number


def test_a_world_whose_store_is_rank_0_s_trains_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert in_world(2, trained_again_and_again) == [5, 5]


def has_others() -> str:
    rank, size = here()
    with opened(rank, size) as memory, pytest.raises(RuntimeError) as caught:
        memory.add_up(torch.ones(3 + rank))
    dist.destroy_process_group()
    return str(caught.value)


def test_gradients_of_another_size_are_refused() -> None:
    first, second = in_world(2, has_others)
    assert first.startswith("rank 1 has gradients of 16 bytes where rank 0 has 12:")
    assert second.startswith("rank 0 has gradients of 12 bytes where rank 1 has 16:")


def without_memory(limited: int, limit: int, most: int | None) -> bool:
    """Whether there is none where one rank has a limit, by the system's own means."""
    rank, size = here()
    context = opened(rank, size)
    before = resource.getrlimit(limit)
    if rank == limited:
        resource.setrlimit(limit, (len(os.listdir("/proc/self/fd")) - 1 if most is None else most, before[1]))
    try:
        with context as memory:
            resource.setrlimit(limit, before)
            dist.barrier()
    finally:
        resource.setrlimit(limit, before)
    dist.destroy_process_group()
    return memory is None


@pytest.mark.parametrize(
    ("limited", "limit", "most"),
    [(0, resource.RLIMIT_FSIZE, SLOT_BYTES), (0, resource.RLIMIT_NOFILE, None), (1, resource.RLIMIT_NOFILE, None)],
    ids=["too little memory", "rank 0 cannot open", "rank 1 cannot open"],
)
def test_where_a_rank_has_no_such_memory_none_uses_it(limited: int, limit: int, most: int | None) -> None:
    before = set(Path("/dev/shm").glob("launcher_tmp_*"))
    assert in_world(2, without_memory, limited, limit, most) == [True, True]
    left, deadline = set(Path("/dev/shm").glob("launcher_tmp_*")) - before, time.monotonic() + 10
    while any(file.exists() for file in left):  # of tests beside this one, for a moment
        assert time.monotonic() < deadline, f"left behind: {left}"


def names_of_open_files() -> list[str]:
    rank, size = here()
    with opened(rank, size) as memory:
        memory.add_up(torch.ones(1))
        dist.barrier()  # rank 0 has taken the name away by now
        found = [os.readlink(entry) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
    dist.destroy_process_group()
    return [name for name in found if "/launcher_tmp_" in name]


def test_the_file_has_no_name_while_it_is_used() -> None:
    for names in in_world(2, names_of_open_files):
        assert names
        assert all(name.endswith(" (deleted)") for name in names)


def test_ranks_on_several_machines_have_none() -> None:
    world = World(rank=0, size=4, local_rank=0, local_size=2, nodes=2)
    with shared_memory(world, Coordinator(0, 1), 1.0) as memory:
        assert memory is None


def test_a_recipe_can_leave_it_to_gloo(tmp_path: Path) -> None:
    for shared, is_said in (("true", True), ("false", False)):
        settings = ("--processes", "3", "launch.threads=1", f"device.ddp.shared_memory={shared}")
        done = Command(tmp_path, "train", str(TINY), "--cpu", *settings, "--run-dir", shared).wait()
        assert done.code == 0, done.screen
        said = "3 processes, started by launcher, gradients in shared memory (device.ddp.shared_memory=false turns"
        assert (said in " ".join(done.screen.split())) is is_said
    assert result_of(tmp_path / "true").distance(result_of(tmp_path / "false")) < 1e-6
