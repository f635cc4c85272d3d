"""A step by torch's own kernels does what torch's own methods do, and leaves alone what somebody else uses."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import StepLR
from torch.optim.optimizer import register_optimizer_step_post_hook

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


@pytest.fixture(params=["this torch", "another torch"])
def known(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the names that torch has inside now, and as if it had none of them."""
    if request.param == "another torch":
        for name in ("_run", "_LOOKED_AT", "_SWITCHED"):
            monkeypatch.setattr(direct, name, None)


@pytest.mark.usefixtures("known")
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
            direct.backward(loss_of(models[1], step), 0.5)
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
    late = Direct(one)
    one.step = noted(one.step)  # type: ignore[method-assign]
    stepped(one)
    late.step()
    other = torch.optim.SGD(net().parameters(), 0.1)
    late = Direct(other)
    monkeypatch.setattr(torch.optim.SGD, "step", noted(torch.optim.SGD.step))
    stepped(other)
    late.step()
    assert len(called) == 4


def test_a_scheduler_made_late_does_not_miss_a_step() -> None:
    optimizer = torch.optim.SGD(net().parameters(), 0.1)
    late = Direct(optimizer)
    schedule = StepLR(optimizer, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        late.step()
        schedule.step()


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
    one = torch.optim.SGD(net().parameters(), 0.1)
    one.zero_grad = lambda set_to_none: cleared.append(set_to_none)  # type: ignore[method-assign, misc, assignment]
    Direct(one).clear_gradients()
    assert cleared == [True, True]


FUSED: dict[str, Make] = {
    "AdamW": lambda params: torch.optim.AdamW(params, fused=True),
    "SGD": lambda params: torch.optim.SGD(params, 0.1, momentum=0.9, fused=True),
    "Adagrad": lambda params: torch.optim.Adagrad(params, fused=True),
}


@pytest.mark.parametrize("make", FUSED.values(), ids=FUSED)
def test_gradients_of_any_layout_are_read_rightly_by_a_fused_kernel(make: Make) -> None:
    plain, fused = nn.Linear(6, 4), nn.Linear(6, 4)
    fused.load_state_dict(plain.state_dict())
    optimizers = [make(plain.parameters()), make(fused.parameters())]
    for step in range(3):
        torch.manual_seed(step)
        gradient = torch.randn(6, 4).T
        plain.weight.grad, plain.bias.grad = gradient.contiguous(), torch.full((4,), 0.5)
        fused.weight.grad, fused.bias.grad = gradient, torch.full((), 0.5).expand(4)
        direct.lay_out_gradients(optimizers[1])
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(plain.weight, fused.weight)
    assert torch.equal(plain.bias, fused.bias)


def test_a_state_is_laid_out_as_the_model_is_now() -> None:
    def trained(model: nn.Module, optimizer: Optimizer, steps: range) -> None:
        for step in steps:
            torch.manual_seed(step)
            model(torch.randn(2, 3, 5, 5)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    make = FUSED["AdamW"]
    model = nn.Conv2d(3, 4, 3)
    optimizer = make(model.parameters())
    trained(model, optimizer, range(2))
    other = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    other.load_state_dict(model.state_dict())
    gone_on = make(other.parameters())
    gone_on.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    direct.lay_out_state(gone_on)
    trained(model, optimizer, range(2, 4))
    trained(other, gone_on, range(2, 4))
    torch.testing.assert_close(other.weight, model.weight, rtol=0, atol=1e-6)


def test_what_was_added_to_an_optimizer_is_cleared_too() -> None:
    first, second = net(), net()
    optimizer = torch.optim.SGD(first.parameters(), 0.1)
    ours = Direct(optimizer)
    optimizer.add_param_group({"params": list(second.parameters())})
    loss_of(second, 0).backward()
    ours.clear_gradients()
    assert all(one.grad is None for one in second.parameters())


class Shifted(nn.Module):
    """A parameter of one element that is added to the loss: its gradient is a view of what backward begins with."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(1))
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, inputs: Tensor) -> Tensor:
        return (self.weight * inputs).square().sum() + self.shift.reshape(())


@pytest.mark.parametrize("clip", [None, 0.1])
def test_gradients_that_are_views_of_where_backward_began_may_be_written_to(clip: float | None) -> None:
    torch.manual_seed(0)
    data, models = torch.randn(12, 3), [Shifted(), Shifted()]
    optimizers = [torch.optim.SGD(model.parameters(), 0.01) for model in models]
    ours = Direct(optimizers[1])
    for step in range(6):
        for row in data[2 * step : 2 * step + 2]:  # two micro-batches
            (models[0](row) * 0.5).backward()
            direct.backward(models[1](row), 0.5)
        for model in models:
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizers[0].step()
        ours.step()
        optimizers[0].zero_grad(set_to_none=False)
        optimizers[1].zero_grad(set_to_none=False)
    assert torch.equal(models[0].shift, models[1].shift)
    assert torch.equal(models[0].weight, models[1].weight)


def test_what_has_no_gradient_is_told_as_torch_does() -> None:
    with pytest.raises(RuntimeError, match="does not require grad"):
        direct.backward(torch.ones(()), 1.0)
