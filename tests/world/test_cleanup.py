"""What a device says a second time, while something is put back, does not take the place of what it said first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from worlds import train_in_process

from launcher.device.kind import Kind
from launcher.evaluation.modes import evaluating, weights_of_evaluation
from launcher.evaluation.unmoved import Unmoved
from launcher.world.cleanup import afterwards
from launcher.world.failure import is_of_device, of_exception

VALIDATED = "data.validation={_target_: 'parts.py:Numbers', size: 23}"
ASSERT = "CUDA error: device-side assert triggered"


def broken(*_: Any) -> Any:
    raise RuntimeError(ASSERT)


class TwoWeights(torch.optim.SGD):
    """As schedule-free ones are."""

    def eval(self) -> None:
        """Those for evaluating."""

    def train(self) -> None:
        broken()


def _weights() -> AbstractContextManager[None]:
    return weights_of_evaluation(TwoWeights(nn.Linear(1, 1).parameters(), 0.1))


def _generator() -> AbstractContextManager[None]:
    module = SimpleNamespace(get_rng_state=lambda device: 0, set_rng_state=broken)
    return Kind(torch.device("cpu"), module).generator_restored()


def _modes() -> AbstractContextManager[None]:
    objective: Any = SimpleNamespace(brought={}, step=None, moves_weights=False)
    return evaluating(nn.Linear(1, 1), objective)


PLACES: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "plain": lambda: afterwards(broken),
    "weights": _weights,
    "generator": _generator,
    "modes": _modes,
}


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("first", [RuntimeError(ASSERT), ValueError("of a user"), KeyboardInterrupt()], ids=repr)
def test_the_first_error_is_the_one_that_is_raised(
    name: str, first: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Unmoved, "put_back", broken)
    with pytest.raises(type(first)) as raised, PLACES[name]():
        raise first
    assert raised.value is first
    with pytest.raises(RuntimeError, match="device-side"), PLACES[name]():
        pass  # alone it is told


def fails_twice(second: BaseException, cause: BaseException | None = None) -> Iterator[None]:
    try:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    finally:
        raise second from cause


@pytest.mark.parametrize(
    ("second", "cause", "told"),
    [
        (RuntimeError(ASSERT), None, "illegal memory access"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), None, "illegal memory access"),
        (ValueError("not of a device"), None, "not of a device"),
        (RuntimeError(ASSERT), ValueError("said to be why"), ASSERT),
    ],
)
def test_of_two_that_a_device_has_said_the_first_is_reported(
    second: BaseException, cause: BaseException | None, told: str
) -> None:
    """In somebody's own `finally` too."""
    with pytest.raises(type(second)) as raised:
        list(fails_twice(second, cause))
    assert told in of_exception(raised.value).what


@pytest.mark.parametrize(
    ("words", "is_broken"),
    [
        (ASSERT, True),
        ("HIP error: an illegal memory access was encountered", True),
        ("CUDA error: out of memory", False),
        ("CUDA out of memory. Tried to allocate 2.00 GiB", False),
        ("shapes cannot be multiplied", False),
    ],
)
def test_memory_that_is_full_is_no_broken_device(words: str, is_broken: bool) -> None:
    assert is_of_device(RuntimeError(words)) is is_broken


class Net(nn.Module):
    """Whose device breaks when it is evaluated, and says so from then on, whatever is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.out = nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.out(self.norm(points.float()))
        return scores if self.training else look_up(scores)


def look_up(scores: torch.Tensor) -> torch.Tensor:
    torch.Tensor.copy_ = broken  # type: ignore[assignment, method-assign]
    raise RuntimeError(ASSERT)


def test_an_evaluation_is_reported_where_it_failed(tmp_path: Path) -> None:
    copy = torch.Tensor.copy_
    said = ("launch.threads=1", f"model={{_target_: '{__file__}:Net'}}", "train.ema=0.5", VALIDATED)
    try:
        with pytest.raises(RuntimeError, match="device-side") as raised:
            train_in_process(tmp_path / "run", *said)
    finally:
        torch.Tensor.copy_ = copy  # type: ignore[method-assign]
    culprit = of_exception(raised.value).culprit
    assert culprit is not None
    assert culprit.function == "look_up"
