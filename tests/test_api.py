"""`launcher.train` and its kin as people call them from Python: objects, names, slips."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from recipes.parts import Net, WholeNumbers
from torch import nn
from worlds import in_world

import launcher
from launcher.api import Result
from launcher.checkpoints.weights import read_weights
from launcher.errors import RecipeError, UsageError
from launcher.world.world import FAULTS_VARIABLE

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
    return launcher.train(
        None, "launch.threads=1", *overrides, run_dir=folder, **{"model": Net(), **SETTINGS, **changes}
    )


# ---------------------------------------------------------------------- the module that comes back


WORST = ("evaluate={every: 2 steps, best: {metric: loss, mode: max}}", "save={every: 2 steps, final: best}")


def _schedule_free(parameters: Any) -> Any:
    import schedulefree

    return schedulefree.SGDScheduleFree(parameters, lr=0.5)


@pytest.mark.parametrize(
    ("overrides", "optimizer"),
    [
        (WORST, SETTINGS["optimizer"]),
        ((), _schedule_free),
        (WORST, _schedule_free),
        (("train.ema=0.9",), torch.optim.SGD),
    ],
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


# ---------------------------------------------------------------------- a resume by another call


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Trains four steps of eight and fails; two of them are saved."""

    def cut(folder: Path, **changes: Any) -> None:
        monkeypatch.setenv(FAULTS_VARIABLE, "raise@step:4")
        with pytest.raises(RuntimeError):
            trained(folder, "save.every=2 steps", **changes)
        monkeypatch.delenv(FAULTS_VARIABLE)

    return cut


def _sgd(**settings: Any) -> Callable[..., torch.optim.Optimizer]:
    return lambda parameters: torch.optim.SGD(parameters, **{"lr": 0.1, **settings})


def _grouped(rate: float) -> Callable[..., torch.optim.Optimizer]:
    def made(parameters: Any) -> torch.optim.Optimizer:
        first, *others = parameters
        return torch.optim.SGD([{"params": [first], "lr": rate}, {"params": others}], lr=0.1)

    return made


def _steps(**settings: Any) -> Callable[..., Any]:
    return partial(torch.optim.lr_scheduler.StepLR, **{"step_size": 3, "gamma": 0.5, **settings})


_WEIGHTS = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)


@pytest.mark.parametrize(
    ("key", "before", "after", "shown"),
    [
        ("optimizer.lr", _sgd(), _sgd(lr=0.5), "was 0.1, is now 0.5"),
        ("optimizer._groups_.0.lr", _grouped(0.2), _grouped(0.5), "was 0.2, is now 0.5"),
        ("optimizer.momentum", torch.optim.SGD, partial(torch.optim.SGD, momentum=0.9), "was 0, is now 0.9"),
        ("optimizer", _sgd(), partial(torch.optim.Adagrad, lr=0.1), 'Python: SGD", is now .*Python: Adagrad'),
        ("scheduler.gamma", _steps(), _steps(gamma=0.1), "was 0.5, is now 0.1"),
        ("loss.label_smoothing", nn.CrossEntropyLoss(), nn.CrossEntropyLoss(label_smoothing=0.1), "was 0.0, is now"),
        ("loss.weight", nn.CrossEntropyLoss(), nn.CrossEntropyLoss(weight=_WEIGHTS), r"not stated, is now \[1.0, 2.0"),
        (
            "loss",
            nn.CrossEntropyLoss(),
            nn.functional.cross_entropy,
            'Python: CrossEntropyLoss", is now .*cross_entropy',
        ),
        ("model", Net(), nn.Sequential(Net(), nn.Tanh()), "Python: Net, layers .* is now .*Sequential, layers"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_what_objects_decide_may_not_change_unseen(
    tmp_path: Path, cut: Callable[..., None], key: str, before: Any, after: Any, shown: str
) -> None:
    name = key.partition(".")[0]
    cut(tmp_path / "run", **{name: before})
    with pytest.raises(UsageError, match=rf"  {re.escape(key)}: .*{shown}") as refused:
        trained(tmp_path / "run", "save.every=2 steps", **{name: after})
    rows = [line.strip() for line in str(refused.value).splitlines()[1:-1]]
    assert all(row.startswith(key) for row in rows), rows  # and what is the same is not among them


def test_a_change_that_is_allowed_wins(tmp_path: Path, cut: Callable[..., None]) -> None:
    cut(tmp_path / "run", optimizer=_sgd())
    settings: dict[str, Any] = {"optimizer": _sgd(lr=0.05), "allow_changes": ["optimizer.lr"]}
    result = trained(tmp_path / "run", "save.every=2 steps", **settings)
    assert [line["lr"] for line in result.metrics if line["split"] == "train"] == [0.1] * 2 + [0.05] * 6


def test_the_same_objects_resume_though_a_run_has_changed_them(tmp_path: Path, cut: Callable[..., None]) -> None:
    model, loss = Net(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.5, total_steps=8)
    objects = {"model": model, "loss": loss, "optimizer": optimizer, "scheduler": scheduler}
    cut(tmp_path / "run", **objects)
    assert optimizer.param_groups[0]["momentum"] != 0.9
    assert trained(tmp_path / "run", "save.every=2 steps", **objects).step == 8


# ---------------------------------------------------------------------- one's own files


OWN = """
import helper
from torch import nn

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(6, helper.WIDTH), nn.ReLU(), nn.Linear(helper.WIDTH, 3))
        self.double()
"""


@pytest.mark.parametrize("changed", ["named.py", "helper.py"])
def test_a_file_of_one_s_own_that_has_changed_since_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name, text in {"named.py": OWN, "helper.py": "WIDTH = 4\n", "other.py": "WIDTH = 4\n"}.items():
        Path(name).write_text(text)
    recipe = {"model": {"_target_": "named.py:Net"}}
    objects = {key: value for key, value in SETTINGS.items() if key != "epochs"}

    def again() -> Result:
        return launcher.train(recipe, "train.steps=1", **objects)

    try:
        first = again()
        Path("other.py").write_text("WIDTH = 5\n")
        again()
        Path(changed).write_text(Path(changed).read_text() + "\nWIDTH = 8\n")
        with pytest.raises(RecipeError, match=rf"model._target_: {changed} has changed since it was imported: restart"):
            again()
        assert len(launcher.runs()) == 2
        assert first.model(SETTINGS["validation"].inputs).shape == (23, 3)
        importlib.invalidate_caches()
        importlib.reload(sys.modules[changed.removesuffix(".py")])
        assert again().model[0].out_features == (8 if changed == "helper.py" else 4)
    finally:
        for name in ("named", "helper"):
            sys.modules.pop(name, None)
