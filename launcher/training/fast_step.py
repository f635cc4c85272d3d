"""What torch computes in a step, called without the Python around it where nobody uses that.

After a forward and a backward pass that Python is cold in a core's caches: around a small step it takes longer than
what it surrounds. The results are the same, bit for bit, and that is not taken on trust: at its first use in a process
each way is gone beside torch's own with a few numbers, and left alone where anything differs or raises. What somebody
does use (hooks of an optimizer, a profiler that looks on, a method that was put in) is called as ever.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from types import CodeType
from typing import Any

import torch
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import StepLR
from torch.optim.optimizer import register_optimizer_step_post_hook

from launcher import internals
from launcher.objective.several import Optimizers
from launcher.training import fused_adam, fused_sgd
from launcher.training.fused_adam import FusedAdam
from launcher.world.world import wants_plain_torch


def backward(value: torch.Tensor, factor: float) -> None:
    """Adds the gradients of `value * factor`: `torch.autograd.backward` less its look at the arguments (20 µs).

    Args:
        value: A real scalar.
        factor: Multiplying the loss instead would cost two operations.
    """
    # new each time: a gradient may become a view of it, and then be written to
    root = torch.full_like(value, factor)
    run = _engine() if type(value) is torch.Tensor else None
    if run is not None:
        run((value,), (root,), *_ARGUMENTS, **_OPTIONS)
    else:
        torch.autograd.backward(value, root)


_ARGUMENTS: Any = (False, False, ())  # the graph is not kept, and no graph of the gradients is made
_OPTIONS: Any = {"allow_unreachable": True, "accumulate_grad": True}


class FastStep:
    """An optimizer without the profiler's ranges and the hooks around its methods (21 µs a step, and 9 to clear).

    Args:
        optimizer: Any.
        inside: What is known of torch's insides, or None; by default, what has proven itself.
    """

    def __init__(self, optimizer: Optimizer, inside: Callable[[], Inside | None] | None = None):
        self.optimizer = optimizer
        self._inside = (inside or _proven)()
        has_kernels = type(optimizer) in fused_adam.KINDS and self._inside is not None
        self._fused = FusedAdam() if has_kernels and _adam_is_proven() else None
        self._may_have_momentum = isinstance(optimizer, SGD)
        _engine()  # tried now, and not amid a step that a profiler may look at
        self._look()

    def _look(self) -> None:
        """Finds what may be called; again whenever somebody has put in a step, as a scheduler does."""
        self._own, self._class_step = vars(self.optimizer).get("step"), type(self.optimizer).step
        self._step = self._inside.innermost_step(self.optimizer) if self._inside is not None else None

    def step(self) -> None:
        """As `optimizer.step()`."""
        optimizer = self.optimizer
        if vars(optimizer).get("step") is not self._own or type(optimizer).step is not self._class_step:
            self._look()
        if not self._may_have_momentum:
            self._call(optimizer)
            return
        with fused_sgd.unfused_where_new(optimizer):
            self._call(optimizer)

    def _call(self, optimizer: Optimizer) -> None:
        if self._step is None or self._inside is None or self._inside.look_on(optimizer):
            optimizer.step()
        else:
            if self._fused is None or not self._fused.step(optimizer):
                self._step(optimizer)
            internals.note_step(optimizer)

    def clear_gradients(self) -> None:
        """As `optimizer.zero_grad()`."""
        if self._inside is not None and getattr(self.optimizer.zero_grad, "__func__", None) is _ZERO_GRAD:
            for group in self.optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None
        else:
            self.optimizer.zero_grad(set_to_none=True)


_ZERO_GRAD = Optimizer.zero_grad


@dataclass(frozen=True)
class Inside:
    """What torch wraps an optimizer's step in: a profiler's range and hooks, and within them the switch of autograd.

    Attributes:
        looked_at: The code of the outer wrapper.
        switched: The code of the inner one.
        look_on: Whether somebody uses the outer one.
    """

    looked_at: CodeType
    switched: CodeType
    look_on: Callable[[Optimizer], bool]

    @staticmethod
    def of_torch() -> Inside:
        """What this torch has.

        Raises:
            Exception: It has something else.
        """
        looked_at = _code_of(Optimizer.profile_hook_step)
        return Inside(looked_at, _code_of(internals.autograd_switch()), internals.step_onlookers())

    def innermost_step(self, optimizer: Optimizer) -> Callable[[Optimizer], Any] | None:
        """The step of the optimizer's class without its wrappers; None where it is wrapped in something else."""
        step: Any = optimizer.step
        is_counted = internals.is_counted_by_scheduler(step)  # once more, to see whether the optimizer steps first
        function: Any = step.__wrapped__ if is_counted else getattr(step, "__func__", None)
        outer: Any = type(optimizer).step
        if function is not outer or getattr(outer, "__code__", None) is not self.looked_at:
            return None
        inner = outer.__wrapped__
        is_switched = getattr(inner, "__code__", inner) is self.switched and not optimizer.defaults["differentiable"]
        plain: Callable[[Optimizer], Any] = _without_autograd(inner.__wrapped__) if is_switched else inner
        return plain


def _code_of(decorator: Callable[..., Any]) -> CodeType:
    """The code of what a decorator makes of a function: it tells whose wrapper something is."""
    code: CodeType = decorator(lambda: None).__code__
    return code


def _without_autograd(function: Callable[[Optimizer], Any]) -> Callable[[Optimizer], Any]:
    def step(optimizer: Optimizer) -> None:
        with torch.no_grad():
            function(optimizer)

    return step


# ---------------------------------------------------------------------- the proof


@cache
def _engine() -> Callable[..., Any] | None:
    """Torch's engine, if it gives the gradients that torch's own `backward` gives."""
    engine = internals.engine()
    if engine is None or wants_plain_torch():
        return None

    def run(value: torch.Tensor, root: torch.Tensor) -> None:
        engine((value,), (root,), *_ARGUMENTS, **_OPTIONS)

    return engine if _agree(_gradients, _backward_of_product, run) else None


def _backward_of_product(value: torch.Tensor, root: torch.Tensor) -> None:
    """The same gradients by `Tensor.backward`: one that is given a root loads sympy first, half a second of it."""
    (value * root).backward()


@cache
def _proven() -> Inside | None:
    """What this torch wraps a step in, if a step without it does what one with it does."""
    if wants_plain_torch() or not _agree(_steps, _nothing, Inside.of_torch):
        return None
    return Inside.of_torch()


@cache
def _adam_is_proven() -> bool:
    """Whether Adam by its kernels does what the optimizer's own step does."""

    def by_torch(optimizer: Optimizer, step: Callable[[Optimizer], Any]) -> None:
        step(optimizer)

    def by_kernels(optimizer: Optimizer, _: Callable[[Optimizer], Any]) -> None:
        if not FusedAdam().step(optimizer):
            raise NotImplementedError

    return _agree(_adam_steps, by_torch, by_kernels)


def _nothing() -> None:
    """As if nothing were known of torch's insides."""


def _agree(trial: Callable[[Any], Sequence[torch.Tensor]], *ways: Any) -> bool:
    """Whether a trial gives the same bits in both ways; one that raises does not."""
    try:
        with torch.inference_mode(False), torch.enable_grad():
            usual, ours = (trial(way) for way in ways)
            return len(usual) == len(ours) and all(map(torch.equal, usual, ours))
    except Exception:  # whatever another torch says of what it does not know
        return False


def _gradients(backward: Callable[[torch.Tensor, torch.Tensor], Any]) -> Sequence[torch.Tensor]:
    """The gradients after a first backward pass, and after a second one that is added."""
    weights = [_numbers(3).requires_grad_(), _numbers(1).requires_grad_()]
    results = []
    for factor in (0.5, 3.0):
        value = (weights[0] * weights[0]).sum() + weights[1].reshape(())
        backward(value, torch.full_like(value, factor))
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        results += [gradient.clone() for gradient in gradients]
        results += [torch.tensor([gradient.requires_grad for gradient in gradients])]
    return results


def _steps(inside: Callable[[], Inside | None]) -> Sequence[torch.Tensor]:
    """What steps leave: alone, under a schedule, and with hooks, each of which is called once.

    torch's own way of stepping its own optimizers would load the compiler. So where nothing is known of its insides,
    the same arithmetic is stepped as an optimizer of one's own.
    """
    weight = _numbers(3).requires_grad_()
    is_known = inside() is not None
    switched: Optimizer = torch.optim.SGD([weight], 0.1, 0.9, foreach=False) if is_known else _Momentum([weight])
    direct = [FastStep(switched, inside), FastStep(_Momentum([weight]), inside)]
    results = [*_stepped(direct[0], weight)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of a schedule that is stepped before the optimizer
        for fast_step in direct:
            schedule = StepLR(fast_step.optimizer, 1, 0.5)
            for _ in range(2):
                results += _stepped(fast_step, weight)
                schedule.step()
    return [*results, *_hooked(direct[1], weight)]


def _adam_steps(way: Callable[[Optimizer, Callable[[Optimizer], Any]], None]) -> Sequence[torch.Tensor]:
    """What steps of Adam leave, the first of which makes the state; with an average that never falls, and without."""
    results = []
    amsgrad: dict[str, Any] = {"amsgrad": True, "maximize": True}
    for kind, settings in ((torch.optim.AdamW, {}), (torch.optim.Adam, amsgrad)):
        weight, other = _numbers(3).requires_grad_(), _numbers(2).double().requires_grad_()
        optimizer = kind([weight, other], 0.1, weight_decay=0.1, fused=True, **settings)
        step = Inside.of_torch().innermost_step(optimizer)
        assert step is not None
        for number in range(3):
            weight.grad, other.grad = _numbers(3) * _numbers(3), (_numbers(2) - number).double()
            if number:
                way(optimizer, step)
            else:
                step(optimizer)
            kept = [value.clone() for values in optimizer.state.values() for value in values.values()]
            results += [weight.detach().clone(), other.detach().clone(), *kept]
    return results


def _stepped(direct: FastStep, weight: torch.Tensor) -> Sequence[torch.Tensor]:
    weight.grad = _numbers(3) * _numbers(3)
    direct.step()
    direct.clear_gradients()
    kept = direct.optimizer.state[weight]["momentum_buffer"]
    return [weight.detach().clone(), kept.clone(), torch.tensor([weight.grad is None, weight.requires_grad])]


def _hooked(direct: FastStep, weight: torch.Tensor) -> Sequence[torch.Tensor]:
    """What a step leaves at which hooks look on, and how often each was called."""
    called, results, optimizer = torch.zeros(3), list[torch.Tensor](), direct.optimizer

    def hook(number: int, stepped_optimizer: Optimizer, *_: Any) -> None:
        called[number] += stepped_optimizer is optimizer

    before, after = optimizer.register_step_pre_hook, optimizer.register_step_post_hook
    for number, register in enumerate((before, after, register_optimizer_step_post_hook)):
        handle = register(partial(hook, number))
        try:
            results += _stepped(direct, weight)
        finally:
            handle.remove()
    return [*results, called]


class _Momentum(Optimizer):
    """SGD with a momentum of 0.9 as people write one, without torch's switch of autograd."""

    def __init__(self, params: Any):
        super().__init__(params, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # torch overloads it
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                kept = state.get("momentum_buffer")
                state["momentum_buffer"] = kept.mul_(0.9).add_(parameter.grad) if kept is not None else parameter.grad
                parameter.add_(state["momentum_buffer"], alpha=-group["lr"])


def _numbers(count: int) -> torch.Tensor:
    """Some numbers, the same whatever a torch draws, and whatever it takes for its device and type."""
    return torch.arange(1, count + 1, device="cpu", dtype=torch.float32) * 0.3


# ---------------------------------------------------------------------- strides


def lay_out_gradients(optimizer: Optimizers) -> None:
    """Gives gradients the strides of their parameters where a fused kernel steps them.

    It goes through memory: a gradient that a hook has expanded or transposed would be read wrongly, on a CPU silently.
    """
    for group in optimizer.param_groups:
        if group.get("fused"):
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is not None and gradient.stride() != parameter.stride():
                    parameter.grad = _laid_out(gradient, parameter)


def lay_out_state(optimizer: Optimizer) -> None:
    """The same of what an optimizer keeps: a checkpoint may be of a model with another memory format."""
    for parameter, kept in optimizer.state.items():
        if not isinstance(parameter, torch.Tensor) or not isinstance(kept, dict):
            continue  # under a key that is not a parameter, as MADGRAD keeps its counter
        for name, value in kept.items():
            is_like_it = (
                isinstance(value, torch.Tensor) and internals.has_storage(value) and value.shape == parameter.shape
            )
            if is_like_it and value.stride() != parameter.stride():
                kept[name] = _laid_out(value, parameter)


def _laid_out(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A copy with the strides of another tensor of its shape."""
    return torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)
