"""4: objective. The optimizer, or several of them by name, and their groups of parameters."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from launcher.device import lazy_compiler
from launcher.model.sharding import Shards
from launcher.objective.loss import loss_key
from launcher.objective.patterns import as_list, by_first_name, chosen, is_frozen, layers_of, no_such
from launcher.objective.several import Optimizers, Several, each
from launcher.recipe.build import Builder
from launcher.recipe.component import Component
from launcher.recipe.signature import parameters_of
from launcher.text import hint

Named = Mapping[str, nn.Parameter]


def build_optimizer(
    builder: Builder,
    section: Component | Mapping[str, Component],
    model: nn.Module,
    losses: Mapping[str, nn.Module],
    *,
    may_skip: bool = False,
    shards: Shards | None = None,
) -> Optimizers:
    """The recipe's optimizer over all parameters that require a gradient, or several by name, each over its own.

    Args:
        builder: Builds the component.
        section: The recipe's `optimizer`.
        model: The bare module.
        losses: Those with parameters of their own, by name: the parameter `scale` of one is `loss.NAME.scale`.
        may_skip: Whether the optimizer's own kernel skips updates, as under fp16.
        shards: What this process holds of the parameters, where they are sharded.

    Raises:
        RecipeError: A pattern matches no parameter, a parameter has no optimizer, or the result is not an optimizer.
    """
    lazy_compiler.optimizers()
    every = all_names(model, losses)
    named = {name: parameter for name, parameter in by_first_name(every).items() if parameter.requires_grad}
    modules = [model, *losses.values()]
    if isinstance(section, Component):
        return _one(builder, section, modules, named, every, may_skip, shards)
    shares = _shares(builder, section, model, named, every)
    return Several(
        {name: _one(builder, section[name], modules, shares[name], every, may_skip, shards) for name in section}
    )


def all_names(model: nn.Module, losses: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """All parameters, by each of their names; those of a loss are called `loss.…`."""
    named = dict(model.named_parameters(remove_duplicate=False))
    for name, loss in losses.items():
        named |= dict(loss.named_parameters(loss_key(name), remove_duplicate=False))
    return named


def named_parameters(model: nn.Module, losses: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """All parameters by name, once: by the first where they have several."""
    return by_first_name(all_names(model, losses))


def _one(
    builder: Builder,
    section: Component,
    modules: Sequence[nn.Module],
    named: Named,
    every: Named,
    may_skip: bool,
    shards: Shards | None,
) -> Optimizer:
    by_entries = section.given is None and steps_by_entries(builder.resolve(section))
    if shards is not None and isinstance(section.given, Optimizer):
        message = "was made for parameters that are whole; pass its class, or a function of the parameters"
        raise builder.wrong(section.path, message)
    if shards is not None and not by_entries and not shards.mesh.computes_as_whole():
        message = f"{section.target} steps whole parameters, and torch {torch.__version__} computes with norms of "
        remedy = f"use one that steps each entry by itself ({', '.join(_BY_ENTRIES)}), or torch 2.13"
        raise builder.wrong(section.path, f"{message}sharded ones wrongly; {remedy}")
    if shards is not None and by_entries:
        named = {name: shards.local(parameter) for name, parameter in named.items()}
    is_grouped = any(section.options.get(key) is not None for key in ("_groups_", "_layer_decay_"))
    params = _groups(builder, section, modules[0], named, every) if is_grouped else list(named.values())
    if section.given is None:
        fuses = (shards is None or by_entries) and _fuses(builder, section, modules, named.values(), may_skip)
        optimizer = builder.build(section, params=params, **({"fused": True} if fuses else {}))
    elif callable(section.given):
        optimizer = section.given(params)
    else:
        optimizer = section.given
    if (groups := section.options.get("_groups_")) and section.given is None:
        _check_groups(builder, section, groups, optimizer)
    if unfit := _unfit(optimizer, section.target, named.values(), made=optimizer is not section.given):
        raise builder.wrong(section.path, unfit)
    return optimizer  # type: ignore[no-any-return]


# they step each entry by itself, so that rows of a parameter are stepped as the whole is; what is not known to do so
# gets torch's distributed tensors, of which a norm or a product is that of the whole
_BY_ENTRIES = ["Adam", "AdamW", "SGD", "Adagrad", "RMSprop", "NAdam", "RAdam", "Adamax", "Adadelta", "ASGD", "Rprop"]


def steps_by_entries(target: Any) -> bool:
    """Whether an optimizer may be handed the rows that a process has of each parameter."""
    return any(target is getattr(torch.optim, name) for name in _BY_ENTRIES)


def _shares(
    builder: Builder, section: Mapping[str, Component], model: nn.Module, named: Named, every: Named
) -> dict[str, dict[str, nn.Parameter]]:
    """The parameters of each optimizer: by `_params_`, else those of the model's part of its name, else the rest."""
    parts = dict(model.named_children())
    default = {name: f"{name}.*" for name in section if name in parts}
    patterns = {name: as_list(entry.options.get("_params_", default.get(name, []))) for name, entry in section.items()}
    takers = [name for name, own in patterns.items() if not own]
    if len(takers) > 1:
        message = f"only one optimizer may have the rest, and '{takers[0]}' has no _params_ either; state _params_"
        raise builder.wrong(section[takers[1]].path, message)
    found = chosen((pattern for own in patterns.values() for pattern in own), named)
    for name, own in patterns.items():
        for pattern in own:
            if not found[pattern] and not is_frozen(pattern, every):
                raise builder.wrong((*section[name].path, "_params_"), no_such(pattern, every))
        if own and not any(found[pattern] for pattern in own):
            message = f"all of its parameters are frozen ({', '.join(own)}), by train.freeze or by the model itself; "
            message += f"let some be trained, or remove '{name}' here (and in train.step, where it takes turns)"
            raise builder.wrong(section[name].path, message)
    taken = {name for names in found.values() for name in names}
    left = [name for name in named if name not in taken]
    if left and not takers:
        shown = ", ".join(left[:4]) + (", …" if len(left) > 4 else "")
        message = f"no optimizer has {shown}; name them in _params_, let one without _params_ have the rest, or freeze "
        raise builder.wrong("optimizer", f"{message}them (train.freeze)")
    names = {name: [other for pattern in own for other in found[pattern]] or left for name, own in patterns.items()}
    return {name: {other: named[other] for other in named if other in set(own)} for name, own in names.items()}


def _is_among(parameter: nn.Parameter, others: Iterable[nn.Parameter]) -> bool:
    return any(parameter is other for other in others)


def _unfit(optimizer: Any, target: str, parameters: Iterable[nn.Parameter], made: bool) -> str | None:
    """Why something cannot be the run's optimizer; one that was not made here may be another model's."""
    if not isinstance(optimizer, Optimizer):
        return f"{target} gave a {type(optimizer).__name__}, not a torch.optim.Optimizer"
    own = [own_parameter for group in optimizer.param_groups for own_parameter in group["params"]]
    if not made and not any(_is_among(parameter, own) for parameter in parameters):
        return "has none of this model's parameters; pass its class, or a function of the parameters"
    return None


def calls_the_loss(optimizer: Optimizers, section: Component | Mapping[str, Component]) -> bool:
    """Whether an optimizer wants a closure: its step has to have one, or the recipe says so (`_closure_: true`)."""
    sections = {"": section} if isinstance(section, Component) else section
    return any(
        bool(sections[name].options.get("_closure_")) or _has_to_have_one(one) for name, one in each(optimizer).items()
    )


def _has_to_have_one(optimizer: Optimizer) -> bool:
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is closure.empty


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


def describe_optimizer(optimizer: Optimizers, key: str = "optimizer") -> str:
    """Its class, and how it steps, for the plan; of several, of each by its name."""
    if isinstance(optimizer, Several):
        named = optimizer.named.items()
        return "; ".join(f"{name} = {describe_optimizer(one, f'{key}.{name}')}" for name, one in named)
    groups = optimizer.param_groups
    several = f", {len(groups)} groups of parameters" if len(groups) > 1 else ""
    fused = f", fused ({key}.fused=false turns that off)" if groups[0].get("fused") else ""
    return f"{type(optimizer).__name__}{several}{fused}{_kept_in(optimizer)}"


def _kept_in(optimizer: Optimizer) -> str:
    """In which types an optimizer of 16-bit parameters keeps its state, which is its own choice."""
    own = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    half = next((parameter for parameter in own if parameter.dtype in (torch.bfloat16, torch.float16)), None)
    if half is None:
        return ""
    types: dict[str, list[str]] = {}
    for name, value in (optimizer.state.get(half) or _tried_state(optimizer, half.dtype)).items():
        if isinstance(value, torch.Tensor):
            types.setdefault(str(value.dtype).removeprefix("torch."), []).append(name)
    if not types:
        return ", whose first step shows what it keeps, and in which type"
    return ", which keeps " + " and ".join(f"{', '.join(names)} in {kind}" for kind, names in types.items())


def _tried_state(optimizer: Optimizer, dtype: torch.dtype) -> Mapping[str, Any]:
    """What another of its class keeps after a step of a small parameter; nothing where it cannot be made like that."""
    parameter = torch.zeros(2, 2, dtype=dtype, requires_grad=True)
    parameter.grad = torch.zeros_like(parameter)
    made_by: Any = type(optimizer)
    known = parameters_of(made_by) or {}
    settings = {name: value for name, value in optimizer.defaults.items() if name in known}
    try:
        other = made_by([parameter], **settings)
        with torch.no_grad():
            inspect.unwrap(type(other).step)(other)
    except Exception:  # anybody's class: nothing depends on it
        return {}
    return dict(other.state[parameter])


# ---------------------------------------------------------------------- groups


def _groups(builder: Builder, section: Component, model: nn.Module, named: Named, every: Named) -> list[dict[str, Any]]:
    """Parameter groups by pattern, and within each by layer where the rate decays from layer to layer."""
    patterns: Mapping[str, Mapping[str, Any]] = section.options.get("_groups_") or {}
    found = chosen(patterns, named)
    groups: list[tuple[list[str], dict[str, Any]]] = []
    for pattern, settings in patterns.items():
        if not found[pattern] and not is_frozen(pattern, every):
            raise builder.wrong((*section.path, "_groups_", pattern), no_such(pattern, every), at_key=True)
        evaluated = builder.value(settings, {})
        for name, message in builder.unfit(section, evaluated):
            raise builder.wrong((*section.path, "_groups_", pattern, name), message, at_key=True)
        if found[pattern]:
            groups.append((found[pattern], evaluated))
    grouped = {name for names, _ in groups for name in names}
    if left := [name for name in named if name not in grouped]:
        groups.insert(0, (left, {}))
    if (decay := section.options.get("_layer_decay_")) is not None:
        groups = list(_by_layer(builder, section, layers_of(model), groups, float(decay)))
    return [{"params": [named[name] for name in names], **settings} for names, settings in groups]


def _by_layer(
    builder: Builder,
    section: Component,
    layers: Mapping[str, int],
    groups: Sequence[tuple[list[str], dict[str, Any]]],
    decay: float,
) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """Each group once for each layer; the last layer has the whole rate, each one before it `decay` of the next's."""
    path = (*section.path, "_layer_decay_")
    if not layers:
        message = "the model has no stack of layers, a ModuleList or a Sequential; say the rates by name in _groups_"
        raise builder.wrong(path, message)
    last = max(layers.values())
    for names, settings in groups:
        rate = settings.get("lr", _rate(builder, section))
        if not isinstance(rate, int | float):
            raise builder.wrong(path, f"there is no rate to begin with; state {section.path[-1]}.lr")
        depths = {name: layers.get(name, last) for name in names}  # a loss's own are beyond the last
        for depth in sorted(set(depths.values())):
            own = [name for name in names if depths[name] == depth]
            yield own, {**settings, "lr": rate * decay ** (last - depth)}


def _rate(builder: Builder, section: Component) -> Any:
    if "lr" in section.kwargs:
        return builder.value(section.kwargs["lr"], {})
    parameter = (parameters_of(builder.resolve(section)) or {}).get("lr")
    return parameter.default if parameter is not None else None
