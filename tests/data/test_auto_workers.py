"""How many workers are chosen, and that nothing that is read depends on it."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler

from launcher.data import auto_workers
from launcher.data.auto_workers import Measured
from launcher.data.loaders import EvaluationLoader, TrainLoader
from launcher.data.transport import Slot
from launcher.errors import LauncherError
from tests.data.test_loaders import Augmented, loader_of


class Ticking:
    """A clock that goes on when it is told."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("reading", "computing", "workers"),
    [(0.01, 0.09, 0), (0.03, 0.1, 1), (0.1, 0.1, 2), (0.3, 0.1, 4), (5.0, 0.1, 6), (0.001, 0.01, 0)],
)
def test_as_many_as_it_takes_to_read_a_step_while_one_is_computed(
    reading: float, computing: float, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Ticking()
    monkeypatch.setattr(auto_workers, "time", clock)
    measured = Measured(6)
    steps = 0
    while not measured.is_enough:
        with measured:
            clock.now += reading if steps > 1 else 60  # the first steps are slow, whatever they read
        clock.now += computing
        steps += 1
    assert measured.choice()[0] == workers
    assert f"{reading / (reading + computing):.0%} of a step" in measured.choice()[1]


def read(loader: TrainLoader, wait: float, start: int = 0) -> list[Any]:
    batches = []
    for step in loader.steps(start, 12):
        time.sleep(wait)
        batches += [batch.data for batch in step]
    return batches


def test_nothing_that_is_read_depends_on_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto_workers, "_SECONDS", 0.0)
    monkeypatch.setattr(auto_workers, "_SMALL", 0.0)  # workers are chosen in any case
    measured, plain = loader_of(Augmented()), loader_of(Augmented())
    measured.measure_workers(2)
    for ours, expected in zip(read(measured, 0.001), read(plain, 0), strict=True):
        assert all(map(torch.equal, ours, expected))
    assert (measured.num_workers, measured.reading.workers) in ((1, 1), (2, 2))
    assert "from now on" in measured.news()
    assert not measured.news()


def test_a_run_that_ends_while_it_is_measured_has_all_its_steps() -> None:
    loader = loader_of(Augmented())
    loader.measure_workers(4)
    assert len(read(loader, 0, start=9)) == 3
    assert loader.reading.workers == 0


def test_loaders_are_torch_s_by_type_and_say_what_they_do() -> None:
    loader = loader_of(Augmented(), workers=2)
    assert isinstance(loader, DataLoader)
    assert isinstance(loader.batch_sampler, DistributedSampler)
    assert (loader.dataset, loader.num_workers, loader.timeout) == (loader.dataset, 2, 600.0)
    assert len(loader) == 3
    loader.sampler.set_epoch(1)
    batches = list(loader)
    assert [len(indices) for indices, _ in batches] == [8, 8, 7]
    plain = [batch.data for step in loader_of(Augmented()).steps(3, 6) for batch in step]
    for (_, noise), (_, expected) in zip(batches, plain, strict=True):
        assert torch.equal(noise, expected)
    evaluation = EvaluationLoader(Augmented(), 5, loader.reading)
    assert isinstance(evaluation, DataLoader)
    assert len(evaluation) == len(list(evaluation)) == 5
    evaluation.close()


# --- what a batch travels in ---

VIEWS: dict[str, torch.Tensor] = {
    "plain": torch.rand(3, 4),
    "none": torch.empty(0, 3),
    "one": torch.tensor(3.5),
    "transposed": torch.rand(3, 4).t(),
    "channels last": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "every other": torch.arange(20)[3::2],
    "expanded": torch.rand(3, 1).expand(3, 5),
    "half": torch.rand(3).to(torch.bfloat16),
    "eight bits": torch.rand(3).to(torch.float8_e4m3fn),
    "truths": torch.rand(5) > 0.5,
    "complex": torch.rand(3, dtype=torch.complex64),
    "conjugated": torch.rand(3, dtype=torch.complex64).conj(),
    "sparse": torch.eye(3).to_sparse(),
    "leaf": torch.rand(3, requires_grad=True),
    "a parameter": torch.nn.Parameter(torch.rand(2)),
}


@pytest.mark.parametrize("name", VIEWS)
def test_a_tensor_arrives_as_it_was(name: str) -> None:
    slot, value = Slot(), VIEWS[name]
    slot.answer([value, {"again": value}])
    is_batch, (first, second) = slot.answered()
    assert is_batch
    assert first is second["again"]  # one thing stays one
    assert (type(first), first.dtype, first.layout, first.requires_grad) == (
        type(value),
        value.dtype,
        value.layout,
        value.requires_grad,
    )
    if value.layout is torch.strided:
        assert (first.stride(), first.is_conj()) == (value.stride(), value.is_conj())
    slot.answer([torch.zeros(3, 4)])  # what was taken out has memory of its own
    slot.answered()
    assert torch.equal(comparable(first), comparable(value))


def comparable(tensor: torch.Tensor) -> torch.Tensor:
    dense = tensor.detach().to_dense()
    return torch.view_as_real(dense.resolve_conj()) if dense.is_complex() else dense.float()


def test_a_slot_grows_with_what_it_holds_and_goes_on() -> None:
    slot = Slot()
    for size in (10, 100_000, 3, 3_000_000, 50):
        slot.ask(7, torch.arange(size).numpy())
        epoch, indices = slot.asked()
        assert (epoch, len(indices), int(indices[-1])) == (7, size, size - 1)
        slot.answer({"x": torch.arange(size), "words": "ä" * size, "array": torch.arange(size).numpy()})
        _, batch = slot.answered()
        slot.ask(0, torch.zeros(size, dtype=torch.int64).numpy())
        assert torch.equal(batch["x"], torch.arange(size))
        assert (len(batch["words"]), batch["array"].sum()) == (size, size * (size - 1) // 2)


def large(samples: list[Any]) -> Any:
    return torch.full((1_200_000,), float(len(samples))), len(samples)


def refuses(samples: list[Any]) -> Any:
    return (part for part in samples)


def test_batches_larger_than_a_slot_come_from_a_worker() -> None:
    batches = read(loader_of(Augmented(), workers=1, collate=large), 0)
    assert [float(values[-1]) for values, _ in batches] == [8, 8, 7] * 4


def test_what_cannot_leave_a_worker_is_said() -> None:
    with pytest.raises(
        LauncherError, match=r"a batch cannot leave a worker process: TypeError: .*generator.*; drop it"
    ):
        read(loader_of(Augmented(), workers=1, collate=refuses), 0)
