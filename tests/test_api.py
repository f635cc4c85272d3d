"""`launcher.train` and its kin as people call them from Python: objects, names, slips."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from recipes.parts import Net, WholeNumbers
from torch import nn
from worlds import TINY, in_world

import launcher
from launcher.api import Result
from launcher.checkpoints.weights import read_weights

SETTINGS: dict[str, Any] = {
    "train": WholeNumbers(),
    "validation": WholeNumbers(size=23, seed=2),
    "loss": nn.CrossEntropyLoss(),
    "optimizer": partial(torch.optim.SGD, lr=0.5),
    "global_batch_size": 16,
    "epochs": 2,
    "cpu": True,
    "output": "quiet",
}


def trained(folder: Path, *overrides: str, **changes: Any) -> Result:
    """A run of objects alone."""
    torch.manual_seed(3)
    return launcher.train(None, "launch.threads=1", *overrides, run_dir=folder, **{"model": Net(), **SETTINGS, **changes})


# ---------------------------------------------------------------------- the module that comes back


WORST = ("evaluate={every: 2 steps, best: {metric: loss, mode: max}}", "save={every: 2 steps, final: best}")


def _schedule_free(parameters: Any) -> Any:
    import schedulefree

    return schedulefree.SGDScheduleFree(parameters, lr=0.5)


@pytest.mark.parametrize(
    ("overrides", "optimizer"),
    [(WORST, SETTINGS["optimizer"]), ((), _schedule_free), (WORST, _schedule_free), (("train.ema=0.9",), torch.optim.SGD)],
    ids=["best", "schedule-free", "both", "ema"],
)
def test_the_module_has_the_weights_that_were_written(
    tmp_path: Path, overrides: tuple[str, ...], optimizer: Callable[..., Any]
) -> None:
    for result in (trained(tmp_path / "run", *overrides, optimizer=optimizer) for _ in range(2)):  # the second is over
        assert not result.model.training
        written = read_weights(result.folder / "model_weights.pth")
        torch.testing.assert_close(result.model.state_dict(), written, rtol=0, atol=0)
        with torch.no_grad():
            outputs = result.model(SETTINGS["validation"].inputs)
        torch.testing.assert_close(outputs, result.predict("validation", cpu=True), rtol=0, atol=0)
    step = result.best.step if result.best and overrides is WORST else result.step
    assert (step < result.step) == (overrides is WORST)


def _weights_here(folder: str) -> dict[str, Any]:
    return {name: value.tolist() for name, value in trained(Path(folder), *WORST).model.state_dict().items()}


def test_every_process_has_those_weights(tmp_path: Path) -> None:
    first, second = in_world(2, _weights_here, str(tmp_path / "run"))
    written = read_weights(tmp_path / "run" / "model_weights.pth")
    assert first == second == {name: value.tolist() for name, value in written.items()}
