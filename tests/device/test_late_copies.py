"""Copies to host memory arrive late: whoever reads one before its event is waited for reads rubbish."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import pytest
import torch
from places import TINY

from launcher.checkpoints.arena import Arena
from launcher.checkpoints.format import Snapshot, verify
from launcher.checkpoints.saving import Saving
from launcher.data.loaders import MicroBatch
from launcher.device.coordination import Coordinator
from launcher.device.kind import Aside, Kind
from launcher.evaluation import metrics, predictions
from launcher.objective.batch import Evaluated
from launcher.objective.build import build_objective
from launcher.recipe import schema
from launcher.recipe.build import Builder
from launcher.recipe.load import load_recipe
from launcher.training.meter import Meter
from launcher.training.step import StepResult
from launcher.training.steps import StepBatch

RUBBISH = 171


class Late(torch.Tensor):
    """A tensor of a device whose copies arrive when somebody waits for an event behind them."""

    under_way: ClassVar[list[tuple[torch.Tensor, torch.Tensor]]] = []

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]  # torch's
        if getattr(func, "__name__", "") != "to" or not (kwargs or {}).get("non_blocking"):
            return result
        real = result.as_subclass(torch.Tensor)
        rubbish = torch.full_like(real, RUBBISH if real.dtype != torch.bool else 1)
        cls.under_way.append((rubbish, real.clone()))
        return rubbish


class Event:
    """Behind what is under way now."""

    def __init__(self) -> None:
        self._behind = list(Late.under_way)

    def synchronize(self) -> None:
        for place, real in self._behind:
            place.copy_(real)

    def elapsed_time(self, other: Event) -> float:
        return 250.0


class LateKind(Kind):
    """A device in host memory."""

    wide = torch.float64
    scrambled: Any = None  # the arena whose memory is written late

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"), module=torch.cpu)

    def mark(self) -> Event:
        return Event()

    def timer(self) -> Event:
        return Event()

    def peak_memory(self) -> int | None:
        return None

    def pinned(self, num_bytes: int) -> torch.Tensor:
        self.taken = torch.empty(num_bytes, dtype=torch.uint8)
        return self.taken

    def aside(self) -> Aside | None:
        return cast(Aside, LateAside(self))


class LateAside:
    """Its second stream, whose copies arrive when somebody waits for an event behind them."""

    def __init__(self, kind: LateKind):
        self._kind, self._log = kind, [""]

    @contextmanager
    def after_computing(self) -> Iterator[None]:
        yield
        Late.under_way.append((self._kind.taken, self._kind.taken.clone()))
        self._kind.taken.fill_(RUBBISH)

    def timer(self) -> Any:
        kind = self._kind

        class Timer(Event):
            def synchronize(self) -> None:
                self._behind = [pair for pair in Late.under_way if pair[0] is kind.taken]
                super().synchronize()

        return Timer()

    def before_computing(self, mark: Any) -> None:
        """The computing stream waits; the host computes at once here."""


def late(values: Any) -> Late:
    return torch.tensor(values).as_subclass(Late)


@pytest.fixture(autouse=True)
def _nothing_under_way(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    Late.under_way.clear()
    for module in (predictions, metrics):
        monkeypatch.setattr(module, "kind_of", lambda device: LateKind())
    yield
    Late.under_way.clear()


def test_the_meter_waits_for_the_numbers_of_a_line() -> None:
    device = SimpleNamespace(torch_device=torch.device("cpu"), kind=LateKind(), coordinator=Coordinator(0, 1))
    state: Any = SimpleNamespace(
        device=device, objective=SimpleNamespace(logs_scalars=False), update=SimpleNamespace(counts=[])
    )
    meter = Meter(state)
    meter._loss = meter._loss.as_subclass(Late)
    meter.add(StepResult([(late(2.5), 1.0)], late(0.5), [{}]), StepBatch([], [], 1.0, 1), 0.0)
    lines = meter.cut(1, 0.0, {"lr": 0.1}) + meter.flush()
    assert Late.under_way, "nothing was late: the test tests nothing"
    assert [(line["loss"], line["grad_norm"]) for line in lines] == [(2.5, 0.5)]
    assert (lines[0]["seconds"], lines[0]["samples_per_second"]) == (0.25, 4)  # by the device's clock


def test_predictions_wait_once_for_all_batches() -> None:
    recipe = load_recipe(TINY)
    objective = build_objective(Builder(recipe), recipe.loss, recipe.batch, recipe.train)
    seen = predictions.Predictions(objective)
    for first in (0, 2):
        outputs = late([[0.0, 3.0, 0.0], [5.0, 0.0, 0.0]])
        seen.see(Evaluated(None, None, (outputs,), (late([1, 2]),)), MicroBatch([None, torch.tensor([1, 2])], 2, first))
    assert Late.under_way, "nothing was late"
    columns = seen.columns(Coordinator(0, 1))
    assert columns is not None
    assert columns["index"].tolist() == [0, 1, 2, 3]
    assert columns["prediction"].tolist() == [1, 0, 1, 0]
    assert columns["target"].tolist() == [1, 2, 1, 2]
    assert columns["loss"] == pytest.approx([0.0949, 5.0133, 0.0949, 5.0133], abs=1e-3)


def test_a_metric_of_one_s_own_waits_before_it_computes() -> None:
    metric = metrics.Metric("own", metrics.OverSet(lambda numbers: float(numbers.sum()), parts=1))
    metric.reset(torch.device("cpu"))
    for number in (1.0, 2.0):
        metric.update([late([number])], [])
    assert Late.under_way, "nothing was late"
    assert metric.scores() == {"own": 3.0}
    (parts,) = metric.state()
    assert [part.item() for part in parts] == [1.0, 2.0]


def snapshot_of(weight: torch.Tensor, step: int) -> Snapshot:
    tied = weight[1:]
    return Snapshot({"weight": weight, "tied": tied}, {"optimizer": {"momentum": weight * 2}}, {"step": step})


def test_a_checkpoint_s_copy_is_made_in_memory_that_is_kept_and_arrives_late() -> None:
    arena, kind = Arena(kind := LateKind()), kind
    weight = torch.arange(6.0)
    copy = arena.copy(snapshot_of(weight, 1))
    assert int(copy.snapshot.weights["weight"].view(torch.uint8)[0]) == RUBBISH
    weight.add_(100)  # training goes on
    assert copy.arrived() == 0.25
    assert copy.snapshot.weights["weight"].tolist() == list(range(6))
    assert copy.snapshot.training["optimizer"]["momentum"].tolist() == [0, 2, 4, 6, 8, 10]
    copy.snapshot.weights["weight"][1] = 9.0
    assert copy.snapshot.weights["tied"][0] == 9.0  # tensors that share memory still do
    first, taken = copy.snapshot.weights["weight"].data_ptr(), arena.num_bytes
    copy = arena.copy(snapshot_of(weight, 2))
    copy.arrived()
    assert (copy.snapshot.weights["weight"].data_ptr(), arena.num_bytes) == (first, taken)
    written = io.BytesIO()
    torch.save(copy.snapshot.weights, written)  # of each storage its own part, and not the whole memory
    large = arena.copy(Snapshot({"large": torch.zeros(10_000)}, {}, {"step": 3}))
    large.arrived()
    assert len(written.getvalue()) < 3_000 < 40_000 <= arena.num_bytes


def test_what_is_written_is_what_was_trained(tmp_path: Path) -> None:
    weight, stalls = torch.arange(6.0), list[float]()
    (tmp_path / "run").mkdir()
    saving = Saving(
        schema.Save(background=True),
        tmp_path / "run" / "checkpoints",
        is_first=True,
        capture=lambda step: snapshot_of(weight, step),
        warn=pytest.fail,
        saved=lambda step, seconds, stall: stalls.append(stall),
        arena=Arena(LateKind()),
    )
    for step in (1, 2):
        saving.save(step)
        weight.add_(100)
    saving.wait()
    kept = [verify(tmp_path / "run" / "checkpoints" / f"step-0000000{step}").weights() for step in (1, 2)]
    assert [weights["weight"].tolist() for weights in kept] == [
        [float(number) for number in range(6)],
        [100.0 + number for number in range(6)],
    ]
    assert stalls == [0.25, 0.25]  # the device's own time
