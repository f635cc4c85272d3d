"""4: objective. The optimizer and its parameter groups."""

from __future__ import annotations

import fnmatch
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import nn

from launcher.device import lazy_compiler
from launcher.objective.loss import loss_key
from launcher.recipe.build import Builder
from launcher.recipe.component import Component
from launcher.recipe.signature import parameters_of
from launcher.text import hint


def build_optimizer(
    builder: Builder, section: Component, model: nn.Module, losses: Mapping[str, nn.Module], *, may_skip: bool = False
) -> torch.optim.Optimizer:
    """The recipe's optimizer over all parameters that require a gradient.

    Args:
        builder: Builds the component.
        section: The recipe's `optimizer`.
        model: The bare module.
        losses: Those with parameters of their own, by name: the parameter `scale` of one is `loss.NAME.scale`.
        may_skip: Whether the optimizer's own kernel skips updates, as under fp16.

    Raises:
        RecipeError: A pattern of `_groups_` matches no parameter, or what came out is no optimizer of these.
    """
    lazy_compiler.optimizers()
    named = dict(_trained("", model))
    for name, loss in losses.items():
        named |= {
            key: parameter
            for key, parameter in _trained(f"{loss_key(name)}.", loss)
            if not _is_among(parameter, named.values())
        }
    groups = section.options.get("_groups_")
    params = _groups(builder, section, groups, named) if groups else list(named.values())
    if section.given is None:
        chosen = (
            {"fused": True} if _fuses(builder, section, [model, *losses.values()], named.values(), may_skip) else {}
        )
        optimizer = builder.build(section, params=params, **chosen)
    elif callable(section.given):
        optimizer = section.given(params)
    else:
        optimizer = section.given
    if groups and section.given is None:
        _check_groups(builder, section, groups, optimizer)
    if unfit := _unfit(optimizer, section.target, named.values(), made=optimizer is not section.given):
        raise builder.wrong("optimizer", unfit)
    return optimizer  # type: ignore[no-any-return]


def _trained(prefix: str, module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((prefix + name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad)


def _is_among(parameter: nn.Parameter, others: Iterable[nn.Parameter]) -> bool:
    return any(parameter is other for other in others)


def _unfit(optimizer: Any, target: str, parameters: Iterable[nn.Parameter], made: bool) -> str | None:
    """Why something cannot be the run's optimizer; one that was not made here may be another model's."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        return f"{target} gave a {type(optimizer).__name__}, not a torch.optim.Optimizer"
    own = [own_parameter for group in optimizer.param_groups for own_parameter in group["params"]]
    if not made and not any(_is_among(parameter, own) for parameter in parameters):
        return "has none of this model's parameters; hand in its class, or a function of the parameters"
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        return (
            f"{type(optimizer).__name__} wants to call the loss itself, several times a step, which this loop does not "
            "do; take another"
        )
    return None


_HOW_TO_STEP = ("fused", "foreach", "capturable", "differentiable")  # a recipe that says one of them has chosen


def _fuses(
    builder: Builder,
    section: Component,
    modules: Sequence[nn.Module],
    parameters: Iterable[nn.Parameter],
    may_skip: bool,
) -> bool:
    """Whether torch's fused kernel does the update: 2 to 3 times as fast on a CPU, with equal results to rounding.

    Only one of torch's own; not with sparse gradients, for which there is no kernel, nor SGD with momentum where the
    kernel itself skips updates: it does not survive that on its first step.
    """
    if section.style != "call" or any(key in section.kwargs for key in _HOW_TO_STEP):
        return False
    target = builder.resolve(section)
    if not str(getattr(target, "__module__", "")).startswith("torch.optim.") or "fused" not in (
        parameters_of(target) or ()
    ):
        return False
    settings = [section.kwargs, *(section.options.get("_groups_") or {}).values()]
    if may_skip and any("momentum" in group for group in settings):
        return False
    if any(getattr(submodule, "sparse", False) for module in modules for submodule in module.modules()):
        return False
    kinds = {(parameter.device, parameter.dtype) for parameter in parameters}
    if not all(dtype.is_floating_point for _, dtype in kinds):
        return False
    return all(_can_fuse(target, device, dtype) for device, dtype in kinds)


@cache
def _can_fuse(target: Any, device: torch.device, dtype: torch.dtype) -> bool:
    """Tried once: which kernels there are differs between devices and releases of torch.

    What is tried on is a small parameter; a class that wants to be told more than its parameters is not fused.
    """
    parameter = torch.zeros(8, device=device, dtype=dtype, requires_grad=True)
    parameter.grad = torch.zeros_like(parameter)
    try:
        optimizer = target([parameter], fused=True)
        with torch.no_grad():
            inspect.unwrap(type(optimizer).step)(optimizer)  # what is around it would load the compiler
    except (RuntimeError, TypeError, ValueError):
        return False
    return True


def _check_groups(
    builder: Builder, section: Component, groups: Mapping[str, Mapping[str, Any]], optimizer: Any
) -> None:
    """Settings that the optimizer that came out does not have would be kept in its groups, and used by nobody."""
    known = list(getattr(optimizer, "defaults", None) or ())
    for pattern, settings in groups.items():
        for name in settings if known else ():
            if name not in known:
                message = f"{type(optimizer).__name__} has no setting '{name}'"
                message += hint(name, known, f"a group may set: {', '.join(known)}")
                raise builder.wrong((*section.path, "_groups_", pattern, name), message, at_key=True)


def describe_optimizer(optimizer: torch.optim.Optimizer) -> str:
    """Its class, and how it steps, for the plan."""
    groups = optimizer.param_groups
    several = f", {len(groups)} groups of parameters" if len(groups) > 1 else ""
    fused = ", fused (optimizer.fused=false turns that off)" if groups[0].get("fused") else ""
    return f"{type(optimizer).__name__}{several}{fused}"


def _groups(
    builder: Builder,
    section: Component,
    patterns: Mapping[str, Mapping[str, Any]],
    named: Mapping[str, nn.Parameter],
) -> list[dict[str, Any]]:
    """Parameter groups by name pattern; the first pattern that matches a name has it."""
    left = dict(named)
    groups: list[dict[str, Any]] = []
    for pattern, settings in patterns.items():
        names = [name for name in left if fnmatch.fnmatchcase(name, pattern)]
        if not names:
            shown = ", ".join(list(named)[:8])
            message = f"no parameter is named like '{pattern}' (or an earlier pattern has it); there are: {shown}, …"
            raise builder.wrong((*section.path, "_groups_", pattern), message, at_key=True)
        evaluated = builder.value(settings, {})
        for name, message in builder.unfit(section, evaluated):
            raise builder.wrong((*section.path, "_groups_", pattern, name), message, at_key=True)
        groups.append({"params": [left.pop(name) for name in names], **evaluated})
    return [{"params": list(left.values())}, *groups] if left else groups
