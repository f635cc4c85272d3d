"""A step by torch's own kernels does what torch's own methods do, and leaves alone what somebody else uses."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import StepLR
from torch.optim.optimizer import register_optimizer_step_post_hook
from worlds import TINY

from launcher import direct
from launcher.direct import Direct

Make = Callable[[Any], Optimizer]


class Sign(Optimizer):
    """An optimizer as people write them."""

    def __init__(self, params: Any):
        super().__init__(params, {"lr": 1e-2})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # torch overloads it
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.add_(parameter.grad.sign(), alpha=-group["lr"])


class Switching(Sign):
    """One that turns autograd on and off itself."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # torch overloads it
        assert torch.is_grad_enabled()
        super().step()


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def loss_of(model: nn.Module, step: int) -> Tensor:
    torch.manual_seed(step)
    return nn.functional.cross_entropy(model(torch.randn(5, 4)), torch.randint(3, (5,)))


OPTIMIZERS: dict[str, Make] = {
    "AdamW": torch.optim.AdamW,
    "AdamW, fused": lambda params: torch.optim.AdamW(params, fused=True),
    "AdamW, foreach": lambda params: torch.optim.AdamW(params, foreach=True),
    "SGD": lambda params: torch.optim.SGD(params, 0.1, momentum=0.9, nesterov=True),
    "RMSprop": torch.optim.RMSprop,
    "Adagrad, fused": lambda params: torch.optim.Adagrad(params, fused=True),
    "one's own": Sign,
    "switching": Switching,
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("scheduled", [False, True], ids=["", "scheduled"])
def test_it_trains_as_torch_does_bit_for_bit(make: Make, scheduled: bool) -> None:
    models = [net(), net()]
    optimizers = [make(list(model.parameters())) for model in models]
    schedules = [StepLR(one, 2, 0.5) for one in optimizers] if scheduled else []
    ours = Direct(optimizers[1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a schedule that is stepped before the optimizer
        for step in range(6):
            (loss_of(models[0], step) * 0.5).backward()
            direct.backward(loss_of(models[1], step), torch.tensor(0.5))
            optimizers[0].step()
            ours.step()
            optimizers[0].zero_grad()
            ours.clear_gradients()
            for schedule in schedules:
                schedule.step()
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other)
        assert other.grad is None
        assert other.requires_grad
    states = [one.state_dict() for one in optimizers]
    assert str(states[0]) == str(states[1])


def stepped(optimizer: Optimizer) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    Direct(optimizer).step()


@pytest.mark.parametrize("make", [torch.optim.SGD, Sign], ids=["torch's", "own"])
def test_the_hooks_of_an_optimizer_are_called(make: Make) -> None:
    optimizer, called = make(net().parameters()), []
    handles = [
        optimizer.register_step_pre_hook(lambda *_: called.append("before")),
        optimizer.register_step_post_hook(lambda *_: called.append("after")),
    ]
    stepped(optimizer)
    assert called == ["before", "after"]
    for handle in handles:
        handle.remove()
    everywhere = register_optimizer_step_post_hook(lambda *_: called.append("everywhere"))
    stepped(optimizer)
    everywhere.remove()
    stepped(optimizer)
    assert called == ["before", "after", "everywhere"]


def test_a_profiler_sees_the_step() -> None:
    optimizer = torch.optim.AdamW(net().parameters())
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        stepped(optimizer)
    assert "Optimizer.step#AdamW.step" in {event.key for event in profile.key_averages()}


def test_a_step_that_somebody_put_in_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []

    def noted(step: Any) -> Any:
        def method(*args: Any) -> Any:
            called.append(step)
            return step(*args)

        return method

    one = torch.optim.SGD(net().parameters(), 0.1)
    one.step = noted(one.step)  # type: ignore[method-assign]
    stepped(one)
    monkeypatch.setattr(torch.optim.SGD, "step", noted(torch.optim.SGD.step))
    stepped(torch.optim.SGD(net().parameters(), 0.1))
    assert len(called) == 2


def test_an_optimizer_that_is_to_be_differentiated_through_is() -> None:
    weight = torch.ones(2, requires_grad=True)
    moved = weight * 1
    moved.retain_grad()
    rate = torch.tensor(0.5, requires_grad=True)
    optimizer = torch.optim.SGD([moved], rate, differentiable=True)
    moved.grad = torch.ones(2)
    Direct(optimizer).step()
    moved.sum().backward()
    assert rate.grad is not None
    assert float(rate.grad) == -2.0


def test_a_clearing_method_of_an_optimizer_s_own_is_called() -> None:
    class Keeping(torch.optim.SGD):
        def zero_grad(self, set_to_none: bool = True) -> None:
            cleared.append(set_to_none)

    cleared: list[bool] = []
    Direct(Keeping(net().parameters(), 0.1)).clear_gradients()
    assert cleared == [True]


def test_what_has_no_gradient_is_told_as_torch_does() -> None:
    with pytest.raises(RuntimeError, match="does not require grad"):
        direct.backward(torch.ones(()), torch.ones(()))
    with pytest.raises(RuntimeError, match="shape"):
        direct.backward(torch.ones(3, requires_grad=True) * 2, torch.ones(()))


def run(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_run_of_one_process_does_not_import_the_compiler(tmp_path: Path) -> None:
    command = ["train", str(TINY), "--cpu", "--quiet", "--run-dir", str(tmp_path / "run"), "launch.threads=1"]
    longer = ["train={steps: 6}", "--allow-changes", "train.steps"]  # from the first one's state
    run(
        "import sys\n"
        "from launcher.cli import main\n"
        f"for more in (['train={{steps: 4}}'], {longer!r}):\n"
        f"    assert main([*{command!r}, *more]) == 0\n"
        "    assert 'torch' in sys.modules and 'torch._dynamo' not in sys.modules\n"
    )
    assert len(list((tmp_path / "run" / "checkpoints").glob("step-*6"))) == 1


def test_where_the_compiler_is_loaded_it_keeps_away_from_what_torch_keeps_it_away_from() -> None:
    run(
        "import torch, launcher.direct\n"
        "one = torch.optim.SGD(torch.nn.Linear(2, 2).parameters(), 0.1)\n"
        "function = torch.optim.Optimizer.state_dict.__wrapped__\n"
        "kept = one.state_dict()\n"
        "before = function.__dynamo_disable\n"
        "import torch._dynamo\n"
        "assert one.state_dict() == kept\n"
        "assert function.__dynamo_disable is not before\n"
        "assert function.__dynamo_disable._torchdynamo_disable\n"
    )
