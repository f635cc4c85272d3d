"""What a step costs besides computing, counted and not timed: `scripts/benchmark` measures."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
import pytest
import torch
from recipes.parts import Net, WholeNumbers
from tiers import rounds
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from worlds import TINY, in_world

import launcher
from launcher.data.sampler import StepSampler, describe_shares
from launcher.training.nonfinite import NonFiniteError, NonFiniteGuard

FEWER_CALLS = 14  # of Python functions in one step than in the bare loop: Adam's own Python is not called
SEEDING = 5  # more of them where two more generators are seeded
GROWTH_BYTES = 4 * 2**20  # over thousands of steps: what an allocator does, less than one number a step kept would be
FULL = (  # every feature that looks at each step
    "train.clip_grad_norm=1.0",
    "train.ema=0.99",
    "track.every=10 steps",
)


class Marked(WholeNumbers):
    """Calls `at` with the number of each batch that is read."""

    def __init__(self, at: Callable[[int], None]):
        super().__init__(6_400)  # an epoch of 400 steps
        self.at = at
        self.reads = 0

    def get_batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Many samples at once."""
        self.reads += 1
        self.at(self.reads)
        return super().get_batch(indices)


def run(folder: Path, steps: int, at: Callable[[int], None], *overrides: str, model: nn.Module | None = None) -> None:
    said = ("launch.threads=1", f"train={{steps: {steps}}}", "track.every=1000000 steps", "scheduler.T_max=10")
    launcher.train(TINY, *said, *overrides, run_dir=folder, cpu=True, output="quiet", train=Marked(at), model=model)


class Calls:
    """Counts calls of Python functions between two batches."""

    def __init__(self, first: int, last: int):
        self.first, self.last, self.count = first, last, 0

    def at(self, batch: int) -> None:
        if batch == self.first:
            sys.setprofile(self._see)
        elif batch == self.last:
            sys.setprofile(None)

    def _see(self, frame: FrameType, event: str, argument: Any) -> None:
        self.count += event == "call"

    @property
    def a_step(self) -> float:
        """On an average."""
        return self.count / (self.last - self.first)


def bare_loop(steps: int, at: Callable[[int], None], model: nn.Module) -> None:
    """The floor: rows sliced in place, a fused optimizer, a schedule, and nothing else."""
    data = Marked(at)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
    rows = torch.arange(16)
    for _ in range(steps):
        inputs, targets = data.get_batch(rows)
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


@pytest.mark.parametrize("is_own", [False, True])
def test_a_step_calls_fewer_functions_than_the_bare_loop(tmp_path: Path, is_own: bool) -> None:
    """A model of torch's layers alone draws from torch alone; for a user's own, three generators are seeded."""
    bare, ours = Calls(20, 120), Calls(20, 120)
    model = Net() if is_own else Net().layers
    bare_loop(125, bare.at, model)
    run(tmp_path / "run", 125, ours.at, model=model)
    assert 0 < ours.a_step < bare.a_step - FEWER_CALLS + SEEDING * is_own


class Syncs(TorchDispatchMode):
    """Counts the operations for which a host waits for its device: a number or a mask is read from it."""

    READING = ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select", "item")

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch left its types out
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in self.READING:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: what is read at once on a CPU, where nobody waits for it, is read before something is kept."""

    def as_on_a_gpu(self: NonFiniteGuard, *how: Any, **more: Any) -> None:
        made(self, *how, **more)
        self._read_now = False

    made = NonFiniteGuard.__init__
    monkeypatch.setattr(NonFiniteGuard, "__init__", as_on_a_gpu)


@pytest.mark.parametrize("overrides", [(), FULL, ("data.micro_batch_size=8",)], ids=["plain", "full", "accumulated"])
def test_a_step_does_not_make_the_host_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...]
) -> None:
    later(monkeypatch)
    syncs, looking, before = Syncs(), ExitStack(), 40 if "accumulated" not in overrides else 80

    def at(batch: int) -> None:
        if batch == before:
            looking.enter_context(syncs)
        elif batch == before + 6:  # the next line of metrics.jsonl reads what was copied for the last one
            looking.close()

    run(tmp_path / "run", 60, at, *overrides)
    assert syncs.found == []


def test_the_first_step_without_finite_gradients_is_named_though_nobody_waited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exploding = ("model={_target_: parts.py:Exploding, limit: 2.0}", "save.every=5 steps", "launch.threads=1")
    said = []
    for name in ("at once", "later"):
        with pytest.raises(NonFiniteError) as caught:
            launcher.train(TINY, *exploding, run_dir=tmp_path / name, cpu=True, output="quiet")
        said.append(str(caught.value))
        later(monkeypatch)
    assert said[0] == said[1]
    kept = sorted(path.name for path in (tmp_path / "later" / "checkpoints").glob("step-*"))
    assert all(int(name.removeprefix("step-")) <= int(said[0].split()[1].rstrip(":")) for name in kept)


def grown(folder: str, steps: int) -> tuple[int, int]:
    """Bytes and objects more after so many steps."""
    seen: dict[int, tuple[int, int]] = {}

    def at(batch: int) -> None:
        if batch in (2_000, 2_000 + steps):
            gc.collect()
            seen[batch] = psutil.Process().memory_info().rss, len(gc.get_objects())

    run(Path(folder), 2_010 + steps, at, *FULL, "track.every=100 steps")
    (before, objects_before), (after, objects_after) = seen[2_000], seen[2_000 + steps]
    return after - before, objects_after - objects_before


@rounds("steps", plain=[2_500], long=[10_000])
def test_memory_does_not_grow_over_thousands_of_steps(tmp_path: Path, steps: int) -> None:
    ((grown_bytes, objects),) = in_world(
        1, grown, str(tmp_path / "run"), steps
    )  # where no other test has left anything
    assert grown_bytes < GROWTH_BYTES
    assert objects < steps / 10


WORLDS = ((1, 10**4), (64, 10**9), (16_384, 10**12))


def test_a_step_of_a_huge_world_is_found_by_as_few_calls_as_of_a_small_one() -> None:
    counts = []
    for ranks, samples in WORLDS:
        calls = Calls(1, 2)
        calls.at(1)
        sampler = StepSampler(range(samples), global_batch_size=32 * ranks, rank=ranks // 2, world_size=ranks)
        shares = sampler.shares(sampler.steps_per_epoch // 2)
        describe_shares(sampler, ranks)
        calls.at(2)
        assert [share.samples for share in shares] == [32]
        counts.append(calls.count)
    assert max(counts[1:]) <= counts[0] + 20  # a walk around the cycle of the permutation may take a turn more
