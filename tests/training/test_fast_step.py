"""A step by torch's own kernels does what torch's own methods do, and leaves alone what somebody else uses."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim import optimizer as optimizers_of_torch
from torch.optim.lr_scheduler import StepLR
from torch.optim.optimizer import register_optimizer_step_post_hook
from worlds import train

from launcher import internals
from launcher.errors import UsageError
from launcher.training import fast_step
from launcher.training.fast_step import FastStep
from launcher.world.world import wants_plain_torch

pytestmark = pytest.mark.torch_internals
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
    "Adam, fused": lambda params: torch.optim.Adam(params, 1e-2, weight_decay=0.1, amsgrad=True, fused=True),
    "AdamW, foreach": lambda params: torch.optim.AdamW(params, foreach=True),
    "SGD": lambda params: torch.optim.SGD(params, 0.1, momentum=0.9, nesterov=True),
    "RMSprop": torch.optim.RMSprop,
    "Adagrad, fused": lambda params: torch.optim.Adagrad(params, fused=True),
    "one's own": Sign,
    "switching": Switching,
}


def of_other_arguments(outputs: Any, *, gradients: Any) -> None:
    raise AssertionError("called with what it does not take is a TypeError before")


def twice_as_much(outputs: Any, roots: Any, *args: Any, **kwargs: Any) -> Any:
    return ENGINE(outputs, [2 * root for root in roots], *args, **kwargs)


ENGINE: Any = torch.autograd.graph._engine_run_backward
torch.optim.SGD(nn.Linear(1, 1).parameters())  # torch puts its wrappers around a class when it makes the first of it
STEP: Any = torch.optim.SGD.step


def stepping_wrongly(optimizer: Any, closure: Any = None) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.sub_(1.0)


def raising(*_: Any) -> None:
    raise TypeError("not so")


OTHER_TORCHES: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "this torch": lambda patch: None,
    "no such engine": lambda patch: patch.delattr(torch.autograd.graph, "_engine_run_backward"),
    "an engine of other arguments": lambda patch: patch.setattr(
        torch.autograd.graph, "_engine_run_backward", of_other_arguments
    ),
    "an engine of other results": lambda patch: patch.setattr(
        torch.autograd.graph, "_engine_run_backward", twice_as_much
    ),
    "an engine that does nothing": lambda patch: patch.setattr(
        torch.autograd.graph, "_engine_run_backward", lambda *_, **__: ()
    ),
    "no such switch": lambda patch: patch.delattr(optimizers_of_torch, "_use_grad_for_differentiable"),
    "a switch of other arguments": lambda patch: patch.setattr(
        optimizers_of_torch, "_use_grad_for_differentiable", lambda function, how: function
    ),
    "a step of other insides": lambda patch: patch.setattr(STEP, "__wrapped__", stepping_wrongly),
    "a step that cannot be called alone": lambda patch: patch.setattr(STEP.__wrapped__, "__wrapped__", raising),
    "no profiler's mark": lambda patch: patch.delattr(torch.autograd.profiler, "_is_profiler_enabled"),
    "plain": lambda patch: patch.setenv("LAUNCHER_PLAIN_TORCH", "1"),
}


USES_ENGINE = {"this torch"} | {name for name in OTHER_TORCHES if "engine" not in name and name != "plain"}
USES_INSIDE = {"this torch"} | {name for name in OTHER_TORCHES if "engine" in name}


def forget() -> None:
    fast_step._engine.cache_clear()
    fast_step._proven.cache_clear()
    fast_step._adam_is_proven.cache_clear()


@pytest.fixture(params=OTHER_TORCHES)
def another_torch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """As if torch's insides were others; only what a plain step does not need itself can be taken away."""
    OTHER_TORCHES[request.param](monkeypatch)
    forget()
    assert (fast_step._engine() is not None) == (request.param in USES_ENGINE)
    assert (fast_step._proven() is not None) == (request.param in USES_INSIDE)
    yield request.param
    forget()


@pytest.mark.usefixtures("another_torch")
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("scheduled", [False, True], ids=["", "scheduled"])
def test_it_trains_as_torch_does_bit_for_bit(make: Make, scheduled: bool) -> None:
    models = [net(), net()]
    optimizers = [make(list(model.parameters())) for model in models]
    schedules = [StepLR(one, 2, 0.5) for one in optimizers] if scheduled else []
    ours = FastStep(optimizers[1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a schedule that is stepped before the optimizer
        for step in range(6):
            (loss_of(models[0], step) * 0.5).backward()
            fast_step.backward(loss_of(models[1], step), 0.5)
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
    FastStep(optimizer).step()


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
    late = FastStep(one)
    one.step = noted(one.step)  # type: ignore[method-assign]
    stepped(one)
    late.step()
    other = torch.optim.SGD(net().parameters(), 0.1)
    late = FastStep(other)
    monkeypatch.setattr(torch.optim.SGD, "step", noted(torch.optim.SGD.step))
    stepped(other)
    late.step()
    assert len(called) == 4


def test_a_scheduler_made_late_does_not_miss_a_step() -> None:
    optimizer = torch.optim.SGD(net().parameters(), 0.1)
    late = FastStep(optimizer)
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
    FastStep(optimizer).step()
    moved.sum().backward()
    assert rate.grad is not None
    assert float(rate.grad) == -2.0


def test_a_clearing_method_of_an_optimizer_s_own_is_called() -> None:
    class Keeping(torch.optim.SGD):
        def zero_grad(self, set_to_none: bool = True) -> None:
            cleared.append(set_to_none)

    cleared: list[bool] = []
    FastStep(Keeping(net().parameters(), 0.1)).clear_gradients()
    one = torch.optim.SGD(net().parameters(), 0.1)
    one.zero_grad = lambda set_to_none: cleared.append(set_to_none)  # type: ignore[method-assign, misc, assignment]
    FastStep(one).clear_gradients()
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
        fast_step.lay_out_gradients(optimizers[1])
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
    fast_step.lay_out_state(gone_on)
    trained(model, optimizer, range(2, 4))
    trained(other, gone_on, range(2, 4))
    torch.testing.assert_close(other.weight, model.weight, rtol=0, atol=1e-6)


def test_what_was_added_to_an_optimizer_is_cleared_too() -> None:
    first, second = net(), net()
    optimizer = torch.optim.SGD(first.parameters(), 0.1)
    ours = FastStep(optimizer)
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
    ours = FastStep(optimizers[1])
    for step in range(6):
        for row in data[2 * step : 2 * step + 2]:  # two micro-batches
            (models[0](row) * 0.5).backward()
            fast_step.backward(models[1](row), 0.5)
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
        fast_step.backward(torch.ones(()), 1.0)


@pytest.mark.parametrize("said", ["yes", "2"])
def test_a_switch_that_says_neither_yes_nor_no_is_told(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAUNCHER_PLAIN_TORCH", said)
    with pytest.raises(UsageError, match=f"LAUNCHER_PLAIN_TORCH='{said}' is neither 1 nor 0"):
        wants_plain_torch()


def test_the_proof_leaves_no_trace() -> None:
    torch.manual_seed(3)
    before, kinds = torch.get_rng_state(), set(optimizers_of_torch._global_optimizer_post_hooks)
    forget()
    with torch.no_grad():  # wherever somebody stands
        fast_step._engine(), fast_step._proven()
    assert fast_step._engine() is not None
    assert fast_step._proven() is not None
    assert torch.equal(torch.get_rng_state(), before)
    assert set(optimizers_of_torch._global_optimizer_post_hooks) == kinds


def test_plain_torch_gives_the_same_losses_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ("train={steps: 8}", "launch.threads=1", "track.every=1 steps")
    usual = train(tmp_path / "usual", *settings)
    monkeypatch.setenv("LAUNCHER_PLAIN_TORCH", "1")
    plain = train(tmp_path / "plain", *settings)
    assert len(usual.column("loss")) == 8
    assert plain.column("loss") == usual.column("loss")
    assert plain.distance(usual) == 0


# ---------------------------------------------------------------------- Adam by its kernels


def groups(model: nn.Module) -> list[dict[str, Any]]:
    """Two groups that differ in all that a group may say of a usual update."""
    first, second = list(model.parameters())[:2], list(model.parameters())[2:]
    other = {"lr": 0.1, "betas": (0.5, 0.7), "eps": 1e-3, "weight_decay": 0.3, "maximize": True, "amsgrad": True}
    return [{"params": first}, {"params": second, **other}]


def half_fused(model: nn.Module) -> list[dict[str, Any]]:
    """Two groups, one of which says that it is not."""
    first, *others = model.parameters()
    return [{"params": [first], "fused": False}, {"params": others}]


class Derived(torch.optim.AdamW):
    """One that does as its base does, as far as anybody knows."""


def mixed(model: nn.Module) -> list[nn.Parameter]:
    """Parameters of two types, one of them without a gradient, and one that nobody trains."""
    first, *others = model.parameters()
    first.data = first.data.double()
    others[0].requires_grad_(False)
    return [first, *others]


def gradients(parameters: list[nn.Parameter], step: int) -> None:
    """The last parameter gets its first gradient late, and misses one."""
    torch.manual_seed(step)
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter) if parameter.requires_grad else None
    if step in (0, 2):
        parameters[-1].grad = None


USUAL: dict[str, Make] = {
    "AdamW": lambda model: torch.optim.AdamW(model.parameters(), fused=True),
    "Adam": lambda model: torch.optim.Adam(model.parameters(), weight_decay=0.1, fused=True),
    "amsgrad": lambda model: torch.optim.Adam(model.parameters(), amsgrad=True, maximize=True, fused=True),
    "groups": lambda model: torch.optim.AdamW(groups(model), fused=True),
    "mixed": lambda model: torch.optim.AdamW(mixed(model), fused=True),
    "a group without gradients": lambda model: torch.optim.AdamW(
        [{"params": list(model.parameters())}, {"params": [nn.Parameter(torch.zeros(2))]}], fused=True
    ),
}
UNUSUAL: dict[str, Make] = {
    "not fused": lambda model: torch.optim.AdamW(model.parameters()),
    "one of two groups not fused": lambda model: torch.optim.AdamW(half_fused(model), fused=True),
    "a rate on the device": lambda model: torch.optim.AdamW(model.parameters(), torch.tensor(0.1), fused=True),
    "capturable": lambda model: torch.optim.Adam(model.parameters(), fused=True, capturable=True),
}


@pytest.mark.parametrize("name", [*USUAL, *UNUSUAL])
def test_adam_steps_as_torch_does_bit_for_bit(name: str) -> None:
    models = [net(), net()]
    optimizers = [(USUAL | UNUSUAL)[name](model) for model in models]
    ours = FastStep(optimizers[1])
    assert ours._fused is not None
    for step in range(6):
        for model in models:
            gradients(list(model.parameters()), step)
        if step == 4:  # as a resume does
            optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
        optimizers[0].step()
        if step in (0, 5):
            assert ours._fused.step(optimizers[1]) == (step > 0 and name in USUAL)
        if step < 5 or name in UNUSUAL:
            ours.step()
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other)
    assert str(optimizers[0].state_dict()) == str(optimizers[1].state_dict())


def test_a_class_derived_from_adam_steps_itself() -> None:
    assert FastStep(Derived(net().parameters(), fused=True))._fused is None


@pytest.mark.parametrize("mark", ["grad_scale", "found_inf"])
def test_what_a_gradient_scaler_has_left_is_heeded(mark: str) -> None:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    ours = FastStep(optimizer)
    for step in range(2):
        gradients(list(model.parameters()), step)
        before = [parameter.clone() for parameter in model.parameters()]
        setattr(optimizer, mark, torch.ones(()))
        assert ours._fused is not None
        assert not ours._fused.step(optimizer)
        assert all(map(torch.equal, before, model.parameters()))


def test_state_of_another_type_than_its_gradient_is_refused_as_torch_refuses_it() -> None:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    ours = FastStep(optimizer)
    gradients(list(model.parameters()), 0)
    ours.step()
    for kept in optimizer.state.values():
        kept["exp_avg"] = kept["exp_avg"].double()
    with pytest.raises(RuntimeError) as by_torch:
        optimizer.step()
    with pytest.raises(RuntimeError) as by_us:
        ours.step()
    assert str(by_us.value) == str(by_torch.value)


def test_kernels_that_do_otherwise_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(*args: Any, **kwargs: Any) -> None:
        torch._fused_adamw_(*args, **{**kwargs, "eps": 0.5})

    made = internals.adam_kernels()
    for kernels in (made._replace(adamw=other), made._replace(add=raising), made._replace(by_device_and_type=raising)):
        monkeypatch.setattr(internals, "adam_kernels", lambda kernels=kernels: kernels)
        forget()
        assert FastStep(torch.optim.AdamW(net().parameters(), fused=True))._fused is None
    monkeypatch.undo()
    forget()


@pytest.mark.parametrize("settings", [{}, {"nesterov": True}, {"dampening": 0.5, "weight_decay": 0.1}])
def test_fused_momentum_of_parameters_that_are_thawed_one_after_the_other(settings: dict[str, Any]) -> None:
    def trained(fused: bool) -> list[Tensor]:
        model = net()
        parameters = list(model.parameters())
        groups: list[dict[str, Any]] = [{"params": parameters[:3]}, {"params": parameters[3:], "lr": 0.05}]
        optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9, fused=fused, **settings)
        fast = FastStep(optimizer)
        for step in range(5):
            loss_of(model, step).backward()
            for number in range(max(0, 2 - step)):  # one is thawed at each step
                parameters[number].grad = None
            fast.step()
            assert all(group["fused"] == fused for group in optimizer.param_groups)
            fast.clear_gradients()
        return [parameter.detach() for parameter in parameters]

    for ours, expected in zip(trained(True), trained(False), strict=True):
        assert torch.allclose(ours, expected, rtol=1e-5, atol=1e-7)
